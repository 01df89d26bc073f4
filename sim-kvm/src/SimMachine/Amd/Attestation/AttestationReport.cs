using System.Runtime.InteropServices;
using System.Security.Cryptography;

namespace SimMachine.Amd.Attestation;

/// <summary>
/// ATTESTATION_REPORT: what firmware says of a guest, and its signature. One layout holds for versions 2, 3 and 5; fields that a version does not have are
/// zeros there. Field names are the ABI's (snp.md 11.2); who fills them is <c>Psp.Report.cs</c>.
/// </summary>
[StructLayout(LayoutKind.Explicit, Size = Size)]
public struct AttestationReport
{
    public const int Size = 0x4A0;

    /// <summary>Bytes that the signature covers.</summary>
    public const int SignedSize = 0x2A0;

    /// <summary>SIGNATURE_ALGO: ECDSA on P-384 with SHA-384.</summary>
    public const uint EcdsaP384Sha384 = 1;

    [FieldOffset(0x000)] public uint VERSION;
    [FieldOffset(0x004)] public uint GUEST_SVN;
    [FieldOffset(0x008)] public ulong POLICY;
    [FieldOffset(0x010)] public Bytes16 FAMILY_ID;
    [FieldOffset(0x020)] public Bytes16 IMAGE_ID;
    [FieldOffset(0x030)] public uint VMPL;
    [FieldOffset(0x034)] public uint SIGNATURE_ALGO;
    [FieldOffset(0x038)] public ulong CURRENT_TCB;
    [FieldOffset(0x040)] public ulong PLATFORM_INFO;
    [FieldOffset(0x048)] public uint KEY_INFO;
    [FieldOffset(0x050)] public Bytes64 REPORT_DATA;
    [FieldOffset(0x090)] public Bytes48 MEASUREMENT;
    [FieldOffset(0x0C0)] public Bytes32 HOST_DATA;
    [FieldOffset(0x0E0)] public Bytes48 ID_KEY_DIGEST;
    [FieldOffset(0x110)] public Bytes48 AUTHOR_KEY_DIGEST;
    [FieldOffset(0x140)] public Bytes32 REPORT_ID;
    [FieldOffset(0x160)] public Bytes32 REPORT_ID_MA;
    [FieldOffset(0x180)] public ulong REPORTED_TCB;

    /// <summary>From version 3 on, as are CPUID_MOD_ID and CPUID_STEP.</summary>
    [FieldOffset(0x188)] public byte CPUID_FAM_ID;
    [FieldOffset(0x189)] public byte CPUID_MOD_ID;
    [FieldOffset(0x18A)] public byte CPUID_STEP;
    [FieldOffset(0x1A0)] public Bytes64 CHIP_ID;
    [FieldOffset(0x1E0)] public ulong COMMITTED_TCB;
    [FieldOffset(0x1E8)] public byte CURRENT_BUILD;
    [FieldOffset(0x1E9)] public byte CURRENT_MINOR;
    [FieldOffset(0x1EA)] public byte CURRENT_MAJOR;
    [FieldOffset(0x1EC)] public byte COMMITTED_BUILD;
    [FieldOffset(0x1ED)] public byte COMMITTED_MINOR;
    [FieldOffset(0x1EE)] public byte COMMITTED_MAJOR;
    [FieldOffset(0x1F0)] public ulong LAUNCH_TCB;

    /// <summary>From version 5 on, as is CURRENT_MIT_VECTOR.</summary>
    [FieldOffset(0x1F8)] public ulong LAUNCH_MIT_VECTOR;
    [FieldOffset(0x200)] public ulong CURRENT_MIT_VECTOR;

    /// <summary>R and S, 72 bytes each, little-endian; then zeros.</summary>
    [FieldOffset(0x2A0)] public Bytes512 SIGNATURE;

    /// <summary>Bits of PLATFORM_INFO.</summary>
    public static class PlatformInfoBits
    {
        public const ulong SmtEnabled = 1 << 0;
        public const ulong TsmeEnabled = 1 << 1;
        public const ulong EccEnabled = 1 << 2;
        public const ulong RaplDisabled = 1 << 3;
        public const ulong CiphertextHidingDram = 1 << 4;

        /// <summary>From version 3 on.</summary>
        public const ulong AliasCheckComplete = 1 << 5;

        /// <summary>From version 5 on.</summary>
        public const ulong TioEnabled = 1 << 7;
    }

    /// <summary>Parts of KEY_INFO.</summary>
    public static class KeyInfoBits
    {
        public const uint AuthorKeyEnabled = 1 << 0;
        public const uint MaskChipKey = 1 << 1;
        public const int SigningKeyShift = 2;
    }

    /// <summary>Reads a report of exactly <see cref="Size"/> bytes.</summary>
    public static AttestationReport Read(ReadOnlySpan<byte> bytes) => bytes.Length == Size
        ? MemoryMarshal.Read<AttestationReport>(bytes)
        : throw new ArgumentException($"a report has {Size} bytes, not {bytes.Length}", nameof(bytes));

    /// <summary>The report as it travels.</summary>
    public readonly byte[] ToArray()
    {
        byte[] bytes = new byte[Size];
        MemoryMarshal.Write(bytes, this);
        return bytes;
    }

    /// <summary>The digest that is signed.</summary>
    public readonly byte[] Digest() => SHA384.HashData(ToArray().AsSpan(0, SignedSize));
}

/// <summary>SIGNING_KEY of KEY_INFO.</summary>
public enum SigningKey : uint
{
    VCEK = 0,
    VLEK = 1,

    /// <summary>The report is not signed: MASK_CHIP_KEY.</summary>
    NONE = 7,
}
