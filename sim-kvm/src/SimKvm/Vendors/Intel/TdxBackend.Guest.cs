using SimKvm.Kvm;
using SimMachine;
using SimMachine.Addressing;
using SimMachine.Amd;
using SimMachine.Intel;
using SimMachine.Stepping;

namespace SimKvm.Vendors.Intel;

// The TD running: in and out (tdx_vcpu_run), which of its accesses are private, EPT violations (tdx_handle_ept_violation).
internal sealed partial class TdxBackend
{
    public static readonly Rule NotRunnable = new(
        "tdx.run.state", "the TD is not final, or the vCPU is not initialised (0 uninitialised, 1 initialised, 2 runnable)", "tdx_vcpu_pre_run",
        "KVM_TDX_INIT_VCPU each vCPU and KVM_TDX_FINALIZE_VM first", "state#", "vcpu#");

    public static readonly Rule PendingAccess = new(
        "tdx.ept-violation.pending", "the guest touched private memory before it accepted it, and its attributes (SEPT_VE_DISABLE) say that it gets no #VE for that", "tdx_handle_ept_violation",
        "let the guest accept the page first, or build the TD without SEPT_VE_DISABLE", "gpa");

    // KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON: what the processor returned, and on which processor it was.
    private const uint UnexpectedExitReason = 4;

    /// <summary>The shared bit says it.</summary>
    public override bool AccessesAreMarked => true;

    public override bool IsPrivateAccess(Gfn gfn, GuestAccess access) => access != GuestAccess.Shared;

    /// <summary>An address with the shared bit is a shared access to the address without it, as all of KVM knows it.</summary>
    public override (ulong Gpa, GuestAccess Access) ResolveAddress(ulong gpa, GuestAccess access) =>
        (gpa & _sharedBit) != 0 ? (gpa & ~_sharedBit, GuestAccess.Shared) : (gpa, access == GuestAccess.Unmarked ? GuestAccess.Private : access);

    public override uint GuestKey(GuestAccess access) => access == GuestAccess.Shared ? Machine.HostKey : Module.KeyOf(Tdr);

    /// <summary>KVM cannot see the guest's instructions: memory that is not there is a #VE, whose handler asks by TDG.VP.VMCALL.</summary>
    public override bool EmulatesInstructions => false;

    /// <summary>Only shared memory can be missing for the guest to see: the entry stays without the bit that suppresses #VE.</summary>
    public override void RaiseVirtualizationException(Vcpu vcpu, ulong gpa) => Module.RaiseVe(vcpu.Tdx!.Tdvpr, gpa | _sharedBit);

    public override Errno VcpuPreRun(KTask current, Vcpu vcpu) =>
        State != TdState.Runnable || vcpu.Tdx is null ? current.Fail(Errno.EINVAL, NotRunnable, (ulong)State, vcpu.Id) : Errno.OK;

    /// <summary>TDH.VP.ENTER. An error of it is KVM_EXIT_INTERNAL_ERROR.</summary>
    public override bool EnterGuest(KTask current, Vcpu vcpu)
    {
        Pfn tdvpr = vcpu.Tdx!.Tdvpr;
        if (Module.IsVcpuInside(tdvpr))
        {
            return true;
        }
        if (vcpu.TakeNmi())
        {
            // tdx_inject_nmi
            Module.VpWrPendNmi(current, tdvpr);
        }
        TdxStatus status = Module.VpEnter(current, tdvpr);
        if (status.IsError() || status.IsNonRecoverable())
        {
            vcpu.Run.InternalError(UnexpectedExitReason, (ulong)status, 0);
            return false;
        }
        return true;
    }

    public override void ExitGuest(Vcpu vcpu)
    {
        if (vcpu.Tdx is { } tdx)
        {
            Module.VpExit(tdx.Tdvpr);
        }
    }

    public override GuestAccessOutcome CheckGuestAccess(Vcpu vcpu, ulong gpa, in Stage2Entry entry, GuestAccess access, bool write)
    {
        if (access == GuestAccess.Shared)
        {
            return GuestAccessOutcome.Allowed;
        }
        return Module.GuestAccess(vcpu.Tdx!.Tdvpr, gpa, out _) switch
        {
            TdGuestOutcome.Completed => GuestAccessOutcome.Allowed,
            TdGuestOutcome.VirtualizationException => GuestAccessOutcome.VirtualizationException,
            _ => GuestAccessOutcome.NestedPageFault,
        };
    }

    /// <summary>An access to a page that waits to be accepted is the end of the VM; every other private access is treated as a store.</summary>
    public override Errno EptViolation(KTask current, Vcpu vcpu, ref PageFault fault)
    {
        fault.Write |= fault.IsPrivate;
        if (fault.IsPrivate && !fault.IsAccept && Module.GuestAccess(vcpu.Tdx!.Tdvpr, fault.Gfn.ToGpa().Value, out _) == TdGuestOutcome.PendingEptViolation)
        {
            Vm.MarkDead();
            return current.Fail(Errno.EIO, PendingAccess, fault.Gfn.ToGpa().Value);
        }
        return Errno.OK;
    }

    public override TdGuestOutcome Tdcall(KTask current, Vcpu vcpu, ref TdcallRegisters registers, out ulong fault) =>
        Module.Tdcall(current, vcpu.Tdx!.Tdvpr, ref registers, out fault);
}
