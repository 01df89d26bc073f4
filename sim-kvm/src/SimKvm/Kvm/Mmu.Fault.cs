using SimKvm.Abi;
using SimKvm.Profiles;
using SimKvm.Userspace;
using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimKvm.Kvm;

/// <summary>What the fault path came to (enum RET_PF_*). Errors are an errno beside it.</summary>
internal enum RetPf
{
    /// <summary>Not decided yet.</summary>
    Continue,

    /// <summary>Something changed under way: enter the guest again, which faults again if it must.</summary>
    Retry,

    /// <summary>No memory there: the access is emulated, which for memory means MMIO.</summary>
    Emulate,

    /// <summary>The mapping is there and may not be written to.</summary>
    WriteProtected,

    /// <summary>A mapping was installed.</summary>
    Fixed,

    /// <summary>The mapping was there.</summary>
    Spurious,
}

/// <summary>A guest page fault under way (struct kvm_page_fault).</summary>
internal struct PageFault
{
    public Gfn Gfn;
    public bool Write;
    public bool Exec;

    /// <summary>The access was private. How it says so is the VM type's business.</summary>
    public bool IsPrivate;

    /// <summary>A TD accepts the page: it may be pending.</summary>
    public bool IsAccept;

    /// <summary>User space asked, no guest waits.</summary>
    public bool Prefetch;

    /// <summary>mmu_invalidate_seq before attributes and pages were looked at.</summary>
    public ulong Seq;

    public Memslot? Slot;
    public Pfn Pfn;
    public bool MapWritable;
    public bool FromGmem;

    /// <summary>Limit by the folio.</summary>
    public PageLevel MaxLevel;

    /// <summary>Limit by the host's own mapping.</summary>
    public PageLevel HostLevel;

    /// <summary>The level that was mapped.</summary>
    public PageLevel GoalLevel;
}

// The guest page-fault path (kvm_mmu_page_fault, kvm_tdp_mmu_page_fault, kvm_mmu_faultin_pfn), and the same for user space that asks ahead.
internal sealed partial class Mmu
{
    private static readonly StepLabel SeqStep = new("fault seq snapshot");
    private static readonly StepLabel AttributeStep = new("fault attribute test");
    private static readonly StepLabel PfnStep = new("fault page found");
    private static readonly StepLabel InstallStep = new("fault install");
    private static readonly StepLabel RetryStep = new("fault retry");

    public static readonly Rule AccessMismatch = new(
        "kvm.fault.access-mismatch", "the guest's access and the page's attribute disagree on private or shared", "kvm_mmu_faultin_pfn",
        "convert the page as KVM_EXIT_MEMORY_FAULT says (KVM_SET_MEMORY_ATTRIBUTES) and run the vCPU again", "gpa", "access_private#", "attribute_private#");

    public static readonly Rule NoSlotForPrivate = new(
        "kvm.fault.private-no-slot", "a private access to a gpa that no slot has", "kvm_mmu_faultin_pfn", "create a slot with a guest_memfd there", "gpa");

    public static readonly Rule NoGmem = new(
        "kvm.fault.no-gmem", "a private access to a slot without guest_memfd", "kvm_mmu_faultin_pfn_gmem", "create the slot with KVM_MEM_GUEST_MEMFD", "gpa", "slot#");

    public static readonly Rule PageNotGiven = new(
        "kvm.fault.gmem-page", "the guest_memfd gave no page", "kvm_mmu_faultin_pfn_gmem", "see the cause before this one", "gpa", "slot#");

    public static readonly Rule HostPageFailed = new(
        "kvm.fault.host-page", "the user address behind the gpa cannot be accessed; no exit tells user space where", "kvm_handle_error_pfn",
        "map memory at the slot's userspace_addr, writable if the guest writes", "gpa", "slot#", "uaddr");

    public static readonly Rule Alias = new(
        "kvm.fault.alias", "the gfn has bits that only tell shared from private", "kvm_tdp_mmu_page_fault", "leave out the shared bit", "gfn");

    public static readonly Rule SlotIsChanging = new(
        "kvm.fault.slot-invalid", "the slot is being deleted or moved", "kvm_mmu_faultin_pfn", "call again when the change is done", "gfn", "slot#");

    /// <summary>What a guest access finds without a fault, or false.</summary>
    public bool TryTranslate(Gfn gfn, bool isPrivate, bool write, out Stage2Entry entry)
    {
        Stage2Table table = TableOf(isPrivate);
        Touch(table, GfnRange.FromPages(gfn, 1), write: false);
        return table.TryGet(gfn, out entry) && Serves(entry, isPrivate) && (entry.Writable || !write);
    }

    private bool Serves(in Stage2Entry entry, bool isPrivate) => entry.IsPrivate == isPrivate || !_vm.Backend.MappingsServeOneKind;

    /// <summary>
    /// kvm_mmu_page_fault: a guest access that stage 2 does not allow. A private access that would need emulation is EFAULT since 6.11; there it cannot come to that, for
    /// whoever finds no page for it has failed by then.
    /// </summary>
    /// <returns>OK with the result in <paramref name="result"/>, or an errno, with the exit record filled where the kernel fills it.</returns>
    public Errno PageFault(KTask current, Vcpu vcpu, ref PageFault fault, out RetPf result)
    {
        using var srcu = _vm.Srcu.EnterShared(current);
        return DoPageFault(current, vcpu, ref fault, out result);
    }

    /// <summary>kvm_tdp_mmu_page_fault. SRCU is held.</summary>
    public Errno DoPageFault(KTask current, Vcpu vcpu, ref PageFault fault, out RetPf result)
    {
        if (_vm.Backend.HasOwnFaultPath)
        {
            return _vm.Backend.MemAbort(current, vcpu, ref fault, out result);
        }
        fault.MaxLevel = PageLevel.Page1G;
        fault.HostLevel = PageLevel.Page4K;
        result = FastPageFault(current, fault);
        if (result != RetPf.Continue)
        {
            return Errno.OK;
        }
        if ((fault.Gfn.Value & _vm.Backend.DirectBits) != 0)
        {
            _vm.Bug(current, "a page fault on an alias of a gfn");
            return current.Fail(Errno.EFAULT, Alias, fault.Gfn.Value);
        }
        Errno errno = fault.IsPrivate ? _vm.Backend.TopupExternalSptCache(current, vcpu, fault.Gfn) : Errno.OK;
        if (errno != Errno.OK)
        {
            return errno;
        }
        errno = _vm.Host.Profile.FaultOrder switch
        {
            FaultOrder.StaleTestFirst => FaultinPfnStaleTestFirst(current, vcpu, ref fault, out result),
            FaultOrder.FileFirst => FaultinPfnFileFirst(current, vcpu, ref fault, out result),
            FaultOrder.StateFirst => FaultinPfnStateFirst(current, vcpu, ref fault, out result),
            _ => FaultinPfn(current, vcpu, ref fault, out result),
        };
        if (errno != Errno.OK || result != RetPf.Continue)
        {
            return errno;
        }
        current.Step(PfnStep, fault.Gfn.Value, fault.Pfn.Value);

        using (Lock.EnterShared(current))
        {
            if (!IsStale(fault.Gfn, fault.Seq))
            {
                fault.GoalLevel = ChooseLevel(fault);
                result = Install(current, vcpu, fault);
                if (result != RetPf.Retry)
                {
                    return Errno.OK;
                }
            }
        }
        // Whoever makes it stale, or changes the entry, needs mmu_lock to be done with it.
        return Retry(current, fault, out result);
    }

    // fast_page_fault: what needs no lock. A VM with private memory goes the long way where access and attribute disagree.
    private RetPf FastPageFault(KTask current, in PageFault fault)
    {
        if (_vm.HasPrivateMem && fault.IsPrivate != _vm.Attributes.IsPrivate(fault.Gfn))
        {
            return RetPf.Continue;
        }
        if (!TryTranslate(fault.Gfn, fault.IsPrivate, write: false, out Stage2Entry entry))
        {
            return RetPf.Continue;
        }
        return entry.Writable || !fault.Write ? RetPf.Spurious : RetPf.Continue;
    }

    // kvm_mmu_faultin_pfn of 6.11 and later.
    private Errno FaultinPfn(KTask current, Vcpu vcpu, ref PageFault fault, out RetPf result)
    {
        result = RetPf.Continue;
        fault.Seq = Seq;
        current.Step(SeqStep, fault.Gfn.Value, fault.Seq);

        current.Step(AttributeStep, fault.Gfn.Value);
        bool isPrivate = _vm.HasPrivateMem && _vm.Attributes.IsPrivate(fault.Gfn);
        if (fault.IsPrivate != isPrivate)
        {
            return Mismatch(current, vcpu, fault, isPrivate);
        }
        fault.Slot = _vm.Memslots.Find(fault.Gfn);
        if (fault.Slot is null)
        {
            return NoSlot(current, vcpu, fault, out result);
        }
        if ((fault.Slot.Flags & KvmMem.MEMSLOT_INVALID) != 0)
        {
            return fault.Prefetch && _vm.Host.Profile.PreFaultInvalidSlotIsEagain
                ? current.Fail(Errno.EAGAIN, SlotIsChanging, fault.Gfn.Value, (ulong)fault.Slot.Id)
                : Retry(current, fault, out result);
        }
        if (IsStale(fault.Gfn, fault.Seq))
        {
            return Retry(current, fault, out result);
        }
        return FaultinPage(current, vcpu, ref fault, out result);
    }

    // kvm_faultin_pfn of 6.8: the access is private if the attribute says so when it is asked here, and a missing slot is noticed last.
    private Errno FaultinPfnStaleTestFirst(KTask current, Vcpu vcpu, ref PageFault fault, out RetPf result)
    {
        result = RetPf.Continue;
        fault.Seq = Seq;
        current.Step(SeqStep, fault.Gfn.Value, fault.Seq);
        fault.Slot = _vm.Memslots.Find(fault.Gfn);
        if (fault.Slot is not null && IsStale(fault.Gfn, fault.Seq))
        {
            return Retry(current, fault, out result);
        }
        if (fault.Slot is not null && (fault.Slot.Flags & KvmMem.MEMSLOT_INVALID) != 0)
        {
            return Retry(current, fault, out result);
        }
        current.Step(AttributeStep, fault.Gfn.Value);
        bool isPrivate = _vm.HasPrivateMem && _vm.Attributes.IsPrivate(fault.Gfn);
        if (fault.IsPrivate != isPrivate)
        {
            return Mismatch(current, vcpu, fault, isPrivate);
        }
        return fault.Slot is null ? NoSlot(current, vcpu, fault, out result) : FaultinPage(current, vcpu, ref fault, out result);
    }

    private static Errno Mismatch(KTask current, Vcpu vcpu, in PageFault fault, bool isPrivate) => MemoryFault(
        current, vcpu, fault, current.Fail(Errno.EFAULT, AccessMismatch, fault.Gfn.ToGpa().Value, fault.IsPrivate ? 1UL : 0, isPrivate ? 1UL : 0));

    private static Errno NoSlot(KTask current, Vcpu vcpu, in PageFault fault, out RetPf result)
    {
        result = RetPf.Emulate;
        return fault.IsPrivate
            ? MemoryFault(current, vcpu, fault, current.Fail(Errno.EFAULT, NoSlotForPrivate, fault.Gfn.ToGpa().Value))
            : Errno.OK;
    }

    // Where the page comes from: the guest_memfd, or the user address of the slot.
    private Errno FaultinPage(KTask current, Vcpu vcpu, ref PageFault fault, out RetPf result)
    {
        result = RetPf.Continue;
        bool gmemOnly = (fault.Slot!.Flags & KvmMem.MEMSLOT_GMEM_ONLY) != 0;
        Errno errno = fault.IsPrivate || gmemOnly
            ? FaultinGmem(current, vcpu, ref fault)
            : FaultinHostPage(current, ref fault, out result);
        if (errno == Errno.OK && result == RetPf.Continue && IsStale(fault.Gfn, fault.Seq))
        {
            return Retry(current, fault, out result);
        }
        return errno;
    }

    // kvm_mmu_faultin_pfn_gmem
    private Errno FaultinGmem(KTask current, Vcpu vcpu, ref PageFault fault)
    {
        Memslot slot = fault.Slot!;
        ulong gpa = fault.Gfn.ToGpa().Value;
        if (!slot.HasGmem)
        {
            return MemoryFault(current, vcpu, fault, current.Fail(Errno.EFAULT, NoGmem, gpa, (ulong)slot.Id));
        }
        Errno errno = GuestMemfd.GetPfn(current, _vm, slot, fault.Gfn, out fault.Pfn, out int order);
        if (errno != Errno.OK)
        {
            errno = current.Fail(errno, PageNotGiven, gpa, (ulong)slot.Id);
            // The 2023 RFC hands the errno through and leaves the exit record alone.
            return _vm.Host.Profile.MemoryFaultFails ? MemoryFault(current, vcpu, fault, errno) : errno;
        }
        fault.FromGmem = true;
        fault.MapWritable = (slot.Flags & KvmMem.READONLY) == 0;
        fault.MaxLevel = order >= Folio.HugeOrder ? PageLevel.Page2M : PageLevel.Page4K;
        return Errno.OK;
    }

    // __kvm_faultin_pfn over the host's page tables, and kvm_handle_error_pfn.
    private Errno FaultinHostPage(KTask current, ref PageFault fault, out RetPf result)
    {
        result = RetPf.Continue;
        Memslot slot = fault.Slot!;
        bool readOnly = (slot.Flags & KvmMem.READONLY) != 0;
        if (readOnly && fault.Write)
        {
            // A read-only slot is ROM: stores to it are for user space to emulate.
            result = RetPf.Emulate;
            return Errno.OK;
        }
        ulong address = slot.UserspaceAddr + ((fault.Gfn.Value - slot.BaseGfn) << PageSize.Shift);
        Errno errno = _vm.Owner.Memory.FaultIn(current, address, fault.Write, out HostPage page);
        if (errno == Errno.EHWPOISON)
        {
            // SIGBUS is on its way to the task; whoever comes back for the access finds it pending.
            current.SignalPending = true;
            return Retry(current, fault, out result);
        }
        if (errno != Errno.OK)
        {
            return current.Fail(Errno.EFAULT, HostPageFailed, fault.Gfn.ToGpa().Value, (ulong)slot.Id, address);
        }
        fault.Pfn = page.Pfn;
        fault.HostLevel = page.Level;
        fault.MapWritable = page.Writable && !readOnly;
        return Errno.OK;
    }

    /// <summary>Maps a page that a backend found itself.</summary>
    public RetPf MapPage(KTask current, Vcpu vcpu, in PageFault fault)
    {
        using var mmu = Lock.EnterShared(current);
        return Install(current, vcpu, fault);
    }

    // kvm_tdp_mmu_map
    private RetPf Install(KTask current, Vcpu vcpu, in PageFault fault)
    {
        Stage2Table table = TableOf(fault.IsPrivate);
        Touch(table, GfnRange.FromPages(fault.Gfn, 1), write: false);
        bool dirtyLogged = (fault.Slot!.Flags & KvmMem.LOG_DIRTY_PAGES) != 0;

        // A page whose stores are logged is made writable by a store only.
        bool writable = fault.MapWritable && (fault.Write || !dirtyLogged);
        if (writable)
        {
            fault.Slot.DirtyLog?.MarkPageDirty(fault.Gfn.Value - fault.Slot.BaseGfn);
        }
        var entry = new Stage2Entry(fault.Pfn, fault.GoalLevel, writable, fault.IsPrivate);
        if (table.TryGet(fault.Gfn, out Stage2Entry old) && old.Pfn == entry.Pfn && Serves(old, entry.IsPrivate) && old.Level >= entry.Level && (old.Writable || !writable))
        {
            return RetPf.Spurious;
        }
        current.Step(InstallStep, fault.Gfn.Value, fault.Pfn.Value);
        if (fault.IsPrivate && !_vm.Backend.SetExternalSpte(current, vcpu, fault))
        {
            return RetPf.Retry;
        }
        Touch(table, entry.Level.RangeAround(fault.Gfn), write: true);
        table.Map(fault.Gfn, entry);
        return fault.Write && !writable ? RetPf.WriteProtected : RetPf.Fixed;
    }

    private Errno Retry(KTask current, in PageFault fault, out RetPf result)
    {
        Gfn gfn = fault.Gfn;
        current.SpinUntil(RetryStep, gfn.Value, () => !IsInvalidated(gfn) && _vm.Memslots.Find(gfn) is not { IsInvalid: true } && !_vm.Backend.IsFrozen(gfn));
        result = RetPf.Retry;
        return Errno.OK;
    }

    // kvm_mmu_prepare_memory_fault_exit: the exit record says what the access was; KVM_RUN answers the errno, or 0 in the 2023 RFC.
    private static Errno MemoryFault(KTask current, Vcpu vcpu, in PageFault fault, Errno errno)
    {
        vcpu.Run.MemoryFault(current, fault.Gfn, fault.IsPrivate);
        return errno;
    }
}
