using Google.Protobuf;
using VmmService.V1;

namespace VmmService.Client;

/// <summary>
/// The TDX module by hand: SEAMCALLs by their registers, on pages that this descriptor gives, and TDCALLs of vCPUs that were built with them. No Linux has such a device.
/// Closing it tears down what was built. Had from <see cref="RemoteProcess.OpenTdxModuleAsync"/>.
/// </summary>
public sealed class TdxModule : RemoteFd
{
    internal TdxModule(RemoteProcess process, int fd)
        : base(process, fd)
    {
    }

    private TdxModuleService.TdxModuleServiceClient Stub => Stubs.TdxModule;

    /// <summary>One SEAMCALL. The result is the registers after it; a status that is not success is EIO, and in the reply.</summary>
    /// <param name="registers">RAX is the leaf, RCX, RDX, R8 and R9 its operands.</param>
    /// <param name="package">Package of the processor that executes it.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    public KvmCall<SeamcallResponse, TdcallRegisters> SeamcallAsync(TdcallRegisters registers, uint package = 0, CancellationToken cancellation = default) => Call(
        $"SEAMCALL {registers.Rax & 0xffff}",
        Stub.SeamcallAsync(new SeamcallRequest { Host = HostId, Pid = Pid, Fd = Fd, Registers = registers, Package = package }, cancellationToken: cancellation),
        reply => reply.Outcome, reply => reply.Registers);

    /// <summary>The same with the operands one by one.</summary>
    public KvmCall<SeamcallResponse, TdcallRegisters> SeamcallAsync(ulong leaf, ulong rcx = 0, ulong rdx = 0, ulong r8 = 0, ulong r9 = 0) =>
        SeamcallAsync(new TdcallRegisters { Rax = leaf, Rcx = rcx, Rdx = rdx, R8 = r8, R9 = r9 });

    /// <summary>One TDCALL of a vCPU that is inside its TD. The result is how far it came, with the registers.</summary>
    /// <param name="tdvpr">Physical address of the vCPU's TDVPR.</param>
    /// <param name="registers">RAX is the leaf.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    public KvmCall<TdcallResponse, TdcallResponse> TdcallAsync(ulong tdvpr, TdcallRegisters registers, CancellationToken cancellation = default) => Call(
        $"TDCALL {registers.Rax & 0xffff}",
        Stub.TdcallAsync(new TdcallRequest { Host = HostId, Pid = Pid, Fd = Fd, Tdvpr = tdvpr, Registers = registers }, cancellationToken: cancellation),
        reply => reply.Outcome, reply => reply);

    /// <summary>A load of such a vCPU, within a page of private memory.</summary>
    public KvmCall<AccessAsTdResponse, AccessAsTdResponse> LoadAsync(ulong tdvpr, ulong gpa, uint length, CancellationToken cancellation = default) => Call(
        "load of a TD", Stub.AccessAsTdAsync(new AccessAsTdRequest { Host = HostId, Pid = Pid, Fd = Fd, Tdvpr = tdvpr, Gpa = gpa, Length = length }, cancellationToken: cancellation),
        reply => reply.Outcome, reply => reply);

    /// <summary>A store of such a vCPU, within a page of private memory.</summary>
    public KvmCall<AccessAsTdResponse, AccessAsTdResponse> StoreAsync(ulong tdvpr, ulong gpa, ReadOnlyMemory<byte> data, CancellationToken cancellation = default) => Call(
        "store of a TD",
        Stub.AccessAsTdAsync(new AccessAsTdRequest { Host = HostId, Pid = Pid, Fd = Fd, Tdvpr = tdvpr, Gpa = gpa, Data = ByteString.CopyFrom(data.Span) }, cancellationToken: cancellation),
        reply => reply.Outcome, reply => reply);

    /// <summary>An interrupt takes such a vCPU out of its TD.</summary>
    public KvmCall<KickTdVcpuResponse, long> KickAsync(ulong tdvpr, CancellationToken cancellation = default) => Call(
        "interrupt a TD's vCPU", Stub.KickTdVcpuAsync(new KickTdVcpuRequest { Host = HostId, Pid = Pid, Fd = Fd, Tdvpr = tdvpr }, cancellationToken: cancellation), reply => reply.Outcome);

    /// <summary>Takes pages of the host. The result is their physical addresses, or those of the first page of each run.</summary>
    /// <param name="count">At most 4096.</param>
    /// <param name="huge">Runs of 512 pages, aligned to 2 MiB, instead of single ones.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    public KvmCall<AllocateTdxPagesResponse, IReadOnlyList<ulong>> AllocateAsync(uint count, bool huge = false, CancellationToken cancellation = default) => Call(
        "allocate pages",
        Stub.AllocateTdxPagesAsync(new AllocateTdxPagesRequest { Host = HostId, Pid = Pid, Fd = Fd, Count = count, Huge = huge }, cancellationToken: cancellation),
        reply => reply.Outcome, reply => (IReadOnlyList<ulong>)reply.Addresses);

    /// <summary>Takes one page.</summary>
    public async Task<ulong> AllocateAsync(CancellationToken cancellation = default) => (await AllocateAsync(1, cancellation: cancellation))[0];

    /// <summary>Gives pages back; all of them, or none. EBUSY where the module has one.</summary>
    public KvmCall<FreeTdxPagesResponse, long> FreeAsync(IEnumerable<ulong> addresses, CancellationToken cancellation = default) => Call(
        "free pages", Stub.FreeTdxPagesAsync(new FreeTdxPagesRequest { Host = HostId, Pid = Pid, Fd = Fd, Addresses = { addresses } }, cancellationToken: cancellation),
        reply => reply.Outcome);

    /// <summary>A load of the host: of a page that the module has, ciphertext.</summary>
    public KvmCall<ReadTdxPagesResponse, ReadOnlyMemory<byte>> ReadAsync(ulong address, uint length, CancellationToken cancellation = default) => Call(
        "host load", Stub.ReadTdxPagesAsync(new ReadTdxPagesRequest { Host = HostId, Pid = Pid, Fd = Fd, Address = address, Length = length }, cancellationToken: cancellation),
        reply => reply.Outcome, reply => reply.Data.Memory);

    /// <summary>A store of the host.</summary>
    public KvmCall<WriteTdxPagesResponse, long> WriteAsync(ulong address, ReadOnlyMemory<byte> data, CancellationToken cancellation = default) => Call(
        "host store",
        Stub.WriteTdxPagesAsync(
            new WriteTdxPagesRequest { Host = HostId, Pid = Pid, Fd = Fd, Address = address, Content = new Content { Inline = ByteString.CopyFrom(data.Span) } }, cancellationToken: cancellation),
        reply => reply.Outcome);

    /// <summary>What the module has of a TD, by its TDR: no call, nothing changes.</summary>
    public Task<DescribeTdByTdrResponse> DescribeAsync(ulong tdr, CancellationToken cancellation = default) =>
        Process.Connection.Call(Stub.DescribeTdByTdrAsync(new DescribeTdByTdrRequest { Host = HostId, Tdr = tdr }, cancellationToken: cancellation));
}
