using System.Buffers.Binary;
using VmmService.V1;

namespace VmmService.Client.Attestation;

/// <summary>
/// An SNP attestation report, read where it lies: every property is a view of <see cref="Bytes"/>. Field names and offsets are those of ATTESTATION_REPORT in the SNP
/// firmware ABI. Reading says nothing about whether it is genuine: that takes the certificates.
/// </summary>
public sealed class SnpReport
{
    /// <summary>Bytes of a report.</summary>
    public const int Size = 0x4A0;

    /// <summary>Bytes that the signature covers.</summary>
    public const int SignedSize = 0x2A0;

    private const byte TurinFamily = 0x1A;

    private SnpReport(ReadOnlyMemory<byte> bytes) => Bytes = bytes;

    /// <summary>The report as it travels.</summary>
    public ReadOnlyMemory<byte> Bytes { get; }

    /// <summary>2, 3 or 5.</summary>
    public uint Version => U32(0x000);

    public uint GuestSvn => U32(0x004);

    public ulong Policy => U64(0x008);

    /// <summary>The host may read the guest's memory (policy bit 19).</summary>
    public bool DebugAllowed => (Policy & (1 << 19)) != 0;

    /// <summary>16 bytes of the ID block.</summary>
    public ReadOnlyMemory<byte> FamilyId => Bytes.Slice(0x010, 16);

    /// <summary>16 bytes of the ID block.</summary>
    public ReadOnlyMemory<byte> ImageId => Bytes.Slice(0x020, 16);

    public uint Vmpl => U32(0x030);

    /// <summary>1: ECDSA on P-384 with SHA-384.</summary>
    public uint SignatureAlgo => U32(0x034);

    public ulong CurrentTcb => U64(0x038);

    /// <summary>0 SMT, 1 TSME, 2 ECC, 3 RAPL disabled, 4 ciphertext hiding, 5 alias check complete, 7 TIO.</summary>
    public ulong PlatformInfo => U64(0x040);

    /// <summary>0 author key, 1 masked chip key, 4:2 signing key.</summary>
    public uint KeyInfo => U32(0x048);

    /// <summary>"VCEK", "VLEK", or "none" for a platform that masks its chip key.</summary>
    public string SigningKey => ((KeyInfo >> 2) & 7) switch
    {
        0 => "VCEK",
        1 => "VLEK",
        7 => "none",
        var other => $"reserved ({other})",
    };

    /// <summary>64 bytes that whoever asked for the report chose.</summary>
    public ReadOnlyMemory<byte> ReportData => Bytes.Slice(0x050, 64);

    /// <summary>The launch digest, 48 bytes.</summary>
    public ReadOnlyMemory<byte> Measurement => Bytes.Slice(0x090, 48);

    /// <summary>32 bytes that the host gave to SNP_LAUNCH_FINISH.</summary>
    public ReadOnlyMemory<byte> HostData => Bytes.Slice(0x0C0, 32);

    /// <summary>48 bytes; zeros without an ID block.</summary>
    public ReadOnlyMemory<byte> IdKeyDigest => Bytes.Slice(0x0E0, 48);

    /// <summary>48 bytes; zeros without an author key.</summary>
    public ReadOnlyMemory<byte> AuthorKeyDigest => Bytes.Slice(0x110, 48);

    /// <summary>32 bytes.</summary>
    public ReadOnlyMemory<byte> ReportId => Bytes.Slice(0x140, 32);

    /// <summary>32 bytes; 0xFF without a migration agent.</summary>
    public ReadOnlyMemory<byte> ReportIdMa => Bytes.Slice(0x160, 32);

    public ulong ReportedTcb => U64(0x180);

    /// <summary>CPUID family, model and stepping; null before version 3.</summary>
    public (byte Family, byte Model, byte Stepping)? Cpuid => Version >= 3 ? (Bytes.Span[0x188], Bytes.Span[0x189], Bytes.Span[0x18A]) : null;

    /// <summary>64 bytes; zeros where the platform masks it.</summary>
    public ReadOnlyMemory<byte> ChipId => Bytes.Slice(0x1A0, 64);

    /// <summary>The chip id begins with the word of simulated chips.</summary>
    public bool IsSimulated => ChipId.Span.StartsWith("SIMU"u8);

    public ulong CommittedTcb => U64(0x1E0);

    /// <summary>Firmware's major.minor.build.</summary>
    public (byte Major, byte Minor, byte Build) CurrentFirmware => (Bytes.Span[0x1EA], Bytes.Span[0x1E9], Bytes.Span[0x1E8]);

    /// <summary>Firmware that cannot be rolled back, major.minor.build.</summary>
    public (byte Major, byte Minor, byte Build) CommittedFirmware => (Bytes.Span[0x1EE], Bytes.Span[0x1ED], Bytes.Span[0x1EC]);

    public ulong LaunchTcb => U64(0x1F0);

    /// <summary>Null before version 5.</summary>
    public ulong? LaunchMitVector => Version >= 5 ? U64(0x1F8) : null;

    /// <summary>Null before version 5.</summary>
    public ulong? CurrentMitVector => Version >= 5 ? U64(0x200) : null;

    /// <summary>R and S, little-endian in 72 bytes each, then zeros: 512 bytes.</summary>
    public ReadOnlyMemory<byte> Signature => Bytes.Slice(SignedSize, 512);

    /// <summary>The parts of an encoded TCB version of this report. The layout follows family, or, in version 2, the length of the chip id.</summary>
    public TcbVersion DecodeTcb(ulong encoded)
    {
        Span<byte> bytes = stackalloc byte[8];
        BinaryPrimitives.WriteUInt64LittleEndian(bytes, encoded);
        bool fmcFirst = Cpuid is { } cpuid
            ? cpuid.Family >= TurinFamily
            : ChipId.Span[..8].IndexOfAnyExcept((byte)0) >= 0 && ChipId.Span[8..].IndexOfAnyExcept((byte)0) < 0;
        return fmcFirst
            ? new TcbVersion { Fmc = bytes[0], BootLoader = bytes[1], Tee = bytes[2], Snp = bytes[3], Microcode = bytes[7] }
            : new TcbVersion { BootLoader = bytes[0], Tee = bytes[1], Snp = bytes[6], Microcode = bytes[7] };
    }

    /// <summary>Reads a report.</summary>
    /// <exception cref="FormatException">Not <see cref="Size"/> bytes, or of a version that has another layout.</exception>
    public static SnpReport Parse(ReadOnlyMemory<byte> bytes)
    {
        if (bytes.Length != Size)
        {
            throw new FormatException($"an SNP attestation report has {Size} bytes, not {bytes.Length}");
        }
        var report = new SnpReport(bytes);
        return report.Version is >= 2 and <= 5 ? report : throw new FormatException($"report version {report.Version} is not known; 2 to 5 are");
    }

    private uint U32(int offset) => BinaryPrimitives.ReadUInt32LittleEndian(Bytes.Span[offset..]);

    private ulong U64(int offset) => BinaryPrimitives.ReadUInt64LittleEndian(Bytes.Span[offset..]);
}
