using System.Buffers.Binary;

namespace SimMachine.Measurement;

/// <summary>One measured step of a launch: what was measured, and the digest after it.</summary>
/// <param name="Index">From 0.</param>
/// <param name="PageType">Firmware's page type.</param>
/// <param name="Gpa">Guest physical address, bytes.</param>
/// <param name="ContentHash">48 bytes.</param>
/// <param name="DigestAfter">48 bytes.</param>
public readonly record struct TranscriptRecord(
    long Index, SnpPageType PageType, ulong Gpa, ReadOnlyMemory<byte> ContentHash, ReadOnlyMemory<byte> DigestAfter);

/// <summary>
/// The measured steps of a launch in order, append-only: 112 bytes a step in chunks that never move, so reading goes on while steps are added.
/// </summary>
public sealed class MeasurementTranscript
{
    private const int HashSize = SnpLaunchDigest.Size;
    private const int RecordSize = 16 + (2 * HashSize);
    private const int ChunkRecords = 1024;

    private readonly List<byte[]> _chunks = [];

    public long Count { get; private set; }

    public void Append(SnpPageType type, ulong gpa, ReadOnlySpan<byte> contentHash, ReadOnlySpan<byte> digestAfter)
    {
        int inChunk = (int)(Count % ChunkRecords);
        if (inChunk == 0)
        {
            _chunks.Add(new byte[ChunkRecords * RecordSize]);
        }
        Span<byte> record = _chunks[^1].AsSpan(inChunk * RecordSize, RecordSize);
        BinaryPrimitives.WriteUInt64LittleEndian(record, (ulong)type);
        BinaryPrimitives.WriteUInt64LittleEndian(record[8..], gpa);
        contentHash.CopyTo(record[16..]);
        digestAfter.CopyTo(record[(16 + HashSize)..]);
        Count++;
    }

    /// <summary>At most <paramref name="count"/> records from <paramref name="start"/> on.</summary>
    public IEnumerable<TranscriptRecord> Read(long start, int count)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(start);
        for (long index = start; index < Count && index - start < count; index++)
        {
            ReadOnlyMemory<byte> record = _chunks[(int)(index / ChunkRecords)].AsMemory((int)(index % ChunkRecords) * RecordSize, RecordSize);
            yield return new TranscriptRecord(
                index,
                (SnpPageType)BinaryPrimitives.ReadUInt64LittleEndian(record.Span),
                BinaryPrimitives.ReadUInt64LittleEndian(record.Span[8..]),
                record.Slice(16, HashSize),
                record.Slice(16 + HashSize, HashSize));
        }
    }
}
