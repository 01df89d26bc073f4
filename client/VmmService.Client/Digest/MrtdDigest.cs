using System.Buffers.Binary;
using System.Security.Cryptography;
using VmmService.Client.Launch;

namespace VmmService.Client.Digest;

/// <summary>In which order the pages of a region are added and extended. The kernel decides.</summary>
public enum MrtdOrder
{
    /// <summary>Each page is added, then extended: KVM_TDX_INIT_MEM_REGION, so every upstream kernel.</summary>
    PerPage,

    /// <summary>All pages of a region are added, then all are extended: kernels before the merge, which had an ioctl for each.</summary>
    PerRegion,
}

/// <summary>
/// An MRTD in the making: SHA-384 over a record for each TDH.MEM.PAGE.ADD and each TDH.MR.EXTEND, in call order (tdx.md 6.1). Nothing else of a TD enters it.
/// </summary>
/// <remarks>It is one stream, so nothing can be computed side by side; a measured page is staged whole, 6272 bytes, and hashed in one call.</remarks>
public sealed class MrtdDigest : IDisposable
{
    /// <summary>Bytes that one TDH.MR.EXTEND takes in.</summary>
    public const int ChunkSize = 256;

    private const int RecordSize = 128;
    private const int GpaOffset = 16;
    private const int Chunks = FirmwareImage.PageSize / ChunkSize;
    private const int ExtendSize = RecordSize + ChunkSize;

    private readonly IncrementalHash _hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA384);

    // The records of a page: ADD, then 16 of EXTEND with their content. Only addresses and content change.
    private readonly byte[] _records = new byte[RecordSize + (Chunks * ExtendSize)];

    public MrtdDigest()
    {
        "MEM.PAGE.ADD"u8.CopyTo(_records);
        for (int chunk = 0; chunk < Chunks; chunk++)
            "MR.EXTEND"u8.CopyTo(_records.AsSpan(RecordSize + (chunk * ExtendSize)));
    }

    /// <summary>The digest of all regions of a launch.</summary>
    public static Hash384 Measure(IEnumerable<TdxRegion> regions, MrtdOrder order = MrtdOrder.PerPage)
    {
        ArgumentNullException.ThrowIfNull(regions);
        using var digest = new MrtdDigest();
        foreach (TdxRegion region in regions)
            digest.Add(region, order);
        return digest.Current();
    }

    /// <summary>Takes in a region.</summary>
    public void Add(TdxRegion region, MrtdOrder order)
    {
        ArgumentNullException.ThrowIfNull(region);
        Span<byte> page = stackalloc byte[FirmwareImage.PageSize];
        bool apart = order == MrtdOrder.PerRegion;
        for (ulong i = 0; i < region.Pages; i++)
        {
            ulong gpa = region.Gpa + (i * FirmwareImage.PageSize);
            if (!region.Extend || apart)
            {
                AddPage(gpa);
                continue;
            }

            region.ReadPage(i, page);
            AddExtendedPage(gpa, page);
        }

        for (ulong i = 0; region.Extend && apart && i < region.Pages; i++)
        {
            region.ReadPage(i, page);
            ExtendPage(region.Gpa + (i * FirmwareImage.PageSize), page);
        }
    }

    /// <summary>TDH.MEM.PAGE.ADD.</summary>
    /// <param name="gpa">Page aligned.</param>
    public void AddPage(ulong gpa)
    {
        WriteGpa(0, gpa);
        _hash.AppendData(_records.AsSpan(0, RecordSize));
    }

    /// <summary>TDH.MR.EXTEND.</summary>
    /// <param name="gpa">A multiple of <see cref="ChunkSize"/>.</param>
    /// <param name="chunk"><see cref="ChunkSize"/> bytes.</param>
    public void Extend(ulong gpa, ReadOnlySpan<byte> chunk)
    {
        ArgumentOutOfRangeException.ThrowIfNotEqual(chunk.Length, ChunkSize);
        WriteGpa(RecordSize, gpa);
        chunk.CopyTo(_records.AsSpan(2 * RecordSize));
        _hash.AppendData(_records.AsSpan(RecordSize, ExtendSize));
    }

    /// <summary>TDH.MR.EXTEND of each chunk of a page.</summary>
    /// <param name="gpa">Page aligned.</param>
    /// <param name="page">4096 bytes.</param>
    public void ExtendPage(ulong gpa, ReadOnlySpan<byte> page)
    {
        Stage(gpa, page);
        _hash.AppendData(_records.AsSpan(RecordSize));
    }

    /// <summary>TDH.MEM.PAGE.ADD, then TDH.MR.EXTEND of each chunk.</summary>
    /// <param name="gpa">Page aligned.</param>
    /// <param name="page">4096 bytes.</param>
    public void AddExtendedPage(ulong gpa, ReadOnlySpan<byte> page)
    {
        WriteGpa(0, gpa);
        Stage(gpa, page);
        _hash.AppendData(_records);
    }

    /// <summary>What TDH.MR.FINALIZE would make of it now. One may go on afterwards.</summary>
    public Hash384 Current() => new(_hash.GetCurrentHash());

    public void Dispose() => _hash.Dispose();

    private void Stage(ulong gpa, ReadOnlySpan<byte> page)
    {
        ArgumentOutOfRangeException.ThrowIfNotEqual(page.Length, FirmwareImage.PageSize);
        for (int chunk = 0; chunk < Chunks; chunk++)
        {
            int record = RecordSize + (chunk * ExtendSize);
            WriteGpa(record, gpa + (ulong)(chunk * ChunkSize));
            page.Slice(chunk * ChunkSize, ChunkSize).CopyTo(_records.AsSpan(record + RecordSize));
        }
    }

    private void WriteGpa(int record, ulong gpa) => BinaryPrimitives.WriteUInt64LittleEndian(_records.AsSpan(record + GpaOffset), gpa);
}
