using SimKvm.Abi;
using SimKvm.Profiles;
using SimKvm.Userspace;
using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimKvm.Kvm;

// Binding a file's pages to a slot, and undoing it. Called while slots_lock is held.
internal sealed partial class GuestMemfd
{
    private static readonly StepLabel BindStep = new("gmem bind");
    private static readonly StepLabel UnbindStep = new("gmem unbind");

    public static readonly Rule NotAGuestMemfd = new(
        "kvm.gmem.bind.file", "the descriptor is not a guest_memfd", "kvm_gmem_bind", "use what KVM_CREATE_GUEST_MEMFD gave", "fd#");

    public static readonly Rule OtherVm = new(
        "kvm.gmem.bind.other-vm", "the guest_memfd belongs to another VM", "kvm_gmem_bind", "create one on this VM", "fd#");

    public static readonly Rule BindRange = new(
        "kvm.gmem.bind.range", "the offset is not page aligned, or offset + size is behind the end of the file", "kvm_gmem_bind",
        "bind inside the size given at creation", "offset", "size", "file_size");

    public static readonly Rule AlreadyBound = new(
        "kvm.gmem.bind.overlap", "a page of the range is bound to a slot already", "kvm_gmem_bind", "delete that slot, or bind other pages",
        "offset", "size", "bound_slot#", "bound_gfn");

    /// <summary>kvm_gmem_bind.</summary>
    public static Errno Bind(KTask current, Vm vm, Memslot slot, uint fd, ulong offset)
    {
        vm.SlotsLock.AssertHeld(current);
        if (current.Process.Files.Lookup(current, (int)fd, out KernelFile? file) != Errno.OK)
        {
            return vm.Host.Profile.BindBadFd;
        }
        if (file is not GuestMemfd gmem)
        {
            return current.Fail(Errno.EINVAL, NotAGuestMemfd, fd);
        }
        if (gmem._vm != vm)
        {
            return current.Fail(Errno.EINVAL, OtherVm, fd);
        }
        ulong size = slot.Npages << PageSize.Shift;
        bool outside = vm.Host.Profile.BindOffsetSigned
            ? (long)offset < 0 || unchecked((long)offset + (long)size) > (long)gmem.Inode.Size
            : offset + size > gmem.Inode.Size || offset + size < offset;
        if ((offset & PageSize.OffsetMask) != 0 || outside)
        {
            return current.Fail(Errno.EINVAL, BindRange, offset, size, gmem.Inode.Size);
        }
        if (AllowsHugePages(vm.Host, gmem.Inode.Flags) && ((offset | size) & HugeOffsetMask) != 0)
        {
            return current.Fail(Errno.EINVAL, HugeUnaligned, offset, size);
        }

        using var invalidate = gmem.Inode.InvalidateLock.Enter(current);
        ulong start = offset >> PageSize.Shift;
        ulong end = start + slot.Npages;
        foreach ((_, Memslot bound) in gmem._bindings.Enumerate(start, end))
        {
            return current.Fail(vm.Host.Profile.BindOverlap, AlreadyBound, offset, size, (ulong)bound.Id, bound.BaseGfn);
        }
        current.Step(BindStep, start, slot.BaseGfn);
        current.Machine.Writing(slot);
        current.Machine.Writing(gmem._bindings, start, end);
        slot.GmemFile = gmem;
        slot.GmemPgoff = start;
        if (gmem.BacksSharedToo)
        {
            slot.Flags |= KvmMem.MEMSLOT_GMEM_ONLY;
        }
        gmem._bindings.Add(start, end, slot);
        return Errno.OK;
    }

    // Guests find their shared pages in the file as well: kvm_gmem_supports_mmap, or any file where pages convert in place.
    private bool BacksSharedToo => _vm.Host.Profile.InPlaceConversion != InPlaceConversion.None
        || (_vm.Host.Profile.PrivateMemory == PrivateMemoryDesign.GuestMemfd && (Inode.Flags & kvm_create_guest_memfd.GUEST_MEMFD_FLAG_MMAP) != 0);

    /// <summary>kvm_gmem_unbind. Nothing to do where the file is gone.</summary>
    public static void Unbind(KTask current, Vm vm, Memslot slot)
    {
        vm.SlotsLock.AssertHeld(current);
        if (slot.GmemFile is not { } gmem)
        {
            return;
        }
        current.Machine.Reading(gmem);
        if (gmem.References == 0)
        {
            // The file is dying: its release waits for slots_lock. Newer kernels erase without the lock; older ones leave the binding to a slot that goes.
            if (vm.Host.Profile.UnbindOfDyingFile)
            {
                gmem.Erase(current, slot);
            }
            else
            {
                gmem._staleBindings.Add(slot);
            }
            return;
        }
        using var invalidate = gmem.Inode.InvalidateLock.Enter(current);
        gmem.Erase(current, slot);
    }

    private void Erase(KTask current, Memslot slot)
    {
        current.Step(UnbindStep, slot.GmemPgoff, slot.BaseGfn);
        current.Machine.Writing(slot);
        current.Machine.Writing(_bindings, slot.GmemPgoff, slot.GmemPgoff + slot.Npages);
        _bindings.Remove(slot.GmemPgoff, slot.GmemPgoff + slot.Npages, (bound, _) => bound);
        slot.GmemFile = null;
    }

    internal override IEnumerable<object> SharedState => [this, _bindings, .. Inode.SharedState];

    /// <summary>The VM that the file was made on.</summary>
    public Vm Vm => _vm;

    /// <summary>Each binding is of a slot of the VM that names this file at these pages, and the other way round.</summary>
    public void CheckInvariants()
    {
        Inode.CheckInvariants();
        _bindings.CheckInvariants();
        foreach ((AddressRange range, Memslot slot) in _bindings.Enumerate())
        {
            bool agree = slot.GmemFile == this && slot.GmemPgoff == range.Start && slot.Npages == range.Length && _vm.Memslots.All.Contains(slot);
            if (!agree)
            {
                throw new InvalidOperationException($"pages {range} of a guest_memfd are bound to slot {slot.Id}, which does not say so");
            }
        }
        foreach (Memslot slot in _vm.Memslots.All)
        {
            if (slot.GmemFile == this && BoundSlot(slot.GmemPgoff) != slot)
            {
                throw new InvalidOperationException($"slot {slot.Id} names a guest_memfd that is not bound to it");
            }
        }
    }

    /// <summary>The slot that a page of this file is bound to, or null.</summary>
    public Memslot? BoundSlot(ulong index)
    {
        _vm.Host.Machine.Reading(_bindings, index, index + 1);
        return _bindings.TryFind(index, out _, out Memslot? slot) ? slot : null;
    }
}
