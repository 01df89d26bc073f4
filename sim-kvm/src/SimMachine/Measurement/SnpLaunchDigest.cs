using System.Security.Cryptography;
using SimMachine.Addressing;

namespace SimMachine.Measurement;

/// <summary>
/// The launch digest of an SNP guest: each page extends it by the SHA-384 of a PAGE_INFO that carries the digest so far (SNP firmware ABI 8.17.2).
/// The digest says nothing of how it came about; <see cref="MeasurementTranscript"/> next door keeps the steps.
/// </summary>
public sealed class SnpLaunchDigest
{
    /// <summary>Bytes of a digest.</summary>
    public const int Size = SHA384.HashSizeInBytes;

    // VMSA fields that firmware sets itself, side by side.
    private const int GuestTscScale = 0x2F0;
    private const int GuestTscOffset = 0x2F8;
    private const int GuestTscEnd = GuestTscOffset + sizeof(ulong);

    private readonly byte[] _current = new byte[Size];

    /// <summary>The digest of no page: zeros.</summary>
    public SnpLaunchDigest()
    {
    }

    /// <summary>Goes on from a digest that is already known.</summary>
    /// <param name="current">48 bytes.</param>
    public SnpLaunchDigest(ReadOnlySpan<byte> current)
    {
        ArgumentOutOfRangeException.ThrowIfNotEqual(current.Length, Size);
        current.CopyTo(_current);
    }

    /// <summary>DIGEST_CUR: the digest so far, 48 bytes.</summary>
    public ReadOnlySpan<byte> Current => _current;

    /// <summary>
    /// CONTENTS of a page: SHA-384 of NORMAL and VMSA pages, of the latter with GUEST_TSC_SCALE and GUEST_TSC_OFFSET taken for zero; zeros for other
    /// types, of which the page is not looked at.
    /// </summary>
    /// <param name="page">4096 bytes.</param>
    /// <param name="hash">48 bytes.</param>
    public static void ContentHash(SnpPageType type, ReadOnlySpan<byte> page, Span<byte> hash)
    {
        ArgumentOutOfRangeException.ThrowIfNotEqual(hash.Length, Size);
        switch (type)
        {
            case SnpPageType.NORMAL:
                ArgumentOutOfRangeException.ThrowIfNotEqual(page.Length, PageSize.Bytes);
                SHA384.HashData(page, hash);
                break;
            case SnpPageType.VMSA:
                Span<byte> copy = stackalloc byte[PageSize.Bytes];
                ArgumentOutOfRangeException.ThrowIfNotEqual(page.Length, PageSize.Bytes);
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
    /// <param name="contentHash">48 bytes, as <see cref="ContentHash"/> or, for NORMAL pages in bulk, <see cref="PageHasher"/> gives them.</param>
    public unsafe void Extend(
        SnpPageType type, ulong gpa, ReadOnlySpan<byte> contentHash, bool imi = false, byte vmpl1 = 0, byte vmpl2 = 0, byte vmpl3 = 0)
    {
        ArgumentOutOfRangeException.ThrowIfNotEqual(contentHash.Length, Size);
        SnpPageInfo info = new()
        {
            LENGTH = SnpPageInfo.Bytes,
            PAGE_TYPE = (byte)type,
            IMI_PAGE = imi ? (byte)1 : (byte)0,
            VMPL1_PERMS = vmpl1,
            VMPL2_PERMS = vmpl2,
            VMPL3_PERMS = vmpl3,
            GPA = gpa,
        };
        _current.CopyTo(new Span<byte>(info.DIGEST_CUR, Size));
        contentHash.CopyTo(new Span<byte>(info.CONTENTS, Size));
        PageInfoHash.Hash(in info, _current);
    }
}
