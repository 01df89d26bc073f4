using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimMachine.Intel;

// Private memory of TDs, seen from the host: TDH.MEM.SEPT.ADD and REMOVE, PAGE.ADD, AUG, REMOVE, RANGE.BLOCK and UNBLOCK. Promotion and demotion are in
// TdxModule.PageSizes.cs. The mapping operand is RCX: level in bits 2:0, guest physical address in 51:12, zeros elsewhere.
public sealed partial class TdxModule
{
    private const ulong LevelMask = 7;
    private const ulong GpaMask = 0x000f_ffff_ffff_f000;

    public static readonly Rule BadMapping = new(
        "tdx.mem.mapping", "RCX does not name a private page: reserved bits, a level that the leaf does not take, an address not aligned to it, or one with the shared bit", "check_and_walk_private_gpa",
        "give level | gpa of private memory", "leaf#", "rcx", "shared_bit");

    public static readonly Rule NoTable = new(
        "tdx.sept.walk", "a table of the Secure EPT is missing on the way to the entry", "secure_ept_walk", "TDH.MEM.SEPT.ADD for the level that RDX tells", "leaf#", "gpa", "level#");

    public static readonly Rule WrongEntryState = new(
        "tdx.sept.state", "the Secure EPT entry is in a state that does not take this leaf (0 free, 1 blocked, 2 pending, 3 pending blocked, 4 mapped, 0x84 table, 0x81 blocked table)",
        "sept_state_is_seamcall_leaf_allowed", "look at the entry first", "leaf#", "gpa", "state");

    public static readonly Rule NotBlocked = new(
        "tdx.sept.not-blocked", "the range is not blocked", "tdh_mem_page_remove", "TDH.MEM.RANGE.BLOCK first, once the TD is runnable", "leaf#", "gpa");

    public static readonly Rule NotTracked = new(
        "tdx.sept.not-tracked", "processors may still have the translation that was blocked", "is_tlb_tracked", "TDH.MEM.TRACK, and kick all vCPUs", "leaf#", "gpa", "bepoch#", "epoch#");

    public static readonly Rule AlreadyBlocked = new(
        "tdx.sept.already-blocked", "the range is blocked already", "tdh_mem_range_block", "nothing is to be done", "gpa");

    public static readonly Rule TableInUse = new(
        "tdx.sept-remove.in-use", "the table has entries that are not free", "tdh_mem_sept_remove", "remove what it maps first", "gpa", "level#");

    public static readonly Rule BadSource = new(
        "tdx.page-add.source", "the source is not a page that the host can read", "tdh_mem_page_add", "give a page of the host, or the target itself", "pfn");

    /// <summary>Bits 2:0 and 51:12 of RCX.</summary>
    public static ulong Mapping(ulong gpa, int level) => gpa | (uint)level;

    /// <summary>TDH.MEM.SEPT.ADD: a free page becomes the table below an entry of level 1 or higher.</summary>
    public TdxStatus MemSeptAdd(SimThread thread, Pfn tdr, ulong mapping, Pfn page, out SeptInfo info)
    {
        const SeamcallLeaf leaf = SeamcallLeaf.TDH_MEM_SEPT_ADD;
        using var hold = new TdxHold();
        TdxStatus status = EnterMemory(thread, leaf, tdr, mapping, TdOpState.Runnable, minLevel: 1, maxLevel: int.MaxValue, exclusiveTree: false, hold, out Walked at, out info);
        if (status != TdxStatus.SUCCESS)
        {
            return status;
        }
        if (at.Entry.State != SeptState.FREE)
        {
            return RefuseState(thread, leaf, at);
        }
        status = CheckFree(thread, leaf, page, TdxOperand.R8);
        if (status != TdxStatus.SUCCESS)
        {
            return status;
        }
        Give(thread, page, TdxPageType.EPT, at.Td);
        at.Td.Sept[at.Level, at.Gpa] = new SeptEntry(SeptState.NL_MAPPED, page);
        return TdxStatus.SUCCESS;
    }

    /// <summary>TDH.MEM.PAGE.ADD: a page of the TD's initial memory, copied, encrypted and measured. Only while the TD is built.</summary>
    /// <param name="target">The page that becomes the TD's (R8).</param>
    /// <param name="source">The page that is copied (R9); it may be the target itself.</param>
    public TdxStatus MemPageAdd(SimThread thread, Pfn tdr, ulong mapping, Pfn target, Pfn source, out SeptInfo info)
    {
        const SeamcallLeaf leaf = SeamcallLeaf.TDH_MEM_PAGE_ADD;
        using var hold = new TdxHold();
        TdxStatus status = EnterMemory(thread, leaf, tdr, mapping, TdOpState.Initialized, minLevel: 0, maxLevel: 0, exclusiveTree: false, hold, out Walked at, out info);
        if (status != TdxStatus.SUCCESS)
        {
            return status;
        }
        if (at.Entry.State != SeptState.FREE)
        {
            return RefuseState(thread, leaf, at);
        }
        status = CheckAddress(thread, leaf, source, TdxOperand.R9);
        if (status != TdxStatus.SUCCESS)
        {
            return status;
        }
        if (!_machine.IsAllocated(source) || Has(source))
        {
            return thread.Fail(TdxStatus.OPERAND_INVALID.With(TdxOperand.R9), BadSource, source.Value);
        }
        status = CheckFree(thread, leaf, target, TdxOperand.R8);
        if (status != TdxStatus.SUCCESS)
        {
            return status;
        }
        if (source == target)
        {
            _machine.Memory.Encrypt(target, at.Td.Key);
        }
        else
        {
            _machine.Memory.CopyPage(source, Machine.HostKey, target, at.Td.Key);
        }
        Give(thread, target, TdxPageType.REG, at.Td, zero: false);
        at.Td.Sept[0, at.Gpa] = new SeptEntry(SeptState.MAPPED, target);
        at.Td.Mrtd.PageAdd(at.Gpa);
        return TdxStatus.SUCCESS;
    }

    /// <summary>TDH.MEM.PAGE.AUG: a page, or a huge one, that the TD must accept before it can use it.</summary>
    public TdxStatus MemPageAug(SimThread thread, Pfn tdr, ulong mapping, Pfn page, out SeptInfo info)
    {
        const SeamcallLeaf leaf = SeamcallLeaf.TDH_MEM_PAGE_AUG;
        using var hold = new TdxHold();
        TdxStatus status = EnterMemory(thread, leaf, tdr, mapping, TdOpState.Runnable, minLevel: 0, maxLevel: 1, exclusiveTree: false, hold, out Walked at, out info);
        if (status != TdxStatus.SUCCESS)
        {
            return status;
        }
        if (at.Entry.State != SeptState.FREE)
        {
            return RefuseState(thread, leaf, at);
        }
        ulong pages = Sept.BytesOf(at.Level) >> PageSize.Shift;
        for (ulong i = 0; i < pages && status == TdxStatus.SUCCESS; i++)
        {
            status = page.Value % pages != 0 ? thread.Fail(TdxStatus.OPERAND_INVALID.With(TdxOperand.R8), PageNotFree, (ulong)leaf, page.Value, 0) : CheckFree(thread, leaf, page + i, TdxOperand.R8);
        }
        if (status != TdxStatus.SUCCESS)
        {
            return status;
        }
        Give(thread, page, TdxPageType.REG, at.Td, at.Level);
        at.Td.Sept[at.Level, at.Gpa] = new SeptEntry(SeptState.PENDING, page);
        return TdxStatus.SUCCESS;
    }

    /// <summary>TDH.MEM.RANGE.BLOCK: no new translation is made from the entry. Its epoch is noted.</summary>
    public TdxStatus MemRangeBlock(SimThread thread, Pfn tdr, ulong mapping, out SeptInfo info)
    {
        const SeamcallLeaf leaf = SeamcallLeaf.TDH_MEM_RANGE_BLOCK;
        using var hold = new TdxHold();
        TdxStatus status = EnterMemory(thread, leaf, tdr, mapping, TdOpState.Runnable, minLevel: 0, maxLevel: int.MaxValue, exclusiveTree: true, hold, out Walked at, out info);
        if (status != TdxStatus.SUCCESS)
        {
            return status;
        }
        if (at.Entry.IsBlocked)
        {
            return thread.Fail(TdxStatus.GPA_RANGE_ALREADY_BLOCKED.With(TdxOperand.RCX), AlreadyBlocked, at.Gpa);
        }
        if (at.Entry.State == SeptState.FREE)
        {
            return RefuseState(thread, leaf, at);
        }
        at.Td.Sept[at.Level, at.Gpa] = at.Entry with { State = at.Entry.Blocked };
        _machine.Reading(at.Td.EpochLock);
        _pamt[at.Entry.Pfn] = _pamt[at.Entry.Pfn] with { Bepoch = at.Td.Epoch };
        return TdxStatus.SUCCESS;
    }

    /// <summary>TDH.MEM.RANGE.UNBLOCK.</summary>
    public TdxStatus MemRangeUnblock(SimThread thread, Pfn tdr, ulong mapping, out SeptInfo info)
    {
        const SeamcallLeaf leaf = SeamcallLeaf.TDH_MEM_RANGE_UNBLOCK;
        using var hold = new TdxHold();
        TdxStatus status = EnterMemory(thread, leaf, tdr, mapping, TdOpState.Runnable, minLevel: 0, maxLevel: int.MaxValue, exclusiveTree: true, hold, out Walked at, out info);
        if (status != TdxStatus.SUCCESS)
        {
            return status;
        }
        if (!at.Entry.IsBlocked)
        {
            return RefuseState(thread, leaf, at);
        }
        if (at.Td.OpState == TdOpState.Runnable && !IsTracked(at))
        {
            return RefuseUntracked(thread, leaf, at, TdxOperand.SEPT_TREE);
        }
        at.Td.Sept[at.Level, at.Gpa] = at.Entry with { State = at.Entry.Unblocked };
        return TdxStatus.SUCCESS;
    }

    /// <summary>TDH.MEM.PAGE.REMOVE: the page is the host's again. Of a runnable TD only when it is blocked and tracked.</summary>
    public TdxStatus MemPageRemove(SimThread thread, Pfn tdr, ulong mapping, out SeptInfo info)
    {
        const SeamcallLeaf leaf = SeamcallLeaf.TDH_MEM_PAGE_REMOVE;
        using var hold = new TdxHold();
        TdxStatus status = EnterMemory(thread, leaf, tdr, mapping, TdOpState.Runnable, minLevel: 0, maxLevel: 2, exclusiveTree: true, hold, out Walked at, out info);
        if (status != TdxStatus.SUCCESS)
        {
            return status;
        }
        if (!at.Entry.IsLeaf)
        {
            return RefuseState(thread, leaf, at);
        }
        status = CheckBlockedAndTracked(thread, leaf, at);
        if (status != TdxStatus.SUCCESS)
        {
            return status;
        }
        at.Td.Sept[at.Level, at.Gpa] = default;
        TakeAway(at.Entry.Pfn, at.Td, at.Level);
        return TdxStatus.SUCCESS;
    }

    /// <summary>TDH.MEM.SEPT.REMOVE: the table below an entry, all of whose entries are free, is the host's again.</summary>
    public TdxStatus MemSeptRemove(SimThread thread, Pfn tdr, ulong mapping, out SeptInfo info)
    {
        const SeamcallLeaf leaf = SeamcallLeaf.TDH_MEM_SEPT_REMOVE;
        using var hold = new TdxHold();
        TdxStatus status = EnterMemory(thread, leaf, tdr, mapping, TdOpState.Runnable, minLevel: 1, maxLevel: int.MaxValue, exclusiveTree: true, hold, out Walked at, out info);
        if (status != TdxStatus.SUCCESS)
        {
            return status;
        }
        if (!at.Entry.IsTable)
        {
            return RefuseState(thread, leaf, at);
        }
        if (!at.Td.Sept.IsTableEmpty(at.Level, at.Gpa))
        {
            return thread.Fail(TdxStatus.EPT_ENTRY_NOT_FREE.With(TdxOperand.RCX), TableInUse, at.Gpa, (ulong)at.Level);
        }
        status = CheckBlockedAndTracked(thread, leaf, at);
        if (status != TdxStatus.SUCCESS)
        {
            return status;
        }
        at.Td.Sept[at.Level, at.Gpa] = default;
        TakeAway(at.Entry.Pfn, at.Td);
        return TdxStatus.SUCCESS;
    }

    // What a leaf about an entry has in hand after its common checks.
    private readonly record struct Walked(Td Td, int Level, ulong Gpa, SeptEntry Entry);

    // The checks that all leaves about an entry begin with: TDR, state gate, format of RCX, tree lock, walk, entry lock.
    private TdxStatus EnterMemory(
        SimThread thread, SeamcallLeaf leaf, Pfn tdr, ulong mapping, TdOpState upTo, int minLevel, int maxLevel, bool exclusiveTree, TdxHold hold, out Walked at, out SeptInfo info)
    {
        at = default;
        info = default;
        if (!Begin(thread, leaf, mapping, tdr.Value, out TdxStatus status))
        {
            return status;
        }
        status = LockTdr(thread, leaf, tdr, TdxOperand.RDX, exclusive: false, hold, out Td td);
        // What is measured is measured by one at a time.
        status = status != TdxStatus.SUCCESS ? status : CheckState(thread, leaf, td, exclusive: upTo == TdOpState.Initialized, TdOpState.Initialized, upTo, hold);
        if (status != TdxStatus.SUCCESS)
        {
            return status;
        }
        int level = (int)(mapping & LevelMask);
        ulong gpa = mapping & GpaMask;
        bool wellFormed = (mapping & ~(GpaMask | LevelMask)) == 0 && level >= minLevel && level <= Math.Min(maxLevel, td.Sept.Top) && gpa < td.SharedBit;
        if (!wellFormed || (gpa & (Sept.BytesOf(level) - 1)) != 0)
        {
            return thread.Fail(TdxStatus.OPERAND_INVALID.With(TdxOperand.RCX), BadMapping, (ulong)leaf, mapping, td.SharedBit);
        }
        status = Lock(thread, leaf, td.Sept.Lock, exclusiveTree, TdxOperand.SEPT_TREE, hold);
        if (status != TdxStatus.SUCCESS)
        {
            return status;
        }
        bool reached = td.Sept.Walk(gpa, level, out int foundLevel, out SeptEntry entry);
        info = new SeptInfo(entry.Architectural, foundLevel, entry.State);
        if (!reached)
        {
            return thread.Fail(TdxStatus.EPT_WALK_FAILED.With(TdxOperand.RCX), NoTable, (ulong)leaf, gpa, (ulong)foundLevel);
        }
        if (!hold.Take(td.Sept, level, gpa))
        {
            return thread.Fail(TdxStatus.OPERAND_BUSY.With(TdxOperand.RCX), Busy, (ulong)leaf, (ulong)TdxOperand.RCX);
        }
        thread.Step(LockedStep, (ulong)leaf, mapping);
        at = new Walked(td, level, gpa, entry);
        return TdxStatus.SUCCESS;
    }

    private TdxStatus CheckBlockedAndTracked(SimThread thread, SeamcallLeaf leaf, in Walked at)
    {
        if (at.Td.OpState != TdOpState.Runnable)
        {
            return TdxStatus.SUCCESS;
        }
        if (!at.Entry.IsBlocked)
        {
            return thread.Fail(TdxStatus.GPA_RANGE_NOT_BLOCKED.With(TdxOperand.RCX), NotBlocked, (ulong)leaf, at.Gpa);
        }
        return IsTracked(at) ? TdxStatus.SUCCESS : RefuseUntracked(thread, leaf, at, TdxOperand.RCX);
    }

    private bool IsTracked(in Walked at)
    {
        _machine.Writing(at.Td.EpochLock);
        return at.Td.IsTracked(_pamt[at.Entry.Pfn].Bepoch);
    }

    private TdxStatus RefuseUntracked(SimThread thread, SeamcallLeaf leaf, in Walked at, TdxOperand operand) => thread.Fail(
        TdxStatus.TLB_TRACKING_NOT_DONE.With(operand), NotTracked, (ulong)leaf, at.Gpa, _pamt[at.Entry.Pfn].Bepoch, at.Td.Epoch);

    private static TdxStatus RefuseState(SimThread thread, SeamcallLeaf leaf, in Walked at) =>
        thread.Fail(TdxStatus.EPT_ENTRY_STATE_INCORRECT.With(TdxOperand.RCX), WrongEntryState, (ulong)leaf, at.Gpa, (ulong)at.Entry.State);
}
