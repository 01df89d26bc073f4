using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimKvm.Userspace;

/// <summary>Which file operations an fd has, as far as ioctl dispatch goes.</summary>
public enum FdKind
{
    Kvm,
    Vm,
    Vcpu,
    GuestMemfd,
    Sev,
    Pipe,
    Memfd,
    Path,
    Proc,
    TdxModule,
}

/// <summary>FMODE_*: what can be done with an open file, by its open flags and by the methods it has.</summary>
[Flags]
internal enum FMode
{
    None = 0,
    Read = 0x1,
    Write = 0x2,
    Lseek = 0x4,
    Pread = 0x8,
    Pwrite = 0x10,

    /// <summary>Opened with O_PATH: a name, not a file.</summary>
    Path = 0x4000,
    CanRead = 0x2_0000,
    CanWrite = 0x4_0000,
}

/// <summary>O_*: open flags on x86-64.</summary>
internal static class OpenFlags
{
    public const uint O_RDONLY = 0;
    public const uint O_WRONLY = 1;
    public const uint O_RDWR = 2;
    public const uint O_ACCMODE = 3;
    public const uint O_CREAT = 0x40;
    public const uint O_EXCL = 0x80;
    public const uint O_APPEND = 0x400;
    public const uint O_NONBLOCK = 0x800;
    public const uint O_DIRECT = 0x4000;
    public const uint O_LARGEFILE = 0x8000;
    public const uint O_DIRECTORY = 0x1_0000;
    public const uint O_NOATIME = 0x4_0000;
    public const uint O_CLOEXEC = 0x8_0000;
    public const uint O_PATH = 0x20_0000;
}

/// <summary>
/// An open file of the simulated kernel (struct file): referenced by fds and by mappings, released when the last reference is dropped. The virtual methods are
/// its file operations; their defaults are what the VFS answers for an absent one.
/// </summary>
public abstract class KernelFile
{
    public static readonly Rule NoFallocate = new(
        "vfs.fallocate.not-regular", "the file is not a regular file", "vfs_fallocate", "fallocate a guest_memfd", "fd_kind#");

    public static readonly Rule NoMmap = new(
        "vfs.mmap.no-method", "the file cannot be mapped", "do_mmap", "map anonymous memory, or a guest_memfd made with GUEST_MEMFD_FLAG_MMAP", "fd_kind#");

    public static readonly Rule NoMethod = new(
        "vfs.no-method", "files of this kind do not have the operation", "vfs_read, vfs_write, vfs_fsync_range, splice_file_to_pipe",
        "use ioctls, or a mapping where the file can be mapped", "fd_kind#");

    public static readonly Rule NoSetattr = new(
        "vfs.setattr", "mode, owner, times and size of such a file cannot be changed", "anon_inode_setattr",
        "leave them; what is modelled of the file does not depend on them", "fd_kind#");

    public static readonly Rule NotReopenable = new(
        "vfs.open.no-open", "the inode has no open method: what a descriptor refers to cannot be opened again by its name", "no_open",
        "dup the descriptor, or open it with O_PATH (0x200000)", "fd_kind#");

    private int _references = 1;
    private VfsInode? _inode;

    public abstract FdKind Kind { get; }

    /// <summary>The name the fd has in procfs, for people.</summary>
    public abstract string Name { get; }

    /// <summary>O_*, as F_GETFL tells them.</summary>
    internal virtual uint Flags { get; set; } = OpenFlags.O_RDWR;

    /// <summary>f_pos</summary>
    internal long Position { get; set; }

    /// <summary>The inode counts this file among the holders of its advisory lock.</summary>
    internal bool HoldsLock { get; set; }

    /// <summary>What the VFS keeps of the inode. Files that share an inode share this.</summary>
    internal virtual VfsInode VfsInode => _inode ??= new VfsInode();

    /// <summary>The seals of a memfd's inode; null for files that cannot have any.</summary>
    internal virtual MemfdSeals? MemfdSeals => null;

    /// <summary>The size of page in which the file is mapped: larger than 4 KiB on hugetlbfs.</summary>
    internal virtual PageLevel MappingLevel => PageLevel.Page4K;

    /// <summary>Methods that the file has: FMODE_LSEEK, PREAD, PWRITE, CAN_READ, CAN_WRITE.</summary>
    internal virtual FMode Methods => FMode.None;

    /// <summary>f_mode</summary>
    internal FMode Mode => Methods | (Flags & OpenFlags.O_ACCMODE) switch
    {
        OpenFlags.O_RDONLY => FMode.Read,
        OpenFlags.O_WRONLY => FMode.Write,
        OpenFlags.O_RDWR => FMode.Read | FMode.Write,
        _ => FMode.None,
    };

    /// <summary>path_noexec(): the file system is mounted no-exec.</summary>
    internal virtual bool OnNoExecFileSystem => false;

    /// <summary>File references, 0 once the file is released. A count of 0 with release not yet run is a dying file.</summary>
    internal int References => _references;

    internal void Get() => _references++;

    /// <summary>What threads may touch at the same time, in an order that is always the same; for exploration.</summary>
    internal virtual IEnumerable<object> SharedState => [this];

    /// <summary>fput(): the last reference runs release.</summary>
    internal void Put(KTask current)
    {
        current.Machine.Writing(this);
        if (--_references == 0)
        {
            if (HoldsLock)
            {
                VfsInode.ReleaseLock(this);
            }
            Release(current);
        }
        else if (_references < 0)
        {
            throw new InvalidOperationException($"{Name} was put more often than it was taken");
        }
    }

    /// <summary>Checks that precede every ioctl on this fd, also unknown ones.</summary>
    internal virtual Errno IoctlEntry(KTask current, uint request) => Errno.OK;

    /// <summary>What an ioctl number that this fd does not know answers.</summary>
    internal virtual Errno UnknownIoctl => Errno.ENOTTY;

    /// <summary>read_iter, of at most <paramref name="count"/> bytes from <paramref name="position"/>, which it moves.</summary>
    internal virtual SyscallResult Read(KTask current, UserArg buffer, ulong count, ref long position) =>
        current.Fail(Errno.EINVAL, NoMethod, (ulong)Kind);

    /// <summary>write_iter.</summary>
    internal virtual SyscallResult Write(KTask current, UserArg buffer, ulong count, ref long position) =>
        current.Fail(Errno.EINVAL, NoMethod, (ulong)Kind);

    /// <summary>llseek of a file that has FMODE_LSEEK. The default is noop_llseek: the position stays.</summary>
    internal virtual SyscallResult Llseek(KTask current, long offset, uint whence) => SyscallResult.Of(Position);

    internal virtual Errno Fsync(KTask current) => current.Fail(Errno.EINVAL, NoMethod, (ulong)Kind);

    /// <summary>inode->setattr for mode, owner and times (notify_change).</summary>
    internal virtual Errno Setattr(KTask current) => current.Fail(Errno.EOPNOTSUPP, NoSetattr, (ulong)Kind);

    /// <summary>inode->setattr for the size.</summary>
    internal virtual Errno Truncate(KTask current, long length) => Setattr(current);

    internal virtual Errno Fallocate(KTask current, uint mode, long offset, long len) =>
        current.Fail(Errno.ENODEV, NoFallocate, (ulong)Kind);

    /// <summary>The file's mmap method. Nothing is populated here; accesses come through <see cref="Fault"/>.</summary>
    internal virtual Errno Mmap(KTask current, in FileMapping mapping) => current.Fail(Errno.ENODEV, NoMmap, (ulong)Kind);

    /// <summary>
    /// A host access to a page of a mapping of this file. An errno stands for the signal that the program would get: EHWPOISON for a failed page, ENOMEM where
    /// memory is exhausted, any other for SIGBUS.
    /// </summary>
    internal virtual Errno Fault(KTask current, ulong index, out Pfn pfn)
    {
        pfn = default;
        return Errno.EFAULT;
    }

    /// <summary>A host mapping of the page, once made, would be there still.</summary>
    internal virtual bool StillGives(ulong index, Pfn pfn) => true;

    /// <summary>The frame that <see cref="Fault"/> would give, if it is there already.</summary>
    internal virtual bool TryPeek(ulong index, out Pfn pfn)
    {
        pfn = default;
        return false;
    }

    /// <summary>memory_failure of one of the file's pages. The default is a page that the kernel itself uses.</summary>
    internal virtual Errno MemoryFailure(KTask current, ulong index) => current.Fail(Errno.EBUSY, UserMemory.NotAFailingPage, index << PageSize.Shift);

    /// <summary>poll method: the events that are ready. The default is what a file without one gives (DEFAULT_POLLMASK).</summary>
    internal virtual uint Poll => Vfs.PollIn | Vfs.PollOut | Vfs.PollRdNorm | Vfs.PollWrNorm;

    /// <summary>Whether it has a splice_read method.</summary>
    internal virtual bool CanSpliceRead => (Methods & FMode.CanRead) != 0;

    /// <summary>FMODE_CAN_ODIRECT: whether it may be open with O_DIRECT.</summary>
    internal virtual bool CanDirectIo => false;

    /// <summary>Opens the same inode again (open of /proc/self/fd/N).</summary>
    internal virtual Errno Reopen(KTask current, uint flags, out KernelFile? file)
    {
        file = null;
        return current.Fail(Errno.ENXIO, NotReopenable, (ulong)Kind);
    }

    internal virtual FileStat Stat() => new(0, 0x180, 0);

    /// <summary>statfs of the file system that the file is on; the anonymous-inode one unless the file says otherwise.</summary>
    internal virtual FileSystemStat FileSystem => FileSystemStat.AnonInode;

    /// <summary>Last reference is gone.</summary>
    internal abstract void Release(KTask current);
}

/// <summary>What a file's mmap method is told (of vm_area_struct).</summary>
/// <param name="Shared">MAP_SHARED</param>
/// <param name="Writable">PROT_WRITE</param>
/// <param name="FirstPage">Page of the file at the mapping's start.</param>
/// <param name="Pages">Length in pages.</param>
/// <param name="NoReserve">MAP_NORESERVE</param>
internal readonly record struct FileMapping(bool Shared, bool Writable, ulong FirstPage, ulong Pages, bool NoReserve);

/// <summary>What fstat fills, as far as the simulated files have it.</summary>
/// <param name="Size">Bytes.</param>
/// <param name="Mode">File type and permission bits.</param>
/// <param name="Blocks">Blocks of 512 bytes.</param>
public readonly record struct FileStat(ulong Size, uint Mode, ulong Blocks)
{
    public uint Nlink { get; init; } = 1;

    public uint Uid { get; init; }

    public uint Gid { get; init; }

    /// <summary>Device number of a device node, as the kernel encodes it.</summary>
    public ulong Rdev { get; init; }

    public uint BlockSize { get; init; } = 4096;

    /// <summary>Last change of content and of attributes, in virtual time: the number of the call that made it; 0 before the first.</summary>
    public ulong MtimeCall { get; init; }
}

/// <summary>What fstatfs fills.</summary>
/// <param name="Type">Magic number of the file system.</param>
/// <param name="BlockSize">Bytes.</param>
public readonly record struct FileSystemStat(ulong Type, ulong BlockSize)
{
    internal static FileSystemStat AnonInode => new(0x0904_1934, 4096);

    internal static FileSystemStat Tmpfs => new(0x0102_1994, 4096);

    internal static FileSystemStat PipeFs => new(0x5049_5045, 4096);

    internal static FileSystemStat Proc => new(0x9fa0, 4096);
}
