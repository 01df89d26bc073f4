using System.Buffers.Binary;
using Google.Protobuf;
using Grpc.Core;
using VmmService.Client;
using VmmService.Client.Attestation;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Attestation;

/// <summary>Reports, quotes, collateral and evidence of TDs over gRPC, judged by a verifier that knows nothing of the simulator.</summary>
public sealed class TdxAttestationServiceTests(Daemon daemon) : IClassFixture<Daemon>
{
    private const int HeaderSize = 24;

    public static TheoryData<QuoteEvidenceKind, QuoteRefusal> MustRefuse => new()
    {
        { QuoteEvidenceKind.WrongMrtd, QuoteRefusal.Mrtd },
        { QuoteEvidenceKind.WrongRtmr, QuoteRefusal.Rtmr },
        { QuoteEvidenceKind.DebugTd, QuoteRefusal.Debug },
        { QuoteEvidenceKind.ReplayedNonce, QuoteRefusal.ReportData },
        { QuoteEvidenceKind.ForeignModule, QuoteRefusal.Module },
        { QuoteEvidenceKind.AlteredBody, QuoteRefusal.QuoteSignature },
        { QuoteEvidenceKind.AlteredQeReport, QuoteRefusal.QeReportSignature },
        { QuoteEvidenceKind.UnboundAttestationKey, QuoteRefusal.QeReportData },
        { QuoteEvidenceKind.ForeignQuotingEnclave, QuoteRefusal.QeIdentity },
        { QuoteEvidenceKind.StaleTcb, QuoteRefusal.TcbOutOfDate },
        { QuoteEvidenceKind.ForeignFamily, QuoteRefusal.Family },
        { QuoteEvidenceKind.BrokenChain, QuoteRefusal.IntermediateSignature },
        { QuoteEvidenceKind.UntrustedRoot, QuoteRefusal.UntrustedRoot },
        { QuoteEvidenceKind.RevokedPck, QuoteRefusal.PckRevoked },
        { QuoteEvidenceKind.RevokedPlatformCa, QuoteRefusal.CaRevoked },
        { QuoteEvidenceKind.ExpiredCertificate, QuoteRefusal.CertificateExpired },
        { QuoteEvidenceKind.AlteredTcbInfo, QuoteRefusal.TcbInfoSignature },
        { QuoteEvidenceKind.ExpiredTcbInfo, QuoteRefusal.TcbInfoExpired },
        { QuoteEvidenceKind.TruncatedQuote, QuoteRefusal.Structure },
    };

    public static TheoryData<QuoteFormat, int> Formats => new() { { QuoteFormat.V4, 4 }, { QuoteFormat.V5Tdx10, 5 }, { QuoteFormat.V5Tdx15, 5 } };

    [Theory]
    [MemberData(nameof(Formats))]
    public async Task Quote_OfAReport_SaysWhatItSaysAndIsAccepted(QuoteFormat format, int version)
    {
        await using RemoteHost host = await QuotedTd.CreateHost(daemon.Connection);
        TdxReport report = await QuotedTd.Report(host);

        GetQuoteResponse reply = await host.TdxAttestation.GetQuoteAsync(report.Bytes, format);
        GetQuoteCollateralResponse collateral = await host.TdxAttestation.GetCollateralAsync();

        Assert.Equal(TdReportVerdict.Genuine, reply.Verdict);
        var quote = TdxQuote.Parse(reply.Quote.Memory);
        Assert.Equal(version, quote.Version);
        Assert.Equal((report.Attributes, report.Xfam), (quote.TdAttributes, quote.Xfam));
        Assert.Equal(report.Mrtd.ToArray(), quote.Mrtd.ToArray());
        Assert.Equal(report.Rtmr(3).ToArray(), quote.Rtmr(3).ToArray());
        Assert.Equal(QuotedTd.Nonce, quote.ReportData.ToArray());
        Assert.Equal(format == QuoteFormat.V5Tdx15 ? report.TeeTcbSvn.ToArray() : null, quote.TeeTcbSvn2?.ToArray());
        Assert.True(quote.IsSimulated && quote.IsKeyBound);
        Assert.Empty(QuotedTd.Verify(reply.Quote, collateral, report));
    }

    [Fact]
    public async Task Evidence_ThatIsSound_IsAccepted()
    {
        await using RemoteHost host = await QuotedTd.CreateHost(daemon.Connection);
        MakeQuoteEvidenceResponse evidence = await host.TdxAttestation.MakeEvidenceAsync(QuoteEvidenceKind.Sound, (await QuotedTd.Report(host)).Bytes);
        Assert.Equal("", evidence.Defect);
        Assert.Empty(QuotedTd.Verify(evidence));
    }

    [Theory]
    [MemberData(nameof(MustRefuse))]
    public async Task Evidence_ThatMustBeRefused_IsForItsOwnReasonAlone(QuoteEvidenceKind kind, QuoteRefusal reason)
    {
        await using RemoteHost host = await QuotedTd.CreateHost(daemon.Connection);
        TdxReport report = await QuotedTd.Report(host);
        foreach (QuoteFormat format in (QuoteFormat[])[QuoteFormat.V4, QuoteFormat.V5Tdx15])
        {
            MakeQuoteEvidenceResponse evidence = await host.TdxAttestation.MakeEvidenceAsync(kind, report.Bytes, format);
            Assert.Equal([reason], QuotedTd.Verify(evidence));
            Assert.NotEqual("", evidence.Defect);
        }
    }

    [Fact]
    public void EveryDefect_IsUnderTest() => Assert.Equal(
        Enum.GetValues<QuoteEvidenceKind>().Where(kind => kind is not (QuoteEvidenceKind.Unspecified or QuoteEvidenceKind.Sound)), MustRefuse.Select(row => row.Data.Item1));

    [Fact]
    public async Task Quotes_OfTheSameSeed_AreTheSameAndOfAnotherAreNot()
    {
        await using RemoteHost one = await QuotedTd.CreateHost(daemon.Connection, 7), two = await QuotedTd.CreateHost(daemon.Connection, 7), other = await QuotedTd.CreateHost(daemon.Connection, 8);
        ByteString first = await QuoteOn(one);
        Assert.Equal(first, await QuoteOn(two));
        Assert.NotEqual(first, await QuoteOn(other));

        static async Task<ByteString> QuoteOn(RemoteHost host) => (await host.TdxAttestation.GetQuoteAsync((await QuotedTd.Report(host)).Bytes)).Quote;
    }

    [Theory]
    [InlineData("as it was made", -1, TdReportVerdict.Genuine)]
    [InlineData("type", 0, TdReportVerdict.WrongType)]
    [InlineData("subtype", 1, TdReportVerdict.WrongType)]
    [InlineData("CPUSVN", 16, TdReportVerdict.InvalidCpusvn)]
    [InlineData("a hash", 32, TdReportVerdict.InvalidReportmacstruct)]
    [InlineData("REPORTDATA", 128, TdReportVerdict.InvalidReportmacstruct)]
    [InlineData("a reserved byte under the MAC", 223, TdReportVerdict.InvalidReportmacstruct)]
    [InlineData("the MAC", 255, TdReportVerdict.InvalidReportmacstruct)]
    [InlineData("TEE_TCB_INFO", 256, TdReportVerdict.TeeTcbInfoHashMismatch)]
    [InlineData("the last byte of TEE_TCB_INFO", 494, TdReportVerdict.TeeTcbInfoHashMismatch)]
    [InlineData("a byte that nothing covers", 495, TdReportVerdict.Genuine)]
    [InlineData("TDINFO", 512, TdReportVerdict.TeeInfoHashMismatch)]
    [InlineData("the last byte of TDINFO", 1023, TdReportVerdict.TeeInfoHashMismatch)]
    public async Task AReport_WithOneBitChanged_IsNotQuotedAndIsToldWhy(string what, int offset, TdReportVerdict expected)
    {
        await using RemoteHost host = await QuotedTd.CreateHost(daemon.Connection);
        byte[] report = (await QuotedTd.Report(host)).Bytes.ToArray();
        if (offset >= 0)
            report[offset] ^= 1;

        GetQuoteResponse reply = await host.TdxAttestation.GetQuoteAsync(report);

        Assert.True(expected == reply.Verdict, $"{what}: {reply.Verdict}");
        Assert.Equal(expected == TdReportVerdict.Genuine, !reply.Quote.IsEmpty);
        Assert.Equal(expected, await host.TdxAttestation.VerifyReportAsync(report));
        // VERIFYREPORT sees the first structure only.
        TdReportVerdict ofMac = offset >= 256 || offset is 0 or 1 ? (offset is 0 or 1 ? TdReportVerdict.InvalidReportmacstruct : TdReportVerdict.Genuine) : expected;
        Assert.Equal(ofMac, await host.TdxAttestation.VerifyReportAsync(report.AsMemory(0, 256)));
    }

    [Fact]
    public async Task AReport_OfAnotherHost_IsNotQuoted()
    {
        await using RemoteHost one = await QuotedTd.CreateHost(daemon.Connection, 1), other = await QuotedTd.CreateHost(daemon.Connection, 2);
        TdxReport report = await QuotedTd.Report(one);
        Assert.Equal(TdReportVerdict.InvalidReportmacstruct, (await other.TdxAttestation.GetQuoteAsync(report.Bytes)).Verdict);
    }

    [Fact]
    public async Task SharedBuffer_OfTheLinuxDriver_IsAnsweredWithTheQuote()
    {
        await using RemoteHost host = await QuotedTd.CreateHost(daemon.Connection);
        TdxReport report = await QuotedTd.Report(host);

        AnswerGetQuoteResponse answer = await host.TdxAttestation.AnswerGetQuoteAsync(0x10000, Buffer(report.Bytes));

        Assert.Equal((0ul, "Success", 0ul, "Success", TdReportVerdict.Genuine), (answer.Ret, answer.RetName, answer.Status, answer.StatusName, answer.Verdict));
        byte[] buffer = answer.Buffer.ToByteArray();
        Assert.Equal(8192, buffer.Length);
        Assert.Equal((1ul, 0ul, 1024u), (BinaryPrimitives.ReadUInt64LittleEndian(buffer), BinaryPrimitives.ReadUInt64LittleEndian(buffer.AsSpan(8)), BinaryPrimitives.ReadUInt32LittleEndian(buffer.AsSpan(16))));
        int length = BinaryPrimitives.ReadInt32LittleEndian(buffer.AsSpan(20));
        Assert.Equal((await host.TdxAttestation.GetQuoteAsync(report.Bytes)).Quote.ToByteArray(), buffer[HeaderSize..(HeaderSize + length)]);
    }

    [Theory]
    [InlineData("no size", 0x10000ul, 0, 0u, "InvalidOperand")]
    [InlineData("address not aligned", 0x10001ul, 4096, 0u, "AlignError")]
    [InlineData("size not aligned", 0x10000ul, 4095, 0u, "AlignError")]
    [InlineData("too large", 0x10000ul, (128 << 10) + 4096, 0u, "InvalidOperand")]
    [InlineData("the largest", 0x10000ul, 128 << 10, 0u, "Success")]
    [InlineData("sixteen in flight", 0x10000ul, 8192, 16u, "Retry")]
    [InlineData("fifteen in flight", 0x10000ul, 8192, 15u, "Success")]
    public async Task SharedBuffer_IsCheckedAsQemuDoes(string what, ulong gpa, int size, uint inFlight, string ret)
    {
        await using RemoteHost host = await QuotedTd.CreateHost(daemon.Connection);
        byte[] buffer = new byte[size];
        if (size > HeaderSize)
        {
            buffer[0] = 1;
            BinaryPrimitives.WriteInt32LittleEndian(buffer.AsSpan(16), 1024);
        }

        AnswerGetQuoteResponse answer = await daemon.Stubs.TdxAttestation.AnswerGetQuoteAsync(
            new AnswerGetQuoteRequest { Host = host.Id, Gpa = gpa, Size = (ulong)size, Buffer = ByteString.CopyFrom(buffer), InFlight = inFlight });

        Assert.True(ret == answer.RetName, $"{what}: {answer.RetName}");
        if (ret != "Success")
            Assert.Equal(buffer, answer.Buffer.ToByteArray());
    }

    [Theory]
    [InlineData("version 2", 0, 2, "InvalidOperand", "")]
    [InlineData("input beyond the buffer", 17, 0x80, "InvalidOperand", "")]
    [InlineData("no TDREPORT's length", 16, 1, "Success", "Error")]
    [InlineData("a report that is not genuine", HeaderSize + 512, 1, "Success", "Error")]
    public async Task SharedBuffer_WithALie_IsRefusedOrAnsweredWithAnError(string what, int offset, byte value, string ret, string status)
    {
        await using RemoteHost host = await QuotedTd.CreateHost(daemon.Connection);
        byte[] buffer = Buffer((await QuotedTd.Report(host)).Bytes);
        buffer[offset] ^= (byte)(value ^ (offset == 0 ? 1 : 0));
        AnswerGetQuoteResponse answer = await host.TdxAttestation.AnswerGetQuoteAsync(0x10000, buffer);
        Assert.True((ret, status) == (answer.RetName, answer.StatusName), $"{what}: {answer.RetName} {answer.StatusName}");
    }

    [Fact]
    public async Task SharedBuffer_WithoutAQuotingServiceOrWithoutRoom_SaysSo()
    {
        await using RemoteHost host = await QuotedTd.CreateHost(daemon.Connection);
        byte[] buffer = Buffer((await QuotedTd.Report(host)).Bytes);
        var request = new AnswerGetQuoteRequest { Host = host.Id, Gpa = 0, Size = 8192, Buffer = ByteString.CopyFrom(buffer), ServiceUnavailable = true };
        Assert.Equal(("ServiceUnavailable", 0x8000_0000_0000_0001ul), await StatusOf(request));

        // A page has no room for a quote.
        Assert.Equal(("Error", 0x8000_0000_0000_0000ul), await StatusOf(new AnswerGetQuoteRequest { Host = host.Id, Size = 4096, Buffer = ByteString.CopyFrom(buffer, 0, 4096) }));

        async Task<(string, ulong)> StatusOf(AnswerGetQuoteRequest each)
        {
            AnswerGetQuoteResponse answer = await daemon.Stubs.TdxAttestation.AnswerGetQuoteAsync(each);
            Assert.Equal(answer.Status, BinaryPrimitives.ReadUInt64LittleEndian(answer.Buffer.Span[8..]));
            return (answer.StatusName, answer.Status);
        }
    }

    [Fact]
    public async Task QuoteService_AnswersItsMessages()
    {
        await using RemoteHost host = await QuotedTd.CreateHost(daemon.Connection);
        TdxReport report = await QuotedTd.Report(host);
        byte[] request = [.. Convert.FromHexString("00000418010001000000000018040000000000000004000000000000"), .. report.Bytes.ToArray()];

        byte[] answer = await Ask(request);

        int quote = BinaryPrimitives.ReadInt32LittleEndian(answer.AsSpan(24));
        Assert.Equal(answer.Length - 4, BinaryPrimitives.ReadInt32BigEndian(answer));
        Assert.Equal((1, 0u, answer.Length - 28), (BinaryPrimitives.ReadInt32LittleEndian(answer.AsSpan(8)), BinaryPrimitives.ReadUInt32LittleEndian(answer.AsSpan(16)), quote));
        Assert.Equal((await host.TdxAttestation.GetQuoteAsync(report.Bytes)).Quote.ToByteArray(), answer[28..]);

        // Each field of the request, and the report.
        foreach (int offset in (int[])[0, 3, 4, 8, 12, 16, 20, 24, 28, 600])
        {
            byte[] wrong = [.. request];
            wrong[offset] ^= 4;
            byte[] refusal = await Ask(wrong);
            Assert.NotEqual(0u, BinaryPrimitives.ReadUInt32LittleEndian(refusal.AsSpan(16)));
        }

        async Task<byte[]> Ask(byte[] message) =>
            (await daemon.Stubs.TdxAttestation.AskQuoteServiceAsync(new AskQuoteServiceRequest { Host = host.Id, Message = ByteString.CopyFrom(message) })).Message.ToByteArray();
    }

    [Fact]
    public async Task AHostWithoutTdx_IsRefused()
    {
        await using RemoteHost host = await daemon.Connection.CreateHostAsync();
        VmmServiceException refused = await Assert.ThrowsAsync<VmmServiceException>(() => host.TdxAttestation.GetCollateralAsync());
        Assert.Equal(StatusCode.InvalidArgument, refused.StatusCode);
        Assert.Contains("PLATFORM_INTEL_TDX", refused.Message, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Requests_ThatCannotBe_AreRefusedWithTheFieldsName()
    {
        await using RemoteHost host = await QuotedTd.CreateHost(daemon.Connection);
        TdxAttestationService.TdxAttestationServiceClient stub = daemon.Stubs.TdxAttestation;
        ByteString report = ByteString.CopyFrom((await QuotedTd.Report(host)).Bytes.Span);
        var registers = new TdInfo();
        registers.Rtmr.AddRange(Enumerable.Repeat(ByteString.Empty, 5));
        (string Field, Func<Task> Call)[] calls =
        [
            ("td", () => stub.MakeTdReportAsync(new MakeTdReportRequest { Host = host.Id }).ResponseAsync),
            ("td.mrtd", () => stub.MakeTdReportAsync(new MakeTdReportRequest { Host = host.Id, Td = new TdInfo { Mrtd = report } }).ResponseAsync),
            ("td.rtmr", () => stub.MakeTdReportAsync(new MakeTdReportRequest { Host = host.Id, Td = registers }).ResponseAsync),
            ("report_data", () => stub.MakeTdReportAsync(new MakeTdReportRequest { Host = host.Id, Td = new TdInfo(), ReportData = report }).ResponseAsync),
            ("report", () => stub.VerifyTdReportAsync(new VerifyTdReportRequest { Host = host.Id }).ResponseAsync),
            ("report", () => stub.GetQuoteAsync(new GetQuoteRequest { Host = host.Id, Report = ByteString.Empty }).ResponseAsync),
            ("format", () => stub.GetQuoteAsync(new GetQuoteRequest { Host = host.Id, Report = report, Format = (QuoteFormat)9 }).ResponseAsync),
            ("message", () => stub.AskQuoteServiceAsync(new AskQuoteServiceRequest { Host = host.Id, Message = ByteString.CopyFrom(new byte[(64 << 10) + 1]) }).ResponseAsync),
            ("kind", () => stub.MakeQuoteEvidenceAsync(new MakeQuoteEvidenceRequest { Host = host.Id, Report = report }).ResponseAsync),
            ("report", () => stub.MakeQuoteEvidenceAsync(new MakeQuoteEvidenceRequest { Host = host.Id, Report = ByteString.CopyFrom(new byte[1024]), Kind = QuoteEvidenceKind.Sound }).ResponseAsync),
        ];
        foreach ((string field, Func<Task> call) in calls)
        {
            RpcException refused = await Assert.ThrowsAsync<RpcException>(call);
            Assert.Equal(StatusCode.InvalidArgument, refused.StatusCode);
            Assert.StartsWith(field + ":", refused.Status.Detail, StringComparison.Ordinal);
        }
    }

    // As drivers/virt/coco/tdx-guest fills it.
    private static byte[] Buffer(ReadOnlyMemory<byte> report)
    {
        byte[] buffer = new byte[8192];
        buffer[0] = 1;
        BinaryPrimitives.WriteInt32LittleEndian(buffer.AsSpan(16), report.Length);
        report.Span.CopyTo(buffer.AsSpan(HeaderSize));
        return buffer;
    }
}
