using System.Buffers.Binary;
using VmmService.Client.Launch;
using VmmService.V1;

namespace VmmService.Client.Launching;

/// <summary>
/// The registers of <see cref="VcpuResetState"/> in the structures of the ioctls that set them. What KVM forces into a VMSA (EFER.SVME, CR4.MCE) is left out:
/// KVM_SET_SREGS would refuse the one, and has the other anyway.
/// </summary>
internal static class VcpuRegisters
{
    // The XSAVE area in standard format: legacy region, then a header that says which components are in it.
    private const int XsaveBytes = 4096;
    private const int FcwOffset = 0;
    private const int MxcsrOffset = 24;
    private const int XstateBvOffset = 512;
    private const ulong X87AndSse = 3;

    /// <summary>Gives a vCPU its CPUID and the registers that it starts with.</summary>
    public static async Task ApplyAsync(Vcpu vcpu, VcpuResetState state, IReadOnlyList<KvmCpuidEntry2> cpuid, CancellationToken cancellation)
    {
        await vcpu.SetCpuid2Async(cpuid, cancellation);
        KvmSregs fresh = await vcpu.GetSregsAsync(cancellation);
        await vcpu.SetSregsAsync(Sregs(state, fresh.ApicBase), cancellation);
        await vcpu.SetRegsAsync(Regs(state), cancellation);
        long set = await vcpu.SetMsrsAsync([new KvmMsrEntry { Index = KernelNumbers.MSR_IA32_CR_PAT, Data = state.GPat }], cancellation);
        if (set != 1)
            throw new InvalidOperationException($"KVM_SET_MSRS did not take IA32_CR_PAT = 0x{state.GPat:x}");

        await vcpu.SetXcrsAsync([new KvmXcr { Xcr = 0, Value = state.Xcr0 }], cancellation);
        await vcpu.SetXsaveAsync(Xsave(state), cancellation);
        await vcpu.SetDebugregsAsync(Debugregs(state), cancellation);
    }

    /// <summary>For KVM_SET_SREGS.</summary>
    /// <param name="state">The registers wanted.</param>
    /// <param name="apicBase">As the vCPU has it; VMMs leave it alone.</param>
    public static KvmSregs Sregs(VcpuResetState state, ulong apicBase) => new()
    {
        Cs = Segment(state.Cs),
        Ds = Segment(state.Ds),
        Es = Segment(state.Es),
        Fs = Segment(state.Fs),
        Gs = Segment(state.Gs),
        Ss = Segment(state.Ss),
        Tr = Segment(state.Tr),
        Ldt = Segment(state.Ldtr),
        Gdt = new KvmDtable { Base = state.Gdtr.Base, Limit = state.Gdtr.Limit },
        Idt = new KvmDtable { Base = state.Idtr.Base, Limit = state.Idtr.Limit },
        Cr0 = state.Cr0,
        Cr3 = state.Cr3,
        Cr4 = state.SregsCr4,
        Efer = state.SregsEfer,
        ApicBase = apicBase,
    };

    /// <summary>For KVM_SET_REGS.</summary>
    public static KvmRegs Regs(VcpuResetState state) => new()
    {
        Rax = state.Rax,
        Rbx = state.Rbx,
        Rcx = state.Rcx,
        Rdx = state.Rdx,
        Rsi = state.Rsi,
        Rdi = state.Rdi,
        Rsp = state.Rsp,
        Rbp = state.Rbp,
        R8 = state.R8,
        R9 = state.R9,
        R10 = state.R10,
        R11 = state.R11,
        R12 = state.R12,
        R13 = state.R13,
        R14 = state.R14,
        R15 = state.R15,
        Rip = state.Rip,
        Rflags = state.Rflags,
    };

    /// <summary>For KVM_SET_DEBUGREGS.</summary>
    public static KvmDebugregs Debugregs(VcpuResetState state) => new() { Dr6 = state.Dr6, Dr7 = state.Dr7 };

    /// <summary>For KVM_SET_XSAVE, which is the way to MXCSR: KVM_SET_FPU does not take it.</summary>
    public static byte[] Xsave(VcpuResetState state)
    {
        byte[] area = new byte[XsaveBytes];
        BinaryPrimitives.WriteUInt16LittleEndian(area.AsSpan(FcwOffset), state.Fcw);
        BinaryPrimitives.WriteUInt32LittleEndian(area.AsSpan(MxcsrOffset), state.Mxcsr);
        BinaryPrimitives.WriteUInt64LittleEndian(area.AsSpan(XstateBvOffset), X87AndSse);
        return area;
    }

    private static KvmSegment Segment(SegmentState segment) => new()
    {
        Base = segment.Base,
        Limit = segment.Limit,
        Selector = segment.Selector,
        Type = segment.Attrib.Type,
        S = segment.Attrib.S,
        Dpl = segment.Attrib.Dpl,
        Present = segment.Attrib.Present,
        Avl = segment.Attrib.Avl,
        L = segment.Attrib.L,
        Db = segment.Attrib.Db,
        G = segment.Attrib.G,
        Unusable = segment.Attrib.Unusable,
    };
}
