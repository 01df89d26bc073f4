using System.Text;
using System.Text.RegularExpressions;
using Google.Protobuf;
using Grpc.Core;
using VmmService.Client;
using VmmService.Client.Attestation;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Attestation;

/// <summary>The daemon's verifier of quotes: what it says of the catalogue, of what is left out, and of bytes that are nothing.</summary>
public sealed class VerifyQuoteTests(Daemon daemon) : IClassFixture<Daemon>
{
    // Every check, in its order, whatever is verified.
    private static readonly string[] s_checks =
    [
        "quote.structure", "quote.chain-form", "quote.root", "quote.ca-signature", "quote.pck-signature", "quote.dates", "quote.attestation-key", "quote.signature",
        "quote.qe-report-signature", "quote.qe-report-data", "collateral.crl-signatures", "collateral.crl-dates", "collateral.ca-revoked", "collateral.pck-revoked",
        "collateral.tcb-signing", "collateral.tcb-signing-dates", "collateral.tcb-signing-revoked", "collateral.tcb-info-signature", "collateral.tcb-info-dates", "collateral.family",
        "collateral.tcb", "collateral.qe-identity-signature", "collateral.qe-identity-dates", "collateral.qe-identity", "quote.module", "quote.mrtd", "quote.rtmr",
        "quote.report-data", "quote.debug",
    ];

    public static TheoryData<QuoteFormat> Formats => [QuoteFormat.V4, QuoteFormat.V5Tdx10, QuoteFormat.V5Tdx15];

    [Theory]
    [MemberData(nameof(Formats))]
    public async Task SoundEvidence_PassesEveryCheck_AndIsSaidToBeSimulated(QuoteFormat format)
    {
        EvidenceFindings findings = await daemon.Connection.VerifyQuoteAsync(VerifiedQuotes.Request(await Evidence(QuoteEvidenceKind.Sound, format)));

        Assert.Equal((EvidenceVerdict.Accepted, true), (findings.Verdict, findings.Simulated));
        Assert.Equal(s_checks, findings.With(EvidenceCheckResult.Held));
        Assert.Equal(s_checks.Length, findings.Checks.Count);
        Assert.All(findings.Checks, check => Assert.NotEqual("", check.Demand));
        Assert.All(findings.Checks, check => Assert.Equal("", check.Found));
    }

    [Fact]
    public async Task TheProto_ListsTheChecks()
    {
        string proto = await File.ReadAllTextAsync(Path.Combine(Repository.Root, "protos", "vmmservice", "v1", "tdx_attestation.proto"));
        string comment = proto[proto.IndexOf("// The checks, always all", StringComparison.Ordinal)..proto.IndexOf("message VerifyQuoteResponse", StringComparison.Ordinal)];
        Assert.Equal(s_checks, Regex.Matches(comment, "(quote|collateral)\\.[a-z-]+").Select(match => match.Value));
    }

    [Theory]
    [MemberData(nameof(TdxAttestationServiceTests.MustRefuse), MemberType = typeof(TdxAttestationServiceTests))]
    public async Task Evidence_ThatMustBeRefused_FailsItsOwnCheckAlone(QuoteEvidenceKind kind, QuoteRefusal reason)
    {
        foreach (QuoteFormat format in Formats.Select(row => row.Data))
        {
            EvidenceFindings findings = await Ask(VerifiedQuotes.Request(await Evidence(kind, format)));

            Assert.Equal(EvidenceVerdict.Refused, findings.Verdict);
            Assert.Equal([VerifiedQuotes.Ids[reason]], findings.Failed());
            Assert.Equal(s_checks, findings.Checks.Select(check => check.Id));
            Assert.All(findings.Checks, check => Assert.Equal(check.Result == EvidenceCheckResult.Held, check.Found.Length == 0));
        }
    }

    // With the values that were found and those that had to be.
    [Theory]
    [InlineData(QuoteEvidenceKind.WrongMrtd, "MRTD is fefefefe", "not 01010101")]
    [InlineData(QuoteEvidenceKind.WrongRtmr, "RTMR1 is f9f9f9f9", "not 06060606")]
    [InlineData(QuoteEvidenceKind.ReplayedNonce, "REPORTDATA is fffcf9", "not 000306")]
    [InlineData(QuoteEvidenceKind.DebugTd, "ATTRIBUTES is 0x10000001")]
    [InlineData(QuoteEvidenceKind.ForeignModule, "MRSIGNERSEAM is ffffffff", "not 00000000")]
    [InlineData(QuoteEvidenceKind.ForeignQuotingEnclave, "MRSIGNER is ")]
    [InlineData(QuoteEvidenceKind.StaleTcb, "OutOfDate", "PCESVN 0", "TEE_TCB_SVN 050106")]
    [InlineData(QuoteEvidenceKind.ForeignFamily, "FMSPC of the PCK certificate is 53494d", "not 53494d")]
    [InlineData(QuoteEvidenceKind.UntrustedRoot, "SHA-256")]
    [InlineData(QuoteEvidenceKind.RevokedPck, "pck_crl lists the serial number 53494d", "Intel SGX PCK Certificate")]
    [InlineData(QuoteEvidenceKind.RevokedPlatformCa, "root_crl lists the serial number 53494d", "Intel SGX PCK Platform CA")]
    [InlineData(QuoteEvidenceKind.ExpiredCertificate, "Intel SGX PCK Certificate ended on 2024-01-01", "2030-06-01")]
    [InlineData(QuoteEvidenceKind.ExpiredTcbInfo, "2024-02-01", "2030-06-01")]
    [InlineData(QuoteEvidenceKind.TruncatedQuote, "signature data", "are there")]
    public async Task AFailedCheck_SaysWhatWasFound(QuoteEvidenceKind kind, params string[] says)
    {
        EvidenceFindings findings = await Ask(VerifiedQuotes.Request(await Evidence(kind, QuoteFormat.V4)));
        string found = findings.Checks.Single(check => check.Result == EvidenceCheckResult.Failed).Found;
        Assert.All(says, each => Assert.Contains(each, found, StringComparison.Ordinal));
    }

    // What is left out is said, and a verdict that rests on it is not given.
    [Theory]
    [InlineData("root", EvidenceVerdict.Incomplete, "quote.root")]
    [InlineData("at", EvidenceVerdict.Incomplete, "quote.dates", "collateral.crl-dates", "collateral.tcb-signing-dates", "collateral.tcb-info-dates", "collateral.qe-identity-dates")]
    [InlineData("pck_crl", EvidenceVerdict.Incomplete, "collateral.crl-signatures", "collateral.crl-dates", "collateral.pck-revoked")]
    [InlineData("root_crl", EvidenceVerdict.Incomplete, "collateral.crl-signatures", "collateral.crl-dates", "collateral.ca-revoked", "collateral.tcb-signing-revoked")]
    [InlineData("tcb_info", EvidenceVerdict.Incomplete, "collateral.tcb-info-signature", "collateral.tcb-info-dates", "collateral.family", "collateral.tcb")]
    [InlineData("qe_identity", EvidenceVerdict.Incomplete, "collateral.qe-identity-signature", "collateral.qe-identity-dates", "collateral.qe-identity")]
    [InlineData(
        "tcb_signing", EvidenceVerdict.Incomplete, "collateral.tcb-signing", "collateral.tcb-signing-dates", "collateral.tcb-signing-revoked", "collateral.tcb-info-signature",
        "collateral.tcb-info-dates", "collateral.family", "collateral.tcb", "collateral.qe-identity-signature", "collateral.qe-identity-dates", "collateral.qe-identity")]
    [InlineData("mrtd", EvidenceVerdict.Accepted, "quote.mrtd")]
    [InlineData("rtmr", EvidenceVerdict.Accepted, "quote.rtmr")]
    [InlineData("report_data", EvidenceVerdict.Accepted, "quote.report-data")]
    [InlineData("debug", EvidenceVerdict.Accepted, "quote.debug")]
    public async Task WhatIsNotGiven_IsListedAsNotMade(string left, EvidenceVerdict verdict, params string[] ids)
    {
        VerifyQuoteRequest request = VerifiedQuotes.Request(await Evidence(QuoteEvidenceKind.Sound, QuoteFormat.V4));
        switch (left)
        {
            case "root": request.Expected.Root = ByteString.Empty; break;
            case "at": request.ClearAt(); break;
            case "pck_crl": request.PckCrl = ByteString.Empty; break;
            case "root_crl": request.RootCrl = ByteString.Empty; break;
            case "tcb_info": request.TcbInfo = ByteString.Empty; break;
            case "qe_identity": request.QeIdentity = ByteString.Empty; break;
            case "tcb_signing": request.TcbSigning = ByteString.Empty; break;
            case "mrtd": request.Expected.Mrtd = ""; break;
            case "rtmr": request.Expected.Rtmr.Clear(); break;
            case "report_data": request.Expected.ReportData = ByteString.Empty; break;
            case "debug": request.Expected.AllowDebug = true; break;
        }

        EvidenceFindings findings = await Ask(request);

        Assert.Equal(verdict, findings.Verdict);
        Assert.Equal(ids, findings.With(EvidenceCheckResult.NotMade));
        Assert.Equal(s_checks, findings.Checks.Select(check => check.Id));
        Assert.All(findings.Checks, check => Assert.Equal(check.Result == EvidenceCheckResult.Held, check.Found.Length == 0));
    }

    [Fact]
    public async Task OneRegister_CanBeExpectedAlone()
    {
        VerifyQuoteRequest request = VerifiedQuotes.Request(await Evidence(QuoteEvidenceKind.WrongRtmr, QuoteFormat.V4));
        string wrong = request.Expected.Rtmr[1];
        request.Expected.Rtmr[1] = "";
        Assert.Equal(EvidenceVerdict.Accepted, (await Ask(request)).Verdict);

        request.Expected.Rtmr.Clear();
        request.Expected.Rtmr.AddRange(["", wrong.ToUpperInvariant()]);
        Assert.Equal(["quote.rtmr"], (await Ask(request)).Failed());
    }

    [Fact]
    public async Task ADebugTd_IsAcceptedWhereThatIsAllowed()
    {
        VerifyQuoteRequest request = VerifiedQuotes.Request(await Evidence(QuoteEvidenceKind.DebugTd, QuoteFormat.V5Tdx15));
        request.Expected.AllowDebug = true;
        Assert.Equal(EvidenceVerdict.Accepted, (await Ask(request)).Verdict);
    }

    [Theory]
    [InlineData("2023-12-31T00:00:00Z", "quote.dates", "collateral.crl-dates", "collateral.tcb-signing-dates", "collateral.tcb-info-dates", "collateral.qe-identity-dates")]
    [InlineData("2049-01-02T00:00:00Z", "quote.dates", "collateral.crl-dates", "collateral.tcb-signing-dates", "collateral.tcb-info-dates", "collateral.qe-identity-dates")]
    public async Task EverythingWithDates_IsRefusedOutsideOfThem(string at, params string[] failed)
    {
        VerifyQuoteRequest request = VerifiedQuotes.Request(await Evidence(QuoteEvidenceKind.Sound, QuoteFormat.V4));
        request.At = DateTimeOffset.Parse(at, System.Globalization.CultureInfo.InvariantCulture).ToUnixTimeSeconds();
        Assert.Equal(failed, (await Ask(request)).Failed());
    }

    [Fact]
    public async Task OfBytesBehindTheQuote_NobodyCares_AndOneNulMayEndTheChain()
    {
        VerifyQuoteRequest request = VerifiedQuotes.Request(await Evidence(QuoteEvidenceKind.Sound, QuoteFormat.V4));
        byte[] sound = request.Quote.ToByteArray();

        Assert.Equal(EvidenceVerdict.Accepted, await With([.. sound, 1, 2, 3]));
        Assert.Equal(EvidenceVerdict.Accepted, await With(WithChainEnd(sound, "\0")));
        Assert.Equal(EvidenceVerdict.Refused, await With(WithChainEnd(sound, "\n\0")));
        Assert.Equal(EvidenceVerdict.Refused, await With(WithChainEnd(sound, "\n")));
        Assert.Equal(EvidenceVerdict.Refused, await With(WithChainEnd(sound, "\0\0")));
        Assert.Equal(EvidenceVerdict.Refused, await With(WithChainEnd(sound, "x")));

        async Task<EvidenceVerdict> With(byte[] quote)
        {
            request.Quote = ByteString.CopyFrom(quote);
            return (await Ask(request)).Verdict;
        }
    }

    // Each field of the structure, changed to what it cannot be.
    [Theory]
    [InlineData(0, 3, "version is 3")]
    [InlineData(0, 5, "body")]
    [InlineData(2, 3, "attestation key type")]
    [InlineData(4, 0, "TEE type")]
    [InlineData(12, 0, "QE vendor id")]
    [InlineData(632, 0xff, "signature data")]
    [InlineData(635, 0xff, "signature data")]
    [InlineData(764, 5, "type of the certification data")]
    [InlineData(769, 0xff, "size of the certification data")]
    [InlineData(1219, 0xff, "authentication data")]
    [InlineData(1252, 6, "type of the inner certification data")]
    [InlineData(1257, 0xff, "size of the inner certification data")]
    public async Task AQuote_WhoseStructureLies_IsRefusedWithTheField(int offset, byte value, string says)
    {
        VerifyQuoteRequest request = VerifiedQuotes.Request(await Evidence(QuoteEvidenceKind.Sound, QuoteFormat.V4));
        byte[] quote = request.Quote.ToByteArray();
        quote[offset] = value;
        request.Quote = ByteString.CopyFrom(quote);

        EvidenceFindings findings = await Ask(request);

        Assert.Equal(["quote.structure"], findings.Failed());
        Assert.Contains(says, findings.Checks[0].Found, StringComparison.Ordinal);
    }

    [Fact]
    public async Task AQuoteCutOffAnywhere_IsRefusedForItsStructure()
    {
        VerifyQuoteRequest request = VerifiedQuotes.Request(await Evidence(QuoteEvidenceKind.Sound, QuoteFormat.V5Tdx15));
        byte[] quote = request.Quote.ToByteArray();
        for (int length = 0; length < quote.Length; length += length < 1500 ? 7 : 101)
        {
            request.Quote = ByteString.CopyFrom(quote.AsSpan(0, length));
            Assert.Equal(["quote.structure"], (await Ask(request)).Failed());
        }
    }

    [Fact]
    public async Task BytesOfAllKinds_AreFindings_AndNeverAnError()
    {
        VerifyQuoteRequest sound = VerifiedQuotes.Request(await Evidence(QuoteEvidenceKind.Sound, QuoteFormat.V4));
        byte[][] bad =
        [
            [0], [0x30], [0x30, 0x80, 0, 0], [0x30, 0x84, 0xff, 0xff, 0xff, 0xff], new byte[5000], [.. Enumerable.Repeat((byte)0xff, 5000)], new byte[1 << 16],
            [.. sound.Quote.Take(2000)], [.. sound.PckCrl], [.. sound.PckCrl.Take(100)], [.. sound.PckCrl, 0], [.. sound.TcbSigning], [.. sound.TcbSigning.Take(300)], [.. sound.TcbSigning, 0],
            [.. sound.TcbInfo], [.. sound.TcbInfo.Take(500)], [.. sound.QeIdentity, (byte)'x'], [.. "\u00ef\u00bb\u00bf{}"u8], Text("{}"), Text("[]"), Text("null"), Text("{"), Text("\"\\ud800\""),
            Text("{\"tcbInfo\":{},\"signature\":\"\"}"), Text("{\"tcbInfo\":[],\"signature\":\"00\"}"), Text("{\"enclaveIdentity\":null,\"signature\":7}"), Text("{\"\\ud800\":{},\"signature\":\"\\ud800\"}"),
            Text($"{{\"tcbInfo\":{{\"\\ud800\":1}},\"signature\":\"{new string('0', 128)}\"}}"), Text($"{{\"tcbInfo\":{{\"id\":\"\\ud800\"}},\"signature\":\"{new string('f', 128)}\"}}"),
            Text($"{{\"tcbInfo\":{{}},\"signature\":\"{new string('0', 128)}\",\"signature\":\"\"}}"), [.. "{\"tcbInfo\":{\"id\":\""u8, 0xff, 0xfe, .. "\"},\"signature\":\"\"}"u8],
            Text(new string('[', 60_000)), Text(string.Concat(Enumerable.Repeat("{\"tcbInfo\":", 5000))), Text("-----BEGIN CERTIFICATE-----"),
            Text("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"),
        ];
        Action<VerifyQuoteRequest, ByteString>[] places =
        [
            (request, bytes) => request.Quote = bytes, (request, bytes) => request.PckCrl = bytes, (request, bytes) => request.RootCrl = bytes, (request, bytes) => request.TcbInfo = bytes,
            (request, bytes) => request.QeIdentity = bytes, (request, bytes) => request.TcbSigning = bytes, (request, bytes) => request.Expected.Root = bytes,
        ];
        foreach (Action<VerifyQuoteRequest, ByteString> put in places)
        {
            foreach (byte[] bytes in bad)
            {
                VerifyQuoteRequest request = sound.Clone();
                put(request, ByteString.CopyFrom(bytes));

                EvidenceFindings findings = await Ask(request);

                Assert.Equal(request.Equals(sound) ? EvidenceVerdict.Accepted : EvidenceVerdict.Refused, findings.Verdict);
                Assert.Equal(s_checks, findings.Checks.Select(check => check.Id));
            }
        }
        Assert.Equal(["quote.structure"], (await Ask(new VerifyQuoteRequest())).Failed());

        static byte[] Text(string text) => Encoding.UTF8.GetBytes(text);
    }

    // The chain is nobody's to trust before it is verified: certificates that are anything.
    [Fact]
    public async Task AChainOfAnything_IsFindings()
    {
        MakeQuoteEvidenceResponse evidence = await Evidence(QuoteEvidenceKind.Sound, QuoteFormat.V4);
        string pem = TdxQuote.Parse(evidence.Quote.Memory).PckChainPem;
        string[] blocks = [.. pem.Split("-----END CERTIFICATE-----").SkipLast(1).Select(each => each.TrimStart() + "-----END CERTIFICATE-----\n")];
        string[] chains =
        [
            "", "\0", blocks[0], blocks[0] + blocks[1], pem + blocks[2], blocks[2] + blocks[1] + blocks[0], blocks[0] + blocks[0] + blocks[0], blocks[1] + blocks[1] + blocks[2],
            blocks[0] + "x\n" + blocks[1] + blocks[2], "x\n" + pem, pem.Replace("CERTIFICATE", "X509 CRL", StringComparison.Ordinal), pem.Replace('M', '*'), new string('-', 20_000),
            blocks[0] + "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n" + blocks[2], blocks[0] + "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n" + blocks[2],
        ];
        foreach (string chain in chains)
        {
            VerifyQuoteRequest request = VerifiedQuotes.Request(evidence);
            request.Quote = ByteString.CopyFrom(QuoteBytes.WithChain(evidence.Quote.ToByteArray(), chain));

            EvidenceFindings findings = await Ask(request);

            Assert.Equal(EvidenceVerdict.Refused, findings.Verdict);
            Assert.Equal("quote.chain-form", findings.Failed()[0]);
        }
    }

    [Fact]
    public async Task Requests_ThatCannotBe_AreRefusedWithTheField()
    {
        var registers = new QuoteExpectation();
        registers.Rtmr.AddRange(Enumerable.Repeat("", 5));
        var register = new QuoteExpectation();
        register.Rtmr.AddRange(["", "12"]);
        ByteString large = ByteString.CopyFrom(new byte[(1 << 20) + 1]);
        (VerifyQuoteRequest Request, string Field)[] bad =
        [
            (new() { Quote = ByteString.CopyFrom(new byte[(64 << 10) + 1]) }, "quote"),
            (new() { PckCrl = large }, "pck_crl"),
            (new() { RootCrl = large }, "root_crl"),
            (new() { TcbInfo = large }, "tcb_info"),
            (new() { QeIdentity = large }, "qe_identity"),
            (new() { TcbSigning = large }, "tcb_signing"),
            (new() { Expected = new QuoteExpectation { Root = large } }, "expected.root"),
            (new() { Expected = new QuoteExpectation { Mrtd = "12" } }, "expected.mrtd"),
            (new() { Expected = new QuoteExpectation { Mrtd = new string('g', 96) } }, "expected.mrtd"),
            (new() { Expected = registers }, "expected.rtmr"),
            (new() { Expected = register }, "expected.rtmr[1]"),
            (new() { Expected = new QuoteExpectation { ReportData = ByteString.CopyFrom(1) } }, "expected.report_data"),
            (new() { At = long.MaxValue }, "at"),
            (new() { At = long.MinValue }, "at"),
        ];
        foreach ((VerifyQuoteRequest request, string field) in bad)
        {
            RpcException refused = await Assert.ThrowsAsync<RpcException>(() => Ask(request));
            Assert.Equal(StatusCode.InvalidArgument, refused.StatusCode);
            Assert.StartsWith(field + ":", refused.Status.Detail, StringComparison.Ordinal);
        }
    }

    private static byte[] WithChainEnd(byte[] quote, string end) => QuoteBytes.WithChain(quote, TdxQuote.Parse(quote).PckChainPem + end);

    private async Task<MakeQuoteEvidenceResponse> Evidence(QuoteEvidenceKind kind, QuoteFormat format)
    {
        await using RemoteHost host = await QuotedTd.CreateHost(daemon.Connection);
        return await host.TdxAttestation.MakeEvidenceAsync(kind, (await QuotedTd.Report(host)).Bytes, format);
    }

    private Task<EvidenceFindings> Ask(VerifyQuoteRequest request) => VerifiedQuotes.Ask(daemon, request);
}
