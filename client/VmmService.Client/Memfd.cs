namespace VmmService.Client;

/// <summary>A file in memory (memfd_create): shared memory that VMMs put behind ordinary slots, or in front of other processes.</summary>
public sealed class Memfd : RemoteFd
{
    internal Memfd(RemoteProcess process, int fd)
        : base(process, fd)
    {
    }
}
