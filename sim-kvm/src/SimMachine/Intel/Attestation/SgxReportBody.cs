using System.Runtime.InteropServices;
using System.Security.Cryptography;
using System.Text;

namespace SimMachine.Intel.Attestation;

/// <summary>The body of an SGX REPORT: what a quoting enclave says of itself, which the PCK key signs (tdx.md 7.5). Field names are the SDK's.</summary>
[StructLayout(LayoutKind.Explicit, Size = Size, Pack = 1)]
public struct SgxReportBody
{
    public const int Size = 384;

    [FieldOffset(0)] public Bytes16 CPUSVN;
    [FieldOffset(16)] public uint MISCSELECT;

    /// <summary>FLAGS and XFRM.</summary>
    [FieldOffset(48)] public ulong ATTRIBUTES_FLAGS;
    [FieldOffset(56)] public ulong ATTRIBUTES_XFRM;
    [FieldOffset(64)] public Bytes32 MRENCLAVE;
    [FieldOffset(128)] public Bytes32 MRSIGNER;
    [FieldOffset(256)] public ushort ISVPRODID;
    [FieldOffset(258)] public ushort ISVSVN;
    [FieldOffset(320)] public Bytes64 REPORTDATA;

    public readonly byte[] ToArray()
    {
        byte[] bytes = new byte[Size];
        MemoryMarshal.Write(bytes, this);
        return bytes;
    }
}

/// <summary>Who the simulated quoting enclave is. It has a signer of its own, so that nobody mistakes it for Intel's; the rest is as Intel's TD quoting enclave has it.</summary>
public static class QuotingEnclaveIdentity
{
    public const ushort IsvProdId = 2;

    public const ushort IsvSvn = 8;

    /// <summary>INIT, MODE64BIT, PROVISION_KEY; no DEBUG.</summary>
    public const ulong Flags = 0x15;

    public const ulong Xfrm = 0xe7;

    /// <summary>What verifiers compare of FLAGS: PROVISION_KEY may be missing.</summary>
    public const ulong FlagsMask = 0xffff_ffff_ffff_fffb;

    /// <summary>Bytes 00 to 1f, which real ones send.</summary>
    public static byte[] AuthenticationData { get; } = [.. Enumerable.Range(0, 32).Select(i => (byte)i)];

    /// <summary>32 bytes.</summary>
    public static byte[] MrSigner { get; } = SHA256.HashData(Encoding.ASCII.GetBytes("VmmService simulated quoting enclave/signer"));

    /// <summary>32 bytes.</summary>
    public static byte[] MrEnclave { get; } = SHA256.HashData(Encoding.ASCII.GetBytes("VmmService simulated quoting enclave/enclave"));

    /// <summary>The enclave's report, which binds an attestation key.</summary>
    /// <param name="cpuSvn">Of the platform, 16 bytes.</param>
    /// <param name="attestationKey">x and y, 64 bytes.</param>
    /// <param name="authenticationData">What else goes into the binding.</param>
    public static SgxReportBody Report(ReadOnlySpan<byte> cpuSvn, ReadOnlySpan<byte> attestationKey, ReadOnlySpan<byte> authenticationData)
    {
        SgxReportBody report = new()
        {
            ATTRIBUTES_FLAGS = Flags,
            ATTRIBUTES_XFRM = Xfrm,
            ISVPRODID = IsvProdId,
            ISVSVN = IsvSvn,
        };
        cpuSvn.CopyTo(report.CPUSVN);
        MrEnclave.CopyTo(report.MRENCLAVE);
        MrSigner.CopyTo(report.MRSIGNER);
        SHA256.HashData([.. attestationKey, .. authenticationData], report.REPORTDATA);
        return report;
    }
}
