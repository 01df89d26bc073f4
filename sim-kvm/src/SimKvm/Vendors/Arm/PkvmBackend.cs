using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Userspace;
using SimMachine.Addressing;
using SimMachine.Arm;
using SimMachine.Stepping;

namespace SimKvm.Vendors.Arm;

/// <summary>
/// A VM of KVM on arm64 with the hypervisor of protected KVM below it. A protected VM (KVM_VM_TYPE_ARM_PROTECTED) needs no guest_memfd: its memory is the slot's user memory,
/// pinned and given to the guest when the guest first touches it (pkvm_mem_abort). From then on the host's loads and stores of that page fault, until the guest shares it by
/// hypercall or is gone.
/// </summary>
/// <remarks>
/// The guest's accesses carry no mark and always find its own page. Slots cannot change once the VM ran. Modelled is the life of pages; not modelled are vCPU features and
/// registers of Arm, KVM_ARM_VCPU_INIT (a vCPU runs as it is created), PSCI and the pvmfw. A guest that halts ends KVM_RUN with KVM_EXIT_HLT, which an arm64 host has not.
/// </remarks>
internal sealed class PkvmBackend(Vm vm) : VmBackend(vm)
{
    // SMC calling convention, vendor-specific hypervisor services (Documentation/virt/kvm/arm/hypercalls.rst).
    public const ulong KVM_FEATURES = 0x8600_0000;
    public const ulong HYP_MEMINFO = 0xC600_0002;
    public const ulong MEM_SHARE = 0xC600_0003;
    public const ulong MEM_UNSHARE = 0xC600_0004;

    private const ulong Success = 0;
    private const ulong NotSupported = unchecked((ulong)-1L);
    private const ulong InvalidParameter = unchecked((ulong)-3L);

    // Function numbers 0 (features) and 2 to 4.
    private const ulong FeatureBits = 0b1_1101;

    public static readonly Rule SlotFlags = new(
        "pkvm.slot.flags", "a protected VM has neither read-only nor dirty-logged slots", "kvm_arch_prepare_memory_region, arm64", "leave the flags out", "flags");

    public static readonly Rule SlotsAreFixed = new(
        "pkvm.slot.fixed", "slots of a protected VM cannot be deleted or moved once it ran: their pages are the guest's", "kvm_arch_prepare_memory_region, arm64",
        "destroy the VM", "slot#");

    public static readonly Rule NotDonated = new(
        "pkvm.fault.donate", "the hypervisor did not take the page for the guest", "pkvm_mem_abort", "see the cause before this one", "gpa", "pfn");

    public static readonly Rule HostPageFailed = new(
        "pkvm.fault.host-page", "the user memory behind the page cannot be pinned for writing", "pkvm_mem_abort: pin_user_pages", "map memory at the slot's userspace_addr, writable",
        "gpa", "slot#", "uaddr");

    private readonly List<Pfn> _pinned = [];

    // The number that the hypervisor knows the guest by; 0 until the first KVM_RUN.
    private uint _handle;

    private bool IsProtected => Vm.Type == VmType.KVM_VM_TYPE_ARM_PROTECTED;

    private El2 El2 => Vm.Host.Machine.El2;

    public override bool HasOwnFaultPath => IsProtected;

    public override Errno VcpuPreRun(KTask current, Vcpu vcpu)
    {
        // __pkvm_init_vm, at the first run of the VM.
        _handle = _handle == 0 && IsProtected ? ++Vm.Host.LastPkvmHandle : _handle;
        return Errno.OK;
    }

    public override Errno PrepareMemoryRegion(KTask current, Memslot? slot, uint flags)
    {
        if (!IsProtected)
        {
            return Errno.OK;
        }
        if (slot is not null && _handle != 0)
        {
            return current.Fail(Errno.EPERM, SlotsAreFixed, (ulong)slot.Id);
        }
        return flags != 0 ? current.Fail(Errno.EPERM, SlotFlags, flags) : Errno.OK;
    }

    /// <summary>pkvm_mem_abort: pins the page of user memory, gives it away, maps it. A page that the guest has is mapped again without either.</summary>
    public override Errno MemAbort(KTask current, Vcpu vcpu, ref PageFault fault, out RetPf result)
    {
        result = RetPf.Emulate;
        fault.Slot = Vm.Memslots.Find(fault.Gfn);
        if (fault.Slot is null)
        {
            return Errno.OK;
        }
        if (!El2.TryGetGuestPage(_handle, fault.Gfn, out fault.Pfn))
        {
            Errno errno = Donate(current, fault.Slot, fault.Gfn, out fault.Pfn);
            if (errno != Errno.OK)
            {
                return errno;
            }
        }
        fault.MapWritable = true;
        fault.GoalLevel = PageLevel.Page4K;
        result = Vm.Mmu.MapPage(current, vcpu, fault);
        return Errno.OK;
    }

    /// <summary>kvm_handle_pvm_hvc64: what the hypervisor does for its guests; everything else is not there.</summary>
    public override Errno GuestCall(KTask current, Vcpu vcpu, GuestHypercall call, out ulong? answer)
    {
        answer = call.Nr switch
        {
            KVM_FEATURES => IsProtected ? FeatureBits : 1,
            HYP_MEMINFO when IsProtected => (call.A0 | call.A1 | call.A2) == 0 ? (ulong)PageSize.Bytes : InvalidParameter,
            MEM_SHARE or MEM_UNSHARE when IsProtected => null,
            _ => NotSupported,
        };
        return answer is null ? ShareOrUnshare(current, vcpu, call, out answer) : Errno.OK;
    }

    /// <summary>pkvm_destroy_hyp_vm: the guest's pages are cleared and the host's again, and their pins go.</summary>
    public override void VmDestroy(KTask current)
    {
        El2.ReclaimAll(current, _handle);
        foreach (Pfn pfn in _pinned)
        {
            Vm.Host.PagePins.Unpin(current, pfn);
        }
        _pinned.Clear();
    }

    // pkvm_memshare_call, pkvm_memunshare_call. A page that the guest never touched is faulted in first, as if the guest had stored to it, and the call made again.
    private Errno ShareOrUnshare(KTask current, Vcpu vcpu, GuestHypercall call, out ulong? answer)
    {
        answer = InvalidParameter;
        if ((call.A1 | call.A2) != 0 || (call.A0 & PageSize.OffsetMask) != 0)
        {
            return Errno.OK;
        }
        var ipa = new Gfn(call.A0 >> PageSize.Shift);
        int causes = current.Causes.Count;
        El2Result result = call.Nr == MEM_SHARE ? El2.Share(current, _handle, ipa) : El2.Unshare(current, _handle, ipa);
        if (result == El2Result.ENOENT && call.Nr == MEM_SHARE)
        {
            var fault = new PageFault { Gfn = ipa, Write = true };
            Errno errno = Vm.Mmu.PageFault(current, vcpu, ref fault, out RetPf mapped);
            if (errno != Errno.OK)
            {
                return errno;
            }
            result = mapped == RetPf.Emulate ? result : El2.Share(current, _handle, ipa);
        }
        // The guest is told; KVM_RUN goes on, so these are no reasons of its.
        current.ForgetCausesAfter(causes);
        answer = result == El2Result.OK ? Success : InvalidParameter;
        return Errno.OK;
    }

    // The page is pinned before it is given, so that nobody frees it in between. Under mmu_lock it shows whether another vCPU came first; the guest has one page at an address.
    private Errno Donate(KTask current, Memslot slot, Gfn gfn, out Pfn pfn)
    {
        ulong gpa = gfn.ToGpa().Value;
        ulong uaddr = slot.UserspaceAddr + ((gfn.Value - slot.BaseGfn) << PageSize.Shift);
        Errno errno = Vm.Owner.Memory.FaultIn(current, uaddr, write: true, out HostPage page);
        pfn = page.Pfn;
        if (errno != Errno.OK)
        {
            return current.Fail(Errno.EFAULT, HostPageFailed, gpa, (ulong)slot.Id, uaddr);
        }
        Vm.Host.PagePins.Pin(page.Pfn);
        using (Vm.Mmu.Lock.Enter(current))
        {
            if (!El2.TryGetGuestPage(_handle, gfn, out pfn))
            {
                pfn = page.Pfn;
                if (El2.Donate(current, _handle, gfn, pfn) == El2Result.OK)
                {
                    _pinned.Add(pfn);
                    return Errno.OK;
                }
                errno = current.Fail(Errno.EPERM, NotDonated, gpa, pfn.Value);
            }
        }
        Vm.Host.PagePins.Unpin(current, page.Pfn);
        return errno;
    }
}
