using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Profiles;
using SimKvm.Userspace;
using SimMachine;
using SimMachine.Addressing;
using SimMachine.Amd;
using SimMachine.Intel;
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

    /// <summary>vcpu_mem_enc_ioctl: KVM_MEMORY_ENCRYPT_OP on a vCPU fd. Absent: ENOTTY.</summary>
    public virtual Errno VcpuMemEncIoctl(KTask current, Vcpu vcpu, UserArg arg) => current.Fail(Errno.ENOTTY, NoMemEncIoctl);

    /// <summary>vcpu_mem_enc_unlocked_ioctl: the same before vcpu->mutex is taken; false where the command is one for later. Absent: all are.</summary>
    public virtual bool TryVcpuMemEncUnlocked(KTask current, Vcpu vcpu, UserArg arg, out Errno errno)
    {
        errno = Errno.OK;
        return false;
    }

    /// <summary>kvm->max_vcpus.</summary>
    public virtual int MaxVcpus => Vm.MaxVcpus;

    /// <summary>KVM_MEMORY_ENCRYPT_REG_REGION. Absent: ENOTTY.</summary>
    public virtual Errno MemEncRegisterRegion(KTask current, UserArg arg) => current.Fail(Errno.ENOTTY, NoMemEncIoctl);

    /// <summary>KVM_MEMORY_ENCRYPT_UNREG_REGION. Absent: ENOTTY.</summary>
    public virtual Errno MemEncUnregisterRegion(KTask current, UserArg arg) => current.Fail(Errno.ENOTTY, NoMemEncIoctl);

    /// <summary>vm_copy_enc_context_from: KVM_CAP_VM_COPY_ENC_CONTEXT_FROM. Absent: EINVAL, as for a capability that is none.</summary>
    public virtual Errno CopyEncContextFrom(KTask current, int sourceFd) => current.Fail(Errno.EINVAL, Vm.CapUnknown, KvmCap.VM_COPY_ENC_CONTEXT_FROM);

    /// <summary>vm_move_enc_context_from: KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM. Absent: EINVAL.</summary>
    public virtual Errno MoveEncContextFrom(KTask current, int sourceFd) => current.Fail(Errno.EINVAL, Vm.CapUnknown, KvmCap.VM_MOVE_ENC_CONTEXT_FROM);

    /// <summary>Private memory has stage-2 tables of its own. Absent: only where a gfn has two pages at once (UPM22-tdx).</summary>
    public virtual bool HasPrivateTable => Vm.Host.Profile.PrivateState == PrivateStateDesign.AccessBit;

    /// <summary>gfn bits that tell shared from private (kvm_gfn_direct_bits); 0 where none does.</summary>
    public virtual ulong DirectBits => 0;

    /// <summary>pre_fault_allowed: the VM's initial memory is final.</summary>
    public virtual bool PreFaultAllowed => true;

    /// <summary>
    /// Guests of this VM mark their accesses as private or shared. Absent: only in UPM, whose protected VM is any confidential platform, and whose exits are about
    /// accesses that disagree with the page.
    /// </summary>
    public virtual bool AccessesAreMarked => MappingsServeOneKind && !Vm.Host.Profile.MapGpaRangeMarks;

    /// <summary>A mapping serves only accesses of the kind that made it: no hardware of the design tells the two apart behind the translation.</summary>
    public bool MappingsServeOneKind => Vm.HasPrivateMem && Vm.Host.Profile.PrivateMemory is PrivateMemoryDesign.InaccessibleMemfd or PrivateMemoryDesign.RestrictedMem;

    /// <summary>
    /// Whether a guest access is private. Absent: what the attribute says where the type has private memory (SW_PROTECTED), else never.
    /// </summary>
    public virtual bool IsPrivateAccess(Gfn gfn, GuestAccess access) => Vm.HasPrivateMem
        && (AccessesAreMarked && access != GuestAccess.Unmarked ? access == GuestAccess.Private : Vm.Attributes.IsPrivate(gfn));

    /// <summary>kvm_arch_gmem_prepare: makes the pages of a folio private for the guest. Called with the folio locked; may sleep. Absent: nothing.</summary>
    public virtual Errno GmemPrepare(KTask current, Gfn gfn, Pfn pfn, int order) => Errno.OK;

    /// <summary>
    /// kvm_arch_gmem_set_mem_attributes, where the profile has the hook: after the attributes are stored, for each slot with a guest_memfd, before the invalidation ends. May
    /// sleep. Absent: nothing.
    /// </summary>
    public virtual Errno GmemSetMemAttributes(KTask current, Memslot slot, GfnRange range, ulong attributes) => Errno.OK;

    /// <summary>gmem_max_mapping_level. Absent: no limit.</summary>
    public virtual PageLevel GmemMaxMappingLevel(Pfn pfn, bool isPrivate) => PageLevel.Page1G;

    /// <summary>Guest faults are the backend's own business (arm64), not the flow that VMs of x86 share.</summary>
    public virtual bool HasOwnFaultPath => false;

    /// <summary>A guest fault, where the backend has a path of its own. SRCU is held.</summary>
    public virtual Errno MemAbort(KTask current, Vcpu vcpu, ref PageFault fault, out RetPf result)
    {
        result = RetPf.Emulate;
        return Errno.OK;
    }

    /// <summary>A hypercall of the guest that the vendor's hypervisor answers. Absent: none does, it is KVM's.</summary>
    /// <param name="answer">What the guest gets, or null.</param>
    public virtual Errno GuestCall(KTask current, Vcpu vcpu, GuestHypercall call, out ulong? answer)
    {
        answer = null;
        return Errno.OK;
    }

    /// <summary>kvm_arch_prepare_memory_region: what the vendor refuses of a change of slots. Absent: nothing.</summary>
    /// <param name="slot">The slot that is deleted, moved or changed; null for a new one.</param>
    /// <param name="flags">KVM_MEM_* of the request; 0 for a deletion.</param>
    public virtual Errno PrepareMemoryRegion(KTask current, Memslot? slot, uint flags) => Errno.OK;

    /// <summary>vcpu_pre_run. Absent: nothing to check.</summary>
    public virtual Errno VcpuPreRun(KTask current, Vcpu vcpu) => Errno.OK;

    /// <summary>Why the processor refuses to enter the guest (hardware_entry_failure_reason), or null. Absent: it does not refuse.</summary>
    public virtual ulong? EntryFailure(Vcpu vcpu) => null;

    /// <summary>What the processor checks of a guest access behind nested paging. Absent: nothing.</summary>
    public virtual GuestAccessOutcome CheckGuestAccess(Vcpu vcpu, ulong gpa, in Stage2Entry entry, GuestAccess access, bool write) => GuestAccessOutcome.Allowed;

    /// <summary>PVALIDATE or RMPADJUST of a guest. Absent: the processor does not know them here.</summary>
    /// <returns>Allowed if the instruction completed; else what happens instead.</returns>
    public virtual GuestAccessOutcome RmpInstruction(KTask current, Vcpu vcpu, GuestStep step, in Stage2Entry entry, out ulong rax, out bool carry)
    {
        rax = (ulong)GuestRmpResult.FAIL_INPUT;
        carry = false;
        return GuestAccessOutcome.Allowed;
    }

    /// <summary>VMGEXIT. Absent: the processor does not know it here (#UD).</summary>
    /// <param name="ghcbMsr">What the guest wrote to the GHCB MSR.</param>
    public virtual ExitResult Vmgexit(KTask current, Vcpu vcpu, ulong ghcbMsr)
    {
        vcpu.Guest.Retire(exception: new GuestException("#UD", 0, 0));
        return ExitResult.Resume;
    }

    /// <summary>The key that a guest's access encrypts with; 0 is none.</summary>
    public virtual uint GuestKey(GuestAccess access) => Machine.HostKey;

    /// <summary>A nested page fault of hardware's own making for which the fault path had nothing to do (sev_handle_rmp_fault).</summary>
    public virtual void HandleRmpFault(KTask current, Gfn gfn, in Stage2Entry entry)
    {
    }

    /// <summary>A guest's access that faults for ever although it is mapped; a finding where the vendor's hardware knows why. Absent: it does not.</summary>
    public virtual void StuckAccess(KTask current, Gfn gfn, in Stage2Entry entry)
    {
    }

    /// <summary>The page and the kind of access that an address of the guest stands for. Absent: the address itself, as it was marked.</summary>
    public virtual (ulong Gpa, GuestAccess Access) ResolveAddress(ulong gpa, GuestAccess access) => (gpa, access);

    /// <summary>KVM emulates instructions of the guest that touch memory which is not there. Absent: it does.</summary>
    public virtual bool EmulatesInstructions => true;

    /// <summary>The guest gets #VE for memory that is not there, and can ask what happened. Absent: there is no such exception.</summary>
    /// <param name="gpa">Without what marks it as shared.</param>
    public virtual void RaiseVirtualizationException(Vcpu vcpu, ulong gpa)
    {
    }

    /// <summary>Into the guest. False where the processor refuses: the exit record says why. Absent: nothing to do.</summary>
    public virtual bool EnterGuest(KTask current, Vcpu vcpu) => true;

    /// <summary>Out of the guest; nothing if it is out. Absent: nothing to do.</summary>
    public virtual void ExitGuest(Vcpu vcpu)
    {
    }

    /// <summary>What the vendor makes of a fault in nested translation before the common path. Absent: nothing.</summary>
    public virtual Errno EptViolation(KTask current, Vcpu vcpu, ref PageFault fault) => Errno.OK;

    /// <summary>TDCALL. Absent: it is no instruction of this processor, so nobody comes here.</summary>
    public virtual TdGuestOutcome Tdcall(KTask current, Vcpu vcpu, ref TdcallRegisters registers, out ulong fault)
    {
        fault = 0;
        return TdGuestOutcome.Completed;
    }

    /// <summary>mmu_topup_memory_caches, for tables of private memory that KVM only mirrors: the vCPU gets the pages that a fault may need. ENOMEM. Absent: there are none.</summary>
    public virtual Errno TopupExternalSptCache(KTask current, Vcpu vcpu, Gfn gfn) => Errno.OK;

    /// <summary>set_external_spte: the tables of private memory that KVM only mirrors get a page, under mmu_lock. False: the fault is tried again. Absent: there are none.</summary>
    public virtual bool SetExternalSpte(KTask current, Vcpu vcpu, in PageFault fault) => true;

    /// <summary>is_frozen_spte: another fault is changing an entry on the way to the gfn, so one that meets it is tried again. Absent: no entry takes long to change.</summary>
    public virtual bool IsFrozen(Gfn gfn) => false;

    /// <summary>remove_external_spte of private leaves that the mirror has lost, under mmu_lock. Absent: there are none.</summary>
    public virtual void RemoveExternalSptes(KTask current, IReadOnlyList<(GfnRange Gfns, Stage2Entry First)> leaves)
    {
    }

    /// <summary>The vendor's part is whole; for audits.</summary>
    public virtual void CheckInvariants()
    {
    }

    /// <summary>kvm_arch_pre_destroy_vm: before vCPUs and slots go. Absent: nothing.</summary>
    public virtual void PreDestroy(KTask current)
    {
    }

    /// <summary>Allocates what a vCPU of this vendor needs. Absent: nothing.</summary>
    public virtual Errno VcpuCreate(KTask current, Vcpu vcpu) => Errno.OK;

    public virtual void VcpuFree(KTask current, Vcpu vcpu)
    {
    }

    public virtual void VmDestroy(KTask current)
    {
    }

    /// <summary>Guest addresses of pages that were launched more than once; for audits.</summary>
    public virtual IEnumerable<ulong> MeasuredTwice => [];

    /// <summary>What attestation would say of the launch so far; empty where there is none. For audits.</summary>
    public virtual ReadOnlyMemory<byte> Measurement => default;

    /// <summary>The pages of the Secure EPT; for people. Absent: there is none.</summary>
    public virtual IEnumerable<SimMachine.Intel.SeptPage> SecureEptPages => [];

    /// <summary>Frames that the vendor's part of the VM holds; for audits.</summary>
    public virtual IEnumerable<Pfn> Frames => [];

    /// <summary>
    /// kvm_arch_pre_set_memory_attributes, for each slot that overlaps, under mmu_lock: huge pages that stick out of the range may not be mapped meanwhile, and stage-2
    /// entries of the side that goes are removed.
    /// </summary>
    /// <returns>Something was unmapped; the caller flushes.</returns>
    public virtual bool PreSetMemoryAttributes(KTask current, Memslot slot, GfnRange range, ulong attributes)
    {
        if (!Vm.HasPrivateMem)
        {
            return false;
        }
        if (Vm.Host.Profile.AttributesInvalidateStraddlers)
        {
            InvalidateStraddlers(current, slot, range, PageLevel.Page2M);
            InvalidateStraddlers(current, slot, range, PageLevel.Page1G);
        }
        Stage2Sides goes = (attributes & kvm_memory_attributes.PRIVATE) != 0 ? Stage2Sides.Shared : Stage2Sides.Private;
        return Vm.Mmu.UnmapUnflushed(current, range, Vm.Host.Profile.AttributesUnmapFilter ? goes : Stage2Sides.Both);
    }

    private void InvalidateStraddlers(KTask current, Memslot slot, GfnRange range, PageLevel level)
    {
        GfnRange head = level.RangeAround(range.Start), tail = level.RangeAround(new Gfn(range.End.Value - 1));
        foreach (GfnRange page in head == tail ? [head] : new[] { head, tail })
        {
            if (!range.Contains(page) && slot.Range.Contains(page) && !Vm.Mmu.DisallowLpage(slot, page.Start, level).Mixed)
            {
                Vm.Mmu.InvalidateRangeAdd(current, page);
            }
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
