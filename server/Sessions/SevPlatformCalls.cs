using System.Runtime.InteropServices;
using Google.Protobuf;
using SimKvm.Abi;
using SimKvm.Userspace;
using VmmService.Server.Wire;
using VmmService.V1;

namespace VmmService.Server.Sessions;

/// <summary>Issues SEV_ISSUE_CMD of /dev/sev for a process: structures and blobs are put into scratch pages.</summary>
internal sealed class SevPlatformCalls(Process process, int fd, Scratch scratch)
{
    /// <summary>Bytes of a SEV certificate.</summary>
    public const int CertificateSize = 2084;

    private const int BlobOffset = SevCommands.FirstBlobOffset;
    private const int CertificateChainSize = 3 * CertificateSize;

    public Scratch Scratch => scratch;

    /// <summary>SEV_PDH_CERT_EXPORT.</summary>
    /// <param name="query">Asks for the lengths only.</param>
    public SevPdhCertExportResponse ExportPdh(bool query)
    {
        sev_user_data_pdh_cert_export export = query ? default : new()
        {
            pdh_cert_address = scratch.Address + BlobOffset,
            pdh_cert_len = CertificateSize,
            cert_chain_address = scratch.Address + SevCommands.SecondBlobOffset,
            cert_chain_len = CertificateChainSize,
        };
        (Outcome outcome, SevStatus status) = Run(SevPlatformCommand.SEV_PDH_CERT_EXPORT, export, out sev_user_data_pdh_cert_export answer);
        return new SevPdhCertExportResponse
        {
            Outcome = outcome,
            Sev = status,
            PdhCert = Load(outcome, BlobOffset, CertificateSize),
            CertChain = Load(outcome, SevCommands.SecondBlobOffset, CertificateChainSize),
            PdhCertLen = answer.pdh_cert_len,
            CertChainLen = answer.cert_chain_len,
        };
    }

    public ulong Store(string field, ByteString blob, int offset) => SevCommands.Store(scratch, field, blob, offset);

    /// <summary>What a command that succeeded put into the scratch pages.</summary>
    public ByteString Load(Outcome outcome, int offset, int length) => outcome.Errno == 0 ? ByteString.CopyFrom(scratch.Load(offset, length)) : ByteString.Empty;

    public (Outcome Outcome, SevStatus Sev) Run(SevPlatformCommand command) => Issue(command, 0);

    public (Outcome Outcome, SevStatus Sev) Run<T>(SevPlatformCommand command, T structure, out T answer)
        where T : unmanaged
    {
        byte[] bytes = new byte[Marshal.SizeOf<T>()];
        MemoryMarshal.Write(bytes, structure);
        scratch.Store(0, bytes);
        (Outcome Outcome, SevStatus Sev) done = Issue(command, scratch.Address);
        answer = MemoryMarshal.Read<T>(scratch.Load(0, bytes.Length));
        return done;
    }

    private (Outcome Outcome, SevStatus Sev) Issue(SevPlatformCommand command, ulong data)
    {
        var issue = new sev_issue_cmd { cmd = (uint)command, data = data };
        CallReport report = Structs.Ioctl(process, fd, SevIoctl.SEV_ISSUE_CMD, ref issue);
        return (Outcomes.Of(report, $"{command} on fd {fd}"), Outcomes.OfSev(issue.error));
    }
}
