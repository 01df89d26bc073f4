using System.Security.Cryptography;
using VmmService.V1;

namespace VmmService.Server.Verification.Intel;

/// <summary>
/// Verifies a quote of a TD: structure, certificates up to the trusted root, signatures, collateral, and what is demanded of the TD (Intel TDX DCAP quote format, Intel PCS version
/// 4). All checks are always listed, in the order in which verifiers make them; one that builds on another is not made where that one does not hold. Everything that is verified
/// comes from anyone: whatever it is, the answer is findings.
/// </summary>
internal sealed partial class TdxQuoteVerifier
{
    private const string NeedsStructure = "quote.structure has to hold";
    private const string NeedsChain = "the certificates have to be readable (quote.chain-form)";
    private const string NeedsTime = "give the time of the verification (at)";

    private readonly EvidenceChecks _checks = new();
    private readonly VerifyQuoteRequest _request;
    private readonly QuoteExpectation _expected;
    private readonly DateTimeOffset? _at;
    private readonly QuoteParts? _quote;
    private readonly PckChain _chain;

    private TdxQuoteVerifier(VerifyQuoteRequest request)
    {
        _request = request;
        _expected = request.Expected ?? new QuoteExpectation();
        _at = request.HasAt ? DateTimeOffset.FromUnixTimeSeconds(request.At) : null;
        _quote = QuoteParts.Read(request.Quote.Memory, out string? problem);
        _chain = _quote is null ? PckChain.None : PckChain.Read(_quote.PckChain);
        _checks.Made("quote.structure", "every length and type of the quote fits: version 4 or 5, P-256 key, TDX, PCK chain in the report of a quoting enclave", problem);
    }

    /// <summary>Makes every check that can be made.</summary>
    /// <param name="request">Its sizes are bounded, its expectations well formed and its time is one (years 1 to 9999); all else may be anything.</param>
    public static EvidenceFindings Verify(VerifyQuoteRequest request)
    {
        var it = new TdxQuoteVerifier(request);
        it.CheckChain();
        it.CheckSignatures();
        it.CheckRevocation();
        it.CheckTcbSigner();
        it.CheckTcb();
        it.CheckQuotingEnclave();
        it.CheckTd();
        return it._checks.Conclude(it._chain.IsSimulated || SignedDer.SaysSimulated(it._tcbSigner?.Certificate));
    }

    private void CheckChain()
    {
        (CertificateFacts? leaf, CertificateFacts? intermediate, CertificateFacts? root) = (_chain.Leaf, _chain.Intermediate, _chain.Root);
        Check(
            "quote.chain-form", "the chain is PCK certificate, platform CA and root, with the names, keys, issuers and extensions of Intel's", Unless(_quote is null, NeedsStructure),
            () => _chain.FormProblem);
        Check(
            "quote.root", "the root of the chain is the trusted one",
            Unless(_quote is null, NeedsStructure) ?? Unless(_expected.Root.IsEmpty, "give the root that is trusted (expected.root)") ?? Unless(root is null, NeedsChain), RootProblem);
        Check(
            "quote.ca-signature", "the root signed the platform CA's certificate", Unless(root is null || intermediate is null, NeedsChain),
            () => intermediate!.Signed.SignatureProblem(root!.Certificate));
        Check(
            "quote.pck-signature", "the platform CA signed the PCK certificate", Unless(intermediate is null || leaf is null, NeedsChain),
            () => leaf!.Signed.SignatureProblem(intermediate!.Certificate));
        Check(
            "quote.dates", "the certificates of the chain are valid at the time of the verification",
            Unless(leaf is null || intermediate is null || root is null, NeedsChain) ?? NeedsAt(),
            () => leaf!.DateProblem(_at!.Value) ?? intermediate!.DateProblem(_at.Value) ?? root!.DateProblem(_at.Value));
    }

    private string? RootProblem() => _request.Expected.Root.Span.SequenceEqual(_chain.Root!.Certificate.RawDataMemory.Span) ? null
        : $"it has the SHA-256 {Fingerprint(_chain.Root.Certificate.RawDataMemory.Span)}, and the trusted one has {Fingerprint(_expected.Root.Span)}";

    private void CheckSignatures()
    {
        string? lack = Unless(_quote is null, NeedsStructure);
        bool isKey = Check(
            "quote.attestation-key", "the attestation key is a point on P-256", lack,
            () => P256.IsKey(_quote!.AttestationKey.Span) ? null : $"{Hex(_quote.AttestationKey)} is none");
        Check(
            "quote.signature", "the attestation key signed header and body", lack ?? Unless(!isKey, "quote.attestation-key has to hold"),
            () => P256.Verifies(_quote!.AttestationKey.Span, _quote.Signed.Span, _quote.Signature.Span) ? null
                : $"the signature {Hex(_quote.Signature)} is not that of header and body as they stand");
        Check(
            "quote.qe-report-signature", "the PCK key signed the report of the quoting enclave", lack ?? Unless(_chain.Leaf?.PublicKey is null, NeedsChain),
            () => P256.Verifies(_chain.Leaf!.PublicKey!.Value.Span, _quote!.QeReport.Span, _quote.QeReportSignature.Span) ? null
                : $"the signature {Hex(_quote.QeReportSignature)} is not that of the report as it stands");
        Check("quote.qe-report-data", "the report of the quoting enclave binds the attestation key", lack, QeReportDataProblem);
    }

    private string? QeReportDataProblem()
    {
        byte[] expected = [.. SHA256.HashData([.. _quote!.AttestationKey.Span, .. _quote.AuthenticationData.Span]), .. new byte[32]];
        return Difference("REPORTDATA", _quote.QeReportData, expected);
    }

    // What is demanded of the TD, and of the module that vouches for it.
    private void CheckTd()
    {
        string? lack = Unless(_quote is null, NeedsStructure);
        Check(
            "quote.module", "the TDX module is a production one of Intel's: MRSIGNERSEAM and SEAMATTRIBUTES are zero, or as the TCB information has them", lack, ModuleProblem);
        Demand("quote.mrtd", "MRTD is the expected one", "expected.mrtd", _expected.Mrtd.Length != 0, () => Difference("MRTD", _quote!.MrTd, Convert.FromHexString(_expected.Mrtd)));
        Demand("quote.rtmr", "RTMR0 to RTMR3 are the expected ones", "expected.rtmr", _expected.Rtmr.Any(each => each.Length != 0), RtmrProblem);
        Demand(
            "quote.report-data", "REPORTDATA answers the challenge", "expected.report_data", !_expected.ReportData.IsEmpty,
            () => Difference("REPORTDATA", _quote!.ReportData, _expected.ReportData.Span));
        const string noDebug = "the host cannot look into the TD (ATTRIBUTES.DEBUG is 0)";
        if (_expected.AllowDebug)
        {
            _checks.NotAsked("quote.debug", noDebug, "debugging is allowed (expected.allow_debug)");
        }
        else
        {
            const ulong debug = 1;
            Check("quote.debug", noDebug, lack, () => (_quote!.TdAttributes & debug) == 0 ? null : $"ATTRIBUTES is 0x{_quote.TdAttributes:x}");
        }
    }

    private string? ModuleProblem()
    {
        TdxModuleIdentity identity = _tcbInfo?.ModuleOf(_quote!.TeeTcbSvn) ?? TdxModuleIdentity.Production;
        return Difference("MRSIGNERSEAM", _quote!.MrSignerSeam, identity.MrSigner)
            ?? Masked.Problem("SEAMATTRIBUTES", _quote.SeamAttributes, identity.Attributes, identity.AttributesMask);
    }

    private string? RtmrProblem()
    {
        List<string> problems = [];
        for (int i = 0; i < _expected.Rtmr.Count; i++)
        {
            if (_expected.Rtmr[i].Length != 0 && Difference($"RTMR{i}", _quote!.Rtmr(i), Convert.FromHexString(_expected.Rtmr[i])) is { } problem)
            {
                problems.Add(problem);
            }
        }
        return problems.Count == 0 ? null : string.Join("; ", problems);
    }

    private bool Check(string id, string demand, string? lack, Func<string?> problem)
    {
        if (lack is null)
        {
            return _checks.Made(id, demand, problem());
        }
        _checks.Lacks(id, demand, lack);
        return false;
    }

    // A check that is made where somebody asks for it.
    private void Demand(string id, string demand, string field, bool asked, Func<string?> problem)
    {
        if (asked)
        {
            Check(id, demand, Unless(_quote is null, NeedsStructure), problem);
        }
        else
        {
            _checks.NotAsked(id, demand, $"give what is expected ({field})");
        }
    }

    private static string Give(string field) => $"give it ({field})";

    private string? NeedsAt() => Unless(_at is null, NeedsTime);

    private static string? Unless(bool lacking, string lack) => lacking ? lack : null;

    private static string? Difference(string what, ReadOnlySpan<byte> found, ReadOnlySpan<byte> expected) =>
        found.SequenceEqual(expected) ? null : $"{what} is {Convert.ToHexStringLower(found)}, not {Convert.ToHexStringLower(expected)}";

    private static string Fingerprint(ReadOnlySpan<byte> der) => Convert.ToHexStringLower(SHA256.HashData(der));

    private static string Hex(ReadOnlyMemory<byte> bytes) => Convert.ToHexStringLower(bytes.Span);
}
