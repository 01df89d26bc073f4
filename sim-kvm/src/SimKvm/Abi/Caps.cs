namespace SimKvm.Abi;

/// <summary>KVM_CAP_* numbers that the simulated kernel answers.</summary>
public static class KvmCap
{
    public const ulong IRQCHIP = 0;
    public const ulong USER_MEMORY = 3;
    public const ulong NR_MEMSLOTS = 10;
    public const ulong SYNC_MMU = 16;
    public const ulong DESTROY_MEMORY_REGION_WORKS = 21;
    public const ulong JOIN_MEMORY_REGIONS_WORKS = 30;
    public const ulong TSC_CONTROL = 60;
    public const ulong GET_TSC_KHZ = 61;
    public const ulong MAX_VCPUS = 66;
    public const ulong READONLY_MEM = 81;
    public const ulong ENABLE_CAP_VM = 98;
    public const ulong CHECK_EXTENSION_VM = 105;
    public const ulong MULTI_ADDRESS_SPACE = 118;
    public const ulong SPLIT_IRQCHIP = 121;
    public const ulong MAX_VCPU_ID = 128;
    public const ulong DISABLE_QUIRKS = 116;
    public const ulong MANUAL_DIRTY_LOG_PROTECT2 = 168;
    public const ulong HALT_POLL = 182;
    public const ulong DISABLE_QUIRKS2 = 213;
    public const ulong VM_COPY_ENC_CONTEXT_FROM = 197;
    public const ulong EXIT_HYPERCALL = 201;
    public const ulong VM_MOVE_ENC_CONTEXT_FROM = 206;
    public const ulong VM_TSC_CONTROL = 214;

    /// <summary>UPM v8/v9.</summary>
    public const ulong PRIVATE_MEM = 224;

    /// <summary>KVM_CAP_MEMORY_ATTRIBUTES of UPM v10.</summary>
    public const ulong MEMORY_ATTRIBUTES_V10 = 225;

    /// <summary>KVM_CAP_USER_MEMORY2, MEMORY_ATTRIBUTES and VM_TYPES of the RFCs of 2023, one below or two below what they became.</summary>
    public const ulong USER_MEMORY2_RFC = 230;
    public const ulong MEMORY_ATTRIBUTES_RFC = 231;
    public const ulong VM_TYPES_RFC = 232;
    public const ulong USER_MEMORY2 = 231;
    public const ulong MEMORY_FAULT_INFO = 232;
    public const ulong MEMORY_ATTRIBUTES = 233;
    public const ulong GUEST_MEMFD = 234;
    public const ulong VM_TYPES = 235;

    /// <summary>KVM_CAP_MAP_MEMORY in the postings before.</summary>
    public const ulong PRE_FAULT_MEMORY = 236;
    public const ulong GUEST_MEMFD_FLAGS = 244;

    /// <summary>In-place conversion, PATCH v8.</summary>
    public const ulong GUEST_MEMFD_MEMORY_ATTRIBUTES = 250;
}
