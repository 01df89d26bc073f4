namespace SimKvm.Userspace;

// do_vfs_ioctl: the numbers that every file knows, answered before the file is asked. Anonymous files are left out of those about content since 6.16.
internal static partial class Vfs
{
    private const uint FIONCLEX = 0x5450;
    private const uint FIOCLEX = 0x5451;
    private const uint FIONBIO = 0x5421;
    private const uint FIOASYNC = 0x5452;
    private const uint FIOQSIZE = 0x5460;
    private const uint FIONREAD = 0x541b;
    private const uint FIGETBSZ = 2;

    /// <summary>The answer of a number that the VFS knows; null where the file is to be asked.</summary>
    public static SyscallResult? Ioctl(KTask current, int fd, KernelFile file, uint request, UserArg arg)
    {
        FdTable files = current.Process.Files;
        bool content = (file.Stat().Mode & FileTypeMask) == RegularFile && file.Kind != FdKind.GuestMemfd;
        switch (request)
        {
            case FIOCLEX:
                files.SetCloseOnExec(fd, true);
                return Errno.OK;
            case FIONCLEX:
                files.SetCloseOnExec(fd, false);
                return Errno.OK;
            case FIONBIO:
                {
                    Errno errno = arg.CopyIn(current, out int on);
                    if (errno == Errno.OK)
                    {
                        file.Flags = on != 0 ? file.Flags | OpenFlags.O_NONBLOCK : file.Flags & ~OpenFlags.O_NONBLOCK;
                    }
                    return errno;
                }
            case FIOASYNC:
                {
                    Errno errno = arg.CopyIn(current, out int on);
                    return errno != Errno.OK ? errno : on != 0 ? current.Fail(Errno.ENOTTY, KernelFile.NoMethod, (ulong)file.Kind) : Errno.OK;
                }
            case FIGETBSZ:
                return arg.CopyOut(current, (int)file.FileSystem.BlockSize);
            case FIONREAD when content:
                return arg.CopyOut(current, (int)((long)file.Stat().Size - file.Position));
            case FIONREAD when file is PipeFile pipe:
                return arg.CopyOut(current, pipe.Pipe.Count);
            case FIOQSIZE:
                return content ? arg.CopyOut(current, file.Stat().Size) : current.Fail(Errno.ENOTTY, KernelFile.NoMethod, (ulong)file.Kind);
            default:
                return null;
        }
    }
}
