using SimKvm.Abi;
using SimKvm.Userspace;
using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimKvm.Kvm;

// Mapping guest memory ahead of the guest: KVM_PRE_FAULT_MEMORY, and the two forms of KVM_MAP_MEMORY that were posted before it. Read-fault semantics: nothing is
// allocated for writing, nothing is measured, and it makes no difference what was mapped before.
internal sealed partial class Vcpu
{
    public static readonly Rule PreFaultFlags = new(
        "kvm.pre-fault.flags", "the flags are not known", "kvm_vcpu_pre_fault_memory", "pass flags 0; KVM_MAP_MEMORY of 2024-03-01 knows WRITE 1, EXEC 2, USER 4, PRIVATE 8", "flags");

    public static readonly Rule PreFaultRange = new(
        "kvm.pre-fault.range", "the range is empty, wraps, or is not page aligned", "kvm_vcpu_pre_fault_memory", "align start and size to 4096", "start", "size");

    public static readonly Rule PreFaultTooEarly = new(
        "kvm.pre-fault.not-yet", "the VM's initial memory is not final yet", "kvm_arch_vcpu_pre_fault_memory: pre_fault_allowed",
        "finish the launch first (SNP_LAUNCH_FINISH, KVM_TDX_FINALIZE_VM)");

    public static readonly Rule NoShadowPages = new(
        "kvm.prefault.no-shadow-pages", "without two-dimensional paging a VM that never had a slot has no pages for its page tables", "make_mmu_pages_available; M618",
        "create a slot first");

    public static readonly Rule PreFaultNoTdp = new(
        "kvm.pre-fault.no-tdp", "the vCPU does not use two-dimensional paging", "kvm_arch_vcpu_pre_fault_memory", "boot a host with tdp");

    public static readonly Rule PreFaultNoMemory = new(
        "kvm.pre-fault.no-slot", "there is no memory slot at the gpa, so nothing to map", "kvm_tdp_page_prefault: RET_PF_EMULATE", "create a slot first", "gpa");

    public static readonly Rule PrivateWithoutPrivateMemory = new(
        "kvm.map-memory.private", "KVM_MEMORY_MAPPING_FLAG_PRIVATE on a VM without private memory", "kvm_vcpu_map_memory, RFC v1", "leave the flag out", "flags");

    public static readonly Rule PartialWork = new(
        "kvm.map-memory.partial", "a part was mapped, pages are left", "kvm_vcpu_map_memory, RFC v1", "call again with what the structure says", "gfns_left#");

    /// <summary>KVM_PRE_FAULT_MEMORY (kvm_vcpu_pre_fault_memory). 0 if at least one page was done; what is left is in the structure.</summary>
    public Errno PreFaultMemory(KTask current, UserArg arg)
    {
        Errno errno = arg.CopyIn(current, out kvm_pre_fault_memory range);
        if (errno != Errno.OK)
        {
            return errno;
        }
        errno = CheckPreFault(current, range.gpa, range.size, range.flags);
        if (errno == Errno.OK)
        {
            ulong full = range.size;
            errno = PreFaultLoop(current, ref range.gpa, ref range.size);
            errno = range.size == full ? errno : Errno.OK;
        }
        Errno copied = arg.CopyOut(current, range);
        return copied != Errno.OK ? copied : errno;
    }

    /// <summary>KVM_MAP_MEMORY, RFC v2: errors are returned even after partial progress.</summary>
    public Errno MapMemoryV2(KTask current, UserArg arg)
    {
        Errno errno = arg.CopyIn(current, out kvm_map_memory_v2 range);
        if (errno != Errno.OK)
        {
            return errno;
        }
        errno = CheckPreFault(current, range.base_address, range.size, range.flags);
        if (errno == Errno.OK)
        {
            errno = PreFaultLoop(current, ref range.base_address, ref range.size);
        }
        Errno copied = arg.CopyOut(current, range);
        return copied != Errno.OK ? copied : errno;
    }

    /// <summary>KVM_MAP_MEMORY, RFC v1: page numbers, flags, and EAGAIN whenever pages are left after progress.</summary>
    public Errno MapMemoryV1(KTask current, UserArg arg)
    {
        const ulong known = kvm_map_memory_v1.WRITE | kvm_map_memory_v1.EXEC | kvm_map_memory_v1.USER | kvm_map_memory_v1.PRIVATE;
        Errno errno = arg.CopyIn(current, out kvm_map_memory_v1 mapping);
        if (errno != Errno.OK)
        {
            return errno;
        }
        errno = CheckMapMemoryV1(current, mapping, known);
        if (errno == Errno.OK)
        {
            ulong gpa = mapping.base_gfn << PageSize.Shift, size = mapping.nr_pages << PageSize.Shift;
            ulong full = size;
            bool? asPrivate = Vm.HasPrivateMem ? (mapping.flags & kvm_map_memory_v1.PRIVATE) != 0 : null;
            errno = PreFaultLoop(current, ref gpa, ref size, (mapping.flags & kvm_map_memory_v1.WRITE) != 0, asPrivate);
            mapping.base_gfn = gpa >> PageSize.Shift;
            mapping.nr_pages = size >> PageSize.Shift;
            if (errno != Errno.OK && size != full)
            {
                errno = current.Fail(Errno.EAGAIN, PartialWork, mapping.nr_pages);
            }
        }
        Errno copied = arg.CopyOut(current, mapping);
        return copied != Errno.OK ? copied : errno;
    }

    private static Errno CheckPreFault(KTask current, ulong start, ulong size, ulong flags)
    {
        if (flags != 0)
        {
            return current.Fail(Errno.EINVAL, PreFaultFlags, flags);
        }
        return ((start | size) & PageSize.OffsetMask) != 0 || start + size <= start
            ? current.Fail(Errno.EINVAL, PreFaultRange, start, size)
            : Errno.OK;
    }

    private Errno CheckMapMemoryV1(KTask current, in kvm_map_memory_v1 mapping, ulong known)
    {
        if ((mapping.flags & ~known) != 0)
        {
            return current.Fail(Errno.EINVAL, PreFaultFlags, mapping.flags);
        }
        if ((mapping.flags & kvm_map_memory_v1.PRIVATE) != 0 && !Vm.HasPrivateMem)
        {
            return current.Fail(Errno.EINVAL, PrivateWithoutPrivateMemory, mapping.flags);
        }
        bool wraps = mapping.nr_pages == 0 || mapping.base_gfn + mapping.nr_pages <= mapping.base_gfn || mapping.base_gfn + mapping.nr_pages > GfnRange.Limit;
        return wraps || (mapping.source & PageSize.OffsetMask) != 0
            ? current.Fail(Errno.EINVAL, PreFaultRange, mapping.base_gfn << PageSize.Shift, mapping.nr_pages << PageSize.Shift)
            : Errno.OK;
    }

    // The loop of kvm_vcpu_pre_fault_memory: a signal or an error stops it, what is done is done.
    private Errno PreFaultLoop(KTask current, ref ulong gpa, ref ulong size, bool write = false, bool? asPrivate = null)
    {
        using var srcu = Vm.Srcu.EnterShared(current);
        while (size != 0)
        {
            if (current.SignalPending)
            {
                return current.Fail(Errno.EINTR, GuestMemfd.Interrupted);
            }
            Errno errno = PreFaultPage(current, gpa, write, asPrivate, out ulong end);
            if (errno != Errno.OK)
            {
                return errno;
            }
            ulong done = Math.Min(size, end - gpa);
            gpa += done;
            size -= done;
        }
        return Errno.OK;
    }

    // kvm_arch_vcpu_pre_fault_memory, kvm_tdp_map_page.
    private Errno PreFaultPage(KTask current, ulong gpa, bool write, bool? asPrivate, out ulong end)
    {
        end = 0;
        current.Machine.Reading(Vm.Backend);
        if (Vm.Host.Profile.PreFaultNeedsLaunch && !Vm.Backend.PreFaultAllowed)
        {
            return current.Fail(Errno.EOPNOTSUPP, PreFaultTooEarly);
        }
        var gfn = new Gfn(gpa >> PageSize.Shift);
        if ((gfn.Value & Vm.Backend.DirectBits) != 0)
        {
            return current.Fail(Errno.EINVAL, Mmu.Alias, gfn.Value);
        }
        return PreMapPage(current, gpa, write, asPrivate, out end);
    }

    // kvm_tdp_map_page
    private Errno PreMapPage(KTask current, ulong gpa, bool write, bool? asPrivate, out ulong end)
    {
        end = 0;
        var gfn = new Gfn(gpa >> PageSize.Shift);
        if (!Vm.Host.Config.Tdp)
        {
            // kvm_mmu_reload comes first: shadow pages are granted by the number of pages in slots, and before the first slot there are none.
            if (!Vm.Memslots.HadSlots)
            {
                return current.Fail(Errno.ENOSPC, NoShadowPages);
            }
            return current.Fail(Errno.EOPNOTSUPP, PreFaultNoTdp);
        }
        for (int fruitless = 0; fruitless < MaxFruitlessEntries; fruitless++)
        {
            if (current.SignalPending)
            {
                return current.Fail(Errno.EINTR, GuestMemfd.Interrupted);
            }
            if (Vm.Dead && Vm.Host.Profile.PreFaultSeesDeadVm)
            {
                return current.Fail(Errno.EIO, Vm.IsDead);
            }
            bool isPrivate = asPrivate ?? (Vm.HasPrivateMem && Vm.Attributes.IsPrivate(gfn));
            var fault = new PageFault { Gfn = gfn, Write = write, IsPrivate = isPrivate, Prefetch = true };
            Errno errno = Vm.Mmu.DoPageFault(current, this, ref fault, out RetPf result);
            if (errno != Errno.OK)
            {
                return errno;
            }
            switch (result)
            {
                case RetPf.Fixed or RetPf.Spurious or RetPf.WriteProtected:
                    PageLevel level = Vm.Mmu.TryTranslate(gfn, isPrivate, write: false, out Stage2Entry entry) ? entry.Level : PageLevel.Page4K;
                    end = level.RangeAround(gfn).End.ToGpa().Value;
                    return Errno.OK;
                case RetPf.Emulate:
                    return current.Fail(Errno.ENOENT, PreFaultNoMemory, gpa);
            }
        }
        // The kernel would go round until the change ends or a signal comes; with one call at a time only a signal is left.
        return current.Fail(Errno.EINTR, Livelock, gpa, (ulong)Vm.Mmu.InProgress);
    }
}
