using System.Buffers.Binary;

namespace VmmService.Client.Digest;

/// <summary>Page type in PAGE_INFO, by firmware's numbers. <see cref="Launch.SnpPageType"/> is what user space may ask for; this has the VMSA, which only the kernel adds.</summary>
public enum MeasuredPageType : byte
{
    NORMAL = 1,
    VMSA = 2,
    ZERO = 3,
    UNMEASURED = 4,
    SECRETS = 5,
    CPUID = 6,
}

/// <summary>What an SNP launch digest takes in of a page of 4 KiB.</summary>
/// <param name="PageType">Its type.</param>
/// <param name="Gpa">Guest physical address.</param>
/// <param name="Contents">SHA-384 of the page if it is NORMAL or a VMSA, else zeros.</param>
public readonly record struct MeasuredPage(MeasuredPageType PageType, ulong Gpa, Hash384 Contents)
{
    private const int PageInfoSize = 0x70;
    private const int ContentsOffset = 0x30;
    private const int LengthOffset = 0x60;
    private const int PageTypeOffset = 0x62;
    private const int GpaOffset = 0x68;

    /// <summary>
    /// The digest after this page: SHA-384 of PAGE_INFO (SNP firmware ABI 8.17.2), which carries the digest so far. KVM launches pages without IMI_PAGE and without permissions
    /// for VMPL 1 to 3, so these bytes are zero.
    /// </summary>
    public Hash384 Extend(Hash384 digest)
    {
        Span<byte> info = stackalloc byte[PageInfoSize];
        info.Clear();
        digest.CopyTo(info);
        Contents.CopyTo(info[ContentsOffset..]);
        BinaryPrimitives.WriteUInt16LittleEndian(info[LengthOffset..], PageInfoSize);
        info[PageTypeOffset] = (byte)PageType;
        BinaryPrimitives.WriteUInt64LittleEndian(info[GpaOffset..], Gpa);
        return Hash384.Of(info);
    }
}
