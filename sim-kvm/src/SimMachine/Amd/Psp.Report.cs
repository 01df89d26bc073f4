using SimMachine.Amd.Attestation;

namespace SimMachine.Amd;

// What firmware says of a guest and its platform in an attestation report (snp.md 11.2). When it says it is in Psp.GuestMessages.cs.
public sealed partial class Psp
{
    private AttestationReport Report(GuestContext guest, uint vmpl, ReadOnlySpan<byte> reportData, EndorsementKey key)
    {
        MachineConfig config = _machine.Config;
        EpycProduct product = config.Product;
        uint version = config.ReportVersion != 0 ? config.ReportVersion : product == EpycProduct.Turin ? 3u : 2u;
        ulong current = config.CurrentTcb.Encode(product);
        var report = new AttestationReport
        {
            VERSION = version,
            GUEST_SVN = guest.IdBlock.GuestSvn,
            POLICY = guest.Policy,
            VMPL = vmpl,
            SIGNATURE_ALGO = AttestationReport.EcdsaP384Sha384,
            CURRENT_TCB = current,
            PLATFORM_INFO = PlatformInfo(version),
            KEY_INFO = KeyInfo(guest, key),
            REPORTED_TCB = _machine.Identity.ReportedTcb.Encode(product),
            COMMITTED_TCB = _machine.Identity.CommittedTcb.Encode(product),
            LAUNCH_TCB = config.LaunchTcb?.Encode(product) ?? current,
            CURRENT_BUILD = config.Build,
            CURRENT_MINOR = config.ApiMinor,
            CURRENT_MAJOR = config.ApiMajor,
            COMMITTED_BUILD = config.Build,
            COMMITTED_MINOR = config.ApiMinor,
            COMMITTED_MAJOR = config.ApiMajor,
        };
        guest.IdBlock.FamilyId.Span.CopyTo(report.FAMILY_ID);
        guest.IdBlock.ImageId.Span.CopyTo(report.IMAGE_ID);
        reportData.CopyTo(report.REPORT_DATA);
        guest.Digest.Current.CopyTo(report.MEASUREMENT);
        guest.HostData.CopyTo(report.HOST_DATA);
        guest.IdBlock.IdKeyDigest.Span.CopyTo(report.ID_KEY_DIGEST);
        guest.IdBlock.AuthorKeyDigest.Span.CopyTo(report.AUTHOR_KEY_DIGEST);
        guest.ReportId.CopyTo(report.REPORT_ID);
        ((Span<byte>)report.REPORT_ID_MA).Fill(0xFF);
        if (!_machine.Identity.MaskChipId)
        {
            _machine.Identity.ChipId.Span.CopyTo(report.CHIP_ID);
        }
        if (version >= 3)
        {
            (report.CPUID_FAM_ID, report.CPUID_MOD_ID, report.CPUID_STEP) = FamilyModelStepping(_machine.Cpuid.Fms);
        }
        if (version >= 5)
        {
            report.LAUNCH_MIT_VECTOR = config.LaunchMitVector;
            report.CURRENT_MIT_VECTOR = config.CurrentMitVector;
        }
        if (!_machine.Identity.MaskChipKey)
        {
            key.Sign(ref report);
        }
        return report;
    }

    private uint KeyInfo(GuestContext guest, EndorsementKey key)
    {
        bool masked = _machine.Identity.MaskChipKey;
        SigningKey signing = masked ? SigningKey.NONE : key.Kind == EndorsementKeyKind.Vlek ? SigningKey.VLEK : SigningKey.VCEK;
        return (guest.AuthorKeyEnabled ? AttestationReport.KeyInfoBits.AuthorKeyEnabled : 0)
            | (masked ? AttestationReport.KeyInfoBits.MaskChipKey : 0)
            | ((uint)signing << AttestationReport.KeyInfoBits.SigningKeyShift);
    }

    private ulong PlatformInfo(uint version)
    {
        MachineConfig config = _machine.Config;
        return (config.Smt ? AttestationReport.PlatformInfoBits.SmtEnabled : 0)
            | (config.Tsme ? AttestationReport.PlatformInfoBits.TsmeEnabled : 0)
            | (config.Ecc ? AttestationReport.PlatformInfoBits.EccEnabled : 0)
            | (config.RaplDisabled ? AttestationReport.PlatformInfoBits.RaplDisabled : 0)
            | (config.CiphertextHidingDram ? AttestationReport.PlatformInfoBits.CiphertextHidingDram : 0)
            | (config.AliasCheckComplete && version >= 3 ? AttestationReport.PlatformInfoBits.AliasCheckComplete : 0)
            | (config.Tio && version >= 5 ? AttestationReport.PlatformInfoBits.TioEnabled : 0);
    }

    // CPUID 1 EAX: the extended parts are added to (family) or put before (model) the base parts.
    private static (byte Family, byte Model, byte Stepping) FamilyModelStepping(uint fms) =>
        ((byte)(((fms >> 8) & 0xF) + ((fms >> 20) & 0xFF)), (byte)(((fms >> 4) & 0xF) | ((fms >> 12) & 0xF0)), (byte)(fms & 0xF));
}
