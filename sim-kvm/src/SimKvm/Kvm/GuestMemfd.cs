using SimKvm.Abi;
using SimKvm.Locking;
using SimKvm.Profiles;
using SimKvm.Userspace;
using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimKvm.Kvm;

/// <summary>
/// A guest_memfd file (struct gmem_file) with its inode: pages for guests that user space does not map by default. Here are creation, the file's calls and its
/// release; binding to slots is in <c>GuestMemfd.Binding.cs</c>, filling at launch in <c>GuestMemfd.Populate.cs</c>, the pages in <see cref="GmemInode"/>.
/// </summary>
/// <remarks>
/// Locks. Bindings change under slots_lock and invalidate_lock exclusive, and are read under either. Folios are made under invalidate_lock shared and go under
/// invalidate_lock exclusive, each with its folio lock.
/// Life. The file holds a reference to its VM. The last put unbinds all slots (they stay, without backing), drops the VM, then frees the pages; each page that
/// goes runs the architecture's free hook, so that no page leaves while hardware thinks it private.
/// </remarks>
internal sealed partial class GuestMemfd : KernelFile
{
    private static readonly StepLabel AllocateStep = new("gmem allocate");
    private static readonly StepLabel TruncateStep = new("gmem truncate");
    private static readonly StepLabel EarlyFreeHookStep = new("gmem free hook before truncation");

    public static readonly Rule UnknownFlags = new(
        "kvm.gmem.create.flags", "the flags are not known to this kernel, or not allowed for this VM type", "kvm_gmem_create",
        "see KVM_CAP_GUEST_MEMFD_FLAGS of the VM; MMAP exists since 6.18, INIT_SHARED only on VMs without private memory", "flags", "supported");

    public static readonly Rule BadSize = new(
        "kvm.gmem.create.size", "the size must be positive as a signed number and page aligned", "kvm_gmem_create", "give a multiple of 4096 below 2^63", "size");

    public static readonly Rule HugeUnaligned = new(
        "kvm.gmem.huge-alignment", "with KVM_GUEST_MEMFD_ALLOW_HUGEPAGE the file's size, and a slot's offset in it and size, are multiples of 2 MiB",
        "kvm_gmem_create, kvm_gmem_bind, RFC v11", "align them to 2 MiB, or leave the flag out", "offset", "size");

    public static readonly Rule UnsupportedMode = new(
        "kvm.gmem.fallocate.mode", "guest_memfd knows only KEEP_SIZE, alone or with PUNCH_HOLE", "kvm_gmem_fallocate",
        "use mode 1 to allocate, 3 to punch a hole", "mode");

    public static readonly Rule UnalignedRange = new(
        "kvm.gmem.fallocate.alignment", "offset and length must be page aligned", "kvm_gmem_fallocate", "align both to 4096", "offset", "len");

    public static readonly Rule BeyondSize = new(
        "kvm.gmem.allocate.size", "the range ends behind the file's size, which never changes", "kvm_gmem_allocate", "stay inside the size given at creation",
        "offset", "len", "size");

    public static readonly Rule Interrupted = new(
        "kvm.signal-pending", "a signal is pending for the caller", "signal_pending", "handle the signal and call again");

    public static readonly Rule NoMemory = new(
        "kvm.gmem.no-memory", "the simulated machine has no free page left", "__filemap_get_folio", "give the host more memory_bytes", "index");

    public static readonly Rule MmapNotEnabled = new(
        "kvm.gmem.mmap.flag", "the guest_memfd was made without GUEST_MEMFD_FLAG_MMAP", "kvm_gmem_mmap", "create it with flag 1 (6.18 and later)");

    public static readonly Rule MmapNotShared = new(
        "kvm.gmem.mmap.private", "a guest_memfd can be mapped shared only", "kvm_gmem_mmap", "use MAP_SHARED");

    public static readonly Rule FaultBeyondSize = new(
        "kvm.gmem.fault.size", "the access is behind the end of the file: SIGBUS", "kvm_gmem_fault_user_mapping", "stay inside the file", "index", "pages");

    public static readonly Rule FaultNotShared = new(
        "kvm.gmem.fault.not-shared", "the pages were not created shared, so the host may not touch them: SIGBUS", "kvm_gmem_fault_user_mapping",
        "create the guest_memfd with GUEST_MEMFD_FLAG_INIT_SHARED (2) as well");

    public static readonly Rule FaultPrivate = new(
        "kvm.gmem.fault.private", "the page is private now, so the host may not touch it: SIGBUS", "kvm_gmem_fault_user_mapping, in-place conversion",
        "convert it to shared with KVM_SET_MEMORY_ATTRIBUTES2 first", "index");

    private readonly Vm _vm;
    private readonly RangeMap<Memslot> _bindings = new();

    // Slots that were deleted while this file was dying, in kernels that leave the binding then.
    private readonly List<Memslot> _staleBindings = [];

    private GuestMemfd(Vm vm, ulong size, ulong flags)
    {
        _vm = vm;
        Inode = new GmemInode(vm.Host, size, flags);
        VfsInode = new VfsInode(evict: current => Inode.Truncate(current, 0, ulong.MaxValue));
        vm.Get();
    }

    public override FdKind Kind => FdKind.GuestMemfd;

    public override string Name => "[kvm-gmem]";

    public GmemInode Inode { get; }

    private const ulong HugeOffsetMask = (2UL << 20) - 1;

    // Flag 1 of the RFC of 2023, which merged kernels gave to MMAP.
    private static bool AllowsHugePages(SimHost host, ulong flags) =>
        host.Profile.PrivateMemory == PrivateMemoryDesign.GuestMemfdRfc && (flags & kvm_create_guest_memfd.KVM_GUEST_MEMFD_ALLOW_HUGEPAGE) != 0;

    /// <summary>Flags that KVM_CREATE_GUEST_MEMFD accepts on a VM; on /dev/kvm, on any VM.</summary>
    public static ulong SupportedFlags(SimHost host, Vm? vm) =>
        vm is { HasPrivateMem: true } ? host.Profile.GuestMemfdFlagsOfPrivateVm : host.Profile.GuestMemfdFlags;

    /// <summary>KVM_CREATE_GUEST_MEMFD. Nothing is allocated yet.</summary>
    public static SyscallResult Create(KTask current, Vm vm, UserArg arg)
    {
        Errno errno = arg.CopyIn(current, out kvm_create_guest_memfd args);
        if (errno != Errno.OK)
        {
            return errno;
        }
        ulong supported = SupportedFlags(vm.Host, vm);
        if ((args.flags & ~supported) != 0)
        {
            return current.Fail(Errno.EINVAL, UnknownFlags, args.flags, supported);
        }
        bool empty = args.size == 0 && !vm.Host.Profile.GuestMemfdSizeZero;
        if (empty || (long)args.size < 0 || (args.size & PageSize.OffsetMask) != 0)
        {
            return current.Fail(Errno.EINVAL, BadSize, args.size);
        }
        if (AllowsHugePages(vm.Host, args.flags) && (args.size & HugeOffsetMask) != 0)
        {
            return current.Fail(Errno.EINVAL, HugeUnaligned, 0, args.size);
        }
        errno = current.Process.Files.Reserve(current, out int fd);
        if (errno != Errno.OK)
        {
            return errno;
        }
        current.Process.Files.Install(fd, new GuestMemfd(vm, args.size, args.flags) { MtimeCall = current.Call });
        return SyscallResult.Of(fd);
    }

    internal override bool TryPeek(ulong index, out Pfn pfn)
    {
        bool present = Inode.TryGet(index, out Folio folio);
        pfn = folio.Pfn;
        return present;
    }

    /// <summary>kvm_gmem_fallocate, behind the VFS's checks.</summary>
    internal override Errno Fallocate(KTask current, uint mode, long offset, long len)
    {
        if ((mode & Vfs.KeepSize) == 0 || (mode & ~(Vfs.KeepSize | Vfs.PunchHole)) != 0)
        {
            return current.Fail(Errno.EOPNOTSUPP, UnsupportedMode, mode);
        }
        if ((((ulong)offset | (ulong)len) & PageSize.OffsetMask) != 0)
        {
            return current.Fail(Errno.EINVAL, UnalignedRange, (ulong)offset, (ulong)len);
        }
        return Changed(current, (mode & Vfs.PunchHole) != 0
            ? PunchHole(current, (ulong)offset, (ulong)len)
            : Allocate(current, (ulong)offset, (ulong)len));
    }

    // kvm_gmem_allocate. Pages that are there stay; pages made so far stay on an error; nothing is zeroed or prepared yet.
    private Errno Allocate(KTask current, ulong offset, ulong len)
    {
        if (offset + len > Inode.Size)
        {
            return current.Fail(Errno.EINVAL, BeyondSize, offset, len, Inode.Size);
        }
        using var invalidate = Inode.InvalidateLock.EnterShared(current);
        current.Step(AllocateStep, offset, len);
        for (ulong index = offset >> PageSize.Shift; index < (offset + len) >> PageSize.Shift; index++)
        {
            if (current.SignalPending)
            {
                return current.Fail(Errno.EINTR, Interrupted);
            }
            Errno errno = GetFolio(current, index, out Folio folio);
            if (errno != Errno.OK)
            {
                return errno;
            }
            // A folio may be more than a page.
            index |= (1UL << folio.Order) - 1;
        }
        return Errno.OK;
    }

    // kvm_gmem_punch_hole. No check against the size: a hole behind the end is no hole. Bindings must not change between begin and end, or the two would not
    // balance: that is what holding invalidate_lock over the whole is for.
    private Errno PunchHole(KTask current, ulong offset, ulong len)
    {
        ulong start = offset >> PageSize.Shift;
        ulong end = (offset + len) >> PageSize.Shift;
        RmpUpdateLock guard = _vm.Host.Profile.RmpUpdateLock;
        using LockScope slots = guard == RmpUpdateLock.SlotsLock ? _vm.SlotsLock.Enter(current) : default;
        using var invalidate = Inode.InvalidateLock.Enter(current);
        using LockScope mutex = guard == RmpUpdateLock.Mutex ? _vm.GmemRmpMutex.Enter(current) : default;
        InvalidateBegin(current, start, end, PunchHoleSides);
        using (LockScope mmu = guard == RmpUpdateLock.MmuLock ? _vm.Mmu.Lock.Enter(current) : default)
        {
            FreeBeforeTruncation(current, start, end);
            current.Step(TruncateStep, offset, len);
            VfsInode.UnmapMappingRange(current, start, end);
            Inode.Truncate(current, start, end);
        }
        InvalidateEnd(current, start, end);
        return Errno.OK;
    }

    private Stage2Sides PunchHoleSides => _vm.Host.Profile.PunchHoleFilter switch
    {
        GmemInvalidateFilter.Private => Stage2Sides.Private,
        GmemInvalidateFilter.ByFile => Inode.InitShared ? Stage2Sides.Shared : Stage2Sides.Private,
        _ => Stage2Sides.Both,
    };

    // RFC v11 with SNP: pages are given back to the host before they leave the file. Whoever makes one private again in between brings the host down (seed 001).
    private void FreeBeforeTruncation(KTask current, ulong start, ulong end)
    {
        if (_vm.Host.Profile.FreeHook != GmemFreeHook.BeforeTruncation)
        {
            return;
        }
        foreach ((ulong first, ulong last, Folio folio) in Inode.FolioRuns(start, Math.Min(end, PageTree<ulong>.Limit)).ToArray())
        {
            for (ulong i = 0; i < last - first; i++)
            {
                current.Step(EarlyFreeHookStep, first + i, folio.Pfn.Value + i);
                _vm.Host.KvmAmd.GmemInvalidate(current, folio.Pfn + i);
            }
        }
    }

    /// <summary>kvm_gmem_mmap.</summary>
    internal override Errno Mmap(KTask current, in FileMapping mapping)
    {
        if (_vm.Host.Profile.PrivateMemory != PrivateMemoryDesign.GuestMemfd || (Inode.Flags & kvm_create_guest_memfd.GUEST_MEMFD_FLAG_MMAP) == 0)
        {
            return current.Fail(Errno.ENODEV, MmapNotEnabled);
        }
        return mapping.Shared ? Errno.OK : current.Fail(Errno.EINVAL, MmapNotShared);
    }

    /// <summary>kvm_gmem_fault_user_mapping. EFAULT stands for SIGBUS: it is what a copy by the kernel answers.</summary>
    internal override Errno Fault(KTask current, ulong index, out Pfn pfn)
    {
        pfn = default;
        ulong pages = Inode.Size >> PageSize.Shift;
        if (index >= pages)
        {
            return current.Fail(Errno.EFAULT, FaultBeyondSize, index, pages);
        }
        if (_vm.Host.Profile.InPlaceConversion == InPlaceConversion.None)
        {
            return Inode.InitShared ? FaultShared(current, index, out pfn) : current.Fail(Errno.EFAULT, FaultNotShared);
        }
        using var invalidate = Inode.InvalidateLock.EnterShared(current);
        return Inode.IsPrivate(index) ? current.Fail(Errno.EFAULT, FaultPrivate, index) : FaultShared(current, index, out pfn);
    }

    internal override bool StillGives(ulong index, Pfn pfn) =>
        Inode.TryGet(index, out Folio folio) && folio.Pfn == pfn && (_vm.Host.Profile.InPlaceConversion == InPlaceConversion.None || !Inode.IsPrivate(index));

    private Errno FaultShared(KTask current, ulong index, out Pfn pfn)
    {
        pfn = default;
        while (true)
        {
            Errno errno = GetFolio(current, index, out Folio folio);
            if (errno != Errno.OK)
            {
                return errno;
            }
            using var locked = SimLock.EnterFolio(current, folio.Pfn.Value);
            if (!IsStillThere(index, ref folio))
            {
                continue;
            }
            if (folio.Poisoned)
            {
                return current.Fail(Errno.EHWPOISON, Poisoned, index, folio.Pfn.Value);
            }
            Inode.ZeroIfNeeded(current, index, folio);
            pfn = folio.Pfn;
            return Errno.OK;
        }
    }

    // kvm_gmem_release
    internal override void Release(KTask current)
    {
        using (_vm.SlotsLock.Enter(current))
        using (Inode.InvalidateLock.Enter(current))
        {
            foreach (Memslot freed in _staleBindings)
            {
                current.Machine.Findings.Report(
                    current, "stale-binding", "the release of a guest_memfd walks into a slot that was freed while the file was dying",
                    [Operand.Of("slot#", (ulong)freed.Id), Operand.Of("gfn", freed.BaseGfn)], [$"call {current.Call} releases the file"]);
            }
            foreach ((_, Memslot slot) in _bindings.Enumerate())
            {
                current.Machine.Writing(slot);
                slot.GmemFile = null;
            }
            // Over everything, not up to the size: old kernels let a binding stand behind it.
            InvalidateBegin(current, 0, ulong.MaxValue, Stage2Sides.Both);
            FreeBeforeTruncation(current, 0, ulong.MaxValue);
            InvalidateEnd(current, 0, ulong.MaxValue);
            current.Machine.Writing(_bindings);
            _bindings.Clear();
        }
        _vm.Put(current);
        VfsInode.Put(current);
    }

    // kvm_gmem_invalidate_begin: begins when the first slot that is bound in the range is met; without one there is no begin, no mmu_lock and no change of seq.
    private void InvalidateBegin(KTask current, ulong start, ulong end, Stage2Sides sides)
    {
        if (!_bindings.Overlaps(start, end) && !_vm.Host.Profile.InvalidateBeginsUnconditionally)
        {
            return;
        }
        using var mmu = _vm.Mmu.Lock.Enter(current);
        _vm.Mmu.InvalidateBegin(current);
        bool unmapped = false;
        foreach ((AddressRange bound, Memslot slot) in _bindings.Enumerate(start, end))
        {
            ulong first = Math.Max(bound.Start, start);
            ulong last = Math.Min(bound.End, end);
            var range = new GfnRange(new Gfn(slot.BaseGfn + first - slot.GmemPgoff), new Gfn(slot.BaseGfn + last - slot.GmemPgoff));
            _vm.Mmu.InvalidateRangeAdd(current, range);
            unmapped |= _vm.Mmu.UnmapUnflushed(current, range, sides);
        }
        _vm.Mmu.FlushIf(current, unmapped);
    }

    private void InvalidateEnd(KTask current, ulong start, ulong end)
    {
        if (_bindings.Overlaps(start, end))
        {
            using var mmu = _vm.Mmu.Lock.Enter(current);
            _vm.Mmu.InvalidateEnd(current);
        }
    }
}
