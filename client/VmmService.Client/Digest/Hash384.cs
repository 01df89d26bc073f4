using System.Runtime.InteropServices;
using System.Security.Cryptography;

namespace VmmService.Client.Digest;

/// <summary>
/// 48 bytes of SHA-384 as a value: a launch digest, or the hash of a page. To go on from a digest in several ways, copy it. The default is 48 zeros, which is both the digest of
/// nothing measured and the content hash of a page whose content is not measured.
/// </summary>
[StructLayout(LayoutKind.Sequential)]
public readonly record struct Hash384
{
    /// <summary>Bytes.</summary>
    public const int Size = SHA384.HashSizeInBytes;

    private readonly ulong _0;
    private readonly ulong _1;
    private readonly ulong _2;
    private readonly ulong _3;
    private readonly ulong _4;
    private readonly ulong _5;

    /// <summary>Takes 48 bytes as they are.</summary>
    public Hash384(ReadOnlySpan<byte> bytes)
    {
        ArgumentOutOfRangeException.ThrowIfNotEqual(bytes.Length, Size);
        this = MemoryMarshal.Read<Hash384>(bytes);
    }

    /// <summary>SHA-384 of <paramref name="data"/>.</summary>
    public static Hash384 Of(ReadOnlySpan<byte> data)
    {
        Span<byte> hash = stackalloc byte[Size];
        SHA384.HashData(data, hash);
        return new Hash384(hash);
    }

    public void CopyTo(Span<byte> bytes) => MemoryMarshal.Write(bytes, this);

    /// <summary>Reads 96 hexadecimal digits in any case.</summary>
    public static bool TryParse(string? text, out Hash384 hash)
    {
        hash = default;
        Span<byte> bytes = stackalloc byte[Size];
        if (text is null || text.Length != 2 * Size || Convert.FromHexString(text, bytes, out _, out int written) != System.Buffers.OperationStatus.Done || written != Size)
            return false;

        hash = new Hash384(bytes);
        return true;
    }

    /// <summary>96 lower-case hexadecimal digits.</summary>
    public override string ToString()
    {
        Span<byte> bytes = stackalloc byte[Size];
        CopyTo(bytes);
        return Convert.ToHexStringLower(bytes);
    }
}
