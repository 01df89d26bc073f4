using System.Runtime.InteropServices;

namespace SimKvm.Abi;

// Heads and elements of the two variable-length vCPU structures (arch/x86/include/uapi/asm/kvm.h). The elements lie right behind the head.

/// <summary>Head of the argument of KVM_GET_MSRS and KVM_SET_MSRS, 8 bytes; <see cref="nmsrs"/> entries follow.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_msrs
{
    public uint nmsrs;
    public uint pad;
}

/// <summary>A model-specific register and its value, 16 bytes.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_msr_entry
{
    public uint index;
    public uint reserved;
    public ulong data;
}

/// <summary>
/// Head of the argument of KVM_GET_SUPPORTED_CPUID, KVM_GET_CPUID2 and KVM_SET_CPUID2, 8 bytes; <see cref="nent"/> entries follow.
/// </summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_cpuid2
{
    public uint nent;
    public uint padding;

    /// <summary>KVM_MAX_CPUID_ENTRIES</summary>
    public const uint MAX_CPUID_ENTRIES = 256;
}

/// <summary>What CPUID answers to one leaf, 40 bytes.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_cpuid_entry2
{
    /// <summary>EAX in.</summary>
    public uint function;

    /// <summary>ECX in, if <see cref="flags"/> says that it matters.</summary>
    public uint index;
    public uint flags;
    public uint eax;
    public uint ebx;
    public uint ecx;
    public uint edx;
    public uint padding0;
    public uint padding1;
    public uint padding2;

    /// <summary>KVM_CPUID_FLAG_SIGNIFCANT_INDEX (the kernel's spelling)</summary>
    public const uint FLAG_SIGNIFCANT_INDEX = 1;
}
