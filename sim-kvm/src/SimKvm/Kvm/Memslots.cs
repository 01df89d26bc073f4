using System.Runtime.CompilerServices;
using SimKvm.Abi;
using SimKvm.Kvm.Historical;
using SimKvm.Profiles;
using SimKvm.Userspace;
using SimMachine;
using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimKvm.Kvm;

/// <summary>
/// A memory slot: a run of gfns, and what backs them. Immutable but for its binding: a change of a slot puts another in its place.
/// </summary>
internal sealed class Memslot(int asId, int id, ulong baseGfn, ulong npages, ulong userspaceAddr, uint flags)
{
    public int AsId { get; } = asId;

    public int Id { get; } = id;

    public ulong BaseGfn { get; } = baseGfn;

    public ulong Npages { get; } = npages;

    public ulong UserspaceAddr { get; } = userspaceAddr;

    /// <summary>KVM_MEM_* of the request, and the internal bits of <see cref="KvmMem"/>.</summary>
    public uint Flags { get; set; } = flags;

    /// <summary>gmem.file: not counted, and null when the file is gone or was never bound. Under slots_lock and the file's invalidate_lock.</summary>
    public GuestMemfd? GmemFile { get; set; }

    /// <summary>Page offset in the guest_memfd.</summary>
    public ulong GmemPgoff { get; set; }

    /// <summary>dirty_bitmap; null without KVM_MEM_LOG_DIRTY_PAGES.</summary>
    public DirtyLog? DirtyLog { get; set; }

    /// <summary>The private file of designs before guest_memfd; the slot holds a reference to it.</summary>
    public BackingStoreFile? PrivateFile { get; set; }

    /// <summary>Page offset in it.</summary>
    public ulong PrivatePgoff { get; set; }

    /// <summary>Going: marked KVM_MEMSLOT_INVALID while it is deleted or moved.</summary>
    public bool IsInvalid => (Flags & KvmMem.MEMSLOT_INVALID) != 0;

    public GfnRange Range => GfnRange.FromPages(new Gfn(BaseGfn), Npages);

    /// <summary>kvm_slot_can_be_private / kvm_slot_has_gmem.</summary>
    public bool HasGmem => (Flags & KvmMem.GUEST_MEMFD) != 0;
}

/// <summary>
/// The slots of a VM, by address space. All under slots_lock; readers of the fault path hold SRCU and see a slot whole, before or after.
/// </summary>
/// <remarks>
/// Invariants: slots of one address space do not overlap; ids are unique in it; a slot has at least one page and at most 2^31 - 1. A slot being deleted stays in
/// place, marked KVM_MEMSLOT_INVALID, until nobody can use it any more.
/// </remarks>
internal sealed class Memslots(Vm vm)
{
    /// <summary>KVM_USER_MEM_SLOTS: ids from user space are below it.</summary>
    public const int UserMemSlots = 32764;

    private const int MaxSlotId = 32767;
    private const ulong MaxPages = (1UL << 31) - 1;

    // MAXPHYADDR of the simulated AMD processors; that of the Intel one, which is also what shadow paging can express.
    private const int MaxPhysicalBits = 48;
    private const int WidestBits = 52;

    private static readonly StepLabel WaitStep = new("memslots wait for notifiers");
    private static readonly StepLabel PublishStep = new("memslots publish");
    private static readonly StepLabel ZapStep = new("memslot stage-2 zap");

    public static readonly Rule V1Flags = new(
        "kvm.memslot.v1-flags", "KVM_SET_USER_MEMORY_REGION knows only LOG_DIRTY_PAGES and READONLY", "kvm_vm_ioctl (KVM_SET_USER_MEMORY_REGION_V1_FLAGS)",
        "use KVM_SET_USER_MEMORY_REGION2 for a guest_memfd", "flags");

    public static readonly Rule IdTooLarge = new(
        "kvm.memslot.id", "the slot id is not below KVM_CAP_NR_MEMSLOTS", "kvm_vm_ioctl_set_memory_region", "use a smaller id", "slot#", "limit#");

    public static readonly Rule BadFlags = new(
        "kvm.memslot.flags", "the flags are not valid together for this VM", "check_memory_region_flags",
        "a guest_memfd slot can be neither read-only nor dirty-logged; VMs with protected state have no read-only slots; up to 6.17 only VMs with private memory have guest_memfd slots",
        "flags", "valid");

    public static readonly Rule SizeUnaligned = new(
        "kvm.memslot.size-alignment", "memory_size is not page aligned", "kvm_set_memory_region", "align it to 4096", "memory_size");

    public static readonly Rule GpaUnaligned = new(
        "kvm.memslot.gpa-alignment", "guest_phys_addr is not page aligned", "kvm_set_memory_region", "align it to 4096", "guest_phys_addr");

    public static readonly Rule BadUserspaceAddr = new(
        "kvm.memslot.userspace-addr", "userspace_addr is not page aligned, or the range leaves user space", "kvm_set_memory_region",
        "give a page-aligned user address; it need not be mapped", "userspace_addr", "memory_size");

    public static readonly Rule GmemOffset = new(
        "kvm.memslot.gmem-offset", "guest_memfd_offset is not page aligned, or offset + size wraps", "kvm_set_memory_region", "align it to 4096",
        "guest_memfd_offset", "memory_size");

    public static readonly Rule BadAddressSpace = new(
        "kvm.memslot.as-id", "the address space does not exist", "kvm_set_memory_region",
        "use address space 0 (slot bits 31:16); VMs with private memory have no other", "as_id#", "spaces#");

    public static readonly Rule GpaWraps = new(
        "kvm.memslot.gpa-wrap", "guest_phys_addr + memory_size wraps", "kvm_set_memory_region", "end below 2^64", "guest_phys_addr", "memory_size");

    public static readonly Rule TooLarge = new(
        "kvm.memslot.size", "the slot has more than 2^31 - 1 pages", "kvm_set_memory_region", "split it", "npages");

    public static readonly Rule NothingToDelete = new(
        "kvm.memslot.delete-absent", "there is no slot of that id to delete", "kvm_set_memory_region", "memory_size 0 deletes; give a size to create", "as_id#", "slot#");

    public static readonly Rule GmemSlotImmutable = new(
        "kvm.memslot.gmem-immutable", "a slot with a guest_memfd cannot be changed, only deleted", "kvm_set_memory_region", "delete the slot, then create it anew",
        "slot#", "gfn");

    public static readonly Rule ChangeRefused = new(
        "kvm.memslot.change", "an existing slot may change its gpa or its dirty logging only", "kvm_set_memory_region", "delete the slot, then create it anew",
        "slot#", "old_userspace_addr", "old_npages", "old_flags");

    public static readonly Rule Overlaps = new(
        "kvm.memslot.overlap", "another slot of the address space occupies part of the range", "kvm_check_memslot_overlap", "delete that slot first",
        "slot#", "gfn", "npages", "other_slot#", "other_gfn", "other_npages");

    public static readonly Rule BeyondMaxGfn = new(
        "kvm.memslot.max-gfn", "the slot ends above the largest guest physical address of the processor", "kvm_arch_prepare_memory_region",
        "stay below 2^48 bytes, or 2^52 without two-dimensional paging", "last_gfn", "max_gfn");

    // One entry for each address space, by id and in gfn order; the second space comes into being on first use.
    private readonly AddressSpace?[] _spaces = new AddressSpace?[Vm.MaxAddressSpaces];

    /// <summary>A slot was created at some time (kvm_arch_commit_memory_region: n_max_mmu_pages is no longer 0).</summary>
    public bool HadSlots { get; private set; }

    /// <summary>All slots, by address space and gfn.</summary>
    public IEnumerable<Memslot> All => _spaces.Where(space => space is not null).SelectMany(space => space!.ByGfn);

    /// <summary>gfn_to_memslot: the slot of normal memory that has the gfn, or null.</summary>
    public Memslot? Find(Gfn gfn)
    {
        vm.Host.Machine.Reading(this);
        AddressSpace? space = _spaces[0];
        int index = space?.FirstEndingAfter(gfn.Value) ?? 0;
        return space is not null && index < space.ByGfn.Count && space.ByGfn[index].BaseGfn <= gfn.Value ? space.ByGfn[index] : null;
    }

    /// <summary>id_to_memslot: the slot of that id, or null.</summary>
    public Memslot? FindById(int asId, int id)
    {
        vm.Host.Machine.Reading(this);
        return _spaces[asId]?.ById.GetValueOrDefault(id);
    }

    /// <summary>The parts of a range that slots have, in each address space, in order.</summary>
    public IEnumerable<(Memslot Slot, GfnRange Range)> Intersections(GfnRange range)
    {
        vm.Host.Machine.Reading(this);
        foreach (AddressSpace? space in _spaces)
        {
            for (int i = space?.FirstEndingAfter(range.Start.Value) ?? 0; space is not null && i < space.ByGfn.Count; i++)
            {
                GfnRange part = space.ByGfn[i].Range.Intersect(range);
                if (part.IsEmpty)
                {
                    break;
                }
                yield return (space.ByGfn[i], part);
            }
        }
    }

    /// <summary>The parts of slots whose user addresses lie in a range of pages.</summary>
    public IEnumerable<(Memslot Slot, GfnRange Range)> OverUserRange(ulong start, ulong end)
    {
        vm.Host.Machine.Reading(this);
        foreach (Memslot slot in All)
        {
            ulong first = Math.Max(start, slot.UserspaceAddr), last = Math.Min(end, slot.UserspaceAddr + (slot.Npages << PageSize.Shift));
            if (first < last)
            {
                ulong gfn = slot.BaseGfn + ((first - slot.UserspaceAddr) >> PageSize.Shift);
                yield return (slot, GfnRange.FromPages(new Gfn(gfn), (last - first) >> PageSize.Shift));
            }
        }
    }

    /// <summary>KVM_SET_USER_MEMORY_REGION: the 32-byte form.</summary>
    public Errno SetRegion(KTask current, UserArg arg)
    {
        Errno errno = arg.CopyIn(current, out kvm_userspace_memory_region region);
        if (errno != Errno.OK)
        {
            return errno;
        }
        if (vm.Host.Profile.ExtendedRegionBytes != 0 && (region.flags & KvmMem.PRIVATE) != 0)
        {
            return SetExtendedRegion(current, arg);
        }
        if ((region.flags & ~(KvmMem.LOG_DIRTY_PAGES | KvmMem.READONLY)) != 0)
        {
            return current.Fail(Errno.EINVAL, V1Flags, region.flags);
        }
        return Set(current, new kvm_userspace_memory_region2
        {
            slot = region.slot,
            flags = region.flags,
            guest_phys_addr = region.guest_phys_addr,
            memory_size = region.memory_size,
            userspace_addr = region.userspace_addr,
        });
    }

    // KVM_SET_USER_MEMORY_REGION with KVM_MEM_PRIVATE (UPM): the number says 32 bytes, the flag says that more are there. Layouts differ only in
    // how much padding follows offset and descriptor; a padding that cannot be read is EFAULT.
    private Errno SetExtendedRegion(KTask current, UserArg arg)
    {
        Errno errno = arg.CopyIn(current, out kvm_userspace_memory_region_ext region);
        ulong rest = vm.Host.Profile.ExtendedRegionBytes - (ulong)Unsafe.SizeOf<kvm_userspace_memory_region_ext>();
        errno = errno == Errno.OK ? arg.CopyIn(current, new byte[rest], (ulong)Unsafe.SizeOf<kvm_userspace_memory_region_ext>()) : errno;
        return errno != Errno.OK ? errno : Set(current, new kvm_userspace_memory_region2
        {
            slot = region.slot,
            flags = region.flags,
            guest_phys_addr = region.guest_phys_addr,
            memory_size = region.memory_size,
            userspace_addr = region.userspace_addr,
            guest_memfd_offset = region.private_offset,
            guest_memfd = region.private_fd,
        });
    }

    /// <summary>KVM_SET_USER_MEMORY_REGION2.</summary>
    public Errno SetRegion2(KTask current, UserArg arg)
    {
        Errno errno = arg.CopyIn(current, out kvm_userspace_memory_region2 region);
        return errno != Errno.OK ? errno : Set(current, region);
    }

    // kvm_vm_ioctl_set_memory_region
    private Errno Set(KTask current, in kvm_userspace_memory_region2 mem)
    {
        if ((mem.slot & 0xffff) >= UserMemSlots)
        {
            return current.Fail(Errno.EINVAL, IdTooLarge, mem.slot & 0xffff, UserMemSlots);
        }
        using var slots = vm.SlotsLock.Enter(current);
        return SetLocked(current, mem);
    }

    // kvm_set_memory_region: checks in its order, slots_lock held.
    private Errno SetLocked(KTask current, in kvm_userspace_memory_region2 mem)
    {
        uint valid = ValidFlags(mem.flags);
        if ((mem.flags & ~valid) != 0)
        {
            return current.Fail(Errno.EINVAL, BadFlags, mem.flags, valid);
        }
        if ((mem.memory_size & PageSize.OffsetMask) != 0)
        {
            return current.Fail(Errno.EINVAL, SizeUnaligned, mem.memory_size);
        }
        if ((mem.guest_phys_addr & PageSize.OffsetMask) != 0)
        {
            return current.Fail(Errno.EINVAL, GpaUnaligned, mem.guest_phys_addr);
        }
        if ((mem.userspace_addr & PageSize.OffsetMask) != 0 || mem.userspace_addr > UserMemory.TaskSize
            || mem.memory_size > UserMemory.TaskSize - mem.userspace_addr)
        {
            return current.Fail(Errno.EINVAL, BadUserspaceAddr, mem.userspace_addr, mem.memory_size);
        }
        if ((mem.flags & KvmMem.GUEST_MEMFD) != 0
            && ((mem.guest_memfd_offset & PageSize.OffsetMask) != 0 || mem.guest_memfd_offset + mem.memory_size < mem.guest_memfd_offset))
        {
            return current.Fail(Errno.EINVAL, GmemOffset, mem.guest_memfd_offset, mem.memory_size);
        }
        int asId = (int)(mem.slot >> 16);
        int id = (int)(mem.slot & 0xffff);
        if (asId >= vm.AddressSpaceCount || id >= MaxSlotId)
        {
            return current.Fail(Errno.EINVAL, BadAddressSpace, (ulong)asId, (ulong)vm.AddressSpaceCount);
        }
        if (mem.guest_phys_addr + mem.memory_size < mem.guest_phys_addr)
        {
            return current.Fail(Errno.EINVAL, GpaWraps, mem.guest_phys_addr, mem.memory_size);
        }
        ulong npages = mem.memory_size >> PageSize.Shift;
        if (npages > MaxPages)
        {
            return current.Fail(Errno.EINVAL, TooLarge, npages);
        }

        vm.Host.Machine.Reading(this);
        AddressSpace? space = _spaces[asId];
        Memslot? old = null;
        space?.ById.TryGetValue(id, out old);
        if (npages == 0)
        {
            if (old is null)
            {
                return current.Fail(Errno.EINVAL, NothingToDelete, (ulong)asId, (ulong)id);
            }
            Errno refused = vm.Backend.PrepareMemoryRegion(current, old, 0);
            if (refused == Errno.OK)
            {
                Delete(current, space!, old);
            }
            return refused;
        }

        ulong baseGfn = mem.guest_phys_addr >> PageSize.Shift;
        bool moved = old is not null && old.BaseGfn != baseGfn;
        if (old is not null)
        {
            if ((mem.flags & KvmMem.GUEST_MEMFD) != 0)
            {
                return current.Fail(Errno.EINVAL, GmemSlotImmutable, (ulong)id, old.BaseGfn);
            }
            uint fixedFlags = KvmMem.READONLY | (vm.Host.Profile.GuestMemfdToggleRefused ? KvmMem.GUEST_MEMFD : 0);
            if (mem.userspace_addr != old.UserspaceAddr || npages != old.Npages || ((mem.flags ^ old.Flags) & fixedFlags) != 0)
            {
                return current.Fail(Errno.EINVAL, ChangeRefused, (ulong)id, old.UserspaceAddr, old.Npages, old.Flags);
            }
            if (!moved && mem.flags == old.Flags)
            {
                return Errno.OK;
            }
        }
        if ((old is null || moved) && space?.Overlapping(baseGfn, npages, except: old) is { } other)
        {
            return current.Fail(Errno.EEXIST, Overlaps, (ulong)id, baseGfn, npages, (ulong)other.Id, other.BaseGfn, other.Npages);
        }

        // The kernel asks the architecture later, with an old slot marked and then put back; nothing is left of that.
        Errno prepared = vm.Backend.PrepareMemoryRegion(current, old, mem.flags);
        if (prepared != Errno.OK)
        {
            return prepared;
        }
        var slot = new Memslot(asId, id, baseGfn, npages, mem.userspace_addr, mem.flags);
        slot.DirtyLog = DirtyLog.For(vm, slot, old);
        if ((mem.flags & KvmMem.GUEST_MEMFD) != 0)
        {
            Errno bound = HasBackingStoreFiles
                ? BackingStoreFile.Bind(current, vm, slot, mem.guest_memfd, mem.guest_memfd_offset)
                : GuestMemfd.Bind(current, vm, slot, mem.guest_memfd, mem.guest_memfd_offset);
            if (bound != Errno.OK)
            {
                return bound;
            }
        }
        space ??= _spaces[asId] = new AddressSpace();
        Errno errno = Install(current, space, slot, old, moved);
        if (errno != Errno.OK && slot.HasGmem)
        {
            Unbind(current, slot);
        }
        return errno;
    }

    // KVM_MEM_PRIVATE of the designs before guest_memfd.
    private bool HasBackingStoreFiles => vm.Host.Profile.PrivateMemory is PrivateMemoryDesign.InaccessibleMemfd or PrivateMemoryDesign.RestrictedMem;

    private void Unbind(KTask current, Memslot slot)
    {
        BackingStoreFile.Unbind(current, vm, slot);
        GuestMemfd.Unbind(current, vm, slot);
    }

    /// <summary>kvm_free_memslots: slots of a VM that dies let go of their private files. A guest_memfd is gone by then, for it kept the VM.</summary>
    public void Destroy(KTask current)
    {
        foreach (Memslot slot in All.ToArray())
        {
            BackingStoreFile.Unbind(current, vm, slot);
        }
    }

    private uint ValidFlags(uint flags)
    {
        uint valid = KvmMem.LOG_DIRTY_PAGES;
        if (HasBackingStoreFiles)
        {
            // The designs before guest_memfd do not say what the flag excludes.
            return valid | KvmMem.READONLY | (vm.HasPrivateMem ? KvmMem.PRIVATE : 0);
        }
        if (vm.HasPrivateMem || vm.Host.Profile.GuestMemfdForEveryVm)
        {
            valid |= KvmMem.GUEST_MEMFD;
        }
        if ((flags & KvmMem.GUEST_MEMFD) != 0)
        {
            return vm.Host.Profile.ReadonlyGuestMemfdSlots ? (valid & ~KvmMem.LOG_DIRTY_PAGES) | KvmMem.READONLY : valid & ~KvmMem.LOG_DIRTY_PAGES;
        }
        return vm.HasProtectedState && vm.Host.Profile.ReadonlySlotsNeedPlainState ? valid : valid | KvmMem.READONLY;
    }

    // kvm_set_memslot for CREATE, MOVE and FLAGS_ONLY.
    private Errno Install(KTask current, AddressSpace space, Memslot slot, Memslot? old, bool moved)
    {
        if (old is not null && moved)
        {
            Invalidate(current, old);
        }
        using (vm.SlotsArchLock.Enter(current))
        {
            ulong lastGfn = slot.BaseGfn + slot.Npages - 1;
            // kvm_mmu_max_gfn
            ulong maxGfn = (1UL << ((vm.Host.Config.Tdp && vm.Host.Machine.Config.Platform != Platform.IntelTdx ? MaxPhysicalBits : WidestBits) - PageSize.Shift)) - 1;
            // What has the bit that tells shared from private would be a second name of a page (kvm_is_gfn_alias).
            if ((old is null || moved) && (lastGfn > maxGfn || (lastGfn & vm.Backend.DirectBits) != 0))
            {
                if (old is not null)
                {
                    current.Machine.Writing(this);
                    old.Flags &= ~KvmMem.MEMSLOT_INVALID;
                }
                return current.Fail(Errno.EINVAL, BeyondMaxGfn, lastGfn, maxGfn);
            }
            WaitForNotifiers(current);
            current.Machine.Writing(this);
            if (old is not null)
            {
                space.Remove(old);
            }
            space.Add(slot);
            current.Step(PublishStep, slot.BaseGfn, slot.Npages);
            HadSlots = true;
        }
        WaitForFaults(current);
        DirtyLog.ApplyFlags(current, vm, slot, old);
        if (old is { HasGmem: true })
        {
            // Only where toggling GUEST_MEMFD is not refused: the kernel warns and unbinds.
            Unbind(current, old);
        }
        return Errno.OK;
    }

    // kvm_set_memslot for DELETE: attributes of the range and pages of the guest_memfd stay.
    private void Delete(KTask current, AddressSpace space, Memslot slot)
    {
        Invalidate(current, slot);
        using (vm.SlotsArchLock.Enter(current))
        {
            WaitForNotifiers(current);
            current.Machine.Writing(this);
            space.Remove(slot);
            current.Step(PublishStep, slot.BaseGfn, 0);
        }
        WaitForFaults(current);
        if (slot.HasGmem)
        {
            Unbind(current, slot);
        }
    }

    // kvm_invalidate_memslot: the slot is marked, published, and its stage-2 entries go.
    private void Invalidate(KTask current, Memslot slot)
    {
        using (vm.SlotsArchLock.Enter(current))
        {
            WaitForNotifiers(current);
            current.Machine.Writing(this);
            slot.Flags |= KvmMem.MEMSLOT_INVALID;
            current.Step(PublishStep, slot.BaseGfn, slot.Npages);
        }
        WaitForFaults(current);
        using var mmu = vm.Mmu.Lock.Enter(current);
        current.Step(ZapStep, slot.BaseGfn, slot.Npages);
        vm.Mmu.Unmap(current, slot.Range);
    }

    // kvm_swap_active_memslots, up to the swap, which follows in the same breath: not while an MMU notifier is between its start and its end, or the end would find other slots than the start did.
    private void WaitForNotifiers(KTask current) => current.WaitUntil(WaitStep, () => vm.Mmu.ActiveInvalidations == 0);

    // synchronize_srcu_expedited: faults that may have seen the slots as they were have ended. slots_arch_lock is dropped before.
    private void WaitForFaults(KTask current)
    {
        using var srcu = vm.Srcu.Enter(current);
    }

    internal void CheckInvariants()
    {
        foreach (AddressSpace? space in _spaces)
        {
            space?.CheckInvariants();
        }
    }

    /// <summary>The slots of one address space, sorted by gfn and indexed by id.</summary>
    private sealed class AddressSpace
    {
        public List<Memslot> ByGfn { get; } = [];

        public Dictionary<int, Memslot> ById { get; } = [];

        public void Add(Memslot slot)
        {
            ByGfn.Insert(FirstEndingAfter(slot.BaseGfn), slot);
            ById.Add(slot.Id, slot);
        }

        public void Remove(Memslot slot)
        {
            ByGfn.RemoveAt(FirstEndingAfter(slot.BaseGfn));
            ById.Remove(slot.Id);
        }

        /// <summary>Index of the first slot whose end is above the gfn.</summary>
        public int FirstEndingAfter(ulong gfn)
        {
            int low = 0, high = ByGfn.Count;
            while (low < high)
            {
                int middle = (low + high) / 2;
                if (ByGfn[middle].BaseGfn + ByGfn[middle].Npages > gfn)
                {
                    high = middle;
                }
                else
                {
                    low = middle + 1;
                }
            }
            return low;
        }

        public Memslot? Overlapping(ulong baseGfn, ulong npages, Memslot? except)
        {
            for (int i = FirstEndingAfter(baseGfn); i < ByGfn.Count && ByGfn[i].BaseGfn < baseGfn + npages; i++)
            {
                if (ByGfn[i] != except)
                {
                    return ByGfn[i];
                }
            }
            return null;
        }

        public void CheckInvariants()
        {
            for (int i = 0; i < ByGfn.Count; i++)
            {
                Memslot slot = ByGfn[i];
                bool sorted = i == 0 || ByGfn[i - 1].BaseGfn + ByGfn[i - 1].Npages <= slot.BaseGfn;
                if (!sorted || slot.Npages is 0 or > MaxPages || ById.GetValueOrDefault(slot.Id) != slot || ById.Count != ByGfn.Count)
                {
                    throw new InvalidOperationException($"slot {slot.Id} at gfn 0x{slot.BaseGfn:x} breaks the order of slots");
                }
            }
        }
    }
}
