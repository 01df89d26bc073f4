namespace VmmService.Client.Launch;

/// <summary>
/// Attributes of a segment as a VMSA (and the VMCB) has them: type 3:0, S 4, DPL 6:5, P 7, AVL 8, L 9, D/B 10, G 11. The properties are the fields of the
/// kernel's struct kvm_segment, to which user space has to take them apart (snp.md 7.2).
/// </summary>
public readonly record struct SegmentAttributes(ushort Value)
{
    public byte Type => (byte)(Value & 0xf);

    public byte S => Bit(4);

    public byte Dpl => (byte)((Value >> 5) & 3);

    public byte Present => Bit(7);

    public byte Avl => Bit(8);

    public byte L => Bit(9);

    public byte Db => Bit(10);

    public byte G => Bit(11);

    /// <summary>kvm_segment.unusable: KVM stores P as present and not unusable, so a segment that is not present says both.</summary>
    public byte Unusable => (byte)(1 - Present);

    public override string ToString() => $"0x{Value:x}";

    private byte Bit(int bit) => (byte)((Value >> bit) & 1);
}

/// <summary>A segment register.</summary>
/// <param name="Limit">In bytes, as the VMSA has it: with G set it is already multiplied out.</param>
public readonly record struct SegmentState(ushort Selector, SegmentAttributes Attrib, uint Limit, ulong Base);

/// <summary>GDTR or IDTR.</summary>
public readonly record struct DescriptorTableState(ushort Limit, ulong Base);

/// <summary>
/// The registers with which a vCPU is measured: what its VMSA has to hold when SNP_LAUNCH_FINISH makes it. How to get them there with KVM_SET_SREGS and the like
/// is the launcher's; which they are for a VMM is <see cref="VmmFlavor"/>'s. All registers that are not here are zero.
/// </summary>
/// <remarks>
/// <see cref="SvmeEfer"/> and <see cref="MceCr4"/> are in the VMSA whatever user space sets, because KVM puts them there, and KVM_SET_SREGS refuses EFER.SVME to a
/// vCPU without the feature: <see cref="SregsEfer"/> and <see cref="SregsCr4"/> are without them.
/// </remarks>
public sealed record VcpuResetState
{
    /// <summary>EFER.SVME, which KVM sets in every guest's VMCB.</summary>
    public const ulong SvmeEfer = 0x1000;

    /// <summary>CR4.MCE, which KVM keeps set while the host has it.</summary>
    public const ulong MceCr4 = 0x40;

    public required SegmentState Es { get; init; }

    public required SegmentState Cs { get; init; }

    public required SegmentState Ss { get; init; }

    public required SegmentState Ds { get; init; }

    public required SegmentState Fs { get; init; }

    public required SegmentState Gs { get; init; }

    public required SegmentState Ldtr { get; init; }

    public required SegmentState Tr { get; init; }

    public required DescriptorTableState Gdtr { get; init; }

    public required DescriptorTableState Idtr { get; init; }

    public ulong Cr0 { get; init; } = 0x10;

    public ulong Cr3 { get; init; }

    public ulong Cr4 { get; init; } = MceCr4;

    public ulong Efer { get; init; } = SvmeEfer;

    public ulong Rflags { get; init; } = 2;

    public required ulong Rip { get; init; }

    public ulong Rax { get; init; }

    public ulong Rbx { get; init; }

    public ulong Rcx { get; init; }

    public ulong Rdx { get; init; }

    public ulong Rsi { get; init; }

    public ulong Rdi { get; init; }

    public ulong Rbp { get; init; }

    public ulong Rsp { get; init; }

    public ulong R8 { get; init; }

    public ulong R9 { get; init; }

    public ulong R10 { get; init; }

    public ulong R11 { get; init; }

    public ulong R12 { get; init; }

    public ulong R13 { get; init; }

    public ulong R14 { get; init; }

    public ulong R15 { get; init; }

    public ulong Dr6 { get; init; } = 0xffff0ff0;

    public ulong Dr7 { get; init; } = 0x400;

    /// <summary>MSR IA32_PAT.</summary>
    public required ulong GPat { get; init; }

    public required uint Mxcsr { get; init; }

    /// <summary>x87 control word.</summary>
    public required ushort Fcw { get; init; }

    public ulong Xcr0 { get; init; } = 1;

    /// <summary>EFER for KVM_SET_SREGS.</summary>
    public ulong SregsEfer => Efer & ~SvmeEfer;

    /// <summary>CR4 for KVM_SET_SREGS.</summary>
    public ulong SregsCr4 => Cr4 & ~MceCr4;
}
