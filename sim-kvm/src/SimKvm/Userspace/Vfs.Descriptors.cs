using SimMachine.Stepping;

namespace SimKvm.Userspace;

// dup, fcntl, flock, posix_fadvise, poll: calls on descriptors and on what every open file has.
internal static partial class Vfs
{
    public const uint PollIn = 0x1;
    public const uint PollOut = 0x4;
    public const uint PollErr = 0x8;
    public const uint PollHup = 0x10;
    public const uint PollNval = 0x20;
    public const uint PollRdNorm = 0x40;
    public const uint PollWrNorm = 0x100;

    private const uint LockShared = 1;
    private const uint LockExclusive = 2;
    private const uint LockNonBlocking = 4;
    private const uint LockUnlock = 8;

    public static readonly Rule UnknownFcntl = new(
        "vfs.fcntl.command", "the fcntl command is not known for this file, or not modelled", "do_fcntl",
        "use F_DUPFD, F_DUPFD_CLOEXEC, F_GETFD, F_SETFD, F_GETFL, F_SETFL; F_ADD_SEALS and F_GET_SEALS on a memfd", "cmd#");

    public static readonly Rule NoDirectIo = new(
        "vfs.fcntl.direct", "the file cannot do direct I/O", "setfl", "clear O_DIRECT (0x4000)", "flags");

    public static readonly Rule BadDupTarget = new(
        "vfs.dup.target", "the wanted descriptor is negative, or not below RLIMIT_NOFILE", "f_dupfd, ksys_dup3", "choose a smaller one", "fd", "limit#");

    public static readonly Rule SameDescriptor = new(
        "vfs.dup.same", "dup3 wants two different descriptors", "ksys_dup3", "use dup2, or another target", "fd#");

    public static readonly Rule BadFlock = new(
        "vfs.flock.operation", "the operation is none of LOCK_SH, LOCK_EX and LOCK_UN", "flock", "use 1, 2 or 8, with LOCK_NB (4) if wanted", "operation");

    public static readonly Rule BadAdvice = new(
        "vfs.fadvise.advice", "the advice is not known", "generic_fadvise", "use POSIX_FADV_NORMAL (0) to POSIX_FADV_NOREUSE (5)", "advice#");

    public static readonly Rule FadviseOnPipe = new(
        "vfs.fadvise.pipe", "a pipe takes no advice", "generic_fadvise", "advise a file that has pages");

    /// <summary>dup(2).</summary>
    public static SyscallResult Dup(KTask current, int fd) => DupFrom(current, fd, 0, closeOnExec: false);

    /// <summary>dup3(2): the target is closed first if it is open. Without <paramref name="strict"/> dup2, which does nothing for equal descriptors.</summary>
    public static SyscallResult DupTo(KTask current, int fd, int target, bool closeOnExec, bool strict)
    {
        FdTable files = current.Process.Files;
        if (fd == target)
        {
            Errno open = strict ? current.Fail(Errno.EINVAL, SameDescriptor, unchecked((uint)fd)) : files.LookupRaw(current, fd, out _);
            return open == Errno.OK ? SyscallResult.Of(fd) : open;
        }
        if (target < 0 || target >= files.Limit)
        {
            return current.Fail(Errno.EBADF, BadDupTarget, unchecked((uint)target), (ulong)files.Limit);
        }
        Errno errno = files.LookupRaw(current, fd, out KernelFile? file);
        if (errno != Errno.OK)
        {
            return errno;
        }
        file!.Get();
        if (files.TryGet(target, out _))
        {
            files.Close(current, target);
        }
        files.Install(target, file, closeOnExec);
        return SyscallResult.Of(target);
    }

    private static SyscallResult DupFrom(KTask current, int fd, int from, bool closeOnExec)
    {
        FdTable files = current.Process.Files;
        Errno errno = files.LookupRaw(current, fd, out KernelFile? file);
        if (errno == Errno.OK && (from < 0 || from >= files.Limit))
        {
            errno = current.Fail(Errno.EINVAL, BadDupTarget, unchecked((uint)from), (ulong)files.Limit);
        }
        int copy = 0;
        if (errno == Errno.OK)
        {
            errno = files.ReserveFrom(current, from, out copy);
        }
        if (errno != Errno.OK)
        {
            return errno;
        }
        file!.Get();
        files.Install(copy, file, closeOnExec);
        return SyscallResult.Of(copy);
    }

    private enum FcntlCommand : uint
    {
        F_DUPFD = 0,
        F_GETFD = 1,
        F_SETFD = 2,
        F_GETFL = 3,
        F_SETFL = 4,
        F_DUPFD_CLOEXEC = 1030,
        F_ADD_SEALS = 1033,
        F_GET_SEALS = 1034,
    }

    /// <summary>fcntl(2). An O_PATH descriptor knows the commands that are about descriptors only (check_fcntl_cmd).</summary>
    public static SyscallResult Fcntl(KTask current, int fd, uint command, ulong arg)
    {
        FdTable files = current.Process.Files;
        var cmd = (FcntlCommand)command;
        bool onDescriptor = cmd is FcntlCommand.F_DUPFD or FcntlCommand.F_DUPFD_CLOEXEC or FcntlCommand.F_GETFD or FcntlCommand.F_SETFD or FcntlCommand.F_GETFL;
        Errno errno = onDescriptor ? files.LookupRaw(current, fd, out KernelFile? file) : files.Lookup(current, fd, out file);
        if (errno != Errno.OK)
        {
            return errno;
        }
        switch (cmd)
        {
            case FcntlCommand.F_DUPFD:
            case FcntlCommand.F_DUPFD_CLOEXEC:
                return DupFrom(current, fd, (int)Math.Min(arg, int.MaxValue), closeOnExec: cmd == FcntlCommand.F_DUPFD_CLOEXEC);
            case FcntlCommand.F_GETFD:
                return SyscallResult.Of(files.GetCloseOnExec(fd) ? 1 : 0);
            case FcntlCommand.F_SETFD:
                files.SetCloseOnExec(fd, (arg & 1) != 0);
                return Errno.OK;
            case FcntlCommand.F_GETFL:
                return SyscallResult.Of(file!.Flags);
            case FcntlCommand.F_SETFL:
                return SetFlags(current, file!, (uint)arg);
            case FcntlCommand.F_ADD_SEALS:
                return MemfdSeals.Add(current, file!, (uint)arg);
            case FcntlCommand.F_GET_SEALS:
                return MemfdSeals.Get(current, file!);
            default:
                return current.Fail(Errno.EINVAL, UnknownFcntl, command);
        }
    }

    private static Errno SetFlags(KTask current, KernelFile file, uint flags)
    {
        const uint settable = OpenFlags.O_APPEND | OpenFlags.O_NONBLOCK | OpenFlags.O_NOATIME | OpenFlags.O_DIRECT;
        // On a pipe the flag asks for packets.
        if ((flags & OpenFlags.O_DIRECT) != 0 && !IsFifo(file) && !file.CanDirectIo)
        {
            return current.Fail(Errno.EINVAL, NoDirectIo, flags);
        }
        file.Flags = (flags & settable) | (file.Flags & ~settable);
        return Errno.OK;
    }

    /// <summary>flock(2). A lock that would have to be waited for is EAGAIN, with or without LOCK_NB.</summary>
    public static Errno Flock(KTask current, int fd, uint operation)
    {
        uint kind = operation & ~LockNonBlocking;
        if (kind is not (LockShared or LockExclusive or LockUnlock))
        {
            return current.Fail(Errno.EINVAL, BadFlock, operation);
        }
        Errno errno = current.Process.Files.Lookup(current, fd, out KernelFile? file);
        if (errno != Errno.OK)
        {
            return errno;
        }
        if (kind == LockUnlock)
        {
            file!.VfsInode.ReleaseLock(file);
            return Errno.OK;
        }
        return file!.VfsInode.Lock(current, file, exclusive: kind == LockExclusive);
    }

    /// <summary>posix_fadvise(2). Advice is taken and has no effect: there is no page cache to be read ahead or dropped.</summary>
    public static Errno Fadvise(KTask current, int fd, long len, uint advice)
    {
        const uint noReuse = 5;
        Errno errno = current.Process.Files.Lookup(current, fd, out KernelFile? file);
        if (errno != Errno.OK)
        {
            return errno;
        }
        if (IsFifo(file!))
        {
            return current.Fail(Errno.ESPIPE, FadviseOnPipe);
        }
        return len < 0 || advice > noReuse ? current.Fail(Errno.EINVAL, BadAdvice, advice) : Errno.OK;
    }

    /// <summary>poll(2) with no timeout: the events of each descriptor that are ready now.</summary>
    /// <returns>How many descriptors have any.</returns>
    public static SyscallResult Poll(KTask current, ReadOnlySpan<(int Fd, uint Events)> wanted, Span<uint> ready)
    {
        int count = 0;
        for (int i = 0; i < wanted.Length; i++)
        {
            // A negative descriptor is skipped; POLLERR and POLLHUP are told unasked.
            ready[i] = wanted[i].Fd < 0 ? 0
                : current.Process.Files.TryGet(wanted[i].Fd, out KernelFile? file) && file is not PathFile ? file.Poll & (wanted[i].Events | PollErr | PollHup)
                : PollNval;
            count += ready[i] != 0 ? 1 : 0;
        }
        return SyscallResult.Of(count);
    }
}
