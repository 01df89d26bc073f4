namespace VmmService.IntegrationTests.Conformance.RealKvm;

/// <summary>What a call answered: the errno, or the value. Descriptors and addresses are not compared.</summary>
internal readonly record struct Answer(int Errno, long Value)
{
    public override string ToString() => Errno == 0 ? $"{Value}" : $"errno {Errno}";
}

/// <summary>One process on a kernel, real or simulated, and the calls that are compared.</summary>
internal partial interface IKernel : IAsyncDisposable
{
    Task<Answer> Open(string path);

    Task<Answer> Close(int fd);

    Task<Answer> Ioctl(int fd, uint request, ulong argument);

    /// <summary>An ioctl whose argument points to exactly these bytes, behind which nothing is mapped.</summary>
    Task<Answer> Ioctl(int fd, uint request, byte[] argument);

    Task<Answer> Mmap(ulong length, uint prot, uint flags, int fd, ulong offset);

    Task<Answer> Munmap(ulong address, ulong length);

    Task<Answer> Fallocate(int fd, int mode, long offset, long length);

    Task<(Answer Answer, ulong Size, ulong Blocks, uint Mode)> Fstat(int fd);

    /// <summary>Loads inside of one page; EFAULT where the program would get a signal.</summary>
    Task<(Answer Answer, byte[] Bytes)> Load(ulong address, int length);

    /// <summary>Stores inside of one page; EFAULT where the program would get a signal.</summary>
    Task<Answer> Store(ulong address, byte[] bytes);
}
