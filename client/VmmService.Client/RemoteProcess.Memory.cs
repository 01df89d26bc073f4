using VmmService.V1;

namespace VmmService.Client;

// Calls on memory, fork, and files that have no device behind them.
public sealed partial class RemoteProcess
{
    /// <summary>fork(2): a child with the same memory and descriptors, tied to this client like its parent.</summary>
    /// <exception cref="KvmException">ENOMEM: the machine has no pages left for the child's copies.</exception>
    public async Task<RemoteProcess> ForkAsync(CancellationToken cancellation = default)
    {
        ForkResponse reply = await Connection.Call(
            Connection.Stubs.Processes.ForkAsync(new ForkRequest { Host = Host.Id, Pid = Pid }, cancellationToken: cancellation));
        return reply.Outcome.Errno == 0 ? await AttachAsync(Host, (uint)reply.Outcome.Value, cancellation) : throw new KvmException("fork", reply.Outcome);
    }

    /// <summary>memfd_create(2).</summary>
    /// <param name="name">For people.</param>
    /// <param name="flags">MFD_CLOEXEC 1, MFD_ALLOW_SEALING 2.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    public KvmCall<MemfdCreateResponse, Memfd> MemfdCreateAsync(string name, uint flags = 0, CancellationToken cancellation = default) =>
        new(
            "memfd_create",
            Connection.Call(Connection.Stubs.Files.MemfdCreateAsync(
                new MemfdCreateRequest { Host = Host.Id, Pid = Pid, Name = name, Flags = flags }, cancellationToken: cancellation)),
            reply => reply.Outcome,
            reply => new Memfd(this, (int)reply.Outcome.Value));

    /// <summary>mprotect(2).</summary>
    public KvmCall<MprotectResponse, long> MprotectAsync(ulong addr, ulong length, uint prot, CancellationToken cancellation = default) =>
        new(
            "mprotect",
            Connection.Call(Connection.Stubs.Processes.MprotectAsync(
                new MprotectRequest { Host = Host.Id, Pid = Pid, Addr = addr, Length = length, Prot = prot }, cancellationToken: cancellation)),
            reply => reply.Outcome,
            reply => reply.Outcome.Value);

    /// <summary>madvise(2). MADV_DONTNEED is 4, MADV_HWPOISON 100.</summary>
    public KvmCall<MadviseResponse, long> MadviseAsync(ulong addr, ulong length, uint advice, CancellationToken cancellation = default) =>
        new(
            "madvise",
            Connection.Call(Connection.Stubs.Processes.MadviseAsync(
                new MadviseRequest { Host = Host.Id, Pid = Pid, Addr = addr, Length = length, Advice = advice }, cancellationToken: cancellation)),
            reply => reply.Outcome,
            reply => reply.Outcome.Value);

    /// <summary>mremap(2); the result is the new address. MREMAP_MAYMOVE is 1.</summary>
    public KvmCall<MremapResponse, ulong> MremapAsync(
        ulong addr, ulong oldLength, ulong newLength, uint flags = 1, ulong newAddr = 0, CancellationToken cancellation = default) =>
        new(
            "mremap",
            Connection.Call(Connection.Stubs.Processes.MremapAsync(
                new MremapRequest { Host = Host.Id, Pid = Pid, Addr = addr, OldLength = oldLength, NewLength = newLength, Flags = flags, NewAddr = newAddr },
                cancellationToken: cancellation)),
            reply => reply.Outcome,
            reply => reply.Addr);
}
