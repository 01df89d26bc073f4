using System.Globalization;
using SimMachine.Stepping;

namespace SimKvm.Userspace;

// Names: the device nodes, and procfs as far as it leads back to descriptors and memory.
internal static partial class Vfs
{
    public static readonly Rule NoSuchFile = new(
        "vfs.open.no-such-file", "there is no such file on a simulated host", "path_openat",
        "open /dev/kvm, /dev/sev, /proc/self/fd/N or /proc/self/mem");

    public static readonly Rule SevDisabled = new(
        "vfs.open.no-sev", "the machine has SEV disabled, so there is no /dev/sev", "sev_misc_init", "boot the host with sev enabled");

    public static readonly Rule NotALink = new(
        "vfs.readlink.not-link", "the name is not a symbolic link", "do_readlinkat", "read /proc/self/fd/N");

    public static readonly Rule Exclusive = new(
        "vfs.open.exists", "O_CREAT with O_EXCL, and the file is there", "do_open", "clear O_EXCL (0x80)", "flags");

    public static readonly Rule NotADirectory = new(
        "vfs.open.not-directory", "the name, or what stands before a slash in it, is no directory", "do_open, link_path_walk",
        "clear O_DIRECTORY (0x10000), and take away what is behind the name", "flags");

    // PATH_MAX
    private const int MaxPath = 4096;

    public static readonly Rule PathTooLong = new(
        "vfs.open.path-too-long", "the path has PATH_MAX (4096) characters or more", "getname_flags", "open /dev/kvm or /dev/sev", "length#");

    /// <summary>open(2): a descriptor first, then the name, then the file's open method.</summary>
    public static SyscallResult Open(KTask current, string path, uint flags)
    {
        if (path.Length >= MaxPath)
        {
            return current.Fail(Errno.ENAMETOOLONG, PathTooLong, (ulong)path.Length);
        }
        FdTable files = current.Process.Files;
        Errno errno = files.Reserve(current, out int fd);
        if (errno != Errno.OK)
        {
            return errno;
        }
        // Without O_PATH a 64-bit kernel sets O_LARGEFILE; creation flags are not kept.
        const uint notKept = OpenFlags.O_CREAT | OpenFlags.O_EXCL | OpenFlags.O_CLOEXEC | OpenFlags.O_DIRECTORY;
        uint kept = (flags & ~notKept) | OpenFlags.O_LARGEFILE;
        errno = Find(current, path, flags, kept, out KernelFile? file);
        if (errno == Errno.OK && (kept & (OpenFlags.O_DIRECT | OpenFlags.O_PATH)) == OpenFlags.O_DIRECT && !file!.CanDirectIo)
        {
            errno = current.Fail(Errno.EINVAL, NoDirectIo, flags);
        }
        if (errno != Errno.OK)
        {
            file?.Put(current);
            return errno;
        }
        files.Install(fd, file!, (flags & OpenFlags.O_CLOEXEC) != 0);
        return SyscallResult.Of(fd);
    }

    /// <summary>readlink(2): the names that procfs gives to descriptors.</summary>
    public static SyscallResult Readlink(KTask current, string path, out string target)
    {
        target = "";
        if (path.Length >= MaxPath)
        {
            return current.Fail(Errno.ENAMETOOLONG, PathTooLong, (ulong)path.Length);
        }
        Errno errno = FindProcFd(current, path, out KernelFile? file);
        if (errno != Errno.OK)
        {
            return errno;
        }
        if (file is null)
        {
            bool known = path is "/dev/kvm" or "/dev/sev" || ProcMemOwner(current, path) is not null;
            return current.Fail(known ? Errno.EINVAL : Errno.ENOENT, known ? NotALink : NoSuchFile);
        }
        target = file.Name;
        return SyscallResult.Of(target.Length);
    }

    private static Errno Find(KTask current, string path, uint flags, uint kept, out KernelFile? file)
    {
        bool asPath = (flags & OpenFlags.O_PATH) != 0;
        Errno errno = FindProcFd(current, path, out file);
        if (errno != Errno.OK)
        {
            return errno;
        }
        if (file is { } linked)
        {
            file = null;
            errno = CheckFound(current, flags);
            if (errno == Errno.OK && asPath)
            {
                file = new PathFile(linked);
            }
            return errno != Errno.OK || asPath ? errno : linked.Reopen(current, kept, out file);
        }
        file = path switch
        {
            "/dev/kvm" => new Kvm.KvmDevice(current.Host),
            "/dev/sev" when current.Host.KvmAmd.HasSevDevice => new Vendors.Amd.SevDevice(),
            _ when ProcMemOwner(current, path) is { } owner => new ProcMemFile(owner.Memory),
            _ => null,
        };
        if (file is null)
        {
            bool below = path.Split('/') is ["", "dev", var device, _, ..] && (device == "kvm" || (device == "sev" && current.Host.KvmAmd.HasSevDevice));
            return below ? current.Fail(Errno.ENOTDIR, NotADirectory, flags) : current.Fail(Errno.ENOENT, path == "/dev/sev" ? SevDisabled : NoSuchFile);
        }
        errno = CheckFound(current, flags);
        if (errno == Errno.OK && asPath)
        {
            KernelFile named = file;
            file = new PathFile(named);
            named.Put(current);
        }
        else
        {
            file.Flags = kept;
        }
        return errno;
    }

    // do_open, do_o_path: what is refused of a name that is there, before its own open method.
    private static Errno CheckFound(KTask current, uint flags)
    {
        const uint createNew = OpenFlags.O_CREAT | OpenFlags.O_EXCL;
        if ((flags & (createNew | OpenFlags.O_PATH)) == createNew)
        {
            return current.Fail(Errno.EEXIST, Exclusive, flags);
        }
        return (flags & OpenFlags.O_DIRECTORY) != 0 ? current.Fail(Errno.ENOTDIR, NotADirectory, flags) : Errno.OK;
    }

    // /proc/self/fd/N and /proc/<pid>/fd/N. No error and no file where the name is of another form.
    private static Errno FindProcFd(KTask current, string path, out KernelFile? file)
    {
        file = null;
        string[] parts = path.Split('/');
        if (parts is not ["", "proc", _, "fd", _])
        {
            return Errno.OK;
        }
        return ProcOf(current, parts[2]) is { } process
            && int.TryParse(parts[4], NumberStyles.None, CultureInfo.InvariantCulture, out int fd) && process.Files.TryGet(fd, out file)
                ? Errno.OK
                : current.Fail(Errno.ENOENT, NoSuchFile);
    }

    private static Process? ProcMemOwner(KTask current, string path) =>
        path.Split('/') is ["", "proc", var pid, "mem"] ? ProcOf(current, pid) : null;

    private static Process? ProcOf(KTask current, string pid) =>
        pid == "self" ? current.Process
        : int.TryParse(pid, NumberStyles.None, CultureInfo.InvariantCulture, out int number) ? current.Host.FindProcess(number)
        : null;
}
