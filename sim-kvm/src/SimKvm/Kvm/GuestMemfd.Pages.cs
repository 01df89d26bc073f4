using SimKvm.Locking;
using SimKvm.Profiles;
using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimKvm.Kvm;

// The pages of a file as guests get them: look-up or creation, clearing, the architecture's hook.
internal sealed partial class GuestMemfd
{
    private static readonly StepLabel FolioStep = new("gmem folio lookup");
    private static readonly StepLabel PrepareStep = new("gmem prepare hook");

    public static readonly Rule BoundElsewhere = new(
        "kvm.gmem.get-pfn.binding", "the file's page is not bound to this slot (any more)", "__kvm_gmem_get_pfn", "create the slot anew", "gfn", "slot#", "index");

    public static readonly Rule Poisoned = new(
        "kvm.gmem.poisoned", "the memory behind the page failed", "__kvm_gmem_get_pfn", "punch a hole there: the next access gets another page", "index", "pfn");

    /// <summary>
    /// kvm_gmem_error_folio: the memory behind a page failed. Guests lose the mapping and the page stays, poisoned, until a hole is punched. RFC v11 leaves stage 2 alone
    /// and kills the current process.
    /// </summary>
    /// <returns>The page is there.</returns>
    public bool ErrorFolio(KTask current, ulong index)
    {
        using var invalidate = Inode.InvalidateLock.EnterShared(current);
        if (!Inode.TryGet(index, out Folio folio))
        {
            return false;
        }
        Inode.MarkPoisoned(index);
        if (!_vm.Host.Profile.MemoryFailureUnmaps)
        {
            current.SignalPending = true;
            return true;
        }
        ulong pages = 1UL << folio.Order;
        ulong start = index & ~(pages - 1);
        InvalidateBegin(current, start, start + pages, PunchHoleSides);
        InvalidateEnd(current, start, start + pages);
        return true;
    }

    /// <summary>kvm_gmem_get_pfn: the frame of a gfn for a guest, cleared and prepared as the generation does it.</summary>
    /// <param name="order">log2 of the folio's pages.</param>
    public static Errno GetPfn(KTask current, Vm vm, Memslot slot, Gfn gfn, out Pfn pfn, out int order)
    {
        pfn = default;
        order = 0;
        current.Machine.Reading(slot);
        if (slot.GmemFile is not { References: > 0 } file)
        {
            return current.Fail(Errno.EFAULT, FileGone, gfn.Value, (ulong)slot.Id);
        }
        current.Machine.Reading(file);
        if (vm.Host.Profile.InPlaceConversion == InPlaceConversion.None)
        {
            return file.GetPfnLocked(current, slot, gfn, out pfn, out order);
        }
        // A conversion must not pass between the look-up and the hook.
        using var invalidate = file.Inode.InvalidateLock.EnterShared(current);
        return file.GetPfnLocked(current, slot, gfn, out pfn, out order);
    }

    // __kvm_gmem_get_pfn, then the generation's preparation; the folio is locked from the look-up on, so truncation waits.
    private Errno GetPfnLocked(KTask current, Memslot slot, Gfn gfn, out Pfn pfn, out int order)
    {
        pfn = default;
        order = 0;
        ulong index = gfn.Value - slot.BaseGfn + slot.GmemPgoff;
        if (BoundSlot(index) != slot)
        {
            return current.Fail(Errno.EIO, BoundElsewhere, gfn.Value, (ulong)slot.Id, index);
        }
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
            errno = _vm.Host.Faults?.AtGfn(current, gfn) ?? Errno.OK;
            if (errno != Errno.OK)
            {
                return errno;
            }
            // RFC v11 does not ask: there the process was killed by SIGBUS instead.
            if (folio.Poisoned && _vm.Host.Profile.MemoryFailureUnmaps)
            {
                return current.Fail(Errno.EHWPOISON, Poisoned, index, folio.Pfn.Value);
            }
            errno = Prepare(current, slot, gfn, index, folio);
            if (errno != Errno.OK)
            {
                return errno;
            }
            pfn = folio.Pfn;
            order = folio.Order;
            return Errno.OK;
        }
    }

    // __filemap_get_folio with FGP_LOCK: a folio that left the cache while its lock was waited for is looked up anew; one that stayed is seen as it is now.
    private bool IsStillThere(ulong index, ref Folio folio)
    {
        Pfn locked = folio.Pfn;
        return Inode.TryGet(index, out folio) && folio.Pfn == locked;
    }

    private Errno Prepare(KTask current, Memslot slot, Gfn gfn, ulong index, in Folio folio)
    {
        switch (_vm.Host.Profile.PrepareHook)
        {
            case GmemPrepareHook.IfNotUptodate:
                // kvm_gmem_prepare_folio: "up to date" says prepared. A hook that fails leaves the page as it was, to be cleared and prepared again.
                if (folio.Uptodate)
                {
                    return Errno.OK;
                }
                Inode.ZeroIfNeeded(current, index, folio);
                Errno errno = CallPrepare(current, gfn, folio);
                if (errno != Errno.OK)
                {
                    Inode.MarkNotUptodate(index);
                }
                return errno;
            case GmemPrepareHook.EveryGetPfn:
                Inode.ZeroIfNeeded(current, index, folio);
                return CallPrepare(current, gfn, folio);
            case GmemPrepareHook.EveryGetPfnOfPrivateFile:
                Inode.ZeroIfNeeded(current, index, folio);
                return Inode.InitShared ? Errno.OK : CallPrepare(current, gfn, folio);
            case GmemPrepareHook.EveryGetPfnOfPrivateIndex:
                Inode.ZeroIfNeeded(current, index, folio);
                return Inode.IsPrivate(index) ? CallPrepare(current, gfn, folio) : Errno.OK;
            default:
                // None, or done by the look-up.
                return Errno.OK;
        }
    }

    // kvm_arch_gmem_prepare; kvm_arch_gmem_make_private in newer trees.
    private Errno CallPrepare(KTask current, Gfn gfn, in Folio folio)
    {
        current.Step(PrepareStep, gfn.Value, folio.Pfn.Value);
        ulong offset = folio.Pfn.Value & ((1UL << folio.Order) - 1);
        return _vm.Backend.GmemPrepare(current, new Gfn(gfn.Value - offset), new Pfn(folio.Pfn.Value - offset), folio.Order);
    }

    // kvm_gmem_get_folio: looked up or made. What else happens to a new page here depends on the generation.
    private Errno GetFolio(KTask current, ulong index, out Folio folio)
    {
        KernelProfile profile = _vm.Host.Profile;
        while (true)
        {
            current.Step(FolioStep, index);
            if (!Inode.TryGetOrCreate(index, out folio, out bool created))
            {
                return current.Fail(Errno.ENOMEM, NoMemory, index);
            }
            if (created && profile.Zeroing == GmemZeroing.AtAllocation)
            {
                using var locked = SimLock.EnterFolio(current, folio.Pfn.Value);
                if (!IsStillThere(index, ref folio))
                {
                    continue;
                }
                Inode.ZeroIfNeeded(current, index, folio);
                folio = folio with { Uptodate = true };
            }
            if (profile.PrepareHook != GmemPrepareHook.EveryLookup || BoundSlot(index) is not { } slot)
            {
                return Errno.OK;
            }
            using var prepared = SimLock.EnterFolio(current, folio.Pfn.Value);
            if (IsStillThere(index, ref folio))
            {
                return CallPrepare(current, new Gfn(slot.BaseGfn + index - slot.GmemPgoff), folio);
            }
        }
    }
}
