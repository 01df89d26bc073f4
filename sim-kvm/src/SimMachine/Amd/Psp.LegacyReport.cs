using System.Buffers.Binary;
using System.Security.Cryptography;
using SimMachine.Amd.Legacy;
using SimMachine.Stepping;

namespace SimMachine.Amd;

// ATTESTATION_REPORT of SEV and SEV-ES (55766 6.8): what the guest's owner could have had from MEASURE, signed by the platform's endorsement key. Layout and algorithm are UNVERIFIED.
public sealed partial class Psp
{
    /// <summary>Bytes of a report.</summary>
    public const int LegacyReportSize = 0xD0;

    private const int LegacyReportSignedSize = 0x34;

    public static readonly Rule LegacyReportLength = new(
        "psp.sev.report-length", "the buffer is too small for a report", "55766, ATTESTATION_REPORT", "give 208 bytes", "length#", "needed#");

    public static readonly Rule LegacyReportTooEarly = new(
        "psp.sev.report-state", "a report can be had when the guest was measured", "55766, ATTESTATION_REPORT", "issue LAUNCH_MEASURE or LAUNCH_FINISH first", "state#");

    /// <summary>ATTESTATION_REPORT (0x36): nonce, launch digest and policy, signed by the PEK.</summary>
    /// <param name="nonce">16 bytes of whoever asks.</param>
    /// <param name="length">In: bytes of the buffer. Out, when it is too small: bytes needed.</param>
    public SevStatus LegacyReport(SimThread thread, uint handle, ReadOnlySpan<byte> nonce, ref uint length, out byte[] report)
    {
        report = [];
        SevStatus status = EnterSev(thread, PspCommand.ATTESTATION_REPORT, handle, out SevGuest guest);
        if (status != SevStatus.SUCCESS)
        {
            return status;
        }
        if (guest.State is not (SevGuestState.LAUNCH_SECRET or SevGuestState.RUNNING))
        {
            return thread.Fail(SevStatus.INVALID_GUEST_STATE, LegacyReportTooEarly, (ulong)guest.State);
        }
        uint given = length;
        length = LegacyReportSize;
        if (given < LegacyReportSize)
        {
            return thread.Fail(SevStatus.INVALID_LEN, LegacyReportLength, given, LegacyReportSize);
        }
        report = new byte[LegacyReportSize];
        nonce.CopyTo(report);
        guest.Digest.CopyTo(report, 0x10);
        BinaryPrimitives.WriteUInt32LittleEndian(report.AsSpan(0x30), guest.Policy);
        BinaryPrimitives.WriteUInt32LittleEndian(report.AsSpan(0x34), (uint)SevKeyUsage.PEK);
        BinaryPrimitives.WriteUInt32LittleEndian(report.AsSpan(0x38), SevCertificate.EcdsaSha384);
        Pek().SignInto(SHA384.HashData(report.AsSpan(0, LegacyReportSignedSize)), report.AsSpan(0x40));
        return SevStatus.SUCCESS;
    }

    /// <summary>The platform endorsement key, its public half.</summary>
    public ECDsa CreatePekPublic() => Pek().CreatePublic();
}
