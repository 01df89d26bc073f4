namespace SimMachine.Intel.Attestation;

/// <summary>What is wrong with a quote and its collateral. Each has exactly one defect; everything else about it holds.</summary>
public enum QuoteEvidenceKind
{
    /// <summary>Nothing: a verifier must accept it.</summary>
    Sound,

    /// <summary>MRTD is not the expected one.</summary>
    WrongMrtd,

    /// <summary>An RTMR is not the expected one: something else was booted.</summary>
    WrongRtmr,

    /// <summary>ATTRIBUTES has DEBUG.</summary>
    DebugTd,

    /// <summary>REPORTDATA answers another challenge.</summary>
    ReplayedNonce,

    /// <summary>MRSIGNERSEAM names a signer: the TDX module is not a production one.</summary>
    ForeignModule,

    /// <summary>A bit of the body was changed after it was signed.</summary>
    AlteredBody,

    /// <summary>A bit of the quoting enclave's report was changed after it was signed.</summary>
    AlteredQeReport,

    /// <summary>The quoting enclave's report binds another key than the one that signs.</summary>
    UnboundAttestationKey,

    /// <summary>The quoting enclave is another signer's.</summary>
    ForeignQuotingEnclave,

    /// <summary>The platform's TCB is out of date.</summary>
    StaleTcb,

    /// <summary>The PCK certificate is of another family than the TCB information.</summary>
    ForeignFamily,

    /// <summary>The platform CA's certificate names the trusted root and was signed by another key.</summary>
    BrokenChain,

    /// <summary>The root is not the trusted one, though of the same name; chain, signatures and collateral hold below it.</summary>
    UntrustedRoot,

    /// <summary>The platform CA's list has the PCK certificate.</summary>
    RevokedPck,

    /// <summary>The root's list has the platform CA.</summary>
    RevokedPlatformCa,

    /// <summary>The PCK certificate is past its end.</summary>
    ExpiredCertificate,

    /// <summary>The TCB information was changed after it was signed.</summary>
    AlteredTcbInfo,

    /// <summary>The TCB information is past its next update.</summary>
    ExpiredTcbInfo,

    /// <summary>The quote ends in the middle of its certificates.</summary>
    TruncatedQuote,
}

/// <summary>What a verifier of a quote is to demand.</summary>
/// <param name="ReportData">The challenge, 64 bytes.</param>
/// <param name="Mrtd">48 bytes.</param>
/// <param name="Rtmrs">RTMR0 to RTMR3, 48 bytes each.</param>
/// <param name="AllowDebug">Whether ATTRIBUTES may have DEBUG.</param>
/// <param name="Root">The trusted root, DER.</param>
public sealed record QuoteExpectation(ReadOnlyMemory<byte> ReportData, ReadOnlyMemory<byte> Mrtd, IReadOnlyList<ReadOnlyMemory<byte>> Rtmrs, bool AllowDebug, ReadOnlyMemory<byte> Root);

/// <summary>
/// A quote with its collateral as an attester and a caching service would present them, and what to demand of them. Every kind but
/// <see cref="QuoteEvidenceKind.Sound"/> must be refused, for the reason that <see cref="Defect"/> states: food for the tests of verifiers.
/// </summary>
/// <param name="Kind">Which defect it has.</param>
/// <param name="Defect">The defect in a sentence, with its values; empty for sound evidence.</param>
/// <param name="Quote">With the PCK chain in it.</param>
/// <param name="PckCrl">DER.</param>
/// <param name="RootCrl">DER.</param>
/// <param name="TcbInfo">JSON, signed.</param>
/// <param name="QeIdentity">JSON, signed.</param>
/// <param name="TcbSigning">The certificate that signs the two, DER; its issuer is the root of the quote's chain.</param>
/// <param name="Expected">What a verifier is to demand.</param>
public sealed record QuoteEvidence(
    QuoteEvidenceKind Kind,
    string Defect,
    ReadOnlyMemory<byte> Quote,
    ReadOnlyMemory<byte> PckCrl,
    ReadOnlyMemory<byte> RootCrl,
    ReadOnlyMemory<byte> TcbInfo,
    ReadOnlyMemory<byte> QeIdentity,
    ReadOnlyMemory<byte> TcbSigning,
    QuoteExpectation Expected)
{
    // In the body of a quote.
    private const int XfamOffset = 128;

    /// <summary>Makes evidence from a report of this machine.</summary>
    /// <param name="enclave">Of the machine.</param>
    /// <param name="report">A report that the enclave would quote.</param>
    /// <param name="format">Version of the quote.</param>
    /// <param name="kind">The defect.</param>
    /// <param name="evidence">The evidence.</param>
    /// <returns>Null, or why such evidence cannot be had of it: even a quote without defect would be refused.</returns>
    public static string? TryMake(QuotingEnclave enclave, in TdReport report, QuoteFormat format, QuoteEvidenceKind kind, out QuoteEvidence? evidence)
    {
        evidence = null;
        TdReportVerdict verdict = enclave.Verify(in report);
        if (verdict != TdReportVerdict.GENUINE)
        {
            return $"the quoting enclave does not quote the report: {verdict}";
        }
        ref readonly TeeTcbInfo module = ref report.TEE_TCB_INFO;
        if (((ReadOnlySpan<byte>)module.MRSIGNERSEAM).IndexOfAnyExcept((byte)0) >= 0 || module.ATTRIBUTES != 0)
        {
            return "the host's TDX module is not a production one: its MRSIGNERSEAM or ATTRIBUTES are not zero";
        }
        TcbStatus status = TdxCollateral.Of(enclave.Authority).StatusOf(enclave.Platform, module.TEE_TCB_SVN);
        if (status != TcbStatus.UpToDate)
        {
            return $"the host's TCB is {status} itself";
        }
        evidence = new Maker(enclave, report, format).Make(kind);
        return null;
    }

    private sealed class Maker
    {
        private readonly QuotingEnclave _enclave;
        private readonly TdxAuthority _authority;
        private readonly TdReport _report;
        private readonly QuoteFormat _format;
        private readonly TdQuote _parts;

        public Maker(QuotingEnclave enclave, TdReport report, QuoteFormat format)
        {
            _enclave = enclave;
            _authority = enclave.Authority;
            _report = report;
            _format = format;
            _parts = enclave.Parts(report, format);
        }

        public QuoteEvidence Make(QuoteEvidenceKind kind) => kind switch
        {
            QuoteEvidenceKind.WrongMrtd => Of(With((ref TdReport other) => Invert(other.TDINFO.MRTD)), $"MRTD is {Inverted(_report.TDINFO.MRTD)}, not the expected {Hex(_report.TDINFO.MRTD)}"),
            QuoteEvidenceKind.WrongRtmr => Of(With((ref TdReport other) => Invert(other.TDINFO.RTMR1)), $"RTMR1 is {Inverted(_report.TDINFO.RTMR1)}, not the expected {Hex(_report.TDINFO.RTMR1)}"),
            QuoteEvidenceKind.DebugTd => DebugTd(),
            QuoteEvidenceKind.ReplayedNonce => Of(
                With((ref TdReport other) => Invert(other.REPORTMACSTRUCT.REPORTDATA)), $"REPORTDATA is {Inverted(_report.REPORTMACSTRUCT.REPORTDATA)}, the answer to another challenge"),
            QuoteEvidenceKind.ForeignModule => Of(
                With((ref TdReport other) => Invert(other.TEE_TCB_INFO.MRSIGNERSEAM)), $"MRSIGNERSEAM is {Inverted(_report.TEE_TCB_INFO.MRSIGNERSEAM)}, and zeros in a production module"),
            QuoteEvidenceKind.AlteredBody => Altered(BodyOffset + XfamOffset, "XFAM, signed by the attestation key"),
            QuoteEvidenceKind.AlteredQeReport => Altered(QeReportOffset, "CPUSVN of the quoting enclave's report, signed by the PCK key"),
            QuoteEvidenceKind.UnboundAttestationKey => Of(
                _parts with { AttestationKey = _authority.Other().AttestationKey }, "REPORTDATA of the quoting enclave's report is not the hash of the key that signs the quote"),
            QuoteEvidenceKind.ForeignQuotingEnclave => ForeignQuotingEnclave(),
            QuoteEvidenceKind.StaleTcb => StaleTcb(),
            QuoteEvidenceKind.ForeignFamily => ForeignFamily(),
            QuoteEvidenceKind.BrokenChain => Of(
                _parts with { Chain = [_enclave.PckCertificate, _authority.IssuePlatformCaSignedByAnotherKey(), _authority.Root] },
                "the platform CA's certificate names the trusted root as its issuer and was signed by another key"),
            QuoteEvidenceKind.UntrustedRoot => UntrustedRoot(),
            QuoteEvidenceKind.RevokedPck => Sound() with { PckCrl = _authority.IssuePckCrlThatRevokesPck(), Defect = "the platform CA's list has the serial number of the PCK certificate" },
            QuoteEvidenceKind.RevokedPlatformCa => Sound() with { RootCrl = _authority.IssueRootCrlThatRevokesPlatformCa(), Defect = "the root's list has the serial number of the platform CA" },
            QuoteEvidenceKind.ExpiredCertificate => ExpiredCertificate(),
            QuoteEvidenceKind.AlteredTcbInfo => AlteredTcbInfo(),
            QuoteEvidenceKind.ExpiredTcbInfo => ExpiredTcbInfo(),
            QuoteEvidenceKind.TruncatedQuote => Truncated(),
            _ => Sound(),
        } with
        { Kind = kind };

        private delegate void Change(ref TdReport report);

        private int BodyOffset => TdQuote.SignedSize(_format) - TdQuote.BodySize(_format);

        // Behind length, signature, key, and type and size of the certification.
        private int QeReportOffset => TdQuote.SignedSize(_format) + 4 + 134;

        private QuoteEvidence Sound() => Of(_parts, "");

        private QuoteEvidence Of(TdQuote parts, string defect) => Of(parts, defect, _authority);

        private QuoteEvidence Of(TdQuote parts, string defect, TdxAuthority authority)
        {
            var collateral = TdxCollateral.Of(authority);
            ref readonly TdInfo td = ref _report.TDINFO;
            return new QuoteEvidence(
                QuoteEvidenceKind.Sound, defect, parts.Build(), authority.PckCrl, authority.RootCrl, collateral.TcbInfo, collateral.QeIdentity, authority.TcbSigning,
                new QuoteExpectation(
                    Copy(_report.REPORTMACSTRUCT.REPORTDATA), Copy(td.MRTD), [Copy(td.RTMR0), Copy(td.RTMR1), Copy(td.RTMR2), Copy(td.RTMR3)],
                    (td.ATTRIBUTES & TdInfo.DebugAttribute) != 0, _authority.Root));
        }

        // As if the TD had been another.
        private TdQuote With(Change change)
        {
            TdReport other = _report;
            change(ref other);
            return _parts with { Body = TdQuote.BodyOf(other, _format) };
        }

        private QuoteEvidence DebugTd()
        {
            QuoteEvidence evidence = Of(
                With((ref TdReport other) => other.TDINFO.ATTRIBUTES |= TdInfo.DebugAttribute),
                $"ATTRIBUTES is 0x{_report.TDINFO.ATTRIBUTES | TdInfo.DebugAttribute:x}: bit 0 lets the host look into the TD");
            return evidence with { Expected = evidence.Expected with { AllowDebug = false } };
        }

        private QuoteEvidence Altered(int offset, string what)
        {
            QuoteEvidence sound = Sound();
            byte[] quote = sound.Quote.ToArray();
            quote[offset] ^= 1;
            return sound with { Quote = quote, Defect = $"bit 0 of byte 0x{offset:x} ({what}) was changed afterwards" };
        }

        private QuoteEvidence ForeignQuotingEnclave()
        {
            SgxReportBody other = _parts.QeReport;
            Invert(other.MRSIGNER);
            return Of(_parts with { QeReport = other }, $"MRSIGNER of the quoting enclave is {Hex(other.MRSIGNER)}, not that of its identity, {Hex(QuotingEnclaveIdentity.MrSigner)}");
        }

        // A platform without security versions: below everything that is up to date, whatever the machine has.
        private QuoteEvidence StaleTcb()
        {
            PckPlatform stale = _enclave.Platform with { SgxComponents = new byte[_enclave.Platform.SgxComponents.Length], PceSvn = 0 };
            return Of(
                _parts with { Chain = [_authority.IssuePck(stale), _authority.PlatformCa, _authority.Root] },
                $"the PCK certificate has PCESVN 0 and component versions of 0, which are {TcbStatus.OutOfDate}");
        }

        private QuoteEvidence ForeignFamily()
        {
            PckPlatform other = _enclave.Platform with { Fmspc = _authority.Other().Fmspc };
            return Of(
                _parts with { Chain = [_authority.IssuePck(other), _authority.PlatformCa, _authority.Root] },
                $"FMSPC in the PCK certificate is {Hex(other.Fmspc.Span)}, and the TCB information is for {Hex(_authority.Fmspc.Span)}");
        }

        // Only the trusted root stays.
        private QuoteEvidence UntrustedRoot()
        {
            TdxAuthority other = _authority.Other();
            PckPlatform platform = _enclave.Platform with { Fmspc = other.Fmspc };
            return Of(
                _parts with { PckKey = other.PckKey, Chain = [other.IssuePck(platform), other.PlatformCa, other.Root] },
                "chain, signatures and collateral hold, below a root that has the name of the trusted one and another key", other);
        }

        private QuoteEvidence ExpiredCertificate()
        {
            DateTimeOffset end = TdxAuthority.NotBefore;
            return Of(
                _parts with { Chain = [_authority.IssuePck(_enclave.Platform, end.AddYears(-1), end), _authority.PlatformCa, _authority.Root] },
                $"the PCK certificate ended on {end:yyyy-MM-dd}");
        }

        // The very change that somebody would make: what is out of date is said to be up to date.
        private QuoteEvidence AlteredTcbInfo()
        {
            QuoteEvidence sound = Sound();
            string altered = System.Text.Encoding.UTF8.GetString(sound.TcbInfo.Span).Replace(nameof(TcbStatus.OutOfDate), nameof(TcbStatus.UpToDate), StringComparison.Ordinal);
            return sound with { TcbInfo = System.Text.Encoding.UTF8.GetBytes(altered), Defect = "each OutOfDate of the TCB information was changed to UpToDate after it was signed" };
        }

        private QuoteEvidence ExpiredTcbInfo()
        {
            DateTimeOffset end = TdxAuthority.NotBefore.AddMonths(1);
            return Sound() with { TcbInfo = new TdxCollateral(_authority, nextUpdate: end).TcbInfo, Defect = $"the TCB information was to be updated on {end:yyyy-MM-dd}" };
        }

        private QuoteEvidence Truncated()
        {
            QuoteEvidence sound = Sound();
            int length = sound.Quote.Length / 2;
            return sound with { Quote = sound.Quote[..length], Defect = $"the quote ends after {length} of {sound.Quote.Length} bytes" };
        }

        private static void Invert(Span<byte> bytes)
        {
            foreach (ref byte each in bytes)
            {
                each = (byte)~each;
            }
        }

        private static string Inverted(ReadOnlySpan<byte> bytes)
        {
            byte[] copy = bytes.ToArray();
            Invert(copy);
            return Hex(copy);
        }

        private static byte[] Copy(ReadOnlySpan<byte> bytes) => bytes.ToArray();

        private static string Hex(ReadOnlySpan<byte> bytes) => Convert.ToHexStringLower(bytes);
    }
}
