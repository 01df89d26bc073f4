using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimKvm.Userspace;

// madvise, and what a failure of memory does to the mappings of a process.
public sealed partial class UserMemory
{
    private enum Advice : uint
    {
        Normal = 0,
        Random = 1,
        Sequential = 2,
        WillNeed = 3,
        DontNeed = 4,
        Free = 8,
        Remove = 9,
        DontFork = 10,
        DoFork = 11,
        Mergeable = 12,
        Unmergeable = 13,
        HugePage = 14,
        NoHugePage = 15,
        DontDump = 16,
        DoDump = 17,
        WipeOnFork = 18,
        KeepOnFork = 19,
        Cold = 20,
        PageOut = 21,
        PopulateRead = 22,
        PopulateWrite = 23,
        DontNeedLocked = 24,
        Collapse = 25,
        HwPoison = 100,
        SoftOffline = 101,
    }

    public static readonly Rule UnknownAdvice = new(
        "mm.madvise.advice", "the advice is not known, or not modelled", "madvise_behavior_valid", "use MADV_NORMAL (0) to MADV_COLLAPSE (25), or MADV_HWPOISON (100)", "advice#");

    public static readonly Rule AdviceNotForMapping = new(
        "mm.madvise.mapping", "the advice is not for a mapping of this kind", "madvise_vma_behavior",
        "MADV_FREE and MADV_WIPEONFORK are for private anonymous memory; MADV_DONTNEED, MADV_COLD and MADV_PAGEOUT for memory that is not locked; MADV_REMOVE for shared files; no mapping here has huge pages",
        "addr", "advice#");

    public static readonly Rule AdviceCannotPopulate = new(
        "mm.madvise.populate", "a page of the range cannot be faulted in so", "madvise_populate", "see the cause before this one", "addr", "advice#");

    public static readonly Rule NotAFailingPage = new(
        "mm.memory-failure.kernel-page", "the page is one that the kernel uses itself, such as the zero page or a vCPU's run page", "get_hwpoison_page",
        "store to the page first, so that it is the process's own", "addr");

    /// <summary>madvise(2).</summary>
    internal Errno Madvise(KTask current, ulong address, ulong length, uint adviceNumber)
    {
        var advice = (Advice)adviceNumber;
        if (!Enum.IsDefined(advice))
        {
            return current.Fail(Errno.EINVAL, UnknownAdvice, adviceNumber);
        }
        ulong end = address + PageAlign(length);
        if ((address & PageSize.OffsetMask) != 0 || (length != 0 && PageAlign(length) == 0) || end < address)
        {
            return current.Fail(Errno.EINVAL, RangeUnaligned, address, length);
        }
        if (end == address)
        {
            return Errno.OK;
        }
        switch (advice)
        {
            case Advice.HwPoison:
            case Advice.SoftOffline:
                return InjectFailures(current, address, end, fails: advice == Advice.HwPoison);
            case Advice.PopulateRead:
            case Advice.PopulateWrite:
                return PopulateAdvised(current, address, end, adviceNumber);
            case Advice.Remove:
                return Remove(current, address, end);
        }
        using var mmap = MmapLock.Enter(current);
        foreach ((AddressRange range, Vma vma) in Within(address, end))
        {
            Errno errno = Advise(current, range, vma, advice);
            if (errno != Errno.OK)
            {
                return errno;
            }
        }
        // Gaps are told when everything that is mapped was advised.
        return IsCovered(address, end) ? Errno.OK : current.Fail(Errno.ENOMEM, RangeNotMapped, address, length);
    }

    // madvise_vma_behavior
    private Errno Advise(KTask current, AddressRange range, Vma vma, Advice advice)
    {
        bool fits = advice switch
        {
            Advice.Free => vma.IsAnonymous,
            Advice.WipeOnFork => vma.IsAnonymous,
            Advice.DontNeed or Advice.Cold or Advice.PageOut => !vma.Locked,
            Advice.Collapse => false,
            _ => true,
        };
        if (!fits)
        {
            return current.Fail(Errno.EINVAL, AdviceNotForMapping, range.Start, (uint)advice);
        }
        Errno cut = CheckCut(current, range.Start, advice is Advice.DontNeed or Advice.DontNeedLocked ? range.Start : range.End);
        if (cut != Errno.OK)
        {
            return cut;
        }
        switch (advice)
        {
            case Advice.DontNeed:
            case Advice.DontNeedLocked:
                {
                    using var invalidation = Invalidate(current, range.Start, range.End);
                    FreePages(current, range.Start, range.End);
                    break;
                }
            case Advice.DontFork:
            case Advice.DoFork:
                Change(current, range.Start, range.End, old => old with { DontFork = advice == Advice.DontFork });
                break;
            case Advice.WipeOnFork:
            case Advice.KeepOnFork:
                Change(current, range.Start, range.End, old => old with { WipeOnFork = advice == Advice.WipeOnFork });
                break;
            default:
                (VmaHints cleared, VmaHints set) = HintsOf(advice);
                if (cleared != VmaHints.None)
                {
                    Change(current, range.Start, range.End, old => old with { Hints = (old.Hints & ~cleared) | set });
                }
                break;
        }
        // Whatever is left is about reclaim and merging, which do not change what memory holds.
        return Errno.OK;
    }

    private static (VmaHints Cleared, VmaHints Set) HintsOf(Advice advice)
    {
        const VmaHints readAhead = VmaHints.RandRead | VmaHints.SeqRead, hugePages = VmaHints.HugePage | VmaHints.NoHugePage;
        return advice switch
        {
            Advice.Normal => (readAhead, VmaHints.None),
            Advice.Random => (readAhead, VmaHints.RandRead),
            Advice.Sequential => (readAhead, VmaHints.SeqRead),
            Advice.HugePage => (hugePages, VmaHints.HugePage),
            Advice.NoHugePage => (hugePages, VmaHints.NoHugePage),
            Advice.DontDump => (VmaHints.DontDump, VmaHints.DontDump),
            Advice.DoDump => (VmaHints.DontDump, VmaHints.None),
            _ => (VmaHints.None, VmaHints.None),
        };
    }

    private Errno PopulateAdvised(KTask current, ulong address, ulong end, uint advice)
    {
        bool write = advice == (uint)Advice.PopulateWrite;
        using var mmap = MmapLock.EnterShared(current);
        for (ulong at = address; at < end; at += PageSize.Bytes)
        {
            if (!_vmas.TryFind(at, out _, out Vma? vma))
            {
                return current.Fail(Errno.ENOMEM, RangeNotMapped, at, end - at);
            }
            if ((vma.Prot & (write ? Vma.ProtWrite : Vma.ProtRead)) == 0)
            {
                return current.Fail(Errno.EINVAL, AdviceNotForMapping, at, advice);
            }
            Errno errno = current.Killed ? Errno.EINTR : Lookup(current, at, write, out _);
            if (errno != Errno.OK)
            {
                return current.Fail(errno, AdviceCannotPopulate, at, advice);
            }
        }
        return Errno.OK;
    }

    // madvise_remove: a hole in the file, made without mmap_lock.
    private Errno Remove(KTask current, ulong address, ulong end)
    {
        List<(AddressRange Range, Vma Vma)> parts;
        bool covered;
        using (MmapLock.EnterShared(current))
        {
            parts = Within(address, end);
            covered = IsCovered(address, end);
        }
        foreach ((AddressRange range, Vma vma) in parts)
        {
            if (vma.Locked || vma.File is null)
            {
                return current.Fail(Errno.EINVAL, AdviceNotForMapping, range.Start, (uint)Advice.Remove);
            }
            if (!vma.Shared || !vma.MayWrite)
            {
                return current.Fail(Errno.EACCES, AdviceNotForMapping, range.Start, (uint)Advice.Remove);
            }
            Errno errno = Vfs.Fallocate(current, -1, vma.File, Vfs.KeepSize | Vfs.PunchHole, (long)(vma.FilePage << PageSize.Shift), (long)range.Length);
            if (errno != Errno.OK)
            {
                return errno;
            }
        }
        return covered ? Errno.OK : current.Fail(Errno.ENOMEM, RangeNotMapped, address, end - address);
    }

    // madvise_inject_error: the page is faulted in, then fails. Soft-offlining moves what a page holds elsewhere, which nobody can tell here.
    private Errno InjectFailures(KTask current, ulong address, ulong end, bool fails)
    {
        for (ulong at = address; at < end; at += PageSize.Bytes)
        {
            Errno errno;
            using (MmapLock.EnterShared(current))
            {
                errno = Lookup(current, at, write: false, out _);
            }
            if (errno == Errno.OK && fails)
            {
                errno = FailPage(current, at);
            }
            if (errno != Errno.OK)
            {
                return errno;
            }
        }
        return Errno.OK;
    }

    // memory_failure with MF_ACTION_REQUIRED of the page at an address: it leaves the mappings, and who asked gets SIGBUS.
    private Errno FailPage(KTask current, ulong address)
    {
        ulong page = address >> PageSize.Shift;
        Vma? vma;
        AddressRange range;
        using (MmapLock.Enter(current))
        {
            if (!_vmas.TryFind(address, out range, out vma))
            {
                return current.Fail(Errno.EFAULT, NotMapped, address);
            }
            if (IsOwnPage(address))
            {
                using var invalidation = Invalidate(current, address, address + PageSize.Bytes);
                var pfn = new Pfn(_pages[page]);
                _pages.Set(page, PoisonedPage);
                _host.Machine.LeakFrame(pfn);
                _host.PagePins.Free(current, pfn);
                current.Signal = Signal.BusMceErrAr(address);
                return Errno.OK;
            }
            if (vma.File is null)
            {
                return current.Fail(Errno.EBUSY, NotAFailingPage, address);
            }
        }
        Errno errno = vma.File.MemoryFailure(current, vma.FilePage + ((address - range.Start) >> PageSize.Shift));
        if (errno == Errno.OK)
        {
            current.Signal = Signal.BusMceErrAr(address);
        }
        return errno;
    }
}
