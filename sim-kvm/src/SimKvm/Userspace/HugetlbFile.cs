using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimKvm.Userspace;

/// <summary>
/// An open file on hugetlbfs: what memfd_create with MFD_HUGETLB gives, and what stands behind a mapping with MAP_HUGETLB. Guests that have their shared memory in one are
/// mapped by 2 MiB or 1 GiB.
/// </summary>
internal sealed class HugetlbFile : KernelFile
{
    public static readonly Rule NoPages = new(
        "hugetlb.no-pages", "the pool has not as many huge pages left", "hugetlb_reserve_pages, alloc_hugetlb_folio",
        "make the host with more hugepages_2m or hugepages_1g", "wanted#", "free#", "reserved#");

    public static readonly Rule Unaligned = new(
        "hugetlb.alignment", "sizes, offsets and addresses on hugetlbfs are multiples of its page", "hugetlbfs_setattr, hugetlbfs_file_mmap, hugetlb_vm_op_split",
        "align to the size of the huge page", "value", "page_bytes");

    public static readonly Rule PrivateOfFile = new(
        "hugetlb.private-file", "a private mapping of a file on hugetlbfs is not modelled", "hugetlbfs_file_mmap", "map it MAP_SHARED (1), or map anonymous memory");

    private readonly HugetlbInode _inode;

    private HugetlbFile(HugetlbInode inode, string name, uint flags)
    {
        _inode = inode;
        Name = name;
        Flags = flags;
    }

    public override FdKind Kind => FdKind.Memfd;

    public override string Name { get; }

    /// <summary>A mapping with MAP_PRIVATE of no file: its pages are the process's own.</summary>
    public bool IsPrivate { get; private init; }

    internal override VfsInode VfsInode => _inode.Vfs;

    internal override MemfdSeals? MemfdSeals => _inode.MemfdSeals;

    internal override PageLevel MappingLevel => _inode.Pool.Level;

    internal override FMode Methods => FMode.Lseek | FMode.Pread | FMode.Pwrite | FMode.CanRead;

    internal override bool CanSpliceRead => false;

    internal override FileSystemStat FileSystem => new(0x9584_58f6, PageBytes);

    internal override FileStat Stat() => new(_inode.Size, _inode.MemfdSeals.FileMode, (ulong)_inode.Pages.Count * (PageBytes >> 9)) { BlockSize = (uint)PageBytes };

    /// <summary>The frames of the file's pages.</summary>
    internal IEnumerable<Pfn> Frames
    {
        get
        {
            foreach (Pfn first in _inode.Pages.Values)
            {
                for (ulong i = 0; i < PagesPerPage; i++)
                {
                    yield return new Pfn(first.Value + i);
                }
            }
        }
    }

    private ulong PageBytes => MappingLevel.Bytes();

    private ulong PagesPerPage => MappingLevel.PagesPerLevel();

    /// <summary>memfd_create with MFD_HUGETLB.</summary>
    public static HugetlbFile Memfd(HugetlbPool pool, string name, MemfdSeals seals) =>
        new(new HugetlbInode(pool, 0, seals), $"/memfd:{name} (deleted)", OpenFlags.O_RDWR | OpenFlags.O_LARGEFILE);

    /// <summary>hugetlb_file_setup: what a mapping with MAP_ANONYMOUS and MAP_HUGETLB maps.</summary>
    public static HugetlbFile ForMapping(HugetlbPool pool, ulong size, bool isPrivate) =>
        new(new HugetlbInode(pool, size, new MemfdSeals(Seals.Seal)), "/anon_hugepage (deleted)", OpenFlags.O_RDWR) { IsPrivate = isPrivate };

    /// <summary>The copy that a forked child has of private huge pages. Null when the pool has no pages for it.</summary>
    public HugetlbFile? Copy(KTask current)
    {
        HugetlbFile copy = ForMapping(_inode.Pool, _inode.Size, isPrivate: true);
        foreach ((ulong index, Pfn source) in _inode.Pages)
        {
            if (!copy._inode.TryGetOrCreate(index, out Pfn first))
            {
                copy.Put(current);
                return null;
            }
            for (ulong i = 0; i < PagesPerPage; i++)
            {
                current.Machine.HostCopy(current, new Pfn(source.Value + i), new Pfn(first.Value + i));
            }
        }
        return copy;
    }

    /// <summary>hugetlbfs_read_iter</summary>
    internal override SyscallResult Read(KTask current, UserArg buffer, ulong count, ref long position) =>
        Vfs.ReadPages(current, _inode.Size, buffer, count, ref position, (ulong index, out Pfn pfn) =>
        {
            TryPeek(index, out pfn);
            return _inode.Poisoned.Contains(index / PagesPerPage) ? current.Fail(Errno.EIO, ShmemFile.PageFailed, index) : Errno.OK;
        });

    /// <summary>default_llseek: the whole file counts as data.</summary>
    internal override SyscallResult Llseek(KTask current, long offset, uint whence)
    {
        const uint seekSet = 0, seekCur = 1, seekEnd = 2, seekData = 3;
        long size = (long)_inode.Size;
        if (whence >= seekData && offset >= size)
        {
            return current.Fail(Errno.ENXIO, ShmemFile.NoSuchPosition, (ulong)offset, whence);
        }
        long target = whence switch
        {
            seekSet or seekData => offset,
            seekCur => Position + offset,
            seekEnd => size + offset,
            _ => size,
        };
        return target < 0 ? current.Fail(Errno.EINVAL, ShmemFile.NoSuchPosition, (ulong)offset, whence) : SyscallResult.Of(Position = target);
    }

    internal override Errno Fsync(KTask current) => Errno.OK;

    internal override Errno Setattr(KTask current) => Errno.OK;

    /// <summary>hugetlbfs_setattr</summary>
    internal override Errno Truncate(KTask current, long length)
    {
        Errno errno = CheckAligned(current, (ulong)length);
        errno = errno == Errno.OK ? _inode.MemfdSeals.Check(current, Userspace.MemfdSeals.Against(_inode.Size, (ulong)length)) : errno;
        if (errno != Errno.OK)
        {
            return errno;
        }
        if ((ulong)length < _inode.Size)
        {
            RemovePages(current, (ulong)length, _inode.Size);
        }
        _inode.Size = (ulong)length;
        return Errno.OK;
    }

    /// <summary>hugetlbfs_fallocate: parts of huge pages at the ends of a hole are cleared, those of an allocation are rounded up.</summary>
    internal override Errno Fallocate(KTask current, uint mode, long offset, long len)
    {
        if ((mode & ~(Vfs.KeepSize | Vfs.PunchHole)) != 0)
        {
            return current.Fail(Errno.EOPNOTSUPP, ShmemFile.UnsupportedMode, mode);
        }
        bool hole = (mode & Vfs.PunchHole) != 0;
        ulong end = (ulong)(offset + len);
        bool beyond = !hole && end > _inode.Size;
        Errno errno = _inode.MemfdSeals.Check(current, hole ? Seals.Write | Seals.FutureWrite : beyond ? Seals.Grow : Seals.None);
        if (errno != Errno.OK)
        {
            return errno;
        }
        if (hole)
        {
            PunchHole(current, (ulong)offset, end);
            return Errno.OK;
        }
        ulong last = (end + PageBytes - 1) / PageBytes;
        for (ulong index = (ulong)offset / PageBytes; index < last; index++)
        {
            if (!_inode.TryGetOrCreate(index, out _))
            {
                return Exhausted(current, Errno.ENOSPC, last - index);
            }
        }
        _inode.Size = beyond && (mode & Vfs.KeepSize) == 0 ? last * PageBytes : _inode.Size;
        return Errno.OK;
    }

    /// <summary>hugetlbfs_file_mmap: a writable mapping makes the file as long as it is, and what it may touch is reserved.</summary>
    internal override Errno Mmap(KTask current, in FileMapping mapping)
    {
        Errno errno = CheckAligned(current, mapping.FirstPage << PageSize.Shift);
        if (errno != Errno.OK)
        {
            return errno;
        }
        if (!mapping.Shared)
        {
            ulong pages = mapping.Pages / PagesPerPage;
            return !mapping.NoReserve && _inode.Pool.Free - _inode.Pool.Reserved < pages ? Exhausted(current, Errno.ENOMEM, pages) : current.Fail(Errno.EINVAL, PrivateOfFile);
        }
        ulong first = mapping.FirstPage / PagesPerPage;
        ulong last = first + (mapping.Pages / PagesPerPage);
        if (!mapping.NoReserve && !_inode.TryReserve(first, last))
        {
            return Exhausted(current, Errno.ENOMEM, last - first);
        }
        _inode.Size = mapping.Writable ? Math.Max(_inode.Size, last * PageBytes) : _inode.Size;
        return Errno.OK;
    }

    /// <summary>hugetlb_fault. An exhausted pool is SIGBUS, for which EFAULT stands.</summary>
    internal override Errno Fault(KTask current, ulong index, out Pfn pfn)
    {
        pfn = default;
        ulong huge = index / PagesPerPage;
        if (huge >= _inode.Size / PageBytes)
        {
            return current.Fail(Errno.EFAULT, ShmemFile.BeyondEnd, index, _inode.Size >> PageSize.Shift);
        }
        if (_inode.Poisoned.Contains(huge))
        {
            return current.Fail(Errno.EHWPOISON, ShmemFile.PageFailed, index);
        }
        if (!_inode.TryGetOrCreate(huge, out Pfn first))
        {
            return Exhausted(current, Errno.EFAULT, 1);
        }
        pfn = new Pfn(first.Value + (index % PagesPerPage));
        return Errno.OK;
    }

    internal override bool TryPeek(ulong index, out Pfn pfn)
    {
        bool there = _inode.Pages.TryGetValue(index / PagesPerPage, out Pfn first) && !_inode.Poisoned.Contains(index / PagesPerPage);
        pfn = there ? new Pfn(first.Value + (index % PagesPerPage)) : default;
        return there;
    }

    /// <summary>hugetlbfs_error_remove_folio: the huge page is lost as a whole.</summary>
    internal override Errno MemoryFailure(KTask current, ulong index)
    {
        ulong huge = index / PagesPerPage;
        if (!_inode.Pages.TryGetValue(huge, out Pfn first))
        {
            return current.Fail(Errno.ENXIO, Kvm.GuestMemfd.NoPageToFail, index);
        }
        if (!_inode.Poisoned.Add(huge))
        {
            return current.Fail(Errno.EHWPOISON, ShmemFile.PageFailed, index);
        }
        VfsInode.UnmapMappingRange(current, huge * PagesPerPage, (huge + 1) * PagesPerPage);
        current.Machine.LeakFrame(new Pfn(first.Value + (index % PagesPerPage)));
        return Errno.OK;
    }

    internal override Errno Reopen(KTask current, uint flags, out KernelFile? file)
    {
        _inode.Vfs.Get();
        file = new HugetlbFile(_inode, Name, flags) { IsPrivate = IsPrivate };
        return Errno.OK;
    }

    internal override void Release(KTask current) => _inode.Vfs.Put(current);

    private Errno CheckAligned(KTask current, ulong value) => value % PageBytes == 0 ? Errno.OK : current.Fail(Errno.EINVAL, Unaligned, value, PageBytes);

    private Errno Exhausted(KTask current, Errno errno, ulong wanted) => current.Fail(errno, NoPages, wanted, _inode.Pool.Free, _inode.Pool.Reserved);

    private void PunchHole(KTask current, ulong start, ulong end)
    {
        ulong first = (start + PageBytes - 1) / PageBytes * PageBytes;
        ulong last = end / PageBytes * PageBytes;
        if (first < last)
        {
            RemovePages(current, first, last);
        }
        Clear(current, start, Math.Min(end, first));
        if (last >= first)
        {
            Clear(current, last, end);
        }
    }

    private void RemovePages(KTask current, ulong start, ulong end)
    {
        VfsInode.UnmapMappingRange(current, start >> PageSize.Shift, end >> PageSize.Shift);
        _inode.Remove(current, start / PageBytes, end / PageBytes);
    }

    private void Clear(KTask current, ulong start, ulong end)
    {
        while (start < end)
        {
            int offset = (int)(start & PageSize.OffsetMask);
            ulong part = Math.Min(end - start, (ulong)(PageSize.Bytes - offset));
            if (TryPeek(start >> PageSize.Shift, out Pfn pfn))
            {
                current.Machine.HostWrite(current, pfn, offset, new byte[part]);
            }
            start += part;
        }
    }
}
