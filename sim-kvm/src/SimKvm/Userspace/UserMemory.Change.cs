using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimKvm.Userspace;

// mprotect, mlock, msync, mbind, mremap: calls that change mappings or ask for something about them.
public sealed partial class UserMemory
{
    private const int NodeCount = 1;

    public static readonly Rule RangeUnaligned = new(
        "mm.range.alignment", "the address is not page aligned, or the length wraps", "do_mprotect_pkey, do_madvise, msync, do_mbind, do_mremap",
        "give a page-aligned address and a length that fits", "addr", "length");

    public static readonly Rule RangeNotMapped = new(
        "mm.range.not-mapped", "a part of the range is not mapped", "do_mprotect_pkey, do_madvise, msync, apply_vma_lock_flags", "map all of it", "addr", "length");

    public static readonly Rule BadProtection = new(
        "mm.mprotect.prot", "the protection has bits that do not exist", "arch_validate_prot", "use PROT_READ (1), PROT_WRITE (2), PROT_EXEC (4)", "prot");

    public static readonly Rule ProtectionForbidden = new(
        "mm.mprotect.may", "the mapping may never have this protection: its file is on a no-exec file system, or is not open for writing", "do_mprotect_pkey (VM_MAYEXEC, VM_MAYWRITE)",
        "ask for less", "addr", "prot");

    public static readonly Rule NotPopulated = new(
        "mm.mlock.populate", "a page of the range cannot be faulted in, so it cannot be locked", "__mm_populate, __mlock_posix_error_return", "see the cause before this one", "addr", "length");

    public static readonly Rule BadMsyncFlags = new(
        "mm.msync.flags", "flags of msync are MS_ASYNC, MS_INVALIDATE and MS_SYNC, not MS_ASYNC with MS_SYNC", "msync", "use 1, 2 or 4", "flags");

    public static readonly Rule LockedInvalidate = new("mm.msync.locked", "MS_INVALIDATE of a locked mapping", "msync", "munlock it first", "addr");

    public static readonly Rule BadPolicy = new(
        "mm.mbind.policy", "the policy, its flags or its nodes cannot be; the simulated machine has one node, 0", "sanitize_mpol_flags, mpol_new, mpol_set_nodemask",
        "use MPOL_DEFAULT (0) without nodes, or MPOL_BIND (2) with node mask 1", "mode", "nodes");

    public static readonly Rule BadMremap = new(
        "mm.mremap.arguments", "the flags, the new length or the new address cannot be", "check_mremap_params",
        "use MREMAP_MAYMOVE (1); MREMAP_FIXED (2) and MREMAP_DONTUNMAP (4) want it too", "flags", "new_length", "new_address");

    public static readonly Rule MremapRange = new(
        "mm.mremap.range", "the old range is not one mapping", "vma_to_resize, check_prep_vma", "remap one mapping at a time", "addr", "old_length");

    public static readonly Rule NoRoomToGrow = new(
        "mm.mremap.room", "the mapping cannot grow where it is, and may not move", "mremap_to, expand_vma", "add MREMAP_MAYMOVE (1)", "addr", "new_length");

    /// <summary>mprotect(2). Parts before the one that is refused stay changed.</summary>
    internal Errno Mprotect(KTask current, ulong address, ulong length, uint prot)
    {
        const uint known = Vma.ProtRead | Vma.ProtWrite | Vma.ProtExec | 8;
        if ((address & PageSize.OffsetMask) != 0)
        {
            return current.Fail(Errno.EINVAL, RangeUnaligned, address, length);
        }
        if (length == 0)
        {
            return Errno.OK;
        }
        ulong end = address + PageAlign(length);
        if (end <= address)
        {
            return current.Fail(Errno.ENOMEM, RangeUnaligned, address, length);
        }
        if ((prot & ~known) != 0)
        {
            return current.Fail(Errno.EINVAL, BadProtection, prot);
        }
        using var mmap = MmapLock.Enter(current);
        ulong done = address;
        foreach ((AddressRange range, Vma vma) in Within(address, end))
        {
            if (range.Start != done)
            {
                break;
            }
            if (((prot & Vma.ProtExec) != 0 && !vma.MayExec) || ((prot & Vma.ProtWrite) != 0 && !vma.MayWrite))
            {
                return current.Fail(Errno.EACCES, ProtectionForbidden, range.Start, prot);
            }
            Errno cut = CheckCut(current, range.Start, range.End);
            if (cut != Errno.OK)
            {
                return cut;
            }
            uint kept = prot & Vma.ProtAll;
            if (vma.Prot != kept)
            {
                using var invalidation = Invalidate(current, range.Start, range.End);
                Change(current, range.Start, range.End, old => old with { Prot = kept });
            }
            done = range.End;
        }
        return done == end ? Errno.OK : current.Fail(Errno.ENOMEM, RangeNotMapped, address, length);
    }

    /// <summary>mlock(2), munlock(2). Locking faults the pages in; what cannot be faulted in is ENOMEM. There is no RLIMIT_MEMLOCK.</summary>
    internal Errno Mlock(KTask current, ulong address, ulong length, bool locked)
    {
        ulong start = address & ~PageSize.OffsetMask;
        ulong end = start + PageAlign(length + (address & PageSize.OffsetMask));
        if (end < start)
        {
            return current.Fail(Errno.EINVAL, RangeUnaligned, address, length);
        }
        using (MmapLock.Enter(current))
        {
            // Huge pages cannot be given up anyway: mlock_fixup leaves such mappings alone.
            foreach ((AddressRange range, Vma vma) in Within(start, end))
            {
                if (vma.File is not HugetlbFile)
                {
                    Change(current, range.Start, range.End, old => old with { Locked = locked });
                }
            }
            if (!IsCovered(start, end))
            {
                return current.Fail(Errno.ENOMEM, RangeNotMapped, address, length);
            }
        }
        return !locked || Populate(current, start, end) ? Errno.OK : current.Fail(Errno.ENOMEM, NotPopulated, address, length);
    }

    /// <summary>msync(2). Only MS_SYNC of a shared file does anything: it asks the file.</summary>
    internal Errno Msync(KTask current, ulong address, ulong length, uint flags)
    {
        const uint async = 1, invalidate = 2, sync = 4;
        if ((flags & ~(async | invalidate | sync)) != 0 || (flags & (async | sync)) == (async | sync))
        {
            return current.Fail(Errno.EINVAL, BadMsyncFlags, flags);
        }
        if ((address & PageSize.OffsetMask) != 0)
        {
            return current.Fail(Errno.EINVAL, RangeUnaligned, address, length);
        }
        ulong end = address + PageAlign(length);
        if (end < address)
        {
            return current.Fail(Errno.ENOMEM, RangeUnaligned, address, length);
        }
        List<(AddressRange Range, Vma Vma)> parts;
        bool covered;
        using (MmapLock.EnterShared(current))
        {
            parts = Within(address, end);
            covered = IsCovered(address, end);
        }
        foreach ((AddressRange range, Vma vma) in parts)
        {
            if ((flags & invalidate) != 0 && vma.Locked)
            {
                return current.Fail(Errno.EBUSY, LockedInvalidate, range.Start);
            }
            // mmap_lock is let go for the file's own work.
            Errno errno = (flags & sync) != 0 && vma is { File: not null, Shared: true } ? vma.File.Fsync(current) : Errno.OK;
            if (errno != Errno.OK)
            {
                return errno;
            }
        }
        return covered ? Errno.OK : current.Fail(Errno.ENOMEM, RangeNotMapped, address, length);
    }

    /// <summary>mbind(2) on a machine with one node: policies are checked and have nothing to choose from.</summary>
    internal Errno Mbind(KTask current, ulong address, ulong length, uint mode, ulong nodes, uint flags)
    {
        const uint modeFlags = 0x8000 | 0x4000 | 0x2000;
        const uint mpolDefault = 0, mpolPreferred = 1, mpolLocal = 4, mpolMax = 7;
        const uint knownFlags = 1 | 2 | 4;
        uint policy = mode & ~modeFlags;
        if (policy >= mpolMax || (mode & 0xc000) == 0xc000 || (flags & ~knownFlags) != 0)
        {
            return current.Fail(Errno.EINVAL, BadPolicy, mode, nodes);
        }
        if ((address & PageSize.OffsetMask) != 0 || address + PageAlign(length) < address)
        {
            return current.Fail(Errno.EINVAL, RangeUnaligned, address, length);
        }
        if (PageAlign(length) == 0)
        {
            return Errno.OK;
        }
        ulong existing = nodes & ((1UL << NodeCount) - 1);
        bool nodesFit = policy switch
        {
            mpolDefault or mpolLocal => nodes == 0,
            mpolPreferred => nodes == 0 || existing != 0,
            _ => existing != 0,
        };
        if (!nodesFit)
        {
            return current.Fail(Errno.EINVAL, BadPolicy, mode, nodes);
        }
        using var mmap = MmapLock.Enter(current);
        return IsCovered(address, address + PageAlign(length)) ? Errno.OK : current.Fail(Errno.EFAULT, RangeNotMapped, address, length);
    }

    /// <summary>mremap(2). Order of checks as in check_mremap_params and vma_to_resize.</summary>
    /// <returns>The new address.</returns>
    internal SyscallResult Mremap(KTask current, ulong address, ulong oldLength, ulong newLength, uint flags, ulong newAddress)
    {
        const uint mayMove = 1, @fixed = 2, dontUnmap = 4;
        ulong oldSize = PageAlign(oldLength);
        ulong newSize = PageAlign(newLength);
        bool badFlags = (flags & ~(mayMove | @fixed | dontUnmap)) != 0
            || ((flags & (@fixed | dontUnmap)) != 0 && (flags & mayMove) == 0) || ((flags & dontUnmap) != 0 && oldSize != newSize);
        bool badTarget = (flags & (@fixed | dontUnmap)) != 0
            && ((newAddress & PageSize.OffsetMask) != 0 || newAddress > TaskSize || newSize > TaskSize - newAddress
                || ((flags & @fixed) != 0 && newAddress < address + oldSize && address < newAddress + newSize));
        if (badFlags || (address & PageSize.OffsetMask) != 0 || newSize == 0 || newSize > TaskSize || badTarget)
        {
            return current.Fail(Errno.EINVAL, BadMremap, flags, newLength, newAddress);
        }
        var dropped = new List<KernelFile>();
        SyscallResult result;
        using (MmapLock.Enter(current))
        {
            result = MremapLocked(
                current, address, oldSize, newSize, (flags & mayMove) != 0, (flags & @fixed) != 0 ? newAddress : null, (flags & dontUnmap) != 0, dropped);
        }
        PutAll(current, dropped);
        if (result.Succeeded && newSize > oldSize && _vmas.TryFind((ulong)result.Value, out _, out Vma? grown) && grown.Locked)
        {
            int causes = current.Causes.Count;
            Populate(current, (ulong)result.Value + oldSize, (ulong)result.Value + newSize);
            current.ForgetCausesAfter(causes);
        }
        return result;
    }

    private SyscallResult MremapLocked(
        KTask current, ulong address, ulong oldSize, ulong newSize, bool mayMove, ulong? target, bool dontUnmap, List<KernelFile> dropped)
    {
        // A mapping that stays and does not grow may be several: what is behind its new end is unmapped.
        bool moves = target is not null || dontUnmap;
        bool mapsNew = moves || newSize > oldSize;
        if (!_vmas.TryFind(address, out AddressRange range, out Vma? vma) || (mapsNew && oldSize > range.End - address))
        {
            return current.Fail(Errno.EFAULT, MremapRange, address, oldSize);
        }
        if (oldSize == 0 && !vma.Shared)
        {
            return current.Fail(Errno.EINVAL, MremapRange, address, oldSize);
        }
        if (vma.File is HugetlbFile)
        {
            ulong pageBytes = vma.File.MappingLevel.Bytes();
            oldSize = (oldSize + pageBytes - 1) & ~(pageBytes - 1);
            newSize = (newSize + pageBytes - 1) & ~(pageBytes - 1);
            if (((address | (target ?? 0)) & (pageBytes - 1)) != 0 || newSize > oldSize)
            {
                return current.Fail(Errno.EINVAL, HugetlbFile.Unaligned, address, pageBytes);
            }
        }
        if (!mapsNew)
        {
            if (newSize < oldSize)
            {
                Drop(current, address + newSize, address + oldSize, dropped);
            }
            return SyscallResult.Of((long)address);
        }
        bool growsInPlace = !moves && oldSize != 0 && range.End == address + oldSize && newSize <= TaskSize - address && !_vmas.Overlaps(range.End, address + newSize);
        if (growsInPlace)
        {
            _vmas.Remove(range.Start, range.End, (whole, _) => whole);
            _vmas.Add(range.Start, address + newSize, vma);
            return SyscallResult.Of((long)address);
        }
        if (!mayMove)
        {
            return current.Fail(Errno.ENOMEM, NoRoomToGrow, address, newSize);
        }
        ulong align = (vma.File?.MappingLevel ?? PageLevel.Page4K).Bytes();
        ulong? room = target ?? (_vmas.FindGap(MmapBase, TaskSize, newSize + align - (ulong)PageSize.Bytes) + align - 1) & ~(align - 1);
        if (room is null || _vmas.Count + 2 >= MaxMapCount)
        {
            return current.Fail(Errno.ENOMEM, NoGap, newSize, (ulong)_vmas.Count);
        }
        if (target is not null)
        {
            Drop(current, target.Value, target.Value + newSize, dropped);
        }
        Move(current, vma.Tail((address - range.Start) >> PageSize.Shift), address, oldSize, room.Value, newSize, dontUnmap, dropped);
        return SyscallResult.Of((long)room.Value);
    }

    // move_vma: a mapping of the same file and offset at the new place, the pages moved into it, the old range unmapped.
    private void Move(KTask current, Vma vma, ulong from, ulong oldSize, ulong to, ulong newSize, bool keepOld, List<KernelFile> dropped)
    {
        using (Invalidate(current, from, from + oldSize))
        {
            ulong shift = (to >> PageSize.Shift) - (from >> PageSize.Shift);
            ulong moved = Math.Min(oldSize, newSize) >> PageSize.Shift;
            var runs = new List<PageRun<ulong>>();
            foreach (PageRun<ulong> run in _pages.Runs(from >> PageSize.Shift, (from >> PageSize.Shift) + moved))
            {
                runs.Add(run);
            }
            foreach (PageRun<ulong> run in runs)
            {
                _pages.Set(run.Start + shift, run.End + shift, run.Value);
            }
            _pages.Set(from >> PageSize.Shift, (from >> PageSize.Shift) + moved, 0);
        }
        vma.File?.Get();
        Insert(to, to + newSize, vma);
        if (!keepOld && oldSize != 0)
        {
            Drop(current, from, from + oldSize, dropped);
        }
    }

    // Whether a shared mapping of the inode may be stored to (i_mmap_writable).
    internal bool MapsWritable(VfsInode inode)
    {
        foreach ((_, Vma vma) in _vmas.Enumerate())
        {
            if (vma is { Shared: true, MayWrite: true } && vma.File?.VfsInode == inode)
            {
                return true;
            }
        }
        return false;
    }
}
