namespace VmmService.IntegrationTests.Conformance.RealKvm;

// Calls on files that have content, and on ranges of memory.
internal partial interface IKernel
{
    Task<Answer> MemfdCreate(uint flags);

    /// <summary>Both ends, reading end first.</summary>
    Task<(Answer Answer, int ReadEnd, int WriteEnd)> Pipe(uint flags);

    Task<Answer> Reopen(int fd, int flags);

    Task<Answer> Dup(int fd);

    Task<Answer> Ftruncate(int fd, long length);

    Task<Answer> Lseek(int fd, long offset, uint whence);

    Task<Answer> Fcntl(int fd, uint command, ulong argument);

    Task<Answer> Flock(int fd, uint operation);

    Task<Answer> Fadvise(int fd, long length, uint advice);

    Task<Answer> Fsync(int fd);

    /// <summary>read(2) or write(2) of user memory; pread64(2) and pwrite64(2) with a position.</summary>
    Task<Answer> Transfer(bool write, int fd, ulong buffer, ulong count, long? position);

    Task<Answer> Splice(int from, long? fromOffset, int to, long? toOffset, ulong count);

    Task<Answer> Sendfile(int to, int from, long? offset, ulong count);

    /// <summary>A call on a range of addresses.</summary>
    Task<Answer> OnRange(RangeCall call, ulong address, ulong length, uint argument);

    /// <summary>mremap(2). The address is the answer's value.</summary>
    Task<Answer> Mremap(ulong address, ulong oldLength, ulong newLength, uint flags);
}

internal enum RangeCall
{
    Mprotect,
    Madvise,
    Msync,
    Mlock,
    Munlock,
}
