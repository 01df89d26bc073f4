using System.Runtime.InteropServices;

namespace SimMachine.Measurement;

/// <summary>Type of a page in SNP_LAUNCH_UPDATE (SNP firmware ABI 8.17, PAGE_TYPE).</summary>
public enum SnpPageType
{
    NORMAL = 1,

    /// <summary>vCPU state; KVM launches it, user space may not.</summary>
    VMSA = 2,
    ZERO = 3,
    UNMEASURED = 4,
    SECRETS = 5,
    CPUID = 6,
}

/// <summary>
/// PAGE_INFO (SNP firmware ABI 8.17.2): what SHA-384 is taken of when a page extends the launch digest. <see cref="SnpLaunchDigest"/> fills it,
/// <see cref="PageInfoHash"/> hashes it. Little-endian, 0x70 bytes, none of them padding: every byte counts.
/// </summary>
[StructLayout(LayoutKind.Explicit, Size = Bytes)]
public unsafe struct SnpPageInfo
{
    public const int Bytes = 0x70;

    /// <summary>The digest so far.</summary>
    [FieldOffset(0x00)]
    public fixed byte DIGEST_CUR[SnpLaunchDigest.Size];

    /// <summary>SHA-384 of a NORMAL or VMSA page, else zeros.</summary>
    [FieldOffset(0x30)]
    public fixed byte CONTENTS[SnpLaunchDigest.Size];

    /// <summary>Of this structure: 0x70.</summary>
    [FieldOffset(0x60)]
    public ushort LENGTH;

    /// <summary>An <see cref="SnpPageType"/>.</summary>
    [FieldOffset(0x62)]
    public byte PAGE_TYPE;

    /// <summary>Bit 0: the page belongs to an initial migration image.</summary>
    [FieldOffset(0x63)]
    public byte IMI_PAGE;

    [FieldOffset(0x64)]
    public byte RESERVED;

    [FieldOffset(0x65)]
    public byte VMPL1_PERMS;

    [FieldOffset(0x66)]
    public byte VMPL2_PERMS;

    [FieldOffset(0x67)]
    public byte VMPL3_PERMS;

    /// <summary>Guest physical address, bytes.</summary>
    [FieldOffset(0x68)]
    public ulong GPA;
}
