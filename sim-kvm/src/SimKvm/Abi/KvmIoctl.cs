namespace SimKvm.Abi;

/// <summary>Encoded ioctl numbers on x86-64 (include/uapi/linux/kvm.h): direction, argument size, type 0xAE, number.</summary>
public static class KvmIoctl
{
    public const uint KVM_GET_API_VERSION = 0xAE00;
    public const uint KVM_CREATE_VM = 0xAE01;
    public const uint KVM_CHECK_EXTENSION = 0xAE03;
    public const uint KVM_GET_VCPU_MMAP_SIZE = 0xAE04;
    public const uint KVM_GET_SUPPORTED_CPUID = 0xC008AE05;
    public const uint KVM_GET_DEVICE_ATTR = 0x4018AEE2;
    public const uint KVM_HAS_DEVICE_ATTR = 0x4018AEE3;
    public const uint KVM_GET_MSR_INDEX_LIST = 0xC004AE02;
    public const uint KVM_CREATE_VCPU = 0xAE41;
    public const uint KVM_GET_DIRTY_LOG = 0x4010AE42;
    public const uint KVM_SET_TSS_ADDR = 0xAE47;
    public const uint KVM_SET_IDENTITY_MAP_ADDR = 0x4008AE48;
    public const uint KVM_CREATE_IRQCHIP = 0xAE60;
    public const uint KVM_NMI = 0xAE9A;
    public const uint KVM_SET_TSC_KHZ = 0xAEA2;
    public const uint KVM_GET_TSC_KHZ = 0xAEA3;
    public const uint KVM_CLEAR_DIRTY_LOG = 0xC018AEC0;
    public const uint KVM_MEMORY_ENCRYPT_REG_REGION = 0x8010AEBB;
    public const uint KVM_MEMORY_ENCRYPT_UNREG_REGION = 0x8010AEBC;
    public const uint KVM_SET_USER_MEMORY_REGION = 0x4020AE46;
    public const uint KVM_SET_USER_MEMORY_REGION2 = 0x40A0AE49;
    public const uint KVM_ENABLE_CAP = 0x4068AEA3;
    public const uint KVM_MEMORY_ENCRYPT_OP = 0xC008AEBA;
    public const uint KVM_SET_MEMORY_ATTRIBUTES = 0x4020AED2;

    // VM, before guest_memfd was merged
    public const uint KVM_GET_SUPPORTED_MEMORY_ATTRIBUTES = 0x8008AED2;
    public const uint KVM_SET_MEMORY_ATTRIBUTES_V10 = 0xC020AED3;
    public const uint KVM_SET_MEMORY_ATTRIBUTES_RFC = 0x4020AED3;

    public const uint KVM_CREATE_GUEST_MEMFD = 0xC040AED4;


    // guest_memfd, with in-place conversion
    public const uint KVM_SET_MEMORY_ATTRIBUTES2 = 0xC080AED2;

    // vCPU
    public const uint KVM_RUN = 0xAE80;
    public const uint KVM_PRE_FAULT_MEMORY = 0xC040AED5;

    // vCPU, proposals of 2024
    public const uint KVM_MAP_MEMORY_V1 = 0xC020AED5;
    public const uint KVM_MAP_MEMORY_V2 = 0xC018AED5;
    public const uint KVM_GET_REGS = 0x8090AE81;
    public const uint KVM_SET_REGS = 0x4090AE82;
    public const uint KVM_GET_SREGS = 0x8138AE83;
    public const uint KVM_SET_SREGS = 0x4138AE84;
    public const uint KVM_GET_MSRS = 0xC008AE88;
    public const uint KVM_SET_MSRS = 0x4008AE89;
    public const uint KVM_GET_FPU = 0x81A0AE8C;
    public const uint KVM_SET_FPU = 0x41A0AE8D;
    public const uint KVM_SET_CPUID2 = 0x4008AE90;
    public const uint KVM_GET_CPUID2 = 0xC008AE91;
    public const uint KVM_SET_GUEST_DEBUG = 0x4048AE9B;
    public const uint KVM_GET_DEBUGREGS = 0x8080AEA1;
    public const uint KVM_SET_DEBUGREGS = 0x4080AEA2;
    public const uint KVM_GET_XSAVE = 0x9000AEA4;
    public const uint KVM_SET_XSAVE = 0x5000AEA5;
    public const uint KVM_GET_XCRS = 0x8188AEA6;
    public const uint KVM_SET_XCRS = 0x4188AEA7;
}
