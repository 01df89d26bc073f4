using System.Runtime.InteropServices;
using SimKvm.Abi;

namespace SimKvm.Kvm;

/// <summary>Segment registers in the order in which a VMCB has them.</summary>
internal enum VmcbSegment
{
    ES,
    CS,
    SS,
    DS,
    FS,
    GS,
    GDTR,
    LDTR,
    IDTR,
    TR,
}

/// <summary>A segment register in a VMCB and a VMSA, 16 bytes (struct vmcb_seg).</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct vmcb_seg
{
    public ushort selector;

    /// <summary>Descriptor bits 55:52 and 47:40: type 3:0, S 4, DPL 6:5, P 7, AVL 8, L 9, DB 10, G 11.</summary>
    public ushort attrib;
    public uint limit;
    public ulong @base;
}

/// <summary>
/// The state save area of a vCPU's VMCB: what kvm_amd has put there for the processor, as opposed to what user space asked for
/// (<see cref="VcpuArch"/>, next door). The two differ where SVM forces something, and a VMSA is a copy of this side.
/// </summary>
/// <remarks>
/// Invariant: EFER.SVME is set, CR4 has the host's MCE, CR0 has neither CD nor NW. CR2 is missing because KVM stores it only when it enters the
/// guest; a vCPU that has not run has 0 there.
/// </remarks>
internal sealed class VmcbSave
{
    public const ulong EferSvme = 1UL << 12;

    // SVM_SELECTOR_*
    private const int SShift = 4;
    private const int DplShift = 5;
    private const int PShift = 7;
    private const int AvlShift = 8;
    private const int LShift = 9;
    private const int DbShift = 10;
    private const int GShift = 11;

    private const ushort DataSegment = 0x92;
    private const ushort CodeSegment = 0x9A;
    private const ushort Ldt = 0x82;
    private const ushort BusyTss16 = 0x83;
    private const uint RealModeLimit = 0xFFFF;

    private readonly vmcb_seg[] _segments = new vmcb_seg[10];

    // init_vmcb: a processor as it comes out of RESET.
    public VmcbSave()
    {
        foreach (VmcbSegment data in (ReadOnlySpan<VmcbSegment>)[VmcbSegment.ES, VmcbSegment.SS, VmcbSegment.DS, VmcbSegment.FS, VmcbSegment.GS])
        {
            this[data] = new vmcb_seg { attrib = DataSegment, limit = RealModeLimit };
        }
        this[VmcbSegment.CS] = new vmcb_seg { selector = 0xF000, attrib = CodeSegment, limit = RealModeLimit, @base = 0xFFFF_0000 };
        this[VmcbSegment.GDTR] = new vmcb_seg { limit = RealModeLimit };
        this[VmcbSegment.IDTR] = new vmcb_seg { limit = RealModeLimit };
        this[VmcbSegment.LDTR] = new vmcb_seg { attrib = Ldt, limit = RealModeLimit };
        this[VmcbSegment.TR] = new vmcb_seg { attrib = BusyTss16, limit = RealModeLimit };
    }

    public byte Cpl { get; private set; }

    public ulong Efer { get; set; }

    public ulong Cr4 { get; set; }

    public ulong Cr3 { get; set; }

    public ulong Cr0 { get; set; }

    public ulong Dr7 { get; set; }

    public ulong Star { get; set; }

    public ulong Lstar { get; set; }

    public ulong Cstar { get; set; }

    public ulong Sfmask { get; set; }

    public ulong KernelGsBase { get; set; }

    public ulong SysenterCs { get; set; }

    public ulong SysenterEsp { get; set; }

    public ulong SysenterEip { get; set; }

    public ulong GPat { get; set; }

    public ulong Dbgctl { get; set; }

    public ulong SpecCtrl { get; set; }

    public ref vmcb_seg this[VmcbSegment segment] => ref _segments[(int)segment];

    /// <summary>The ten segment registers, 160 bytes in the layout of the save area.</summary>
    public ReadOnlySpan<byte> SegmentBytes => MemoryMarshal.AsBytes<vmcb_seg>(_segments);

    /// <summary>svm_set_segment. CPL follows SS.DPL; a segment that is marked unusable loses its P bit.</summary>
    public void SetSegment(VmcbSegment segment, in kvm_segment var)
    {
        bool present = (var.present & 1) != 0 && var.unusable == 0;
        this[segment] = new vmcb_seg
        {
            @base = var.@base,
            limit = var.limit,
            selector = var.selector,
            attrib = (ushort)((var.type & 0xF) | ((var.s & 1) << SShift) | ((var.dpl & 3) << DplShift) | ((present ? 1 : 0) << PShift) |
                ((var.avl & 1) << AvlShift) | ((var.l & 1) << LShift) | ((var.db & 1) << DbShift) | ((var.g & 1) << GShift)),
        };
        if (segment == VmcbSegment.SS)
        {
            Cpl = (byte)(var.dpl & 3);
        }
    }

    /// <summary>
    /// svm_get_segment. Not the inverse of <see cref="SetSegment"/>: G is made up from the limit, a data segment reads as accessed and a TSS as busy.
    /// So a VMM that writes back what it read changes the attributes of a fresh vCPU (0x92 becomes 0x93), and with them the launch digest.
    /// </summary>
    public kvm_segment GetSegment(VmcbSegment segment)
    {
        const byte accessed = 1;
        const byte busy = 2;
        const uint largestByteLimit = 0xF_FFFF;
        vmcb_seg seg = this[segment];
        int Bit(int shift) => (seg.attrib >> shift) & 1;
        var var = new kvm_segment
        {
            @base = seg.@base,
            limit = seg.limit,
            selector = seg.selector,
            type = (byte)(seg.attrib & 0xF),
            s = (byte)Bit(SShift),
            dpl = (byte)((seg.attrib >> DplShift) & 3),
            present = (byte)Bit(PShift),
            avl = (byte)Bit(AvlShift),
            l = (byte)Bit(LShift),
            db = (byte)Bit(DbShift),
            g = (byte)(seg.limit > largestByteLimit ? 1 : 0),
            unusable = (byte)(Bit(PShift) ^ 1),
        };
        switch (segment)
        {
            case VmcbSegment.TR:
                var.type |= busy;
                break;
            case VmcbSegment.DS or VmcbSegment.ES or VmcbSegment.FS or VmcbSegment.GS when var.unusable == 0:
                var.type |= accessed;
                break;
            case VmcbSegment.SS:
                if (var.unusable != 0)
                {
                    var.db = 0;
                }
                var.dpl = Cpl;
                break;
            default:
                break;
        }
        return var;
    }

    /// <summary>svm_set_gdt, svm_set_idt.</summary>
    public void SetTable(VmcbSegment table, in kvm_dtable dt)
    {
        this[table].limit = dt.limit;
        this[table].@base = dt.@base;
    }

    /// <summary>svm_get_gdt, svm_get_idt.</summary>
    public kvm_dtable GetTable(VmcbSegment table) => new() { limit = (ushort)this[table].limit, @base = this[table].@base };
}
