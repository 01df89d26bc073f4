using SimMachine.Addressing;
using SimMachine.Measurement;
using SimMachine.Stepping;

namespace SimMachine.Intel;

// TDH.MR.EXTEND and TDH.MR.FINALIZE.
public sealed partial class TdxModule
{
    public static readonly Rule BadChunk = new(
        "tdx.mr-extend.gpa", "the address is not that of a chunk of 256 bytes of private memory", "tdh_mr_extend", "extend private memory by chunks of 256 bytes", "rcx", "shared_bit");

    public static readonly Rule ChunkNotPresent = new(
        "tdx.mr-extend.not-present", "the chunk's page was not added", "tdh_mr_extend", "TDH.MEM.PAGE.ADD first", "gpa", "state");

    public static readonly Rule NoVcpus = new(
        "tdx.mr-finalize.no-vcpus", "no vCPU of the TD was initialised", "tdh_mr_finalize", "initialise one first; under KVM the VM is dead by now, so create another", "tdr");

    /// <summary>TDH.MR.EXTEND: 256 bytes of a page that was added go into MRTD.</summary>
    /// <param name="gpa">RCX: of the chunk.</param>
    public TdxStatus MrExtend(SimThread thread, Pfn tdr, ulong gpa, out SeptInfo info)
    {
        const SeamcallLeaf leaf = SeamcallLeaf.TDH_MR_EXTEND;
        info = default;
        using var hold = new TdxHold();
        if (!Begin(thread, leaf, gpa, tdr.Value, out TdxStatus status))
        {
            return status;
        }
        status = LockTdr(thread, leaf, tdr, TdxOperand.RDX, exclusive: false, hold, out Td td);
        status = status != TdxStatus.SUCCESS ? status : CheckState(thread, leaf, td, exclusive: true, TdOpState.Initialized, TdOpState.Initialized, hold);
        if (status != TdxStatus.SUCCESS)
        {
            return status;
        }
        if (gpa % MrtdTranscript.ChunkSize != 0 || gpa >= td.SharedBit)
        {
            return thread.Fail(TdxStatus.OPERAND_INVALID.With(TdxOperand.RCX), BadChunk, gpa, td.SharedBit);
        }
        status = Lock(thread, leaf, td.Sept.Lock, exclusive: false, TdxOperand.SEPT_TREE, hold);
        if (status != TdxStatus.SUCCESS)
        {
            return status;
        }
        bool reached = td.Sept.Walk(gpa, 0, out int level, out SeptEntry entry);
        info = new SeptInfo(entry.Architectural, level, entry.State);
        if (!reached)
        {
            return thread.Fail(TdxStatus.EPT_ENTRY_NOT_PRESENT.With(TdxOperand.RCX), ChunkNotPresent, gpa, (ulong)entry.State);
        }
        if (entry.State != SeptState.MAPPED)
        {
            return thread.Fail(TdxStatus.EPT_ENTRY_NOT_PRESENT, ChunkNotPresent, gpa, (ulong)entry.State);
        }
        Span<byte> chunk = stackalloc byte[MrtdTranscript.ChunkSize];
        _machine.Memory.Read(entry.Pfn, (int)(gpa & PageSize.OffsetMask), chunk, td.Key);
        td.Mrtd.MrExtend(gpa, chunk);
        return TdxStatus.SUCCESS;
    }

    /// <summary>TDH.MR.FINALIZE: MRTD is final and the TD may run.</summary>
    public TdxStatus MrFinalize(SimThread thread, Pfn tdr)
    {
        const SeamcallLeaf leaf = SeamcallLeaf.TDH_MR_FINALIZE;
        using var hold = new TdxHold();
        if (!Begin(thread, leaf, tdr.Value, 0, out TdxStatus status))
        {
            return status;
        }
        status = LockTdr(thread, leaf, tdr, TdxOperand.RCX, exclusive: true, hold, out Td td);
        status = status != TdxStatus.SUCCESS ? status : CheckState(thread, leaf, td, exclusive: true, TdOpState.Initialized, TdOpState.Initialized, hold);
        if (status != TdxStatus.SUCCESS)
        {
            return status;
        }
        thread.Step(LockedStep, (ulong)leaf, tdr.Value);
        if (td.Vcpus.Count == 0)
        {
            return thread.Fail(TdxStatus.NO_VCPUS, NoVcpus, tdr.Value);
        }
        td.FinalMrtd = td.Mrtd.Current;
        td.OpState = TdOpState.Runnable;
        return TdxStatus.SUCCESS;
    }
}
