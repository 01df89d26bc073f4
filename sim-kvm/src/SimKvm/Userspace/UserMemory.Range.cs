using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimKvm.Userspace;

// What the calls that work on a range of mappings have in common: cutting, joining, freeing pages, faulting in, and telling those who keep translations.
public sealed partial class UserMemory
{
    public static readonly Rule PageFailed = new(
        "mm.hwpoison", "the memory behind the page has failed", "do_swap_page (hwpoison entry)", "give the page up with MADV_DONTNEED, then use it anew", "uaddr");

    private readonly List<IMmuNotifier> _notifiers = [];

    /// <summary>mmu_notifier_register: told of every change from here on.</summary>
    internal void Register(IMmuNotifier notifier) => _notifiers.Add(notifier);

    internal void Unregister(IMmuNotifier notifier) => _notifiers.Remove(notifier);

    /// <summary>unmap_mapping_range, this process's part: pages [first, last) of a file go away behind the mappings of it.</summary>
    internal void UnmapFilePages(KTask current, VfsInode inode, ulong first, ulong last, bool evenCows)
    {
        if (_notifiers.Count == 0 && !evenCows)
        {
            return;
        }
        foreach ((AddressRange range, Vma vma) in Within(0, TaskSize))
        {
            ulong end = vma.FilePage + (range.Length >> PageSize.Shift);
            if (vma.File?.VfsInode == inode && vma.FilePage < last && first < end)
            {
                ulong from = range.Start + ((Math.Max(first, vma.FilePage) - vma.FilePage) << PageSize.Shift);
                ulong to = range.Start + ((Math.Min(last, end) - vma.FilePage) << PageSize.Shift);
                using var invalidation = Invalidate(current, from, to);
                if (evenCows && !vma.Shared)
                {
                    FreePages(current, from, to);
                }
            }
        }
    }

    private static ulong PageAlign(ulong length) => (length + PageSize.OffsetMask) & ~PageSize.OffsetMask;

    private bool IsOwnPage(ulong address) => _pages[address >> PageSize.Shift] is not (0 or ZeroPageMapped or PoisonedPage);

    // Start now, end when the scope ends.
    private Invalidation Invalidate(KTask current, ulong start, ulong end) => new(this, current, start, end);

    // Mappings in [start, end), cut to it, in order; what lies between them is skipped. A copy, because the bodies change the map.
    private List<(AddressRange Range, Vma Vma)> Within(ulong start, ulong end)
    {
        var found = new List<(AddressRange, Vma)>();
        foreach ((AddressRange range, Vma vma) in _vmas.Enumerate(start, end))
        {
            var part = new AddressRange(Math.Max(range.Start, start), Math.Min(range.End, end));
            found.Add((part, vma.Tail((part.Start - range.Start) >> PageSize.Shift)));
        }
        return found;
    }

    // Whether mappings cover [start, end) without a gap.
    private bool IsCovered(ulong start, ulong end)
    {
        ulong covered = start;
        foreach ((AddressRange range, _) in _vmas.Enumerate(start, end))
        {
            if (range.Start > covered)
            {
                return false;
            }
            covered = range.End;
        }
        return covered >= end;
    }

    // hugetlb_vm_op_split: a mapping of huge pages is cut between them only.
    private Errno CheckCut(KTask current, ulong start, ulong end)
    {
        Errno errno = CheckCutAt(current, start);
        return errno == Errno.OK ? CheckCutAt(current, end) : errno;
    }

    private Errno CheckCutAt(KTask current, ulong address)
    {
        bool inside = _vmas.TryFind(address, out AddressRange range, out Vma? vma) && range.Start != address;
        ulong pageBytes = (vma?.File?.MappingLevel ?? PageLevel.Page4K).Bytes();
        return inside && (address & (pageBytes - 1)) != 0 ? current.Fail(Errno.EINVAL, HugetlbFile.Unaligned, address, pageBytes) : Errno.OK;
    }

    // split_vma: both halves refer to the file.
    private void SplitAt(ulong address) => _vmas.SplitAt(address, (vma, offset) =>
    {
        if (vma.File is not null)
        {
            vma.File.Get();
            AddToFile(vma.File);
        }
        return vma.Tail(offset >> PageSize.Shift);
    });

    private void Insert(ulong start, ulong end, Vma vma)
    {
        _vmas.Add(start, end, vma);
        if (vma.File is not null)
        {
            AddToFile(vma.File);
        }
    }

    // Changes the mappings in a range, and joins what then is one mapping again, as the kernel does.
    private void Change(KTask current, ulong start, ulong end, Func<Vma, Vma> change)
    {
        SplitAt(start);
        SplitAt(end);
        foreach ((AddressRange range, Vma vma) in Within(start, end))
        {
            _vmas.Remove(range.Start, range.End, (whole, _) => whole);
            _vmas.Add(range.Start, range.End, change(vma));
            Join(current, range.Start);
        }
        Join(current, end);
    }

    // vma_merge at a border.
    private void Join(KTask current, ulong border)
    {
        if (border == 0 || !_vmas.TryFind(border - 1, out AddressRange low, out Vma? lower) || low.End != border
            || !_vmas.TryFind(border, out AddressRange high, out Vma? upper) || !lower.ContinuesInto(upper, low.Length >> PageSize.Shift))
        {
            return;
        }
        _vmas.Remove(low.Start, high.End, (whole, _) => whole);
        _vmas.Add(low.Start, high.End, lower);
        if (upper.File is not null)
        {
            // Never the last reference: the lower half has one.
            RemoveFromFile(upper.File);
            upper.File.Put(current);
        }
    }

    // Frames of the range's own pages are freed; a failed one stays out of use.
    private void FreePages(KTask current, ulong start, ulong end)
    {
        ulong first = start >> PageSize.Shift;
        ulong last = end >> PageSize.Shift;
        foreach (PageRun<ulong> run in _pages.Runs(first, last))
        {
            if (run.Value is 0 or ZeroPageMapped or PoisonedPage)
            {
                continue;
            }
            for (ulong page = run.Start; page < run.End; page++)
            {
                _host.PagePins.Free(current, new Pfn(run.Value));
            }
        }
        _pages.Set(first, last, 0);
    }

    // populate_vma_page_range over a range: faults pages in as the program would, for writing where it may; stops at the first that cannot be.
    private bool Populate(KTask current, ulong start, ulong end)
    {
        using var mmap = MmapLock.EnterShared(current);
        foreach ((AddressRange range, Vma vma) in Within(start, end))
        {
            bool write = vma.Writable && !vma.Shared;
            if (!PopulateRange(current, range, write))
            {
                return false;
            }
        }
        return true;
    }

    private bool PopulateRange(KTask current, AddressRange range, bool write)
    {
        for (ulong at = range.Start; at < range.End; at += PageSize.Bytes)
        {
            if (current.Killed || HandleFault(current, at, write, out _) is not null)
            {
                return false;
            }
        }
        return true;
    }

    private void AddToFile(KernelFile file) => file.VfsInode.MappedBy(this, 1);

    private void RemoveFromFile(KernelFile file) => file.VfsInode.MappedBy(this, -1);

    private readonly struct Invalidation : IDisposable
    {
        // Who was told of the start is told of the end.
        private readonly IMmuNotifier[] _told;
        private readonly KTask _current;
        private readonly ulong _start;
        private readonly ulong _end;

        public Invalidation(UserMemory memory, KTask current, ulong start, ulong end)
        {
            (_current, _start, _end) = (current, start, end);
            _told = [.. memory._notifiers];
            foreach (IMmuNotifier notifier in _told)
            {
                notifier.InvalidateRangeStart(current, start, end);
            }
        }

        public void Dispose()
        {
            foreach (IMmuNotifier notifier in _told)
            {
                notifier.InvalidateRangeEnd(_current, _start, _end);
            }
        }
    }
}
