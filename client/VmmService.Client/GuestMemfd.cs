using VmmService.V1;

namespace VmmService.Client;

/// <summary>A guest_memfd: memory that the guest has and user space cannot touch. It keeps its VM alive as long as it is open.</summary>
public sealed class GuestMemfd : RemoteFd
{
    internal GuestMemfd(RemoteProcess process, int fd, ulong size)
        : base(process, fd) => Size = size;

    /// <summary>Bytes, as asked for at creation.</summary>
    public ulong Size { get; }

    /// <summary>fallocate(2).</summary>
    /// <param name="mode">FALLOC_FL_*.</param>
    /// <param name="offset">Bytes.</param>
    /// <param name="len">Bytes.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    public KvmCall<FallocateResponse, long> FallocateAsync(uint mode, long offset, long len, CancellationToken cancellation = default) =>
        Call(
            "fallocate",
            Stubs.GuestMemfd.FallocateAsync(
                new FallocateRequest { Host = HostId, Pid = Pid, Fd = Fd, Mode = mode, Offset = offset, Len = len }, cancellationToken: cancellation),
            reply => reply.Outcome);

    /// <summary>Frees the pages of a range: fallocate with FALLOC_FL_PUNCH_HOLE and FALLOC_FL_KEEP_SIZE.</summary>
    public KvmCall<FallocateResponse, long> PunchHoleAsync(long offset, long len, CancellationToken cancellation = default) =>
        FallocateAsync(KernelNumbers.FALLOC_FL_PUNCH_HOLE | KernelNumbers.FALLOC_FL_KEEP_SIZE, offset, len, cancellation);

    /// <summary>KVM_SET_MEMORY_ATTRIBUTES2: converts pages where they are, in profiles with in-place conversion. On EAGAIN the reply says which offset was in the way.</summary>
    /// <param name="offset">Bytes into the file.</param>
    /// <param name="size">Bytes.</param>
    /// <param name="attributes">KVM_MEMORY_ATTRIBUTE_PRIVATE or 0.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    public KvmCall<SetMemoryAttributes2Response, long> SetMemoryAttributes2Async(
        ulong offset, ulong size, ulong attributes, CancellationToken cancellation = default) =>
        Call(
            "KVM_SET_MEMORY_ATTRIBUTES2",
            Stubs.GuestMemfd.SetMemoryAttributes2Async(
                new SetMemoryAttributes2Request
                {
                    Host = HostId,
                    Pid = Pid,
                    Fd = Fd,
                    Attributes = new KvmMemoryAttributes2 { Offset = offset, Size = size, Attributes = attributes },
                },
                cancellationToken: cancellation),
            reply => reply.Outcome);

    /// <summary>fstat(2), as far as a guest_memfd fills it.</summary>
    public KvmCall<FstatResponse, FstatResponse> FstatAsync(CancellationToken cancellation = default) =>
        Call(
            "fstat",
            Stubs.GuestMemfd.FstatAsync(new FstatRequest { Host = HostId, Pid = Pid, Fd = Fd }, cancellationToken: cancellation),
            reply => reply.Outcome,
            reply => reply);
}
