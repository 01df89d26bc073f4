using SimKvm.Abi;
using SimKvm.Userspace;
using SimMachine.Stepping;

namespace SimKvm.Kvm;

// What user space sets on a VM once: capabilities besides hypercalls, and addresses that Intel processors without unrestricted guests need.
internal sealed partial class Vm
{
    private const ulong ManualProtectEnable = 1;
    private const ulong InitiallySet = 2;

    // KVM_X86_VALID_QUIRKS as far as they are the same in all generations: LINT0, CD_NW, LAPIC_MMIO_HOLE, OUT_7E_INC_RIP, MISC_ENABLE, FIX_HYPERCALL_INSN, MWAIT.
    private const ulong KnownQuirks = 0x7f;

    public static readonly Rule CapArgument = new(
        "kvm.enable-cap.argument", "the argument of the capability cannot be", "kvm_vm_ioctl_enable_cap, kvm_vm_ioctl_enable_cap_generic", "see KVM_CHECK_EXTENSION of the capability",
        "cap#", "args0");

    public static readonly Rule MaxVcpuIdSet = new(
        "kvm.enable-cap.max-vcpu-id", "KVM_CAP_MAX_VCPU_ID is set once, and not below a vCPU that exists", "kvm_vm_ioctl_enable_cap", "set it before anything else, once", "args0", "now#");

    public static readonly Rule BeyondMaxVcpuId = new(
        "kvm.create-vcpu.max-id", "the vCPU id is not below what KVM_CAP_MAX_VCPU_ID was set to", "kvm_arch_vcpu_precreate", "use a smaller id", "id#", "max#");

    public static readonly Rule TssAddress = new(
        "kvm.set-tss-addr", "three pages from the address on do not lie below 4 GiB", "kvm_vm_ioctl_set_tss_addr", "stay below 0xffffd000", "addr");

    public static readonly Rule IdentityMapTooLate = new(
        "kvm.set-identity-map.vcpus", "the identity map is placed before there are vCPUs", "kvm_vm_ioctl_set_identity_map_addr", "set it first", "vcpus#");

    /// <summary>KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2</summary>
    public const long ManualDirtyLogOptions = (long)(ManualProtectEnable | InitiallySet);

    /// <summary>KVM_CAP_DISABLE_QUIRKS2</summary>
    public const long Quirks = (long)KnownQuirks;

    private int _maxVcpuIds;

    /// <summary>KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE: pages stay dirty until KVM_CLEAR_DIRTY_LOG.</summary>
    public bool ManualDirtyLogProtect { get; private set; }

    /// <summary>KVM_DIRTY_LOG_INITIALLY_SET: a slot's log begins with all pages dirty.</summary>
    public bool DirtyLogInitiallySet { get; private set; }

    // The capabilities of KVM_ENABLE_CAP that are not about guest memory alone. Flags are 0 here.
    private Errno EnableOtherCap(KTask current, in kvm_enable_cap cap)
    {
        switch (cap.cap)
        {
            case (uint)KvmCap.MANUAL_DIRTY_LOG_PROTECT2:
                {
                    ulong allowed = (cap.args0 & ManualProtectEnable) != 0 ? ManualProtectEnable | InitiallySet : ManualProtectEnable;
                    if ((cap.args0 & ~allowed) != 0)
                    {
                        return current.Fail(Errno.EINVAL, CapArgument, cap.cap, cap.args0);
                    }
                    ManualDirtyLogProtect = (cap.args0 & ManualProtectEnable) != 0;
                    DirtyLogInitiallySet = (cap.args0 & InitiallySet) != 0;
                    return Errno.OK;
                }
            case (uint)KvmCap.HALT_POLL:
                // How long a halted vCPU is polled for is about time, which the simulation does not have.
                return cap.args0 <= uint.MaxValue ? Errno.OK : current.Fail(Errno.EINVAL, CapArgument, cap.cap, cap.args0);
            case (uint)KvmCap.DISABLE_QUIRKS:
                // Bits that are no quirks are ignored by the first form and refused by the second.
                return Errno.OK;
            case (uint)KvmCap.DISABLE_QUIRKS2:
                return (cap.args0 & ~KnownQuirks) == 0 ? Errno.OK : current.Fail(Errno.EINVAL, CapArgument, cap.cap, cap.args0);
            case (uint)KvmCap.MAX_VCPU_ID:
                return SetMaxVcpuId(current, cap);
            case (uint)KvmCap.SPLIT_IRQCHIP:
                return EnableSplitIrqchip(current, cap);
            case (uint)KvmCap.VM_COPY_ENC_CONTEXT_FROM:
                return Backend.CopyEncContextFrom(current, unchecked((int)cap.args0));
            case (uint)KvmCap.VM_MOVE_ENC_CONTEXT_FROM:
                return Backend.MoveEncContextFrom(current, unchecked((int)cap.args0));
            default:
                return current.Fail(Errno.EINVAL, CapUnknown, cap.cap);
        }
    }

    private Errno SetMaxVcpuId(KTask current, in kvm_enable_cap cap)
    {
        if (cap.args0 > MaxVcpuIds)
        {
            return current.Fail(Errno.EINVAL, CapArgument, cap.cap, cap.args0);
        }
        using var vmLock = Lock.Enter(current);
        if (_maxVcpuIds != 0 && _maxVcpuIds != (int)cap.args0)
        {
            return current.Fail(Errno.EINVAL, MaxVcpuIdSet, cap.args0, (ulong)_maxVcpuIds);
        }
        _maxVcpuIds = (int)cap.args0;
        return Errno.OK;
    }

    // kvm_arch_vcpu_precreate. kvm->lock is held.
    private Errno VcpuPrecreate(KTask current, ulong id) =>
        _maxVcpuIds != 0 && id >= (ulong)_maxVcpuIds ? current.Fail(Errno.EINVAL, BeyondMaxVcpuId, id, (ulong)_maxVcpuIds) : Errno.OK;

    /// <summary>KVM_SET_TSS_ADDR: AMD processors need no pages there, so only the address is checked.</summary>
    public static Errno SetTssAddr(KTask current, ulong addr)
    {
        const ulong highest = 0xffff_ffff - (3 * 4096) + 1;
        return addr > highest ? current.Fail(Errno.EINVAL, TssAddress, addr) : Errno.OK;
    }

    /// <summary>KVM_SET_IDENTITY_MAP_ADDR: the same.</summary>
    public Errno SetIdentityMapAddr(KTask current, UserArg arg)
    {
        Errno errno = arg.CopyIn(current, out ulong _);
        if (errno != Errno.OK)
        {
            return errno;
        }
        using var vmLock = Lock.Enter(current);
        return CreatedVcpus != 0 ? current.Fail(Errno.EINVAL, IdentityMapTooLate, (ulong)CreatedVcpus) : Errno.OK;
    }
}
