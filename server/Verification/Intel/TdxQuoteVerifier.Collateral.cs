using System.Text.Json;
using Google.Protobuf;

namespace VmmService.Server.Verification.Intel;

/// <summary>
/// What Intel says of the keys and versions in a quote: revocation lists, TCB information, the quoting enclave's identity. What of it is not signed by whom it has to be says nothing,
/// so nothing is compared with it.
/// </summary>
internal sealed partial class TdxQuoteVerifier
{
    private const string TcbSigningName = "Intel SGX TCB Signing";

    private RevocationList? _rootCrl;
    private RevocationList? _pckCrl;
    private CertificateFacts? _tcbSigner;
    private TcbInfo? _tcbInfo;

    private void CheckRevocation()
    {
        (string Field, ByteString Bytes, CertificateFacts? Issuer)[] given =
            [("root_crl", _request.RootCrl, _chain.Root), ("pck_crl", _request.PckCrl, _chain.Intermediate)];
        RevocationList?[] signed = new RevocationList?[given.Length];
        List<string> problems = [];
        for (int i = 0; i < given.Length; i++)
        {
            if (given[i].Bytes.IsEmpty || given[i].Issuer is not { } issuer)
            {
                continue;
            }
            var list = RevocationList.Read(given[i].Bytes.Memory);
            string? problem = list is null ? "it is no revocation list" : IssuerProblem(list, issuer) ?? list.FormProblem ?? list.Signed.SignatureProblem(issuer.Certificate);
            signed[i] = problem is null ? list : null;
            if (problem is not null)
            {
                problems.Add($"{given[i].Field}: {problem}");
            }
        }
        (_rootCrl, _pckCrl) = (signed[0], signed[1]);

        string missing = string.Join(", ", given.Where(each => each.Bytes.IsEmpty).Select(each => each.Field));
        string? lack = Unless(_chain.Root is null || _chain.Intermediate is null, NeedsChain) ?? Unless(missing.Length != 0, Give(missing));
        Check(
            "collateral.crl-signatures", "the root and the platform CA signed their revocation lists", problems.Count == 0 ? lack : null,
            () => problems.Count == 0 ? null : string.Join("; ", problems));
        Check(
            "collateral.crl-dates", "the revocation lists hold at the time of the verification",
            NeedsList(_rootCrl, "root_crl", _request.RootCrl) ?? NeedsList(_pckCrl, "pck_crl", _request.PckCrl) ?? NeedsAt(),
            () => _rootCrl!.DateProblem(_at!.Value) is { } ofRoot ? $"root_crl: {ofRoot}" : _pckCrl!.DateProblem(_at.Value) is { } ofPck ? $"pck_crl: {ofPck}" : null);
        Check(
            "collateral.ca-revoked", "the root's list does not have the platform CA",
            NeedsList(_rootCrl, "root_crl", _request.RootCrl) ?? Unless(_chain.Intermediate is null, NeedsChain),
            () => RevocationProblem(_rootCrl!, "root_crl", _chain.Intermediate!));
        Check(
            "collateral.pck-revoked", "the platform CA's list does not have the PCK certificate",
            NeedsList(_pckCrl, "pck_crl", _request.PckCrl) ?? Unless(_chain.Leaf is null, NeedsChain),
            () => RevocationProblem(_pckCrl!, "pck_crl", _chain.Leaf!));
    }

    private void CheckTcbSigner()
    {
        _tcbSigner = CertificateFacts.Read(_request.TcbSigning.Memory);
        string? lack = Unless(_request.TcbSigning.IsEmpty, Give("tcb_signing")) ?? Unless(_chain.Root is null, NeedsChain);
        Check("collateral.tcb-signing", "the root signed the certificate of the TCB signer", lack, TcbSigningProblem);
        lack ??= Unless(_tcbSigner is null, "tcb_signing has to be a certificate");
        Check(
            "collateral.tcb-signing-dates", "the certificate of the TCB signer is valid at the time of the verification", lack ?? NeedsAt(),
            () => _tcbSigner!.DateProblem(_at!.Value));
        Check(
            "collateral.tcb-signing-revoked", "the root's list does not have the certificate of the TCB signer", lack ?? NeedsList(_rootCrl, "root_crl", _request.RootCrl),
            () => RevocationProblem(_rootCrl!, "root_crl", _tcbSigner!));
    }

    private void CheckTcb()
    {
        bool isSigned = CheckSigned(
            "collateral.tcb-info-signature", "the TCB signer signed the TCB information, of the form of Intel's PCS version 4", "tcb_info", _request.TcbInfo, TcbInfo.Name,
            TcbInfo.Read, out _tcbInfo);
        string? lack = Unless(_request.TcbInfo.IsEmpty, Give("tcb_info")) ?? Unless(!isSigned, "collateral.tcb-info-signature has to hold");
        Check(
            "collateral.tcb-info-dates", "the TCB information holds at the time of the verification", lack ?? NeedsAt(),
            () => DateProblem(_tcbInfo!.IssueDate, _tcbInfo.NextUpdate));
        lack ??= Unless(_quote is null, NeedsStructure) ?? Unless(_chain.Platform is null, NeedsChain);
        Check(
            "collateral.family", "the TCB information is of the family (FMSPC) and the PCE of the PCK certificate", lack,
            () => Difference("FMSPC of the PCK certificate", _chain.Platform!.Fmspc.Span, _tcbInfo!.Fmspc)
                ?? Difference("PCE-ID of the PCK certificate", _chain.Platform.PceId.Span, _tcbInfo.PceId));
        Check(
            "collateral.tcb", "the platform and its TDX module are at a level that is UpToDate", lack, () => _tcbInfo!.StatusProblem(_chain.Platform!, _quote!.TeeTcbSvn));
    }

    private void CheckQuotingEnclave()
    {
        bool isSigned = CheckSigned(
            "collateral.qe-identity-signature", "the TCB signer signed the quoting enclave's identity, of the form of Intel's PCS version 4", "qe_identity", _request.QeIdentity,
            QeIdentity.Name, QeIdentity.Read, out QeIdentity? identity);
        string? lack = Unless(_request.QeIdentity.IsEmpty, Give("qe_identity")) ?? Unless(!isSigned, "collateral.qe-identity-signature has to hold");
        Check(
            "collateral.qe-identity-dates", "the quoting enclave's identity holds at the time of the verification", lack ?? NeedsAt(),
            () => DateProblem(identity!.IssueDate, identity.NextUpdate));
        Check(
            "collateral.qe-identity", "the quoting enclave has the signer, product and attributes of its identity, at a level that is UpToDate",
            lack ?? Unless(_quote is null, NeedsStructure), () => identity!.Problem(_quote!));
    }

    private delegate T? Reading<T>(JsonElement content, out string? problem);

    // The content is read only where it is signed.
    private bool CheckSigned<T>(string id, string demand, string field, ByteString bytes, string name, Reading<T> read, out T? content)
        where T : class
    {
        content = null;
        if (bytes.IsEmpty)
        {
            return Check(id, demand, Give(field), () => null);
        }
        var json = SignedJson.Read(bytes.Memory, name, out string? problem);
        if (json is not null && _tcbSigner?.PublicKey is null)
        {
            return Check(id, demand, "the certificate with the key that signs it has to be readable (collateral.tcb-signing)", () => null);
        }
        if (json is not null)
        {
            problem = P256.Verifies(_tcbSigner!.PublicKey!.Value.Span, json.Signed.Span, json.Signature.Span) ? null
                : $"the signature {Hex(json.Signature)} is not that of its {name} as it stands";
            content = problem is null ? read(json.Content, out problem) : null;
        }
        return Check(id, demand, lack: null, () => problem);
    }

    private string? TcbSigningProblem() => _tcbSigner switch
    {
        null => "it is no certificate",
        { CommonName: not TcbSigningName } => $"it has the common name \"{_tcbSigner.CommonName}\", not \"{TcbSigningName}\"",
        _ when _tcbSigner.Issuer != _chain.Root!.Subject => $"it names \"{_tcbSigner.Issuer}\" as its issuer, and the root is \"{_chain.Root.Subject}\"",
        { PublicKey: null } => "it has no P-256 key",
        _ => _tcbSigner.Signed.SignatureProblem(_chain.Root.Certificate),
    };

    private static string? NeedsList(RevocationList? list, string field, ByteString bytes) =>
        list is not null ? null : bytes.IsEmpty ? Give(field) : $"{field} has to be signed (collateral.crl-signatures)";

    private string? DateProblem(DateTimeOffset issued, DateTimeOffset nextUpdate) =>
        _at < issued ? $"it is from {issued:u}, after {_at:u}" : _at >= nextUpdate ? $"it was to be updated by {nextUpdate:u}, before {_at:u}" : null;

    private static string? RevocationProblem(RevocationList list, string field, CertificateFacts certificate) =>
        list.Lists(certificate.Certificate) ? $"{field} lists the serial number {Hex(certificate.Certificate.SerialNumberBytes)} of {certificate.CommonName}" : null;

    private static string? IssuerProblem(RevocationList list, CertificateFacts issuer)
    {
        string? name = CertificateFacts.TryNameOf(list.Issuer);
        return name == issuer.Subject ? null : $"it is of \"{name}\", not of \"{issuer.Subject}\"";
    }
}
