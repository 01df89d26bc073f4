using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Userspace;
using SimMachine.Addressing;
using SimMachine.Intel;
using SimMachine.Stepping;

namespace SimKvm.Vendors.Intel;

/// <summary>How far a TD is built (enum kvm_tdx_state).</summary>
internal enum TdState
{
    /// <summary>After KVM_CREATE_VM: no SEAMCALL was made.</summary>
    Uninitialized,

    /// <summary>After KVM_TDX_INIT_VM.</summary>
    Initialized,

    /// <summary>After KVM_TDX_FINALIZE_VM.</summary>
    Runnable,
}

/// <summary>
/// A TD (struct kvm_tdx, arch/x86/kvm/vmx/tdx.c): the commands of KVM_MEMORY_ENCRYPT_OP and their dispatch are here, INIT_VM in <c>TdxBackend.InitVm.cs</c>, vCPUs in
/// <c>TdxBackend.Vcpu.cs</c>, initial memory in <c>TdxBackend.Region.cs</c>, the Secure EPT in <c>TdxBackend.Sept.cs</c>, the guest in <c>TdxBackend.Guest.cs</c>, teardown in
/// <c>TdxBackend.Teardown.cs</c>. State is under kvm->lock and, where the generation has the guard, all vCPU mutexes and slots_lock.
/// </summary>
/// <remarks>
/// The private table of <see cref="Mmu"/> is KVM's mirror of the Secure EPT; the module has the real one. Each change of the mirror under mmu_lock is a SEAMCALL.
/// Invariant: outside a call a private leaf of the mirror is a page of the module's Secure EPT, with the same frame, unless its PAGE.ADD failed (premapped).
/// </remarks>
internal sealed partial class TdxBackend(Vm vm) : VmBackend(vm)
{
    public static readonly Rule HwErrorNotZero = new(
        "tdx.op.hw-error", "hw_error must be 0 on the way in", "tdx_get_cmd", "clear it", "id#", "hw_error");

    public static readonly Rule UnknownVmCommand = new(
        "tdx.op.unknown", "the command is not one of the VM fd", "tdx_vm_ioctl", "the VM fd takes CAPABILITIES 0, INIT_VM 1, FINALIZE_VM 4", "id#");

    public static readonly Rule UnknownVcpuCommand = new(
        "tdx.op.unknown-vcpu", "the command is not one of a vCPU fd", "tdx_vcpu_ioctl", "a vCPU fd takes INIT_VCPU 2, INIT_MEM_REGION 3, GET_CPUID 5", "id#");

    public static readonly Rule VcpuCommandState = new(
        "tdx.op.vcpu-state", "the TD is not initialised, or is final (0 uninitialised, 1 initialised, 2 runnable)", "tdx_vcpu_ioctl",
        "issue the command between KVM_TDX_INIT_VM and KVM_TDX_FINALIZE_VM", "state#");

    public static readonly Rule VcpuBeingCreated = new(
        "tdx.op.vcpu-creation", "a vCPU is being created", "tdx_acquire_vm_state_locks", "finish creating vCPUs first", "created#", "online#");

    public static readonly Rule CommandFlags = new(
        "tdx.op.flags", "the command does not know the flags", "tdx_get_capabilities, tdx_td_init, tdx_vcpu_init, tdx_vcpu_init_mem_region",
        "pass flags 0; INIT_MEM_REGION knows KVM_TDX_MEASURE_MEMORY_REGION (1)", "id#", "flags");

    public static readonly Rule TooFewEntries = new(
        "tdx.capabilities.nent", "there is no room for all CPUID configuration entries; the kernel does not say how many there are", "tdx_get_capabilities",
        "give room for as many entries as the module has", "nent#", "needed#");

    private const uint Leaf7Hle = 1u << 4;
    private const uint Leaf7Rtm = 1u << 11;
    private const uint Leaf7Waitpkg = 1u << 5;
    private const int GuestPhysicalBitsShift = 16;
    private const uint GuestPhysicalBitsMask = 0xffu << GuestPhysicalBitsShift;
    private const ulong EntrySize = 40;

    // GetTdVmCallInfo leaf 1: user space serves SetupEventNotifyInterrupt.
    private const ulong UserTdvmcallInfoR11 = 1UL << 1;

    private readonly SimHost _host = vm.Host;

    // How far the TD is built is looked at under locks that do not keep its changes out, and so is how much is premapped: two keys of one state (Baton.Touch).
    private const ulong StateKey = 0;
    private const ulong PremappedKey = 1;

    // Entries of the mirror are the keys from here on, by gfn.
    private const ulong FirstGfnKey = 2;

    private TdState _state;

    /// <summary>How far the TD is built.</summary>
    public TdState State
    {
        get
        {
            _host.Machine.Reading(this, StateKey, StateKey + 1);
            return _state;
        }

        private set
        {
            _host.Machine.Writing(this, StateKey, StateKey + 1);
            _state = value;
        }
    }

    /// <summary>The TDR; 0 without one.</summary>
    public Pfn Tdr { get; private set; }

    /// <summary>kvm->max_vcpus (tdx_vm_init): no more than there are processors.</summary>
    public override int MaxVcpus => Intel.MaxVcpus;

    private KvmIntel Intel => _host.KvmIntel;

    private TdxModule Module => _host.Machine.Tdx;

    private bool HasHkid => Tdr.Value != 0;

    /// <summary>KVM_MEMORY_ENCRYPT_OP on the VM fd (tdx_vm_ioctl).</summary>
    public override Errno MemEncIoctl(KTask current, UserArg arg)
    {
        Errno errno = GetCommand(current, arg, out kvm_tdx_cmd cmd);
        if (errno != Errno.OK)
        {
            return errno;
        }
        if (_host.Profile.TdxGuardsVmState)
        {
            // What a host offers is nobody's state: no lock, and the command is not written back.
            return (TdxCmdId)cmd.id == TdxCmdId.KVM_TDX_CAPABILITIES ? GetCapabilities(current, cmd) : GuardedVmCommand(current, arg, cmd);
        }
        using var vmLock = Vm.Lock.Enter(current);
        return VmCommand(current, arg, cmd);
    }

    /// <summary>KVM_MEMORY_ENCRYPT_OP on a vCPU fd, before its mutex is taken (tdx_vcpu_unlocked_ioctl): the commands that take every lock of the VM.</summary>
    public override bool TryVcpuMemEncUnlocked(KTask current, Vcpu vcpu, UserArg arg, out Errno errno)
    {
        errno = Errno.OK;
        if (!_host.Profile.TdxGuardsVmState)
        {
            return false;
        }
        errno = GetCommand(current, arg, out kvm_tdx_cmd cmd);
        if (errno != Errno.OK)
        {
            return true;
        }
        if ((TdxCmdId)cmd.id is not (TdxCmdId.KVM_TDX_INIT_VCPU or TdxCmdId.KVM_TDX_INIT_MEM_REGION))
        {
            return false;
        }
        errno = UnderVmStateLocks(current, (task, id) =>
        {
            Errno state = CheckVcpuCommandState(task);
            return state != Errno.OK ? state
                : id == TdxCmdId.KVM_TDX_INIT_VCPU ? InitVcpu(task, vcpu, cmd)
                : InitMemRegion(task, vcpu, cmd);
        }, (TdxCmdId)cmd.id);
        return true;
    }

    /// <summary>KVM_MEMORY_ENCRYPT_OP on a vCPU fd (tdx_vcpu_ioctl). The command is never written back.</summary>
    public override Errno VcpuMemEncIoctl(KTask current, Vcpu vcpu, UserArg arg)
    {
        Errno errno = CheckVcpuCommandState(current);
        if (errno == Errno.OK)
        {
            errno = GetCommand(current, arg, out kvm_tdx_cmd cmd);
            return errno != Errno.OK ? errno : VcpuCommand(current, vcpu, cmd);
        }
        return errno;
    }

    // tdx_get_cmd
    private static Errno GetCommand(KTask current, UserArg arg, out kvm_tdx_cmd cmd)
    {
        Errno errno = arg.CopyIn(current, out cmd);
        return errno != Errno.OK ? errno
            : cmd.hw_error != 0 ? current.Fail(Errno.EINVAL, HwErrorNotZero, cmd.id, cmd.hw_error)
            : Errno.OK;
    }

    private Errno CheckVcpuCommandState(KTask current) =>
        !HasHkid || State == TdState.Runnable ? current.Fail(Errno.EINVAL, VcpuCommandState, (ulong)State) : Errno.OK;

    private Errno VcpuCommand(KTask current, Vcpu vcpu, in kvm_tdx_cmd cmd)
    {
        switch ((TdxCmdId)cmd.id)
        {
            case TdxCmdId.KVM_TDX_INIT_VCPU when !_host.Profile.TdxGuardsVmState:
                return InitVcpu(current, vcpu, cmd);
            case TdxCmdId.KVM_TDX_INIT_MEM_REGION when !_host.Profile.TdxGuardsVmState:
                using (Vm.SlotsLock.Enter(current))
                {
                    return InitMemRegion(current, vcpu, cmd);
                }
            case TdxCmdId.KVM_TDX_GET_CPUID:
                return GetCpuid(current, vcpu, cmd);
            default:
                return current.Fail(Errno.EINVAL, UnknownVcpuCommand, cmd.id);
        }
    }

    // The command's outcome goes back to user space whatever it is; of an unknown command nothing does.
    private Errno VmCommand(KTask current, UserArg arg, kvm_tdx_cmd cmd)
    {
        Errno errno;
        switch ((TdxCmdId)cmd.id)
        {
            case TdxCmdId.KVM_TDX_CAPABILITIES:
                errno = GetCapabilities(current, cmd);
                break;
            case TdxCmdId.KVM_TDX_INIT_VM:
                errno = InitVm(current, ref cmd);
                break;
            case TdxCmdId.KVM_TDX_FINALIZE_VM when !_host.Profile.TdxGuardsVmState:
                using (Vm.SlotsLock.Enter(current))
                {
                    errno = FinalizeVm(current, ref cmd);
                }
                break;
            case TdxCmdId.KVM_TDX_FINALIZE_VM:
                errno = FinalizeVm(current, ref cmd);
                break;
            default:
                return current.Fail(Errno.EINVAL, UnknownVmCommand, cmd.id);
        }
        Errno copied = arg.CopyOut(current, cmd);
        return copied != Errno.OK ? copied : errno;
    }

    private Errno GuardedVmCommand(KTask current, UserArg arg, kvm_tdx_cmd cmd)
    {
        using var vmLock = Vm.Lock.Enter(current);
        if (Vm.CreatedVcpus != Vm.Vcpus.Count)
        {
            return current.Fail(Errno.EBUSY, VcpuBeingCreated, (ulong)Vm.CreatedVcpus, (ulong)Vm.Vcpus.Count);
        }
        return LockVcpus(current, arg, cmd, 0);
    }

    // kvm_lock_all_vcpus: one scope for each vCPU, hence the recursion; a TD has at most as many as there are processors.
    private Errno LockVcpus(KTask current, UserArg arg, kvm_tdx_cmd cmd, int index)
    {
        if (index == Vm.Vcpus.Count)
        {
            using var slots = Vm.SlotsLock.Enter(current);
            return VmCommand(current, arg, cmd);
        }
        using var mutex = Vm.Vcpus[index].Mutex.Enter(current);
        return LockVcpus(current, arg, cmd, index + 1);
    }

    // tdx_acquire_vm_state_locks, for what needs no pointer of the caller's.
    private Errno UnderVmStateLocks(KTask current, Func<KTask, TdxCmdId, Errno> body, TdxCmdId id)
    {
        using var vmLock = Vm.Lock.Enter(current);
        return Vm.CreatedVcpus != Vm.Vcpus.Count
            ? current.Fail(Errno.EBUSY, VcpuBeingCreated, (ulong)Vm.CreatedVcpus, (ulong)Vm.Vcpus.Count)
            : LockVcpus(current, body, id, 0);
    }

    private Errno LockVcpus(KTask current, Func<KTask, TdxCmdId, Errno> body, TdxCmdId id, int index)
    {
        if (index == Vm.Vcpus.Count)
        {
            using var slots = Vm.SlotsLock.Enter(current);
            return body(current, id);
        }
        using var mutex = Vm.Vcpus[index].Mutex.Enter(current);
        return LockVcpus(current, body, id, index + 1);
    }

    // tdx_get_capabilities. The EIO of init_kvm_tdx_caps, for a module that has nothing in common with KVM, cannot come: such a host does not offer TDs (KvmIntel.TdxEnabled).
    private Errno GetCapabilities(KTask current, in kvm_tdx_cmd cmd)
    {
        if (cmd.flags != 0)
        {
            return current.Fail(Errno.EINVAL, CommandFlags, cmd.id, cmd.flags);
        }
        UserArg data = UserArg.FromValue(cmd.data);
        ulong cpuidAt = OffsetOfEntries<kvm_tdx_capabilities>() - 8;
        Errno errno = data.CopyIn(current, out uint nent, cpuidAt);
        if (errno != Errno.OK)
        {
            return errno;
        }
        IReadOnlyList<TdxCpuidSlot> slots = Intel.Module.CpuidSlots;
        if (nent < slots.Count)
        {
            return current.Fail(Errno.E2BIG, TooFewEntries, nent, (ulong)slots.Count);
        }
        var capabilities = new kvm_tdx_capabilities
        {
            supported_attrs = Intel.SupportedAttributes,
            supported_xfam = Intel.SupportedXfam,
            user_tdvmcallinfo_1_r11 = UserTdvmcallInfoR11,
            cpuid = new kvm_cpuid2 { nent = (uint)slots.Count },
        };
        errno = data.CopyOut(current, capabilities);
        for (int i = 0; errno == Errno.OK && i < slots.Count; i++)
        {
            errno = data.CopyOut(current, Offered(slots[i]), cpuidAt + 8 + ((ulong)i * EntrySize));
        }
        return errno;
    }

    // td_init_cpuid_entry2. flags stay 0 for sub-leaves too. The width of guest addresses is KVM's to use, though the module does not configure it; transactional memory and
    // user-level waiting are not offered.
    private static kvm_cpuid_entry2 Offered(in TdxCpuidSlot slot)
    {
        bool isLeaf7 = slot is { Function: 7, Index: 0 };
        return new kvm_cpuid_entry2
        {
            function = slot.Function,
            index = slot.Index,
            eax = slot.Function == 0x8000_0008 ? slot.Eax | GuestPhysicalBitsMask : slot.Eax,
            ebx = isLeaf7 ? slot.Ebx & ~(Leaf7Hle | Leaf7Rtm) : slot.Ebx,
            ecx = isLeaf7 ? slot.Ecx & ~Leaf7Waitpkg : slot.Ecx,
            edx = slot.Edx,
        };
    }

    private static unsafe ulong OffsetOfEntries<T>()
        where T : unmanaged => (ulong)sizeof(T);

    // seamcall_ret: without entropy the leaf is called again a few times.
    private static TdxStatus Seamcall(KTask current, Func<TdxStatus> leaf)
    {
        for (int retry = TdxModule.EntropyRetries; ; retry--)
        {
            int causes = current.Causes.Count;
            TdxStatus status = leaf();
            if (status.Class() != TdxStatus.RND_NO_ENTROPY || retry == 0)
            {
                return status;
            }
            current.ForgetCausesAfter(causes);
        }
    }

    // tdx_operand_busy
    private static bool IsBusy(TdxStatus status) => status.Class() == TdxStatus.OPERAND_BUSY;
}
