using SimKvm.Abi;
using SimKvm.Userspace;
using SimMachine.Stepping;

namespace SimKvm.Kvm;

// KVM_SET_GUEST_DEBUG. Nothing of a guest program is stopped at or stepped through: what counts is that a vCPU which is being debugged cannot be encrypted (sev_es_sync_vmsa).
internal sealed partial class VcpuArch
{
    private const uint GuestDebugEnable = 1;

    public static readonly Rule DebugOfProtectedState = new(
        "kvm.vcpu.guest-debug.protected", "the vCPU's state is encrypted, so it cannot be debugged", "kvm_arch_vcpu_ioctl_set_guest_debug", "debug it before it is measured, or not at all");

    /// <summary>guest_debug: the control word, 0 where debugging is off.</summary>
    public uint GuestDebug { get; private set; }

    /// <summary>KVM_SET_GUEST_DEBUG (kvm_vcpu_ioctl).</summary>
    public SyscallResult SetGuestDebug(KTask current, UserArg arg)
    {
        Errno errno = arg.CopyIn(current, out kvm_guest_debug debug);
        return errno == Errno.OK ? SetGuestDebug(current, debug) : errno;
    }

    /// <summary>KVM_SET_GUEST_DEBUG. Without KVM_GUESTDBG_ENABLE (bit 0) the other bits are forgotten.</summary>
    public Errno SetGuestDebug(KTask current, in kvm_guest_debug debug)
    {
        if (GuestStateProtected)
        {
            return current.Fail(Errno.EINVAL, DebugOfProtectedState);
        }
        GuestDebug = (debug.control & GuestDebugEnable) != 0 ? debug.control : 0;
        return Errno.OK;
    }
}
