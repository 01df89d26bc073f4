using System.Buffers.Binary;

namespace SimMachine.Amd.Attestation;

/// <summary>
/// The certificates that a host gives its guests with an extended report: entries of GUID, offset and length, an entry of zeros, then the certificates (snp.md
/// 12.3; GHCB specification, SNP Extended Guest Request). GUIDs are in textual byte order.
/// </summary>
public static class CertificateTable
{
    public const int EntrySize = 24;

    public static readonly Guid Vcek = new("63da758d-e664-4564-adc5-f4b93be8accd");
    public static readonly Guid Vlek = new("a8074bc2-a25a-483e-aae6-39c045a0b8a1");

    /// <summary>Also of the ASVK.</summary>
    public static readonly Guid Ask = new("4ab7b379-bbac-4fe4-a02f-05aef327c782");
    public static readonly Guid Ark = new("c0b406a4-a803-4952-9743-3fb6014cd0ae");
    public static readonly Guid Crl = new("92f81bc3-5811-4d3d-97ff-d19f88dc67ea");

    private const int GuidSize = 16;
    private const int OffsetOffset = 0x10;
    private const int LengthOffset = 0x14;

    /// <summary>Builds a table; offsets count from its start.</summary>
    public static byte[] Build(IReadOnlyList<(Guid Id, ReadOnlyMemory<byte> Content)> entries)
    {
        int offset = (entries.Count + 1) * EntrySize;
        byte[] table = new byte[offset + entries.Sum(entry => entry.Content.Length)];
        for (int i = 0; i < entries.Count; i++)
        {
            (Guid id, ReadOnlyMemory<byte> content) = entries[i];
            Span<byte> entry = table.AsSpan(i * EntrySize, EntrySize);
            id.TryWriteBytes(entry, bigEndian: true, out _);
            BinaryPrimitives.WriteInt32LittleEndian(entry[OffsetOffset..], offset);
            BinaryPrimitives.WriteInt32LittleEndian(entry[LengthOffset..], content.Length);
            content.Span.CopyTo(table.AsSpan(offset));
            offset += content.Length;
        }
        return table;
    }

    /// <summary>Reads a table. Null where it has no end or an entry points outside of it.</summary>
    public static IReadOnlyList<(Guid Id, ReadOnlyMemory<byte> Content)>? Parse(ReadOnlyMemory<byte> table)
    {
        var entries = new List<(Guid, ReadOnlyMemory<byte>)>();
        for (int at = 0; at + EntrySize <= table.Length; at += EntrySize)
        {
            ReadOnlySpan<byte> entry = table.Span.Slice(at, EntrySize);
            if (entry.IndexOfAnyExcept((byte)0) < 0)
            {
                return entries;
            }
            uint offset = BinaryPrimitives.ReadUInt32LittleEndian(entry[OffsetOffset..]);
            uint length = BinaryPrimitives.ReadUInt32LittleEndian(entry[LengthOffset..]);
            if ((ulong)offset + length > (ulong)table.Length)
            {
                return null;
            }
            entries.Add((new Guid(entry[..GuidSize], bigEndian: true), table.Slice((int)offset, (int)length)));
        }
        return null;
    }
}
