using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimMachine.Intel;

// TDs go: TDH.MNG.VPFLUSHDONE, TDH.PHYMEM.CACHE.WB, TDH.MNG.KEY.FREEID, TDH.PHYMEM.PAGE.RECLAIM; and TDH.PHYMEM.PAGE.RDMD, which only looks.
public sealed partial class TdxModule
{
    public static readonly Rule VcpuStillAssociated = new(
        "tdx.vpflushdone.associated", "a processor still has state of a vCPU", "tdh_mng_vpflushdone", "TDH.VP.FLUSH each vCPU", "tdvpr");

    public static readonly Rule CacheNotWritten = new(
        "tdx.key-freeid.cache", "caches were not written back on every package since the TD was blocked", "tdh_mng_key_freeid", "TDH.PHYMEM.CACHE.WB on each package", "hkid#");

    public static readonly Rule NothingToWrite = new(
        "tdx.cache-wb.nothing", "no KeyID waits for its cache lines to be written back", "tdh_phymem_cache_wb", "nothing is to be done", "package#");

    public static readonly Rule NotReclaimable = new(
        "tdx.reclaim.type", "the page is the host's", "tdh_phymem_page_reclaim", "reclaim pages of TDs only", "pfn", "page_type#");

    public static readonly Rule NotTheFirst = new(
        "tdx.reclaim.size", "the page is within a huge one, which goes as a whole", "tdh_phymem_page_reclaim", "reclaim it by its first page", "pfn", "level#");

    public static readonly Rule HasChildren = new(
        "tdx.reclaim.children", "the TD has pages besides its TDR", "tdh_phymem_page_reclaim", "reclaim the TDR last", "tdr", "pages#");

    // KeyIDs whose cache lines were written back, by package.
    private readonly Dictionary<uint, uint> _written = [];

    /// <summary>TDH.MNG.VPFLUSHDONE: no processor runs the TD from here on.</summary>
    public TdxStatus MngVpflushdone(SimThread thread, Pfn tdr)
    {
        const SeamcallLeaf leaf = SeamcallLeaf.TDH_MNG_VPFLUSHDONE;
        using var hold = new TdxHold();
        if (!Begin(thread, leaf, tdr.Value, 0, out TdxStatus status))
        {
            return status;
        }
        status = LockTdr(thread, leaf, tdr, TdxOperand.RCX, exclusive: true, hold, out Td td);
        if (status != TdxStatus.SUCCESS)
        {
            return status;
        }
        if (td.Lifecycle is not (TdLifecycle.HkidAssigned or TdLifecycle.KeysConfigured))
        {
            return thread.Fail(TdxStatus.LIFECYCLE_STATE_INCORRECT, WrongLifecycle, (ulong)leaf, (ulong)td.Lifecycle);
        }
        if (td.Vcpus.Find(vcpu => vcpu.Associated) is { } associated)
        {
            return thread.Fail(TdxStatus.FLUSHVP_NOT_DONE, VcpuStillAssociated, associated.Tdvpr.Value);
        }
        td.Lifecycle = TdLifecycle.Blocked;
        _machine.Writing(_hkids);
        _written[td.Hkid] = 0;
        return TdxStatus.SUCCESS;
    }

    /// <summary>TDH.PHYMEM.CACHE.WB on a package.</summary>
    public TdxStatus PhymemCacheWb(SimThread thread, int package)
    {
        if (!Begin(thread, SeamcallLeaf.TDH_PHYMEM_CACHE_WB, (ulong)package, 0, out TdxStatus status))
        {
            return status;
        }
        _machine.Writing(_hkids);
        if (_written.Count == 0)
        {
            return thread.Fail(TdxStatus.NO_HKID_READY_TO_WBCACHE, NothingToWrite, (ulong)package);
        }
        foreach (uint hkid in _written.Keys.ToArray())
        {
            _written[hkid] |= 1u << package;
        }
        return TdxStatus.SUCCESS;
    }

    /// <summary>TDH.MNG.KEY.FREEID: the KeyID is free, and the TD's pages can be reclaimed.</summary>
    public TdxStatus MngKeyFreeid(SimThread thread, Pfn tdr)
    {
        const SeamcallLeaf leaf = SeamcallLeaf.TDH_MNG_KEY_FREEID;
        using var hold = new TdxHold();
        if (!Begin(thread, leaf, tdr.Value, 0, out TdxStatus status))
        {
            return status;
        }
        status = LockTdr(thread, leaf, tdr, TdxOperand.RCX, exclusive: true, hold, out Td td);
        if (status != TdxStatus.SUCCESS)
        {
            return status;
        }
        if (td.Lifecycle != TdLifecycle.Blocked)
        {
            return thread.Fail(TdxStatus.LIFECYCLE_STATE_INCORRECT, WrongLifecycle, (ulong)leaf, (ulong)td.Lifecycle);
        }
        _machine.Writing(_hkids);
        if (_written[td.Hkid] != (1u << _config.Packages) - 1)
        {
            return thread.Fail(TdxStatus.KEY_STATE_INCORRECT.With(TdxOperand.KOT), CacheNotWritten, td.Hkid);
        }
        td.Lifecycle = TdLifecycle.Teardown;
        _written.Remove(td.Hkid);
        _hkids.Remove(td.Hkid);
        return TdxStatus.SUCCESS;
    }

    /// <summary>TDH.PHYMEM.PAGE.RECLAIM: a page of a TD in teardown is the host's again; the TDR is the last.</summary>
    /// <param name="type">RCX: what the page was.</param>
    /// <param name="owner">RDX: the TDR of the TD that had it.</param>
    /// <param name="level">R8: the size of the page; 0 is 4 KiB.</param>
    public TdxStatus PhymemPageReclaim(SimThread thread, Pfn page, out TdxPageType type, out Pfn owner, out int level)
    {
        const SeamcallLeaf leaf = SeamcallLeaf.TDH_PHYMEM_PAGE_RECLAIM;
        using var hold = new TdxHold();
        PamtEntry entry = _pamt[page];
        (type, owner, level) = (entry.Type, entry.Owner, entry.Level);
        if (!Begin(thread, leaf, page.Value, 0, out TdxStatus status))
        {
            return status;
        }
        if (entry.Type is TdxPageType.NDA or TdxPageType.RSVD)
        {
            return thread.Fail(TdxStatus.PAGE_METADATA_INCORRECT.With(TdxOperand.RCX), NotReclaimable, page.Value, (ulong)entry.Type);
        }
        if (page.Value % (Sept.BytesOf(entry.Level) >> PageSize.Shift) != 0)
        {
            return thread.Fail(TdxStatus.OPERAND_INVALID.With(TdxOperand.RCX), NotTheFirst, page.Value, entry.Level);
        }
        bool isTdr = entry.Type == TdxPageType.TDR;
        status = LockTdr(thread, leaf, isTdr ? page : entry.Owner, TdxOperand.TDR, exclusive: isTdr, hold, out Td td);
        if (status != TdxStatus.SUCCESS)
        {
            return status;
        }
        if (td.Lifecycle != TdLifecycle.Teardown)
        {
            return thread.Fail(TdxStatus.LIFECYCLE_STATE_INCORRECT, WrongLifecycle, (ulong)leaf, (ulong)td.Lifecycle);
        }
        if (isTdr && td.Children != 0)
        {
            return thread.Fail(TdxStatus.TD_ASSOCIATED_PAGES_EXIST, HasChildren, page.Value, (ulong)td.Children);
        }
        if (isTdr)
        {
            _pamt[page] = default;
            _machine.Writing(_tds, page.Value, page.Value + 1);
            _tds.Remove(page.Value);
            td.Mrtd.Dispose();
            return TdxStatus.SUCCESS;
        }
        Forget(td, page, entry.Type);
        TakeAway(page, td, entry.Level);
        return TdxStatus.SUCCESS;
    }

    /// <summary>TDH.PHYMEM.PAGE.RDMD: what the module uses a page for.</summary>
    public TdxStatus PhymemPageRdmd(SimThread thread, Pfn page, out TdxPageType type, out Pfn owner, out int level)
    {
        PamtEntry entry = _pamt[page];
        (type, owner, level) = (entry.Type, entry.Owner, entry.Level);
        Begin(thread, SeamcallLeaf.TDH_PHYMEM_PAGE_RDMD, page.Value, 0, out TdxStatus status);
        return status;
    }

    // What of the TD was in the page. Its translations have no meaning any more once a page of them is gone, for the TD can never run again.
    private void Forget(Td td, Pfn page, TdxPageType type)
    {
        if (type == TdxPageType.TDVPR)
        {
            _machine.Writing(_vcpus, page.Value, page.Value + 1);
            _vcpus.Remove(page.Value);
        }
        else if (type is TdxPageType.EPT or TdxPageType.REG)
        {
            _machine.Writing(td.Sept);
            td.Sept = new Sept(_machine, td.Sept.Top + 1);
        }
    }
}
