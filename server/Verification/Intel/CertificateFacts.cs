using System.Formats.Asn1;
using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;

namespace VmmService.Server.Verification.Intel;

/// <summary>What a certificate of P-256 keys says (RFC 5280, 4.1), read as a whole: whatever the bytes are, the answer is a reading or null, never an exception, now or later.</summary>
/// <param name="Certificate">As the platform reads it.</param>
/// <param name="Signed">For its signature.</param>
/// <param name="Version">1 to 3.</param>
/// <param name="Algorithm">OID of the algorithm that it is signed with.</param>
/// <param name="Subject">The name as a text.</param>
/// <param name="CommonName">Of the subject; empty where it has none, or several.</param>
/// <param name="PublicKey">x and y, 64 bytes; null for a key of another kind.</param>
/// <param name="Extensions">Values by OID.</param>
internal sealed record CertificateFacts(
    X509Certificate2 Certificate,
    SignedDer Signed,
    int Version,
    string Algorithm,
    string Issuer,
    string Subject,
    string CommonName,
    DateTimeOffset NotBefore,
    DateTimeOffset NotAfter,
    ReadOnlyMemory<byte>? PublicKey,
    IReadOnlyDictionary<string, ReadOnlyMemory<byte>> Extensions)
{
    public const string EcdsaWithSha256 = "1.2.840.10045.4.3.2";

    private const string CommonNameOid = "2.5.4.3";
    private const string BasicConstraintsOid = "2.5.29.19";
    private const string KeyUsageOid = "2.5.29.15";
    private const string EcPublicKey = "1.2.840.10045.2.1";
    private const string P256 = "1.2.840.10045.3.1.7";

    /// <summary>Its basic constraints and its key usage let it sign certificates.</summary>
    public bool IsAuthority { get; private init; }

    public static CertificateFacts? Read(ReadOnlyMemory<byte> der)
    {
        if (SignedDer.Certificate(der) is not { } certificate || SignedDer.Read(der) is not { } signed)
        {
            return null;
        }
        try
        {
            AsnReader fields = new AsnReader(der, AsnEncodingRules.DER).ReadSequence().ReadSequence();
            int version = ReadVersion(fields);
            fields.ReadIntegerBytes();
            string algorithm = fields.ReadSequence().ReadObjectIdentifier();
            string issuer = NameOf(fields.ReadEncodedValue());
            AsnReader validity = fields.ReadSequence();
            (DateTimeOffset notBefore, DateTimeOffset notAfter) = (ReadTime(validity), ReadTime(validity));
            ReadOnlyMemory<byte> subject = fields.ReadEncodedValue();
            ReadOnlyMemory<byte>? key = ReadKey(fields.ReadSequence());
            Dictionary<string, ReadOnlyMemory<byte>> extensions = ReadExtensions(fields);
            return new CertificateFacts(certificate, signed, version, algorithm, issuer, NameOf(subject), CommonNameOf(subject), notBefore, notAfter, key, extensions)
            {
                IsAuthority = MaySignCertificates(extensions),
            };
        }
        catch (Exception problem) when (problem is AsnContentException or CryptographicException)
        {
            return null;
        }
    }

    /// <summary>A name as a text: two that mean the same may be encoded as strings of different types.</summary>
    /// <exception cref="CryptographicException">It is none.</exception>
    public static string NameOf(ReadOnlyMemory<byte> name) => new X500DistinguishedName(name.Span).Name;

    /// <summary>The same; null for what is no name.</summary>
    public static string? TryNameOf(ReadOnlyMemory<byte> name)
    {
        try
        {
            return NameOf(name);
        }
        catch (CryptographicException)
        {
            return null;
        }
    }

    /// <summary>What speaks against relying on it at a time; null where nothing does.</summary>
    public string? DateProblem(DateTimeOffset now) =>
        now < NotBefore ? $"{CommonName} begins on {NotBefore:u}, after {now:u}" : now > NotAfter ? $"{CommonName} ended on {NotAfter:u}, before {now:u}" : null;

    private static int ReadVersion(AsnReader fields)
    {
        var tag = new Asn1Tag(TagClass.ContextSpecific, 0);
        return fields.PeekTag().HasSameClassAndValue(tag) && fields.ReadSequence(tag).TryReadInt32(out int version) ? version + 1 : 1;
    }

    private static DateTimeOffset ReadTime(AsnReader reader) => reader.PeekTag().HasSameClassAndValue(Asn1Tag.UtcTime) ? reader.ReadUtcTime() : reader.ReadGeneralizedTime();

    private static ReadOnlyMemory<byte>? ReadKey(AsnReader info)
    {
        AsnReader algorithm = info.ReadSequence();
        bool isNamed = algorithm.ReadObjectIdentifier() == EcPublicKey && algorithm.HasData && algorithm.PeekTag().HasSameClassAndValue(Asn1Tag.ObjectIdentifier);
        if (!isNamed || algorithm.ReadObjectIdentifier() != P256)
        {
            return null;
        }
        byte[] point = info.ReadBitString(out _);
        const byte uncompressed = 4;
        return point.Length == 65 && point[0] == uncompressed ? point.AsMemory(1) : default(ReadOnlyMemory<byte>?);
    }

    // Behind the two unique ids, which nobody uses. An extension that is there twice is no extension (RFC 5280, 4.2).
    private static Dictionary<string, ReadOnlyMemory<byte>> ReadExtensions(AsnReader fields)
    {
        Dictionary<string, ReadOnlyMemory<byte>> extensions = new(StringComparer.Ordinal);
        var tag = new Asn1Tag(TagClass.ContextSpecific, 3);
        while (fields.HasData && !fields.PeekTag().HasSameClassAndValue(tag))
        {
            fields.ReadEncodedValue();
        }
        if (!fields.HasData)
        {
            return extensions;
        }
        for (AsnReader each = fields.ReadSequence(tag).ReadSequence(); each.HasData;)
        {
            AsnReader extension = each.ReadSequence();
            string oid = extension.ReadObjectIdentifier();
            if (extension.PeekTag().HasSameClassAndValue(Asn1Tag.Boolean))
            {
                extension.ReadBoolean();
            }
            if (!extensions.TryAdd(oid, extension.ReadOctetString()))
            {
                throw new AsnContentException($"extension {oid} is there twice");
            }
        }
        return extensions;
    }

    private static bool MaySignCertificates(Dictionary<string, ReadOnlyMemory<byte>> extensions)
    {
        if (!extensions.TryGetValue(BasicConstraintsOid, out ReadOnlyMemory<byte> constraints) || !extensions.TryGetValue(KeyUsageOid, out ReadOnlyMemory<byte> usage))
        {
            return false;
        }
        AsnReader fields = new AsnReader(constraints, AsnEncodingRules.DER).ReadSequence();
        bool authority = fields.HasData && fields.PeekTag().HasSameClassAndValue(Asn1Tag.Boolean) && fields.ReadBoolean();
        byte[] bits = new AsnReader(usage, AsnEncodingRules.DER).ReadBitString(out _);
        const byte keyCertSign = 0x80 >> 5;
        return authority && bits.Length > 0 && (bits[0] & keyCertSign) != 0;
    }

    private static string CommonNameOf(ReadOnlyMemory<byte> subject)
    {
        string?[] names =
        [
            .. new X500DistinguishedName(subject.Span).EnumerateRelativeDistinguishedNames()
                .Where(each => !each.HasMultipleElements && each.GetSingleElementType().Value == CommonNameOid).Select(each => each.GetSingleElementValue()),
        ];
        return names is [{ } name] ? name : "";
    }
}
