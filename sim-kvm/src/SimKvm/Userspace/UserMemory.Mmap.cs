using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimKvm.Userspace;

// mmap and munmap. Mappings are placed from MmapBase upwards into the lowest gap that fits, so that the same calls give the same addresses.
public sealed partial class UserMemory
{
    /// <summary>One past the highest user address with 4-level paging (TASK_SIZE_MAX).</summary>
    public const ulong TaskSize = 0x7fff_ffff_f000;

    private const ulong MmapBase = 0x7f00_0000_0000;
    private const int MaxMapCount = 65530;

    public static readonly Rule NotMapped = new(
        "mm.not-mapped", "nothing is mapped at the user address", "handle_mm_fault", "mmap the memory first", "uaddr");

    public static readonly Rule Protected = new(
        "mm.protection", "the mapping does not allow the access", "access_error",
        "map with PROT_READ (1) or PROT_WRITE (2) as needed", "uaddr", "prot");

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

    [Flags]
    private enum MapFlags : uint
    {
        Shared = 0x1,
        Private = 0x2,
        SharedValidate = 0x3,
        TypeMask = 0xf,
        Fixed = 0x10,
        Anonymous = 0x20,
        FixedNoReplace = 0x10_0000,

        // LEGACY_MAP_MASK: what MAP_SHARED_VALIDATE lets pass on any file.
        Legacy = 0x000f_ffff & ~0x8_0000u,
    }

    /// <summary>mmap(2). Order of checks as in ksys_mmap_pgoff and do_mmap.</summary>
    /// <returns>The address.</returns>
    internal SyscallResult Mmap(KTask current, ulong address, ulong length, uint prot, uint flagBits, int fd, ulong offset)
    {
        var dropped = new List<KernelFile>();
        SyscallResult result = MmapLocked(current, address, length, prot, flagBits, fd, offset, dropped);
        PutAll(current, dropped);
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
        }

        using var mmap = MmapLock.Enter(current);
        if (length == 0)
        {
            return current.Fail(Errno.EINVAL, ZeroLength, address, length);
        }
        ulong size = (length + PageSize.OffsetMask) & ~PageSize.OffsetMask;
        if (size == 0 || size > TaskSize)
        {
            return current.Fail(Errno.ENOMEM, ZeroLength, address, length);
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
            if (start != address)
            {
                return current.Fail(Errno.EINVAL, FixedUnaligned, address);
            }
            if ((flags & MapFlags.FixedNoReplace) != 0 && _vmas.Overlaps(start, start + size))
            {
                return current.Fail(Errno.EEXIST, FixedOccupied, address, length);
            }
        }
        else if (start == 0 || size > TaskSize - Math.Min(start, TaskSize) || _vmas.Overlaps(start, start + size))
        {
            // A hint that cannot be followed is no error.
            ulong? gap = _vmas.FindGap(MmapBase, TaskSize, size) ?? _vmas.FindGap((ulong)PageSize.Bytes * 16, MmapBase, size);
            if (gap is null)
            {
                return current.Fail(Errno.ENOMEM, NoGap, size, (ulong)_vmas.Count);
            }
            start = gap.Value;
        }

        MapFlags type = flags & MapFlags.TypeMask;
        if (type is not (MapFlags.Shared or MapFlags.Private or MapFlags.SharedValidate) || (type == MapFlags.SharedValidate && file is null))
        {
            return current.Fail(Errno.EINVAL, BadFlags, flagBits);
        }
        if (file is not null)
        {
            if (type == MapFlags.SharedValidate && (flags & ~MapFlags.Legacy) != 0)
            {
                return current.Fail(Errno.EOPNOTSUPP, UnknownFlagBits, flagBits);
            }
            if ((prot & Vma.ProtExec) != 0 && file.Kind is FdKind.Vm or FdKind.Vcpu or FdKind.GuestMemfd)
            {
                return current.Fail(Errno.EPERM, NoExec, prot);
            }
            Errno mapped = file.Mmap(current, shared: type != MapFlags.Private);
            if (mapped != Errno.OK)
            {
                return mapped;
            }
            file.Get();
        }
        Drop(current, start, start + size, dropped);
        _vmas.Add(start, start + size, new Vma(prot, file, offset >> PageSize.Shift));
        return SyscallResult.Of((long)start);
    }

    /// <summary>munmap(2). Unmapping what is not mapped succeeds.</summary>
    internal Errno Munmap(KTask current, ulong address, ulong length)
    {
        ulong size = (length + PageSize.OffsetMask) & ~PageSize.OffsetMask;
        if ((address & PageSize.OffsetMask) != 0 || size == 0 || address > TaskSize || size > TaskSize - address)
        {
            return current.Fail(Errno.EINVAL, BadUnmapRange, address, length);
        }
        var dropped = new List<KernelFile>();
        using (MmapLock.Enter(current))
        {
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

    private void Drop(KTask current, ulong start, ulong end, List<KernelFile> dropped)
    {
        _vmas.Remove(
            start, end,
            tail: (vma, offset) =>
            {
                // A split mapping refers to its file from both halves.
                vma.File?.Get();
                return vma with { FilePage = vma.FilePage + (offset >> PageSize.Shift) };
            },
            removed: (range, vma) =>
            {
                Notify(current, range.Start, range.End);
                if (vma.File is not null)
                {
                    dropped.Add(vma.File);
                    return;
                }
                foreach (PageRun<ulong> run in _pages.Runs(range.Start >> PageSize.Shift, range.End >> PageSize.Shift))
                {
                    for (ulong page = run.Start; run.Value != 0 && page < run.End; page++)
                    {
                        _host.PagePins.Free(current, new Pfn(run.Value));
                    }
                }
                _pages.Set(range.Start >> PageSize.Shift, range.End >> PageSize.Shift, 0);
            });
    }

    /// <summary>One mapping: protection, and the file and its page offset where it is not anonymous.</summary>
    private sealed record Vma(uint Prot, KernelFile? File, ulong FilePage)
    {
        private const uint ProtRead = 1;
        private const uint ProtWrite = 2;
        public const uint ProtExec = 4;

        // x86 has no write-only pages.
        public bool Readable => (Prot & (ProtRead | ProtWrite | ProtExec)) != 0;

        public bool Writable => (Prot & ProtWrite) != 0;
    }
}
