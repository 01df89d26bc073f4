namespace SimMachine.Amd;

/// <summary>Status of an SEV or SNP firmware command (SEV API and SNP firmware ABI; numbers as in Linux uapi psp-sev.h).</summary>
public enum SevStatus : uint
{
    SUCCESS = 0,
    INVALID_PLATFORM_STATE = 1,
    INVALID_GUEST_STATE = 2,
    INVALID_CONFIG = 3,
    INVALID_LEN = 4,
    ALREADY_OWNED = 5,
    INVALID_CERTIFICATE = 6,
    POLICY_FAILURE = 7,
    INACTIVE = 8,
    INVALID_ADDRESS = 9,
    BAD_SIGNATURE = 0xA,
    BAD_MEASUREMENT = 0xB,
    ASID_OWNED = 0xC,
    INVALID_ASID = 0xD,
    WBINVD_REQUIRED = 0xE,
    DFFLUSH_REQUIRED = 0xF,
    INVALID_GUEST = 0x10,
    INVALID_COMMAND = 0x11,
    ACTIVE = 0x12,
    HWERROR_PLATFORM = 0x13,
    HWERROR_UNSAFE = 0x14,
    UNSUPPORTED = 0x15,
    INVALID_PARAM = 0x16,
    RESOURCE_LIMIT = 0x17,
    SECURE_DATA_INVALID = 0x18,
    INVALID_PAGE_SIZE = 0x19,
    INVALID_PAGE_STATE = 0x1A,
    INVALID_MDATA_ENTRY = 0x1B,
    INVALID_PAGE_OWNER = 0x1C,
    AEAD_OFLOW = 0x1D,
    EXIT_RING_BUFFER = 0x1F,
    RMP_INIT_REQUIRED = 0x20,
    BAD_SVN = 0x21,
    BAD_VERSION = 0x22,
    SHUTDOWN_REQUIRED = 0x23,
    UPDATE_FAILED = 0x24,
    RESTORE_REQUIRED = 0x25,
    RMP_INITIALIZATION_FAILED = 0x26,
    INVALID_KEY = 0x27,

    /// <summary>Not the firmware's: the kernel's way to say that firmware was not called.</summary>
    NO_FW_CALL = 0xFFFFFFFF,
}

/// <summary>How firmware says no: a status, with the rule recorded on the thread.</summary>
internal static class SevRefusal
{
    public static SevStatus Fail(this Stepping.SimThread thread, SevStatus status, Stepping.Rule rule, params ReadOnlySpan<ulong> operands)
    {
        thread.Refuse(rule, $"{status} 0x{(uint)status:x}", operands);
        return status;
    }
}
