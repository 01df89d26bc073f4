using SimKvm.Locking;
using SimKvm.Userspace;
using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimKvm.Kvm;

/// <summary>A virtual processor (struct kvm_vcpu): identity, its mutex, and its register state. Lives as long as its VM, descriptor or not.</summary>
internal sealed partial class Vcpu
{
    public Vcpu(Vm vm, ulong id, RunPage run)
    {
        Vm = vm;
        Id = id;
        Run = run;
        Guest = new GuestCpu(this);
        TscKhz = vm.DefaultTscKhz;
        Arch = new VcpuArch(vm.HasProtectedState, id, vm.Host.Machine.Cpuid);
    }

    public Vm Vm { get; }

    /// <summary>The id that user space chose (APIC id on x86).</summary>
    public ulong Id { get; }

    /// <summary>Creation order.</summary>
    public int Index { get; set; }

    public SimLock Mutex { get; } = new(LockOrder.Vcpu);

    public VcpuArch Arch { get; }

    /// <summary>struct kvm_run, shared with user space.</summary>
    public RunPage Run { get; }

    /// <summary>What runs on this processor.</summary>
    public GuestCpu Guest { get; }

    /// <summary>The page that holds the encrypted state of an SEV-ES or SNP vCPU; 0 without one.</summary>
    public Pfn Vmsa { get; set; }

    /// <summary>vcpu->arch.mmu_external_spt_cache: pages that were taken for tables of the Secure EPT before a fault was looked into, and not used yet.</summary>
    public Stack<Pfn> ExternalSptCache { get; } = [];

    /// <summary>What the TDX module has of the vCPU of a TD; null before KVM_TDX_INIT_VCPU.</summary>
    public Vendors.Intel.TdxVcpu? Tdx { get; set; }

    /// <summary>struct vcpu_sev_es_state; null where the state is not encrypted.</summary>
    public Vendors.Amd.VcpuSevEsState? SevEs { get; set; }
}

/// <summary>The vCPU fd: one reference to the VM.</summary>
internal sealed class VcpuFile(Vcpu vcpu) : KernelFile
{
    private const uint KvmIoctlType = 0xAE;

    public static readonly Rule NotAKvmIoctl = new(
        "kvm.vcpu.ioctl-type", "the ioctl number is not of KVM's type 0xAE", "kvm_vcpu_ioctl", "use KVM's numbers", "request");

    public static readonly Rule BehindRunPages = new(
        "kvm.vcpu.mmap-fault", "the access is behind the pages that a vCPU shares: SIGBUS", "kvm_vcpu_fault", "map KVM_GET_VCPU_MMAP_SIZE bytes from offset 0", "index", "pages#");

    public Vcpu Vcpu { get; } = vcpu;

    public override FdKind Kind => FdKind.Vcpu;

    public override string Name => $"anon_inode:kvm-vcpu:{Vcpu.Id}";

    internal override FMode Methods => FMode.Lseek;

    internal override bool OnNoExecFileSystem => true;

    internal override VfsInode VfsInode => Vcpu.Vm.Host.AnonInode;

    internal override Errno UnknownIoctl => Errno.EINVAL;

    internal override Errno IoctlEntry(KTask current, uint request)
    {
        Errno errno = Vcpu.Vm.CheckUsable(current);
        return errno == Errno.OK && ((request >> 8) & 0xff) != KvmIoctlType ? current.Fail(Errno.EINVAL, NotAKvmIoctl, request) : errno;
    }

    /// <summary>kvm_vcpu_mmap: any offset and protection goes, accesses decide.</summary>
    internal override Errno Mmap(KTask current, in FileMapping mapping) => Errno.OK;

    /// <summary>kvm_vcpu_fault: the run page, the PIO page, the coalesced-MMIO ring; nothing behind them (SIGBUS).</summary>
    internal override Errno Fault(KTask current, ulong index, out Pfn pfn)
    {
        pfn = index < RunPage.Pages ? Vcpu.Run.Frame((int)index) : default;
        return index < RunPage.Pages ? Errno.OK : current.Fail(Errno.EFAULT, BehindRunPages, index, RunPage.Pages);
    }

    internal override bool TryPeek(ulong index, out Pfn pfn)
    {
        pfn = index < RunPage.Pages ? Vcpu.Run.Frame((int)index) : default;
        return index < RunPage.Pages;
    }

    internal override void Release(KTask current) => Vcpu.Vm.Put(current);
}
