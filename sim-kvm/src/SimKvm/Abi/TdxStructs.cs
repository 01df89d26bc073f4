using System.Runtime.InteropServices;

namespace SimKvm.Abi;

// Structures of KVM_MEMORY_ENCRYPT_OP on a TD (arch/x86/include/uapi/asm/kvm.h). CPUID entries follow the structures that end in a kvm_cpuid2.

/// <summary>Argument of KVM_MEMORY_ENCRYPT_OP of a TD, on the VM fd or a vCPU fd, 24 bytes.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_tdx_cmd
{
    public uint id;
    public uint flags;

    /// <summary>User address of the command's structure, or a value.</summary>
    public ulong data;

    /// <summary>In: 0. Out: completion status of the TDX module, where the command tells it.</summary>
    public ulong hw_error;
}

/// <summary>kvm_tdx_cmd.id</summary>
public enum TdxCmdId : uint
{
    KVM_TDX_CAPABILITIES = 0,
    KVM_TDX_INIT_VM = 1,
    KVM_TDX_INIT_VCPU = 2,
    KVM_TDX_INIT_MEM_REGION = 3,
    KVM_TDX_FINALIZE_VM = 4,
    KVM_TDX_GET_CPUID = 5,
}

/// <summary>KVM_TDX_CAPABILITIES, 2056 bytes and the entries, which are masks of bits that user space may configure.</summary>
[StructLayout(LayoutKind.Sequential)]
public unsafe struct kvm_tdx_capabilities
{
    public ulong supported_attrs;
    public ulong supported_xfam;
    public ulong kernel_tdvmcallinfo_1_r11;
    public ulong user_tdvmcallinfo_1_r11;
    public ulong kernel_tdvmcallinfo_1_r12;
    public ulong user_tdvmcallinfo_1_r12;
    public fixed ulong reserved[250];
    public kvm_cpuid2 cpuid;
}

/// <summary>KVM_TDX_INIT_VM, 264 bytes and the entries.</summary>
[StructLayout(LayoutKind.Sequential)]
public unsafe struct kvm_tdx_init_vm
{
    public ulong attributes;
    public ulong xfam;
    public fixed byte mrconfigid[48];
    public fixed byte mrowner[48];
    public fixed byte mrownerconfig[48];
    public fixed ulong reserved[12];
    public kvm_cpuid2 cpuid;
}

/// <summary>KVM_TDX_INIT_MEM_REGION, 24 bytes. What is left is written back.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_tdx_init_mem_region
{
    public ulong source_addr;
    public ulong gpa;
    public ulong nr_pages;

    /// <summary>kvm_tdx_cmd.flags: KVM_TDX_MEASURE_MEMORY_REGION</summary>
    public const uint MEASURE = 1;
}
