using System.Buffers.Binary;

namespace SimKvm.Vendors.Amd;

/// <summary>What a guest asks by the GHCB MSR, in its bits 11:0 (GHCB specification, MSR protocol); the answer is the number behind unless it says otherwise.</summary>
internal static class GhcbMsr
{
    public const ulong InfoMask = 0xfff;

    public const ulong SevInfo = 0x001;
    public const ulong SevInfoRequest = 0x002;
    public const ulong CpuidRequest = 0x004;
    public const ulong CpuidResponse = 0x005;
    public const ulong ApResetHoldRequest = 0x006;
    public const ulong ApResetHoldResponse = 0x007;
    public const ulong PreferredGpaRequest = 0x010;
    public const ulong PreferredGpaResponse = 0x011;
    public const ulong RegisterGpaRequest = 0x012;
    public const ulong RegisterGpaResponse = 0x013;
    public const ulong PageStateChangeRequest = 0x014;
    public const ulong PageStateChangeResponse = 0x015;
    public const ulong HypervisorFeaturesRequest = 0x080;
    public const ulong HypervisorFeaturesResponse = 0x081;
    public const ulong TerminateRequest = 0x100;

    /// <summary>Bit 63 beside the response: a page state change failed.</summary>
    public const ulong PageStateChangeError = (1UL << 63) | PageStateChangeResponse;

    /// <summary>Bits 63:12 of the answer to a preferred GPA: there is none.</summary>
    public const ulong NoPreferredGpa = ulong.MaxValue & ~InfoMask;
}

/// <summary>sw_exit_code of a GHCB: events of the GHCB specification, and the architecture's exit codes that KVM lets a guest ask for.</summary>
public enum GhcbExitCode : ulong
{
    READ_DR7 = 0x27,
    WRITE_DR7 = 0x37,
    RDTSC = 0x6E,
    RDPMC = 0x6F,
    CPUID = 0x72,
    INVD = 0x76,
    IOIO = 0x7B,
    MSR = 0x7C,
    VMMCALL = 0x81,
    RDTSCP = 0x87,
    WBINVD = 0x89,
    MONITOR = 0x8A,
    MWAIT = 0x8B,
    MMIO_READ = 0x8000_0001,
    MMIO_WRITE = 0x8000_0002,
    NMI_COMPLETE = 0x8000_0003,
    AP_HLT_LOOP = 0x8000_0004,
    AP_JUMP_TABLE = 0x8000_0005,
    PSC = 0x8000_0010,
    GUEST_REQUEST = 0x8000_0011,
    EXT_GUEST_REQUEST = 0x8000_0012,
    AP_CREATION = 0x8000_0013,
    HV_FEATURES = 0x8000_FFFD,
    TERM_REQUEST = 0x8000_FFFE,
    UNSUPPORTED_EVENT = 0x8000_FFFF,
}

/// <summary>Why KVM calls a GHCB malformed: sw_exit_info_2 where sw_exit_info_1 is 2.</summary>
public enum GhcbError : ulong
{
    NOT_REGISTERED = 1,
    INVALID_USAGE = 2,
    INVALID_SCRATCH_AREA = 3,
    MISSING_INPUT = 4,
    INVALID_INPUT = 5,
    INVALID_EVENT = 6,
}

/// <summary>
/// A guest-hypervisor communication block: the page in shared memory through which a guest with encrypted registers shows the hypervisor those that an exit needs, and gets its
/// answer (GHCB specification 56421; struct ghcb). Guests fill it, KVM reads it; this is the layout.
/// </summary>
internal sealed class Ghcb
{
    public const int Size = 4096;

    public const int Cpl = 0xCB;
    public const int Rax = 0x1F8;
    public const int Rcx = 0x308;
    public const int Rdx = 0x310;
    public const int Rbx = 0x318;
    public const int Rsi = 0x330;
    public const int ExitCode = 0x390;
    public const int ExitInfo1 = 0x398;
    public const int ExitInfo2 = 0x3A0;
    public const int Scratch = 0x3A8;
    public const int Xcr0 = 0x3E8;
    public const int ValidBitmap = 0x3F0;
    public const int ValidBitmapSize = 16;
    public const int SharedBuffer = 0x800;
    public const int SharedBufferSize = 2032;
    public const int ProtocolVersion = 0xFFA;
    public const int Usage = 0xFFC;

    /// <summary>sw_exit_info_1: the request was understood, or needs nothing more of the guest.</summary>
    public const ulong NoAction = 0;

    /// <summary>sw_exit_info_1: the guest raises the exception that sw_exit_info_2 describes as an event injection.</summary>
    public const ulong IssueException = 1;

    /// <summary>sw_exit_info_1: the request cannot be; sw_exit_info_2 is a <see cref="GhcbError"/>.</summary>
    public const ulong MalformedInput = 2;

    private readonly byte[] _page;

    public Ghcb()
        : this(0, new byte[Size])
    {
    }

    public Ghcb(ulong gpa, byte[] page) => (Gpa, _page) = (gpa, page);

    public ulong Gpa { get; }

    public ReadOnlyMemory<byte> Page => _page;

    public uint UsageCode => BinaryPrimitives.ReadUInt32LittleEndian(_page.AsSpan(Usage));

    public byte CplByte => _page[Cpl];

    /// <summary>A quadword of the save area.</summary>
    public ulong this[int field] => BinaryPrimitives.ReadUInt64LittleEndian(_page.AsSpan(field));

    /// <summary>Who filled the page said that the field counts.</summary>
    public bool IsValid(int field) => (_page[ValidBitmap + (field / 64)] >> (field / 8 % 8) & 1) != 0;

    /// <summary>The field where it counts, else 0.</summary>
    public ulong IfValid(int field) => IsValid(field) ? this[field] : 0;

    public void Set(int field, ulong value)
    {
        BinaryPrimitives.WriteUInt64LittleEndian(_page.AsSpan(field), value);
        MarkValid(field);
    }

    public void SetCpl(byte cpl)
    {
        _page[Cpl] = cpl;
        MarkValid(Cpl);
    }

    public void SetProtocol(ushort version, uint usage)
    {
        BinaryPrimitives.WriteUInt16LittleEndian(_page.AsSpan(ProtocolVersion), version);
        BinaryPrimitives.WriteUInt32LittleEndian(_page.AsSpan(Usage), usage);
    }

    public void SetSharedBuffer(ReadOnlySpan<byte> content) => content.CopyTo(_page.AsSpan(SharedBuffer, SharedBufferSize));

    public ReadOnlyMemory<byte> Buffer(int length) => _page.AsMemory(SharedBuffer, length);

    public void ClearValid() => _page.AsSpan(ValidBitmap, ValidBitmapSize).Clear();

    private void MarkValid(int field) => _page[ValidBitmap + (field / 64)] |= (byte)(1 << (field / 8 % 8));
}
