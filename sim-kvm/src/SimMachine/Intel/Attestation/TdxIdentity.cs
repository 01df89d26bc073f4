namespace SimMachine.Intel.Attestation;

/// <summary>
/// Who a machine with TDX is to a verifier: its module, the MAC of its reports, its quoting enclave. Nothing of it changes while the machine runs; another seed is another
/// machine.
/// </summary>
public sealed class TdxIdentity
{
    private readonly ReadOnlyMemory<byte> _cpuSvn;

    internal TdxIdentity(TdxModuleConfig config, ulong seed, Stepping.Entropy entropy)
    {
        _cpuSvn = config.CpuSvn;
        Module = Describe(config);
        Span<byte> key = stackalloc byte[ReportMac.KeySize];
        entropy.Derive("tdx/report-mac-key", key);
        ReportMac = new ReportMac(config.ReportMacKey.IsEmpty ? key : config.ReportMacKey.Span, _cpuSvn.Span);
        QuotingEnclave = new QuotingEnclave(TdxAuthority.Of(seed), config, ReportMac);
    }

    /// <summary>TEE_TCB_INFO of every report.</summary>
    public TeeTcbInfo Module { get; }

    /// <summary>What the module puts on reports and VERIFYREPORT checks.</summary>
    public ReportMac ReportMac { get; }

    /// <summary>What makes quotes of reports; its keys and certificates come into being on first use.</summary>
    public QuotingEnclave QuotingEnclave { get; }

    /// <summary>TDG.MR.REPORT: the report of a TD.</summary>
    /// <param name="td">TDINFO_STRUCT.</param>
    /// <param name="reportData">64 bytes of the guest's.</param>
    public TdReport Report(in TdInfo td, ReadOnlySpan<byte> reportData) => TdReport.Create(Module, td, reportData, _cpuSvn.Span, ReportMac);

    // The major version stands in byte 1 of TEE_TCB_SVN; 1.5 modules, which have 1 there, repeat the whole in TEE_TCB_SVN2.
    private static TeeTcbInfo Describe(TdxModuleConfig config)
    {
        bool is15 = config.TeeTcbSvn.Span[1] >= 1;
        TeeTcbInfo module = new() { VALID = is15 ? TeeTcbInfo.ValidOf15 : TeeTcbInfo.ValidOf10, ATTRIBUTES = config.SeamAttributes };
        config.TeeTcbSvn.Span.CopyTo(module.TEE_TCB_SVN);
        config.Mrseam.Span.CopyTo(module.MRSEAM);
        config.MrsignerSeam.Span.CopyTo(module.MRSIGNERSEAM);
        if (is15)
        {
            module.TEE_TCB_SVN2 = module.TEE_TCB_SVN;
        }
        return module;
    }
}
