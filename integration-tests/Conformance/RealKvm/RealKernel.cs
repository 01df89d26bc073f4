using System.Runtime.InteropServices;

namespace VmmService.IntegrationTests.Conformance.RealKvm;

/// <summary>
/// The kernel of this machine, called from this process. It runs no guest, closes what it opened and unmaps what it mapped, and touches memory through a pipe only, so
/// that what would be a signal is an errno.
/// </summary>
internal sealed unsafe partial class RealKernel : IKernel
{
    private const int EFAULT = 14;
    private const int ArgumentRoom = 4096;

    private readonly HashSet<int> _fds = [];
    private readonly List<(ulong Start, ulong Length)> _maps = [];
    private readonly int _pipeOut;
    private readonly int _pipeIn;

    // A page for arguments, and behind it one that cannot be accessed.
    private readonly byte* _arguments;

    public RealKernel()
    {
        int* pipe = stackalloc int[2];
        Check(Libc.pipe2(pipe, Libc.O_CLOEXEC | Libc.O_NONBLOCK));
        (_pipeOut, _pipeIn) = (pipe[0], pipe[1]);
        _arguments = (byte*)Libc.mmap(null, 2 * ArgumentRoom, Libc.PROT_READ_WRITE, Libc.MAP_PRIVATE_ANONYMOUS, -1, 0);
        Check(Libc.mprotect(_arguments + ArgumentRoom, ArgumentRoom, Libc.PROT_NONE));
    }

    public Task<Answer> Open(string path) => Task.FromResult(Keep(Of(Libc.open(path, Libc.O_RDWR | Libc.O_CLOEXEC))));

    public Task<Answer> Close(int fd)
    {
        // Never a descriptor of somebody else's in this process.
        _fds.Remove(fd);
        return Task.FromResult(Of(Libc.close(fd)));
    }

    public Task<Answer> Ioctl(int fd, uint request, ulong argument) => Task.FromResult(KeepFd(request, Of(Libc.ioctl(fd, request, (nuint)argument))));

    public Task<Answer> Ioctl(int fd, uint request, byte[] argument)
    {
        byte* at = _arguments + ArgumentRoom - argument.Length;
        argument.CopyTo(new Span<byte>(at, argument.Length));
        Answer answer = Of(Libc.ioctl(fd, request, (nuint)at));
        new Span<byte>(at, argument.Length).CopyTo(argument);
        return Task.FromResult(KeepFd(request, answer));
    }

    public Task<Answer> Mmap(ulong length, uint prot, uint flags, int fd, ulong offset)
    {
        void* address = Libc.mmap(null, (nuint)length, prot, flags, fd, unchecked((long)offset));
        if (address == Libc.MapFailed)
        {
            return Task.FromResult(new Answer(Marshal.GetLastPInvokeError(), 0));
        }
        _maps.Add(((ulong)address, length));
        return Task.FromResult(new Answer(0, (long)address));
    }

    public Task<Answer> Munmap(ulong address, ulong length) => Task.FromResult(Of(Libc.munmap((void*)address, (nuint)length)));

    public Task<Answer> Fallocate(int fd, int mode, long offset, long length) => Task.FromResult(Of(Libc.fallocate(fd, mode, offset, length)));

    public Task<(Answer Answer, ulong Size, ulong Blocks, uint Mode)> Fstat(int fd)
    {
        Libc.Stat stat;
        Answer answer = Of(Libc.fstat(fd, &stat));
        return Task.FromResult(answer.Errno == 0 ? (answer, (ulong)stat.st_size, (ulong)stat.st_blocks, stat.st_mode) : (answer, 0, 0, 0));
    }

    public Task<(Answer Answer, byte[] Bytes)> Load(ulong address, int length)
    {
        // The kernel reads the memory into the pipe, and what it read is fetched from there.
        nint copied = Libc.write(_pipeIn, (void*)address, (nuint)length);
        byte[] bytes = new byte[length];
        if (copied < 0)
        {
            return Task.FromResult((new Answer(Marshal.GetLastPInvokeError(), 0), bytes));
        }
        fixed (byte* to = bytes)
        {
            Check(Libc.read(_pipeOut, to, (nuint)copied));
        }
        return Task.FromResult((copied == length ? new Answer(0, length) : new Answer(EFAULT, copied), bytes));
    }

    public Task<Answer> Store(ulong address, byte[] bytes)
    {
        fixed (byte* from = bytes)
        {
            Check(Libc.write(_pipeIn, from, (nuint)bytes.Length));
        }
        nint copied = Libc.read(_pipeOut, (void*)address, (nuint)bytes.Length);
        int errno = copied < 0 ? Marshal.GetLastPInvokeError() : copied < bytes.Length ? EFAULT : 0;
        byte* rest = stackalloc byte[4096];
        while (copied < bytes.Length && Libc.read(_pipeOut, rest, 4096) > 0)
        {
            // What could not be stored is still in the pipe.
        }
        return Task.FromResult(new Answer(errno, errno == 0 ? bytes.Length : 0));
    }

    public ValueTask DisposeAsync()
    {
        foreach ((ulong start, ulong length) in _maps)
        {
            // Parts that are unmapped already were never given to anybody else: see Walk, which unmaps a mapping whole.
            _ = Libc.munmap((void*)start, (nuint)length);
        }
        foreach (int fd in _fds)
        {
            _ = Libc.close(fd);
        }
        _ = Libc.close(_pipeIn);
        _ = Libc.close(_pipeOut);
        _ = Libc.munmap(_arguments, 2 * ArgumentRoom);
        return ValueTask.CompletedTask;
    }

    /// <summary>The mapping is gone; its addresses may be anybody's.</summary>
    public void Forget(ulong start) => _maps.RemoveAll(map => map.Start == start);

    // An ioctl that succeeds with a descriptor must not leak it.
    private Answer KeepFd(uint request, Answer answer) => request is Numbers.CreateVm or Numbers.CreateVcpu or Numbers.CreateGuestMemfd ? Keep(answer) : answer;

    private Answer Keep(Answer answer)
    {
        if (answer.Errno == 0)
        {
            _fds.Add((int)answer.Value);
        }
        return answer;
    }

    private static Answer Of(nint result) => result < 0 ? new Answer(Marshal.GetLastPInvokeError(), 0) : new Answer(0, result);

    private static void Check(nint result)
    {
        if (result < 0)
        {
            throw new InvalidOperationException($"the comparison's own system call failed: errno {Marshal.GetLastPInvokeError()}");
        }
    }
}
