using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimKvm.Userspace;

/// <summary>
/// An open file in memory: what memfd_create gives, and what stands behind shared anonymous memory. Ordinary in every way a guest_memfd is not: it can be read,
/// written, resized and mapped, which is why VMMs put shared guest memory into one.
/// </summary>
internal sealed class ShmemFile : KernelFile
{
    public static readonly Rule BeyondEnd = new(
        "shmem.fault.size", "the access is behind the end of the file: SIGBUS", "shmem_fault", "ftruncate the file larger", "index", "pages");

    public static readonly Rule UnsupportedMode = new(
        "shmem.fallocate.mode", "shmem knows KEEP_SIZE and PUNCH_HOLE only", "shmem_fallocate", "use mode 0, 1 or 3", "mode");

    public static readonly Rule NoMemory = new(
        "shmem.no-memory", "the simulated machine has no free page left", "shmem_alloc_folio", "give the host more memory_bytes", "index");

    public static readonly Rule NoSuchPosition = new(
        "shmem.llseek", "the position is negative, or there is neither data nor a hole behind it", "shmem_file_llseek", "seek inside the file", "offset", "whence#");

    public static readonly Rule PageFailed = new(
        "shmem.hwpoison", "the memory behind the page has failed", "shmem_fault, shmem_file_read_iter", "punch a hole there: the next access gets another page", "index");

    private readonly ShmemInode _inode;

    private ShmemFile(ShmemInode inode, string name, uint flags)
    {
        _inode = inode;
        Name = name;
        Flags = flags;
    }

    // shmem_file_open, which memfd_create does not go through.
    private bool _opened;

    public override FdKind Kind => FdKind.Memfd;

    internal override bool CanDirectIo => _opened;

    public override string Name { get; }

    internal override VfsInode VfsInode => _inode.Vfs;

    internal override MemfdSeals? MemfdSeals => _inode.MemfdSeals;

    internal override FMode Methods => FMode.Lseek | FMode.Pread | FMode.Pwrite | FMode.CanRead | FMode.CanWrite;

    internal override FileSystemStat FileSystem => FileSystemStat.Tmpfs;

    internal override FileStat Stat() => new(_inode.Size, _inode.MemfdSeals.FileMode, _inode.Pages << (PageSize.Shift - 9));

    /// <summary>The frames of the file's pages.</summary>
    internal IEnumerable<Pfn> Frames => _inode.Frames;

    /// <summary>memfd_create.</summary>
    public static ShmemFile Memfd(SimHost host, string name, MemfdSeals seals) =>
        new(new ShmemInode(host, 0, seals), $"/memfd:{name} (deleted)", OpenFlags.O_RDWR | OpenFlags.O_LARGEFILE);

    /// <summary>shmem_zero_setup: what a MAP_SHARED | MAP_ANONYMOUS mapping maps.</summary>
    public static ShmemFile ForSharedMemory(SimHost host, ulong size) => new(new ShmemInode(host, size, new MemfdSeals(Seals.Seal)), "/dev/zero (deleted)", OpenFlags.O_RDWR);

    /// <summary>shmem_file_read_iter</summary>
    internal override SyscallResult Read(KTask current, UserArg buffer, ulong count, ref long position) =>
        Vfs.ReadPages(current, _inode.Size, buffer, count, ref position, (ulong index, out Pfn pfn) =>
        {
            pfn = _inode.Find(index);
            return _inode.Poisoned.Contains(index) ? current.Fail(Errno.EIO, PageFailed, index) : Errno.OK;
        });

    internal override SyscallResult Write(KTask current, UserArg buffer, ulong count, ref long position)
    {
        if (count == 0)
        {
            return SyscallResult.Of(0);
        }
        if ((Flags & OpenFlags.O_APPEND) != 0)
        {
            position = (long)_inode.Size;
        }
        byte[] page = new byte[PageSize.Bytes];
        ulong done = 0;
        while (done < count)
        {
            int offset = (int)((ulong)position & PageSize.OffsetMask);
            int length = (int)Math.Min(count - done, (ulong)(PageSize.Bytes - offset));
            // shmem_write_begin: what grows the file is refused page by page.
            bool grows = (ulong)position + (ulong)length > _inode.Size;
            Errno errno = _inode.MemfdSeals.Check(current, Seals.Write | Seals.FutureWrite | (grows ? Seals.Grow : Seals.None));
            Span<byte> part = page.AsSpan(0, buffer.InOnePage(done, length));
            errno = errno == Errno.OK ? buffer.CopyIn(current, part, done) : errno;
            ulong index = (ulong)position >> PageSize.Shift;
            Pfn pfn = default;
            if (errno == Errno.OK && !_inode.TryGetOrCreate(index, out pfn))
            {
                errno = current.Fail(Errno.ENOSPC, NoMemory, index);
            }
            if (errno != Errno.OK)
            {
                return done > 0 ? SyscallResult.Of((long)done) : errno;
            }
            current.Machine.HostWrite(current, pfn, offset, part);
            done += (ulong)part.Length;
            position += part.Length;
            _inode.Grow((ulong)position);
        }
        return SyscallResult.Of((long)done);
    }

    internal override SyscallResult Llseek(KTask current, long offset, uint whence)
    {
        const uint seekSet = 0, seekCur = 1, seekEnd = 2;
        long size = (long)_inode.Size;
        long target = whence switch
        {
            seekSet => offset,
            seekCur => Position + offset,
            seekEnd => size + offset,
            _ => SeekDataOrHole(offset, data: whence == 3),
        };
        if (target < 0)
        {
            return current.Fail(whence > seekEnd ? Errno.ENXIO : Errno.EINVAL, NoSuchPosition, (ulong)offset, whence);
        }
        return SyscallResult.Of(Position = target);
    }

    private long SeekDataOrHole(long offset, bool data)
    {
        if (offset < 0 || (ulong)offset >= _inode.Size)
        {
            return -1;
        }
        ulong last = (_inode.Size + PageSize.OffsetMask) >> PageSize.Shift;
        bool found = _inode.TryFind((ulong)offset >> PageSize.Shift, last, present: data, out ulong index);
        return found ? Math.Max(offset, (long)(index << PageSize.Shift)) : data ? -1 : (long)_inode.Size;
    }

    internal override Errno Fsync(KTask current) => Errno.OK;

    internal override Errno Setattr(KTask current) => Errno.OK;

    internal override Errno Truncate(KTask current, long length)
    {
        Errno sealing = _inode.MemfdSeals.Check(current, Userspace.MemfdSeals.Against(_inode.Size, (ulong)length));
        if (sealing == Errno.OK)
        {
            _inode.Resize(current, (ulong)length);
        }
        return sealing;
    }

    internal override Errno Fallocate(KTask current, uint mode, long offset, long len)
    {
        if ((mode & ~(Vfs.KeepSize | Vfs.PunchHole)) != 0)
        {
            return current.Fail(Errno.EOPNOTSUPP, UnsupportedMode, mode);
        }
        bool hole = (mode & Vfs.PunchHole) != 0;
        bool beyond = !hole && (ulong)(offset + len) > _inode.Size;
        Errno errno = _inode.MemfdSeals.Check(current, hole ? Seals.Write | Seals.FutureWrite : beyond ? Seals.Grow : Seals.None);
        if (errno != Errno.OK)
        {
            return errno;
        }
        if (hole)
        {
            _inode.PunchHole(current, (ulong)offset, len);
            return Errno.OK;
        }
        errno = _inode.Populate(current, (ulong)offset >> PageSize.Shift, ((ulong)(offset + len - 1) >> PageSize.Shift) + 1);
        if (errno != Errno.OK)
        {
            return errno;
        }
        if (beyond && (mode & Vfs.KeepSize) == 0)
        {
            _inode.Grow((ulong)(offset + len));
        }
        return Errno.OK;
    }

    internal override Errno Mmap(KTask current, in FileMapping mapping) => Errno.OK;

    internal override Errno Fault(KTask current, ulong index, out Pfn pfn)
    {
        pfn = default;
        ulong pages = (_inode.Size + PageSize.OffsetMask) >> PageSize.Shift;
        if (index >= pages)
        {
            return current.Fail(Errno.EFAULT, BeyondEnd, index, pages);
        }
        if (_inode.Poisoned.Contains(index))
        {
            return current.Fail(Errno.EHWPOISON, PageFailed, index);
        }
        return _inode.TryGetOrCreate(index, out pfn) ? Errno.OK : current.Fail(Errno.ENOMEM, NoMemory, index);
    }

    /// <summary>shmem_error_remove_folio: the page stays, so that nobody reads zeros where there was data.</summary>
    internal override Errno MemoryFailure(KTask current, ulong index)
    {
        Pfn pfn = _inode.Find(index);
        if (pfn.Value == 0)
        {
            return current.Fail(Errno.ENXIO, Kvm.GuestMemfd.NoPageToFail, index);
        }
        if (!_inode.Poisoned.Add(index))
        {
            return current.Fail(Errno.EHWPOISON, PageFailed, index);
        }
        VfsInode.UnmapMappingRange(current, index, index + 1);
        current.Machine.LeakFrame(pfn);
        return Errno.OK;
    }

    internal override bool TryPeek(ulong index, out Pfn pfn)
    {
        pfn = _inode.Find(index);
        return pfn.Value != 0 && !_inode.Poisoned.Contains(index);
    }

    internal override Errno Reopen(KTask current, uint flags, out KernelFile? file)
    {
        _inode.Vfs.Get();
        file = new ShmemFile(_inode, Name, flags) { _opened = true };
        return Errno.OK;
    }

    internal override void Release(KTask current) => _inode.Vfs.Put(current);
}
