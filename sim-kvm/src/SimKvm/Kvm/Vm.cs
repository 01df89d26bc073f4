using SimKvm.Abi;
using SimKvm.Locking;
using SimKvm.Userspace;
using SimKvm.Vendors;
using SimKvm.Vendors.Amd;
using SimKvm.Vendors.Arm;
using SimKvm.Vendors.Intel;
using SimMachine;
using SimMachine.Stepping;

namespace SimKvm.Kvm;

/// <summary>
/// A virtual machine (struct kvm). Its parts are split by the lock that owns them: <see cref="Memslots"/> and <see cref="MemoryAttributes"/> (slots_lock),
/// <see cref="Mmu"/> (mmu_lock), the vCPUs (kvm->lock), and one vendor backend.
/// </summary>
/// <remarks>
/// Reference counted: the VM fd, each vCPU fd and each guest_memfd file hold one. The last put destroys it: vCPUs, then the vendor's part.
/// Invariant: while a slot names a guest_memfd file, that file is open and holds a reference to this VM.
/// </remarks>
internal sealed partial class Vm
{
    public const int MaxVcpus = 1024;
    public const int MaxVcpuIds = 4096;

    /// <summary>Normal memory and SMM; a VM with private memory has one address space.</summary>
    public const int MaxAddressSpaces = 2;

    /// <summary>Hypercalls that may exit to user space: KVM_HC_MAP_GPA_RANGE.</summary>
    public const uint ExitHypercallMask = 1 << 12;

    public static readonly Rule NotYourVm = new(
        "kvm.vm.other-process", "the caller is not the process that created the VM", "kvm_vm_ioctl", "issue the ioctl from the creating process");

    public static readonly Rule IsDead = new(
        "kvm.vm.dead", "the VM is dead: an earlier failure left it in a state that cannot be used", "kvm_vm_ioctl; KVM_BUG_ON",
        "close it and create another; the call that killed it says why");

    public static readonly Rule CapFlags = new(
        "kvm.enable-cap.flags", "flags of KVM_ENABLE_CAP must be 0", "kvm_vm_ioctl_enable_cap", "pass flags 0", "cap#", "flags");

    public static readonly Rule CapUnknown = new(
        "kvm.enable-cap.cap", "the capability cannot be enabled on a VM, or is not modelled", "kvm_vm_ioctl_enable_cap",
        "capabilities that are only queried need no KVM_ENABLE_CAP", "cap#");

    public static readonly Rule HypercallMask = new(
        "kvm.enable-cap.exit-hypercall", "the mask has hypercalls that cannot exit to user space", "kvm_vm_ioctl_enable_cap",
        "use bit 12 (KVM_HC_MAP_GPA_RANGE) only", "args0");

    public static readonly Rule VcpuIdTooLarge = new(
        "kvm.create-vcpu.id", "the vCPU id is not below the maximum", "kvm_vm_ioctl_create_vcpu", "use an id below KVM_CAP_MAX_VCPU_ID", "id#", "max#");

    public static readonly Rule TooManyVcpus = new(
        "kvm.create-vcpu.count", "the VM has as many vCPUs as it may have", "kvm_vm_ioctl_create_vcpu", "see KVM_CAP_MAX_VCPUS", "vcpus#");

    public static readonly Rule VcpuExists = new(
        "kvm.create-vcpu.exists", "the VM has a vCPU of that id", "kvm_vm_ioctl_create_vcpu",
        "use another id; a vCPU stays when its descriptor is closed", "id#");

    public static readonly Rule NoRunPage = new(
        "kvm.create-vcpu.no-memory", "the simulated machine has no free pages for the vCPU's run page", "kvm_vm_ioctl_create_vcpu", "give the host more memory_bytes", "id#");

    private readonly List<Vcpu> _vcpus = [];
    private int _users = 1;

    public Vm(SimHost host, Process owner, VmType type)
    {
        Host = host;
        Owner = owner;
        Type = type;
        HasPrivateMem = type is VmType.KVM_X86_SW_PROTECTED_VM or VmType.KVM_X86_SNP_VM or VmType.KVM_X86_TDX_VM || host.Profile.PrivateMemoryForEveryVm;
        HasProtectedState = type is VmType.KVM_X86_SEV_ES_VM or VmType.KVM_X86_SNP_VM or VmType.KVM_X86_TDX_VM;
        Memslots = new Memslots(this);
        Attributes = new MemoryAttributes(this);
        DefaultTscKhz = host.Machine.Config.Tdx.TscKhz;
        Backend = MakeBackend();
        Mmu = new Mmu(this, Backend.HasPrivateTable);
        owner.Memory.Register(Mmu);
        host.LiveVms++;
    }

    public SimHost Host { get; }

    /// <summary>The process whose memory backs the slots (kvm->mm).</summary>
    public Process Owner { get; }

    public VmType Type { get; }

    public bool HasPrivateMem { get; }

    public bool HasProtectedState { get; }

    /// <summary>kvm->lock</summary>
    public SimLock Lock { get; } = new(LockOrder.Vm);

    public SimLock SlotsLock { get; } = new(LockOrder.Slots);

    public SimLock SlotsArchLock { get; } = new(LockOrder.SlotsArch);

    /// <summary>Keeps a punch hole and a change of attributes apart where a generation has a mutex for it (<see cref="Profiles.RmpUpdateLock.Mutex"/>).</summary>
    public SimLock GmemRmpMutex { get; } = new(LockOrder.GmemRmp);

    /// <summary>kvm->srcu: faults read slots and pages under it, a change of slots waits for them.</summary>
    public SimLock Srcu { get; } = new(LockOrder.Srcu);

    public Memslots Memslots { get; }

    public MemoryAttributes Attributes { get; }

    public Mmu Mmu { get; }

    public VmBackend Backend { get; }

    /// <summary>In creation order: the order in which the kernel's index counts.</summary>
    public IReadOnlyList<Vcpu> Vcpus => _vcpus;

    /// <summary>vCPUs created or being created.</summary>
    public int CreatedVcpus { get; private set; }

    public uint HypercallExits { get; private set; }

    /// <summary>vm_dead: every VM and vCPU ioctl answers EIO.</summary>
    public bool Dead { get; private set; }

    public int AddressSpaceCount => HasPrivateMem || !Host.Config.Smm || Host.Machine.Config.Platform == Platform.ArmPkvm ? 1 : MaxAddressSpaces;

    /// <summary>Some VM type of this host has private memory (CONFIG_KVM_VM_MEMORY_ATTRIBUTES).</summary>
    public static bool PrivateMemoryIsBuilt(SimHost host) =>
        (SupportedTypes(host) & ((1u << (int)VmType.KVM_X86_SW_PROTECTED_VM) | (1u << (int)VmType.KVM_X86_SNP_VM) | (1u << (int)VmType.KVM_X86_TDX_VM))) != 0;

    /// <summary>Mask of VM types that this host can create (KVM_CAP_VM_TYPES).</summary>
    public static uint SupportedTypes(SimHost host)
    {
        if (host.Machine.Config.Platform == Platform.ArmPkvm)
        {
            return 0;
        }
        uint types = 1u << (int)VmType.KVM_X86_DEFAULT_VM;
        types |= host.Config is { SwProtectedVm: true, Tdp: true } ? 1u << (int)VmType.KVM_X86_SW_PROTECTED_VM : 0;
        types |= host.KvmAmd.SevEnabled ? 1u << (int)VmType.KVM_X86_SEV_VM : 0;
        types |= host.KvmAmd.SevEsEnabled ? 1u << (int)VmType.KVM_X86_SEV_ES_VM : 0;
        types |= host.KvmAmd.SnpEnabled ? 1u << (int)VmType.KVM_X86_SNP_VM : 0;
        types |= host.KvmIntel.TdxEnabled ? 1u << (int)VmType.KVM_X86_TDX_VM : 0;
        return types & host.Profile.VmTypes;
    }

    /// <summary>What threads may touch at the same time, in an order that is always the same; for exploration.</summary>
    public IEnumerable<object> SharedState =>
        [this, Lock, SlotsLock, SlotsArchLock, GmemRmpMutex, Srcu, Backend, Memslots, .. Memslots.All, .. Attributes.SharedState, .. Mmu.SharedState, .. Vcpus, .. Vcpus.Select(vcpu => vcpu.Mutex)];

    /// <summary>What every VM and vCPU ioctl checks first.</summary>
    public Errno CheckUsable(KTask current)
    {
        current.Machine.Reading(this);
        if (current.Process != Owner)
        {
            return current.Fail(Errno.EIO, NotYourVm);
        }
        return Dead ? current.Fail(Errno.EIO, IsDead) : Errno.OK;
    }

    /// <summary>kvm_vm_dead: every VM and vCPU ioctl answers EIO from here on.</summary>
    public void MarkDead() => Dead = true;

    /// <summary>KVM_BUG_ON: the VM is dead from here on.</summary>
    public void Bug(KTask current, string why)
    {
        current.Machine.Writing(this);
        Dead = true;
        current.Machine.Findings.Report(current, "vm-bugged", why, [], [$"call {current.Call}"]);
    }

    /// <summary>References: the VM fd's, one for each vCPU fd and guest_memfd file. 0 once it is destroyed.</summary>
    public int Users => _users;

    public void Get() => _users++;

    /// <summary>kvm_put_kvm(): the last put destroys the VM.</summary>
    public void Put(KTask current)
    {
        current.Machine.Writing(this);
        if (--_users > 0)
        {
            return;
        }
        Backend.PreDestroy(current);
        foreach (Vcpu vcpu in _vcpus)
        {
            Free(current, vcpu);
        }
        Owner.Memory.Unregister(Mmu);
        Memslots.Destroy(current);
        Backend.VmDestroy(current);
        Host.LiveVms--;
    }

    private VmBackend MakeBackend() => Host.Machine.Config.Platform switch
    {
        Platform.ArmPkvm => new PkvmBackend(this),
        Platform.IntelTdx => Type == VmType.KVM_X86_TDX_VM ? new TdxBackend(this) : new IntelBackend(this),
        _ => new SevBackend(this),
    };

    private void Free(KTask current, Vcpu vcpu)
    {
        Backend.VcpuFree(current, vcpu);
        vcpu.Run.Free(current);
    }

    /// <summary>KVM_CREATE_VCPU (kvm_vm_ioctl_create_vcpu).</summary>
    public SyscallResult CreateVcpu(KTask current, ulong id)
    {
        if (id >= MaxVcpuIds)
        {
            return current.Fail(Errno.EINVAL, VcpuIdTooLarge, id, MaxVcpuIds);
        }
        using (Lock.Enter(current))
        {
            if (CreatedVcpus >= Backend.MaxVcpus)
            {
                return current.Fail(Errno.EINVAL, TooManyVcpus, (ulong)CreatedVcpus);
            }
            Errno precreate = VcpuPrecreate(current, id);
            if (precreate != Errno.OK)
            {
                return precreate;
            }
            CreatedVcpus++;
        }

        SyscallResult result = CreateVcpuCounted(current, id);
        if (!result.Succeeded)
        {
            using var vmLock = Lock.Enter(current);
            CreatedVcpus--;
        }
        return result;
    }

    private SyscallResult CreateVcpuCounted(KTask current, ulong id)
    {
        if (RunPage.TryCreate(current, Host) is not { } run)
        {
            return current.Fail(Errno.ENOMEM, NoRunPage, id);
        }
        var vcpu = new Vcpu(this, id, run);
        Errno errno = Backend.VcpuCreate(current, vcpu);
        if (errno != Errno.OK)
        {
            run.Free(current);
            return errno;
        }
        using var vmLock = Lock.Enter(current);
        if (_vcpus.Exists(other => other.Id == id))
        {
            Free(current, vcpu);
            return current.Fail(Errno.EEXIST, VcpuExists, id);
        }
        errno = current.Process.Files.Reserve(current, out int fd);
        if (errno != Errno.OK)
        {
            Free(current, vcpu);
            return errno;
        }
        vcpu.Index = _vcpus.Count;
        _vcpus.Add(vcpu);
        Get();
        current.Process.Files.Install(fd, new VcpuFile(vcpu), closeOnExec: true);
        return SyscallResult.Of(fd);
    }

    /// <summary>KVM_ENABLE_CAP on the VM (kvm_vm_ioctl_enable_cap).</summary>
    public Errno EnableCap(KTask current, UserArg arg)
    {
        Errno errno = arg.CopyIn(current, out kvm_enable_cap cap);
        if (errno != Errno.OK)
        {
            return errno;
        }
        if (cap.flags != 0)
        {
            return current.Fail(Errno.EINVAL, CapFlags, cap.cap, cap.flags);
        }
        switch (cap.cap)
        {
            case (uint)KvmCap.EXIT_HYPERCALL:
                if ((cap.args0 & ~(ulong)ExitHypercallMask) != 0)
                {
                    return current.Fail(Errno.EINVAL, HypercallMask, cap.args0);
                }
                current.Machine.Writing(this);
                HypercallExits = (uint)cap.args0;
                return Errno.OK;
            default:
                return EnableOtherCap(current, cap);
        }
    }
}

/// <summary>The VM fd: one reference to the VM.</summary>
internal sealed class VmFile(Vm vm) : KernelFile
{
    public Vm Vm { get; } = vm;

    public override FdKind Kind => FdKind.Vm;

    public override string Name => "anon_inode:kvm-vm";

    internal override FMode Methods => FMode.Lseek;

    internal override bool OnNoExecFileSystem => true;

    internal override VfsInode VfsInode => Vm.Host.AnonInode;

    internal override Errno IoctlEntry(KTask current, uint request) => Vm.CheckUsable(current);

    internal override IEnumerable<object> SharedState => [this, .. Vm.SharedState];

    internal override void Release(KTask current) => Vm.Put(current);
}
