using SimKvm.Locking;
using SimKvm.Userspace;
using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimKvm.Kvm.Historical;

/// <summary>
/// A private file of the designs before guest_memfd: a shmem file whose content user space cannot reach, and which tells the slots that are bound to it when pages go
/// (memfile_notifier in UPM v4 to v7, restrictedmem_notifier in v9/v10). What the two designs share is here: a size that is set once, pages, binding and its end.
/// <see cref="InaccessibleMemfd"/> and <see cref="RestrictedMem"/> are the two.
/// </summary>
/// <remarks>
/// Unlike a guest_memfd the file belongs to no VM, and a slot that is bound to it holds a reference: it lives on after its descriptors are closed, until the last slot goes.
/// Locks. Bindings and pages change under the file's own lock (inode lock of shmem, rwsem of restrictedmem), which nests in slots_lock and outside mmu_lock.
/// </remarks>
internal abstract class BackingStoreFile(SimHost host) : KernelFile
{
    private static readonly StepLabel BindStep = new("private file bind");
    private static readonly StepLabel UnbindStep = new("private file unbind");
    private static readonly StepLabel AllocateStep = new("private file allocate");
    private static readonly StepLabel TruncateStep = new("private file truncate");
    private static readonly StepLabel FolioStep = new("private file page lookup");

    public static readonly Rule SizeIsSet = new(
        "kvm.private-file.size-once", "the size of a private file is set once, and never changed", "shmem_setattr, UPM v7; restrictedmem_setattr, UPM v10",
        "make another file", "size", "wanted");

    public static readonly Rule SizeUnaligned = new(
        "kvm.private-file.size-alignment", "the size of a private file is a multiple of 4096", "shmem_setattr, UPM v7; restrictedmem_setattr, UPM v10", "align it to 4096",
        "wanted");

    public static readonly Rule RangeUnaligned = new(
        "kvm.private-file.fallocate-alignment", "offset and length of an allocation or a hole are multiples of 4096", "shmem_fallocate, UPM v7; restrictedmem_punch_hole, v10",
        "align both to 4096", "offset", "len");

    public static readonly Rule UnsupportedMode = new(
        "kvm.private-file.fallocate-mode", "shmem knows allocation, KEEP_SIZE, and PUNCH_HOLE with KEEP_SIZE", "shmem_fallocate", "use mode 0, 1 or 3", "mode");

    public static readonly Rule NotAPrivateFile = new(
        "kvm.private-file.bind-file", "the descriptor is no private file of this kernel's design", "memfile_register_notifier, UPM v7; kvm_restrictedmem_bind, v10",
        "use what memfd_create with MFD_INACCESSIBLE (8), or memfd_restricted, gave", "fd#");

    public static readonly Rule BehindTheEnd = new(
        "kvm.private-file.size", "the page is behind the end of the private file", "shmem_getpage_gfp", "set the size with ftruncate before the guest runs", "index", "pages");

    private readonly List<Binding> _bindings = [];

    public override FdKind Kind => FdKind.Memfd;

    protected SimHost Host => host;

    /// <summary>The pages; null until the size is set.</summary>
    public GmemInode? Inode { get; private set; }

    public ulong Size => Inode?.Size ?? 0;

    /// <summary>Bindings to slots, in the order in which they were made.</summary>
    protected IReadOnlyList<Binding> Bindings => _bindings;

    protected SimLock Lock { get; } = new(LockOrder.Invalidate);

    internal override FMode Methods => FMode.Lseek | FMode.Pread | FMode.Pwrite | FMode.CanRead | FMode.CanWrite;

    internal override FileStat Stat() => new(Size, 0x81ff, (Inode?.CountPages() ?? 0) << (PageSize.Shift - 9));

    internal override IEnumerable<object> SharedState => [this, Lock, .. Inode?.SharedState ?? []];

    /// <summary>ftruncate(2): once.</summary>
    internal override Errno Truncate(KTask current, long length)
    {
        if (Size != 0)
        {
            return current.Fail(Errno.EPERM, SizeIsSet, Size, (ulong)length);
        }
        if (((ulong)length & PageSize.OffsetMask) != 0)
        {
            return current.Fail(Errno.EINVAL, SizeUnaligned, (ulong)length);
        }
        Inode = length == 0 ? null : new GmemInode(host, (ulong)length, 0);
        return Errno.OK;
    }

    /// <summary>fallocate(2), behind the VFS's checks.</summary>
    internal override Errno Fallocate(KTask current, uint mode, long offset, long len)
    {
        if ((mode & ~(Vfs.KeepSize | Vfs.PunchHole)) != 0)
        {
            return current.Fail(Errno.EOPNOTSUPP, UnsupportedMode, mode);
        }
        if ((((ulong)offset | (ulong)len) & PageSize.OffsetMask) != 0)
        {
            return current.Fail(Errno.EINVAL, RangeUnaligned, (ulong)offset, (ulong)len);
        }
        ulong start = (ulong)offset >> PageSize.Shift;
        ulong end = start + ((ulong)len >> PageSize.Shift);
        if ((mode & Vfs.PunchHole) != 0)
        {
            PunchHole(current, start, Math.Min(end, Inode?.Pages ?? 0));
            return Errno.OK;
        }
        // An allocation behind the end would grow the file, or keep pages that nobody can bind.
        return end > (Inode?.Pages ?? 0)
            ? current.Fail(Errno.EPERM, SizeIsSet, Size, (ulong)offset + (ulong)len)
            : Allocate(current, start, end);
    }

    /// <summary>Binds a slot that is being created (kvm_private_mem_register, kvm_restrictedmem_bind).</summary>
    public static Errno Bind(KTask current, Vm vm, Memslot slot, uint fd, ulong offset)
    {
        vm.SlotsLock.AssertHeld(current);
        if (current.Process.Files.Lookup(current, (int)fd, out KernelFile? file) != Errno.OK)
        {
            return vm.Host.Profile.BindBadFd;
        }
        if (file is not BackingStoreFile store)
        {
            return current.Fail(Errno.EINVAL, NotAPrivateFile, fd);
        }
        ulong start = offset >> PageSize.Shift;
        using var locked = store.Lock.Enter(current);
        Errno errno = store.CheckBinding(current, start, start + slot.Npages);
        if (errno != Errno.OK)
        {
            return errno;
        }
        current.Step(BindStep, start, slot.BaseGfn);
        store.Get();
        store._bindings.Add(new Binding(vm, slot, start));
        slot.PrivateFile = store;
        slot.PrivatePgoff = start;
        return Errno.OK;
    }

    /// <summary>Ends a slot's binding; what the guest has of the file's pages goes, and the slot's reference.</summary>
    public static void Unbind(KTask current, Vm vm, Memslot slot)
    {
        if (slot.PrivateFile is not { } store)
        {
            return;
        }
        using (store.Lock.Enter(current))
        {
            current.Step(UnbindStep, slot.PrivatePgoff, slot.BaseGfn);
            store._bindings.RemoveAll(binding => binding.Slot == slot);
            slot.PrivateFile = null;
        }
        store.Put(current);
    }

    /// <summary>The page at an index, if it is there.</summary>
    public bool IsPresent(ulong index) => Inode is not null && Inode.TryGet(index, out _);

    /// <summary>The page at an index for a guest or the host, made and cleared if it is not there.</summary>
    public Errno GetPage(KTask current, ulong index, out Pfn pfn)
    {
        pfn = default;
        current.Step(FolioStep, index);
        ulong pages = Inode?.Pages ?? 0;
        if (index >= pages)
        {
            return current.Fail(Errno.EINVAL, BehindTheEnd, index, pages);
        }
        if (!Inode!.TryGetOrCreate(index, out Folio folio, out bool created))
        {
            return current.Fail(Errno.ENOMEM, GuestMemfd.NoMemory, index);
        }
        if (created)
        {
            using var locked = SimLock.EnterFolio(current, folio.Pfn.Value);
            if (!Inode.TryGet(index, out Folio now) || now.Pfn != folio.Pfn)
            {
                // A hole took it while its lock was waited for.
                return GetPage(current, index, out pfn);
            }
            Inode.ZeroIfNeeded(current, index, now);
        }
        if (folio.Poisoned)
        {
            return current.Fail(Errno.EHWPOISON, GuestMemfd.Poisoned, index, folio.Pfn.Value);
        }
        pfn = folio.Pfn;
        return Errno.OK;
    }

    internal override void Release(KTask current) => Inode?.Truncate(current, 0, ulong.MaxValue);

    /// <summary>What a design asks of a binding to pages [start, end). The lock is held.</summary>
    protected virtual Errno CheckBinding(KTask current, ulong start, ulong end) => Errno.OK;

    /// <summary>Takes pages [start, end) out of the file, with the notifications of the design around it.</summary>
    protected abstract void PunchHole(KTask current, ulong start, ulong end);

    /// <summary>Pages [start, end) are about to be there. Where presence is what makes a page private, guests lose what they have mapped instead.</summary>
    protected virtual void BeforeAllocation(KTask current, ulong start, ulong end)
    {
    }

    /// <summary>The pages leave the file. The lock is held.</summary>
    protected void RemovePages(KTask current, ulong start, ulong end)
    {
        current.Step(TruncateStep, start, end);
        Inode?.Truncate(current, start, end);
    }

    /// <summary>The gfns of a binding that pages [start, end) of the file are, or an empty range.</summary>
    protected static GfnRange GfnsOf(in Binding binding, ulong start, ulong end)
    {
        ulong first = Math.Max(binding.Start, start);
        ulong last = Math.Min(binding.Start + binding.Slot.Npages, end);
        ulong gfn = binding.Slot.BaseGfn - binding.Start;
        return first < last ? new GfnRange(new Gfn(gfn + first), new Gfn(gfn + last)) : default;
    }

    // shmem_fallocate: an allocation that cannot be finished takes back what it made.
    private Errno Allocate(KTask current, ulong start, ulong end)
    {
        using var locked = Lock.Enter(current);
        current.Step(AllocateStep, start, end);
        BeforeAllocation(current, start, end);
        var made = new List<ulong>();
        for (ulong index = start; index < end; index++)
        {
            bool present = IsPresent(index);
            Errno errno = current.SignalPending ? current.Fail(Errno.EINTR, GuestMemfd.Interrupted) : GetPage(current, index, out _);
            if (errno != Errno.OK)
            {
                made.ForEach(each => Inode!.Truncate(current, each, each + 1));
                return errno;
            }
            if (!present)
            {
                made.Add(index);
            }
        }
        return Errno.OK;
    }

    /// <summary>A slot that uses pages of the file, from <paramref name="Start"/> on.</summary>
    protected readonly record struct Binding(Vm Vm, Memslot Slot, ulong Start);
}
