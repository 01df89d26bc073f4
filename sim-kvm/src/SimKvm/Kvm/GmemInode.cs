using SimKvm.Abi;
using SimKvm.Locking;
using SimKvm.Profiles;
using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimKvm.Kvm;

/// <summary>A page of a guest_memfd, as far as its page cache knows it.</summary>
/// <param name="Pfn">The frame.</param>
/// <param name="Uptodate">Zeroed or populated. From 6.11 to 6.19 this also says "prepared for the guest".</param>
/// <param name="Poisoned">The memory failed; nobody gets the page any more.</param>
/// <param name="Huge">Part of a folio of 2 MiB.</param>
internal readonly record struct Folio(Pfn Pfn, bool Uptodate, bool Poisoned = false, bool Huge = false)
{
    public const int HugeOrder = 9;

    /// <summary>log2 of the folio's pages.</summary>
    public int Order => Huge ? HugeOrder : 0;
}

/// <summary>
/// The inode of a guest_memfd: its size for ever, its flags, and its page cache. A page that is present owns a frame; a page that is not present costs nothing.
/// Where pages convert in place, the inode also says which of its pages are private, present or not.
/// </summary>
internal sealed class GmemInode
{
    private const ulong Present = 1;
    private const ulong UptodateBit = 2;
    private const ulong PoisonedBit = 4;
    private const ulong HugeBit = 8;
    private const int DeltaShift = 12;
    private const ulong DeltaMask = (1UL << 52) - 1;

    private static readonly StepLabel FreeHookStep = new("gmem free hook");

    private readonly SimHost _host;

    // Index to folio, stored as the distance from index to frame: pages that were allocated in one go are one run of the tree, whatever their number.
    private readonly PageTree<ulong> _folios = new();

    // Pages that differ from what the file began with, in profiles with in-place conversion.
    private readonly PageTree<bool> _converted = new();

    public GmemInode(SimHost host, ulong size, ulong flags)
    {
        _host = host;
        Size = size;
        Flags = flags;
    }

    /// <summary>Bytes.</summary>
    public ulong Size { get; }

    public ulong Pages => Size >> PageSize.Shift;

    /// <summary>GUEST_MEMFD_FLAG_*</summary>
    public ulong Flags { get; }

    /// <summary>Made with INIT_SHARED: its pages begin as shared ones.</summary>
    public bool InitShared =>
        _host.Profile.PrivateMemory == PrivateMemoryDesign.GuestMemfd && (Flags & kvm_create_guest_memfd.GUEST_MEMFD_FLAG_INIT_SHARED) != 0;

    /// <summary>mapping->invalidate_lock</summary>
    public SimLock InvalidateLock { get; } = new(LockOrder.Invalidate);

    /// <summary>The page, present or not, is private. Before in-place conversion this is a property of the file.</summary>
    public bool IsPrivate(ulong index)
    {
        _host.Machine.Reading(_converted, index, index + 1);
        return InitShared == _converted[index];
    }

    public bool AllPrivate(ulong start, ulong end, bool isPrivate)
    {
        _host.Machine.Reading(_converted, start, end);
        return _converted.AllEqual(start, end, InitShared == isPrivate);
    }

    /// <summary>First page from <paramref name="start"/> on that is not of that kind.</summary>
    public bool TryFindOther(ulong start, ulong end, bool isPrivate, out ulong index) => _converted.TryFindFirstOther(start, end, InitShared == isPrivate, out index);

    internal IEnumerable<object> SharedState => [_folios, _converted, InvalidateLock];

    /// <summary>What the attributes cost: it grows with the number of runs, not of pages.</summary>
    internal long AttributeBytes => _converted.ApproximateBytes;

    public void SetPrivate(ulong start, ulong end, bool isPrivate)
    {
        _host.Machine.Writing(_converted, start, end);
        _converted.Set(start, end, InitShared == isPrivate);
    }

    public bool TryGet(ulong index, out Folio folio)
    {
        _host.Machine.Reading(_folios, index, index + 1);
        ulong entry = _folios[index];
        folio = entry == 0 ? default : Decode(index, entry);
        return entry != 0;
    }

    /// <summary>First present page in the range.</summary>
    public bool TryFindPresent(ulong start, ulong end, out ulong index)
    {
        index = 0;
        _host.Machine.Reading(_folios, start, end);
        return start < end && _folios.TryFindFirstOther(start, end, 0, out index);
    }

    /// <summary>__filemap_get_folio with FGP_CREAT. A new page is not up to date. False when the machine has no free page.</summary>
    public bool TryGetOrCreate(ulong index, out Folio folio, out bool created)
    {
        created = false;
        if (TryGet(index, out folio))
        {
            return true;
        }
        created = true;
        if (WantsHuge(index, out ulong first) && _host.Machine.TryAllocateHugeFrame(PageLevel.Page2M, out Pfn head))
        {
            Set(first, first + PageLevel.Page2M.PagesPerLevel(), Encode(first, new Folio(head, false, Huge: true)));
            return TryGet(index, out folio);
        }
        if (!_host.Machine.TryAllocateFrame(out Pfn pfn))
        {
            return false;
        }
        folio = new Folio(pfn, false);
        Set(index, index + 1, Encode(index, folio));
        return true;
    }

    public void MarkUptodate(ulong index, in Folio folio) => Store(index, folio with { Uptodate = true });

    /// <summary>The preparation of the page failed: the next look-up starts over.</summary>
    public void MarkNotUptodate(ulong index)
    {
        if (TryGet(index, out Folio folio))
        {
            Store(index, folio with { Uptodate = false });
        }
    }

    public void MarkPoisoned(ulong index)
    {
        if (TryGet(index, out Folio folio))
        {
            Store(index, folio with { Poisoned = true });
        }
    }

    /// <summary>Clears a folio that nobody filled yet, and marks it.</summary>
    public void ZeroIfNeeded(KTask current, ulong index, in Folio folio)
    {
        if (folio.Uptodate)
        {
            return;
        }
        ulong pages = 1UL << folio.Order;
        ulong head = folio.Pfn.Value & ~(pages - 1);
        for (ulong i = 0; i < pages; i++)
        {
            _host.Machine.HostZero(current, new Pfn(head + i));
        }
        MarkUptodate(index, folio);
    }

    /// <summary>The first page of the range that somebody beside the page cache holds.</summary>
    public bool TryFindPinned(ulong start, ulong end, out ulong index)
    {
        foreach ((ulong first, ulong last, Folio folio) in FolioRuns(start, end))
        {
            if (_host.PagePins.TryFindPinned(folio.Pfn, last - first, out Pfn pinned))
            {
                index = first + (pinned - folio.Pfn);
                return true;
            }
        }
        index = 0;
        return false;
    }

    /// <summary>truncate_inode_pages_range: each page leaves the cache, runs the architecture's free hook, and its frame is freed.</summary>
    public void Truncate(KTask current, ulong start, ulong end)
    {
        end = Math.Min(end, PageTree<ulong>.Limit);
        SplitHuge(start);
        SplitHuge(end);
        while (TryFindPresent(start, end, out ulong index))
        {
            TryGet(index, out Folio folio);
            using (SimLock.EnterFolio(current, folio.Pfn.Value))
            {
                Set(index, index + 1, 0);
                if (_host.Profile.FreeHook == GmemFreeHook.FreeFolio)
                {
                    current.Step(FreeHookStep, index, folio.Pfn.Value);
                    _host.KvmAmd.GmemInvalidate(current, folio.Pfn);
                }
            }
            _host.PagePins.Free(current, folio.Pfn);
            start = index + 1;
        }
    }

    /// <summary>Pages in the cache; for people.</summary>
    public ulong CountPages()
    {
        ulong count = 0;
        foreach (PageRun<ulong> run in _folios.Runs(0, PageTree<ulong>.Limit))
        {
            count += run.Value != 0 ? run.Count : 0;
        }
        return count;
    }

    /// <summary>The frames of the pages that are present.</summary>
    public IEnumerable<Pfn> Frames()
    {
        foreach (PageRun<ulong> run in _folios.Runs(0, PageTree<ulong>.Limit))
        {
            for (ulong index = run.Start; run.Value != 0 && index < run.End; index++)
            {
                TryGet(index, out Folio folio);
                yield return folio.Pfn;
            }
        }
    }

    /// <summary>Pages are inside the size, unless the kernel lets a slot be bound behind it: then populate and faults make pages there.</summary>
    public void CheckInvariants()
    {
        _folios.CheckInvariants();
        if (!_host.Profile.BindOffsetSigned && _folios.TryFindFirstOther(Size >> PageSize.Shift, PageTree<ulong>.Limit, 0, out ulong index))
        {
            throw new InvalidOperationException($"page 0x{index:x} of a guest_memfd is behind its end, 0x{Size:x} bytes");
        }
    }

    /// <summary>Runs of present pages that are alike and contiguous in memory, in order; for people.</summary>
    public IEnumerable<(ulong Start, ulong End, Folio First)> FolioRuns(ulong start, ulong end)
    {
        while (TryFindPresent(start, end, out ulong index))
        {
            ulong value = _folios[index];
            ulong last = _folios.TryFindFirstOther(index, end, value, out ulong other) ? other : end;
            yield return (index, last, Decode(index, value));
            start = last;
        }
    }

    /// <summary>Where the run of alike pages, or of absent ones, ends that a page lies in; for people.</summary>
    public ulong FolioRunEnd(ulong index, ulong limit) => _folios.TryFindFirstOther(index, limit, _folios[index], out ulong end) ? end : limit;

    /// <summary>Where the run of private, or of shared, pages ends that a page lies in; for people.</summary>
    public ulong PrivateRunEnd(ulong index, ulong limit) => _converted.TryFindFirstOther(index, limit, _converted[index], out ulong end) ? end : limit;

    // RFC v11: with ALLOW_HUGEPAGE a folio of 2 MiB is tried where the whole of it is in the file and absent.
    private bool WantsHuge(ulong index, out ulong first)
    {
        ulong pages = PageLevel.Page2M.PagesPerLevel();
        first = index & ~(pages - 1);
        return _host.Profile.PrivateMemory == PrivateMemoryDesign.GuestMemfdRfc
            && (Flags & kvm_create_guest_memfd.KVM_GUEST_MEMFD_ALLOW_HUGEPAGE) != 0
            && first + pages <= Pages
            && _folios.AllEqual(first, first + pages, 0);
    }

    // A folio that a hole cuts becomes single pages.
    private void SplitHuge(ulong at)
    {
        ulong pages = PageLevel.Page2M.PagesPerLevel();
        if (at % pages == 0 || at >= PageTree<ulong>.Limit || !TryGet(at, out Folio folio) || !folio.Huge)
        {
            return;
        }
        ulong first = at & ~(pages - 1);
        Set(first, first + pages, Encode(at, folio with { Huge = false }));
    }

    private void Store(ulong index, in Folio folio)
    {
        ulong pages = 1UL << folio.Order;
        ulong first = index & ~(pages - 1);
        Set(first, first + pages, Encode(index, folio));
    }

    private void Set(ulong start, ulong end, ulong entry)
    {
        _host.Machine.Writing(_folios, start, end);
        _folios.Set(start, end, entry);
    }

    private static Folio Decode(ulong index, ulong entry) => new(
        new Pfn(((entry >> DeltaShift) + index) & DeltaMask), (entry & UptodateBit) != 0, (entry & PoisonedBit) != 0, (entry & HugeBit) != 0);

    private static ulong Encode(ulong index, in Folio folio) =>
        (((folio.Pfn.Value - index) & DeltaMask) << DeltaShift) | Present
        | (folio.Uptodate ? UptodateBit : 0) | (folio.Poisoned ? PoisonedBit : 0) | (folio.Huge ? HugeBit : 0);
}
