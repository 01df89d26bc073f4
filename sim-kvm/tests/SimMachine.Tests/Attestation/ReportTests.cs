using SimMachine.Amd;
using SimMachine.Amd.Attestation;
using VmmService.IntegrationTests.Attestation;
using Xunit;

namespace SimMachine.Tests.Attestation;

/// <summary>Reports as the platform is configured, and the catalogue of evidence that must be refused, judged by a verifier that knows nothing of the simulator.</summary>
public sealed class ReportTests
{
    private static readonly DateTime Now = new(2030, 6, 1, 0, 0, 0, DateTimeKind.Utc);

    private static readonly MachineConfig Plain = new();

    public static TheoryData<EpycProduct, uint, bool> Platforms =>
    [
        .. from product in Enum.GetValues<EpycProduct>()
           from version in new uint[] { 0, 2, 3, 5 }
           from vlek in new[] { false, true }
           select (product, version, vlek),
    ];

    public static TheoryData<EvidenceKind, Refusal> MustRefuse => new()
    {
        { EvidenceKind.WrongMeasurement, Refusal.Measurement },
        { EvidenceKind.DebugPolicy, Refusal.Debug },
        { EvidenceKind.StaleTcb, Refusal.TcbTooOld },
        { EvidenceKind.WrongVmpl, Refusal.Vmpl },
        { EvidenceKind.BrokenChain, Refusal.IntermediateSignature },
        { EvidenceKind.UntrustedRoot, Refusal.UntrustedRoot },
        { EvidenceKind.Revoked, Refusal.Revoked },
        { EvidenceKind.ReplayedNonce, Refusal.ReportData },
        { EvidenceKind.AlteredReport, Refusal.ReportSignature },
        { EvidenceKind.ForeignChip, Refusal.ChipId },
        { EvidenceKind.TcbMismatch, Refusal.TcbOfCertificate },
        { EvidenceKind.ExpiredCertificate, Refusal.CertificateExpired },
    };

    [Theory]
    [MemberData(nameof(Platforms))]
    public void Evidence_OfEveryPlatform_IsAccepted(EpycProduct product, uint version, bool vlek)
    {
        using var guest = new RunningGuest(new MachineConfig { Product = product, ReportVersion = version, VlekCspId = vlek ? "CSP" : "" });
        AttestationReport report = guest.Report();

        Assert.Empty(Verify(Make(guest, EvidenceKind.Sound)));
        Assert.Equal(version != 0 ? version : product == EpycProduct.Turin ? 3u : 2u, report.VERSION);
        Assert.Equal(guest.Measurement, ((ReadOnlySpan<byte>)report.MEASUREMENT).ToArray());
        Assert.Equal(RunningGuest.HostData, ((ReadOnlySpan<byte>)report.HOST_DATA).ToArray());
        Assert.Equal(RunningGuest.Nonce, ((ReadOnlySpan<byte>)report.REPORT_DATA).ToArray());
        Assert.Equal(vlek ? 4u : 0u, report.KEY_INFO);
    }

    [Theory]
    [MemberData(nameof(MustRefuse))]
    public void Evidence_ThatMustBeRefused_IsForItsOwnReasonAlone(EvidenceKind kind, Refusal reason)
    {
        using var guest = new RunningGuest();

        Evidence evidence = Make(guest, kind);

        Assert.Equal([reason], Verify(evidence));
        Assert.NotEqual("", evidence.Defect);
        Assert.Equal(kind, evidence.Kind);
    }

    [Theory]
    [MemberData(nameof(MustRefuse))]
    public void Evidence_OfAnotherPlatform_IsRefusedForItsOwnReasonToo(EvidenceKind kind, Refusal reason)
    {
        bool namesNoChip = kind == EvidenceKind.ForeignChip;
        var config = new MachineConfig { Product = EpycProduct.Turin, ReportVersion = 5, CurrentTcb = new(0, 0, 0, 255, 1), VlekCspId = namesNoChip ? "" : "CSP" };
        using var guest = new RunningGuest(config, seed: 9, policy: 0x30000 | (kind == EvidenceKind.DebugPolicy ? 0 : Psp.PolicyBits.Debug));

        Assert.Equal([reason], Verify(Make(guest, kind)));
    }

    [Fact]
    public void Catalogue_IsWhole() =>
        Assert.Equal(Enum.GetValues<EvidenceKind>().Except([EvidenceKind.Sound]), MustRefuse.Select(row => row.Data.Item1));

    [Fact]
    public void Evidence_IsAFunctionOfTheSeed()
    {
        using RunningGuest guest = new(seed: 5), again = new(seed: 5), other = new(seed: 6);
        foreach (EvidenceKind kind in Enum.GetValues<EvidenceKind>())
        {
            Evidence first = Make(guest, kind), second = Make(again, kind);
            Assert.Equal(Blob(first), Blob(second));
        }
        Assert.NotEqual(Blob(Make(guest, EvidenceKind.Sound)), Blob(Make(other, EvidenceKind.Sound)));

        static string Blob(Evidence each) => string.Join(
            ' ', new[] { each.Report, each.EndorsementCertificate, each.Intermediate, each.Ark, each.Crl }.Select(bytes => Convert.ToHexString(bytes.Span)));
    }

    [Theory]
    [InlineData(EvidenceKind.StaleTcb)] // nothing is older than zeros
    [InlineData(EvidenceKind.ForeignChip)] // a VLEK names no chip
    [InlineData(EvidenceKind.Sound)] // no signature
    public void Evidence_ThatAPlatformCannotGive_IsExplained(EvidenceKind kind)
    {
        MachineConfig config = kind switch
        {
            EvidenceKind.StaleTcb => new() { ReportedTcb = new() },
            EvidenceKind.ForeignChip => new() { VlekCspId = "CSP" },
            _ => new() { MaskChipKey = true },
        };
        using var guest = new RunningGuest(config);

        Assert.NotNull(Evidence.TryMake(guest.Machine.Identity, guest.Report(), kind, out Evidence? evidence));
        Assert.Null(evidence);
    }

    [Fact]
    public void Report_TellsWhatThePlatformIs()
    {
        var config = new MachineConfig
        {
            ReportVersion = 5,
            CurrentTcb = new(9, 9, 9, 9),
            CommittedTcb = new(8, 8, 8, 8),
            ReportedTcb = new(7, 7, 7, 7),
            LaunchTcb = new(6, 6, 6, 6),
            LaunchMitVector = 0x11,
            CurrentMitVector = 0x22,
            Smt = false,
            Tsme = true,
            Ecc = true,
            RaplDisabled = true,
            CiphertextHidingDram = true,
            AliasCheckComplete = true,
            Tio = true,
            MaskChipId = true,
        };
        using var guest = new RunningGuest(config);

        AttestationReport report = guest.Report();

        Assert.Equal(
            (config.CurrentTcb, config.CommittedTcb, config.ReportedTcb, config.LaunchTcb),
            (Decode(report.CURRENT_TCB), Decode(report.COMMITTED_TCB), Decode(report.REPORTED_TCB), Decode(report.LAUNCH_TCB)));
        Assert.Equal((0x11ul, 0x22ul), (report.LAUNCH_MIT_VECTOR, report.CURRENT_MIT_VECTOR));
        Assert.Equal(0b1011_1110ul, report.PLATFORM_INFO);
        Assert.Equal((0x19, 1, 1), (report.CPUID_FAM_ID, report.CPUID_MOD_ID, report.CPUID_STEP));
        Assert.Equal((55, 1, 21), (report.CURRENT_MINOR, report.CURRENT_MAJOR, report.CURRENT_BUILD));
        Assert.Equal(new byte[64], ((ReadOnlySpan<byte>)report.CHIP_ID).ToArray());
        Assert.Empty(Verify(Make(guest, EvidenceKind.Sound)));
    }

    [Theory]
    [InlineData(2, 0b0001_1110)]
    [InlineData(3, 0b0011_1110)]
    public void Report_OfAnOlderVersion_LeavesOutWhatItDoesNotKnow(uint version, ulong platformInfo)
    {
        using var guest = new RunningGuest(new MachineConfig
        {
            ReportVersion = version,
            LaunchMitVector = 1,
            CurrentMitVector = 1,
            Smt = false,
            Tsme = true,
            Ecc = true,
            RaplDisabled = true,
            CiphertextHidingDram = true,
            AliasCheckComplete = true,
            Tio = true,
        });

        AttestationReport report = guest.Report();

        Assert.Equal(platformInfo, report.PLATFORM_INFO);
        Assert.Equal((0ul, 0ul), (report.LAUNCH_MIT_VECTOR, report.CURRENT_MIT_VECTOR));
        Assert.Equal(version >= 3, report.CPUID_FAM_ID != 0);
    }

    [Fact]
    public void Report_OfAMaskedChipKey_IsNotSigned()
    {
        using var guest = new RunningGuest(new MachineConfig { MaskChipKey = true });

        AttestationReport report = guest.Report();

        Assert.Equal(0b1_1110u, report.KEY_INFO);
        Assert.Equal(new byte[512], ((ReadOnlySpan<byte>)report.SIGNATURE).ToArray());
    }

    // VLEK loaded, VCEK disabled, KEY_SEL, status, signing key.
    [Theory]
    [InlineData(false, false, 0, 0, 0)]
    [InlineData(false, false, 1, 0, 0)]
    [InlineData(false, false, 2, 0x27, 0)]
    [InlineData(false, false, 3, 0x16, 0)]
    [InlineData(true, false, 0, 0, 1)]
    [InlineData(true, false, 1, 0, 0)]
    [InlineData(true, false, 2, 0, 1)]
    [InlineData(false, true, 0, 0x27, 0)]
    [InlineData(false, true, 1, 0x27, 0)]
    [InlineData(true, true, 0, 0, 1)]
    [InlineData(true, true, 1, 0x27, 0)]
    [InlineData(true, true, 2, 0, 1)]
    public void Report_IsSignedByTheSelectedKey(bool vlek, bool vcekDisabled, uint selection, uint status, uint signingKey)
    {
        using var guest = new RunningGuest(vlek ? Plain with { VlekCspId = "CSP" } : Plain, vcekDisabled: vcekDisabled);

        byte[] answer = guest.AskReport(RunningGuest.Nonce, keySelection: selection);

        Assert.Equal(0x20 + 0x4A0, answer.Length);
        Assert.Equal(status, BitConverter.ToUInt32(answer));
        Assert.Equal(status == 0 ? 0x4A0u : 0u, BitConverter.ToUInt32(answer, 4));
        if (status == 0)
            Assert.Equal(signingKey << 2, AttestationReport.Read(answer.AsSpan(0x20)).KEY_INFO);
        else
            Assert.All(answer[8..], each => Assert.Equal(0, each));
    }

    [Theory]
    [InlineData(0, 0, 0)]
    [InlineData(0, 3, 0)]
    [InlineData(0, 4, 0x16)]
    [InlineData(1, 0, 0x16)]
    [InlineData(1, 1, 0)]
    [InlineData(3, 2, 0x16)]
    [InlineData(3, 3, 0)]
    public void Report_IsOfNoMorePrivilegedVmplThanTheKey(byte vmpck, uint vmpl, uint status)
    {
        using var guest = new RunningGuest();

        byte[] answer = guest.AskReport(RunningGuest.Nonce, vmpl, vmpck: vmpck);

        Assert.Equal(status, BitConverter.ToUInt32(answer));
        if (status == 0)
            Assert.Equal(vmpl, AttestationReport.Read(answer.AsSpan(0x20)).VMPL);
    }

    public static TheoryData<MachineConfig, string> BadPlatforms => new()
    {
        { Plain with { ReportVersion = 1 }, "report_version" },
        { Plain with { ReportVersion = 4 }, "report_version" },
        { Plain with { CommittedTcb = Plain.CurrentTcb with { Snp = 9 } }, "committed_tcb" },
        { Plain with { ReportedTcb = Plain.CurrentTcb with { Tee = 1 } }, "reported_tcb" },
        { Plain with { CommittedTcb = new(1, 0, 0, 0), ReportedTcb = new(2, 0, 0, 0) }, "reported_tcb" },
        { Plain with { LaunchTcb = Plain.CurrentTcb with { Microcode = 116 } }, "launch_tcb" },
        { Plain with { CurrentTcb = Plain.CurrentTcb with { Fmc = 1 } }, "current_tcb.fmc" },
        { Plain with { VlekCspId = new string('x', 65) }, "vlek_csp_id" },
        { Plain with { VlekCspId = "é" }, "vlek_csp_id" },
    };

    [Theory]
    [MemberData(nameof(BadPlatforms))]
    public void Platform_ThatCannotBe_IsNamed(MachineConfig config, string field) =>
        Assert.StartsWith(field, config.Problem(), StringComparison.Ordinal);

    private static TcbVersion Decode(ulong tcb) => TcbVersion.Decode(EpycProduct.Milan, tcb);

    private static Evidence Make(RunningGuest guest, EvidenceKind kind)
    {
        Assert.Null(Evidence.TryMake(guest.Machine.Identity, guest.Report(), kind, out Evidence? evidence));
        return evidence!;
    }

    private static IReadOnlyList<Refusal> Verify(Evidence evidence) => SnpVerifier.Verify(
        evidence.Report.ToArray(), evidence.EndorsementCertificate.ToArray(), evidence.Intermediate.ToArray(), evidence.Ark.ToArray(), evidence.Crl.ToArray(),
        new Demands(
            evidence.Expected.Ark.ToArray(),
            evidence.Expected.ReportData.ToArray(),
            evidence.Expected.Measurement.ToArray(),
            evidence.Expected.Vmpl,
            [evidence.Expected.MinTcb.BootLoader, evidence.Expected.MinTcb.Tee, evidence.Expected.MinTcb.Snp, evidence.Expected.MinTcb.Microcode, evidence.Expected.MinTcb.Fmc],
            evidence.Expected.AllowDebug,
            Now));
}
