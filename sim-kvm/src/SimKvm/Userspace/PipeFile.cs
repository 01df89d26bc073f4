using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimKvm.Userspace;

/// <summary>
/// The buffer of a pipe: 16 pages of bytes, first in, first out. A host runs one call at a time, so a call that would have to wait answers EAGAIN, whether or
/// not O_NONBLOCK is set.
/// </summary>
internal sealed class Pipe
{
    private const int Capacity = 16 * PageSize.Bytes;

    private readonly Queue<byte> _bytes = new();

    public int Readers { get; set; }

    public int Writers { get; set; }

    public int Count => _bytes.Count;

    public int Room => Capacity - _bytes.Count;

    public VfsInode Inode { get; } = new();

    public void Put(ReadOnlySpan<byte> bytes)
    {
        foreach (byte each in bytes)
        {
            _bytes.Enqueue(each);
        }
    }

    /// <summary>The next bytes, which stay until <see cref="Drop"/>.</summary>
    public byte[] Peek(int count) => [.. _bytes.Take(count)];

    public void Drop(int count)
    {
        for (int i = 0; i < count; i++)
        {
            _bytes.Dequeue();
        }
    }
}

/// <summary>One end of a pipe.</summary>
internal sealed class PipeFile : KernelFile
{
    public static readonly Rule WouldBlock = new(
        "pipe.would-block", "the pipe is empty, or full; a simulated host runs one call at a time, so nobody waits", "pipe_read, pipe_write", "use the other end first",
        "bytes#");

    public static readonly Rule NoReader = new(
        "pipe.no-reader", "nobody has the reading end open: EPIPE and SIGPIPE", "pipe_write", "keep the reading end open");

    /// <param name="flags">The access mode among them; O_RDWR is both ends at once.</param>
    public PipeFile(Pipe pipe, uint flags)
    {
        Pipe = pipe;
        Flags = flags;
        Count(1);
    }

    public Pipe Pipe { get; }

    public override FdKind Kind => FdKind.Pipe;

    public override string Name => "pipe";

    internal override VfsInode VfsInode => Pipe.Inode;

    internal override FMode Methods => FMode.CanRead | FMode.CanWrite;

    internal override bool CanSpliceRead => false;

    internal override bool OnNoExecFileSystem => true;

    internal override FileStat Stat() => new(0, 0x1180, 0);

    internal override FileSystemStat FileSystem => FileSystemStat.PipeFs;

    internal override uint Poll =>
        (Mode & FMode.Read) != 0
            ? (Pipe.Count > 0 ? Vfs.PollIn | Vfs.PollRdNorm : 0) | (Pipe.Writers == 0 ? Vfs.PollHup : 0)
            : (Pipe.Room > 0 ? Vfs.PollOut | Vfs.PollWrNorm : 0) | (Pipe.Readers == 0 ? Vfs.PollErr : 0);

    internal override SyscallResult Read(KTask current, UserArg buffer, ulong count, ref long position)
    {
        if (count == 0 || (Pipe.Count == 0 && Pipe.Writers == 0))
        {
            return SyscallResult.Of(0);
        }
        int length = (int)Math.Min(count, (ulong)Pipe.Count);
        Errno errno = CheckFilled(current);
        errno = errno == Errno.OK ? buffer.CopyOut(current, Pipe.Peek(length)) : errno;
        if (errno != Errno.OK)
        {
            return errno;
        }
        Pipe.Drop(length);
        return SyscallResult.Of(length);
    }

    internal override SyscallResult Write(KTask current, UserArg buffer, ulong count, ref long position)
    {
        if (count == 0)
        {
            return SyscallResult.Of(0);
        }
        Errno room = CheckRoom(current);
        if (room != Errno.OK)
        {
            return room;
        }
        byte[] bytes = new byte[(int)Math.Min(count, (ulong)Pipe.Room)];
        int done = 0;
        while (done < bytes.Length)
        {
            // Page by page, as the pipe's buffers are filled: what was copied before a fault is written.
            Span<byte> part = bytes.AsSpan(done, Math.Min(PageSize.Bytes, bytes.Length - done));
            Errno errno = buffer.CopyIn(current, part, (ulong)done);
            if (errno != Errno.OK)
            {
                return done > 0 ? SyscallResult.Of(done) : errno;
            }
            Pipe.Put(part);
            done += part.Length;
        }
        return SyscallResult.Of(done);
    }

    /// <summary>EAGAIN where the pipe is empty and somebody may still fill it.</summary>
    public Errno CheckFilled(KTask current) => Pipe.Count == 0 && Pipe.Writers > 0 ? current.Fail(Errno.EAGAIN, WouldBlock, 0) : Errno.OK;

    /// <summary>EPIPE with SIGPIPE where nobody reads, EAGAIN where the pipe is full.</summary>
    public Errno CheckRoom(KTask current)
    {
        if (Pipe.Readers == 0)
        {
            current.Signal = Signal.Pipe;
            return current.Fail(Errno.EPIPE, NoReader);
        }
        return Pipe.Room == 0 ? current.Fail(Errno.EAGAIN, WouldBlock, (ulong)Pipe.Count) : Errno.OK;
    }

    internal override Errno Setattr(KTask current) => current.Fail(Errno.EPERM, NoSetattr, (ulong)Kind);

    /// <summary>fifo_open: an end of a pipe that has no name is not waited for.</summary>
    internal override Errno Reopen(KTask current, uint flags, out KernelFile? file)
    {
        file = new PipeFile(Pipe, flags);
        return Errno.OK;
    }

    internal override void Release(KTask current) => Count(-1);

    private void Count(int change)
    {
        Pipe.Readers += (Mode & FMode.Read) != 0 ? change : 0;
        Pipe.Writers += (Mode & FMode.Write) != 0 ? change : 0;
    }
}
