using SimMachine.Stepping;

namespace SimKvm.Userspace;

/// <summary>What the VFS checks before it calls a file's method.</summary>
internal static partial class Vfs
{
    public const uint KeepSize = 1;
    public const uint PunchHole = 2;

    // FALLOC_FL_KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE, INSERT_RANGE, UNSHARE_RANGE, WRITE_ZEROES
    private const uint KnownModes = 0x01 | 0x02 | 0x08 | 0x10 | 0x20 | 0x40 | 0x80;

    public static readonly Rule BadRange = new(
        "vfs.fallocate.range", "the offset is negative or the length is not positive", "vfs_fallocate", "give an offset of 0 or more and a length above 0",
        "offset", "len");

    public static readonly Rule BadMode = new(
        "vfs.fallocate.mode", "the mode has unknown bits, or punches a hole without FALLOC_FL_KEEP_SIZE", "vfs_fallocate",
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
        if ((mode & ~KnownModes) != 0 || (mode & (PunchHole | KeepSize)) == PunchHole)
        {
            return current.Fail(Errno.EOPNOTSUPP, BadMode, mode);
        }
        if (file!.Kind == FdKind.GuestMemfd && offset > long.MaxValue - len)
        {
            return current.Fail(Errno.EFBIG, TooBig, (ulong)offset, (ulong)len);
        }
        return file.Fallocate(current, mode, offset, len);
    }
}
