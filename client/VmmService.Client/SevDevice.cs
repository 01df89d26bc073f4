namespace VmmService.Client;

/// <summary>A descriptor of /dev/sev. VMMs only pass it along as sev_fd; its own commands can be issued with RawIoctl.</summary>
public sealed class SevDevice : RemoteFd
{
    internal SevDevice(RemoteProcess process, int fd)
        : base(process, fd)
    {
    }
}
