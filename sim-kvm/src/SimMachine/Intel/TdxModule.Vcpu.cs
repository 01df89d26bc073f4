using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimMachine.Intel;

// vCPUs of TDs: TDH.VP.CREATE, ADDCX, INIT, ENTER, FLUSH; and what is tracked of those inside (TDH.MEM.TRACK).
public sealed partial class TdxModule
{
    public static readonly Rule NotATdvpr = new(
        "tdx.tdvpr.type", "the page is not the TDVPR of a vCPU", "check_and_lock_explicit_4k_private_hpa", "use the page given to TDH.VP.CREATE", "leaf#", "pfn", "page_type#");

    public static readonly Rule VcpuState = new(
        "tdx.vcpu.state", "the vCPU is initialised already, or not yet", "tdh_vp_addcx, tdh_vp_init, tdh_vp_enter", "TDH.VP.CREATE, ADDCX, INIT once each, in this order", "leaf#", "initialised#");

    public static readonly Rule TooManyVcpus = new(
        "tdx.vp-init.max-vcpus", "the TD has as many vCPUs as TD_PARAMS allows", "tdh_vp_init", "ask for more in TD_PARAMS", "vcpus#", "max_vcpus#");

    public static readonly Rule NotAssociated = new(
        "tdx.vp-flush.not-associated", "no processor has state of the vCPU", "tdh_vp_flush", "nothing is to be done", "tdvpr");

    public static readonly Rule IsInside = new(
        "tdx.vcpu.inside", "the vCPU is running", "tdh_vp_enter, tdh_vp_flush", "kick it out first", "leaf#", "tdvpr");

    public static readonly Rule PreviousEpoch = new(
        "tdx.track.previous-epoch", "a vCPU is still inside that entered in the previous epoch", "tdh_mem_track", "kick it out, and call again", "epoch#");

    /// <summary>TDH.VP.CREATE: a free page becomes the TDVPR of a new vCPU.</summary>
    public TdxStatus VpCreate(SimThread thread, Pfn tdvpr, Pfn tdr)
    {
        const SeamcallLeaf leaf = SeamcallLeaf.TDH_VP_CREATE;
        using var hold = new TdxHold();
        if (!Begin(thread, leaf, tdvpr.Value, tdr.Value, out TdxStatus status))
        {
            return status;
        }
        status = LockTdr(thread, leaf, tdr, TdxOperand.RDX, exclusive: false, hold, out Td td);
        status = status != TdxStatus.SUCCESS ? status : CheckState(thread, leaf, td, exclusive: false, TdOpState.Initialized, TdOpState.Initialized, hold);
        status = status != TdxStatus.SUCCESS ? status : CheckFree(thread, leaf, tdvpr, TdxOperand.RCX);
        if (status != TdxStatus.SUCCESS)
        {
            return status;
        }
        Give(thread, tdvpr, TdxPageType.TDVPR, td);
        _machine.Writing(_vcpus, tdvpr.Value, tdvpr.Value + 1);
        _vcpus.Add(tdvpr.Value, new TdVcpu { Td = td, Tdvpr = tdvpr });
        return TdxStatus.SUCCESS;
    }

    /// <summary>TDH.VP.ADDCX: one more control page for the vCPU.</summary>
    public TdxStatus VpAddcx(SimThread thread, Pfn page, Pfn tdvpr)
    {
        const SeamcallLeaf leaf = SeamcallLeaf.TDH_VP_ADDCX;
        using var hold = new TdxHold();
        if (!Begin(thread, leaf, page.Value, tdvpr.Value, out TdxStatus status))
        {
            return status;
        }
        status = FindVcpu(thread, leaf, tdvpr, TdxOperand.RDX, hold, out TdVcpu vcpu);
        status = status != TdxStatus.SUCCESS ? status : CheckState(thread, leaf, vcpu.Td, exclusive: false, TdOpState.Initialized, TdOpState.Initialized, hold);
        if (status != TdxStatus.SUCCESS)
        {
            return status;
        }
        if (vcpu.Initialized)
        {
            return thread.Fail(TdxStatus.VCPU_STATE_INCORRECT, VcpuState, (ulong)leaf, 1);
        }
        if (vcpu.Pages >= _config.TdvpsPages)
        {
            return thread.Fail(TdxStatus.TDCX_NUM_INCORRECT, TooManyTdcx, (ulong)leaf, (ulong)vcpu.Pages, (ulong)_config.TdvpsPages);
        }
        status = CheckFree(thread, leaf, page, TdxOperand.RCX);
        if (status != TdxStatus.SUCCESS)
        {
            return status;
        }
        Give(thread, page, TdxPageType.TDCX, vcpu.Td);
        vcpu.Pages++;
        return TdxStatus.SUCCESS;
    }

    /// <summary>TDH.VP.INIT, versions 0 and 1: the vCPU stands at the reset vector.</summary>
    /// <param name="rcx">RCX and R8 of the vCPU.</param>
    /// <param name="x2apicId">As the TD sees it; null (version 0) for the vCPU's index.</param>
    public TdxStatus VpInit(SimThread thread, Pfn tdvpr, ulong rcx, uint? x2apicId)
    {
        const SeamcallLeaf leaf = SeamcallLeaf.TDH_VP_INIT;
        using var hold = new TdxHold();
        if (!Begin(thread, leaf, tdvpr.Value, rcx, out TdxStatus status))
        {
            return status;
        }
        status = FindVcpu(thread, leaf, tdvpr, TdxOperand.RCX, hold, out TdVcpu vcpu);
        status = status != TdxStatus.SUCCESS ? status : CheckState(thread, leaf, vcpu.Td, exclusive: false, TdOpState.Initialized, TdOpState.Initialized, hold);
        if (status != TdxStatus.SUCCESS)
        {
            return status;
        }
        if (vcpu.Initialized)
        {
            return thread.Fail(TdxStatus.VCPU_STATE_INCORRECT, VcpuState, (ulong)leaf, 1);
        }
        if (vcpu.Pages < _config.TdvpsPages)
        {
            return thread.Fail(TdxStatus.TDCX_NUM_INCORRECT, TooManyTdcx, (ulong)leaf, (ulong)vcpu.Pages, (ulong)_config.TdvpsPages);
        }
        _machine.Writing(vcpu.Td.Vcpus);
        if (vcpu.Td.Vcpus.Count >= vcpu.Td.MaxVcpus)
        {
            return thread.Fail(TdxStatus.MAX_VCPUS_EXCEEDED, TooManyVcpus, (ulong)vcpu.Td.Vcpus.Count, (ulong)vcpu.Td.MaxVcpus);
        }
        vcpu.Index = vcpu.Td.Vcpus.Count;
        vcpu.InitialRcx = rcx;
        vcpu.X2apicId = x2apicId ?? (uint)vcpu.Index;
        vcpu.Initialized = vcpu.Associated = true;
        vcpu.Td.Vcpus.Add(vcpu);
        return TdxStatus.SUCCESS;
    }

    /// <summary>
    /// TDH.VP.ENTER: the vCPU runs from here on until <see cref="VpExit"/>. What it does inside are its memory accesses (<see cref="GuestAccess"/>) and TDCALLs, so this
    /// returns at once.
    /// </summary>
    public TdxStatus VpEnter(SimThread thread, Pfn tdvpr)
    {
        const SeamcallLeaf leaf = SeamcallLeaf.TDH_VP_ENTER;
        using var hold = new TdxHold();
        if (!Begin(thread, leaf, tdvpr.Value, 0, out TdxStatus status))
        {
            return status;
        }
        status = FindVcpu(thread, leaf, tdvpr, TdxOperand.RCX, hold, out TdVcpu vcpu);
        status = status != TdxStatus.SUCCESS ? status : CheckState(thread, leaf, vcpu.Td, exclusive: false, TdOpState.Runnable, TdOpState.Runnable, hold);
        if (status != TdxStatus.SUCCESS)
        {
            return status;
        }
        if (!vcpu.Initialized)
        {
            return thread.Fail(TdxStatus.VCPU_STATE_INCORRECT, VcpuState, (ulong)leaf, 0);
        }
        if (vcpu.InsideSince is not null)
        {
            return thread.Fail(TdxStatus.OPERAND_BUSY.With(TdxOperand.RCX), IsInside, (ulong)leaf, tdvpr.Value);
        }
        // Those who go in and out do not notice each other; who asks whether all are out notices them (IsTracked).
        _machine.Reading(vcpu.Td.EpochLock);
        vcpu.Associated = true;
        vcpu.PendNmi = false;
        vcpu.InsideSince = vcpu.Td.Enter();
        return TdxStatus.SUCCESS;
    }

    /// <summary>The vCPU leaves the TD, for an exit of its own or because an interrupt kicks it out. Nothing if it is outside.</summary>
    public void VpExit(Pfn tdvpr)
    {
        if (TryGetVcpu(tdvpr, out TdVcpu vcpu) && vcpu.InsideSince is { } epoch)
        {
            _machine.Writing(vcpu);
            _machine.Reading(vcpu.Td.EpochLock);
            vcpu.InsideSince = null;
            vcpu.Td.Leave(epoch);
        }
    }

    /// <summary>Whether the vCPU is inside the TD.</summary>
    public bool IsVcpuInside(Pfn tdvpr) => TryGetVcpu(tdvpr, out TdVcpu vcpu) && vcpu.InsideSince is not null;

    /// <summary>TDH.VP.FLUSH: no processor keeps state of the vCPU.</summary>
    public TdxStatus VpFlush(SimThread thread, Pfn tdvpr)
    {
        const SeamcallLeaf leaf = SeamcallLeaf.TDH_VP_FLUSH;
        using var hold = new TdxHold();
        if (!Begin(thread, leaf, tdvpr.Value, 0, out TdxStatus status))
        {
            return status;
        }
        status = FindVcpu(thread, leaf, tdvpr, TdxOperand.RCX, hold, out TdVcpu vcpu);
        if (status != TdxStatus.SUCCESS)
        {
            return status;
        }
        if (!vcpu.Associated)
        {
            return thread.Fail(TdxStatus.VCPU_NOT_ASSOCIATED, NotAssociated, tdvpr.Value);
        }
        if (vcpu.InsideSince is not null)
        {
            return thread.Fail(TdxStatus.OPERAND_BUSY.With(TdxOperand.RCX), IsInside, (ulong)leaf, tdvpr.Value);
        }
        vcpu.Associated = false;
        return TdxStatus.SUCCESS;
    }

    /// <summary>TDH.MEM.TRACK: a new epoch begins; what was blocked before is tracked when those who entered before are out.</summary>
    public TdxStatus MemTrack(SimThread thread, Pfn tdr)
    {
        const SeamcallLeaf leaf = SeamcallLeaf.TDH_MEM_TRACK;
        using var hold = new TdxHold();
        if (!Begin(thread, leaf, tdr.Value, 0, out TdxStatus status))
        {
            return status;
        }
        status = LockTdr(thread, leaf, tdr, TdxOperand.RCX, exclusive: false, hold, out Td td);
        status = status != TdxStatus.SUCCESS ? status : CheckState(thread, leaf, td, exclusive: false, TdOpState.Initialized, TdOpState.Runnable, hold);
        status = status != TdxStatus.SUCCESS ? status : Lock(thread, leaf, td.EpochLock, exclusive: true, TdxOperand.TD_EPOCH, hold);
        if (status != TdxStatus.SUCCESS)
        {
            return status;
        }
        thread.Step(LockedStep, (ulong)leaf, tdr.Value);
        if (td.IsInsideSince(td.Epoch - 1))
        {
            return thread.Fail(TdxStatus.PREVIOUS_TLB_EPOCH_BUSY, PreviousEpoch, td.Epoch);
        }
        td.NextEpoch();
        return TdxStatus.SUCCESS;
    }

    private TdxStatus FindVcpu(SimThread thread, SeamcallLeaf leaf, Pfn tdvpr, TdxOperand operand, TdxHold hold, out TdVcpu vcpu)
    {
        if (!TryGetVcpu(tdvpr, out vcpu))
        {
            TdxStatus bad = CheckAddress(thread, leaf, tdvpr, operand);
            return bad != TdxStatus.SUCCESS ? bad
                : thread.Fail(TdxStatus.PAGE_METADATA_INCORRECT.With(operand), NotATdvpr, (ulong)leaf, tdvpr.Value, (ulong)_pamt[tdvpr].Type);
        }
        _machine.Writing(vcpu);
        return Lock(thread, leaf, vcpu.Td.Lock, exclusive: false, TdxOperand.TDR, hold);
    }

    private bool TryGetVcpu(Pfn tdvpr, out TdVcpu vcpu)
    {
        _machine.Reading(_vcpus, tdvpr.Value, tdvpr.Value + 1);
        if (!_vcpus.TryGetValue(tdvpr.Value, out vcpu!))
        {
            return false;
        }
        _machine.Reading(vcpu);
        return true;
    }
}
