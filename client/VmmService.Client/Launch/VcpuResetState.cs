using System.Buffers.Binary;
using Google.Protobuf;
using VmmService.V1;

namespace VmmService.Client.Launch;

/// <summary>A segment register in the form of a VMSA: the attribute has type, S, DPL, P in bits 7:0 and AVL, L, DB, G in 11:8.</summary>
public readonly record struct VmsaSegment(ushort Selector, ushort Attrib, uint Limit, ulong Base)
{
    /// <summary>The form of KVM_SET_SREGS.</summary>
    public KvmSegment ToKvm() => new()
    {
        Base = Base,
        Limit = Limit,
        Selector = Selector,
        Type = Bits(0, 0xf),
        S = Bits(4, 1),
        Dpl = Bits(5, 3),
        Present = Bits(7, 1),
        Avl = Bits(8, 1),
        L = Bits(9, 1),
        Db = Bits(10, 1),
        G = Bits(11, 1),
    };

    private uint Bits(int shift, uint mask) => ((uint)Attrib >> shift) & mask;
}

/// <summary>
/// The registers that a VMM gives a vCPU before launch, all of which the VMSA measures (snp.md 7.3). What KVM forces (EFER.SVME, CR4.MCE) is not in here.
/// </summary>
public sealed record VcpuResetState
{
    public required VmsaSegment Cs { get; init; }

    public required VmsaSegment Ss { get; init; }

    public required VmsaSegment Tr { get; init; }

    /// <summary>ES, DS, FS and GS.</summary>
    public VmsaSegment Data { get; init; } = new(0, 0x93, 0xffff, 0);

    public VmsaSegment Ldt { get; init; } = new(0, 0x82, 0xffff, 0);

    public required ulong Rip { get; init; }

    public required ulong Rdx { get; init; }

    public required ulong Pat { get; init; }

    public required uint Mxcsr { get; init; }

    public required ushort Fcw { get; init; }

    /// <summary>CD and NW are set at reset; KVM keeps them out of the VMSA.</summary>
    public ulong Cr0 { get; init; } = 0x6000_0010;

    public ulong Xcr0 { get; init; } = 1;

    /// <summary>For KVM_SET_REGS.</summary>
    public KvmRegs Regs() => new() { Rip = Rip, Rdx = Rdx, Rflags = 2 };

    /// <summary>For KVM_SET_SREGS.</summary>
    /// <param name="apicBase">As KVM_GET_SREGS gave it: a VMM leaves it alone.</param>
    public KvmSregs Sregs(ulong apicBase) => new()
    {
        Cs = Cs.ToKvm(),
        Ss = Ss.ToKvm(),
        Ds = Data.ToKvm(),
        Es = Data.ToKvm(),
        Fs = Data.ToKvm(),
        Gs = Data.ToKvm(),
        Tr = Tr.ToKvm(),
        Ldt = Ldt.ToKvm(),
        Gdt = new KvmDtable { Limit = 0xffff },
        Idt = new KvmDtable { Limit = 0xffff },
        Cr0 = Cr0,
        ApicBase = apicBase,
    };

    /// <summary>For KVM_SET_DEBUGREGS.</summary>
    public static KvmDebugregs Debugregs() => new() { Dr6 = 0xffff_0ff0, Dr7 = 0x400 };

    /// <summary>For KVM_SET_XSAVE, the only way to set MXCSR: x87 and SSE state, the rest initial.</summary>
    public ByteString Xsave()
    {
        byte[] area = new byte[4096];
        BinaryPrimitives.WriteUInt16LittleEndian(area, Fcw);
        BinaryPrimitives.WriteUInt32LittleEndian(area.AsSpan(24), Mxcsr);
        BinaryPrimitives.WriteUInt64LittleEndian(area.AsSpan(512), 3);
        return UnsafeByteOperations.UnsafeWrap(area);
    }
}
