using SimKvm.Kvm;
using SimKvm.Userspace;
using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimKvm.Vendors;

/// <summary>
/// The vendor's part of a VM (kvm_x86_ops). Each method's default is what an absent hook means; names are the kernel's.
/// </summary>
internal abstract class VmBackend(Vm vm)
{
    public static readonly Rule NoMemEncIoctl = new(
        "kvm.mem-enc.absent", "memory encryption is not there: SEV is disabled on this host", "kvm_arch_vm_ioctl; sev_mem_enc_ioctl",
        "boot the host with sev enabled");

    public Vm Vm { get; } = vm;

    /// <summary>KVM_MEMORY_ENCRYPT_OP. Absent: ENOTTY.</summary>
    public virtual Errno MemEncIoctl(KTask current, UserArg arg) => current.Fail(Errno.ENOTTY, NoMemEncIoctl);

    /// <summary>Allocates what a vCPU of this vendor needs. Absent: nothing.</summary>
    public virtual Errno VcpuCreate(KTask current, Vcpu vcpu) => Errno.OK;

    public virtual void VcpuFree(KTask current, Vcpu vcpu)
    {
    }

    public virtual void VmDestroy(KTask current)
    {
    }

    /// <summary>Frames that the vendor's part of the VM holds; for audits.</summary>
    public virtual IEnumerable<Pfn> Frames => [];

    /// <summary>kvm_arch_pre_set_memory_attributes, for each slot that overlaps, under mmu_lock: stage-2 entries go.</summary>
    public virtual void PreSetMemoryAttributes(KTask current, GfnRange range, ulong attributes)
    {
        if (Vm.HasPrivateMem)
        {
            Vm.Mmu.Unmap(current, range);
        }
    }

    /// <summary>
    /// kvm_arch_post_set_memory_attributes. The kernel updates its count of mixed huge pages here; that is read off the attributes where it is asked for, so
    /// there is nothing to do.
    /// </summary>
    public virtual void PostSetMemoryAttributes(KTask current, GfnRange range, ulong attributes)
    {
    }
}
