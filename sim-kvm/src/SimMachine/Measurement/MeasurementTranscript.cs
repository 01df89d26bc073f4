using System.Buffers.Binary;
using SimMachine.Addressing;

namespace SimMachine.Measurement;

/// <summary>One measured step of a launch: what was measured, and the digest after it.</summary>
/// <param name="Index">From 0.</param>
/// <param name="PageType">Firmware's page type.</param>
/// <param name="Gpa">Guest physical address, bytes.</param>
/// <param name="ContentHash">48 bytes.</param>
/// <param name="DigestAfter">48 bytes.</param>
public readonly record struct TranscriptRecord(
    long Index, SnpPageType PageType, ulong Gpa, ReadOnlyMemory<byte> ContentHash, ReadOnlyMemory<byte> DigestAfter);

/// <summary>Steps that followed each other in pages of one type at ascending addresses.</summary>
/// <param name="Index">Of the first step.</param>
/// <param name="PageType">Firmware's page type.</param>
/// <param name="Gpa">Of the first page, bytes.</param>
/// <param name="Pages">Steps, a page of 4096 bytes each.</param>
/// <param name="DigestAfter">After the last step, 48 bytes.</param>
public readonly record struct TranscriptRun(long Index, SnpPageType PageType, ulong Gpa, long Pages, ReadOnlyMemory<byte> DigestAfter)
{
    /// <summary>The last byte of the last page.</summary>
    public ulong LastGpa => Gpa + ((ulong)Pages * PageSize.Bytes) - 1;

    /// <summary>For people: <c>0xffe00000..0xffffffff NORMAL 512 pages</c>.</summary>
    public override string ToString() => $"0x{Gpa:x}..0x{LastGpa:x} {PageType} {Pages} {(Pages == 1 ? "page" : "pages")}";
}

/// <summary>
/// The measured steps of a launch in order: what <see cref="SnpLaunchDigest"/> went through, so that a digest that is not the expected one can be
/// traced to the first page that differs. Append-only: what was read once stays as it was read, and reading goes on while steps are added. Not thread
/// safe: a host runs one call at a time.
/// </summary>
/// <remarks>112 bytes a step, in chunks below the size of large objects. Only the first chunk grows, so that a guest of few pages takes
/// little.</remarks>
public sealed class MeasurementTranscript
{
    private const int HashSize = SnpLaunchDigest.Size;

    // A record: page type u64, GPA u64, content hash, digest after.
    private const int GpaOffset = sizeof(ulong);
    private const int ContentHashOffset = GpaOffset + sizeof(ulong);
    private const int DigestAfterOffset = ContentHashOffset + HashSize;
    private const int RecordSize = DigestAfterOffset + HashSize;

    private const int FirstChunkRecords = 16;
    private const int ChunkRecords = 512;

    private readonly List<byte[]> _chunks = [];

    /// <summary>Steps so far.</summary>
    public long Count { get; private set; }

    /// <summary>One step more.</summary>
    /// <param name="gpa">Guest physical address, bytes.</param>
    /// <param name="contentHash">48 bytes.</param>
    /// <param name="digestAfter">48 bytes.</param>
    public void Append(SnpPageType type, ulong gpa, ReadOnlySpan<byte> contentHash, ReadOnlySpan<byte> digestAfter)
    {
        ArgumentOutOfRangeException.ThrowIfNotEqual(contentHash.Length, HashSize);
        ArgumentOutOfRangeException.ThrowIfNotEqual(digestAfter.Length, HashSize);
        MakeRoom();
        Span<byte> record = Slot(Count).Span;
        BinaryPrimitives.WriteUInt64LittleEndian(record, (ulong)type);
        BinaryPrimitives.WriteUInt64LittleEndian(record[GpaOffset..], gpa);
        contentHash.CopyTo(record[ContentHashOffset..]);
        digestAfter.CopyTo(record[DigestAfterOffset..]);
        Count++;
    }

    /// <summary>At most <paramref name="count"/> of the records that there are now, from <paramref name="start"/> on; none if start is past the
    /// end.</summary>
    /// <exception cref="ArgumentOutOfRangeException">A negative start or count.</exception>
    public IEnumerable<TranscriptRecord> Read(long start, long count)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(start);
        ArgumentOutOfRangeException.ThrowIfNegative(count);
        return ReadUpTo(start, start + Math.Min(count, Math.Max(Count - start, 0)));
    }

    /// <summary>The records that there are now, put together where page follows page. Records of one address, as KVM's VMSAs are, stay
    /// apart.</summary>
    public IEnumerable<TranscriptRun> Runs() => Merge(Read(0, Count));

    private IEnumerable<TranscriptRecord> ReadUpTo(long start, long end)
    {
        for (long index = start; index < end; index++)
        {
            yield return At(index);
        }
    }

    private static IEnumerable<TranscriptRun> Merge(IEnumerable<TranscriptRecord> records)
    {
        TranscriptRun run = default;
        foreach (TranscriptRecord record in records)
        {
            bool follows = run.Pages > 0 && record.PageType == run.PageType && run.LastGpa != ulong.MaxValue && record.Gpa == run.LastGpa + 1;
            if (follows)
            {
                run = run with { Pages = run.Pages + 1, DigestAfter = record.DigestAfter };
                continue;
            }
            if (run.Pages > 0)
            {
                yield return run;
            }
            run = new TranscriptRun(record.Index, record.PageType, record.Gpa, 1, record.DigestAfter);
        }
        if (run.Pages > 0)
        {
            yield return run;
        }
    }

    private TranscriptRecord At(long index)
    {
        ReadOnlyMemory<byte> record = Slot(index);
        return new TranscriptRecord(
            index,
            (SnpPageType)BinaryPrimitives.ReadUInt64LittleEndian(record.Span),
            BinaryPrimitives.ReadUInt64LittleEndian(record.Span[GpaOffset..]),
            record.Slice(ContentHashOffset, HashSize),
            record.Slice(DigestAfterOffset, HashSize));
    }

    private Memory<byte> Slot(long index) => _chunks[(int)(index / ChunkRecords)].AsMemory((int)(index % ChunkRecords) * RecordSize, RecordSize);

    private void MakeRoom()
    {
        int inChunk = (int)(Count % ChunkRecords);
        if (Count >= ChunkRecords)
        {
            if (inChunk == 0)
            {
                _chunks.Add(new byte[ChunkRecords * RecordSize]);
            }
        }
        else if (_chunks.Count == 0)
        {
            _chunks.Add(new byte[FirstChunkRecords * RecordSize]);
        }
        else if (inChunk * RecordSize == _chunks[0].Length)
        {
            // Records already handed out keep the array that this one replaces.
            byte[] larger = new byte[_chunks[0].Length * 2];
            _chunks[0].CopyTo(larger, 0);
            _chunks[0] = larger;
        }
    }
}
