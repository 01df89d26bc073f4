namespace SimKvm.Userspace;

// System calls on descriptors and names.
public sealed partial class Process
{
    /// <summary>open(2) for reading and writing.</summary>
    public CallReport Open(string path) => Open(path, OpenFlags.O_RDWR);

    /// <summary>open(2).</summary>
    /// <param name="path">/dev/kvm, /dev/sev, /proc/PID/fd/N or /proc/PID/mem; PID may be self.</param>
    /// <param name="flags">O_*</param>
    public CallReport Open(string path, uint flags) => Call($"open {Shown(path)}", current => Vfs.Open(current, path, flags));

    /// <summary>close(2).</summary>
    public CallReport Close(int fd) => Call($"close {fd}", current => Files.Close(current, fd));

    /// <summary>readlink(2) of a name in procfs.</summary>
    public CallReport Readlink(string path, out string target)
    {
        string found = "";
        CallReport report = Call($"readlink {Shown(path)}", current => Vfs.Readlink(current, path, out found));
        target = found;
        return report;
    }

    /// <summary>pipe2(2).</summary>
    public CallReport Pipe(uint flags, out int readEnd, out int writeEnd)
    {
        (int Read, int Write) ends = default;
        CallReport report = Call("pipe2", current => Vfs.Pipe2(current, flags, out ends.Read, out ends.Write));
        (readEnd, writeEnd) = ends;
        return report;
    }

    /// <summary>memfd_create(2).</summary>
    public CallReport MemfdCreate(string name, uint flags) => Call("memfd_create", current => Vfs.MemfdCreate(current, name, flags));

    /// <summary>read(2), or pread64(2) with a position, into user memory.</summary>
    public CallReport ReadFile(int fd, ulong buffer, ulong count, long? position = null) => Call(
        $"{(position is null ? "read" : "pread64")} {fd}", current => Transfer(current, fd, UserArg.FromValue(buffer), count, position, write: false));

    /// <summary>The same into bytes of the caller.</summary>
    public CallReport ReadFile(int fd, Memory<byte> buffer, long? position = null) => Call(
        $"{(position is null ? "read" : "pread64")} {fd}",
        current => Transfer(current, fd, UserArg.FromBytes(buffer.Span), (ulong)buffer.Length, position, write: false));

    /// <summary>write(2), or pwrite64(2) with a position, from user memory.</summary>
    public CallReport WriteFile(int fd, ulong buffer, ulong count, long? position = null) => Call(
        $"{(position is null ? "write" : "pwrite64")} {fd}", current => Transfer(current, fd, UserArg.FromValue(buffer), count, position, write: true));

    /// <summary>The same from bytes of the caller.</summary>
    public CallReport WriteFile(int fd, Memory<byte> buffer, long? position = null) => Call(
        $"{(position is null ? "write" : "pwrite64")} {fd}",
        current => Transfer(current, fd, UserArg.FromBytes(buffer.Span), (ulong)buffer.Length, position, write: true));

    /// <summary>readv(2), or preadv2(2) with a position or flags.</summary>
    public CallReport ReadVector(int fd, IReadOnlyList<IoVec> vectors, long? position = null, uint flags = 0) => Call(
        $"{(position is null ? "readv" : "preadv2")} {fd}", current => Vfs.TransferVector(current, fd, vectors, position, flags, write: false));

    /// <summary>writev(2), or pwritev2(2) with a position or flags.</summary>
    public CallReport WriteVector(int fd, IReadOnlyList<IoVec> vectors, long? position = null, uint flags = 0) => Call(
        $"{(position is null ? "writev" : "pwritev2")} {fd}", current => Vfs.TransferVector(current, fd, vectors, position, flags, write: true));

    /// <summary>lseek(2).</summary>
    public CallReport Lseek(int fd, long offset, uint whence) => Call($"lseek {fd}", current => Vfs.Lseek(current, fd, offset, whence));

    /// <summary>sendfile(2).</summary>
    public CallReport Sendfile(int fdOut, int fdIn, long? offset, ulong count) =>
        Call($"sendfile {fdIn} to {fdOut}", current => Vfs.Sendfile(current, fdOut, fdIn, offset, count));

    /// <summary>splice(2).</summary>
    public CallReport Splice(int fdIn, long? offsetIn, int fdOut, long? offsetOut, ulong count) =>
        Call($"splice {fdIn} to {fdOut}", current => Vfs.Splice(current, fdIn, offsetIn, fdOut, offsetOut, count));

    /// <summary>vmsplice(2).</summary>
    public CallReport Vmsplice(int fd, IReadOnlyList<IoVec> vectors) => Call($"vmsplice {fd}", current => Vfs.Vmsplice(current, fd, vectors));

    /// <summary>fallocate(2).</summary>
    public CallReport Fallocate(int fd, uint mode, long offset, long len) =>
        Call($"fallocate {fd}", current => Vfs.Fallocate(current, fd, mode, offset, len));

    /// <summary>ftruncate(2).</summary>
    public CallReport Ftruncate(int fd, long length) => Call($"ftruncate {fd}", current => Vfs.Ftruncate(current, fd, length));

    /// <summary>fchmod(2).</summary>
    public CallReport Fchmod(int fd) => Call($"fchmod {fd}", current => Vfs.Setattr(current, fd));

    /// <summary>fchown(2).</summary>
    public CallReport Fchown(int fd) => Call($"fchown {fd}", current => Vfs.Setattr(current, fd));

    /// <summary>futimens(3), which is utimensat(2) on a descriptor.</summary>
    public CallReport Futimens(int fd) => Call($"futimens {fd}", current => Vfs.Setattr(current, fd));

    /// <summary>fsync(2); fdatasync(2) is the same here.</summary>
    public CallReport Fsync(int fd, bool dataOnly = false) => Call($"{(dataOnly ? "fdatasync" : "fsync")} {fd}", current => Vfs.Fsync(current, fd));

    /// <summary>fstat(2).</summary>
    public CallReport Fstat(int fd, out FileStat stat)
    {
        FileStat found = default;
        CallReport report = Call($"fstat {fd}", current =>
        {
            Errno errno = Files.LookupRaw(current, fd, out KernelFile? file);
            found = errno == Errno.OK ? file!.Stat() : default;
            return errno;
        });
        stat = found;
        return report;
    }

    /// <summary>fstatfs(2).</summary>
    public CallReport Fstatfs(int fd, out FileSystemStat stat)
    {
        FileSystemStat found = default;
        CallReport report = Call($"fstatfs {fd}", current =>
        {
            Errno errno = Files.LookupRaw(current, fd, out KernelFile? file);
            found = errno == Errno.OK ? file!.FileSystem : default;
            return errno;
        });
        stat = found;
        return report;
    }

    /// <summary>flock(2).</summary>
    public CallReport Flock(int fd, uint operation) => Call($"flock {fd}", current => Vfs.Flock(current, fd, operation));

    /// <summary>posix_fadvise(2).</summary>
    public CallReport Fadvise(int fd, long len, uint advice) => Call($"posix_fadvise {fd}", current => Vfs.Fadvise(current, fd, len, advice));

    /// <summary>poll(2) without waiting; <paramref name="ready"/> gets what each descriptor has.</summary>
    public CallReport Poll(ReadOnlyMemory<(int Fd, uint Events)> wanted, Memory<uint> ready) =>
        Call("poll", current => Vfs.Poll(current, wanted.Span, ready.Span));

    /// <summary>fcntl(2).</summary>
    public CallReport Fcntl(int fd, uint command, ulong arg) => Call($"fcntl {fd}", current => Vfs.Fcntl(current, fd, command, arg));

    /// <summary>dup(2).</summary>
    public CallReport Dup(int fd) => Call($"dup {fd}", current => Vfs.Dup(current, fd));

    /// <summary>dup2(2), or dup3(2) if strict.</summary>
    public CallReport DupTo(int fd, int target, bool closeOnExec = false, bool strict = false) =>
        Call($"{(strict ? "dup3" : "dup2")} {fd} to {target}", current => Vfs.DupTo(current, fd, target, closeOnExec, strict));

    /// <summary>prlimit64(2) for RLIMIT_NOFILE: descriptors from <paramref name="limit"/> on are not given any more. The value is the old limit.</summary>
    public CallReport SetFdLimit(int limit) => Call("prlimit RLIMIT_NOFILE", current =>
    {
        int old = Files.Limit;
        if (limit < 0 || limit > Host.FdLimit)
        {
            return current.Fail(Errno.EPERM, FdTable.LimitTooHigh, (ulong)limit, (ulong)Host.FdLimit);
        }
        Files.Limit = limit;
        return SyscallResult.Of(old);
    });

    private static string Shown(string path) => path.Length < 256 ? path : "(a long path)";

    private static SyscallResult Transfer(KTask current, int fd, UserArg buffer, ulong count, long? position, bool write) => (position, write) switch
    {
        (null, false) => Vfs.Read(current, fd, buffer, count),
        (null, true) => Vfs.Write(current, fd, buffer, count),
        ({ } at, false) => Vfs.Pread(current, fd, buffer, count, at),
        ({ } at, true) => Vfs.Pwrite(current, fd, buffer, count, at),
    };
}
