using System.Runtime.InteropServices;
using System.Security.Cryptography;

namespace SimMachine.Intel.Attestation;

/// <summary>
/// TDREPORT_STRUCT: what TDG.MR.REPORT tells a guest of itself, with a MAC that only the same machine can check (tdx.md 7.1). A quote is made from it.
/// Field names are the module ABI's. The module fills <see cref="TeeTcbInfo"/> and <see cref="TdInfo"/>; <see cref="Create"/> binds them together.
/// </summary>
[StructLayout(LayoutKind.Explicit, Size = Size, Pack = 1)]
public struct TdReport
{
    public const int Size = 1024;

    [FieldOffset(0)] public ReportMacStruct REPORTMACSTRUCT;
    [FieldOffset(256)] public TeeTcbInfo TEE_TCB_INFO;

    // 17 reserved bytes between.
    [FieldOffset(512)] public TdInfo TDINFO;

    /// <summary>Makes a report of what is said here: the hashes are computed and the MAC is put on.</summary>
    /// <param name="module">What runs the TD.</param>
    /// <param name="td">The TD.</param>
    /// <param name="reportData">64 bytes of the guest's.</param>
    /// <param name="cpuSvn">16 bytes.</param>
    /// <param name="mac">The MAC of the machine.</param>
    public static TdReport Create(in TeeTcbInfo module, in TdInfo td, ReadOnlySpan<byte> reportData, ReadOnlySpan<byte> cpuSvn, ReportMac mac)
    {
        TdReport report = new() { TEE_TCB_INFO = module, TDINFO = td };
        report.REPORTMACSTRUCT.TYPE = ReportMacStruct.TdxType;
        cpuSvn.CopyTo(report.REPORTMACSTRUCT.CPUSVN);
        reportData.CopyTo(report.REPORTMACSTRUCT.REPORTDATA);
        module.Hash().CopyTo(report.REPORTMACSTRUCT.TEE_TCB_INFO_HASH);
        td.Hash().CopyTo(report.REPORTMACSTRUCT.TEE_INFO_HASH);
        mac.Compute(report.REPORTMACSTRUCT).CopyTo(report.REPORTMACSTRUCT.MAC);
        return report;
    }

    /// <summary>Reads a report of exactly <see cref="Size"/> bytes; whether it is genuine, <see cref="ReportMac.Verify(in TdReport)"/> says.</summary>
    public static TdReport Read(ReadOnlySpan<byte> bytes) => bytes.Length == Size
        ? MemoryMarshal.Read<TdReport>(bytes)
        : throw new ArgumentException($"a TDREPORT has {Size} bytes, not {bytes.Length}", nameof(bytes));

    /// <summary>The report as the guest's memory holds it.</summary>
    public readonly byte[] ToArray()
    {
        byte[] bytes = new byte[Size];
        MemoryMarshal.Write(bytes, this);
        return bytes;
    }
}

/// <summary>REPORTMACSTRUCT: the first 256 bytes of a report, all that TDG.MR.VERIFYREPORT looks at.</summary>
[StructLayout(LayoutKind.Explicit, Size = Size, Pack = 1)]
public struct ReportMacStruct
{
    public const int Size = 256;

    /// <summary>Bytes that the MAC covers.</summary>
    public const int MacedSize = 224;

    /// <summary>TYPE of a TD's report; 0 is an SGX enclave's.</summary>
    public const byte TdxType = 0x81;

    /// <summary>Bytes of REPORTDATA.</summary>
    public const int ReportDataSize = 64;

    [FieldOffset(0)] public byte TYPE;
    [FieldOffset(1)] public byte SUBTYPE;

    /// <summary>1 if a service TD is bound, else 0.</summary>
    [FieldOffset(2)] public byte VERSION;
    [FieldOffset(16)] public Bytes16 CPUSVN;
    [FieldOffset(32)] public Bytes48 TEE_TCB_INFO_HASH;
    [FieldOffset(80)] public Bytes48 TEE_INFO_HASH;
    [FieldOffset(128)] public Bytes64 REPORTDATA;
    [FieldOffset(224)] public Bytes32 MAC;

    /// <summary>Reads exactly <see cref="Size"/> bytes.</summary>
    public static ReportMacStruct Read(ReadOnlySpan<byte> bytes) => bytes.Length == Size
        ? MemoryMarshal.Read<ReportMacStruct>(bytes)
        : throw new ArgumentException($"a REPORTMACSTRUCT has {Size} bytes, not {bytes.Length}", nameof(bytes));
}

/// <summary>TEE_TCB_INFO: which TDX module runs the TD.</summary>
[StructLayout(LayoutKind.Explicit, Size = Size, Pack = 1)]
public struct TeeTcbInfo
{
    /// <summary>All of them are hashed, the 17 reserved bytes after them are not.</summary>
    public const int Size = 239;

    /// <summary>VALID of a 1.0 module.</summary>
    public const ulong ValidOf10 = 0x1ff;

    /// <summary>VALID of a 1.5 module, which has TEE_TCB_SVN2.</summary>
    public const ulong ValidOf15 = 0x301ff;

    [FieldOffset(0)] public ulong VALID;
    [FieldOffset(8)] public Bytes16 TEE_TCB_SVN;
    [FieldOffset(24)] public Bytes48 MRSEAM;

    /// <summary>Zeros for a production module, as are its ATTRIBUTES.</summary>
    [FieldOffset(72)] public Bytes48 MRSIGNERSEAM;
    [FieldOffset(120)] public ulong ATTRIBUTES;
    [FieldOffset(128)] public Bytes16 TEE_TCB_SVN2;

    /// <summary>TEE_TCB_INFO_HASH: SHA-384, 48 bytes.</summary>
    public readonly byte[] Hash() => SHA384.HashData(MemoryMarshal.AsBytes(new ReadOnlySpan<TeeTcbInfo>(in this)));
}

/// <summary>TDINFO_STRUCT: what a TD is.</summary>
[StructLayout(LayoutKind.Explicit, Size = Size, Pack = 1)]
public struct TdInfo
{
    public const int Size = 512;

    /// <summary>Bit 0 of ATTRIBUTES: the host may look into the TD.</summary>
    public const ulong DebugAttribute = 1;

    public const int RtmrCount = 4;

    [FieldOffset(0)] public ulong ATTRIBUTES;
    [FieldOffset(8)] public ulong XFAM;
    [FieldOffset(16)] public Bytes48 MRTD;
    [FieldOffset(64)] public Bytes48 MRCONFIGID;
    [FieldOffset(112)] public Bytes48 MROWNER;
    [FieldOffset(160)] public Bytes48 MROWNERCONFIG;
    [FieldOffset(208)] public Bytes48 RTMR0;
    [FieldOffset(256)] public Bytes48 RTMR1;
    [FieldOffset(304)] public Bytes48 RTMR2;
    [FieldOffset(352)] public Bytes48 RTMR3;

    /// <summary>Zeros without service TDs.</summary>
    [FieldOffset(400)] public Bytes48 SERVTD_HASH;

    /// <summary>TEE_INFO_HASH: SHA-384, 48 bytes.</summary>
    public readonly byte[] Hash() => SHA384.HashData(MemoryMarshal.AsBytes(new ReadOnlySpan<TdInfo>(in this)));
}
