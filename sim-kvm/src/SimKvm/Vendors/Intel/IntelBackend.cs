using SimKvm.Kvm;
using SimKvm.Userspace;
using SimMachine.Stepping;

namespace SimKvm.Vendors.Intel;

/// <summary>A VM of kvm_intel that is not a TD: nothing of it is encrypted.</summary>
internal sealed class IntelBackend(Vm vm) : VmBackend(vm)
{
    public static readonly Rule NotATd = new(
        "tdx.op.not-a-td", "the VM is not a TD", "vt_mem_enc_ioctl, vt_vcpu_mem_enc_ioctl", "create the VM with type KVM_X86_TDX_VM (5)", "vm_type#");

    public override Errno MemEncIoctl(KTask current, UserArg arg) => current.Fail(Errno.ENOTTY, NotATd, (ulong)Vm.Type);

    public override Errno VcpuMemEncIoctl(KTask current, Vcpu vcpu, UserArg arg) => current.Fail(Errno.EINVAL, NotATd, (ulong)Vm.Type);
}
