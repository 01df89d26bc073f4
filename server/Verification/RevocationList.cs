using System.Formats.Asn1;
using System.Security.Cryptography.X509Certificates;

namespace VmmService.Server.Verification;

/// <summary>A certificate revocation list (RFC 5280, 5.1): whom it is of, when it holds, which serial numbers it lists.</summary>
/// <param name="Signed">For its signature.</param>
/// <param name="Issuer">Its issuer's name, as it is encoded.</param>
/// <param name="NextUpdate">Null where it holds for ever.</param>
/// <param name="Serials">Hexadecimal digits without zeros in front.</param>
internal sealed record RevocationList(SignedDer Signed, ReadOnlyMemory<byte> Issuer, DateTimeOffset ThisUpdate, DateTimeOffset? NextUpdate, IReadOnlySet<string> Serials)
{
    /// <summary>Whether it lists a certificate.</summary>
    public bool Lists(X509Certificate2 certificate) => Serials.Contains(Digits(certificate.SerialNumberBytes.Span));

    /// <summary>Null for what is no list.</summary>
    public static RevocationList? Read(ReadOnlyMemory<byte> der)
    {
        if (SignedDer.Read(der) is not { } signed)
        {
            return null;
        }
        try
        {
            AsnReader list = new AsnReader(der, AsnEncodingRules.DER).ReadSequence().ReadSequence();
            if (list.PeekTag() == Asn1Tag.Integer)
            {
                list.ReadInteger();
            }
            list.ReadSequence();
            ReadOnlyMemory<byte> issuer = list.ReadEncodedValue();
            DateTimeOffset thisUpdate = Time(list);
            DateTimeOffset? nextUpdate = list.HasData && (list.PeekTag() == Asn1Tag.UtcTime || list.PeekTag() == Asn1Tag.GeneralizedTime) ? Time(list) : null;
            var serials = new HashSet<string>(StringComparer.Ordinal);
            if (list.HasData && list.PeekTag() == Asn1Tag.Sequence)
            {
                for (AsnReader entries = list.ReadSequence(); entries.HasData;)
                {
                    serials.Add(Digits(entries.ReadSequence().ReadIntegerBytes().Span));
                }
            }
            return new RevocationList(signed, issuer, thisUpdate, nextUpdate, serials) { CriticalExtension = ReadCriticalExtension(list) };
        }
        catch (AsnContentException)
        {
            return null;
        }
    }

    /// <summary>What keeps it from being the whole list: an extension that must be understood, as those of partial lists and of lists of changes; null where it has none.</summary>
    public string? FormProblem => CriticalExtension is null ? null : $"it has the critical extension {CriticalExtension}, so that it is not the issuer's whole list";

    private string? CriticalExtension { get; init; }

    /// <summary>What speaks against relying on it at a time; null where nothing does.</summary>
    public string? DateProblem(DateTimeOffset now) =>
        now < ThisUpdate ? $"it is from {ThisUpdate:u}, after {now:u}" : NextUpdate is { } next && now >= next ? $"it was to be replaced by {next:u}, before {now:u}" : null;

    // OID of the first that is critical; null without one.
    private static string? ReadCriticalExtension(AsnReader list)
    {
        var tag = new Asn1Tag(TagClass.ContextSpecific, 0, isConstructed: true);
        if (!list.HasData || list.PeekTag() != tag)
        {
            return null;
        }
        for (AsnReader extensions = list.ReadSequence(tag).ReadSequence(); extensions.HasData;)
        {
            AsnReader extension = extensions.ReadSequence();
            string oid = extension.ReadObjectIdentifier();
            if (extension.PeekTag() == Asn1Tag.Boolean && extension.ReadBoolean())
            {
                return oid;
            }
        }
        return null;
    }

    private static string Digits(ReadOnlySpan<byte> serial) => Convert.ToHexString(serial).TrimStart('0');

    private static DateTimeOffset Time(AsnReader reader) => reader.PeekTag() == Asn1Tag.UtcTime ? reader.ReadUtcTime() : reader.ReadGeneralizedTime();
}
