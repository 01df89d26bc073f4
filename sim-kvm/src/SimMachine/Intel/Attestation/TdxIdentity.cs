namespace SimMachine.Intel.Attestation;

/// <summary>
/// Who a machine with TDX is to a verifier: its versions, the MAC of its reports, its keys. Nothing of it changes while the machine runs; another seed is another
/// machine.
/// </summary>
public sealed class TdxIdentity
{
    private readonly Bytes16 _cpuSvn;

    internal TdxIdentity(MachineConfig config, ulong seed, Stepping.Entropy entropy)
    {
        Tcb = config.TdxTcb;
        Tcb.SgxComponents.Span.CopyTo(_cpuSvn);

        TeeTcbInfo module = new() { TEE_TCB_SVN = Tcb.TeeTcbSvn.Encode() };
        bool has15 = Tcb.TeeTcbSvn.ModuleMajor >= 1;
        module.VALID = has15 ? TeeTcbInfo.ValidOf15 : TeeTcbInfo.ValidOf10;
        if (has15)
        {
            module.TEE_TCB_SVN2 = module.TEE_TCB_SVN;
        }
        entropy.Derive($"tdx/mrseam/{Tcb.TeeTcbSvn}", module.MRSEAM);
        Module = module;

        Span<byte> key = stackalloc byte[ReportMac.KeySize];
        entropy.Derive("tdx/report-mac-key", key);
        ReportMac = new ReportMac(Tcb.ReportMacKey is { } given ? given.Span : key, _cpuSvn);
        QuotingEnclave = new QuotingEnclave(TdxAuthority.Of(seed), Tcb, ReportMac);
    }

    public TdxTcb Tcb { get; }

    /// <summary>CPUSVN of reports, 16 bytes.</summary>
    public ReadOnlyMemory<byte> CpuSvn => ((ReadOnlySpan<byte>)_cpuSvn).ToArray();

    /// <summary>TEE_TCB_INFO of every report.</summary>
    public TeeTcbInfo Module { get; }

    /// <summary>What the module puts on reports and VERIFYREPORT checks.</summary>
    public ReportMac ReportMac { get; }

    /// <summary>What makes quotes of reports; its keys and certificates come into being on first use.</summary>
    public QuotingEnclave QuotingEnclave { get; }

    /// <summary>TDG.MR.REPORT: the report of a TD.</summary>
    /// <param name="td">TDINFO_STRUCT.</param>
    /// <param name="reportData">64 bytes of the guest's.</param>
    public TdReport Report(in TdInfo td, ReadOnlySpan<byte> reportData) => TdReport.Create(Module, td, reportData, _cpuSvn, ReportMac);
}
