using SimMachine.Stepping;

namespace SimKvm.Userspace;

/// <summary>
/// What the VFS checks before it calls a file's method, in the order of the kernel: here fallocate and changes of the inode. Next door: reading and writing,
/// descriptors and their flags, names, pipes, and the ioctls that every file has.
/// </summary>
internal static partial class Vfs
{
    public const uint KeepSize = 0x01;
    public const uint PunchHole = 0x02;

    private const uint CollapseRange = 0x08;
    private const uint ZeroRange = 0x10;
    private const uint InsertRange = 0x20;
    private const uint UnshareRange = 0x40;
    private const uint WriteZeroes = 0x80;

    private const uint FileTypeMask = 0xf000;
    private const uint RegularFile = 0x8000;
    private const uint Fifo = 0x1000;

    public static readonly Rule BadRange = new(
        "vfs.fallocate.range", "the offset is negative or the length is not positive", "vfs_fallocate", "give an offset of 0 or more and a length above 0",
        "offset", "len");

    public static readonly Rule BadMode = new(
        "vfs.fallocate.mode", "the mode is not one that exists, or KEEP_SIZE is missing or out of place", "vfs_fallocate",
        "use KEEP_SIZE (1) to allocate, KEEP_SIZE | PUNCH_HOLE (3) to punch", "mode");

    public static readonly Rule TooBig = new(
        "vfs.fallocate.too-big", "offset + len goes past the largest file offset", "vfs_fallocate", "stay below 2^63", "offset", "len");

    public static readonly Rule NotOpenFor = new(
        "vfs.access-mode", "the descriptor is not open for this kind of access", "FMODE_READ, FMODE_WRITE", "open the file O_RDWR", "fd#", "open_flags");

    public static readonly Rule NotRegular = new(
        "vfs.truncate.not-regular", "only a regular file that is open for writing has a size to change", "do_ftruncate", "truncate a memfd", "mode");

    public static readonly Rule NegativeLength = new(
        "vfs.truncate.length", "the length is negative", "do_sys_ftruncate", "give a length of 0 or more", "length");

    /// <summary>fallocate(2). Order as in ksys_fallocate and vfs_fallocate.</summary>
    public static Errno Fallocate(KTask current, int fd, uint mode, long offset, long len)
    {
        Errno errno = current.Process.Files.Lookup(current, fd, out KernelFile? file);
        return errno != Errno.OK ? errno : Fallocate(current, fd, file!, mode, offset, len);
    }

    /// <summary>vfs_fallocate.</summary>
    public static Errno Fallocate(KTask current, int fd, KernelFile file, uint mode, long offset, long len)
    {
        if (offset < 0 || len <= 0)
        {
            return current.Fail(Errno.EINVAL, BadRange, (ulong)offset, (ulong)len);
        }
        Errno refused = current.Host.Profile.FallocateOneOperation ? ModeError(current, mode) : OlderModeError(mode);
        if (refused != Errno.OK)
        {
            return current.Fail(refused, BadMode, mode);
        }
        if ((file.Mode & FMode.Write) == 0)
        {
            return current.Fail(Errno.EBADF, NotOpenFor, (uint)fd, file.Flags);
        }
        if ((file.Stat().Mode & FileTypeMask) != RegularFile)
        {
            return current.Fail(IsFifo(file) ? Errno.ESPIPE : Errno.ENODEV, KernelFile.NoFallocate, (ulong)file.Kind);
        }
        if (offset > long.MaxValue - len)
        {
            return current.Fail(Errno.EFBIG, TooBig, (ulong)offset, (ulong)len);
        }
        return file.Fallocate(current, mode, offset, len);
    }

    // Since 6.12 the modes are a list of which one is chosen, and KEEP_SIZE is a flag that some of them take.
    private static Errno ModeError(KTask current, uint mode)
    {
        bool keepSize = (mode & KeepSize) != 0;
        bool exists = (mode & ~KeepSize) switch
        {
            0 or UnshareRange or ZeroRange => true,
            PunchHole => keepSize,
            CollapseRange or InsertRange => !keepSize,
            WriteZeroes => !keepSize && current.Host.Profile.FallocateWriteZeroes,
            _ => false,
        };
        return exists ? Errno.OK : Errno.EOPNOTSUPP;
    }

    // Before, each combination that made no sense was refused by itself, some with another errno.
    private static Errno OlderModeError(uint mode)
    {
        const uint known = KeepSize | PunchHole | CollapseRange | ZeroRange | InsertRange | UnshareRange;
        if ((mode & ~known) != 0 || (mode & (PunchHole | ZeroRange)) == (PunchHole | ZeroRange) || (mode & (PunchHole | KeepSize)) == PunchHole)
        {
            return Errno.EOPNOTSUPP;
        }
        bool alone = ((mode & CollapseRange) == 0 || mode == CollapseRange)
            && ((mode & InsertRange) == 0 || mode == InsertRange)
            && ((mode & UnshareRange) == 0 || (mode & ~(UnshareRange | KeepSize)) == 0);
        return alone ? Errno.OK : Errno.EINVAL;
    }

    /// <summary>ftruncate(2).</summary>
    public static Errno Ftruncate(KTask current, int fd, long length)
    {
        if (length < 0)
        {
            return current.Fail(Errno.EINVAL, NegativeLength, (ulong)length);
        }
        Errno errno = current.Process.Files.Lookup(current, fd, out KernelFile? file);
        if (errno != Errno.OK)
        {
            return errno;
        }
        FileStat stat = file!.Stat();
        if ((stat.Mode & FileTypeMask) != RegularFile || (file.Mode & FMode.Write) == 0)
        {
            return current.Fail(Errno.EINVAL, NotRegular, stat.Mode);
        }
        return file.Truncate(current, length);
    }

    /// <summary>fchmod(2), fchown(2), futimens(2): what notify_change asks the inode.</summary>
    public static Errno Setattr(KTask current, int fd)
    {
        Errno errno = current.Process.Files.Lookup(current, fd, out KernelFile? file);
        return errno != Errno.OK ? errno : file!.Setattr(current);
    }

    /// <summary>fsync(2) and fdatasync(2).</summary>
    public static Errno Fsync(KTask current, int fd)
    {
        Errno errno = current.Process.Files.Lookup(current, fd, out KernelFile? file);
        return errno != Errno.OK ? errno : file!.Fsync(current);
    }

    private static bool IsFifo(KernelFile file) => (file.Stat().Mode & FileTypeMask) == Fifo;
}
