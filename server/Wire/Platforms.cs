using VmmService.V1;
using EpycProduct = SimMachine.Amd.EpycProduct;
using MachineConfig = SimMachine.MachineConfig;
using TcbVersion = SimMachine.Amd.Attestation.TcbVersion;

namespace VmmService.Server.Wire;

/// <summary>Between messages and what a machine attests of itself: product, TCB versions, PLATFORM_INFO.</summary>
internal static class Platforms
{
    /// <summary>The configuration with what the message sets.</summary>
    public static MachineConfig With(MachineConfig config, V1.MachineConfig message)
    {
        config = config with { Product = ToProduct(config.Product, message.Product) };
        if (message.Attestation is not { } attestation)
        {
            return config;
        }
        return config with
        {
            ReportVersion = attestation.HasReportVersion ? attestation.ReportVersion : config.ReportVersion,
            CurrentTcb = ToTcb("machine.attestation.current_tcb", attestation.CurrentTcb) ?? config.CurrentTcb,
            CommittedTcb = ToTcb("machine.attestation.committed_tcb", attestation.CommittedTcb) ?? config.CommittedTcb,
            ReportedTcb = ToTcb("machine.attestation.reported_tcb", attestation.ReportedTcb) ?? config.ReportedTcb,
            LaunchTcb = ToTcb("machine.attestation.launch_tcb", attestation.LaunchTcb) ?? config.LaunchTcb,
            LaunchMitVector = attestation.HasLaunchMitVector ? attestation.LaunchMitVector : config.LaunchMitVector,
            CurrentMitVector = attestation.HasCurrentMitVector ? attestation.CurrentMitVector : config.CurrentMitVector,
            MaskChipId = attestation.HasMaskChipId ? attestation.MaskChipId : config.MaskChipId,
            MaskChipKey = attestation.HasMaskChipKey ? attestation.MaskChipKey : config.MaskChipKey,
            VlekCspId = attestation.HasVlekCspId ? attestation.VlekCspId : config.VlekCspId,
            Tsme = attestation.HasTsme ? attestation.Tsme : config.Tsme,
            Ecc = attestation.HasEcc ? attestation.Ecc : config.Ecc,
            RaplDisabled = attestation.HasRaplDisabled ? attestation.RaplDisabled : config.RaplDisabled,
            CiphertextHidingDram = attestation.HasCiphertextHidingDram ? attestation.CiphertextHidingDram : config.CiphertextHidingDram,
            AliasCheckComplete = attestation.HasAliasCheckComplete ? attestation.AliasCheckComplete : config.AliasCheckComplete,
            Tio = attestation.HasTio ? attestation.Tio : config.Tio,
            FirmwarePolicyBits = attestation.HasFirmwarePolicyBits ? attestation.FirmwarePolicyBits : config.FirmwarePolicyBits,
        };
    }

    /// <summary>What a machine attests, with all defaults filled in.</summary>
    public static AttestationConfig FromConfig(MachineConfig config) => new()
    {
        ReportVersion = config.ReportVersion,
        CurrentTcb = FromTcb(config.CurrentTcb),
        CommittedTcb = FromTcb(config.CommittedTcb ?? config.CurrentTcb),
        ReportedTcb = FromTcb(config.ReportedTcb ?? config.CommittedTcb ?? config.CurrentTcb),
        LaunchTcb = FromTcb(config.LaunchTcb ?? config.CurrentTcb),
        LaunchMitVector = config.LaunchMitVector,
        CurrentMitVector = config.CurrentMitVector,
        MaskChipId = config.MaskChipId,
        MaskChipKey = config.MaskChipKey,
        VlekCspId = config.VlekCspId,
        Tsme = config.Tsme,
        Ecc = config.Ecc,
        RaplDisabled = config.RaplDisabled,
        CiphertextHidingDram = config.CiphertextHidingDram,
        AliasCheckComplete = config.AliasCheckComplete,
        Tio = config.Tio,
        FirmwarePolicyBits = config.FirmwarePolicyBits,
    };

    public static V1.TcbVersion FromTcb(TcbVersion tcb) =>
        new() { BootLoader = tcb.BootLoader, Tee = tcb.Tee, Snp = tcb.Snp, Microcode = tcb.Microcode, Fmc = tcb.Fmc };

    // The message's values are the processors, after UNSPECIFIED.
    public static V1.EpycProduct FromProduct(EpycProduct product) => (V1.EpycProduct)((int)product + 1);

    private static EpycProduct ToProduct(EpycProduct unspecified, V1.EpycProduct product) => product switch
    {
        V1.EpycProduct.Unspecified => unspecified,
        _ when Enum.IsDefined(product) => (EpycProduct)((int)product - 1),
        _ => throw Refusals.BadEnum("machine.product", product),
    };

    /// <summary>Null where none is given.</summary>
    public static TcbVersion? ToTcb(string field, V1.TcbVersion? tcb)
    {
        return tcb is null ? null : new(Part("boot_loader", tcb.BootLoader), Part("tee", tcb.Tee), Part("snp", tcb.Snp), Part("microcode", tcb.Microcode), Part("fmc", tcb.Fmc));

        byte Part(string name, uint value) => Structs.U8($"{field}.{name}", value);
    }
}
