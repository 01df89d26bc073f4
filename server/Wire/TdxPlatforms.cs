using Google.Protobuf;
using SimMachine.Intel;
using VmmService.V1;

namespace VmmService.Server.Wire;

/// <summary>Between messages and a TDX module's configuration.</summary>
internal static class TdxPlatforms
{
    private const uint MostCpus = 1024;

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
        TeeTcbSvn = message.HasTeeTcbSvn ? message.TeeTcbSvn.Memory : config.TeeTcbSvn,
        Mrseam = message.HasMrseam ? message.Mrseam.Memory : config.Mrseam,
        MrsignerSeam = message.HasMrsignerSeam ? message.MrsignerSeam.Memory : config.MrsignerSeam,
        SeamAttributes = message.HasSeamAttributes ? message.SeamAttributes : config.SeamAttributes,
        ReportMacKey = message.HasReportMacKey ? message.ReportMacKey.Memory : config.ReportMacKey,
    };

    /// <summary>The configuration with all defaults filled in, but for the key.</summary>
    public static TdxConfig FromConfig(TdxModuleConfig config) => new()
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
    };
}
