using System.Runtime.InteropServices;
using System.Security.Cryptography;
using SimMachine.Amd.Attestation;
using VmmService.Server.Wire;
using VmmService.V1;
using EpycProduct = SimMachine.Amd.EpycProduct;
using TcbVersion = SimMachine.Amd.Attestation.TcbVersion;

namespace VmmService.Server.Verification.Amd;

/// <summary>
/// A relying party of SNP: makes every check of a report, its certificates and its revocation list that can be made (SNP firmware ABI, ATTESTATION_REPORT; AMD publication 57230;
/// snp.md 11.2 to 12.2). It knows nothing of this daemon's hosts: their evidence is verified as anybody's.
/// </summary>
internal sealed class SnpReportVerifier
{
    private const int IntegerSize = 72;
    private const int FieldSize = 48;
    private const ulong DebugPolicy = 1 << 19;
    private const byte FamilyOfMilanAndGenoa = 0x19;
    private const byte FamilyOfTurin = 0x1A;

    // Bytes that are zeros whatever the version: offset, end.
    private static readonly (int Start, int End)[] s_reserved =
    [
        (0x04C, 0x050), (0x18B, 0x1A0), (0x1EB, 0x1EC), (0x1EF, 0x1F0), (0x208, AttestationReport.SignedSize),
        (AttestationReport.SignedSize + FieldSize, AttestationReport.SignedSize + IntegerSize),
        (AttestationReport.SignedSize + IntegerSize + FieldSize, AttestationReport.Size),
    ];

    private readonly EvidenceChecks _checks = new();
    private readonly VerifyReportRequest _evidence;
    private readonly EvidenceExpectation _expected;
    private readonly byte[] _measurement;
    private readonly TcbVersion? _minTcb;
    private readonly SnpCertificate? _endorsement;
    private readonly SnpCertificate? _intermediate;
    private readonly SnpCertificate? _root;

    private SnpReportVerifier(VerifyReportRequest evidence)
    {
        _evidence = evidence;
        _expected = evidence.Expected ?? new EvidenceExpectation();
        _measurement = Structs.Hex("expected.measurement", _expected.Measurement, FieldSize);
        _minTcb = Platforms.ToTcb("expected.min_tcb", _expected.MinTcb);
        if (_expected.ReportData.Length is not (0 or 64))
        {
            throw Refusals.BadField("expected.report_data", $"{_expected.ReportData.Length} bytes were given; REPORT_DATA has 64");
        }
        _endorsement = SnpCertificate.Read(evidence.Endorsement.Memory);
        _intermediate = SnpCertificate.Read(evidence.Intermediate.Memory);
        _root = SnpCertificate.Read(evidence.Ark.Memory);
    }

    /// <summary>Makes the checks.</summary>
    /// <param name="evidence">Any bytes.</param>
    /// <exception cref="Grpc.Core.RpcException">INVALID_ARGUMENT where what is expected cannot be: a digest of another length, a patch level over 255.</exception>
    public static EvidenceFindings Verify(VerifyReportRequest evidence)
    {
        var it = new SnpReportVerifier(evidence);
        it._checks.Made(
            "report.form", "the report has 0x4a0 bytes, a version from 2 to 5, a known signing key, and zeros where its version has no field", FormProblem(evidence.Report.Span));
        AttestationReport? report = evidence.Report.Length == AttestationReport.Size ? MemoryMarshal.Read<AttestationReport>(evidence.Report.Span) : null;
        it.CheckChain();
        it.CheckRevocation();
        it.CheckWhoSigned(report);
        it.CheckWhatIsExpected(report);
        return it._checks.Conclude(it.Chain.Any(each => SignedDer.SaysSimulated(each?.Certificate)));
    }

    private static string? FormProblem(ReadOnlySpan<byte> bytes)
    {
        if (bytes.Length != AttestationReport.Size)
        {
            return $"it has 0x{bytes.Length:x} bytes";
        }
        AttestationReport report = MemoryMarshal.Read<AttestationReport>(bytes);
        if (report.VERSION is < 2 or > 5)
        {
            return $"VERSION is {report.VERSION}";
        }
        if (report.SIGNATURE_ALGO != AttestationReport.EcdsaP384Sha384)
        {
            return $"SIGNATURE_ALGO is {report.SIGNATURE_ALGO}; 1 is ECDSA on P-384 with SHA-384";
        }
        if (report.KEY_INFO >> 5 != 0 || !Enum.IsDefined(SigningKeyOf(report)))
        {
            return $"KEY_INFO is 0x{report.KEY_INFO:x}";
        }
        (int, int)[] ofVersion = report.VERSION switch { 2 => [(0x188, 0x18B), (0x1F8, 0x208)], 3 or 4 => [(0x1F8, 0x208)], _ => [] };
        foreach ((int start, int end) in s_reserved.Concat(ofVersion))
        {
            int at = bytes[start..end].IndexOfAnyExcept((byte)0);
            if (at >= 0)
            {
                return $"byte 0x{start + at:x} is 0x{bytes[start + at]:x2}; in version {report.VERSION} it is reserved";
            }
        }
        return null;
    }

    private static SigningKey SigningKeyOf(in AttestationReport report) => (SigningKey)((report.KEY_INFO >> AttestationReport.KeyInfoBits.SigningKeyShift) & 7);

    private void CheckChain()
    {
        Read("chain.ark", "the ARK is a certificate of AMD's form", "ark", _evidence.Ark.IsEmpty, _root, root => root.RootProblem());
        const string trusted = "the ARK is the trusted one, and signed by itself";
        if (_expected.Ark.IsEmpty || _root is null)
        {
            _checks.Lacks("chain.root", trusted, _root is null ? "give the ARK (ark)" : "give the root that is trusted (expected.ark)");
        }
        else
        {
            _checks.Made("chain.root", trusted, _evidence.Ark.Equals(_expected.Ark) ? _root.SignatureProblem(_root) : "it is another certificate than the trusted one");
        }
        bool vlek = _endorsement?.IsVlek ?? false;
        Read(
            "chain.intermediate", "the ASK or ASVK is a certificate of AMD's form, of the ARK's product", "intermediate", _evidence.Intermediate.IsEmpty, _intermediate,
            intermediate => _root is null ? null : intermediate.IntermediateProblem(_root, vlek));
        Signed("chain.intermediate-signature", "the ARK signed the ASK or ASVK", _intermediate, _root);
        Read("chain.endorsement", "the VCEK or VLEK is a certificate of AMD's form", "endorsement", _evidence.Endorsement.IsEmpty, _endorsement, endorsement => endorsement.EndorsementProblem());
        Signed("chain.endorsement-signature", "the ASK or ASVK signed the VCEK or VLEK", _endorsement, _intermediate);
        const string dates = "every certificate holds when it is verified";
        if (At is { } at)
        {
            _checks.Made("chain.dates", dates, Chain.OfType<SnpCertificate>().Select(each => SignedDer.DateProblem(each.Certificate, at)).FirstOrDefault(problem => problem is not null));
        }
        else
        {
            _checks.Lacks("chain.dates", dates, "give the time of the verification (at)");
        }
    }

    private void Read(string id, string demand, string field, bool missing, SnpCertificate? certificate, Func<SnpCertificate, string?> problem)
    {
        if (missing)
        {
            _checks.Lacks(id, demand, $"give it ({field})");
            return;
        }
        _checks.Made(id, demand, certificate is null ? "the bytes are not a certificate in DER" : problem(certificate));
    }

    private void Signed(string id, string demand, SnpCertificate? certificate, SnpCertificate? issuer)
    {
        if (certificate is null || issuer is null)
        {
            _checks.Lacks(id, demand, "it takes both certificates");
            return;
        }
        _checks.Made(id, demand, certificate.SignatureProblem(issuer));
    }

    // From the root down; null for what is not there or cannot be read.
    private SnpCertificate?[] Chain => [_root, _intermediate, _endorsement];

    private DateTimeOffset? At => _evidence.HasAt ? Structs.Time("at", _evidence.At) : null;

    private void CheckRevocation()
    {
        const string form = "the revocation list is the ARK's, and holds when it is verified", revoked = "the revocation list does not have the ASK or ASVK";
        if (_evidence.Crl.IsEmpty || _root is null || _intermediate is null)
        {
            string lack = _evidence.Crl.IsEmpty ? "give the revocation list (crl)" : "it takes ARK, ASK or ASVK";
            _checks.NotAsked("crl.form", form, lack);
            _checks.NotAsked("crl.revoked", revoked, lack);
            return;
        }
        var list = RevocationList.Read(_evidence.Crl.Memory);
        string? problem = list is null ? "the bytes are not a revocation list in DER"
            : !list.Issuer.Span.SequenceEqual(_root.Certificate.SubjectName.RawData) ? "it is another issuer's"
            : list.FormProblem ?? list.Signed.SignatureProblem(_root.Certificate) ?? (At is { } at ? list.DateProblem(at) : null);
        _checks.Made("crl.form", form, problem);
        if (list is null)
        {
            _checks.NotAsked("crl.revoked", revoked, "the list cannot be read");
            return;
        }
        _checks.Made("crl.revoked", revoked, list.Lists(_intermediate.Certificate) ? $"serial number {_intermediate.Certificate.SerialNumber} ({_intermediate.CommonName}) is in it" : null);
    }

    private void CheckWhoSigned(AttestationReport? read)
    {
        const string signature = "the endorsement key signed the first 0x2a0 bytes of the report (ECDSA P-384 with SHA-384)",
            kind = "the report says that the endorsement key signed it",
            product = "family and model in the report are of the certificate's product",
            tcb = "REPORTED_TCB is what the endorsement certificate is for",
            chip = "CHIP_ID is the chip that the VCEK names";
        if (read is not { } report || _endorsement is null)
        {
            string lack = read is null ? "the report has another size" : "it takes the VCEK or VLEK (endorsement)";
            _checks.Lacks("report.signing-key", kind, lack);
            _checks.Lacks("report.signature", signature, lack);
            _checks.Lacks("report.product", product, lack);
            _checks.Lacks("report.certified-tcb", tcb, lack);
            _checks.Lacks("report.chip-id", chip, lack);
            return;
        }
        SigningKey said = SigningKeyOf(report), certified = _endorsement.IsVlek ? SigningKey.VLEK : SigningKey.VCEK;
        _checks.Made("report.signing-key", kind, said == certified ? null : said == SigningKey.NONE ? "the platform masks its key: it did not sign" : $"SIGNING_KEY is {said}, the certificate is a {certified}'s");
        _checks.Made("report.signature", signature, SignatureProblem(_evidence.Report.Span));
        CheckProduct(product, report);
        EpycProduct layout = LayoutOf(report);
        TcbVersion? certifiedTcb = _endorsement.Tcb(TcbVersion.HasFmc(layout));
        var reported = TcbVersion.Decode(layout, report.REPORTED_TCB);
        _checks.Made("report.certified-tcb", tcb, certifiedTcb == reported ? null : $"the report has {Text(reported)}; the certificate {(certifiedTcb is { } other ? Text(other) : "not all of them")}");
        CheckChip(chip, report);
    }

    private void CheckProduct(string demand, in AttestationReport report)
    {
        if (ProductOf(report) is not { } found)
        {
            _checks.NotAsked("report.product", demand, report.VERSION < 3 ? $"a report of version {report.VERSION} has neither" : "they are of no product that is known here");
            return;
        }
        _checks.Made("report.product", demand, found == _endorsement!.Product
            ? null
            : $"family 0x{report.CPUID_FAM_ID:x2}, model 0x{report.CPUID_MOD_ID:x2} are of {found}, the certificate is for {_endorsement.ProductName ?? "none"}");
    }

    private void CheckChip(string demand, in AttestationReport report)
    {
        ReadOnlySpan<byte> chipId = report.CHIP_ID;
        if (_endorsement!.ChipId is not { } named || chipId.IndexOfAnyExcept((byte)0) < 0)
        {
            _checks.NotAsked("report.chip-id", demand, _endorsement.ChipId is null ? "a VLEK names none" : "the platform masks its chip id");
            return;
        }
        bool same = chipId.StartsWith(named) && chipId[named.Length..].IndexOfAnyExcept((byte)0) < 0;
        _checks.Made("report.chip-id", demand, same ? null : $"the report is of chip {Convert.ToHexStringLower(chipId)}, the VCEK of {Convert.ToHexStringLower(named)}");
    }

    private string? SignatureProblem(ReadOnlySpan<byte> report)
    {
        using ECDsa? key = SignedDer.Ecdsa(_endorsement!.Certificate);
        if (key is not { KeySize: 384 })
        {
            return "the endorsement key is not one of P-384";
        }
        Span<byte> signature = stackalloc byte[2 * FieldSize];
        report.Slice(AttestationReport.SignedSize, FieldSize).CopyTo(signature);
        report.Slice(AttestationReport.SignedSize + IntegerSize, FieldSize).CopyTo(signature[FieldSize..]);
        signature[..FieldSize].Reverse();
        signature[FieldSize..].Reverse();
        return key.VerifyData(report[..AttestationReport.SignedSize], signature, HashAlgorithmName.SHA384, DSASignatureFormat.IeeeP1363FixedFieldConcatenation)
            ? null
            : "it did not sign the report as it stands";
    }

    // Null before version 3, and for what is not known.
    private static EpycProduct? ProductOf(in AttestationReport report) => (report.CPUID_FAM_ID, report.CPUID_MOD_ID) switch
    {
        _ when report.VERSION < 3 => null,
        (FamilyOfMilanAndGenoa, <= 0x0F) => EpycProduct.Milan,
        (FamilyOfMilanAndGenoa, (>= 0x10 and <= 0x1F) or (>= 0xA0 and <= 0xAF)) => EpycProduct.Genoa,
        (FamilyOfTurin, <= 0x11) => EpycProduct.Turin,
        _ => null,
    };

    // Which form TCB versions have. Without CPUID the certificate says it, and without one the chip id, of which Turin has 8 bytes.
    private EpycProduct LayoutOf(in AttestationReport report)
    {
        ReadOnlySpan<byte> chipId = report.CHIP_ID;
        bool turin = report.VERSION >= 3 ? report.CPUID_FAM_ID >= FamilyOfTurin
            : _endorsement?.Product is { } certified ? certified == EpycProduct.Turin
            : chipId[..8].IndexOfAnyExcept((byte)0) >= 0 && chipId[8..].IndexOfAnyExcept((byte)0) < 0;
        return turin ? EpycProduct.Turin : EpycProduct.Milan;
    }

    private void CheckWhatIsExpected(AttestationReport? read)
    {
        const string unread = "the report has another size";
        const string measurement = "MEASUREMENT is the expected one", data = "REPORT_DATA is the expected one", vmpl = "VMPL is the expected one",
            minTcb = "no part of REPORTED_TCB is older than the oldest that is accepted", debug = "POLICY does not allow debugging";
        if (read is not { } report)
        {
            _checks.NotAsked("report.measurement", measurement, unread);
            _checks.NotAsked("report.report-data", data, unread);
            _checks.NotAsked("report.vmpl", vmpl, unread);
            _checks.NotAsked("report.min-tcb", minTcb, unread);
            _checks.NotAsked("report.debug", debug, unread);
            return;
        }
        Expected("report.measurement", measurement, "expected.measurement", _measurement.Length == 0, Differs(report.MEASUREMENT, _measurement));
        Expected("report.report-data", data, "expected.report_data", _expected.ReportData.IsEmpty, Differs(report.REPORT_DATA, _expected.ReportData.Span));
        Expected("report.vmpl", vmpl, "expected.vmpl", !_expected.HasVmpl, report.VMPL == _expected.Vmpl ? null : $"it is {report.VMPL} and not {_expected.Vmpl}");
        var reported = TcbVersion.Decode(LayoutOf(report), report.REPORTED_TCB);
        Expected("report.min-tcb", minTcb, "expected.min_tcb", _minTcb is null, _minTcb is not { } oldest || oldest.IsWithin(reported) ? null : $"it is {Text(reported)}; the oldest is {Text(oldest)}");
        if (_expected.AllowDebug)
        {
            _checks.NotAsked("report.debug", debug, "debugging is allowed (expected.allow_debug)");
            return;
        }
        _checks.Made("report.debug", debug, (report.POLICY & DebugPolicy) == 0 ? null : $"POLICY is 0x{report.POLICY:x}, with bit 19");
    }

    private void Expected(string id, string demand, string field, bool notAsked, string? problem)
    {
        if (notAsked)
        {
            _checks.NotAsked(id, demand, $"give what is expected ({field})");
            return;
        }
        _checks.Made(id, demand, problem);
    }

    private static string? Differs(ReadOnlySpan<byte> found, ReadOnlySpan<byte> expected) =>
        found.SequenceEqual(expected) ? null : $"it is {Convert.ToHexStringLower(found)} and not {Convert.ToHexStringLower(expected)}";

    private static string Text(TcbVersion tcb) => $"boot loader {tcb.BootLoader}, TEE {tcb.Tee}, SNP {tcb.Snp}, microcode {tcb.Microcode}, FMC {tcb.Fmc}";
}
