using System.Buffers.Binary;
using System.Formats.Asn1;
using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;

namespace VmmService.IntegrationTests.Attestation;

/// <summary>Why evidence is refused.</summary>
public enum Refusal
{
    UntrustedRoot,
    IntermediateSignature,
    EndorsementSignature,
    CertificateForm,
    CertificateExpired,
    CrlSignature,
    Revoked,
    ChipId,
    TcbOfCertificate,
    ReportForm,
    ReportSignature,
    Measurement,
    Debug,
    TcbTooOld,
    Vmpl,
    ReportData,
}

/// <summary>What a verifier demands.</summary>
/// <param name="MinTcb">Boot loader, TEE, SNP, microcode, FMC.</param>
/// <param name="Now">When it verifies.</param>
public sealed record Demands(byte[] Ark, byte[] ReportData, byte[] Measurement, uint Vmpl, byte[] MinTcb, bool AllowDebug, DateTime Now);

/// <summary>
/// A verifier of SNP evidence, written from the published layouts with the platform's cryptography and nothing of the simulator. It makes every check and
/// lists every reason, so that a test can ask for exactly one.
/// </summary>
public static class SnpVerifier
{
    private const int ReportSize = 0x4A0;
    private const int SignedSize = 0x2A0;
    private const string Arc = "1.3.6.1.4.1.3704.1";

    public static IReadOnlyList<Refusal> Verify(byte[] report, byte[] endorsement, byte[] intermediate, byte[] ark, byte[] crl, Demands demands)
    {
        var refusals = new List<Refusal>();
        using X509Certificate2 root = X509CertificateLoader.LoadCertificate(ark);
        using X509Certificate2 middle = X509CertificateLoader.LoadCertificate(intermediate);
        using X509Certificate2 leaf = X509CertificateLoader.LoadCertificate(endorsement);
        Require(Refusal.UntrustedRoot, ark.AsSpan().SequenceEqual(demands.Ark) && IsSignedBy(ark, root));
        Require(Refusal.IntermediateSignature, IsSignedBy(intermediate, root));
        Require(Refusal.EndorsementSignature, IsSignedBy(endorsement, middle));
        Require(Refusal.CertificateForm, HasForm(root, middle, leaf));
        Require(Refusal.CertificateExpired, new[] { root, middle, leaf }.All(each => each.NotBefore.ToUniversalTime() <= demands.Now && demands.Now < each.NotAfter.ToUniversalTime()));
        Require(Refusal.CrlSignature, IsSignedBy(crl, root));
        Require(Refusal.Revoked, !RevokedSerials(crl).Contains(middle.SerialNumber));

        Require(Refusal.ReportForm, HasForm(report, leaf));
        Require(Refusal.ReportSignature, IsReportSigned(report, leaf));
        bool turin = IsTurin(report);
        byte[] reported = Tcb(report.AsSpan(0x180), turin);
        Require(Refusal.TcbOfCertificate, TcbOf(leaf, turin).SequenceEqual(reported));
        Require(Refusal.ChipId, Extension(leaf, "4") is not { } hwid || ChipIdMatches(report.AsSpan(0x1A0, 64), hwid));

        Require(Refusal.Measurement, report.AsSpan(0x90, 48).SequenceEqual(demands.Measurement));
        Require(Refusal.ReportData, report.AsSpan(0x50, 64).SequenceEqual(demands.ReportData));
        Require(Refusal.Vmpl, BinaryPrimitives.ReadUInt32LittleEndian(report.AsSpan(0x30)) == demands.Vmpl);
        Require(Refusal.Debug, demands.AllowDebug || (BinaryPrimitives.ReadUInt64LittleEndian(report.AsSpan(8)) & (1 << 19)) == 0);
        Require(Refusal.TcbTooOld, reported.Zip(demands.MinTcb).All(pair => pair.First >= pair.Second));
        return refusals;

        void Require(Refusal refusal, bool holds)
        {
            if (!holds)
                refusals.Add(refusal);
        }
    }

    /// <summary>ECDSA P-384 with SHA-384 over the first 0x2A0 bytes; R and S are little-endian in 72 bytes.</summary>
    public static bool IsReportSigned(ReadOnlySpan<byte> report, X509Certificate2 leaf)
    {
        using ECDsa key = leaf.GetECDsaPublicKey()!;
        byte[] r = report.Slice(SignedSize, 48).ToArray(), s = report.Slice(SignedSize + 72, 48).ToArray();
        Array.Reverse(r);
        Array.Reverse(s);
        return key.KeySize == 384 && key.VerifyData(report[..SignedSize], (byte[])[.. r, .. s], HashAlgorithmName.SHA384);
    }

    /// <summary>A certificate or a CRL is signed by an RSA key: RSASSA-PSS with SHA-384 and a salt of 48 bytes.</summary>
    public static bool IsSignedBy(byte[] der, X509Certificate2 issuer)
    {
        var outer = new AsnReader(der, AsnEncodingRules.DER);
        AsnReader signed = outer.ReadSequence();
        ReadOnlyMemory<byte> content = signed.ReadEncodedValue();
        // The algorithm stands once more outside of what is signed.
        if (content.Span.IndexOf(signed.ReadEncodedValue().Span) < 0)
            return false;
        byte[] signature = signed.ReadBitString(out _);
        using RSA key = issuer.GetRSAPublicKey()!;
        return key.KeySize == 4096 && key.VerifyData(content.Span, signature, HashAlgorithmName.SHA384, RSASignaturePadding.Pss);
    }

    /// <summary>The value of an AMD extension; null where the certificate has none.</summary>
    public static byte[]? Extension(X509Certificate2 certificate, string leaf) =>
        certificate.Extensions.SingleOrDefault(each => each.Oid!.Value == $"{Arc}.{leaf}")?.RawData;

    private static bool HasForm(X509Certificate2 root, X509Certificate2 middle, X509Certificate2 leaf)
    {
        string vlek = CommonName(leaf) == "SEV-VLEK" ? "VLEK-" : "";
        string product = CommonName(root)[4..];
        bool names = CommonName(root) == $"ARK-{product}" && CommonName(middle) == $"SEV-{vlek}{product}" && CommonName(leaf) is "SEV-VCEK" or "SEV-VLEK";
        bool chained = middle.IssuerName.RawData.AsSpan().SequenceEqual(root.SubjectName.RawData) && leaf.IssuerName.RawData.AsSpan().SequenceEqual(middle.SubjectName.RawData);
        bool authorities = root.Extensions.OfType<X509BasicConstraintsExtension>().Single() is { CertificateAuthority: true, Critical: true }
            && middle.Extensions.OfType<X509BasicConstraintsExtension>().Single() is { CertificateAuthority: true, Critical: true, PathLengthConstraint: 0 };
        bool onlyAmds = leaf.Extensions.All(each => each.Oid!.Value!.StartsWith(Arc, StringComparison.Ordinal));
        return names && chained && authorities && onlyAmds && (Extension(leaf, "4") is null) == (vlek.Length > 0) && (Extension(leaf, "5") is null) == (vlek.Length == 0);
    }

    private static string CommonName(X509Certificate2 certificate) => certificate.SubjectName.EnumerateRelativeDistinguishedNames()
        .Single(each => each.GetSingleElementType().Value == "2.5.4.3").GetSingleElementValue()!;

    // Fields that a version does not have are zeros, as are all reserved ones.
    private static bool HasForm(byte[] report, X509Certificate2 leaf)
    {
        uint version = BinaryPrimitives.ReadUInt32LittleEndian(report);
        uint keyInfo = BinaryPrimitives.ReadUInt32LittleEndian(report.AsSpan(0x48));
        uint signingKey = (keyInfo >> 2) & 7;
        return report.Length == ReportSize
            && version is 2 or 3 or 5
            && BinaryPrimitives.ReadUInt32LittleEndian(report.AsSpan(0x34)) == 1
            && keyInfo >> 5 == 0
            && signingKey == (CommonName(leaf) == "SEV-VLEK" ? 1u : 0u)
            && Zero(0x4C, 0x50) && Zero(version == 2 ? 0x188 : 0x18B, 0x1A0) && Zero(0x1EB, 0x1EC) && Zero(0x1EF, 0x1F0)
            && Zero(version < 5 ? 0x1F8 : 0x208, SignedSize)
            && Zero(SignedSize + 48, SignedSize + 72) && Zero(SignedSize + 120, SignedSize + 144) && Zero(SignedSize + 144, ReportSize);

        bool Zero(int start, int end) => report.AsSpan(start..end).IndexOfAnyExcept((byte)0) < 0;
    }

    // Family and model say it from version 3 on; before, a chip id with zeros behind the first 8 bytes does.
    private static bool IsTurin(ReadOnlySpan<byte> report) => report[0] == 2
        ? report.Slice(0x1A0, 8).IndexOfAnyExcept((byte)0) >= 0 && report.Slice(0x1A8, 56).IndexOfAnyExcept((byte)0) < 0
        : report[0x188] == 0x1A;

    private static byte[] Tcb(ReadOnlySpan<byte> encoded, bool turin) => turin
        ? [encoded[1], encoded[2], encoded[3], encoded[7], encoded[0]]
        : [encoded[0], encoded[1], encoded[6], encoded[7], 0];

    private static byte[] TcbOf(X509Certificate2 leaf, bool turin)
    {
        return [Part("3.1"), Part("3.2"), Part("3.3"), Part("3.8"), turin ? Part("3.9") : (byte)0];

        byte Part(string oid) => (byte)AsnDecoder.ReadInteger(Extension(leaf, oid), AsnEncodingRules.DER, out _);
    }

    private static bool ChipIdMatches(ReadOnlySpan<byte> chipId, byte[] hwid) =>
        chipId.IndexOfAnyExcept((byte)0) < 0 || (chipId.StartsWith(hwid) && chipId[hwid.Length..].IndexOfAnyExcept((byte)0) < 0);

    private static List<string> RevokedSerials(byte[] crl)
    {
        AsnReader list = new AsnReader(crl, AsnEncodingRules.DER).ReadSequence().ReadSequence();
        list.ReadInteger();
        list.ReadSequence();
        list.ReadSequence();
        list.ReadUtcTime();
        list.ReadUtcTime();
        var serials = new List<string>();
        if (list.HasData && list.PeekTag() == Asn1Tag.Sequence)
        {
            for (AsnReader entries = list.ReadSequence(); entries.HasData;)
                serials.Add(Convert.ToHexString(entries.ReadSequence().ReadIntegerBytes().Span));
        }
        return serials;
    }
}
