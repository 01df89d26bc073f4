using System.Buffers.Binary;
using System.Security.Cryptography;

namespace SimMachine.Intel;

/// <summary>
/// TDREPORT_STRUCT, 1024 bytes (TDX module ABI; tdx.md 7.1): REPORTMACSTRUCT, TEE_TCB_INFO, TDINFO_STRUCT. Offsets are from the start of the report.
/// </summary>
public static class TdReport
{
    public const int Size = 1024;

    /// <summary>Bytes of REPORTDATA.</summary>
    public const int ReportDataSize = 64;

    /// <summary>Bytes of REPORTMACSTRUCT.</summary>
    public const int MacStructSize = 256;

    public const int CpuSvnAt = 16;
    public const int TeeTcbInfoHashAt = 32;
    public const int TeeInfoHashAt = 80;
    public const int ReportDataAt = 128;
    public const int MacAt = 224;
    public const int TeeTcbInfoAt = 256;
    public const int TdInfoAt = 512;

    /// <summary>The part of TEE_TCB_INFO that TEE_TCB_INFO_HASH covers.</summary>
    public const int TeeTcbInfoSize = 239;

    public const int TdInfoSize = 512;

    private const byte TypeTdx = 0x81;

    // Which fields of TEE_TCB_INFO a module of version 1.5 fills.
    private const ulong TcbInfoValid = 0x301ff;

    /// <summary>Makes a report.</summary>
    /// <param name="destination">1024 bytes.</param>
    internal static void Build(TdxModuleConfig config, Td td, ReadOnlySpan<byte> reportData, ReadOnlySpan<byte> macKey, Span<byte> destination)
    {
        destination = destination[..Size];
        destination.Clear();
        Span<byte> tcb = destination.Slice(TeeTcbInfoAt, TeeTcbInfoSize);
        BinaryPrimitives.WriteUInt64LittleEndian(tcb, TcbInfoValid);
        config.TeeTcbSvn.Span.CopyTo(tcb[8..]);
        config.Mrseam.Span.CopyTo(tcb[24..]);
        config.MrsignerSeam.Span.CopyTo(tcb[72..]);
        BinaryPrimitives.WriteUInt64LittleEndian(tcb[120..], config.SeamAttributes);
        config.TeeTcbSvn.Span.CopyTo(tcb[128..]);

        Span<byte> info = destination.Slice(TdInfoAt, TdInfoSize);
        BinaryPrimitives.WriteUInt64LittleEndian(info, td.Attributes);
        BinaryPrimitives.WriteUInt64LittleEndian(info[8..], td.Xfam);
        int at = 16;
        foreach (byte[] register in (byte[][])[td.FinalMrtd, td.Mrconfigid, td.Mrowner, td.Mrownerconfig, .. td.Rtmr])
        {
            register.CopyTo(info[at..]);
            at += register.Length;
        }

        destination[0] = TypeTdx;
        config.CpuSvn.Span.CopyTo(destination[CpuSvnAt..]);
        SHA384.HashData(tcb, destination[TeeTcbInfoHashAt..]);
        SHA384.HashData(info, destination[TeeInfoHashAt..]);
        reportData[..ReportDataSize].CopyTo(destination[ReportDataAt..]);
        HMACSHA256.HashData(macKey, destination[..MacAt], destination[MacAt..]);
    }

    /// <summary>Whether a REPORTMACSTRUCT was made with the key.</summary>
    internal static bool MacIsValid(ReadOnlySpan<byte> macStruct, ReadOnlySpan<byte> macKey)
    {
        Span<byte> mac = stackalloc byte[HMACSHA256.HashSizeInBytes];
        HMACSHA256.HashData(macKey, macStruct[..MacAt], mac);
        return CryptographicOperations.FixedTimeEquals(mac, macStruct[MacAt..MacStructSize]);
    }
}
