using System.Formats.Asn1;
using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;

namespace VmmService.Server.Verification;

/// <summary>
/// What a certificate (RFC 5280, 4.1) and a revocation list (5.1) have in common: the signed part, the algorithm, the signature. Bytes from outside: whatever they are, the answer is
/// a reading or null, never an exception.
/// </summary>
internal sealed class SignedDer
{
    private const string RsaSsaPss = "1.2.840.113549.1.1.10";
    private const string EcdsaWithSha256 = "1.2.840.10045.4.3.2";

    private readonly ReadOnlyMemory<byte> _signed;
    private readonly byte[] _signature;
    private readonly string _algorithm;

    private SignedDer(ReadOnlyMemory<byte> signed, string algorithm, byte[] signature)
    {
        _signed = signed;
        _algorithm = algorithm;
        _signature = signature;
    }

    /// <summary>Null where the bytes are not of this form, from the first to the last.</summary>
    public static SignedDer? Read(ReadOnlyMemory<byte> der)
    {
        try
        {
            var reader = new AsnReader(der, AsnEncodingRules.DER);
            AsnReader outer = reader.ReadSequence();
            reader.ThrowIfNotEmpty();
            ReadOnlyMemory<byte> signed = outer.ReadEncodedValue();
            ReadOnlyMemory<byte> algorithm = outer.ReadEncodedValue();
            byte[] signature = outer.ReadBitString(out int unused);
            outer.ThrowIfNotEmpty();
            // What stands outside of the signed part must be what the issuer signed (RFC 5280, 4.1.1.2 and 5.1.1.2).
            return unused == 0 && SignedAlgorithm(signed).Span.SequenceEqual(algorithm.Span)
                ? new SignedDer(signed, new AsnReader(algorithm, AsnEncodingRules.DER).ReadSequence().ReadObjectIdentifier(), signature)
                : null;
        }
        catch (AsnContentException)
        {
            return null;
        }
    }

    // Behind version (tagged in a certificate) and serial number (in a certificate).
    private static ReadOnlyMemory<byte> SignedAlgorithm(ReadOnlyMemory<byte> signed)
    {
        AsnReader fields = new AsnReader(signed, AsnEncodingRules.DER).ReadSequence();
        while (fields.PeekTag() is var tag && (tag.TagClass == TagClass.ContextSpecific || tag == Asn1Tag.Integer))
        {
            fields.ReadEncodedValue();
        }
        return fields.ReadEncodedValue();
    }

    /// <summary>A certificate; null for what is none.</summary>
    public static X509Certificate2? Certificate(ReadOnlyMemory<byte> der)
    {
        try
        {
            // The loader passes over what stands behind a certificate; its bytes are compared and signed, so that all must be it.
            if (Read(der) is null)
            {
                return null;
            }
            X509Certificate2 certificate = X509CertificateLoader.LoadCertificate(der.Span);
            // Parts are decoded when they are first looked at: here, so that nobody else needs to expect what they throw.
            _ = (certificate.Subject, certificate.Issuer, certificate.NotBefore, certificate.NotAfter, certificate.SerialNumber);
            foreach (X509Extension extension in certificate.Extensions)
            {
                _ = extension switch
                {
                    X509BasicConstraintsExtension constraints => (object)constraints.CertificateAuthority,
                    X509KeyUsageExtension usage => usage.KeyUsages,
                    _ => extension.RawData,
                };
            }
            return certificate;
        }
        catch (CryptographicException)
        {
            return null;
        }
    }

    /// <summary>A certificate's RSA key; null where it has another, or one that cannot be.</summary>
    public static RSA? Rsa(X509Certificate2 certificate) => Key(certificate, each => each.GetRSAPublicKey());

    /// <summary>A certificate's key on a named curve; null where it has another, or one that cannot be.</summary>
    public static ECDsa? Ecdsa(X509Certificate2 certificate) => Key(certificate, each => each.GetECDsaPublicKey());

    /// <summary>What speaks against the issuer having signed it; null where it did. Known are what the two vendors use: RSASSA-PSS with SHA-384, ECDSA P-256 with SHA-256.</summary>
    public string? SignatureProblem(X509Certificate2 issuer)
    {
        try
        {
            return _algorithm switch
            {
                RsaSsaPss => Judge(Rsa(issuer) is { } rsa && rsa.VerifyData(_signed.Span, _signature, HashAlgorithmName.SHA384, RSASignaturePadding.Pss)),
                EcdsaWithSha256 => Judge(
                    Ecdsa(issuer) is { } ecdsa && ecdsa.VerifyData(_signed.Span, _signature, HashAlgorithmName.SHA256, DSASignatureFormat.Rfc3279DerSequence)),
                _ => $"it is signed with the algorithm {_algorithm}",
            };
        }
        catch (CryptographicException problem)
        {
            return $"the key of {Name(issuer)} cannot verify it: {problem.Message}";
        }

        string? Judge(bool holds) => holds ? null : $"the key of {Name(issuer)} did not sign it as it stands";
    }

    /// <summary>Common name of a certificate's subject; another part of it where it has none.</summary>
    public static string Name(X509Certificate2 certificate) => certificate.GetNameInfo(X509NameType.SimpleName, forIssuer: false);

    /// <summary>What speaks against a certificate holding at a time; null where nothing does.</summary>
    public static string? DateProblem(X509Certificate2 certificate, DateTimeOffset at)
    {
        DateTime from = certificate.NotBefore.ToUniversalTime(), until = certificate.NotAfter.ToUniversalTime();
        return from <= at.UtcDateTime && at.UtcDateTime <= until ? null : $"{Name(certificate)} holds from {from:u} until {until:u}, and it is {at:u}";
    }

    /// <summary>A certificate says of itself that it is of a simulated platform.</summary>
    public static bool SaysSimulated(X509Certificate2? certificate) => certificate?.Subject.Contains("simulated", StringComparison.OrdinalIgnoreCase) ?? false;

    private static T? Key<T>(X509Certificate2 certificate, Func<X509Certificate2, T?> get)
        where T : AsymmetricAlgorithm
    {
        try
        {
            return get(certificate);
        }
        catch (Exception wrong) when (wrong is CryptographicException or PlatformNotSupportedException or NotSupportedException or ArgumentException)
        {
            // No such curve, a point beside it, a modulus of no use.
            return null;
        }
    }
}
