namespace VmmService.IntegrationTests.Conformance.RealKvm;

internal sealed unsafe partial class RealKernel
{
    public Task<Answer> MemfdCreate(uint flags) => Task.FromResult(Keep(Of(Libc.memfd_create("walk", flags))));

    public Task<(Answer Answer, int ReadEnd, int WriteEnd)> Pipe(uint flags)
    {
        int* ends = stackalloc int[2];
        Answer answer = Of(Libc.pipe2(ends, unchecked((int)flags)));
        return Task.FromResult(answer.Errno == 0
            ? (answer, (int)Keep(new Answer(0, ends[0])).Value, (int)Keep(new Answer(0, ends[1])).Value)
            : (answer, -1, -1));
    }

    public Task<Answer> Reopen(int fd, int flags) => Task.FromResult(Keep(Of(Libc.open($"/proc/self/fd/{fd}", flags))));

    public Task<Answer> Dup(int fd) => Task.FromResult(Keep(Of(Libc.dup(fd))));

    public Task<Answer> Ftruncate(int fd, long length) => Task.FromResult(Of(Libc.ftruncate(fd, length)));

    public Task<Answer> Lseek(int fd, long offset, uint whence) => Task.FromResult(Of(Libc.lseek(fd, offset, whence)));

    public Task<Answer> Fcntl(int fd, uint command, ulong argument) => Task.FromResult(Of(Libc.fcntl(fd, command, (nuint)argument)));

    public Task<Answer> Flock(int fd, uint operation) => Task.FromResult(Of(Libc.flock(fd, operation)));

    // Answers the errno itself.
    public Task<Answer> Fadvise(int fd, long length, uint advice) => Task.FromResult(new Answer(Libc.posix_fadvise(fd, 0, length, advice), 0));

    public Task<Answer> Fsync(int fd) => Task.FromResult(Of(Libc.fsync(fd)));

    public Task<Answer> Transfer(bool write, int fd, ulong buffer, ulong count, long? position) => Task.FromResult(Of((write, position) switch
    {
        (false, null) => Libc.read(fd, (void*)buffer, (nuint)count),
        (true, null) => Libc.write(fd, (void*)buffer, (nuint)count),
        (false, _) => Libc.pread(fd, (void*)buffer, (nuint)count, position.Value),
        (true, _) => Libc.pwrite(fd, (void*)buffer, (nuint)count, position.Value),
    }));

    public Task<Answer> Splice(int from, long? fromOffset, int to, long? toOffset, ulong count)
    {
        long fromAt = fromOffset ?? 0, toAt = toOffset ?? 0;
        return Task.FromResult(Of(Libc.splice(from, fromOffset is null ? null : &fromAt, to, toOffset is null ? null : &toAt, (nuint)count, Libc.SPLICE_F_NONBLOCK)));
    }

    public Task<Answer> Sendfile(int to, int from, long? offset, ulong count)
    {
        long at = offset ?? 0;
        return Task.FromResult(Of(Libc.sendfile(to, from, offset is null ? null : &at, (nuint)count)));
    }

    public Task<Answer> OnRange(RangeCall call, ulong address, ulong length, uint argument) => Task.FromResult(Of(call switch
    {
        RangeCall.Mprotect => Libc.mprotect((void*)address, (nuint)length, argument),
        RangeCall.Madvise => Libc.madvise((void*)address, (nuint)length, argument),
        RangeCall.Msync => Libc.msync((void*)address, (nuint)length, argument),
        RangeCall.Mlock => Libc.mlock((void*)address, (nuint)length),
        _ => Libc.munlock((void*)address, (nuint)length),
    }));

    public Task<Answer> Mremap(ulong address, ulong oldLength, ulong newLength, uint flags)
    {
        nint moved = Libc.mremap((void*)address, (nuint)oldLength, (nuint)newLength, flags);
        Answer answer = moved == -1 ? Of(-1) : new Answer(0, moved);
        if (answer.Errno == 0)
        {
            Forget(address);
            _maps.Add(((ulong)answer.Value, newLength));
        }
        return Task.FromResult(answer);
    }
}
