using System.Formats.Asn1;

namespace VmmService.Server.Verification.Intel;

/// <summary>What a PCK certificate says of its platform: Intel's SGX extension, of which collateral is a matter.</summary>
/// <param name="SgxComponents">Security versions of the 16 components.</param>
/// <param name="PceSvn">Security version of the provisioning certification enclave.</param>
/// <param name="PceId">2 bytes.</param>
/// <param name="Fmspc">Family, model, stepping, platform and SKU, 6 bytes.</param>
internal sealed record PckExtension(ReadOnlyMemory<byte> SgxComponents, ushort PceSvn, ReadOnlyMemory<byte> PceId, ReadOnlyMemory<byte> Fmspc)
{
    /// <summary>OID of the extension; its values are below it.</summary>
    public const string Oid = "1.2.840.113741.1.13.1";

    private const int Components = 16;

    /// <summary>Null where it has no such form, or a value that collateral is compared with is missing.</summary>
    public static PckExtension? Read(ReadOnlyMemory<byte> extension)
    {
        try
        {
            Dictionary<string, ReadOnlyMemory<byte>> values = new(StringComparer.Ordinal);
            var reader = new AsnReader(extension, AsnEncodingRules.DER);
            ReadItems(reader.ReadSequence(), values);
            reader.ThrowIfNotEmpty();

            byte[] components = new byte[Components];
            for (int i = 0; i < Components; i++)
            {
                components[i] = Integer(values, $"2.{i + 1}") is { } svn and <= byte.MaxValue ? (byte)svn : throw new AsnContentException();
            }
            ushort pceSvn = Integer(values, $"2.{Components + 1}") is { } number and <= ushort.MaxValue ? (ushort)number : throw new AsnContentException();
            return new PckExtension(components, pceSvn, Octets(values, "3", 2), Octets(values, "4", 6));
        }
        catch (AsnContentException)
        {
            return null;
        }
    }

    // SEQUENCE {OID, value}; the value of the TCB and of the configuration is a list of such items again.
    private static void ReadItems(AsnReader items, Dictionary<string, ReadOnlyMemory<byte>> values, bool inner = false)
    {
        while (items.HasData)
        {
            AsnReader item = items.ReadSequence();
            string oid = item.ReadObjectIdentifier();
            if (!oid.StartsWith(Oid + ".", StringComparison.Ordinal))
            {
                throw new AsnContentException();
            }
            if (!inner && item.PeekTag().HasSameClassAndValue(Asn1Tag.Sequence))
            {
                ReadItems(item.ReadSequence(), values, inner: true);
            }
            else if (!values.TryAdd(oid[(Oid.Length + 1)..], item.ReadEncodedValue()))
            {
                throw new AsnContentException();
            }
            item.ThrowIfNotEmpty();
        }
    }

    private static uint? Integer(Dictionary<string, ReadOnlyMemory<byte>> values, string name) =>
        values.TryGetValue(name, out ReadOnlyMemory<byte> value) && new AsnReader(value, AsnEncodingRules.DER).TryReadUInt32(out uint number) ? number : null;

    private static byte[] Octets(Dictionary<string, ReadOnlyMemory<byte>> values, string name, int size) =>
        values.TryGetValue(name, out ReadOnlyMemory<byte> value) && new AsnReader(value, AsnEncodingRules.DER).ReadOctetString() is var bytes && bytes.Length == size
            ? bytes
            : throw new AsnContentException();
}
