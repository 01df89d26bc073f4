using System.Runtime.InteropServices;
using System.Security.Cryptography;

namespace SimMachine.Intel.Attestation;

/// <summary>What there is to say of a TDREPORT that somebody presents.</summary>
public enum TdReportVerdict
{
    GENUINE,

    /// <summary>It is not a TD's: TYPE or SUBTYPE.</summary>
    WRONG_TYPE,

    /// <summary>CPUSVN is not this machine's (INVALID_CPUSVN).</summary>
    INVALID_CPUSVN,

    /// <summary>MAC: made on another machine or in an earlier boot, or altered (INVALID_REPORTMACSTRUCT).</summary>
    INVALID_REPORTMACSTRUCT,

    /// <summary>TEE_TCB_INFO was altered.</summary>
    TEE_TCB_INFO_HASH_MISMATCH,

    /// <summary>TDINFO was altered.</summary>
    TEE_INFO_HASH_MISMATCH,
}

/// <summary>
/// The MAC of TDREPORTs: HMAC-SHA-256 with a key that no one has but the machine, and it only until the next boot. On hardware the processor derives the key in a
/// way that is not published; here it comes from the machine's seed.
/// </summary>
public sealed class ReportMac
{
    public const int KeySize = 32;

    private readonly byte[] _key;
    private readonly Bytes16 _cpuSvn;

    /// <param name="key"><see cref="KeySize"/> bytes.</param>
    /// <param name="cpuSvn">CPUSVN of the machine, 16 bytes.</param>
    public ReportMac(ReadOnlySpan<byte> key, ReadOnlySpan<byte> cpuSvn)
    {
        ArgumentOutOfRangeException.ThrowIfNotEqual(key.Length, KeySize);
        ArgumentOutOfRangeException.ThrowIfNotEqual(cpuSvn.Length, 16);
        _key = key.ToArray();
        cpuSvn.CopyTo(_cpuSvn);
    }

    /// <summary>MAC over all of the structure that stands before it, 32 bytes.</summary>
    public byte[] Compute(in ReportMacStruct report) =>
        HMACSHA256.HashData(_key, MemoryMarshal.AsBytes(new ReadOnlySpan<ReportMacStruct>(in report))[..ReportMacStruct.MacedSize]);

    /// <summary>What TDG.MR.VERIFYREPORT checks: CPUSVN, then MAC. It sees no more than this part of a report.</summary>
    public TdReportVerdict Verify(in ReportMacStruct report)
    {
        if (!((ReadOnlySpan<byte>)report.CPUSVN).SequenceEqual(_cpuSvn))
        {
            return TdReportVerdict.INVALID_CPUSVN;
        }
        return Compute(report).AsSpan().SequenceEqual(report.MAC) ? TdReportVerdict.GENUINE : TdReportVerdict.INVALID_REPORTMACSTRUCT;
    }

    /// <summary>What the quoting enclave checks before it vouches for a report: type, the MAC, and that both halves are those under the MAC.</summary>
    public TdReportVerdict Verify(in TdReport report)
    {
        ref readonly ReportMacStruct mac = ref report.REPORTMACSTRUCT;
        if (mac.TYPE != ReportMacStruct.TdxType || mac.SUBTYPE != 0)
        {
            return TdReportVerdict.WRONG_TYPE;
        }
        TdReportVerdict verdict = Verify(in mac);
        if (verdict != TdReportVerdict.GENUINE)
        {
            return verdict;
        }
        if (!report.TEE_TCB_INFO.Hash().AsSpan().SequenceEqual(mac.TEE_TCB_INFO_HASH))
        {
            return TdReportVerdict.TEE_TCB_INFO_HASH_MISMATCH;
        }
        return report.TDINFO.Hash().AsSpan().SequenceEqual(mac.TEE_INFO_HASH) ? TdReportVerdict.GENUINE : TdReportVerdict.TEE_INFO_HASH_MISMATCH;
    }
}
