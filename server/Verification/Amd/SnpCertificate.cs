using System.Formats.Asn1;
using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;
using SimMachine.Amd;
using SimMachine.Amd.Attestation;

namespace VmmService.Server.Verification.Amd;

/// <summary>
/// A certificate of AMD's key distribution: ARK, ASK or ASVK, VCEK or VLEK. What its subject and extensions say, and whether it has the form of what it says that it is
/// (snp.md 12.1, 12.2; AMD publication 57230). The bytes are from outside.
/// </summary>
internal sealed class SnpCertificate
{
    private const string Extensions = "1.3.6.1.4.1.3704.1";
    private const string CommonNameOid = "2.5.4.3";

    // The attributes before the common name, in their order: unit, country, locality, state, organization.
    private static readonly (string Oid, string Value)[] s_names =
    [
        ("2.5.4.11", "Engineering"), ("2.5.4.6", "US"), ("2.5.4.7", "Santa Clara"), ("2.5.4.8", "CA"), ("2.5.4.10", "Advanced Micro Devices"),
    ];

    private readonly SignedDer _signed;

    private SnpCertificate(ReadOnlyMemory<byte> der, SignedDer signed, X509Certificate2 certificate)
    {
        Der = der;
        _signed = signed;
        Certificate = certificate;
        CommonName = NamesOf(certificate.SubjectName).LastOrDefault(name => name.Oid == CommonNameOid).Value ?? "";
    }

    public ReadOnlyMemory<byte> Der { get; }

    public X509Certificate2 Certificate { get; }

    /// <summary>CN of the subject; empty where it has none.</summary>
    public string CommonName { get; }

    public bool IsVlek => CommonName == "SEV-VLEK";

    /// <summary>Null for what is no certificate.</summary>
    public static SnpCertificate? Read(ReadOnlyMemory<byte> der) =>
        SignedDer.Read(der) is { } signed && SignedDer.Certificate(der) is { } certificate ? new SnpCertificate(der, signed, certificate) : null;

    /// <summary>What speaks against its being signed by another; null where nothing does.</summary>
    public string? SignatureProblem(SnpCertificate issuer)
    {
        if (!Certificate.IssuerName.RawData.AsSpan().SequenceEqual(issuer.Certificate.SubjectName.RawData))
        {
            return $"{CommonName} names another issuer than {issuer.CommonName}: {Certificate.Issuer}";
        }
        return _signed.SignatureProblem(issuer.Certificate);
    }

    /// <summary>What is not as in an ARK; null where all is.</summary>
    public string? RootProblem() =>
        NameProblem("ARK-<product>", ProductOf("ARK-") is not null) ?? AuthorityProblem(pathLength: null);

    /// <summary>What is not as in an ASK (ASVK) below a root; null where all is.</summary>
    public string? IntermediateProblem(SnpCertificate root, bool vlek)
    {
        string name = (vlek ? "SEV-VLEK-" : "SEV-") + root.ProductOf("ARK-");
        return NameProblem(name, CommonName == name) ?? AuthorityProblem(pathLength: 0);
    }

    /// <summary>What is not as in a VCEK or VLEK; null where all is.</summary>
    public string? EndorsementProblem()
    {
        if (NameProblem("SEV-VCEK or SEV-VLEK", CommonName is "SEV-VCEK" or "SEV-VLEK") is { } name)
        {
            return name;
        }
        using ECDsa? key = SignedDer.Ecdsa(Certificate);
        if (key is not { KeySize: 384 })
        {
            return $"the key of {CommonName} is not one of P-384";
        }
        if (Certificate.Extensions.FirstOrDefault(each => !each.Oid!.Value!.StartsWith(Extensions + ".", StringComparison.Ordinal)) is { } foreign)
        {
            return $"{CommonName} has the extension {foreign.Oid!.Value}; it has only those below {Extensions}";
        }
        if (ProductName is null || Tcb(hasFmc: false) is null)
        {
            return $"{CommonName} lacks extensions: product ({Extensions}.2) and the patch levels ({Extensions}.3.1, .3.2, .3.3, .3.8) are needed";
        }
        string needed = IsVlek ? "5" : "4", none = IsVlek ? "4" : "5";
        return Extension(needed) is null || Extension(none) is not null ? $"{CommonName} has extension {Extensions}.{needed} and not .{none}: a VCEK names a chip, a VLEK a provider" : null;
    }

    /// <summary>HWID, 64 bytes or 8; null in a VLEK.</summary>
    public byte[]? ChipId => Extension("4");

    /// <summary>Product of an endorsement certificate, "Milan-B0"; null where it says none.</summary>
    public string? ProductName => Extension("2") is { } value ? Parse(value, text => text.ReadCharacterString(UniversalTagNumber.IA5String)) : null;

    /// <summary>The product that its name begins with; null where that is none that is known.</summary>
    public EpycProduct? Product =>
        ProductName is { } name && Enum.GetValues<EpycProduct>().Where(each => name.StartsWith(each.ToString(), StringComparison.Ordinal)).ToArray() is [var product] ? product : null;

    /// <summary>The patch levels that an endorsement certificate is for; null where one lacks.</summary>
    /// <param name="hasFmc">The product has an FMC.</param>
    public TcbVersion? Tcb(bool hasFmc) =>
        Level("3.1") is { } bootLoader && Level("3.2") is { } tee && Level("3.3") is { } snp && Level("3.8") is { } microcode && (hasFmc ? Level("3.9") : 0) is { } fmc
            ? new TcbVersion(bootLoader, tee, snp, microcode, fmc)
            : null;

    private string? ProductOf(string prefix) => CommonName.StartsWith(prefix, StringComparison.Ordinal) && CommonName.Length > prefix.Length ? CommonName[prefix.Length..] : null;

    private byte? Level(string leaf) => Extension(leaf) is { } value ? Parse<byte?>(value, number => number.TryReadInt32(out int level) && level is >= 0 and <= byte.MaxValue ? (byte)level : null) : null;

    private byte[]? Extension(string leaf) => Certificate.Extensions.FirstOrDefault(each => each.Oid!.Value == $"{Extensions}.{leaf}")?.RawData;

    private string? NameProblem(string demanded, bool holds)
    {
        if (!holds)
        {
            return $"the subject's common name is \"{CommonName}\" and not {demanded}";
        }
        // Attributes of AMD's in their order; a simulated certificate has one more.
        (string Oid, string Value)[] names = [.. NamesOf(Certificate.SubjectName)];
        return names.Take(s_names.Length).SequenceEqual(s_names) ? null : $"the subject of {CommonName} is not one of AMD's: {Certificate.Subject}";
    }

    private string? AuthorityProblem(int? pathLength)
    {
        using RSA? key = SignedDer.Rsa(Certificate);
        if (key is not { KeySize: 4096 })
        {
            return $"the key of {CommonName} is not RSA of 4096 bits";
        }
        X509BasicConstraintsExtension? constraints = Certificate.Extensions.OfType<X509BasicConstraintsExtension>().FirstOrDefault();
        if (constraints is not { CertificateAuthority: true, Critical: true } || (pathLength is { } length && (!constraints.HasPathLengthConstraint || constraints.PathLengthConstraint != length)))
        {
            return $"{CommonName} may not issue: its basic constraints must be critical and say CA{(pathLength is { } limit ? $" with path length {limit}" : "")}";
        }
        X509KeyUsageFlags usage = Certificate.Extensions.OfType<X509KeyUsageExtension>().FirstOrDefault()?.KeyUsages ?? X509KeyUsageFlags.None;
        return usage.HasFlag(X509KeyUsageFlags.KeyCertSign) ? null : $"the key of {CommonName} may not sign certificates: its key usage is {usage}";
    }

    private static List<(string Oid, string Value)> NamesOf(X500DistinguishedName name)
    {
        List<(string, string)> names = [];
        try
        {
            foreach (X500RelativeDistinguishedName each in name.EnumerateRelativeDistinguishedNames(reversed: false))
            {
                if (!each.HasMultipleElements)
                {
                    names.Add((each.GetSingleElementType().Value ?? "", each.GetSingleElementValue() ?? ""));
                }
            }
        }
        catch (CryptographicException)
        {
            // A name that cannot be read to its end is that of nobody.
        }
        return names;
    }

    private static T? Parse<T>(ReadOnlyMemory<byte> value, Func<AsnReader, T> read)
    {
        try
        {
            var reader = new AsnReader(value, AsnEncodingRules.DER);
            T result = read(reader);
            reader.ThrowIfNotEmpty();
            return result;
        }
        catch (AsnContentException)
        {
            return default;
        }
    }
}
