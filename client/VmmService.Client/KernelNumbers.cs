namespace VmmService.Client;

/// <summary>Numbers of the kernel's user ABI that callers of this library pass, by the kernel's names.</summary>
public static class KernelNumbers
{
    /// <summary>Bytes of a page.</summary>
    public const ulong PAGE_SIZE = 4096;

    public const uint PROT_READ = 1;
    public const uint PROT_WRITE = 2;

    public const uint MAP_SHARED = 0x01;
    public const uint MAP_PRIVATE = 0x02;
    public const uint MAP_FIXED = 0x10;
    public const uint MAP_ANONYMOUS = 0x20;

    public const uint KVM_MEM_LOG_DIRTY_PAGES = 1;
    public const uint KVM_MEM_READONLY = 2;
    public const uint KVM_MEM_GUEST_MEMFD = 4;

    public const ulong KVM_MEMORY_ATTRIBUTE_PRIVATE = 1 << 3;

    public const uint FALLOC_FL_KEEP_SIZE = 1;
    public const uint FALLOC_FL_PUNCH_HOLE = 2;

    public const ulong GUEST_MEMFD_FLAG_MMAP = 1;
    public const ulong GUEST_MEMFD_FLAG_INIT_SHARED = 2;

    public const ulong KVM_CAP_MAX_VCPUS = 66;
    public const ulong KVM_CAP_SPLIT_IRQCHIP = 121;
    public const ulong KVM_CAP_MAX_VCPU_ID = 128;
    public const ulong KVM_CAP_MEMORY_ATTRIBUTES = 233;
    public const ulong KVM_CAP_GUEST_MEMFD = 234;
    public const ulong KVM_CAP_VM_TYPES = 235;

    public const ulong KVM_CAP_EXIT_HYPERCALL = 201;
    public const ulong KVM_CAP_VM_COPY_ENC_CONTEXT_FROM = 197;
    public const ulong KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM = 206;
    public const ulong KVM_CAP_PRE_FAULT_MEMORY = 236;
    public const ulong KVM_CAP_GUEST_MEMFD_FLAGS = 244;

    public const ulong KVM_HC_MAP_GPA_RANGE = 12;

    /// <summary>Attribute bit of KVM_HC_MAP_GPA_RANGE: private.</summary>
    public const ulong KVM_MAP_GPA_RANGE_ENCRYPTED = 1 << 4;

    /// <summary>Attribute bit of KVM_HC_MAP_GPA_RANGE: the guest thinks of pages of 2 MiB.</summary>
    public const ulong KVM_MAP_GPA_RANGE_PAGE_SZ_2M = 1;

    public const uint KVM_EXIT_IO = 2;
    public const uint KVM_EXIT_HYPERCALL = 3;
    public const uint KVM_EXIT_HLT = 5;
    public const uint KVM_EXIT_MMIO = 6;
    public const uint KVM_EXIT_SHUTDOWN = 8;
    public const uint KVM_EXIT_FAIL_ENTRY = 9;
    public const uint KVM_EXIT_INTR = 10;
    public const uint KVM_EXIT_INTERNAL_ERROR = 17;
    public const uint KVM_EXIT_SYSTEM_EVENT = 24;
    public const uint KVM_EXIT_AP_RESET_HOLD = 32;
    public const uint KVM_EXIT_MEMORY_FAULT = 39;
    public const uint KVM_EXIT_TDX = 40;
    public const uint KVM_EXIT_SNP_REQ_CERTS = 43;

    public const uint KVM_SYSTEM_EVENT_SEV_TERM = 4;
    public const uint KVM_SYSTEM_EVENT_TDX_FATAL = 7;

    /// <summary>Flag of KVM_EXIT_MEMORY_FAULT: the access was private.</summary>
    public const ulong KVM_MEMORY_EXIT_FLAG_PRIVATE = 1 << 3;

    public const uint KVM_X86_GRP_SEV = 1;
    public const ulong KVM_X86_SEV_VMSA_FEATURES = 0;
    public const ulong KVM_X86_SNP_POLICY_BITS = 1;

    public const uint MSR_IA32_CR_PAT = 0x277;

    internal const int EINTR = 4;
    internal const int EAGAIN = 11;
    internal const int EBUSY = 16;
}
