using SimMachine.Addressing;

namespace SimKvm.Kvm;

/// <summary>Which stage-2 tables of a VM an operation is about. They differ where private memory has tables of its own (KVM_FILTER_SHARED, KVM_FILTER_PRIVATE).</summary>
[Flags]
internal enum Stage2Sides
{
    Shared = 1,
    Private = 2,
    Both = 3,
}

/// <summary>A leaf of a stage-2 table, seen from one gfn below it.</summary>
/// <param name="Pfn">The frame of that gfn.</param>
/// <param name="Level">The size of the mapping.</param>
/// <param name="Writable">Guest stores pass.</param>
/// <param name="IsPrivate">Made by a private access.</param>
internal readonly record struct Stage2Entry(Pfn Pfn, PageLevel Level, bool Writable, bool IsPrivate);

/// <summary>
/// One stage-2 translation: gfn to frame, by leaves of 4 KiB, 2 MiB and 1 GiB. Under mmu_lock.
/// </summary>
/// <remarks>
/// Kept as the distance from gfn to frame, so that neighbours which lie together in memory are one run, whatever their number. A leaf covers all gfns of its level;
/// removing a part of it removes it whole, as zapping a leaf entry does.
/// </remarks>
internal sealed class Stage2Table
{
    private const ulong Present = 1;
    private const ulong WritableBit = 2;
    private const ulong PrivateBit = 4;
    private const int LevelShift = 4;
    private const ulong LevelMask = 3;
    private const int DeltaShift = 12;
    private const ulong DeltaMask = (1UL << 52) - 1;

    private readonly PageTree<ulong> _leaves = new();

    public bool IsEmpty => _leaves.IsEmpty;

    public bool TryGet(Gfn gfn, out Stage2Entry entry)
    {
        ulong leaf = _leaves[gfn.Value];
        entry = leaf == 0 ? default : Decode(gfn.Value, leaf);
        return leaf != 0;
    }

    /// <summary>Where the run of leaves that are alike, or of gfns without one, ends that a gfn lies in; for people.</summary>
    public ulong RunEnd(ulong gfn, ulong limit) => _leaves.TryFindFirstOther(gfn, limit, _leaves[gfn], out ulong end) ? end : limit;

    /// <summary>Installs the leaf around a gfn.</summary>
    /// <param name="gfn">Any page of the leaf.</param>
    /// <param name="entry">The frame of that page, congruent to it at the level.</param>
    public void Map(Gfn gfn, in Stage2Entry entry)
    {
        GfnRange range = entry.Level.RangeAround(gfn);
        // A leaf that the new one lies in loses its other pages; leaves that lie in it go.
        Unmap(range);
        _leaves.Set(range, Encode(gfn.Value, entry));
    }

    /// <summary>Removes all leaves that have a page in the range.</summary>
    /// <returns>Something was mapped: the guest's translations must be flushed.</returns>
    public bool Unmap(GfnRange range)
    {
        if (range.IsEmpty || _leaves.AllEqual(range, 0))
        {
            return false;
        }
        _leaves.Set(Cover(range), 0);
        return true;
    }

    /// <summary>Takes the write permission from all leaves that have a page in the range.</summary>
    /// <param name="split">Leaves larger than 4 KiB become leaves of 4 KiB, as eager splitting for dirty logging does.</param>
    public void WriteProtect(GfnRange range, bool split)
    {
        range = Cover(range);
        foreach (PageRun<ulong> run in _leaves.Runs(range))
        {
            if (run.Value != 0)
            {
                ulong leaf = run.Value & ~WritableBit;
                leaf = split ? (leaf & ~(LevelMask << LevelShift)) | ((ulong)PageLevel.Page4K << LevelShift) : leaf;
                _leaves.Set(run.Start, run.End, leaf);
            }
        }
    }

    /// <summary>Runs of leaves that are alike and whose frames follow each other, in order.</summary>
    public IEnumerable<(GfnRange Gfns, Stage2Entry First)> Runs() => Runs(new GfnRange(new Gfn(0), new Gfn(GfnRange.Limit)));

    /// <summary>The parts of such runs that lie in a range.</summary>
    public IEnumerable<(GfnRange Gfns, Stage2Entry First)> Runs(GfnRange range)
    {
        ulong next = range.Start.Value, limit = range.End.Value;
        while (next < limit && _leaves.TryFindFirstOther(next, limit, 0, out ulong start))
        {
            ulong leaf = _leaves[start];
            ulong end = _leaves.TryFindFirstOther(start, limit, leaf, out ulong other) ? other : limit;
            yield return (new GfnRange(new Gfn(start), new Gfn(end)), Decode(start, leaf));
            next = end;
        }
    }

    internal void CheckInvariants()
    {
        _leaves.CheckInvariants();
        foreach ((GfnRange gfns, Stage2Entry first) in Runs())
        {
            if (!first.Level.IsAligned(gfns.Start) || !first.Level.IsAligned(gfns.End) || !first.Level.IsAligned(first.Pfn))
            {
                throw new InvalidOperationException($"stage 2 has part of a leaf of {first.Level} at {gfns}");
            }
        }
    }

    /// <summary>The range with the leaves whole that stick out at its ends.</summary>
    public GfnRange Cover(GfnRange range)
    {
        Gfn start = TryGet(range.Start, out Stage2Entry first) ? first.Level.AlignDown(range.Start) : range.Start;
        var last = new Gfn(range.End.Value - 1);
        Gfn end = TryGet(last, out Stage2Entry behind) ? behind.Level.RangeAround(last).End : range.End;
        return new GfnRange(start, end > range.End ? end : range.End);
    }

    private static Stage2Entry Decode(ulong gfn, ulong leaf) => new(
        new Pfn(((leaf >> DeltaShift) + gfn) & DeltaMask), (PageLevel)((leaf >> LevelShift) & LevelMask), (leaf & WritableBit) != 0, (leaf & PrivateBit) != 0);

    private static ulong Encode(ulong gfn, in Stage2Entry entry) =>
        (((entry.Pfn.Value - gfn) & DeltaMask) << DeltaShift) | Present
        | (entry.Writable ? WritableBit : 0) | (entry.IsPrivate ? PrivateBit : 0) | ((ulong)entry.Level << LevelShift);
}
