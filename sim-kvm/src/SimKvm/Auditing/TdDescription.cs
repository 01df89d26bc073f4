using SimKvm.Kvm;
using SimKvm.Userspace;
using SimKvm.Vendors.Intel;
using SimMachine.Intel;

namespace SimKvm.Auditing;

/// <summary>How far a TD is built, as KVM has it (enum kvm_tdx_state).</summary>
public enum TdBuildState
{
    Uninitialized,
    Initialized,
    Runnable,
}

/// <summary>A TD for people: how far KVM has it, and what the TDX module knows. Reading it is no call and changes nothing.</summary>
/// <param name="Module">Null before KVM_TDX_INIT_VM.</param>
public sealed record TdDescription(TdBuildState State, TdSummary? Module)
{
    /// <summary>TD_PARAMS that KVM made for TDH.MNG.INIT, taken or not; empty before.</summary>
    public ReadOnlyMemory<byte> TdParams { get; init; }

    /// <summary>Pages of the Secure EPT that are not free, in order of addresses.</summary>
    public IEnumerable<SeptPage> Pages { get; init; } = [];

    /// <summary>Describes the TD behind a VM fd or a vCPU fd; null where it is none.</summary>
    public static TdDescription? Of(Process process, int fd)
    {
        process.Files.TryGet(fd, out KernelFile? file);
        Vm? vm = file switch { VmFile { Vm: var own } => own, VcpuFile { Vcpu.Vm: var its } => its, _ => null };
        return vm?.Backend is TdxBackend backend
            ? new TdDescription((TdBuildState)backend.State, vm.Host.Machine.Tdx.Describe(backend.Tdr)) { Pages = vm.Host.Machine.Tdx.Pages(backend.Tdr), TdParams = backend.TdParamsOfInit }
            : null;
    }
}
