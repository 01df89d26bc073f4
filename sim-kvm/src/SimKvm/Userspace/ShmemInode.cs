using SimMachine.Addressing;

namespace SimKvm.Userspace;

/// <summary>The inode of a file in memory (shmem): its size, its seals, and its pages, which come into being when they are touched.</summary>
internal sealed class ShmemInode
{
    private readonly SimHost _host;
    private readonly PageTree<ulong> _pages = new();

    // Pages that fallocate made and nobody touched: they read, and are sought, as holes (folio_test_uptodate).
    private readonly PageTree<bool> _untouched = new();

    public ShmemInode(SimHost host, ulong size, MemfdSeals seals)
    {
        _host = host;
        Size = size;
        MemfdSeals = seals;
        Vfs = new VfsInode(evict: current => Free(current, 0, PageTree<ulong>.Limit));
    }

    /// <summary>Bytes.</summary>
    public ulong Size { get; private set; }

    public MemfdSeals MemfdSeals { get; }

    public VfsInode Vfs { get; }

    /// <summary>Pages present.</summary>
    public ulong Pages { get; private set; }

    /// <summary>shmem_get_folio: the page, made if it is not there. False when the machine has no free page.</summary>
    public bool TryGetOrCreate(ulong index, out Pfn pfn)
    {
        _untouched.Set(index, false);
        return TryAllocate(index, out pfn);
    }

    private bool TryAllocate(ulong index, out Pfn pfn)
    {
        pfn = new Pfn(_pages[index]);
        if (pfn.Value == 0)
        {
            if (!_host.Machine.TryAllocateFrame(out pfn))
            {
                return false;
            }
            _pages.Set(index, pfn.Value);
            Pages++;
        }
        return true;
    }

    /// <summary>Pages whose memory failed: kept, and of no use.</summary>
    public HashSet<ulong> Poisoned { get; } = [];

    public IEnumerable<Pfn> Frames
    {
        get
        {
            for (ulong next = 0; _pages.TryFindFirstOther(next, PageTree<ulong>.Limit, 0, out ulong index); next = index + 1)
            {
                yield return new Pfn(_pages[index]);
            }
        }
    }

    public Pfn Find(ulong index) => new(_pages[index]);

    /// <summary>The first page in [first, last) that is there, or the first that is not.</summary>
    public bool TryFind(ulong first, ulong last, bool present, out ulong index)
    {
        index = first;
        while (index < last && (_pages[index] != 0 && !_untouched[index]) != present)
        {
            // Data is looked for from page to page that is there; what is there is as much as the machine has.
            if (!present || !_pages.TryFindFirstOther(index + 1, last, 0, out index))
            {
                index = present ? last : index + 1;
            }
        }
        return index < last;
    }

    public void Grow(ulong size) => Size = Math.Max(Size, size);

    /// <summary>shmem_setattr: what is behind the new end goes, also the rest of the last page.</summary>
    public void Resize(KTask current, ulong size)
    {
        // Also of what fallocate made behind the old end.
        if (size <= Size)
        {
            Vfs.UnmapMappingRange(current, (size + PageSize.OffsetMask) >> PageSize.Shift, PageTree<ulong>.Limit, evenCows: true);
            PunchHole(current, size, long.MaxValue);
            Free(current, (size + PageSize.OffsetMask) >> PageSize.Shift, PageTree<ulong>.Limit);
        }
        Size = size;
    }

    /// <summary>shmem_fallocate for holes: whole pages go, parts of pages are cleared.</summary>
    public void PunchHole(KTask current, ulong offset, long length)
    {
        ulong end = offset > (ulong)long.MaxValue - (ulong)length ? long.MaxValue : offset + (ulong)length;
        ulong first = (offset + PageSize.OffsetMask) >> PageSize.Shift;
        ulong last = end >> PageSize.Shift;
        if (first < last)
        {
            Vfs.UnmapMappingRange(current, first, last);
            Free(current, first, last);
        }
        Clear(current, offset, Math.Min(end, first << PageSize.Shift));
        if (last >= first)
        {
            Clear(current, last << PageSize.Shift, end);
        }
    }

    /// <summary>shmem_fallocate: makes the pages of [first, last) that are not there. One that cannot be made undoes those that were (shmem_undo_range).</summary>
    public Errno Populate(KTask current, ulong first, ulong last)
    {
        var made = new List<(ulong First, ulong Last)>();
        for (ulong index = first; index < last; index++)
        {
            ulong before = Pages;
            Errno errno = current.Killed ? current.Fail(Errno.EINTR, Kvm.GuestMemfd.Interrupted)
                : TryAllocate(index, out _) ? Errno.OK
                : current.Fail(Errno.ENOSPC, ShmemFile.NoMemory, index);
            if (errno != Errno.OK)
            {
                made.ForEach(run => Free(current, run.First, run.Last));
                return errno;
            }
            // What was made twice is cleared the second time.
            _untouched.Set(index, Pages != before);
            if (Pages == before)
            {
                continue;
            }
            if (made.Count > 0 && made[^1].Last == index)
            {
                made[^1] = (made[^1].First, index + 1);
            }
            else
            {
                made.Add((index, index + 1));
            }
        }
        return Errno.OK;
    }

    private void Clear(KTask current, ulong start, ulong end)
    {
        Pfn pfn = Find(start >> PageSize.Shift);
        if (start < end && pfn.Value != 0)
        {
            _host.Machine.HostWrite(current, pfn, (int)(start & PageSize.OffsetMask), new byte[(int)(end - start)]);
        }
    }

    private void Free(KTask current, ulong first, ulong last)
    {
        while (first < last && _pages.TryFindFirstOther(first, last, 0, out ulong index))
        {
            var pfn = new Pfn(_pages[index]);
            _pages.Set(index, 0);
            _untouched.Set(index, false);
            Poisoned.Remove(index);
            Pages--;
            _host.PagePins.Free(current, pfn);
            first = index + 1;
        }
    }
}
