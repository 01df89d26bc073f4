using SimKvm.Locking;
using SimMachine.Addressing;

namespace SimKvm.Kvm;

/// <summary>A page of a guest_memfd, as far as its page cache knows it.</summary>
/// <param name="Pfn">The frame.</param>
/// <param name="Uptodate">Zeroed or populated. Up to 6.19 this also says "prepared for the guest".</param>
internal readonly record struct Folio(Pfn Pfn, bool Uptodate);

/// <summary>
/// The inode of a guest_memfd: its size for ever, its flags, and its page cache (order-0 folios). A page that is present owns a frame; a page that is not
/// present costs nothing.
/// </summary>
internal sealed class GmemInode
{
    private const ulong Present = 1;
    private const ulong UptodateBit = 2;
    private const int DeltaShift = 12;
    private const ulong DeltaMask = (1UL << 52) - 1;

    private readonly SimHost _host;

    // Index to folio, stored as the distance from index to frame: pages that were allocated in one go are one run of the tree, whatever their number.
    private readonly PageTree<ulong> _folios = new();

    public GmemInode(SimHost host, ulong size, ulong flags)
    {
        _host = host;
        Size = size;
        Flags = flags;
    }

    /// <summary>Bytes.</summary>
    public ulong Size { get; }

    /// <summary>GUEST_MEMFD_FLAG_*</summary>
    public ulong Flags { get; }

    /// <summary>mapping->invalidate_lock</summary>
    public SimLock InvalidateLock { get; } = new(LockOrder.Invalidate);

    public bool TryGet(ulong index, out Folio folio)
    {
        ulong entry = _folios[index];
        folio = (entry & Present) != 0 ? new Folio(new Pfn(((entry >> DeltaShift) + index) & DeltaMask), (entry & UptodateBit) != 0) : default;
        return entry != 0;
    }

    /// <summary>__filemap_get_folio with FGP_CREAT. A new page is not up to date. False when the machine has no free page.</summary>
    public bool TryGetOrCreate(ulong index, out Folio folio)
    {
        if (TryGet(index, out folio))
        {
            return true;
        }
        if (!_host.Machine.TryAllocateFrame(out Pfn pfn))
        {
            return false;
        }
        folio = new Folio(pfn, false);
        Store(index, folio);
        return true;
    }

    public void MarkUptodate(ulong index, in Folio folio) => Store(index, folio with { Uptodate = true });

    /// <summary>Clears a page that nobody filled yet, and marks it.</summary>
    public void ZeroIfNeeded(KTask current, ulong index, in Folio folio)
    {
        if (!folio.Uptodate)
        {
            _host.Machine.HostZero(current, folio.Pfn);
            MarkUptodate(index, folio);
        }
    }

    /// <summary>truncate_inode_pages_range: each page leaves the cache, runs the architecture's free hook, and its frame is freed.</summary>
    public void Truncate(KTask current, ulong start, ulong end)
    {
        end = Math.Min(end, PageTree<ulong>.Limit);
        while (start < end && _folios.TryFindFirstOther(start, end, 0, out ulong index))
        {
            TryGet(index, out Folio folio);
            using (SimLock.EnterFolio(current, folio.Pfn.Value))
            {
                _folios.Set(index, 0);
                _host.KvmAmd.GmemInvalidate(current, folio.Pfn);
            }
            _host.Machine.FreeFrame(current, folio.Pfn);
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

    private void Store(ulong index, in Folio folio) =>
        _folios.Set(index, (((folio.Pfn.Value - index) & DeltaMask) << DeltaShift) | Present | (folio.Uptodate ? UptodateBit : 0));
}
