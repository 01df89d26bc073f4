using SimKvm.Kvm.Historical;
using SimKvm.Profiles;
using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimKvm.Userspace;

// pipe2, sendfile, splice, vmsplice: calls that make or need a pipe.
internal static partial class Vfs
{
    public static readonly Rule PipeFlags = new(
        "pipe.flags", "the flags are none of O_CLOEXEC and O_NONBLOCK", "do_pipe2", "clear the others", "flags");

    public static readonly Rule SpliceNeedsPipe = new(
        "vfs.splice.pipe", "neither descriptor is a pipe", "do_splice", "splice from or to a pipe", "fd_in#", "fd_out#");

    public static readonly Rule SamePipe = new("vfs.splice.same-pipe", "both descriptors are ends of one pipe", "do_splice", "splice into another pipe");

    public static readonly Rule AppendOnly = new(
        "vfs.splice.append", "the target is open with O_APPEND, and splicing writes at a position", "do_splice, do_splice_direct_actor", "clear O_APPEND (0x400)", "open_flags");

    public static readonly Rule NoSplice = new(
        "vfs.splice.method", "the file's content cannot be spliced: it has no splice method", "splice_file_to_pipe, do_splice_from",
        "map the file if it can be mapped, and write from the mapping", "fd_kind#");

    public static readonly Rule NotAPipe = new(
        "vfs.vmsplice.pipe", "vmsplice wants a pipe", "vmsplice", "use the writing end of a pipe", "fd#");

    public static readonly Rule MemfdFlags = new(
        "memfd.flags", "the flags are not known or not modelled, or the name is longer than 249 bytes", "memfd_create",
        "use MFD_CLOEXEC (1), MFD_ALLOW_SEALING (2), MFD_HUGETLB (4), MFD_NOEXEC_SEAL (8), MFD_EXEC (0x10), MFD_HUGE_2MB (0x54000000), MFD_HUGE_1GB (0x78000000)", "flags",
        "name_length#");

    public static readonly Rule NoSuchHugePage = new(
        "memfd.hugetlb.size", "the machine has no huge pages of this size", "hugetlb_file_setup", "use MFD_HUGE_2MB (0x54000000) or MFD_HUGE_1GB (0x78000000)", "flags");

    /// <summary>memfd_create(2): an empty file in memory.</summary>
    public static SyscallResult MemfdCreate(KTask current, string name, uint flags)
    {
        const uint closeOnExec = 1, allowSealing = 2, hugetlb = 4, noExecSeal = 8, exec = 0x10, hugeSize = 0xfc00_0000;
        const int longestName = 249;
        if (current.Host.Profile.PrivateMemory == PrivateMemoryDesign.InaccessibleMemfd && (flags & InaccessibleMemfd.MFD_INACCESSIBLE) != 0)
        {
            return InaccessibleMemfd.Create(current, name, flags);
        }
        uint known = closeOnExec | allowSealing | noExecSeal | exec | hugetlb | ((flags & hugetlb) != 0 ? hugeSize : 0);
        if ((flags & ~known) != 0 || (flags & (noExecSeal | exec)) == (noExecSeal | exec) || name.Length > longestName)
        {
            return current.Fail(Errno.EINVAL, MemfdFlags, flags, (ulong)name.Length);
        }
        Errno errno = current.Process.Files.Reserve(current, out int fd);
        if (errno != Errno.OK)
        {
            return errno;
        }
        var seals = new MemfdSeals(
            (flags & noExecSeal) != 0 ? Seals.Exec : (flags & allowSealing) != 0 ? Seals.None : Seals.Seal, executable: (flags & noExecSeal) == 0);
        KernelFile file;
        if ((flags & hugetlb) == 0)
        {
            file = ShmemFile.Memfd(current.Host, name, seals);
        }
        else if (current.Host.Hugetlb.PoolOf(flags) is { } pool)
        {
            file = HugetlbFile.Memfd(pool, name, seals);
        }
        else
        {
            return current.Fail(Errno.ENODEV, NoSuchHugePage, flags);
        }
        current.Process.Files.Install(fd, file, (flags & closeOnExec) != 0);
        return SyscallResult.Of(fd);
    }

    /// <summary>pipe2(2).</summary>
    public static Errno Pipe2(KTask current, uint flags, out int readEnd, out int writeEnd)
    {
        writeEnd = -1;
        readEnd = -1;
        if ((flags & ~(OpenFlags.O_CLOEXEC | OpenFlags.O_NONBLOCK)) != 0)
        {
            return current.Fail(Errno.EINVAL, PipeFlags, flags);
        }
        FdTable files = current.Process.Files;
        Errno errno = files.Reserve(current, out int first);
        int second = 0;
        if (errno == Errno.OK)
        {
            errno = files.ReserveFrom(current, first + 1, out second);
        }
        if (errno != Errno.OK)
        {
            return errno;
        }
        var pipe = new Pipe();
        bool closeOnExec = (flags & OpenFlags.O_CLOEXEC) != 0;
        files.Install(first, new PipeFile(pipe, OpenFlags.O_RDONLY | (flags & OpenFlags.O_NONBLOCK)), closeOnExec);
        files.Install(second, new PipeFile(pipe, OpenFlags.O_WRONLY | (flags & OpenFlags.O_NONBLOCK)), closeOnExec);
        (readEnd, writeEnd) = (first, second);
        return Errno.OK;
    }

    /// <summary>sendfile(2) and splice(2) move content inside the kernel. What is modelled: from a file that has content to a pipe, and back.</summary>
    /// <param name="offset">Position in the source; null for its own.</param>
    public static SyscallResult Sendfile(KTask current, int fdOut, int fdIn, long? offset, ulong count)
    {
        Errno errno = LookupFor(current, fdIn, FMode.Read, out KernelFile? source);
        if (errno == Errno.OK && offset is not null && (source!.Methods & FMode.Pread) == 0)
        {
            errno = current.Fail(Errno.ESPIPE, NotSeekable, (ulong)source.Kind);
        }
        errno = errno == Errno.OK ? CheckExtent(current, offset ?? source!.Position, count) : errno;
        KernelFile? target = null;
        errno = errno == Errno.OK ? LookupFor(current, fdOut, FMode.Write, out target) : errno;
        if (errno != Errno.OK)
        {
            return errno;
        }
        errno = target is PipeFile ? Errno.OK : CheckExtent(current, target!.Position, count);
        if (errno != Errno.OK)
        {
            return errno;
        }
        if (target is not PipeFile && (target!.Flags & OpenFlags.O_APPEND) != 0)
        {
            return current.Fail(Errno.EINVAL, AppendOnly, target.Flags);
        }
        if (target is PipeFile)
        {
            return Move(current, source!, target, offset, count, null, fromPipe: false);
        }
        if ((source!.Methods & FMode.Lseek) == 0)
        {
            return current.Fail(Errno.EINVAL, NoSplice, (ulong)source.Kind);
        }
        // splice_direct_to_actor: through a pipe of its own, a pipe at a time. A file that is sent to itself grows on the way.
        ulong done = 0;
        while (done < count)
        {
            SyscallResult part = Move(current, source, target!, offset + (long)done, count - done, null, fromPipe: false);
            if (!part.Succeeded || part.Value == 0)
            {
                return done == 0 ? part : SyscallResult.Of((long)done);
            }
            done += (ulong)part.Value;
        }
        return SyscallResult.Of((long)done);
    }

    /// <summary>splice(2): offsets where there is a pipe come before the ways the files are open.</summary>
    public static SyscallResult Splice(KTask current, int fdIn, long? offsetIn, int fdOut, long? offsetOut, ulong count)
    {
        if (count == 0)
        {
            return SyscallResult.Of(0);
        }
        FdTable files = current.Process.Files;
        Errno errno = files.Lookup(current, fdIn, out KernelFile? source);
        KernelFile? target = null;
        errno = errno == Errno.OK ? files.Lookup(current, fdOut, out target) : errno;
        if (errno != Errno.OK)
        {
            return errno;
        }
        if ((offsetIn is not null && source is PipeFile) || (offsetOut is not null && target is PipeFile))
        {
            return current.Fail(Errno.ESPIPE, NotSeekable, (ulong)FdKind.Pipe);
        }
        errno = CheckOpenFor(current, fdIn, source!, FMode.Read);
        errno = errno == Errno.OK ? CheckOpenFor(current, fdOut, target!, FMode.Write) : errno;
        if (errno != Errno.OK)
        {
            return errno;
        }
        if (source is not PipeFile && target is not PipeFile)
        {
            return current.Fail(Errno.EINVAL, SpliceNeedsPipe, unchecked((uint)fdIn), unchecked((uint)fdOut));
        }
        if ((source as PipeFile)?.Pipe is { } pipe && pipe == (target as PipeFile)?.Pipe)
        {
            return current.Fail(Errno.EINVAL, SamePipe);
        }
        if ((offsetIn is not null && (source!.Methods & FMode.Pread) == 0) || (offsetOut is not null && (target!.Methods & FMode.Pwrite) == 0))
        {
            return current.Fail(Errno.EINVAL, NotSeekable, (ulong)(offsetIn is not null ? source!.Kind : target!.Kind));
        }
        if (target is not PipeFile && (target!.Flags & OpenFlags.O_APPEND) != 0)
        {
            return current.Fail(Errno.EINVAL, AppendOnly, target.Flags);
        }
        errno = target is PipeFile ? Errno.OK : CheckExtent(current, offsetOut ?? target.Position, count);
        return errno == Errno.OK ? Move(current, source!, target!, offsetIn, count, offsetOut, fromPipe: source is PipeFile) : errno;
    }

    /// <summary>vmsplice(2): the pages of the vectors, pinned, go into the pipe; from a reading end, the pipe's bytes go into the vectors.</summary>
    public static SyscallResult Vmsplice(KTask current, int fd, IReadOnlyList<IoVec> vectors)
    {
        Errno errno = current.Process.Files.Lookup(current, fd, out KernelFile? file);
        if (errno != Errno.OK)
        {
            return errno;
        }
        if (file is not PipeFile pipe)
        {
            return current.Fail(Errno.EBADF, NotAPipe, unchecked((uint)fd));
        }
        return TransferVector(current, fd, vectors, null, 0, write: (pipe.Mode & FMode.Write) != 0);
    }

    private static Errno LookupFor(KTask current, int fd, FMode mode, out KernelFile? file)
    {
        Errno errno = current.Process.Files.Lookup(current, fd, out file);
        return errno == Errno.OK ? CheckOpenFor(current, fd, file!, mode) : errno;
    }

    private static Errno CheckOpenFor(KTask current, int fd, KernelFile file, FMode mode) =>
        (file.Mode & mode) != 0 ? Errno.OK : current.Fail(Errno.EBADF, NotOpenFor, unchecked((uint)fd), file.Flags);

    private static SyscallResult Move(KTask current, KernelFile source, KernelFile target, long? from, ulong count, long? to, bool fromPipe)
    {
        if (target is PipeFile pipe)
        {
            // ipipe_prep comes before opipe_prep.
            Errno room = fromPipe ? ((PipeFile)source).CheckFilled(current) : Errno.OK;
            room = room == Errno.OK ? pipe.CheckRoom(current) : room;
            if (room != Errno.OK)
            {
                return room;
            }
            count = Math.Min(count, (ulong)pipe.Pipe.Room);
        }
        Errno extent = fromPipe ? Errno.OK : CheckExtent(current, from ?? source.Position, count);
        if (extent != Errno.OK)
        {
            return extent;
        }
        if (!fromPipe && !source.CanSpliceRead)
        {
            return current.Fail(Errno.EINVAL, NoSplice, (ulong)source.Kind);
        }
        bool writes = (target.Methods & FMode.CanWrite) != 0;
        if (fromPipe && !writes)
        {
            return current.Fail(Errno.EINVAL, NoSplice, (ulong)target.Kind);
        }
        byte[] bytes = new byte[(int)Math.Min(count, 16 * PageSize.Bytes)];
        long readAt = from ?? source.Position;
        SyscallResult read = source.Read(current, UserArg.FromBytes(bytes), (ulong)bytes.Length, ref readAt);
        if (!read.Succeeded || read.Value == 0)
        {
            return read;
        }
        if (!writes)
        {
            return current.Fail(Errno.EINVAL, NoSplice, (ulong)target.Kind);
        }
        long writeAt = to ?? target.Position;
        SyscallResult written = target.Write(current, UserArg.FromBytes(bytes.AsSpan(0, (int)read.Value)), (ulong)read.Value, ref writeAt);
        if (from is null)
        {
            source.Position = readAt;
        }
        if (to is null)
        {
            target.Position = writeAt;
        }
        return written;
    }
}
