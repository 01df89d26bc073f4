using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimMachine.Intel;

// TDH.MEM.PAGE.DEMOTE and PROMOTE: a huge mapping becomes a table, and a table a huge mapping.
public sealed partial class TdxModule
{
    public static readonly Rule NotPromotable = new(
        "tdx.promote.conditions", "the 512 entries below are not all mapped, or all pending, with pages that lie together and aligned", "tdh_mem_page_promote", "promote what was demoted", "gpa", "level#");

    /// <summary>TDH.MEM.PAGE.DEMOTE of a page of 2 MiB or 1 GiB.</summary>
    /// <param name="table">A free page, which becomes the table (R8).</param>
    public TdxStatus MemPageDemote(SimThread thread, Pfn tdr, ulong mapping, Pfn table, out SeptInfo info)
    {
        const SeamcallLeaf leaf = SeamcallLeaf.TDH_MEM_PAGE_DEMOTE;
        using var hold = new TdxHold();
        TdxStatus status = EnterMemory(thread, leaf, tdr, mapping, TdOpState.Runnable, minLevel: 1, maxLevel: 2, exclusiveTree: true, hold, out Walked at, out info);
        if (status != TdxStatus.SUCCESS)
        {
            return status;
        }
        if (!at.Entry.IsLeaf)
        {
            return RefuseState(thread, leaf, at);
        }
        status = CheckBlockedAndTracked(thread, leaf, at);
        status = status != TdxStatus.SUCCESS ? status : CheckFree(thread, leaf, table, TdxOperand.R8);
        if (status != TdxStatus.SUCCESS)
        {
            return status;
        }
        SeptState state = at.Entry.Unblocked;
        Give(thread, table, TdxPageType.EPT, at.Td);
        at.Td.Sept[at.Level, at.Gpa] = new SeptEntry(SeptState.NL_MAPPED, table);
        foreach ((ulong gpa, Pfn page) in PagesBelow(at, at.Entry.Pfn))
        {
            at.Td.Sept[at.Level - 1, gpa] = new SeptEntry(state, page);
        }
        SetLevel(at.Entry.Pfn, at.Level, at.Level - 1);
        return TdxStatus.SUCCESS;
    }

    /// <summary>TDH.MEM.PAGE.PROMOTE: the table page is the host's again.</summary>
    /// <param name="table">The page that was the table.</param>
    public TdxStatus MemPagePromote(SimThread thread, Pfn tdr, ulong mapping, out Pfn table, out SeptInfo info)
    {
        const SeamcallLeaf leaf = SeamcallLeaf.TDH_MEM_PAGE_PROMOTE;
        table = default;
        using var hold = new TdxHold();
        TdxStatus status = EnterMemory(thread, leaf, tdr, mapping, TdOpState.Runnable, minLevel: 1, maxLevel: 2, exclusiveTree: true, hold, out Walked at, out info);
        if (status != TdxStatus.SUCCESS)
        {
            return status;
        }
        if (!at.Entry.IsTable)
        {
            return RefuseState(thread, leaf, at);
        }
        status = CheckBlockedAndTracked(thread, leaf, at);
        if (status != TdxStatus.SUCCESS)
        {
            return status;
        }
        SeptEntry first = at.Td.Sept[at.Level - 1, at.Gpa];
        bool fits = first.State is SeptState.MAPPED or SeptState.PENDING && first.Pfn.Value % (Sept.BytesOf(at.Level) >> PageSize.Shift) == 0;
        foreach ((ulong gpa, Pfn page) in PagesBelow(at, first.Pfn))
        {
            fits = fits && at.Td.Sept[at.Level - 1, gpa] == first with { Pfn = page };
        }
        if (!fits)
        {
            return thread.Fail(TdxStatus.EPT_INVALID_PROMOTE_CONDITIONS.With(TdxOperand.RCX), NotPromotable, at.Gpa, (ulong)at.Level);
        }
        foreach ((ulong gpa, _) in PagesBelow(at, first.Pfn))
        {
            at.Td.Sept[at.Level - 1, gpa] = default;
        }
        table = at.Entry.Pfn;
        at.Td.Sept[at.Level, at.Gpa] = first;
        TakeAway(table, at.Td);
        SetLevel(first.Pfn, at.Level, at.Level);
        return TdxStatus.SUCCESS;
    }

    // The 512 entries of the level below, with the frames that they have if the first one's is given.
    private static IEnumerable<(ulong Gpa, Pfn Page)> PagesBelow(Walked at, Pfn first)
    {
        ulong bytes = Sept.BytesOf(at.Level - 1);
        for (ulong i = 0; i < SlotBits.Slots; i++)
        {
            yield return (at.Gpa + (i * bytes), first + (i * (bytes >> PageSize.Shift)));
        }
    }

    private void SetLevel(Pfn first, int covered, int level)
    {
        for (ulong i = 0; i < Sept.BytesOf(covered) >> PageSize.Shift; i++)
        {
            _pamt[first + i] = _pamt[first + i] with { Level = (byte)level };
        }
    }
}
