using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace SimKvm.Abi;

// Floating-point and extended state of a vCPU as KVM_{GET,SET}_{FPU,XSAVE,XCRS} exchange it (arch/x86/include/uapi/asm/kvm.h).

/// <summary>Argument of KVM_GET_FPU and KVM_SET_FPU, 416 bytes. mxcsr is here but neither call moves it.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_fpu
{
    /// <summary>st(0) to st(7), 10 significant bytes each.</summary>
    public InlineArray8<InlineArray16<byte>> fpr;
    public ushort fcw;
    public ushort fsw;

    /// <summary>The abridged tag word of FXSAVE: a bit for each register in use.</summary>
    public byte ftwx;
    public byte pad1;
    public ushort last_opcode;
    public ulong last_ip;
    public ulong last_dp;
    public InlineArray16<InlineArray16<byte>> xmm;
    public uint mxcsr;
    public uint pad2;
}

/// <summary>Argument of KVM_GET_XSAVE and KVM_SET_XSAVE, 4096 bytes: an XSAVE area in the standard format.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_xsave
{
    public kvm_xsave_region region;
}

/// <summary>1024 words.</summary>
[InlineArray(1024)]
public struct kvm_xsave_region
{
    private uint _first;
}

/// <summary>An extended control register, 16 bytes.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_xcr
{
    public uint xcr;
    public uint reserved;
    public ulong value;
}

/// <summary>Argument of KVM_GET_XCRS and KVM_SET_XCRS, 392 bytes.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_xcrs
{
    public uint nr_xcrs;

    /// <summary>Must be 0.</summary>
    public uint flags;
    public InlineArray16<kvm_xcr> xcrs;
    public InlineArray16<ulong> padding;

    /// <summary>KVM_MAX_XCRS</summary>
    public const uint MAX_XCRS = 16;
}
