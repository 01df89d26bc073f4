using SimMachine.Addressing;
using SimMachine.Amd;
using SimMachine.Stepping;

namespace SimMachine.Intel;

// Metadata fields by their ids: TDH.MNG.RD of a TD, TDH.VP.RD and WR of a vCPU, TDG.VM.RD and WR by the TD itself. The fields are those that kernels and guests ask for; a TD
// without DEBUG keeps the others to itself.
public sealed partial class TdxModule
{
    public static readonly Rule FieldNotReadable = new(
        "tdx.metadata.not-readable", "there is no such field, or not for the host of a TD without DEBUG", "md_read", "read CPUID_VALUES (0x9410000300000000), or a field that KVM reads", "leaf#", "field");

    public static readonly Rule FieldNotWritable = new(
        "tdx.metadata.not-writable", "the field, or a bit of it, cannot be written", "md_write", "write PEND_NMI (0x200000000000000b) of a vCPU, 0 or 1", "leaf#", "field", "mask");

    // Field ids, without the bits that select a leaf of CPUID_VALUES.
    private const ulong CpuidValuesField = 0x9410_0003_0000_0000;
    private const ulong ConfigFlagsField = 0x1110_0003_0000_0016;
    private const ulong TdCtlsField = 0x1110_0003_0000_0017;
    private const ulong NotifyEnablesField = 0x9100_0000_0000_0010;
    private const ulong VcpuStateDetailsField = 0x9100_0000_0000_0100;
    private const ulong PendNmiField = 0x2000_0000_0000_000b;

    /// <summary>TDH.MNG.RD.</summary>
    private TdxStatus MngRd(SimThread thread, Pfn tdr, ulong field, ref TdcallRegisters registers)
    {
        const SeamcallLeaf leaf = SeamcallLeaf.TDH_MNG_RD;
        registers.R8 = 0;
        using var hold = new TdxHold();
        if (!Begin(thread, leaf, tdr.Value, field, out TdxStatus status))
        {
            return status;
        }
        status = LockTdr(thread, leaf, tdr, TdxOperand.RCX, exclusive: false, hold, out Td td);
        status = status != TdxStatus.SUCCESS ? status : CheckState(thread, leaf, td, exclusive: false, TdOpState.Initialized, TdOpState.Runnable, hold);
        if (status != TdxStatus.SUCCESS)
        {
            return status;
        }
        if (ReadTd(td, field) is not { } value)
        {
            return thread.Fail(TdxStatus.METADATA_FIELD_NOT_READABLE, FieldNotReadable, (ulong)leaf, field);
        }
        registers.R8 = value;
        return TdxStatus.SUCCESS;
    }

    /// <summary>TDH.VP.RD.</summary>
    private TdxStatus VpRd(SimThread thread, Pfn tdvpr, ulong field, ref TdcallRegisters registers)
    {
        const SeamcallLeaf leaf = SeamcallLeaf.TDH_VP_RD;
        registers.R8 = 0;
        using var hold = new TdxHold();
        TdxStatus status = EnterVcpuMetadata(thread, leaf, tdvpr, field, hold, out TdVcpu vcpu);
        if (status != TdxStatus.SUCCESS)
        {
            return status;
        }
        switch (field)
        {
            case PendNmiField:
                registers.R8 = vcpu.PendNmi ? 1UL : 0;
                return TdxStatus.SUCCESS;
            case VcpuStateDetailsField:
                // No virtual interrupt waits to be delivered.
                return TdxStatus.SUCCESS;
            default:
                return thread.Fail(TdxStatus.METADATA_FIELD_NOT_READABLE, FieldNotReadable, (ulong)leaf, field);
        }
    }

    /// <summary>TDH.VP.WR: bits of the mask in R9 are taken from R8.</summary>
    private TdxStatus VpWr(SimThread thread, Pfn tdvpr, ulong field, ref TdcallRegisters registers)
    {
        const SeamcallLeaf leaf = SeamcallLeaf.TDH_VP_WR;
        (ulong value, ulong mask) = (registers.R8, registers.R9);
        registers.R8 = 0;
        using var hold = new TdxHold();
        TdxStatus status = EnterVcpuMetadata(thread, leaf, tdvpr, field, hold, out TdVcpu vcpu);
        if (status != TdxStatus.SUCCESS)
        {
            return status;
        }
        if (field != PendNmiField || (mask & ~1UL) != 0)
        {
            return thread.Fail(TdxStatus.METADATA_FIELD_NOT_WRITABLE, FieldNotWritable, (ulong)leaf, field, mask);
        }
        registers.R8 = vcpu.PendNmi ? 1UL : 0;
        vcpu.PendNmi = mask == 0 ? vcpu.PendNmi : (value & 1) != 0;
        return TdxStatus.SUCCESS;
    }

    /// <summary>TDH.VP.WR of PEND_NMI: the vCPU gets an NMI when it enters.</summary>
    public TdxStatus VpWrPendNmi(SimThread thread, Pfn tdvpr)
    {
        var registers = new TdcallRegisters { R8 = 1, R9 = 1 };
        return VpWr(thread, tdvpr, PendNmiField, ref registers);
    }

    /// <summary>TDH.PHYMEM.PAGE.WBINVD: of a page that no TD has, so that what a TD left in caches cannot reach it later.</summary>
    public TdxStatus PhymemPageWbinvd(SimThread thread, Pfn page)
    {
        const SeamcallLeaf leaf = SeamcallLeaf.TDH_PHYMEM_PAGE_WBINVD;
        return !Begin(thread, leaf, page.Value, 0, out TdxStatus status) ? status : CheckFree(thread, leaf, page, TdxOperand.RCX);
    }

    // TDG.VM.RD: RDX is the field, R8 its value.
    private void VmRd(TdVcpu vcpu, ref TdcallRegisters registers)
    {
        ulong? value = registers.Rdx is ConfigFlagsField or TdCtlsField or NotifyEnablesField ? ReadTd(vcpu.Td, registers.Rdx) : null;
        registers.Rax = (ulong)(value is null ? TdxStatus.METADATA_FIELD_NOT_READABLE : TdxStatus.SUCCESS);
        registers.R8 = value ?? 0;
    }

    // TDG.VM.WR: RDX is the field, R8 the value, R9 the mask of the bits to write.
    private static void VmWr(TdVcpu vcpu, ref TdcallRegisters registers)
    {
        (ulong value, ulong mask) = (registers.R8, registers.R9);
        registers.R8 = 0;
        if (registers.Rdx != NotifyEnablesField || (mask & ~1UL) != 0)
        {
            registers.Rax = (ulong)TdxStatus.METADATA_FIELD_NOT_WRITABLE;
            return;
        }
        registers.R8 = vcpu.Td.NotifyEnables;
        vcpu.Td.NotifyEnables = (vcpu.Td.NotifyEnables & ~mask) | (value & mask);
        registers.Rax = (ulong)TdxStatus.SUCCESS;
    }

    private TdxStatus EnterVcpuMetadata(SimThread thread, SeamcallLeaf leaf, Pfn tdvpr, ulong field, TdxHold hold, out TdVcpu vcpu)
    {
        vcpu = null!;
        if (!Begin(thread, leaf, tdvpr.Value, field, out TdxStatus status))
        {
            return status;
        }
        status = FindVcpu(thread, leaf, tdvpr, TdxOperand.RCX, hold, out vcpu);
        return status != TdxStatus.SUCCESS ? status : CheckState(thread, leaf, vcpu.Td, exclusive: false, TdOpState.Initialized, TdOpState.Runnable, hold);
    }

    // What the host, and for some fields the TD, can read of a TD; null for the rest.
    private ulong? ReadTd(Td td, ulong field) => field switch
    {
        ConfigFlagsField => td.ConfigFlags,
        TdCtlsField => 0,
        NotifyEnablesField => td.NotifyEnables,
        _ when (field & ~0x1_ffffUL) == CpuidValuesField => ReadCpuid(td, (uint)field & 0x1_ffff),
        _ => null,
    };

    // Bit 16 is bit 31 of the leaf, 15:9 its low bits, 8 says that there is no sub-leaf, 7:1 are the sub-leaf, 0 selects EAX and EBX or ECX and EDX.
    private ulong? ReadCpuid(Td td, uint selector)
    {
        uint function = ((selector >> 16) << 31) | ((selector >> 9) & 0x7f);
        bool hasSubleaf = (selector & (1 << 8)) == 0;
        uint index = hasSubleaf ? (selector >> 1) & 0x7f : 0;
        foreach (CpuidEntry leaf in VirtualCpuid(td.Tdr))
        {
            if (leaf.Function == function && leaf.Index == index && leaf.SignificantIndex == hasSubleaf)
            {
                return (selector & 1) == 0 ? leaf.Eax | ((ulong)leaf.Ebx << 32) : leaf.Ecx | ((ulong)leaf.Edx << 32);
            }
        }
        return null;
    }
}
