using SimKvm.Abi;
using SimKvm.Kvm.Historical;
using SimKvm.Profiles;
using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimKvm.Kvm;

// The page-fault path of the designs before guest_memfd: the flow of UPM v4/v5, which asks the private file what a page is, and the one of v7 to v10, which asks KVM.
internal sealed partial class Mmu
{
    public static readonly Rule FileDisagrees = new(
        "kvm.fault.private-file-presence", "the guest's access and the private file disagree: a page is private while the file has it", "kvm_faultin_pfn_private, UPM v4",
        "convert the page as KVM_EXIT_MEMORY_ERROR says (fallocate to private, punch a hole to shared) and run the vCPU again", "gpa", "access_private#", "in_file#");

    public static readonly Rule StateDisagrees = new(
        "kvm.fault.private-state", "the guest's access is not of the kind that the page is", "kvm_faultin_pfn_private, UPM v7; kvm_faultin_pfn, v10",
        "convert the page as KVM_EXIT_MEMORY_FAULT says and run the vCPU again; a page that is invalid (2) needs fallocate as well", "gpa", "access_private#", "page_state#");

    public static readonly Rule NoPrivateFile = new(
        "kvm.fault.no-private-file", "a private access to a slot without private file", "kvm_faultin_pfn_private, UPM v10", "create the slot with KVM_MEM_PRIVATE", "gpa", "slot#");

    public static readonly Rule PrivateFileFailed = new(
        "kvm.fault.private-file-page", "the private file gave no page, which these kernels answer by trying again", "kvm_faultin_pfn_private, UPM v7 to v10",
        "see the cause before this one", "gpa", "slot#");

    /// <summary>kvm_zap_gfn_range: an invalidation of its own, begin to end under one hold of mmu_lock.</summary>
    public void ZapGfnRange(KTask current, GfnRange range)
    {
        using var mmu = Lock.Enter(current);
        InvalidateBegin(current);
        InvalidateRangeAdd(current, range);
        Unmap(current, range);
        InvalidateEnd(current);
    }

    // kvm_faultin_pfn of UPM v4/v5. The file is the truth, and nothing is allocated here: user space does that, which is what converts. A slot without private file is not
    // asked what the access is.
    private Errno FaultinPfnFileFirst(KTask current, Vcpu vcpu, ref PageFault fault, out RetPf result)
    {
        Errno errno = FindSlot(current, ref fault, out result);
        if (errno != Errno.OK || result != RetPf.Continue)
        {
            return errno;
        }
        if (fault.Slot!.PrivateFile is not { } file)
        {
            return FaultinHostPage(current, ref fault, out result);
        }
        ulong index = fault.Gfn.Value - fault.Slot.BaseGfn + fault.Slot.PrivatePgoff;
        bool present = file.IsPresent(index);
        current.Step(AttributeStep, fault.Gfn.Value);
        if (fault.IsPrivate != present)
        {
            return MemoryFault(
                current, vcpu, fault,
                current.Fail(_vm.Host.Profile.MemoryFaultErrno, FileDisagrees, fault.Gfn.ToGpa().Value, fault.IsPrivate ? 1UL : 0, present ? 1UL : 0));
        }
        return present ? FaultinPrivateFile(current, file, index, ref fault, out result) : FaultinHostPage(current, ref fault, out result);
    }

    // kvm_faultin_pfn of UPM v7 to v10. v7 and v8 ask only slots that have a private file, v10 asks all. What seed 004 proposed differs in what a page is, and in where a
    // shared access goes.
    private Errno FaultinPfnStateFirst(KTask current, Vcpu vcpu, ref PageFault fault, out RetPf result)
    {
        Errno errno = FindSlot(current, ref fault, out result);
        if (errno != Errno.OK || result != RetPf.Continue)
        {
            return errno;
        }
        Memslot slot = fault.Slot!;
        PrivateStateDesign design = _vm.Host.Profile.PrivateState;
        bool asked = _vm.HasPrivateMem && (slot.PrivateFile is not null || _vm.Host.Profile.PrivateMemory == PrivateMemoryDesign.RestrictedMem);
        if (asked && design != PrivateStateDesign.AccessBit)
        {
            current.Step(AttributeStep, fault.Gfn.Value);
            PageState state = PrivatePages.StateOf(_vm, slot, fault.Gfn);
            if (state != (fault.IsPrivate ? PageState.Private : PageState.Shared))
            {
                return MemoryFault(
                    current, vcpu, fault, current.Fail(Errno.EFAULT, StateDisagrees, fault.Gfn.ToGpa().Value, fault.IsPrivate ? 1UL : 0, (ulong)state));
            }
        }
        bool fromFile = asked && (fault.IsPrivate || (design == PrivateStateDesign.GuestShares && slot.PrivateFile is not null));
        if (!fromFile)
        {
            return FaultinHostPage(current, ref fault, out result);
        }
        if (slot.PrivateFile is not { } file)
        {
            return MemoryFault(current, vcpu, fault, current.Fail(Errno.EFAULT, NoPrivateFile, fault.Gfn.ToGpa().Value, (ulong)slot.Id));
        }
        return FaultinPrivateFile(current, file, fault.Gfn.Value - slot.BaseGfn + slot.PrivatePgoff, ref fault, out result);
    }

    // What both flows begin with. A gpa without slot is emulated, whatever the access: these kernels do not ask.
    private Errno FindSlot(KTask current, ref PageFault fault, out RetPf result)
    {
        result = RetPf.Continue;
        fault.Seq = Seq;
        current.Step(SeqStep, fault.Gfn.Value, fault.Seq);
        fault.Slot = _vm.Memslots.Find(fault.Gfn);
        if (fault.Slot is null)
        {
            result = RetPf.Emulate;
            return Errno.OK;
        }
        return (fault.Slot.Flags & KvmMem.MEMSLOT_INVALID) != 0 ? Retry(current, fault, out result) : Errno.OK;
    }

    private Errno FaultinPrivateFile(KTask current, BackingStoreFile file, ulong index, ref PageFault fault, out RetPf result)
    {
        result = RetPf.Continue;
        Errno errno = file.GetPage(current, index, out fault.Pfn);
        if (errno != Errno.OK)
        {
            current.Fail(errno, PrivateFileFailed, fault.Gfn.ToGpa().Value, (ulong)fault.Slot!.Id);
            return Retry(current, fault, out result);
        }
        fault.MapWritable = (fault.Slot!.Flags & KvmMem.READONLY) == 0;
        fault.MaxLevel = PageLevel.Page4K;
        return Errno.OK;
    }
}
