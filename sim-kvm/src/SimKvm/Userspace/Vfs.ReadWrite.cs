using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimKvm.Userspace;

/// <summary>A piece of user memory (struct iovec).</summary>
public readonly record struct IoVec(ulong Base, ulong Length);

// read, write and their vector and positioned forms; lseek. A buffer is a user address, or bytes that came with the request.
internal static partial class Vfs
{
    /// <summary>UIO_MAXIOV</summary>
    public const int MaxIoVecs = 1024;

    // MAX_RW_COUNT: one call moves less than 2 GiB.
    private const ulong MaxCount = 0x7fff_f000;

    public static readonly Rule NegativePosition = new(
        "vfs.position.negative", "the position is negative", "ksys_pread64, rw_verify_area", "give a position of 0 or more", "pos");

    public static readonly Rule NotSeekable = new(
        "vfs.not-seekable", "the file has no positions: it was made without FMODE_PREAD, FMODE_PWRITE and FMODE_LSEEK", "ksys_pread64, vfs_llseek",
        "use read and write if the file has them", "fd_kind#");

    public static readonly Rule CountTooLarge = new(
        "vfs.count", "position and count together leave what a file can be long", "rw_verify_area", "transfer less", "position", "count");

    public static readonly Rule BufferOutside = new(
        "vfs.buffer", "the buffer leaves the user address space", "vfs_read, vfs_write, import_iovec (access_ok)", "transfer less, or elsewhere", "uaddr", "count");

    public static readonly Rule TooManyVectors = new(
        "vfs.iovec", "there are more than 1024 vectors, or a length is negative as a signed number", "import_iovec", "use fewer and shorter vectors", "vectors#");

    public static readonly Rule BadWhence = new(
        "vfs.lseek.whence", "whence is none of SEEK_SET to SEEK_HOLE", "ksys_lseek", "use 0 to 4", "whence#");

    public static readonly Rule BadReadWriteFlags = new(
        "vfs.rwf", "the RWF_ flags are not known, or the file cannot honour them", "kiocb_set_rw_flags", "use flags 0", "flags");

    /// <summary>read(2): at the file's position.</summary>
    public static SyscallResult Read(KTask current, int fd, UserArg buffer, ulong count) => Transfer(current, fd, buffer, count, null, write: false);

    public static SyscallResult Write(KTask current, int fd, UserArg buffer, ulong count) => Transfer(current, fd, buffer, count, null, write: true);

    /// <summary>pread64(2): a negative position is refused before the descriptor is looked at.</summary>
    public static SyscallResult Pread(KTask current, int fd, UserArg buffer, ulong count, long position) =>
        Transfer(current, fd, buffer, count, position, write: false);

    public static SyscallResult Pwrite(KTask current, int fd, UserArg buffer, ulong count, long position) =>
        Transfer(current, fd, buffer, count, position, write: true);

    /// <summary>The page of a file at an index; frame 0 for a hole. An errno ends a read there.</summary>
    public delegate Errno PageOfFile(ulong index, out Pfn pfn);

    /// <summary>read_iter of files that are pages in memory: up to the end of the file, holes as zeros, page by page. What was read before an error counts.</summary>
    /// <param name="size">Bytes of the file.</param>
    public static SyscallResult ReadPages(KTask current, ulong size, UserArg buffer, ulong count, ref long position, PageOfFile page)
    {
        ulong left = (ulong)position < size ? Math.Min(count, size - (ulong)position) : 0;
        byte[] bytes = new byte[PageSize.Bytes];
        ulong done = 0;
        while (done < left)
        {
            int offset = (int)((ulong)position & PageSize.OffsetMask);
            Span<byte> part = bytes.AsSpan(0, buffer.InOnePage(done, (int)Math.Min(left - done, (ulong)(PageSize.Bytes - offset))));
            part.Clear();
            Errno errno = page((ulong)position >> PageSize.Shift, out Pfn pfn);
            if (errno == Errno.OK && pfn.Value != 0)
            {
                current.Machine.HostRead(pfn, offset, part);
            }
            errno = errno == Errno.OK ? buffer.CopyOut(current, part, done) : errno;
            if (errno != Errno.OK)
            {
                return done > 0 ? SyscallResult.Of((long)done) : errno;
            }
            done += (ulong)part.Length;
            position += part.Length;
        }
        return SyscallResult.Of((long)done);
    }

    private static SyscallResult Transfer(KTask current, int fd, UserArg buffer, ulong count, long? position, bool write)
    {
        Errno errno = Prepare(current, fd, position, write, out KernelFile? file);
        if (errno != Errno.OK)
        {
            return errno;
        }
        long at = position ?? file!.Position;
        SyscallResult result = TransferAt(current, file!, buffer, count, ref at, write);
        if (position is null && result.Succeeded)
        {
            file!.Position = at;
        }
        return result;
    }

    /// <summary>readv(2), preadv2(2) and the writing forms; without a position at the file's own.</summary>
    public static SyscallResult TransferVector(KTask current, int fd, IReadOnlyList<IoVec> vectors, long? position, uint flags, bool write)
    {
        Errno errno = Prepare(current, fd, position, write, out KernelFile? file);
        if (errno != Errno.OK)
        {
            return errno;
        }
        errno = ImportVectors(current, vectors, out ulong total);
        if (errno != Errno.OK || total == 0)
        {
            return errno;
        }
        long at = position ?? file!.Position;
        errno = CheckExtent(current, at, total);
        if (errno == Errno.OK && flags != 0)
        {
            errno = current.Fail(Errno.EOPNOTSUPP, BadReadWriteFlags, flags);
        }
        if (errno != Errno.OK)
        {
            return errno;
        }
        long done = 0;
        foreach (IoVec vector in vectors)
        {
            SyscallResult part = TransferAt(current, file!, UserArg.FromValue(vector.Base), vector.Length, ref at, write);
            if (!part.Succeeded && done == 0)
            {
                return part;
            }
            done += part.Value;
            if (part.Value < (long)vector.Length)
            {
                break;
            }
        }
        if (position is null)
        {
            file!.Position = at;
        }
        return SyscallResult.Of(done);
    }

    // Everything up to the file's method, in the order of ksys_pread64 and vfs_read.
    private static Errno Prepare(KTask current, int fd, long? position, bool write, out KernelFile? file)
    {
        file = null;
        if (position < 0)
        {
            return current.Fail(Errno.EINVAL, NegativePosition, (ulong)position.Value);
        }
        Errno errno = current.Process.Files.Lookup(current, fd, out file);
        if (errno != Errno.OK)
        {
            return errno;
        }
        if (position is not null && (file!.Methods & (write ? FMode.Pwrite : FMode.Pread)) == 0)
        {
            return current.Fail(Errno.ESPIPE, NotSeekable, (ulong)file.Kind);
        }
        if ((file!.Mode & (write ? FMode.Write : FMode.Read)) == 0)
        {
            return current.Fail(Errno.EBADF, NotOpenFor, (uint)fd, file.Flags);
        }
        return (file.Methods & (write ? FMode.CanWrite : FMode.CanRead)) == 0 ? current.Fail(Errno.EINVAL, KernelFile.NoMethod, (ulong)file.Kind) : Errno.OK;
    }

    // import_iovec
    private static Errno ImportVectors(KTask current, IReadOnlyList<IoVec> vectors, out ulong total)
    {
        total = 0;
        if (vectors.Count > MaxIoVecs)
        {
            return current.Fail(Errno.EINVAL, TooManyVectors, (ulong)vectors.Count);
        }
        foreach (IoVec vector in vectors)
        {
            if ((long)vector.Length < 0)
            {
                return current.Fail(Errno.EINVAL, TooManyVectors, (ulong)vectors.Count);
            }
            if (!UserMemory.IsUserRange(vector.Base, vector.Length))
            {
                return current.Fail(Errno.EFAULT, BufferOutside, vector.Base, vector.Length);
            }
            // More than MAX_RW_COUNT is not moved by one call.
            total = Math.Min(total + vector.Length, MaxCount);
        }
        return Errno.OK;
    }

    private static Errno CheckExtent(KTask current, long position, ulong count) =>
        count > long.MaxValue || position > long.MaxValue - (long)count ? current.Fail(Errno.EINVAL, CountTooLarge, (ulong)position, count) : Errno.OK;

    private static SyscallResult TransferAt(KTask current, KernelFile file, UserArg buffer, ulong count, ref long position, bool write)
    {
        if (!buffer.IsUserRange(count))
        {
            return current.Fail(Errno.EFAULT, BufferOutside, buffer.Value, count);
        }
        Errno errno = CheckExtent(current, position, count);
        if (errno != Errno.OK)
        {
            return errno;
        }
        count = Math.Min(count, MaxCount);
        return write ? file.Write(current, buffer, count, ref position) : file.Read(current, buffer, count, ref position);
    }

    /// <summary>lseek(2).</summary>
    public static SyscallResult Lseek(KTask current, int fd, long offset, uint whence)
    {
        const uint seekMax = 4;
        Errno errno = current.Process.Files.Lookup(current, fd, out KernelFile? file);
        if (errno != Errno.OK)
        {
            return errno;
        }
        if (whence > seekMax)
        {
            return current.Fail(Errno.EINVAL, BadWhence, whence);
        }
        return (file!.Methods & FMode.Lseek) == 0 ? current.Fail(Errno.ESPIPE, NotSeekable, (ulong)file.Kind) : file.Llseek(current, offset, whence);
    }
}
