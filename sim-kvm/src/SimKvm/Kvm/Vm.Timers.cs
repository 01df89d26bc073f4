using SimKvm.Abi;
using SimMachine.Stepping;

namespace SimKvm.Kvm;

/// <summary>Where interrupt controllers are emulated (enum kvm_irqchip_mode).</summary>
internal enum IrqchipMode
{
    None,

    /// <summary>All in the kernel: KVM_CREATE_IRQCHIP.</summary>
    Kernel,

    /// <summary>Local APICs in the kernel, the rest in user space: KVM_CAP_SPLIT_IRQCHIP.</summary>
    Split,
}

// Interrupt controllers and the time-stamp counter, as far as a launch depends on them: which there are, and how fast it counts.
internal sealed partial class Vm
{
    private const ulong MaxReservedPins = 24;

    public static readonly Rule IrqchipExists = new(
        "kvm.irqchip.exists", "the VM has an irqchip already", "kvm_arch_vm_ioctl: KVM_CREATE_IRQCHIP; kvm_vm_ioctl_enable_cap: KVM_CAP_SPLIT_IRQCHIP", "make one irqchip", "mode#");

    public static readonly Rule IrqchipAfterVcpu = new(
        "kvm.irqchip.vcpus", "the irqchip must come before the first vCPU", "kvm_arch_vm_ioctl: KVM_CREATE_IRQCHIP; kvm_vm_ioctl_enable_cap: KVM_CAP_SPLIT_IRQCHIP", "make it first", "vcpus#");

    public static readonly Rule NoKernelIrqchipForTd = new(
        "kvm.irqchip.td", "a TD cannot have an irqchip that is all in the kernel", "kvm_arch_vm_ioctl: KVM_CREATE_IRQCHIP, 6.18", "enable KVM_CAP_SPLIT_IRQCHIP (121) instead", "vm_type#");

    public static readonly Rule TooManyPins = new(
        "kvm.irqchip.pins", "KVM_CAP_SPLIT_IRQCHIP reserves routes for at most 24 IOAPIC pins", "kvm_vm_ioctl_enable_cap", "pass 24 or less", "args0", "max#");

    public static readonly Rule TscTooFast = new(
        "kvm.tsc.khz", "the frequency is beyond what the processor can scale to", "kvm_arch_vm_ioctl, kvm_arch_vcpu_ioctl: KVM_SET_TSC_KHZ", "ask for less", "khz#", "max#");

    // kvm_caps.max_guest_tsc_khz: what the scaling ratio of the processor reaches, cut to the argument's type.
    internal const ulong MaxTscKhz = int.MaxValue;

    public IrqchipMode Irqchip { get; private set; }

    /// <summary>kHz of the TSC of new vCPUs, and of a TD.</summary>
    public uint DefaultTscKhz { get; private set; }

    /// <summary>KVM_CREATE_IRQCHIP.</summary>
    public Errno CreateIrqchip(KTask current)
    {
        using var vmLock = Lock.Enter(current);
        if (Irqchip != IrqchipMode.None)
        {
            return current.Fail(Errno.EEXIST, IrqchipExists, (ulong)Irqchip);
        }
        if (Type == VmType.KVM_X86_TDX_VM && Host.Profile.TdxRefusesKernelIrqchip)
        {
            return current.Fail(Errno.ENOTTY, NoKernelIrqchipForTd, (ulong)Type);
        }
        if (CreatedVcpus != 0)
        {
            return current.Fail(Errno.EINVAL, IrqchipAfterVcpu, (ulong)CreatedVcpus);
        }
        Irqchip = IrqchipMode.Kernel;
        return Errno.OK;
    }

    /// <summary>KVM_SET_TSC_KHZ on the VM: 0 is the host's own.</summary>
    public Errno SetTscKhz(KTask current, ulong khz)
    {
        khz = (uint)khz;
        if (khz >= MaxTscKhz)
        {
            return current.Fail(Errno.EINVAL, TscTooFast, khz, MaxTscKhz);
        }
        DefaultTscKhz = khz == 0 ? Host.Machine.Config.Tdx.TscKhz : (uint)khz;
        return Errno.OK;
    }

    private Errno EnableSplitIrqchip(KTask current, in kvm_enable_cap cap)
    {
        using var vmLock = Lock.Enter(current);
        if (cap.args0 > MaxReservedPins)
        {
            return current.Fail(Errno.EINVAL, TooManyPins, cap.args0, MaxReservedPins);
        }
        if (Irqchip != IrqchipMode.None)
        {
            return current.Fail(Errno.EEXIST, IrqchipExists, (ulong)Irqchip);
        }
        if (CreatedVcpus != 0)
        {
            return current.Fail(Errno.EINVAL, IrqchipAfterVcpu, (ulong)CreatedVcpus);
        }
        Irqchip = IrqchipMode.Split;
        return Errno.OK;
    }
}

internal sealed partial class Vcpu
{
    public static readonly Rule TscIsProtected = new(
        "kvm.vcpu.tsc-protected", "the TSC of a TD counts as KVM_TDX_INIT_VM said", "kvm_arch_vcpu_ioctl: KVM_SET_TSC_KHZ, guest_tsc_protected", "set it on the VM before KVM_TDX_INIT_VM");

    /// <summary>virtual_tsc_khz: what the VM had when the vCPU was made, unless it was set since.</summary>
    public uint TscKhz { get; private set; }

    /// <summary>kvm_vcpu_has_events, as far as something can be pending here: an NMI that the guest has not got yet.</summary>
    public bool HasEvents { get; private set; }

    /// <summary>KVM_NMI (kvm_inject_nmi): one for the guest, at its next entry.</summary>
    public Errno QueueNmi(KTask current)
    {
        using var mutex = Mutex.Enter(current);
        HasEvents = true;
        return Errno.OK;
    }

    /// <summary>process_nmi: the NMI that waits is the guest's from here on.</summary>
    public bool TakeNmi()
    {
        bool waited = HasEvents;
        HasEvents = false;
        return waited;
    }

    /// <summary>KVM_SET_TSC_KHZ on a vCPU.</summary>
    public Errno SetTscKhz(KTask current, ulong khz)
    {
        using var mutex = Mutex.Enter(current);
        khz = (uint)khz;
        if (Vm.Type == VmType.KVM_X86_TDX_VM)
        {
            return current.Fail(Errno.EINVAL, TscIsProtected);
        }
        if (khz >= Vm.MaxTscKhz)
        {
            return current.Fail(Errno.EINVAL, Vm.TscTooFast, khz, Vm.MaxTscKhz);
        }
        TscKhz = khz == 0 ? Vm.Host.Machine.Config.Tdx.TscKhz : (uint)khz;
        return Errno.OK;
    }
}
