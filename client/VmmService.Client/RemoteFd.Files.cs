using Google.Protobuf;
using VmmService.V1;

namespace VmmService.Client;

// System calls that any descriptor takes. What the file has no method for answers as the VFS does.
public abstract partial class RemoteFd
{
    /// <summary>read(2), or pread64(2) with an offset.</summary>
    /// <param name="count">Bytes, at most the daemon's limit for one read.</param>
    /// <param name="offset">Where to read; null for the file's own position.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    public KvmCall<ReadResponse, ReadOnlyMemory<byte>> ReadAsync(ulong count, long? offset = null, CancellationToken cancellation = default)
    {
        var request = new ReadRequest { Host = HostId, Pid = Pid, Fd = Fd, Count = count };
        if (offset is not null)
            request.Offset = offset.Value;
        return Call("read", Stubs.Files.ReadAsync(request, cancellationToken: cancellation), reply => reply.Outcome, reply => reply.Data.Memory);
    }

    /// <summary>write(2), or pwrite64(2) with an offset. The result is the number of bytes.</summary>
    public KvmCall<WriteResponse, long> WriteAsync(ReadOnlyMemory<byte> bytes, long? offset = null, CancellationToken cancellation = default)
    {
        var request = new WriteRequest { Host = HostId, Pid = Pid, Fd = Fd, Data = UnsafeByteOperations.UnsafeWrap(bytes) };
        if (offset is not null)
            request.Offset = offset.Value;
        return Call("write", Stubs.Files.WriteAsync(request, cancellationToken: cancellation), reply => reply.Outcome);
    }

    /// <summary>fstat(2); the reply has the fields.</summary>
    public KvmCall<StatResponse, StatResponse> StatAsync(CancellationToken cancellation = default) =>
        Call("fstat", Stubs.Files.StatAsync(new StatRequest { Host = HostId, Pid = Pid, Fd = Fd }, cancellationToken: cancellation), reply => reply.Outcome, reply => reply);

    /// <summary>fcntl(2); the result is what the command returns.</summary>
    public KvmCall<FcntlResponse, long> FcntlAsync(uint cmd, ulong arg = 0, CancellationToken cancellation = default) =>
        Call(
            "fcntl",
            Stubs.Files.FcntlAsync(new FcntlRequest { Host = HostId, Pid = Pid, Fd = Fd, Cmd = cmd, Arg = arg }, cancellationToken: cancellation),
            reply => reply.Outcome);

    /// <summary>dup(2); the result is the new descriptor's number.</summary>
    public KvmCall<DupResponse, int> DupAsync(CancellationToken cancellation = default) =>
        Call(
            "dup", Stubs.Files.DupAsync(new DupRequest { Host = HostId, Pid = Pid, Fd = Fd }, cancellationToken: cancellation),
            reply => reply.Outcome, reply => (int)reply.Outcome.Value);

    /// <summary>ftruncate(2).</summary>
    public KvmCall<FtruncateResponse, long> FtruncateAsync(long length, CancellationToken cancellation = default) =>
        Call(
            "ftruncate",
            Stubs.Files.FtruncateAsync(new FtruncateRequest { Host = HostId, Pid = Pid, Fd = Fd, Length = length }, cancellationToken: cancellation),
            reply => reply.Outcome);

    /// <summary>mmap(2) of the file, shared, readable and writable, where the kernel likes; the result is the address.</summary>
    public KvmCall<MmapResponse, ulong> MmapAsync(ulong length, ulong offset = 0, CancellationToken cancellation = default) =>
        Process.MmapAsync(
            new MmapRequest
            {
                Length = length,
                Offset = offset,
                Prot = KernelNumbers.PROT_READ | KernelNumbers.PROT_WRITE,
                Flags = KernelNumbers.MAP_SHARED,
                Fd = Fd,
            },
            cancellation);
}
