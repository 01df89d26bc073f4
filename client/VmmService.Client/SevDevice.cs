using Google.Protobuf;
using VmmService.Client.Attestation;
using VmmService.V1;

namespace VmmService.Client;

/// <summary>A descriptor of /dev/sev: VMMs pass it along as sev_fd; the platform's operator asks firmware through it (SEV_ISSUE_CMD).</summary>
public sealed class SevDevice : RemoteFd
{
    internal SevDevice(RemoteProcess process, int fd)
        : base(process, fd)
    {
    }

    private SevPlatformService.SevPlatformServiceClient Stub => Stubs.SevPlatform;

    /// <summary>SEV_PLATFORM_STATUS.</summary>
    public KvmCall<SevPlatformStatusResponse, SevPlatformStatusResponse> PlatformStatusAsync(CancellationToken cancellation = default) => Call(
        "SEV_PLATFORM_STATUS", Stub.SevPlatformStatusAsync(new SevPlatformStatusRequest { Host = HostId, Pid = Pid, Fd = Fd }, cancellationToken: cancellation),
        reply => reply.Outcome, reply => reply, reply => reply.Sev);

    /// <summary>SEV_GET_ID2: the chip's id, 64 bytes.</summary>
    public KvmCall<SevGetIdResponse, ReadOnlyMemory<byte>> GetIdAsync(CancellationToken cancellation = default) => Call(
        "SEV_GET_ID2", Stub.SevGetIdAsync(new SevGetIdRequest { Host = HostId, Pid = Pid, Fd = Fd }, cancellationToken: cancellation),
        reply => reply.Outcome, reply => reply.Id.Memory, reply => reply.Sev);

    /// <summary>SEV_FACTORY_RESET, SEV_PEK_GEN or SEV_PDH_GEN.</summary>
    public KvmCall<SevMakeKeysResponse, long> MakeKeysAsync(SevPlatformKeys keys, CancellationToken cancellation = default) => Call(
        keys.ToString(), Stub.SevMakeKeysAsync(new SevMakeKeysRequest { Host = HostId, Pid = Pid, Fd = Fd, Keys = keys }, cancellationToken: cancellation),
        reply => reply.Outcome, reply => reply.Outcome.Value, reply => reply.Sev);

    /// <summary>SEV_PDH_CERT_EXPORT: the key that a guest's owner makes sessions for, and what vouches for it. The CEK in it is unsigned, see <see cref="RemoteHost.GetSevCekAsync"/>.</summary>
    public KvmCall<SevPdhCertExportResponse, SevPlatformChain> ExportPdhAsync(CancellationToken cancellation = default) => Call(
        "SEV_PDH_CERT_EXPORT", Stub.SevPdhCertExportAsync(new SevPdhCertExportRequest { Host = HostId, Pid = Pid, Fd = Fd }, cancellationToken: cancellation),
        reply => reply.Outcome, reply => SevPlatformChain.Parse(reply.PdhCert.Span, reply.CertChain.Span), reply => reply.Sev);

    /// <summary>SEV_PEK_CSR: the platform's endorsement key, for an owner to sign (<see cref="SevCertificate.SignedBy"/>).</summary>
    public KvmCall<SevPekCsrResponse, SevCertificate> RequestPekAsync(CancellationToken cancellation = default) => Call(
        "SEV_PEK_CSR", Stub.SevPekCsrAsync(new SevPekCsrRequest { Host = HostId, Pid = Pid, Fd = Fd }, cancellationToken: cancellation),
        reply => reply.Outcome, reply => SevCertificate.Parse(reply.Csr.Span), reply => reply.Sev);

    /// <summary>SEV_PEK_CERT_IMPORT: the platform gets an owner, and a new Diffie-Hellman key.</summary>
    /// <param name="pek">What <see cref="RequestPekAsync"/> gave, signed by the owner.</param>
    /// <param name="oca">The owner's certificate.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    public KvmCall<SevPekCertImportResponse, long> ImportPekAsync(SevCertificate pek, SevCertificate oca, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(pek);
        ArgumentNullException.ThrowIfNull(oca);
        return Call(
            "SEV_PEK_CERT_IMPORT",
            Stub.SevPekCertImportAsync(
                new SevPekCertImportRequest
                {
                    Host = HostId,
                    Pid = Pid,
                    Fd = Fd,
                    PekCert = ByteString.CopyFrom(pek.Bytes.Span),
                    OcaCert = ByteString.CopyFrom(oca.Bytes.Span),
                },
                cancellationToken: cancellation),
            reply => reply.Outcome, reply => reply.Outcome.Value, reply => reply.Sev);
    }

    /// <summary>SNP_PLATFORM_STATUS.</summary>
    public KvmCall<SnpPlatformStatusResponse, SnpPlatformStatusResponse> SnpPlatformStatusAsync(CancellationToken cancellation = default) => Call(
        "SNP_PLATFORM_STATUS", Stub.SnpPlatformStatusAsync(new SnpPlatformStatusRequest { Host = HostId, Pid = Pid, Fd = Fd }, cancellationToken: cancellation),
        reply => reply.Outcome, reply => reply, reply => reply.Sev);

    /// <summary>SNP_COMMIT: the running firmware's TCB version becomes the committed one.</summary>
    public KvmCall<SnpCommitResponse, long> SnpCommitAsync(CancellationToken cancellation = default) => Call(
        "SNP_COMMIT", Stub.SnpCommitAsync(new SnpCommitRequest { Host = HostId, Pid = Pid, Fd = Fd }, cancellationToken: cancellation),
        reply => reply.Outcome, reply => reply.Outcome.Value, reply => reply.Sev);

    /// <summary>SNP_SET_CONFIG.</summary>
    /// <param name="reportedTcb">No part newer than the committed TCB's; 0 is the current one.</param>
    /// <param name="mask">Bit 0 hides the chip id in reports, bit 1 leaves them unsigned.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    public KvmCall<SnpSetConfigResponse, long> SnpSetConfigAsync(ulong reportedTcb, uint mask = 0, CancellationToken cancellation = default) => Call(
        "SNP_SET_CONFIG",
        Stub.SnpSetConfigAsync(new SnpSetConfigRequest { Host = HostId, Pid = Pid, Fd = Fd, ReportedTcb = reportedTcb, Mask = mask }, cancellationToken: cancellation),
        reply => reply.Outcome, reply => reply.Outcome.Value, reply => reply.Sev);

    /// <summary>SNP_VLEK_LOAD, with a blob that a simulated chip unwraps.</summary>
    /// <param name="cspId">The provider's id: 1 to 64 printable ASCII characters.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    public KvmCall<SnpVlekLoadResponse, long> SnpVlekLoadAsync(string cspId, CancellationToken cancellation = default) => SnpVlekLoadAsync(WrapVlek(cspId), cancellation);

    /// <summary>SNP_VLEK_LOAD.</summary>
    /// <param name="wrapped">432 bytes.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    public KvmCall<SnpVlekLoadResponse, long> SnpVlekLoadAsync(ReadOnlyMemory<byte> wrapped, CancellationToken cancellation = default) => Call(
        "SNP_VLEK_LOAD",
        Stub.SnpVlekLoadAsync(new SnpVlekLoadRequest { Host = HostId, Pid = Pid, Fd = Fd, Wrapped = ByteString.CopyFrom(wrapped.Span) }, cancellationToken: cancellation),
        reply => reply.Outcome, reply => reply.Outcome.Value, reply => reply.Sev);

    private static byte[] WrapVlek(string cspId)
    {
        const int size = 432, idAt = 16, idSize = 64;
        ArgumentException.ThrowIfNullOrEmpty(cspId);
        if (cspId.Length > idSize)
            throw new ArgumentException($"at most {idSize} characters fit", nameof(cspId));

        byte[] wrapped = new byte[size];
        "SIMULATED VLEK"u8.CopyTo(wrapped);
        System.Text.Encoding.ASCII.GetBytes(cspId, wrapped.AsSpan(idAt, idSize));
        return wrapped;
    }
}
