using SimKvm.Locking;
using SimKvm.Profiles;
using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimKvm.Kvm;

/// <summary>
/// The source of one page of initial content. Up to 6.19 it is a user address that the callback reads; since 7.0 it is a page that populate has pinned.
/// </summary>
/// <param name="Exists">False for a NULL source.</param>
/// <param name="Uaddr">User address.</param>
/// <param name="Page">The pinned frame, where the generation pins.</param>
internal readonly record struct PopulateSource(bool Exists, ulong Uaddr, Pfn? Page);

/// <summary>The vendor's half of kvm_gmem_populate: makes one page private and hands it to firmware (post_populate).</summary>
internal delegate Errno PostPopulate(KTask current, Gfn gfn, Pfn pfn, in PopulateSource source);

// kvm_gmem_populate: initial content of private pages, at launch. Reached through vendor ioctls, which hold slots_lock, so that attributes cannot move. The two
// generations stand side by side, each whole.
internal sealed partial class GuestMemfd
{
    private static readonly StepLabel PopulateStep = new("gmem populate page");

    public static readonly Rule BadCount = new(
        "kvm.gmem.populate.npages", "the number of pages is negative, or zero since 6.18", "kvm_gmem_populate", "populate at least one page", "npages#");

    public static readonly Rule SourceUnaligned = new(
        "kvm.gmem.populate.source-alignment", "the source is not page aligned", "kvm_gmem_populate, 7.0", "align the source to 4096", "uaddr");

    public static readonly Rule NoGmemSlot = new(
        "kvm.gmem.populate.slot", "no slot has the gfn, or the slot has no guest_memfd", "kvm_gmem_populate",
        "create a slot with KVM_MEM_GUEST_MEMFD over the gpa", "gfn", "gpa");

    public static readonly Rule FileGone = new(
        "kvm.gmem.file-gone", "the slot's guest_memfd was closed", "kvm_gmem_get_file", "keep the guest_memfd open while its slot is used", "gfn", "slot#");

    public static readonly Rule GfnNotPrivate = new(
        "kvm.gmem.populate.gfn-not-private", "the page is not private: KVM_MEMORY_ATTRIBUTE_PRIVATE is not set", "kvm_gmem_populate",
        "set the attribute PRIVATE (8) on the range with KVM_SET_MEMORY_ATTRIBUTES before the launch update", "gpa", "gfn", "slot#", "attributes");

    public static readonly Rule AlreadyPrepared = new(
        "kvm.gmem.populate.prepared", "the page was populated or used by the guest before", "kvm_gmem_populate, 6.11 to 6.19",
        "populate each page once; punch a hole to start over", "gpa", "gfn", "slot#", "pfn");

    public static readonly Rule AlreadyThere = new(
        "kvm.gmem.populate.exists", "the file has the page already, by fallocate or by an earlier populate", "kvm_gmem_populate, posting of 2024-04-04",
        "populate before anything else allocates the page; punch a hole to start over", "gpa", "gfn", "slot#", "pfn");

    /// <returns>Pages done, at least one; or why not even the first could be.</returns>
    public static SyscallResult Populate(KTask current, Vm vm, Gfn gfn, ulong uaddr, long npages, bool mayWriteBack, PostPopulate postPopulate) =>
        vm.Host.Profile.Populate switch
        {
            PopulateDesign.CreateOnly => PopulateCreateOnly(current, vm, gfn, uaddr, npages, postPopulate),
            PopulateDesign.WholeLoop => PopulateWholeLoop(current, vm, gfn, uaddr, npages, postPopulate),
            PopulateDesign.PerPage => PopulatePerPage(current, vm, gfn, uaddr, npages, mayWriteBack, postPopulate),
            _ => throw new InvalidOperationException($"no VM type of {vm.Host.Profile} populates"),
        };

    // April 2024 posting. Only a page that is not in the file yet can be populated, so that one which a guest uses is never overwritten; the price is that a page whose
    // callback fails must be punched out again, and that fallocate before the launch is in the way. Nothing looks at attributes or signals.
    private static SyscallResult PopulateCreateOnly(KTask current, Vm vm, Gfn gfn, ulong uaddr, long npages, PostPopulate postPopulate)
    {
        vm.SlotsLock.AssertHeld(current);
        if (npages < 0)
        {
            return current.Fail(Errno.EINVAL, BadCount, (ulong)npages);
        }
        Errno errno = FindTarget(current, vm, gfn, out Memslot slot, out GuestMemfd file);
        if (errno != Errno.OK)
        {
            return errno;
        }
        using var invalidate = file.Inode.InvalidateLock.Enter(current);

        npages = (long)Math.Min(slot.Npages - (gfn.Value - slot.BaseGfn), (ulong)npages);
        long i;
        for (i = 0; i < npages; i++)
        {
            Gfn each = gfn + (ulong)i;
            ulong index = each.Value - slot.BaseGfn + slot.GmemPgoff;
            ulong from = uaddr == 0 ? 0 : uaddr + ((ulong)i << PageSize.Shift);
            errno = file.PopulateNewPage(current, slot, each, index, from, postPopulate);
            if (errno != Errno.OK)
            {
                break;
            }
        }
        return errno != Errno.OK && i == 0 ? errno : SyscallResult.Of(i);
    }

    private Errno PopulateNewPage(KTask current, Memslot slot, Gfn gfn, ulong index, ulong uaddr, PostPopulate postPopulate)
    {
        current.Step(PopulateStep, index);
        if (BoundSlot(index) != slot)
        {
            return current.Fail(Errno.EIO, BoundElsewhere, gfn.Value, (ulong)slot.Id, index);
        }
        if (Inode.TryGet(index, out Folio there))
        {
            return current.Fail(Errno.EEXIST, AlreadyThere, gfn.ToGpa().Value, gfn.Value, (ulong)slot.Id, there.Pfn.Value);
        }
        if (!Inode.TryGetOrCreate(index, out Folio folio, out _))
        {
            return current.Fail(Errno.ENOMEM, NoMemory, index);
        }
        using (SimLock.EnterFolio(current, folio.Pfn.Value))
        {
            Inode.ZeroIfNeeded(current, index, folio);
        }
        Errno errno = _vm.Host.Profile.PopulatePrepares ? CallPrepare(current, gfn, folio) : Errno.OK;
        errno = errno != Errno.OK ? errno : postPopulate(current, gfn, folio.Pfn, new PopulateSource(uaddr != 0, uaddr, null));
        if (errno != Errno.OK)
        {
            InvalidateBegin(current, index, index + 1, Stage2Sides.Both);
            Inode.Truncate(current, index, index + 1);
            InvalidateEnd(current, index, index + 1);
        }
        return errno;
    }

    // 6.11 to 6.19. The source is read by the callback, inside the invalidate lock.
    private static SyscallResult PopulateWholeLoop(KTask current, Vm vm, Gfn gfn, ulong uaddr, long npages, PostPopulate postPopulate)
    {
        vm.SlotsLock.AssertHeld(current);
        if (npages < (vm.Host.Profile.PopulateRefusesNothing ? 1 : 0))
        {
            return current.Fail(Errno.EINVAL, BadCount, (ulong)npages);
        }
        Errno errno = FindTarget(current, vm, gfn, out Memslot slot, out GuestMemfd file);
        if (errno != Errno.OK)
        {
            return errno;
        }
        using var invalidate = file.Inode.InvalidateLock.Enter(current);

        npages = (long)Math.Min(slot.Npages - (gfn.Value - slot.BaseGfn), (ulong)npages);
        long i;
        for (i = 0; i < npages; i++)
        {
            Gfn each = gfn + (ulong)i;
            ulong index = each.Value - slot.BaseGfn + slot.GmemPgoff;
            errno = current.SignalPending ? current.Fail(Errno.EINTR, Interrupted) : Errno.OK;
            if (errno == Errno.OK)
            {
                errno = file.GetPopulateFolio(current, index, slot, each, out Folio folio);
                if (errno == Errno.OK)
                {
                    errno = PopulateWholeLoopPage(current, vm, file, slot, each, index, folio, uaddr == 0 ? 0 : uaddr + ((ulong)i << PageSize.Shift), postPopulate);
                }
            }
            if (errno != Errno.OK)
            {
                break;
            }
        }
        return errno != Errno.OK && i == 0 ? errno : SyscallResult.Of(i);
    }

    private static Errno PopulateWholeLoopPage(
        KTask current, Vm vm, GuestMemfd file, Memslot slot, Gfn gfn, ulong index, in Folio folio, ulong uaddr, PostPopulate postPopulate)
    {
        if (folio.Uptodate)
        {
            return current.Fail(Errno.EEXIST, AlreadyPrepared, gfn.ToGpa().Value, gfn.Value, (ulong)slot.Id, folio.Pfn.Value);
        }
        Errno errno = CheckPrivate(current, vm, slot, gfn);
        if (errno != Errno.OK)
        {
            return errno;
        }
        errno = postPopulate(current, gfn, folio.Pfn, new PopulateSource(uaddr != 0, uaddr, null));
        if (errno == Errno.OK)
        {
            file.Inode.MarkUptodate(index, folio);
        }
        return errno;
    }

    // 7.0 and later. The source page is pinned first: user memory may fault, and a fault may need locks that are outside the invalidate lock.
    private static SyscallResult PopulatePerPage(KTask current, Vm vm, Gfn gfn, ulong uaddr, long npages, bool mayWriteBack, PostPopulate postPopulate)
    {
        vm.SlotsLock.AssertHeld(current);
        if (npages <= 0)
        {
            return current.Fail(Errno.EINVAL, BadCount, (ulong)npages);
        }
        if ((uaddr & PageSize.OffsetMask) != 0)
        {
            return current.Fail(Errno.EINVAL, SourceUnaligned, uaddr);
        }
        Errno errno = FindTarget(current, vm, gfn, out Memslot slot, out GuestMemfd file);
        if (errno != Errno.OK)
        {
            return errno;
        }
        bool writable = mayWriteBack && vm.Host.Profile.PopulatePinsWritable;
        // A pinned page is not converted, and lives on when it is unmapped. With one call at a time nobody could notice, and it is not counted.
        bool held = current.Machine.Baton is not null;
        npages = (long)Math.Min(slot.Npages - (gfn.Value - slot.BaseGfn), (ulong)npages);
        long i;
        for (i = 0; i < npages; i++)
        {
            if (current.SignalPending)
            {
                errno = current.Fail(Errno.EINTR, Interrupted);
                break;
            }
            PopulateSource source = default;
            if (uaddr != 0)
            {
                ulong from = uaddr + ((ulong)i << PageSize.Shift);
                errno = current.Process.Memory.Pin(current, from, writable, out Pfn page, held);
                if (errno != Errno.OK)
                {
                    break;
                }
                source = new PopulateSource(true, from, page);
            }
            errno = PopulateOnePage(current, vm, file, slot, gfn + (ulong)i, source, postPopulate);
            if (held && source.Page is { } pinned)
            {
                current.Host.PagePins.Unpin(current, pinned);
            }
            if (errno != Errno.OK)
            {
                break;
            }
        }
        return errno != Errno.OK && i == 0 ? errno : SyscallResult.Of(i);
    }

    private static Errno PopulateOnePage(KTask current, Vm vm, GuestMemfd file, Memslot slot, Gfn gfn, in PopulateSource source, PostPopulate postPopulate)
    {
        using var invalidate = file.Inode.InvalidateLock.Enter(current);
        ulong index = gfn.Value - slot.BaseGfn + slot.GmemPgoff;
        Errno errno = file.GetPopulateFolio(current, index, slot, gfn, out Folio folio);
        if (errno != Errno.OK)
        {
            return errno;
        }
        errno = CheckPrivate(current, vm, slot, gfn);
        if (errno != Errno.OK)
        {
            return errno;
        }
        errno = postPopulate(current, gfn, folio.Pfn, source);
        if (errno == Errno.OK)
        {
            file.Inode.MarkUptodate(index, folio);
        }
        return errno;
    }

    private static Errno FindTarget(KTask current, Vm vm, Gfn gfn, out Memslot slot, out GuestMemfd file)
    {
        slot = vm.Memslots.Find(gfn)!;
        file = null!;
        current.Machine.Reading(slot ?? (object)vm.Memslots);
        if (slot is not { HasGmem: true })
        {
            return current.Fail(Errno.EINVAL, NoGmemSlot, gfn.Value, gfn.Value << PageSize.Shift);
        }
        if (slot.GmemFile is not { References: > 0 } found)
        {
            return current.Fail(Errno.EFAULT, FileGone, gfn.Value, (ulong)slot.Id);
        }
        current.Machine.Reading(found);
        file = found;
        return Errno.OK;
    }

    private static Errno CheckPrivate(KTask current, Vm vm, Memslot slot, Gfn gfn) => vm.Attributes.IsPrivate(gfn)
        ? Errno.OK
        : current.Fail(Errno.EINVAL, GfnNotPrivate, gfn.ToGpa().Value, gfn.Value, (ulong)slot.Id, vm.Attributes[gfn]);

    // __kvm_gmem_get_pfn as far as populate uses it: the folio, looked up or made, without preparation.
    private Errno GetPopulateFolio(KTask current, ulong index, Memslot slot, Gfn gfn, out Folio folio)
    {
        folio = default;
        current.Step(PopulateStep, index);
        if (BoundSlot(index) != slot)
        {
            return current.Fail(Errno.EIO, BoundElsewhere, gfn.Value, (ulong)slot.Id, index);
        }
        Errno errno = GetFolio(current, index, out folio);
        if (errno != Errno.OK)
        {
            return errno;
        }
        using var locked = SimLock.EnterFolio(current, folio.Pfn.Value);
        errno = _vm.Host.Faults?.AtGfn(current, gfn) ?? Errno.OK;
        if (errno != Errno.OK)
        {
            return errno;
        }
        if (folio.Poisoned)
        {
            return current.Fail(Errno.EHWPOISON, Poisoned, index, folio.Pfn.Value);
        }
        if (_vm.Host.Profile.Zeroing == GmemZeroing.Lookup)
        {
            Inode.ZeroIfNeeded(current, index, folio);
        }
        return _vm.Host.Profile.PopulatePrepares ? CallPrepare(current, gfn, folio) : Errno.OK;
    }
}
