using SimKvm.Abi;
using SimKvm.Kvm.Historical;
using SimKvm.Profiles;
using SimKvm.Userspace;
using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimKvm.Kvm;

/// <summary>
/// What user space says of guest pages: private or shared (kvm->mem_attr_array). Written under slots_lock; the fault path reads it without and relies on the
/// invalidation sequence. A gfn has value 0 until it is set; no slot is needed; nothing here touches guest_memfd, RMP or page content.
/// </summary>
internal sealed partial class MemoryAttributes(Vm vm)
{
    private static readonly StepLabel StoredStep = new("attributes stored");

    public static readonly Rule NotBuilt = new(
        "kvm.attributes.not-built", "no VM type of this kernel has private memory, so the ioctl is not there", "kvm_vm_ioctl (CONFIG_KVM_VM_MEMORY_ATTRIBUTES)",
        "boot a host with SW_PROTECTED VMs or SEV-SNP");

    public static readonly Rule FlagsAreReserved = new(
        "kvm.attributes.flags", "flags of KVM_SET_MEMORY_ATTRIBUTES must be 0", "kvm_vm_ioctl_set_mem_attributes", "pass flags 0", "flags");

    public static readonly Rule Unsupported = new(
        "kvm.attributes.unsupported", "the VM does not support these attributes", "kvm_vm_ioctl_set_mem_attributes",
        "use KVM_MEMORY_ATTRIBUTE_PRIVATE (8), on a VM type with private memory (SW_PROTECTED, SNP); see KVM_CAP_MEMORY_ATTRIBUTES", "attributes", "supported");

    public static readonly Rule BadRange = new(
        "kvm.attributes.range", "the size is zero or the range wraps", "kvm_vm_ioctl_set_mem_attributes", "give a range that ends below 2^64", "address", "size");

    public static readonly Rule Unaligned = new(
        "kvm.attributes.alignment", "address and size must be page aligned", "kvm_vm_ioctl_set_mem_attributes", "align both to 4096", "address", "size");

    private readonly PageTree<ulong> _values = new();

    /// <summary>Attributes that this VM can set. With in-place conversion a guest_memfd says what is private, so the VM has none.</summary>
    public ulong Supported => vm.HasPrivateMem && vm.Host.Profile.InPlaceConversion == InPlaceConversion.None ? kvm_memory_attributes.PRIVATE : 0;

    /// <summary>kvm_mem_is_private().</summary>
    public bool IsPrivate(Gfn gfn) => vm.Host.Profile.InPlaceConversion == InPlaceConversion.None
        ? vm.Host.Profile.PrivateState == PrivateStateDesign.Attributes
            ? IsMarkedPrivate(gfn)
            : PrivatePages.StateOf(vm, vm.Memslots.Find(gfn), gfn) == PageState.Private
        : vm.Memslots.Find(gfn) is { GmemFile: { References: > 0 } file } slot && file.Inode.IsPrivate(gfn.Value - slot.BaseGfn + slot.GmemPgoff);

    /// <summary>The attribute PRIVATE is stored for the gfn, whatever the profile makes of it.</summary>
    public bool IsMarkedPrivate(Gfn gfn) => (this[gfn] & kvm_memory_attributes.PRIVATE) != 0;

    public bool AllEqual(GfnRange range, ulong attributes)
    {
        vm.Host.Machine.Reading(_values, range.Start.Value, range.End.Value);
        return _values.AllEqual(range, attributes);
    }

    public ulong this[Gfn gfn]
    {
        get
        {
            vm.Host.Machine.Reading(_values, gfn.Value, gfn.Value + 1);
            return _values[gfn.Value];
        }
    }

    internal IEnumerable<object> SharedState => [_values];

    /// <summary>What the map costs: it grows with the number of runs, not of pages.</summary>
    internal long ApproximateBytes => _values.ApproximateBytes;

    /// <summary>Where the run of equal values ends that a gfn lies in; for people.</summary>
    public ulong RunEnd(ulong gfn, ulong limit) => _values.TryFindFirstOther(gfn, limit, _values[gfn], out ulong end) ? end : limit;

    /// <summary>Runs of gfns with a value other than 0, in order.</summary>
    public IEnumerable<PageRun<ulong>> Runs()
    {
        ulong next = 0;
        while (next < GfnRange.Limit && _values.TryFindFirstOther(next, GfnRange.Limit, 0, out ulong start))
        {
            ulong value = _values[start];
            ulong end = _values.TryFindFirstOther(start, GfnRange.Limit, value, out ulong other) ? other : GfnRange.Limit;
            yield return new PageRun<ulong>(start, end, value);
            next = end;
        }
    }

    /// <summary>Stores a value without the protocol around it, which is the caller's.</summary>
    public void Store(KTask current, GfnRange range, ulong value)
    {
        current.Machine.Writing(_values, range.Start.Value, range.End.Value);
        _values.Set(range, value);
        current.Step(StoredStep, range.Start.Value, range.End.Value);
    }

    /// <summary>No gfn has a value that the VM does not support.</summary>
    public void CheckInvariants()
    {
        _values.CheckInvariants();
        foreach (PageRun<ulong> run in Runs())
        {
            if ((run.Value & ~Supported) != 0 && run.Value != PrivatePages.SharedByGuest)
            {
                throw new InvalidOperationException($"gfns {run} have attributes that the VM does not support");
            }
        }
    }

    /// <summary>KVM_SET_MEMORY_ATTRIBUTES. Order of checks as in kvm_vm_ioctl_set_mem_attributes.</summary>
    public Errno Set(KTask current, UserArg arg)
    {
        if (!Vm.PrivateMemoryIsBuilt(vm.Host))
        {
            return current.Fail(Errno.ENOTTY, NotBuilt);
        }
        Errno errno = arg.CopyIn(current, out kvm_memory_attributes args);
        if (errno != Errno.OK)
        {
            return errno;
        }
        errno = Check(current, args);
        if (errno != Errno.OK)
        {
            return errno;
        }
        return Set(current, GfnRange.FromBytes(args.address, args.size), args.attributes);
    }

    private Errno Check(KTask current, in kvm_memory_attributes args)
    {
        if (args.flags != 0)
        {
            return current.Fail(Errno.EINVAL, FlagsAreReserved, args.flags);
        }
        if ((args.attributes & ~Supported) != 0)
        {
            return current.Fail(Errno.EINVAL, Unsupported, args.attributes, Supported);
        }
        if (args.size == 0 || args.address + args.size < args.address)
        {
            return current.Fail(Errno.EINVAL, BadRange, args.address, args.size);
        }
        if (((args.address | args.size) & PageSize.OffsetMask) != 0)
        {
            return current.Fail(Errno.EINVAL, Unaligned, args.address, args.size);
        }
        return Errno.OK;
    }

    // kvm_vm_set_mem_attributes. Populate and slot changes rely on slots_lock, so attributes cannot move under them; the fault path does not take it and relies
    // on the invalidation sequence instead.
    private Errno Set(KTask current, GfnRange range, ulong attributes)
    {
        using var slotsLock = vm.SlotsLock.Enter(current);
        if (vm.Host.Profile.AttributesNoopShortcut && AllEqual(range, attributes))
        {
            return Errno.OK;
        }

        using Locking.LockScope mutex = vm.Host.Profile.RmpUpdateLock == RmpUpdateLock.Mutex ? vm.GmemRmpMutex.Enter(current) : default;

        // mmu_lock is taken, and seq moves, only if a slot overlaps.
        (Memslot Slot, GfnRange Range)[] slots = [.. vm.Memslots.Intersections(range)];
        if (slots.Length > 0)
        {
            using var mmu = vm.Mmu.Lock.Enter(current);
            vm.Mmu.InvalidateBegin(current);
            bool unmapped = false;
            foreach ((Memslot slot, GfnRange part) in slots)
            {
                vm.Mmu.InvalidateRangeAdd(current, part);
                unmapped |= vm.Backend.PreSetMemoryAttributes(current, slot, part, attributes);
            }
            vm.Mmu.FlushIf(current, unmapped);
        }

        Store(current, range, attributes);
        Errno errno = vm.Host.Profile.AttributesSetHook ? CallSetHook(current, slots, attributes) : Errno.OK;

        if (slots.Length > 0)
        {
            // The end comes before the first post hook.
            using var mmu = vm.Mmu.Lock.Enter(current);
            vm.Mmu.InvalidateEnd(current);
            foreach ((_, GfnRange part) in slots)
            {
                vm.Backend.PostSetMemoryAttributes(current, part, attributes);
            }
        }
        return errno;
    }

    // Outside mmu_lock, because RMP updates sleep; so nothing but slots_lock is held, which a punch hole does not take.
    private Errno CallSetHook(KTask current, (Memslot Slot, GfnRange Range)[] slots, ulong attributes)
    {
        using Locking.LockScope mmu = vm.Host.Profile.RmpUpdateLock == RmpUpdateLock.MmuLock ? vm.Mmu.Lock.Enter(current) : default;
        foreach ((Memslot slot, GfnRange part) in slots)
        {
            Errno errno = slot.HasGmem ? vm.Backend.GmemSetMemAttributes(current, slot, part, attributes) : Errno.OK;
            if (errno != Errno.OK)
            {
                return errno;
            }
        }
        return Errno.OK;
    }
}
