using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimMachine.Intel;

// TDs come into being: TDH.MNG.CREATE, KEY.CONFIG, ADDCX, INIT.
public sealed partial class TdxModule
{
    public static readonly Rule HkidOutOfRange = new(
        "tdx.mng-create.hkid", "the KeyID is not one for TDs", "tdh_mng_create", "use a KeyID of the module's range", "hkid#", "first#", "count#");

    public static readonly Rule HkidInUse = new(
        "tdx.mng-create.hkid-in-use", "the KeyID is another TD's, or was not freed and flushed yet", "tdh_mng_create", "use a free KeyID", "hkid#");

    public static readonly Rule WrongLifecycle = new(
        "tdx.td.lifecycle", "the TD is at a point of its life that does not take this leaf (0 KeyID assigned, 1 keys configured, 2 blocked, 3 teardown)", "tdh_mng_key_config and the like",
        "create, configure keys, run; then VPFLUSHDONE, KEY.FREEID, RECLAIM", "leaf#", "lifecycle#");

    public static readonly Rule KeyIsConfigured = new(
        "tdx.key-config.again", "the key is configured on that package already", "tdh_mng_key_config", "call it once on each package", "hkid#", "package#");

    public static readonly Rule TooManyTdcx = new(
        "tdx.addcx.count", "the TD or vCPU has as many control pages as it can, or not as many as it needs", "tdh_mng_addcx, tdh_vp_addcx, tdh_vp_init", "add as many as the module asks for",
        "leaf#", "pages#", "limit#");

    public static readonly Rule BadTdParams = new(
        "tdx.mng-init.params", "TD_PARAMS has a value that the module does not take; the status says which", "tdh_mng_init", "see the operand in the status", "operand#", "value");

    // KeyIDs that somebody has: a TD from its creation until its key is freed.
    private readonly HashSet<uint> _hkids = [];
    private uint _keysMade;

    /// <summary>TDH.MNG.CREATE: a free page becomes the TDR of a new TD, which gets a KeyID.</summary>
    public TdxStatus MngCreate(SimThread thread, Pfn tdr, uint hkid)
    {
        if (!Begin(thread, SeamcallLeaf.TDH_MNG_CREATE, tdr.Value, hkid, out TdxStatus status))
        {
            return status;
        }
        if (hkid < _config.FirstGuestHkid || hkid - _config.FirstGuestHkid >= _config.GuestHkids)
        {
            return thread.Fail(TdxStatus.OPERAND_INVALID.With(TdxOperand.RDX), HkidOutOfRange, hkid, _config.FirstGuestHkid, _config.GuestHkids);
        }
        status = CheckFree(thread, SeamcallLeaf.TDH_MNG_CREATE, tdr, TdxOperand.RCX);
        if (status != TdxStatus.SUCCESS)
        {
            return status;
        }
        _machine.Writing(_hkids);
        if (!_hkids.Add(hkid))
        {
            return thread.Fail(TdxStatus.HKID_NOT_FREE, HkidInUse, hkid);
        }
        _machine.Writing(_tds, tdr.Value, tdr.Value + 1);
        _tds.Add(tdr.Value, new Td { Tdr = tdr, Hkid = hkid, Sept = new Sept(_machine, 4) });
        _pamt[tdr] = new PamtEntry(TdxPageType.TDR, default, 0, 0, (uint)thread.Call);
        return TdxStatus.SUCCESS;
    }

    /// <summary>TDH.MNG.KEY.CONFIG on a package: the KeyID gets a new key. On the last package the TD can be built.</summary>
    public TdxStatus MngKeyConfig(SimThread thread, Pfn tdr, int package)
    {
        using var hold = new TdxHold();
        if (!Begin(thread, SeamcallLeaf.TDH_MNG_KEY_CONFIG, tdr.Value, (ulong)package, out TdxStatus status))
        {
            return status;
        }
        status = LockTdr(thread, SeamcallLeaf.TDH_MNG_KEY_CONFIG, tdr, TdxOperand.RCX, exclusive: true, hold, out Td td);
        if (status != TdxStatus.SUCCESS)
        {
            return status;
        }
        if (td.Lifecycle != TdLifecycle.HkidAssigned)
        {
            return thread.Fail(TdxStatus.LIFECYCLE_STATE_INCORRECT, WrongLifecycle, (ulong)SeamcallLeaf.TDH_MNG_KEY_CONFIG, (ulong)td.Lifecycle);
        }
        uint bit = 1u << package;
        if ((td.KeyPackages & bit) != 0)
        {
            return thread.Fail(TdxStatus.KEY_CONFIGURED, KeyIsConfigured, td.Hkid, (ulong)package);
        }
        td.KeyPackages |= bit;
        if (td.KeyPackages == (1u << _config.Packages) - 1)
        {
            // A key that was never used before, so that a KeyID's next guest cannot read what its last one left.
            _machine.Writing(_hkids);
            td.Key = ++_keysMade;
            td.Lifecycle = TdLifecycle.KeysConfigured;
            _machine.Memory.Zero(tdr, td.Key);
        }
        return TdxStatus.SUCCESS;
    }

    /// <summary>TDH.MNG.ADDCX: one more control page for the TD.</summary>
    public TdxStatus MngAddcx(SimThread thread, Pfn page, Pfn tdr)
    {
        const SeamcallLeaf leaf = SeamcallLeaf.TDH_MNG_ADDCX;
        using var hold = new TdxHold();
        if (!Begin(thread, leaf, page.Value, tdr.Value, out TdxStatus status))
        {
            return status;
        }
        status = LockTdr(thread, leaf, tdr, TdxOperand.RDX, exclusive: true, hold, out Td td);
        status = status != TdxStatus.SUCCESS ? status : CheckBuilt(thread, leaf, td, needsTdcs: false);
        if (status != TdxStatus.SUCCESS)
        {
            return status;
        }
        if (td.OpState != TdOpState.Uninitialized)
        {
            return thread.Fail(TdxStatus.OP_STATE_INCORRECT, WrongOpState, (ulong)leaf, (ulong)td.OpState);
        }
        if (td.Tdcx >= _config.MaxTdcsPages)
        {
            return thread.Fail(TdxStatus.TDCX_NUM_INCORRECT, TooManyTdcx, (ulong)leaf, (ulong)td.Tdcx, (ulong)_config.MaxTdcsPages);
        }
        status = CheckFree(thread, leaf, page, TdxOperand.RCX);
        if (status != TdxStatus.SUCCESS)
        {
            return status;
        }
        Give(thread, page, TdxPageType.TDCX, td);
        td.Tdcx++;
        return TdxStatus.SUCCESS;
    }

    /// <summary>TDH.MNG.INIT: what the TD is, once and for all.</summary>
    /// <param name="tdParams">TD_PARAMS, 1024 bytes.</param>
    /// <param name="rcx">RCX: leaf and sub-leaf of a CPUID value that is refused.</param>
    public TdxStatus MngInit(SimThread thread, Pfn tdr, ReadOnlySpan<byte> tdParams, out ulong rcx)
    {
        const SeamcallLeaf leaf = SeamcallLeaf.TDH_MNG_INIT;
        rcx = 0;
        using var hold = new TdxHold();
        if (!Begin(thread, leaf, tdr.Value, 0, out TdxStatus status))
        {
            return status;
        }
        status = LockTdr(thread, leaf, tdr, TdxOperand.RCX, exclusive: true, hold, out Td td);
        status = status != TdxStatus.SUCCESS ? status : CheckState(thread, leaf, td, exclusive: true, TdOpState.Uninitialized, TdOpState.Uninitialized, hold);
        if (status != TdxStatus.SUCCESS)
        {
            return status;
        }
        thread.Step(LockedStep, (ulong)leaf, tdr.Value);
        var parameters = new TdParams(tdParams);
        status = parameters.Check(_config, out ulong value, out rcx);
        if (status != TdxStatus.SUCCESS)
        {
            return thread.Fail(status, BadTdParams, (uint)status, value);
        }
        td.Attributes = parameters.Attributes;
        td.Xfam = parameters.Xfam;
        td.MaxVcpus = parameters.MaxVcpus;
        td.TscFrequency = parameters.TscFrequency;
        td.ConfigFlags = parameters.ConfigFlags;
        td.Gpaw = (parameters.ConfigFlags & TdParams.Gpaw) != 0 ? 52 : 48;
        td.Sept = new Sept(_machine, (int)((parameters.EptpControls >> 3) & 7) + 1);
        td.Mrconfigid = parameters.Mrconfigid.ToArray();
        td.Mrowner = parameters.Mrowner.ToArray();
        td.Mrownerconfig = parameters.Mrownerconfig.ToArray();
        td.CpuidValues = new uint[_config.CpuidSlots.Count * 4];
        for (int i = 0; i < td.CpuidValues.Length; i++)
        {
            td.CpuidValues[i] = parameters.Cpuid(i / 4, i % 4);
        }
        td.OpState = TdOpState.Initialized;
        return TdxStatus.SUCCESS;
    }
}
