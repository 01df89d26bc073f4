using SimKvm.Kvm;
using SimMachine.Addressing;
using SimMachine.Intel;
using SimMachine.Stepping;

namespace SimKvm.Vendors.Intel;

// The Secure EPT follows the mirror, SEAMCALL by SEAMCALL (tdx_sept_link_private_spt, tdx_sept_set_private_spte, tdx_sept_remove_private_spte). mmu_lock is held.
internal sealed partial class TdxBackend
{
    public static readonly Rule SeptFailed = new(
        "tdx.sept.seamcall", "a SEAMCALL about the Secure EPT failed; the VM is dead", "tdx_sept_link_private_spt, tdx_mem_page_aug", "see the cause before this one", "leaf#", "gpa", "status");

    public static readonly Rule SeptBusy = new(
        "tdx.sept.busy", "the module is busy with the entry; the fault is tried again", "tdx_sept_link_private_spt, tdx_mem_page_aug", "nothing is to be done", "leaf#", "gpa");

    public static readonly Rule NoTablePage = new(
        "tdx.sept.no-memory", "the simulated machine has no free page for a table of the Secure EPT", "kvm_mmu_memory_cache_alloc", "give the host more memory_bytes", "gpa");

    // Tables of the Secure EPT, by level and index. They stay until the VM goes.
    private readonly SortedDictionary<(int Level, ulong Index), Pfn> _tables = [];

    // FROZEN_SPTE: entries of the mirror whose SEAMCALL is under way, by level and index. Faults share mmu_lock, so this is what keeps two from asking the module for one entry.
    private readonly HashSet<(int Level, ulong Index)> _frozen = [];

    /// <summary>Private memory has the Secure EPT, and its mirror.</summary>
    public override bool HasPrivateTable => true;

    /// <summary>tdx_gmem_private_max_mapping_level: private memory is mapped by pages of 4 KiB.</summary>
    public override PageLevel GmemMaxMappingLevel(Pfn pfn, bool isPrivate) => isPrivate ? PageLevel.Page4K : PageLevel.Page1G;

    /// <summary>As many pages as there are tables missing on the way to the gfn. What another fault makes unnecessary stays with the vCPU.</summary>
    public override Errno TopupExternalSptCache(KTask current, Vcpu vcpu, Gfn gfn)
    {
        ulong gpa = gfn.ToGpa().Value;
        int missing = Levels.Count(level => !HasTable(level, gpa));
        while (vcpu.ExternalSptCache.Count < missing)
        {
            if (!_host.Machine.TryAllocateFrame(out Pfn page))
            {
                return current.Fail(Errno.ENOMEM, NoTablePage, gpa);
            }
            vcpu.ExternalSptCache.Push(page);
        }
        return Errno.OK;
    }

    /// <summary>set_external_spte, and link_external_spt for the tables that it needs.</summary>
    public override bool SetExternalSpte(KTask current, Vcpu vcpu, in PageFault fault)
    {
        ulong gpa = fault.Gfn.ToGpa().Value;
        if (!LinkTables(current, vcpu, gpa))
        {
            return false;
        }
        // The page may be there since this fault looked: the next try finds it.
        if (Vm.Mmu.TryTranslate(fault.Gfn, isPrivate: true, write: false, out _) || !TryFreeze(0, gpa))
        {
            return false;
        }
        bool isSet = SetLeaf(current, gpa, fault.Pfn);
        Unfreeze(0, gpa);
        return isSet;
    }

    public override bool IsFrozen(Gfn gfn) => _frozen.Contains(EntryAt(0, gfn.ToGpa().Value)) || Levels.Any(level => _frozen.Contains(EntryAt(level, gfn.ToGpa().Value)));

    // tdx_mem_page_aug, tdx_mem_page_add; the latter comes later where it is not a part of mapping.
    private bool SetLeaf(KTask current, ulong gpa, Pfn page)
    {
        if (State == TdState.Runnable)
        {
            return Succeeded(current, SeamcallLeaf.TDH_MEM_PAGE_AUG, gpa, Module.MemPageAug(current, Tdr, TdxModule.Mapping(gpa, 0), page, out _));
        }
        if (!_host.Profile.TdxAddsWhileMapping)
        {
            Premapped++;
            return true;
        }
        TdxStatus status = Module.MemPageAdd(current, Tdr, TdxModule.Mapping(gpa, 0), page, _pageAddSource, out _);
        _pageAddFailed = status != TdxStatus.SUCCESS && !IsBusy(status);
        return Succeeded(current, SeamcallLeaf.TDH_MEM_PAGE_ADD, gpa, status);
    }

    /// <summary>remove_external_spte for each leaf that the mirror has lost.</summary>
    public override void RemoveExternalSptes(KTask current, IReadOnlyList<(GfnRange Gfns, Stage2Entry First)> leaves)
    {
        foreach ((GfnRange gfns, Stage2Entry first) in leaves)
        {
            for (ulong i = 0; i < gfns.Count; i++)
            {
                RemoveExternalSpte(current, gfns.Start + i, first.Pfn + i);
            }
        }
    }

    /// <summary>The mirror and the Secure EPT agree.</summary>
    public override void CheckInvariants()
    {
        if (!HasHkid || Vm.Dead)
        {
            return;
        }
        long missing = 0;
        ulong mirrored = 0;
        foreach ((GfnRange gfns, Stage2Entry first) in Vm.Mmu.PrivateLeaves(GfnRange.FromPages(new Gfn(0), GfnRange.Limit)))
        {
            for (ulong i = 0; i < gfns.Count; i++)
            {
                SeptPage page = Module.Look(Tdr, (gfns.Start + i).ToGpa().Value);
                bool isThere = page is { Level: 0, State: SeptState.MAPPED or SeptState.PENDING } && page.Pfn == first.Pfn + i;
                missing += isThere ? 0 : 1;
                mirrored += isThere ? 1UL : 0;
            }
        }
        ulong known = (ulong)Module.Pages(Tdr).Count();
        if (missing != Premapped || known != mirrored)
        {
            throw new InvalidOperationException($"the mirror has {mirrored} pages of {known} of the Secure EPT, and {missing} that are not there; {Premapped} are premapped");
        }
    }

    // Levels of tables, the root's entries first.
    private IEnumerable<int> Levels => Enumerable.Range(1, Gpaw == 52 ? 4 : 3).Reverse();

    private static (int Level, ulong Index) EntryAt(int level, ulong gpa) => (level, gpa >> (PageSize.Shift + (9 * level)));

    private bool HasTable(int level, ulong gpa)
    {
        Touch(level, gpa, write: false);
        return _tables.ContainsKey(EntryAt(level, gpa));
    }

    private bool TryFreeze(int level, ulong gpa)
    {
        Touch(level, gpa, write: true);
        return _frozen.Add(EntryAt(level, gpa));
    }

    private void Unfreeze(int level, ulong gpa)
    {
        Touch(level, gpa, write: true);
        _frozen.Remove(EntryAt(level, gpa));
    }

    // An entry is looked at or changed: all of the gfns below it.
    private void Touch(int level, ulong gpa, bool write)
    {
        ulong gfns = 1UL << (9 * level), start = FirstGfnKey + ((gpa >> PageSize.Shift) & ~(gfns - 1));
        if (write)
        {
            _host.Machine.Writing(this, start, start + gfns);
        }
        else
        {
            _host.Machine.Reading(this, start, start + gfns);
        }
    }

    private bool LinkTables(KTask current, Vcpu vcpu, ulong gpa)
    {
        foreach (int level in Levels)
        {
            if (HasTable(level, gpa))
            {
                continue;
            }
            if (!TryFreeze(level, gpa))
            {
                return false;
            }
            Pfn page = vcpu.ExternalSptCache.Peek();
            (int, ulong Index) entry = EntryAt(level, gpa);
            ulong aligned = entry.Index << (PageSize.Shift + (9 * level));
            TdxStatus status = Module.MemSeptAdd(current, Tdr, TdxModule.Mapping(aligned, level), page, out _);
            Unfreeze(level, gpa);
            if (!Succeeded(current, SeamcallLeaf.TDH_MEM_SEPT_ADD, gpa, status))
            {
                return false;
            }
            vcpu.ExternalSptCache.Pop();
            _tables.Add(entry, page);
        }
        return true;
    }

    private bool Succeeded(KTask current, SeamcallLeaf leaf, ulong gpa, TdxStatus status)
    {
        if (status == TdxStatus.SUCCESS)
        {
            return true;
        }
        if (IsBusy(status))
        {
            current.Fail(Errno.EBUSY, SeptBusy, (ulong)leaf, gpa);
            return false;
        }
        Vm.Bug(current, $"{leaf}: {status.Name()}");
        current.Fail(Errno.EIO, SeptFailed, (ulong)leaf, gpa, (ulong)status);
        return false;
    }

    // tdx_sept_remove_private_spte: block, track, remove, flush, clear. Whatever goes wrong leaves the page with the TD for ever.
    private void RemoveExternalSpte(KTask current, Gfn gfn, Pfn pfn)
    {
        ulong mapping = TdxModule.Mapping(gfn.ToGpa().Value, 0);
        SeptInfo info = default;
        if (Premapped > 0)
        {
            // tdx_is_sept_zap_err_due_to_premap: the module does not have the page, so there is nothing to take from it.
            int causes = current.Causes.Count;
            TdxStatus blocked = Module.MemRangeBlock(current, Tdr, mapping, out info);
            if (blocked == TdxStatus.EPT_ENTRY_STATE_INCORRECT.With(TdxOperand.RCX) && info.State == SeptState.FREE)
            {
                current.ForgetCausesAfter(causes);
                Premapped--;
                return;
            }
        }
        bool isBlocked = info.State is SeptState.MAPPED or SeptState.PENDING;
        bool removed = (isBlocked || Insist(current, SeamcallLeaf.TDH_MEM_RANGE_BLOCK, () => Module.MemRangeBlock(current, Tdr, mapping, out _)))
            && Track(current)
            && Insist(current, SeamcallLeaf.TDH_MEM_PAGE_REMOVE, () => Module.MemPageRemove(current, Tdr, mapping, out _))
            && Insist(current, SeamcallLeaf.TDH_PHYMEM_PAGE_WBINVD, () => Module.PhymemPageWbinvd(current, pfn));
        if (removed)
        {
            _host.Machine.HostZero(current, pfn);
        }
        else
        {
            _host.Machine.LeakFrame(pfn);
        }
    }

    // tdx_track: before the TD runs there are no translations to forget.
    private bool Track(KTask current)
    {
        if (State != TdState.Runnable)
        {
            return true;
        }
        bool tracked = Insist(current, SeamcallLeaf.TDH_MEM_TRACK, () => Module.MemTrack(current, Tdr));
        KickAll(current);
        return tracked;
    }

    // A busy module is asked once more with all vCPUs kept out: nobody else can be in its way then.
    private bool Insist(KTask current, SeamcallLeaf leaf, Func<TdxStatus> seamcall)
    {
        int causes = current.Causes.Count;
        TdxStatus status = seamcall();
        if (IsBusy(status))
        {
            current.ForgetCausesAfter(causes);
            KickAll(current);
            status = seamcall();
        }
        if (status != TdxStatus.SUCCESS)
        {
            Vm.Bug(current, $"{leaf}: {status.Name()}");
            return false;
        }
        return true;
    }

    // kvm_make_all_cpus_request(KVM_REQ_OUTSIDE_GUEST_MODE)
    private void KickAll(KTask current)
    {
        current.Machine.Reading(Vm);
        foreach (Vcpu vcpu in Vm.Vcpus)
        {
            current.Machine.Reading(vcpu);
            if (vcpu.Tdx is { } tdx)
            {
                Module.VpExit(tdx.Tdvpr);
            }
        }
    }
}
