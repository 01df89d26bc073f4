using System.Buffers.Binary;
using System.Security.Cryptography;

namespace VmmService.Client.Attestation;

/// <summary>
/// A TDREPORT_STRUCT, read where it lies: every property is a view of <see cref="Bytes"/>. Names and offsets are the TDX module ABI's. Its MAC says something only on the
/// machine that made it; to others a quote does.
/// </summary>
public sealed class TdxReport
{
    /// <summary>Bytes of a report.</summary>
    public const int Size = 1024;

    private const byte TdxType = 0x81;
    private const int TeeTcbInfoOffset = 256;
    private const int TeeTcbInfoSize = 239;
    private const int TdInfoOffset = 512;
    private const int TdInfoSize = 512;

    private TdxReport(ReadOnlyMemory<byte> bytes) => Bytes = bytes;

    /// <summary>The report as it travels.</summary>
    public ReadOnlyMemory<byte> Bytes { get; }

    /// <summary>16 bytes.</summary>
    public ReadOnlyMemory<byte> CpuSvn => Bytes.Slice(16, 16);

    /// <summary>64 bytes that the guest chose.</summary>
    public ReadOnlyMemory<byte> ReportData => Bytes.Slice(128, 64);

    /// <summary>32 bytes over all that stands before it in REPORTMACSTRUCT.</summary>
    public ReadOnlyMemory<byte> Mac => Bytes.Slice(224, 32);

    /// <summary>Which fields of TEE_TCB_INFO are filled.</summary>
    public ulong Valid => U64(TeeTcbInfoOffset);

    /// <summary>16 bytes.</summary>
    public ReadOnlyMemory<byte> TeeTcbSvn => Bytes.Slice(TeeTcbInfoOffset + 8, 16);

    /// <summary>Measurement of the TDX module, 48 bytes.</summary>
    public ReadOnlyMemory<byte> Mrseam => Bytes.Slice(TeeTcbInfoOffset + 24, 48);

    /// <summary>48 bytes; zeros for a production module.</summary>
    public ReadOnlyMemory<byte> Mrsignerseam => Bytes.Slice(TeeTcbInfoOffset + 72, 48);

    public ulong Attributes => U64(TdInfoOffset);

    public ulong Xfam => U64(TdInfoOffset + 8);

    /// <summary>48 bytes, as are the next three.</summary>
    public ReadOnlyMemory<byte> Mrtd => Bytes.Slice(TdInfoOffset + 16, 48);

    public ReadOnlyMemory<byte> Mrconfigid => Bytes.Slice(TdInfoOffset + 64, 48);

    public ReadOnlyMemory<byte> Mrowner => Bytes.Slice(TdInfoOffset + 112, 48);

    public ReadOnlyMemory<byte> Mrownerconfig => Bytes.Slice(TdInfoOffset + 160, 48);

    /// <summary>Whether both hashes in REPORTMACSTRUCT are those of the parts that they name.</summary>
    public bool HashesMatch =>
        SHA384.HashData(Bytes.Span.Slice(TeeTcbInfoOffset, TeeTcbInfoSize)).AsSpan().SequenceEqual(Bytes.Span.Slice(32, 48))
        && SHA384.HashData(Bytes.Span.Slice(TdInfoOffset, TdInfoSize)).AsSpan().SequenceEqual(Bytes.Span.Slice(80, 48));

    /// <summary>A runtime measurement register, 48 bytes.</summary>
    /// <param name="index">0 to 3.</param>
    public ReadOnlyMemory<byte> Rtmr(int index)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(index);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(index, 3);
        return Bytes.Slice(TdInfoOffset + 208 + (48 * index), 48);
    }

    /// <summary>Reads a report.</summary>
    /// <exception cref="FormatException">Not <see cref="Size"/> bytes, or not a TD's.</exception>
    public static TdxReport Parse(ReadOnlyMemory<byte> bytes)
    {
        if (bytes.Length != Size)
            throw new FormatException($"a TDREPORT has {Size} bytes, not {bytes.Length}");
        return bytes.Span[0] == TdxType ? new TdxReport(bytes) : throw new FormatException($"the report is of type 0x{bytes.Span[0]:x}, and that of a TD is 0x{TdxType:x}");
    }

    private ulong U64(int offset) => BinaryPrimitives.ReadUInt64LittleEndian(Bytes.Span[offset..]);
}
