using System.Buffers.Binary;
using System.Security.Cryptography;

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
/// The launch digest of an SNP guest: each page extends it by the SHA-384 of a PAGE_INFO that carries the digest so far (SNP firmware ABI 8.17.2).
/// </summary>
/// <remarks>
/// PAGE_INFO, 0x70 bytes: DIGEST_CUR[48] @0, CONTENTS[48] @0x30, LENGTH u16 @0x60, PAGE_TYPE u8 @0x62, IMI_PAGE u8 @0x63, reserved u8 @0x64, VMPL1 to VMPL3
/// permissions u8 @0x65 to @0x67, GPA u64 @0x68; little-endian.
/// </remarks>
public sealed class SnpLaunchDigest
{
    /// <summary>Bytes of a digest.</summary>
    public const int Size = SHA384.HashSizeInBytes;

    private const int PageInfoSize = 0x70;
    private const int GuestTscScale = 0x2F0;
    private const int GuestTscEnd = 0x300;

    private readonly byte[] _current = new byte[Size];

    /// <summary>The digest so far, 48 bytes; zeros before the first page.</summary>
    public ReadOnlySpan<byte> Current => _current;

    /// <summary>
    /// CONTENTS of a page: SHA-384 of NORMAL and VMSA pages, of the latter with GUEST_TSC_SCALE and GUEST_TSC_OFFSET taken for zero; zeros for other types.
    /// </summary>
    /// <param name="page">4096 bytes.</param>
    /// <param name="hash">48 bytes.</param>
    public static void ContentHash(SnpPageType type, ReadOnlySpan<byte> page, Span<byte> hash)
    {
        switch (type)
        {
            case SnpPageType.NORMAL:
                SHA384.HashData(page, hash);
                break;
            case SnpPageType.VMSA:
                Span<byte> copy = stackalloc byte[4096];
                page.CopyTo(copy);
                copy[GuestTscScale..GuestTscEnd].Clear();
                SHA384.HashData(copy, hash);
                break;
            default:
                hash.Clear();
                break;
        }
    }

    /// <summary>One page more.</summary>
    /// <param name="gpa">Guest physical address, bytes.</param>
    /// <param name="contentHash">48 bytes, as <see cref="ContentHash"/> gives them.</param>
    public void Extend(SnpPageType type, ulong gpa, ReadOnlySpan<byte> contentHash, bool imi = false, byte vmpl1 = 0, byte vmpl2 = 0, byte vmpl3 = 0)
    {
        Span<byte> info = stackalloc byte[PageInfoSize];
        info.Clear();
        _current.CopyTo(info);
        contentHash.CopyTo(info[0x30..]);
        BinaryPrimitives.WriteUInt16LittleEndian(info[0x60..], PageInfoSize);
        info[0x62] = (byte)type;
        info[0x63] = (byte)(imi ? 1 : 0);
        info[0x65] = vmpl1;
        info[0x66] = vmpl2;
        info[0x67] = vmpl3;
        BinaryPrimitives.WriteUInt64LittleEndian(info[0x68..], gpa);
        SHA384.HashData(info, _current);
    }
}
