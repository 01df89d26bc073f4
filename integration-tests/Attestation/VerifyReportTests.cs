using System.Security.Cryptography.X509Certificates;
using Google.Protobuf;
using Grpc.Core;
using VmmService.Client.Attestation;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Attestation;

/// <summary>The daemon's verifier of SNP reports: says of every check whether it held, and agrees with the tests' own verifier.</summary>
public sealed class VerifyReportTests(Daemon daemon) : IClassFixture<Daemon>
{
    private static readonly DateTimeOffset s_now = new(2030, 6, 1, 0, 0, 0, TimeSpan.Zero);

    private static readonly string[] s_checks =
    [
        "report.form", "chain.ark", "chain.root", "chain.intermediate", "chain.intermediate-signature", "chain.endorsement", "chain.endorsement-signature", "chain.dates", "crl.form",
        "crl.revoked", "report.signing-key", "report.signature", "report.product", "report.certified-tcb", "report.chip-id", "report.measurement", "report.report-data", "report.vmpl",
        "report.min-tcb", "report.debug",
    ];

    public static TheoryData<string> Reports => SnpVectors.Ids("attestation-report");

    public static TheoryData<EvidenceKind, string> MustRefuse => new()
    {
        { EvidenceKind.WrongMeasurement, "report.measurement" },
        { EvidenceKind.DebugPolicy, "report.debug" },
        { EvidenceKind.StaleTcb, "report.min-tcb" },
        { EvidenceKind.WrongVmpl, "report.vmpl" },
        { EvidenceKind.BrokenChain, "chain.intermediate-signature" },
        { EvidenceKind.UntrustedRoot, "chain.root" },
        { EvidenceKind.Revoked, "crl.revoked" },
        { EvidenceKind.ReplayedNonce, "report.report-data" },
        { EvidenceKind.AlteredReport, "report.signature" },
        { EvidenceKind.ForeignChip, "report.chip-id" },
        { EvidenceKind.TcbMismatch, "report.certified-tcb" },
        { EvidenceKind.ExpiredCertificate, "chain.dates" },
    };

    [Theory]
    [InlineData(EpycProduct.Milan, 2u, "")]
    [InlineData(EpycProduct.Genoa, 3u, "")]
    [InlineData(EpycProduct.Turin, 5u, "")]
    [InlineData(EpycProduct.Milan, 3u, "CSP")]
    public async Task SoundEvidence_IsAccepted_AndSaidToBeSimulated(EpycProduct product, uint version, string vlek)
    {
        var machine = new MachineConfig { Product = product, Attestation = new AttestationConfig { ReportVersion = version, VlekCspId = vlek } };
        await using AttestedGuest guest = await AttestedGuest.Launch(daemon.Stubs, machine);

        EvidenceFindings findings = await Verify(await guest.Evidence(EvidenceKind.Sound));

        Assert.Equal((EvidenceVerdict.Accepted, true), (findings.Verdict, findings.Simulated));
        string[] notMade = [.. findings.Checks.Where(check => check.Result == EvidenceCheckResult.NotMade).Select(check => check.Id)];
        string[] expected = [.. version < 3 ? ["report.product"] : Array.Empty<string>(), .. vlek.Length > 0 ? ["report.chip-id"] : Array.Empty<string>()];
        Assert.Equal(expected, notMade);
        Assert.All(findings.Checks, check => Assert.NotEqual("", check.Demand));
    }

    [Theory]
    [MemberData(nameof(MustRefuse))]
    public async Task Evidence_ThatMustBeRefused_FailsItsOwnCheckAlone(EvidenceKind kind, string id)
    {
        await using AttestedGuest guest = await AttestedGuest.Launch(daemon.Stubs);

        EvidenceFindings findings = await Verify(await guest.Evidence(kind));

        Assert.Equal(EvidenceVerdict.Refused, findings.Verdict);
        EvidenceCheck failed = Assert.Single(findings.Checks, check => check.Result == EvidenceCheckResult.Failed);
        Assert.Equal(id, failed.Id);
        Assert.NotEqual("", failed.Found);
    }

    [Fact]
    public void EveryKindButSound_IsInTheTable() =>
        Assert.Equal(Enum.GetValues<EvidenceKind>().Except([EvidenceKind.Unspecified, EvidenceKind.Sound]).Order(), MustRefuse.Select(row => row.Data.Item1).Order());

    // What is left out is said, and a verdict that rests on it is not given.
    [Theory]
    [InlineData("endorsement", EvidenceVerdict.Incomplete, "chain.endorsement")]
    [InlineData("intermediate", EvidenceVerdict.Incomplete, "chain.intermediate")]
    [InlineData("ark", EvidenceVerdict.Incomplete, "chain.ark")]
    [InlineData("trust", EvidenceVerdict.Incomplete, "chain.root")]
    [InlineData("at", EvidenceVerdict.Incomplete, "chain.dates")]
    [InlineData("crl", EvidenceVerdict.Accepted, "crl.revoked")]
    [InlineData("measurement", EvidenceVerdict.Accepted, "report.measurement")]
    [InlineData("report_data", EvidenceVerdict.Accepted, "report.report-data")]
    [InlineData("vmpl", EvidenceVerdict.Accepted, "report.vmpl")]
    [InlineData("min_tcb", EvidenceVerdict.Accepted, "report.min-tcb")]
    public async Task WhatIsNotGiven_IsListedAsNotMade(string left, EvidenceVerdict verdict, string id)
    {
        await using AttestedGuest guest = await AttestedGuest.Launch(daemon.Stubs);
        VerifyReportRequest request = Request(await guest.Evidence(EvidenceKind.Sound));
        switch (left)
        {
            case "endorsement": request.Endorsement = ByteString.Empty; break;
            case "intermediate": request.Intermediate = ByteString.Empty; break;
            case "ark": request.Ark = ByteString.Empty; break;
            case "trust": request.Expected.Ark = ByteString.Empty; break;
            case "at": request.ClearAt(); break;
            case "crl": request.Crl = ByteString.Empty; break;
            case "measurement": request.Expected.Measurement = ""; break;
            case "report_data": request.Expected.ReportData = ByteString.Empty; break;
            case "vmpl": request.Expected.ClearVmpl(); break;
            case "min_tcb": request.Expected.MinTcb = null; break;
        }

        EvidenceFindings findings = await Ask(request);

        Assert.Equal(verdict, findings.Verdict);
        EvidenceCheck check = findings.Checks.Single(each => each.Id == id);
        Assert.Equal(EvidenceCheckResult.NotMade, check.Result);
        Assert.NotEqual("", check.Found);
    }

    // One bit anywhere in report, certificates or list: both verifiers refuse it, or neither does.
    [Fact]
    public async Task EvidenceWithOneBitChanged_IsRefusedWhereTheTestsVerifierRefusesIt()
    {
        const int seed = 20_261_121;
        var random = new Random(seed);
        await using AttestedGuest guest = await AttestedGuest.Launch(daemon.Stubs);
        MakeEvidenceResponse sound = await guest.Evidence(EvidenceKind.Sound);
        for (int i = 0; i < 1000; i++)
        {
            MakeEvidenceResponse changed = sound.Clone();
            string what = new[] { "report", "endorsement", "intermediate", "ark", "crl" }[i % 5];
            (int At, int Bit) flip = default;
            ByteString Flip(ByteString bytes)
            {
                flip = (random.Next(bytes.Length), random.Next(8));
                byte[] copy = bytes.ToByteArray();
                copy[flip.At] ^= (byte)(1 << flip.Bit);
                return ByteString.CopyFrom(copy);
            }
            switch (what)
            {
                case "report": changed.Report = Flip(changed.Report); break;
                case "endorsement": changed.Endorsement = Flip(changed.Endorsement); break;
                case "intermediate": changed.Intermediate = Flip(changed.Intermediate); break;
                case "ark": changed.Ark = Flip(changed.Ark); break;
                default: changed.Crl = Flip(changed.Crl); break;
            }

            EvidenceFindings findings = await Verify(changed);

            bool refused;
            try
            {
                refused = AttestedGuest.Verify(changed).Count > 0;
            }
            catch (Exception)
            {
                // The tests' verifier is for evidence that can be read.
                refused = true;
            }
            Assert.True(refused == (findings.Verdict != EvidenceVerdict.Accepted), $"seed {seed}, step {i}: bit {flip.Bit} of byte 0x{flip.At:x} of {what}: {findings}");
        }
    }

    // Real silicon: the report, its VCEK and AMD's own authorities.
    [Theory]
    [MemberData(nameof(Reports))]
    public async Task AReportOfSilicon_IsAccepted_UntilABitOfItChanges(string id)
    {
        SnpVector vector = SnpVectors.Get(id);
        VerifyReportRequest request = OfVector(vector);
        var read = SnpReport.Parse(request.Report.Memory);
        Assert.Equal(request.Report.ToByteArray(), read.Bytes.ToArray());
        Assert.False(read.IsSimulated);
        Assert.True(vector.Expected.GetProperty("signature_valid").GetBoolean() && vector.Expected.GetProperty("chain_valid").GetBoolean());
        Assert.False(vector.Expected.GetProperty("bit_flip_in_signed_range_valid").GetBoolean());

        EvidenceFindings findings = await Ask(request);

        Assert.Equal((EvidenceVerdict.Accepted, false), (findings.Verdict, findings.Simulated));
        foreach (int bit in new[] { 0, 8 * 0x50, 8 * 0x90, (8 * 0x2A0) - 1, 8 * 0x2A0 })
        {
            VerifyReportRequest flipped = request.Clone();
            byte[] bytes = request.Report.ToByteArray();
            bytes[bit / 8] ^= (byte)(1 << (bit % 8));
            flipped.Report = ByteString.CopyFrom(bytes);
            Assert.Equal(EvidenceVerdict.Refused, (await Ask(flipped)).Verdict);
        }
        VerifyReportRequest trustsSimulation = request.Clone();
        trustsSimulation.Expected.Ark = (await daemon.Stubs.Attestation.GetCertificateChainAsync(new GetCertificateChainRequest { Host = await Host() })).Ark;
        EvidenceCheck failed = Assert.Single((await Ask(trustsSimulation)).Checks, check => check.Result == EvidenceCheckResult.Failed);
        Assert.Equal("chain.root", failed.Id);
    }

    [Fact]
    public async Task BytesOfAllKinds_AreFindings_AndNeverAnError()
    {
        await using AttestedGuest guest = await AttestedGuest.Launch(daemon.Stubs);
        VerifyReportRequest sound = Request(await guest.Evidence(EvidenceKind.Sound));
        byte[][] bad =
        [
            [], [0x30], [0x30, 0x80, 0, 0], [0x30, 0x84, 0xFF, 0xFF, 0xFF, 0xFF], new byte[0x4A0], [.. Enumerable.Repeat((byte)0xFF, 0x4A0)], new byte[70_000],
            [.. sound.Report, 0], [.. sound.Report.Take(100)], [.. sound.Endorsement, 0], [.. sound.Endorsement.Take(700)], [.. sound.Crl], [.. sound.Ark], [.. "-----BEGIN CERTIFICATE-----"u8],
        ];
        Action<VerifyReportRequest, ByteString>[] places =
        [
            (request, bytes) => request.Report = bytes, (request, bytes) => request.Endorsement = bytes, (request, bytes) => request.Intermediate = bytes,
            (request, bytes) => request.Ark = bytes, (request, bytes) => request.Crl = bytes,
        ];
        for (int place = 0; place < places.Length; place++)
        {
            foreach (byte[] bytes in bad)
            {
                VerifyReportRequest request = sound.Clone();
                places[place](request, ByteString.CopyFrom(bytes));

                EvidenceFindings findings = await Ask(request);

                Assert.Equal(request.Equals(sound) || (place == 4 && bytes.Length == 0), findings.Verdict == EvidenceVerdict.Accepted);
            }
        }
        Assert.Equal(EvidenceVerdict.Refused, (await Ask(new VerifyReportRequest())).Verdict);
    }

    [Fact]
    public async Task Expectations_ThatCannotBe_AreRefusedWithTheField()
    {
        (EvidenceExpectation Expected, string Field)[] bad =
        [
            (new() { Measurement = "12" }, "expected.measurement"),
            (new() { Measurement = new string('g', 96) }, "expected.measurement"),
            (new() { ReportData = ByteString.CopyFrom(1) }, "expected.report_data"),
            (new() { MinTcb = new TcbVersion { Snp = 256 } }, "expected.min_tcb.snp"),
        ];
        foreach ((EvidenceExpectation expected, string field) in bad)
        {
            RpcException refused = await Assert.ThrowsAsync<RpcException>(() => Ask(new VerifyReportRequest { Expected = expected }));
            Assert.Equal(StatusCode.InvalidArgument, refused.StatusCode);
            Assert.StartsWith(field, refused.Status.Detail, StringComparison.Ordinal);
        }
        RpcException large = await Assert.ThrowsAsync<RpcException>(() => Ask(new VerifyReportRequest { Crl = ByteString.CopyFrom(new byte[(1 << 20) + 1]) }));
        Assert.Equal((StatusCode.InvalidArgument, true), (large.StatusCode, large.Status.Detail.StartsWith("crl:", StringComparison.Ordinal)));
        RpcException time = await Assert.ThrowsAsync<RpcException>(() => Ask(new VerifyReportRequest { At = long.MaxValue }));
        Assert.StartsWith("at:", time.Status.Detail, StringComparison.Ordinal);
    }

    /// <summary>The request that verifies a vector's report as it was on the day on which its VCEK was issued.</summary>
    private static VerifyReportRequest OfVector(SnpVector vector)
    {
        ByteString Bytes(string name) => ByteString.CopyFrom(vector.Params.GetProperty(name).GetBytesFromBase64());
        using X509Certificate2 vcek = X509CertificateLoader.LoadCertificate(Bytes("vcek_der_base64").Span);
        return new VerifyReportRequest
        {
            Report = Bytes("report_base64"),
            Endorsement = Bytes("vcek_der_base64"),
            Intermediate = Bytes("ask_der_base64"),
            Ark = Bytes("ark_der_base64"),
            Expected = new EvidenceExpectation { Ark = Bytes("ark_der_base64") },
            At = new DateTimeOffset(vcek.NotBefore).ToUnixTimeSeconds(),
        };
    }

    private static VerifyReportRequest Request(MakeEvidenceResponse evidence) => new()
    {
        Report = evidence.Report,
        Endorsement = evidence.Endorsement,
        Intermediate = evidence.Intermediate,
        Ark = evidence.Ark,
        Crl = evidence.Crl,
        Expected = evidence.Expected,
        At = s_now.ToUnixTimeSeconds(),
    };

    // Whatever the evidence, the checks are the same and in the same order.
    private async Task<EvidenceFindings> Ask(VerifyReportRequest request)
    {
        EvidenceFindings findings = (await daemon.Stubs.Attestation.VerifyReportAsync(request)).Findings;
        Assert.Equal(s_checks, findings.Checks.Select(check => check.Id));
        return findings;
    }

    private Task<EvidenceFindings> Verify(MakeEvidenceResponse evidence) => Ask(Request(evidence));

    private async Task<string> Host() => (await daemon.Stubs.Hosts.CreateHostAsync(new CreateHostRequest())).Host.Host_;
}
