using SimMachine.Stepping;

namespace SimKvm.Userspace;

/// <summary>What the VFS checks before it calls a file's method.</summary>
internal static class Vfs
{
    public const uint KeepSize = 1;
    public const uint PunchHole = 2;

    // FALLOC_FL_*
    private const uint CollapseRange = 0x08;
    private const uint ZeroRange = 0x10;
    private const uint InsertRange = 0x20;
    private const uint UnshareRange = 0x40;
    private const uint WriteZeroes = 0x80;

    public static readonly Rule BadRange = new(
        "vfs.fallocate.range", "the offset is negative or the length is not positive", "vfs_fallocate", "give an offset of 0 or more and a length above 0",
        "offset", "len");

    public static readonly Rule BadMode = new(
        "vfs.fallocate.mode", "the mode has unknown bits, combines operations, or punches a hole without FALLOC_FL_KEEP_SIZE", "vfs_fallocate",
        "use KEEP_SIZE (1) to allocate, KEEP_SIZE | PUNCH_HOLE (3) to punch", "mode");

    public static readonly Rule TooBig = new(
        "vfs.fallocate.too-big", "offset + len goes past the largest file offset", "vfs_fallocate", "stay below 2^63", "offset", "len");

    /// <summary>fallocate(2). Order as in vfs_fallocate.</summary>
    public static Errno Fallocate(KTask current, int fd, uint mode, long offset, long len)
    {
        Errno errno = current.Process.Files.Lookup(current, fd, out KernelFile? file);
        if (errno != Errno.OK)
        {
            return errno;
        }
        if (offset < 0 || len <= 0)
        {
            return current.Fail(Errno.EINVAL, BadRange, (ulong)offset, (ulong)len);
        }
        errno = current.Host.Profile.FallocateOneOperation ? CheckOneOperation(current, mode) : CheckCombinations(current, mode);
        if (errno != Errno.OK)
        {
            return errno;
        }
        if (file!.Kind == FdKind.GuestMemfd && offset > long.MaxValue - len)
        {
            return current.Fail(Errno.EFBIG, TooBig, (ulong)offset, (ulong)len);
        }
        return file.Fallocate(current, mode, offset, len);
    }

    // 6.12 and later: one operation, with KEEP_SIZE where it must or may be.
    private static Errno CheckOneOperation(KTask current, uint mode)
    {
        bool keepSize = (mode & KeepSize) != 0;
        bool known = (mode & ~KeepSize) switch
        {
            0 or UnshareRange or ZeroRange => true,
            PunchHole => keepSize,
            CollapseRange or InsertRange or WriteZeroes => !keepSize,
            _ => false,
        };
        return known ? Errno.OK : current.Fail(Errno.EOPNOTSUPP, BadMode, mode);
    }

    // Before 6.12: what excludes what, one after the other.
    private static Errno CheckCombinations(KTask current, uint mode)
    {
        const uint known = KeepSize | PunchHole | CollapseRange | ZeroRange | InsertRange | UnshareRange;
        if ((mode & ~known) != 0 || (mode & (PunchHole | ZeroRange)) == (PunchHole | ZeroRange) || (mode & (PunchHole | KeepSize)) == PunchHole)
        {
            return current.Fail(Errno.EOPNOTSUPP, BadMode, mode);
        }
        bool combined = ((mode & CollapseRange) != 0 && mode != CollapseRange) || ((mode & InsertRange) != 0 && mode != InsertRange)
            || ((mode & UnshareRange) != 0 && (mode & ~(UnshareRange | KeepSize)) != 0);
        return combined ? current.Fail(Errno.EINVAL, BadMode, mode) : Errno.OK;
    }
}
