using SimMachine.Stepping;

namespace SimMachine.Intel;

/// <summary>
/// Completion status of a SEAMCALL or TDCALL leaf, as RAX returns it (TDX module ABI, completion status codes). Bit 63 error, 62 non-recoverable, 61 fatal, 47:40 class,
/// 39:32 detail, 31:0 the operand that it is about. The names are of the upper half; <see cref="TdxStatusExtensions"/> add the operand.
/// </summary>
public enum TdxStatus : ulong
{
    SUCCESS = 0,
    NON_RECOVERABLE_VCPU = 0x4000_0001_0000_0000,
    NON_RECOVERABLE_TD = 0x6000_0002_0000_0000,
    INTERRUPTED_RESUMABLE = 0x8000_0003_0000_0000,
    INTERRUPTED_RESTARTABLE = 0x8000_0004_0000_0000,
    NON_RECOVERABLE_TD_NON_ACCESSIBLE = 0x6000_0005_0000_0000,
    NON_RECOVERABLE_TD_WRONG_APIC_MODE = 0xE000_0007_0000_0000,
    OPERAND_INVALID = 0xC000_0100_0000_0000,
    OPERAND_ADDR_RANGE_ERROR = 0xC000_0101_0000_0000,
    OPERAND_BUSY = 0x8000_0200_0000_0000,
    PREVIOUS_TLB_EPOCH_BUSY = 0x8000_0201_0000_0000,
    SYS_BUSY = 0x8000_0202_0000_0000,
    RND_NO_ENTROPY = 0x8000_0203_0000_0000,
    OPERAND_BUSY_HOST_PRIORITY = 0x8000_0204_0000_0000,
    PAGE_METADATA_INCORRECT = 0xC000_0300_0000_0000,
    PAGE_ALREADY_FREE = 0x0000_0301_0000_0000,
    PAGE_NOT_OWNED_BY_TD = 0xC000_0302_0000_0000,
    PAGE_NOT_FREE = 0xC000_0303_0000_0000,
    TD_ASSOCIATED_PAGES_EXIST = 0xC000_0400_0000_0000,
    TD_FATAL = 0xE000_0604_0000_0000,
    TD_NON_DEBUG = 0xC000_0605_0000_0000,
    TDCS_NOT_ALLOCATED = 0xC000_0606_0000_0000,
    LIFECYCLE_STATE_INCORRECT = 0xC000_0607_0000_0000,
    OP_STATE_INCORRECT = 0xC000_0608_0000_0000,
    NO_VCPUS = 0xC000_0609_0000_0000,
    TDCX_NUM_INCORRECT = 0xC000_0610_0000_0000,
    VCPU_STATE_INCORRECT = 0xC000_0700_0000_0000,
    VCPU_ASSOCIATED = 0x8000_0701_0000_0000,
    VCPU_NOT_ASSOCIATED = 0x8000_0702_0000_0000,
    MAX_VCPUS_EXCEEDED = 0xC000_0705_0000_0000,
    KEY_GENERATION_FAILED = 0x8000_0800_0000_0000,
    TD_KEYS_NOT_CONFIGURED = 0x8000_0810_0000_0000,
    KEY_STATE_INCORRECT = 0xC000_0811_0000_0000,
    KEY_CONFIGURED = 0x0000_0815_0000_0000,
    HKID_NOT_FREE = 0xC000_0820_0000_0000,
    NO_HKID_READY_TO_WBCACHE = 0x0000_0821_0000_0000,
    FLUSHVP_NOT_DONE = 0x8000_0824_0000_0000,
    EPT_WALK_FAILED = 0xC000_0B00_0000_0000,
    EPT_ENTRY_FREE = 0xC000_0B01_0000_0000,
    EPT_ENTRY_NOT_FREE = 0xC000_0B02_0000_0000,
    EPT_ENTRY_NOT_PRESENT = 0xC000_0B03_0000_0000,
    EPT_ENTRY_NOT_LEAF = 0xC000_0B04_0000_0000,
    EPT_ENTRY_LEAF = 0xC000_0B05_0000_0000,
    GPA_RANGE_NOT_BLOCKED = 0xC000_0B06_0000_0000,
    GPA_RANGE_ALREADY_BLOCKED = 0x0000_0B07_0000_0000,
    TLB_TRACKING_NOT_DONE = 0xC000_0B08_0000_0000,
    EPT_INVALID_PROMOTE_CONDITIONS = 0xC000_0B09_0000_0000,
    PAGE_ALREADY_ACCEPTED = 0x0000_0B0A_0000_0000,
    PAGE_SIZE_MISMATCH = 0xC000_0B0B_0000_0000,
    GPA_RANGE_BLOCKED = 0xC000_0B0C_0000_0000,
    EPT_ENTRY_STATE_INCORRECT = 0xC000_0B0D_0000_0000,
    METADATA_FIELD_NOT_WRITABLE = 0xC000_0C01_0000_0000,
    METADATA_FIELD_NOT_READABLE = 0xC000_0C02_0000_0000,
    INVALID_CPUSVN = 0xC000_1000_0000_0000,
    INVALID_REPORTMACSTRUCT = 0xC000_1001_0000_0000,
}

/// <summary>The operand that a completion status is about, in its bits 31:0: a register, or something that the leaf implies.</summary>
public enum TdxOperand : uint
{
    RAX = 0,
    RCX = 1,
    RDX = 2,
    R8 = 8,
    R9 = 9,
    ATTRIBUTES = 64,
    XFAM = 65,
    EXEC_CONTROLS = 66,
    EPTP_CONTROLS = 67,
    MAX_VCPUS = 68,
    CPUID_CONFIG = 69,
    TSC_FREQUENCY = 70,
    NUM_L2_VMS = 71,
    TDR = 128,
    TDCX = 129,
    TDVPR = 130,
    TDCS = 144,
    TDVPS = 145,
    SEPT_TREE = 146,
    SEPT_ENTRY = 147,
    RTMR = 168,
    TD_EPOCH = 169,
    OP_STATE = 172,
    KOT = 186,
}

/// <summary>Parts of a completion status.</summary>
public static class TdxStatusExtensions
{
    private const ulong DetailMask = 0xffff_ffff;
    private const ulong ErrorBit = 1UL << 63;
    private const ulong NonRecoverableBit = 1UL << 62;

    /// <summary>The same status about an operand.</summary>
    public static TdxStatus With(this TdxStatus status, TdxOperand operand) => status.With((uint)operand);

    /// <summary>The same status with other detail in bits 31:0.</summary>
    public static TdxStatus With(this TdxStatus status, uint detail) => (TdxStatus)((ulong)status | detail);

    /// <summary>The status without its operand: what the kernel compares.</summary>
    public static TdxStatus Class(this TdxStatus status) => (TdxStatus)((ulong)status & ~DetailMask);

    public static bool IsError(this TdxStatus status) => ((ulong)status & ErrorBit) != 0;

    public static bool IsNonRecoverable(this TdxStatus status) => ((ulong)status & NonRecoverableBit) != 0;

    /// <summary>For people: <c>TDX_OPERAND_INVALID|RCX 0xc000010000000001</c>.</summary>
    public static string Name(this TdxStatus status)
    {
        uint detail = (uint)((ulong)status & DetailMask);
        string operand = detail == 0 ? "" : Enum.IsDefined((TdxOperand)detail) ? $"|{(TdxOperand)detail}" : $"|{detail}";
        string name = Enum.IsDefined(status.Class()) ? $"TDX_{status.Class()}" : "unknown status";
        return $"{name}{operand} 0x{(ulong)status:x}";
    }

    /// <summary>How the module says no: a status, with the rule recorded on the thread.</summary>
    internal static TdxStatus Fail(this SimThread thread, TdxStatus status, Rule rule, params ReadOnlySpan<ulong> operands)
    {
        thread.Refuse(rule, status.Name(), operands);
        return status;
    }
}
