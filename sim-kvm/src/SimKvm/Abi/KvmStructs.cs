using System.Runtime.InteropServices;

namespace SimKvm.Abi;

// Structures of the VM fd and the system fd (include/uapi/linux/kvm.h): the kernel's spelling and layout. All fields little-endian, no implicit padding.

/// <summary>Argument of KVM_SET_USER_MEMORY_REGION, 32 bytes.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_userspace_memory_region
{
    /// <summary>Bits 15:0 slot id, bits 31:16 address space.</summary>
    public uint slot;
    public uint flags;
    public ulong guest_phys_addr;

    /// <summary>Bytes; 0 deletes.</summary>
    public ulong memory_size;
    public ulong userspace_addr;
}

/// <summary>Argument of KVM_SET_USER_MEMORY_REGION2, 160 bytes; the first 32 are those of version 1. Padding is not checked.</summary>
[StructLayout(LayoutKind.Sequential, Size = 160)]
public struct kvm_userspace_memory_region2
{
    public uint slot;
    public uint flags;
    public ulong guest_phys_addr;
    public ulong memory_size;
    public ulong userspace_addr;

    /// <summary>Bytes.</summary>
    public ulong guest_memfd_offset;
    public uint guest_memfd;
    public uint pad1;
}

/// <summary>
/// Argument of KVM_SET_USER_MEMORY_REGION with KVM_MEM_PRIVATE in UPM, without its padding: 64 bytes in all in v3 (ofs, fd), 160 in v7 to v10 (private_offset and
/// private_fd, later restricted_offset and restricted_fd). The first 44 bytes are alike.
/// </summary>
[StructLayout(LayoutKind.Sequential, Pack = 4)]
public struct kvm_userspace_memory_region_ext
{
    public uint slot;
    public uint flags;
    public ulong guest_phys_addr;
    public ulong memory_size;
    public ulong userspace_addr;

    /// <summary>Bytes.</summary>
    public ulong private_offset;
    public uint private_fd;
}

/// <summary>Argument of KVM_SET_MEMORY_ATTRIBUTES, 32 bytes.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_memory_attributes
{
    public ulong address;
    public ulong size;
    public ulong attributes;
    public ulong flags;

    /// <summary>KVM_MEMORY_ATTRIBUTE_PRIVATE</summary>
    public const ulong PRIVATE = 1UL << 3;
}

/// <summary>Argument of KVM_SET_MEMORY_ATTRIBUTES2 on a guest_memfd, 128 bytes (in-place conversion, proposed).</summary>
[StructLayout(LayoutKind.Sequential, Size = 128)]
public unsafe struct kvm_memory_attributes2
{
    /// <summary>Bytes into the file.</summary>
    public ulong offset;
    public ulong size;
    public ulong attributes;
    public ulong flags;

    /// <summary>Out, on errors of the conversion: the byte offset that was in the way.</summary>
    public ulong error_offset;
    public fixed ulong reserved[11];
}

/// <summary>Argument of KVM_PRE_FAULT_MEMORY, 64 bytes, in and out: what is left comes back. The padding is not looked at.</summary>
[StructLayout(LayoutKind.Sequential, Size = 64)]
public unsafe struct kvm_pre_fault_memory
{
    /// <summary>Bytes, without a shared bit.</summary>
    public ulong gpa;
    public ulong size;
    public ulong flags;
    public fixed ulong padding[5];
}

/// <summary>Argument of KVM_MAP_MEMORY as posted on 2024-03-01, 32 bytes, in and out.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_map_memory_v1
{
    public ulong base_gfn;
    public ulong nr_pages;
    public ulong flags;

    /// <summary>User address, for VM types that measure what they map.</summary>
    public ulong source;

    public const ulong WRITE = 1 << 0;
    public const ulong EXEC = 1 << 1;
    public const ulong USER = 1 << 2;
    public const ulong PRIVATE = 1 << 3;
}

/// <summary>Argument of KVM_MAP_MEMORY as posted on 2024-04-10, 24 bytes, in and out.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_map_memory_v2
{
    /// <summary>Bytes.</summary>
    public ulong base_address;
    public ulong size;
    public ulong flags;
}

/// <summary>Argument of KVM_CREATE_GUEST_MEMFD, 64 bytes; the reserved part is not checked.</summary>
[StructLayout(LayoutKind.Sequential, Size = 64)]
public struct kvm_create_guest_memfd
{
    /// <summary>Bytes.</summary>
    public ulong size;
    public ulong flags;

    public const ulong GUEST_MEMFD_FLAG_MMAP = 1UL << 0;
    public const ulong GUEST_MEMFD_FLAG_INIT_SHARED = 1UL << 1;

    /// <summary>The 2023 RFC only.</summary>
    public const ulong KVM_GUEST_MEMFD_ALLOW_HUGEPAGE = 1UL << 0;
}

/// <summary>Argument of KVM_ENABLE_CAP, 104 bytes.</summary>
[StructLayout(LayoutKind.Sequential, Size = 104)]
public struct kvm_enable_cap
{
    public uint cap;
    public uint flags;
    public ulong args0;
    public ulong args1;
    public ulong args2;
    public ulong args3;
}

/// <summary>Argument of KVM_HAS_DEVICE_ATTR and KVM_GET_DEVICE_ATTR, 24 bytes.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_device_attr
{
    public uint flags;
    public uint group;
    public ulong attr;

    /// <summary>User address of the value.</summary>
    public ulong addr;
}

/// <summary>Argument of KVM_GET_DIRTY_LOG, 16 bytes.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_dirty_log
{
    /// <summary>Bits 15:0 slot id, bits 31:16 address space.</summary>
    public uint slot;
    public uint padding;

    /// <summary>User address of one bit a page, in whole words of 64.</summary>
    public ulong dirty_bitmap;
}

/// <summary>Argument of KVM_CLEAR_DIRTY_LOG, 24 bytes.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_clear_dirty_log
{
    public uint slot;
    public uint num_pages;

    /// <summary>A multiple of 64.</summary>
    public ulong first_page;
    public ulong dirty_bitmap;
}

/// <summary>Flags of a memory region.</summary>
public static class KvmMem
{
    public const uint LOG_DIRTY_PAGES = 1;
    public const uint READONLY = 2;
    public const uint GUEST_MEMFD = 4;

    /// <summary>The same flag before guest_memfd was merged: UPM, and the RFCs of 2023.</summary>
    public const uint PRIVATE = 4;

    /// <summary>Internal: the slot is being deleted or moved.</summary>
    public const uint MEMSLOT_INVALID = 1 << 16;

    /// <summary>Internal: shared accesses use the guest_memfd as well.</summary>
    public const uint MEMSLOT_GMEM_ONLY = 1 << 17;
}

/// <summary>VM types of KVM_CREATE_VM on x86; on arm64 a VM that is not protected has type 0.</summary>
public enum VmType
{
    KVM_X86_DEFAULT_VM = 0,
    KVM_X86_SW_PROTECTED_VM = 1,
    KVM_X86_SEV_VM = 2,
    KVM_X86_SEV_ES_VM = 3,
    KVM_X86_SNP_VM = 4,
    KVM_X86_TDX_VM = 5,

    /// <summary>arm64: bit 31, beside the size of the guest's address space in bits 7:0.</summary>
    KVM_VM_TYPE_ARM_PROTECTED = unchecked((int)0x8000_0000),
}
