using VmmService.V1;

namespace VmmService.Client;

// Running the guest, and mapping memory for it.
public sealed partial class Vcpu
{
    /// <summary>Gives the vCPU what it executes instead of machine code; see <see cref="Guest"/> for the steps.</summary>
    /// <returns>The number of steps.</returns>
    /// <exception cref="VmmServiceException">A step cannot be, for example marks an access that this VM type cannot mark.</exception>
    public async Task<int> LoadProgramAsync(IEnumerable<GuestStep> steps, CancellationToken cancellation = default)
    {
        var request = new LoadGuestProgramRequest { Host = HostId, Pid = Pid, Fd = Fd };
        request.Steps.AddRange(steps);
        return (int)(await Process.Host.Connection.Call(Stubs.Vcpu.LoadGuestProgramAsync(request, cancellationToken: cancellation))).Steps;
    }

    /// <summary>KVM_RUN: until an exit is for user space. The reply has the exit record; with <see cref="KvmCall{TReply,TValue}"/>'s non-throwing form also beside an errno.</summary>
    /// <param name="update">What user space stores into the run page first: the answer to the last exit, or immediate_exit.</param>
    /// <param name="cancellation">Gives up waiting; the guest goes on to its exit.</param>
    public KvmCall<RunResponse, RunResponse> RunAsync(RunPageUpdate? update = null, CancellationToken cancellation = default) =>
        Call(
            "KVM_RUN",
            Stubs.Vcpu.RunAsync(new RunRequest { Host = HostId, Pid = Pid, Fd = Fd, Update = update }, cancellationToken: cancellation),
            reply => reply.Outcome,
            reply => reply);

    /// <summary>KVM_PRE_FAULT_MEMORY: maps what backs a range, as far as it goes. The reply says what is left.</summary>
    /// <param name="gpa">Page aligned.</param>
    /// <param name="size">Bytes, a multiple of 4096.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    public KvmCall<PreFaultMemoryResponse, KvmPreFaultMemory> PreFaultMemoryAsync(ulong gpa, ulong size, CancellationToken cancellation = default) =>
        Call(
            "KVM_PRE_FAULT_MEMORY",
            Stubs.Vcpu.PreFaultMemoryAsync(
                new PreFaultMemoryRequest { Host = HostId, Pid = Pid, Fd = Fd, Range = new KvmPreFaultMemory { Gpa = gpa, Size = size } }, cancellationToken: cancellation),
            reply => reply.Outcome,
            reply => reply.Range);

    /// <summary>KVM_MAP_MEMORY, in the profiles that have it. The reply says what is left.</summary>
    public KvmCall<MapMemoryResponse, KvmMemoryMapping> MapMemoryAsync(KvmMemoryMapping mapping, CancellationToken cancellation = default) =>
        Call(
            "KVM_MAP_MEMORY",
            Stubs.Vcpu.MapMemoryAsync(new MapMemoryRequest { Host = HostId, Pid = Pid, Fd = Fd, Mapping = mapping }, cancellationToken: cancellation),
            reply => reply.Outcome,
            reply => reply.Mapping);
}
