using SimMachine.Addressing;

namespace SimKvm.Userspace;

/// <summary>
/// A descriptor opened with O_PATH: it keeps the inode (a guest_memfd's pages do not go while it is open), but it is no open file, so it keeps no VM alive and
/// most calls answer EBADF.
/// </summary>
internal sealed class PathFile : KernelFile
{
    private readonly KernelFile _named;

    public PathFile(KernelFile named)
    {
        _named = named is PathFile path ? path._named : named;
        _named.VfsInode.Get();
        Flags = OpenFlags.O_PATH;
    }

    public override FdKind Kind => FdKind.Path;

    public override string Name => _named.Name;

    internal override VfsInode VfsInode => _named.VfsInode;

    internal override FileStat Stat() => _named.Stat();

    internal override FileSystemStat FileSystem => _named.FileSystem;

    internal override Errno Reopen(KTask current, uint flags, out KernelFile? file) => _named.Reopen(current, flags, out file);

    internal override void Release(KTask current) => _named.VfsInode.Put(current);
}

/// <summary>/proc/PID/mem: the memory of a process as a file. Access goes through get_user_pages, so what a mapping cannot give is EIO.</summary>
internal sealed class ProcMemFile(UserMemory memory) : KernelFile
{
    public static readonly SimMachine.Stepping.Rule NotAccessible = new(
        "proc.mem.access", "the page at the position cannot be accessed", "mem_rw, access_remote_vm", "access what the process has mapped", "addr");

    public override FdKind Kind => FdKind.Proc;

    public override string Name => "/proc/self/mem";

    internal override FMode Methods => FMode.Lseek | FMode.Pread | FMode.Pwrite | FMode.CanRead | FMode.CanWrite;

    internal override FileStat Stat() => new(0, 0x8180, 0) { BlockSize = 1024 };

    internal override FileSystemStat FileSystem => FileSystemStat.Proc;

    internal override SyscallResult Read(KTask current, UserArg buffer, ulong count, ref long position) =>
        Transfer(current, buffer, count, ref position, write: false);

    internal override SyscallResult Write(KTask current, UserArg buffer, ulong count, ref long position) =>
        Transfer(current, buffer, count, ref position, write: true);

    internal override SyscallResult Llseek(KTask current, long offset, uint whence)
    {
        const uint seekSet = 0, seekCur = 1;
        if (whence is not (seekSet or seekCur))
        {
            return current.Fail(Errno.EINVAL, Vfs.BadWhence, whence);
        }
        return SyscallResult.Of(Position = whence == seekSet ? offset : Position + offset);
    }

    internal override void Release(KTask current)
    {
    }

    private SyscallResult Transfer(KTask current, UserArg buffer, ulong count, ref long position, bool write)
    {
        byte[] page = new byte[PageSize.Bytes];
        ulong done = 0;
        while (done < count)
        {
            ulong at = (ulong)position;
            int length = (int)Math.Min(count - done, PageSize.Bytes - (at & PageSize.OffsetMask));
            Span<byte> bytes = page.AsSpan(0, length);
            Errno copied = write ? buffer.CopyIn(current, bytes, done) : Errno.OK;
            if (copied == Errno.OK && !(write ? memory.TryWrite(current, at, bytes) : memory.TryRead(current, at, bytes)))
            {
                copied = current.Fail(Errno.EIO, NotAccessible, at);
            }
            copied = copied == Errno.OK && !write ? buffer.CopyOut(current, bytes, done) : copied;
            if (copied != Errno.OK)
            {
                return done > 0 ? SyscallResult.Of((long)done) : copied;
            }
            done += (ulong)length;
            position += length;
        }
        return SyscallResult.Of((long)done);
    }
}
