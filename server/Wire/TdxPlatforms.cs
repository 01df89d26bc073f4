using Google.Protobuf;
using SimMachine.Intel;
using VmmService.V1;

namespace VmmService.Server.Wire;

/// <summary>Between messages and a TDX module's configuration.</summary>
internal static class TdxPlatforms
{
    private const uint MostCpus = 1024;

    // Byte of TEE_TCB_SVN.
    private const int MajorVersion = 1;

    /// <summary>The configuration with what the message sets.</summary>
    public static TdxModuleConfig With(TdxModuleConfig config, TdxConfig? message) => message is null ? config : config with
    {
        Enabled = message.HasEnabled ? message.Enabled : config.Enabled,
        AttributesFixed0 = message.HasAttributesFixed0 ? message.AttributesFixed0 : config.AttributesFixed0,
        AttributesFixed1 = message.HasAttributesFixed1 ? message.AttributesFixed1 : config.AttributesFixed1,
        XfamFixed0 = message.HasXfamFixed0 ? message.XfamFixed0 : config.XfamFixed0,
        XfamFixed1 = message.HasXfamFixed1 ? message.XfamFixed1 : config.XfamFixed1,
        HostXcr0OrXss = message.HasHostXcr0OrXss ? message.HostXcr0OrXss : config.HostXcr0OrXss,
        // What is beyond any machine is beyond the bounds that the configuration checks.
        PresentCpus = message.HasPresentCpus ? (int)Math.Min(message.PresentCpus, MostCpus + 1) : config.PresentCpus,
        Packages = message.HasPackages ? (int)Math.Min(message.Packages, MostCpus + 1) : config.Packages,
        GuestHkids = message.HasGuestHkids ? message.GuestHkids : config.GuestHkids,
        FiveLevelEpt = message.HasFiveLevelEpt ? message.FiveLevelEpt : config.FiveLevelEpt,
        TscKhz = message.HasTscKhz ? message.TscKhz : config.TscKhz,
        CpuSvn = message.HasCpuSvn ? message.CpuSvn.Memory : config.CpuSvn,
        TeeTcbSvn = message.HasTeeTcbSvn ? message.TeeTcbSvn.Memory : SvnOf(config.TeeTcbSvn, message.Module),
        Mrseam = message.HasMrseam ? message.Mrseam.Memory : config.Mrseam,
        MrsignerSeam = message.HasMrsignerSeam ? message.MrsignerSeam.Memory : config.MrsignerSeam,
        SeamAttributes = message.HasSeamAttributes ? message.SeamAttributes : config.SeamAttributes,
        ReportMacKey = message.HasReportMacKey ? message.ReportMacKey.Memory : config.ReportMacKey,
        TdcsPages = message.HasTdcsPages ? Bounded(message.TdcsPages) : config.TdcsPages,
        MaxTdcsPages = message.HasMaxTdcsPages ? Bounded(message.MaxTdcsPages) : config.MaxTdcsPages,
        TdvpsPages = message.HasTdvpsPages ? Bounded(message.TdvpsPages) : config.TdvpsPages,
        FirstGuestHkid = message.HasFirstGuestHkid ? message.FirstGuestHkid : config.FirstGuestHkid,
        Fms = message.HasCpuid1Eax ? message.Cpuid1Eax : config.Fms,
        CpuidSlots = message.CpuidConfig.Count > 0 ? [.. message.CpuidConfig.Select(ToSlot)] : config.CpuidSlots,
    };

    /// <summary>The configuration with all defaults filled in, but for the key.</summary>
    public static TdxConfig FromConfig(TdxModuleConfig config)
    {
        TdxConfig message = Fields(config);
        message.CpuidConfig.AddRange(config.CpuidSlots.Select(FromSlot));
        return message;
    }

    private static TdxConfig Fields(TdxModuleConfig config) => new()
    {
        Enabled = config.Enabled,
        AttributesFixed0 = config.AttributesFixed0,
        AttributesFixed1 = config.AttributesFixed1,
        XfamFixed0 = config.XfamFixed0,
        XfamFixed1 = config.XfamFixed1,
        HostXcr0OrXss = config.HostXcr0OrXss,
        PresentCpus = (uint)config.PresentCpus,
        Packages = (uint)config.Packages,
        GuestHkids = config.GuestHkids,
        FiveLevelEpt = config.FiveLevelEpt,
        TscKhz = config.TscKhz,
        CpuSvn = ByteString.CopyFrom(config.CpuSvn.Span),
        TeeTcbSvn = ByteString.CopyFrom(config.TeeTcbSvn.Span),
        Mrseam = ByteString.CopyFrom(config.Mrseam.Span),
        MrsignerSeam = ByteString.CopyFrom(config.MrsignerSeam.Span),
        SeamAttributes = config.SeamAttributes,
        Module = config.TeeTcbSvn.Span[MajorVersion] == 0 ? TdxModuleVersion._10 : TdxModuleVersion._15,
        TdcsPages = (uint)config.TdcsPages,
        MaxTdcsPages = (uint)config.MaxTdcsPages,
        TdvpsPages = (uint)config.TdvpsPages,
        FirstGuestHkid = config.FirstGuestHkid,
        Cpuid1Eax = config.Fms,
    };

    // The line of the module stands in TEE_TCB_SVN.
    private static ReadOnlyMemory<byte> SvnOf(ReadOnlyMemory<byte> svn, TdxModuleVersion module)
    {
        byte[] bytes = svn.ToArray();
        bytes[MajorVersion] = module switch
        {
            TdxModuleVersion.Unspecified => bytes[MajorVersion],
            TdxModuleVersion._10 => 0,
            TdxModuleVersion._15 => 1,
            _ => throw Refusals.BadEnum("machine.tdx.module", module),
        };
        return bytes;
    }

    private static int Bounded(uint pages) => (int)Math.Min(pages, MostCpus + 1);

    private static TdxCpuidSlot ToSlot(TdxCpuidConfig slot) =>
        slot.HasSubleaf || slot.Index == 0
            ? new TdxCpuidSlot(slot.Function, slot.Index, slot.HasSubleaf, slot.Eax, slot.Ebx, slot.Ecx, slot.Edx)
            : throw Refusals.BadField("machine.tdx.cpuid_config.index", $"leaf 0x{slot.Function:x} has index {slot.Index} and no sub-leaves; set has_subleaf, or leave the index 0");

    private static TdxCpuidConfig FromSlot(TdxCpuidSlot slot) =>
        new() { Function = slot.Function, Index = slot.Index, HasSubleaf = slot.HasSubleaf, Eax = slot.Eax, Ebx = slot.Ebx, Ecx = slot.Ecx, Edx = slot.Edx };
}
