namespace SimMachine.Intel.Attestation;

/// <summary>
/// The simulated quoting enclave of a machine: it turns a TDREPORT, which only this machine can check, into a quote, which anyone can (tdx.md 7.8). It vouches for
/// nothing that this machine's module did not report.
/// </summary>
public sealed class QuotingEnclave
{
    private readonly ReportMac _mac;
    private readonly ReadOnlyMemory<byte> _cpuSvn;
    private readonly Lazy<byte[]> _pck;

    internal QuotingEnclave(TdxAuthority authority, TdxModuleConfig config, ReportMac mac)
    {
        Authority = authority;
        Platform = authority.Platform(config);
        _mac = mac;
        _cpuSvn = config.CpuSvn;
        _pck = new(() => Authority.IssuePck(Platform));
    }

    public TdxAuthority Authority { get; }

    public PckPlatform Platform { get; }

    /// <summary>The certificate of the platform's key, DER.</summary>
    public ReadOnlyMemory<byte> PckCertificate => _pck.Value;

    /// <summary>Leaf, intermediate, root: the chain in every quote, DER.</summary>
    public IReadOnlyList<ReadOnlyMemory<byte>> Chain => [PckCertificate, Authority.PlatformCa, Authority.Root];

    /// <summary>The newest format that a report has all of.</summary>
    public static QuoteFormat FormatOf(in TdReport report) => report.TEE_TCB_INFO.VALID == TeeTcbInfo.ValidOf15 ? QuoteFormat.V5Tdx15 : QuoteFormat.V5Tdx10;

    /// <summary>Whether a report is of this machine, and what it says is what the module said.</summary>
    public TdReportVerdict Verify(in TdReport report) => _mac.Verify(in report);

    /// <summary>Makes a quote.</summary>
    /// <param name="report">1024 bytes as the guest gives them.</param>
    /// <param name="format">Version of the quote; a report of a module 1.0 has zeros for what version 5 adds.</param>
    /// <param name="quote">The quote, empty if there is none.</param>
    /// <returns>Why there is none, or GENUINE.</returns>
    public TdReportVerdict TryQuote(in TdReport report, QuoteFormat format, out byte[] quote)
    {
        TdReportVerdict verdict = Verify(in report);
        quote = verdict == TdReportVerdict.GENUINE ? Parts(in report, format).Build() : [];
        return verdict;
    }

    internal TdQuote Parts(in TdReport report, QuoteFormat format)
    {
        byte[] authentication = QuotingEnclaveIdentity.AuthenticationData;
        return new TdQuote
        {
            Format = format,
            QeId = Authority.Derive("qe-id", 16),
            Body = TdQuote.BodyOf(in report, format),
            AttestationKey = Authority.AttestationKey,
            QeReport = QuotingEnclaveIdentity.Report(_cpuSvn.Span, Authority.AttestationKey.PublicBytes, authentication),
            AuthenticationData = authentication,
            PckKey = Authority.PckKey,
            Chain = Chain,
        };
    }
}
