using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimKvm.Userspace;

// mmap and munmap. Mappings are placed from MmapBase upwards into the lowest gap that fits, so that the same calls give the same addresses.
public sealed partial class UserMemory
{
    /// <summary>One past the highest user address with 4-level paging (TASK_SIZE_MAX).</summary>
    public const ulong TaskSize = 0x7fff_ffff_f000;

    /// <summary>access_ok: whether all of [address, address + length) are addresses that a user may have, mapped or not.</summary>
    internal static bool IsUserRange(ulong address, ulong length) => address <= TaskSize && length <= TaskSize - address;

    private const ulong MmapBase = 0x7f00_0000_0000;
    private const int MaxMapCount = 65530;

    public static readonly Rule NotMapped = new(
        "mm.not-mapped", "nothing is mapped at the user address", "handle_mm_fault", "mmap the memory first", "uaddr");

    public static readonly Rule Protected = new(
        "mm.protection", "the mapping does not allow the access", "access_error",
        "map with PROT_READ (1) or PROT_WRITE (2) as needed", "uaddr", "prot");

    public static readonly Rule OwnedByGuest = new(
        "mm.owned-by-guest", "the page belongs to a protected guest, so the host's access to it faults", "host_inject_mem_abort, pKVM",
        "wait until the guest shares the page (MEM_SHARE), or is gone", "uaddr", "pfn");

    public static readonly Rule OutOfMemory = new(
        "mm.out-of-memory", "the simulated machine has no free page left", "alloc_anon_folio", "give the host more memory_bytes", "uaddr");

    public static readonly Rule ZeroLength = new(
        "mm.mmap.length", "the length is zero, or the range does not fit into the address space", "do_mmap", "give a length that fits", "addr", "length");

    public static readonly Rule BadOffset = new(
        "mm.mmap.offset", "the file offset is not page aligned", "ksys_mmap_pgoff", "align the offset to 4096", "offset");

    public static readonly Rule BadFlags = new(
        "mm.mmap.flags", "exactly one of MAP_SHARED and MAP_PRIVATE is wanted", "do_mmap", "add MAP_PRIVATE (2) or MAP_SHARED (1)", "flags");

    public static readonly Rule UnknownFlagBits = new(
        "mm.mmap.validate", "MAP_SHARED_VALIDATE was given with flags that the file does not know", "do_mmap", "clear them, or use MAP_SHARED (1)", "flags");

    public static readonly Rule NoExec = new(
        "mm.mmap.noexec", "the file system of VM, vCPU and guest_memfd files is no-exec", "do_mmap, path_noexec", "map without PROT_EXEC (4)", "prot");

    public static readonly Rule FixedUnaligned = new(
        "mm.mmap.fixed-unaligned", "a fixed address must be page aligned", "get_unmapped_area", "align the address to 4096", "addr");

    public static readonly Rule FixedOccupied = new(
        "mm.mmap.fixed-occupied", "something is mapped in the range and MAP_FIXED_NOREPLACE forbids to replace it", "get_unmapped_area",
        "choose a free range", "addr", "length");

    public static readonly Rule NoGap = new(
        "mm.mmap.no-gap", "no free range of this length is left, or the process has too many mappings", "unmapped_area", "unmap something", "length", "mappings#");

    public static readonly Rule BadUnmapRange = new(
        "mm.munmap.range", "the address is not page aligned, or the length is zero or leaves the address space", "do_vmi_munmap",
        "give a page-aligned range of user addresses", "addr", "length");

    public static readonly Rule FileTooSmall = new(
        "mm.mmap.file-size", "offset + length goes past the largest size that a file can have", "file_mmap_ok", "stay below 2^63", "offset", "length");

    public static readonly Rule NotOpenFor = new(
        "mm.mmap.access", "the descriptor is not open for what the mapping would do", "do_mmap", "open it O_RDWR", "prot", "open_flags");

    public static readonly Rule NotHugetlb = new(
        "mm.mmap.hugetlb", "MAP_HUGETLB wants a file of hugetlbfs", "ksys_mmap_pgoff", "clear MAP_HUGETLB (0x40000)", "flags");

    public static readonly Rule HugePagesFlags = new(
        "mm.mmap.hugetlb-size", "the machine has no huge pages of this size", "ksys_mmap_pgoff, hstate_sizelog", "use MAP_HUGE_2MB (0x54000000) or MAP_HUGE_1GB (0x78000000)", "flags");

    [Flags]
    private enum MapFlags : uint
    {
        Shared = 0x1,
        Private = 0x2,
        SharedValidate = 0x3,
        TypeMask = 0xf,
        Fixed = 0x10,
        Anonymous = 0x20,
        Locked = 0x2000,
        NoReserve = 0x4000,
        Populate = 0x8000,
        NonBlock = 0x1_0000,
        Hugetlb = 0x4_0000,
        FixedNoReplace = 0x10_0000,

        // LEGACY_MAP_MASK, what MAP_SHARED_VALIDATE lets pass on any file: also 32BIT, ABOVE4G, GROWSDOWN, DENYWRITE, EXECUTABLE, NORESERVE, STACK, HUGE_2MB, HUGE_1GB.
        Legacy = Shared | Private | Fixed | Anonymous | 0x40 | 0x80 | 0x100 | 0x800 | 0x1000 | Locked | NoReserve | Populate | NonBlock | 0x2_0000 | Hugetlb | 0x7c00_0000,
    }

    /// <summary>mmap(2). Order of checks as in ksys_mmap_pgoff and do_mmap.</summary>
    /// <returns>The address.</returns>
    internal SyscallResult Mmap(KTask current, ulong address, ulong length, uint prot, uint flagBits, int fd, ulong offset)
    {
        var dropped = new List<KernelFile>();
        SyscallResult result = MmapLocked(current, address, length, prot, flagBits, fd, offset, dropped);
        PutAll(current, dropped);
        var flags = (MapFlags)flagBits;
        if (result.Succeeded && ((flags & MapFlags.Locked) != 0 || (flags & (MapFlags.Populate | MapFlags.NonBlock)) == MapFlags.Populate))
        {
            // mm_populate: nobody is told of what could not be populated.
            int causes = current.Causes.Count;
            Populate(current, (ulong)result.Value, (ulong)result.Value + PageAlign(length));
            current.ForgetCausesAfter(causes);
        }
        return result;
    }

    private SyscallResult MmapLocked(
        KTask current, ulong address, ulong length, uint prot, uint flagBits, int fd, ulong offset, List<KernelFile> dropped)
    {
        var flags = (MapFlags)flagBits;
        if ((offset & PageSize.OffsetMask) != 0)
        {
            return current.Fail(Errno.EINVAL, BadOffset, offset);
        }
        KernelFile? file = null;
        if ((flags & MapFlags.Anonymous) == 0)
        {
            Errno found = current.Process.Files.Lookup(current, fd, out file);
            if (found != Errno.OK)
            {
                return found;
            }
            if ((flags & MapFlags.Hugetlb) != 0 && file!.MappingLevel == PageLevel.Page4K)
            {
                return current.Fail(Errno.EINVAL, NotHugetlb, flagBits);
            }
        }
        HugetlbPool? pool = null;
        if (file is null && (flags & MapFlags.Hugetlb) != 0)
        {
            pool = _host.Hugetlb.PoolOf(flagBits);
            if (pool is null)
            {
                return current.Fail(Errno.EINVAL, HugePagesFlags, flagBits);
            }
        }
        // A mapping of huge pages is of whole ones.
        ulong pageBytes = (file?.MappingLevel ?? pool?.Level ?? PageLevel.Page4K).Bytes();

        using var mmap = MmapLock.Enter(current);
        if (length == 0)
        {
            return current.Fail(Errno.EINVAL, ZeroLength, address, length);
        }
        ulong size = (length + pageBytes - 1) & ~(pageBytes - 1);
        if (size == 0 || size > TaskSize)
        {
            // Huge pages are rounded to first, so that a length that wraps is as none.
            return current.Fail(size == 0 && pageBytes != (ulong)PageSize.Bytes ? Errno.EINVAL : Errno.ENOMEM, ZeroLength, address, length);
        }
        if (_vmas.Count >= MaxMapCount)
        {
            return current.Fail(Errno.ENOMEM, NoGap, size, (ulong)_vmas.Count);
        }

        bool @fixed = (flags & (MapFlags.Fixed | MapFlags.FixedNoReplace)) != 0;
        ulong start = address & ~PageSize.OffsetMask;
        if (@fixed)
        {
            if (size > TaskSize - Math.Min(start, TaskSize))
            {
                return current.Fail(Errno.ENOMEM, ZeroLength, address, length);
            }
            if (start != address || (start & (pageBytes - 1)) != 0)
            {
                return current.Fail(Errno.EINVAL, FixedUnaligned, address);
            }
            if ((flags & MapFlags.FixedNoReplace) != 0 && _vmas.Overlaps(start, start + size))
            {
                return current.Fail(Errno.EEXIST, FixedOccupied, address, length);
            }
        }
        else if (start == 0 || (start & (pageBytes - 1)) != 0 || size > TaskSize - Math.Min(start, TaskSize) || _vmas.Overlaps(start, start + size))
        {
            // A hint that cannot be followed is no error.
            ulong room = size + pageBytes - (ulong)PageSize.Bytes;
            ulong? gap = _vmas.FindGap(MmapBase, TaskSize, room) ?? _vmas.FindGap((ulong)PageSize.Bytes * 16, MmapBase, room);
            if (gap is null)
            {
                return current.Fail(Errno.ENOMEM, NoGap, size, (ulong)_vmas.Count);
            }
            start = (gap.Value + pageBytes - 1) & ~(pageBytes - 1);
        }

        MapFlags type = flags & MapFlags.TypeMask;
        if (type is not (MapFlags.Shared or MapFlags.Private or MapFlags.SharedValidate) || (type == MapFlags.SharedValidate && file is null))
        {
            return current.Fail(Errno.EINVAL, BadFlags, flagBits);
        }
        bool shared = type != MapFlags.Private;
        bool mayWrite = true;
        Errno cut = CheckCut(current, start, start + size);
        if (cut != Errno.OK)
        {
            return cut;
        }
        if (file is not null)
        {
            if (size > long.MaxValue || offset >> PageSize.Shift > ((ulong)long.MaxValue - size) >> PageSize.Shift)
            {
                return current.Fail(Errno.EOVERFLOW, FileTooSmall, offset, size);
            }
            if (type == MapFlags.SharedValidate && (flags & ~MapFlags.Legacy) != 0)
            {
                return current.Fail(Errno.EOPNOTSUPP, UnknownFlagBits, flagBits);
            }
            mayWrite = !shared || (file.Mode & FMode.Write) != 0;
            if ((file.Mode & FMode.Read) == 0 || (!mayWrite && (prot & Vma.ProtWrite) != 0))
            {
                return current.Fail(Errno.EACCES, NotOpenFor, prot, file.Flags);
            }
            if ((prot & Vma.ProtExec) != 0 && file.OnNoExecFileSystem)
            {
                return current.Fail(Errno.EPERM, NoExec, prot);
            }
            if (shared && file.MemfdSeals is { } seals)
            {
                // memfd_check_seals_mmap
                Errno writes = (prot & Vma.ProtWrite) != 0 ? seals.Check(current, Seals.Write | Seals.FutureWrite) : Errno.OK;
                if (writes != Errno.OK)
                {
                    return writes;
                }
                mayWrite &= (seals.Set & (Seals.Write | Seals.FutureWrite)) == 0;
            }
            Errno mapped = file.Mmap(current, MappingOf(shared));
            if (mapped != Errno.OK)
            {
                return mapped;
            }
            file.Get();
        }
        else if (pool is not null)
        {
            HugetlbFile hugetlb = HugetlbFile.ForMapping(pool, size, isPrivate: !shared);
            // Nobody else can have the file, so whose pages they are makes a difference at fork only.
            shared = true;
            Errno mapped = hugetlb.Mmap(current, MappingOf(shared));
            if (mapped != Errno.OK)
            {
                hugetlb.Put(current);
                return mapped;
            }
            file = hugetlb;
            offset = 0;
        }
        else if (shared)
        {
            // shmem_zero_setup: shared anonymous memory is a file that has no name.
            file = ShmemFile.ForSharedMemory(_host, size);
            offset = 0;
        }
        var vma = new Vma(prot & Vma.ProtAll, file, offset >> PageSize.Shift, shared)
        {
            Locked = (flags & MapFlags.Locked) != 0,
            MayExec = file is not { OnNoExecFileSystem: true },
            MayWrite = mayWrite,
        };
        Drop(current, start, start + size, dropped);
        Insert(start, start + size, vma);
        return SyscallResult.Of((long)start);

        FileMapping MappingOf(bool shared) =>
            new(shared, (prot & Vma.ProtWrite) != 0, offset >> PageSize.Shift, size >> PageSize.Shift, (flags & MapFlags.NoReserve) != 0);
    }

    /// <summary>munmap(2). Unmapping what is not mapped succeeds.</summary>
    internal Errno Munmap(KTask current, ulong address, ulong length)
    {
        ulong size = PageAlign(length);
        if ((address & PageSize.OffsetMask) != 0 || size == 0 || address > TaskSize || size > TaskSize - address)
        {
            return current.Fail(Errno.EINVAL, BadUnmapRange, address, length);
        }
        var dropped = new List<KernelFile>();
        using (MmapLock.Enter(current))
        {
            Errno cut = CheckCut(current, address, address + size);
            if (cut != Errno.OK)
            {
                return cut;
            }
            Drop(current, address, address + size, dropped);
        }
        PutAll(current, dropped);
        return Errno.OK;
    }

    /// <summary>exit_mmap().</summary>
    internal void Exit(KTask current)
    {
        UnpinAll(current);
        var dropped = new List<KernelFile>();
        using (MmapLock.Enter(current))
        {
            Drop(current, 0, TaskSize, dropped);
        }
        PutAll(current, dropped);
    }

    // The last fput of a file runs on the way back to user space, when mmap_lock is no longer held.
    private static void PutAll(KTask current, List<KernelFile> files)
    {
        foreach (KernelFile file in files)
        {
            file.Put(current);
        }
    }

    // zap_page_range and free_pgtables of a range that is unmapped.
    private void Drop(KTask current, ulong start, ulong end, List<KernelFile> dropped)
    {
        if (!_vmas.Overlaps(start, end))
        {
            return;
        }
        using var invalidation = Invalidate(current, start, end);
        SplitAt(start);
        SplitAt(end);
        _vmas.Remove(start, end, (vma, offset) => vma.Tail(offset >> PageSize.Shift), removed: (range, vma) =>
        {
            FreePages(current, range.Start, range.End);
            if (vma.File is not null)
            {
                RemoveFromFile(vma.File);
                dropped.Add(vma.File);
            }
        });
    }
}
