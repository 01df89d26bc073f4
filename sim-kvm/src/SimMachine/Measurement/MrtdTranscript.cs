using System.Buffers.Binary;
using System.Security.Cryptography;
using SimMachine.Addressing;

namespace SimMachine.Measurement;

/// <summary>A SEAMCALL that MRTD measures.</summary>
public enum MrtdCall
{
    /// <summary>TDH.MEM.PAGE.ADD: a record with the address.</summary>
    PageAdd,

    /// <summary>TDH.MR.EXTEND: a record with the address of a chunk, and the chunk.</summary>
    MrExtend,
}

/// <summary>One measured call.</summary>
/// <param name="Index">From 0.</param>
/// <param name="Gpa">Of the page, or of the chunk of 256 bytes.</param>
/// <param name="ContentHash">SHA-256 of the chunk, 32 bytes; empty for a page that is added. It is for comparing two transcripts; MRTD has the chunk itself.</param>
public readonly record struct MrtdRecord(long Index, MrtdCall Call, ulong Gpa, ReadOnlyMemory<byte> ContentHash);

/// <summary>
/// MRTD in the making, and each call that went into it (TDX module: tdh_mem_page_add, tdh_mr_extend, tdh_mr_finalize). MRTD is the SHA-384 of the concatenated records: 128
/// bytes for each call, and the 256 bytes of a chunk behind the record of its extension. Append-only. Not thread safe: a host runs one call at a time.
/// </summary>
/// <remarks>Every record is a multiple of SHA-384's block, so it makes no difference that the module compresses block by block. A call takes 8 bytes here, an extension 40.</remarks>
public sealed class MrtdTranscript : IDisposable
{
    /// <summary>Bytes of an MRTD.</summary>
    public const int Size = SHA384.HashSizeInBytes;

    /// <summary>Bytes that one TDH.MR.EXTEND measures.</summary>
    public const int ChunkSize = 256;

    /// <summary>Bytes of a record, without a chunk.</summary>
    public const int RecordSize = 128;

    private const int GpaAt = 16;

    // Addresses of chunks have zeros in their low bits, which leaves room for the kind of call.
    private const ulong ExtendBit = 1;

    private readonly IncrementalHash _hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA384);
    private readonly List<ulong> _calls = [];
    private readonly List<byte[]> _chunkHashes = [];

    // Which chunk hash belongs to a call follows from the extensions before it; every so many calls that number is noted.
    private const int NoteEvery = 256;
    private readonly List<int> _extensionsBefore = [];

    /// <summary>Calls so far.</summary>
    public long Count => _calls.Count;

    /// <summary>What MRTD is if TDH.MR.FINALIZE comes now: 48 bytes.</summary>
    public byte[] Current => _hash.GetCurrentHash();

    /// <summary>TDH.MEM.PAGE.ADD.</summary>
    /// <param name="gpa">Page aligned, without shared bit and level.</param>
    public void PageAdd(ulong gpa)
    {
        ArgumentOutOfRangeException.ThrowIfNotEqual(gpa & PageSize.OffsetMask, 0UL, nameof(gpa));
        Append("MEM.PAGE.ADD"u8, gpa, []);
        Note(gpa);
    }

    /// <summary>TDH.MR.EXTEND.</summary>
    /// <param name="gpa">A multiple of 256, without shared bit.</param>
    /// <param name="chunk">256 bytes.</param>
    public void MrExtend(ulong gpa, ReadOnlySpan<byte> chunk)
    {
        ArgumentOutOfRangeException.ThrowIfNotEqual(gpa % ChunkSize, 0UL, nameof(gpa));
        ArgumentOutOfRangeException.ThrowIfNotEqual(chunk.Length, ChunkSize, nameof(chunk));
        Append("MR.EXTEND"u8, gpa, chunk);
        Note(gpa | ExtendBit);
        _chunkHashes.Add(SHA256.HashData(chunk));
    }

    /// <summary>At most <paramref name="count"/> of the records that there are now, from <paramref name="start"/> on; none if start is past the end.</summary>
    /// <exception cref="ArgumentOutOfRangeException">A negative start or count.</exception>
    public IEnumerable<MrtdRecord> Read(long start, long count)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(start);
        ArgumentOutOfRangeException.ThrowIfNegative(count);
        long end = start + Math.Min(count, Math.Max(Count - start, 0));
        return start < end ? ReadUpTo((int)start, (int)end) : [];
    }

    /// <summary>The records that there are now, put together where call follows call in ascending addresses.</summary>
    public IEnumerable<MrtdRun> Runs() => MrtdRun.Merge(Read(0, Count));

    public void Dispose() => _hash.Dispose();

    private IEnumerable<MrtdRecord> ReadUpTo(int start, int end)
    {
        int extensions = _extensionsBefore[start / NoteEvery];
        for (int index = start / NoteEvery * NoteEvery; index < end; index++)
        {
            bool extends = (_calls[index] & ExtendBit) != 0;
            if (index >= start)
            {
                yield return extends
                    ? new MrtdRecord(index, MrtdCall.MrExtend, _calls[index] & ~ExtendBit, _chunkHashes[extensions])
                    : new MrtdRecord(index, MrtdCall.PageAdd, _calls[index], default);
            }
            extensions += extends ? 1 : 0;
        }
    }

    private void Append(ReadOnlySpan<byte> name, ulong gpa, ReadOnlySpan<byte> chunk)
    {
        Span<byte> record = stackalloc byte[RecordSize + ChunkSize];
        record.Clear();
        name.CopyTo(record);
        BinaryPrimitives.WriteUInt64LittleEndian(record[GpaAt..], gpa);
        chunk.CopyTo(record[RecordSize..]);
        _hash.AppendData(record[..(RecordSize + chunk.Length)]);
    }

    private void Note(ulong call)
    {
        if (_calls.Count % NoteEvery == 0)
        {
            _extensionsBefore.Add(_chunkHashes.Count);
        }
        _calls.Add(call);
    }
}

/// <summary>How the pages of a run were measured.</summary>
public enum MrtdRunKind
{
    /// <summary>Added, and not extended.</summary>
    Added,

    /// <summary>Each page added and all of it extended, before the next page.</summary>
    AddedAndExtended,

    /// <summary>Extended only: the pages were added before.</summary>
    Extended,
}

/// <summary>Measured calls that follow each other in ascending addresses and are alike.</summary>
/// <param name="Index">Of the first call.</param>
/// <param name="Gpa">Of the first page or chunk.</param>
/// <param name="Bytes">Of guest memory.</param>
/// <param name="Calls">Measured calls.</param>
public readonly record struct MrtdRun(long Index, MrtdRunKind Kind, ulong Gpa, ulong Bytes, long Calls)
{
    private const int ChunksPerPage = PageSize.Bytes / MrtdTranscript.ChunkSize;

    /// <summary>For people: <c>0xffc84000..0xffffffff added and extended, 892 pages</c>.</summary>
    public override string ToString()
    {
        string how = Kind switch { MrtdRunKind.Added => "added", MrtdRunKind.AddedAndExtended => "added and extended", _ => "extended" };
        string size = Bytes % PageSize.Bytes == 0 ? $"{Bytes >> PageSize.Shift} {(Bytes == PageSize.Bytes ? "page" : "pages")}" : $"{Bytes} bytes";
        return $"0x{Gpa:x}..0x{Gpa + Bytes - 1:x} {how}, {size}";
    }

    internal static IEnumerable<MrtdRun> Merge(IEnumerable<MrtdRecord> records)
    {
        MrtdRun run = default;
        foreach (MrtdRun step in Pages(records))
        {
            if (run.Calls > 0 && step.Kind == run.Kind && step.Gpa == run.Gpa + run.Bytes)
            {
                run = run with { Bytes = run.Bytes + step.Bytes, Calls = run.Calls + step.Calls };
                continue;
            }
            if (run.Calls > 0)
            {
                yield return run;
            }
            run = step;
        }
        if (run.Calls > 0)
        {
            yield return run;
        }
    }

    // A page that is added and then extended from its first chunk to its last is one step; every other call is one of its own.
    private static IEnumerable<MrtdRun> Pages(IEnumerable<MrtdRecord> records)
    {
        var waiting = new List<MrtdRecord>();
        foreach (MrtdRecord record in records)
        {
            bool goesOn = waiting.Count > 0 && record.Call == MrtdCall.MrExtend && record.Gpa == waiting[0].Gpa + ((ulong)(waiting.Count - 1) * MrtdTranscript.ChunkSize);
            if (goesOn)
            {
                waiting.Add(record);
                if (waiting.Count == 1 + ChunksPerPage)
                {
                    yield return new MrtdRun(waiting[0].Index, MrtdRunKind.AddedAndExtended, waiting[0].Gpa, PageSize.Bytes, waiting.Count);
                    waiting.Clear();
                }
                continue;
            }
            foreach (MrtdRecord each in waiting)
            {
                yield return Single(each);
            }
            waiting.Clear();
            if (record.Call == MrtdCall.PageAdd)
            {
                waiting.Add(record);
            }
            else
            {
                yield return Single(record);
            }
        }
        foreach (MrtdRecord each in waiting)
        {
            yield return Single(each);
        }
    }

    private static MrtdRun Single(in MrtdRecord record) => record.Call == MrtdCall.PageAdd
        ? new(record.Index, MrtdRunKind.Added, record.Gpa, PageSize.Bytes, 1)
        : new(record.Index, MrtdRunKind.Extended, record.Gpa, MrtdTranscript.ChunkSize, 1);
}
