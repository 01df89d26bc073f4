using Google.Protobuf;
using VmmService.V1;

namespace VmmService.Client.Attestation;

/// <summary>
/// Attestation of a launched SNP guest, as software in it would ask for it: reports, derived keys, and evidence for the tests of verifiers. The certificates
/// belong to the host: <see cref="RemoteHost.GetCertificateChainAsync"/>.
/// </summary>
public sealed class GuestAttestation
{
    private readonly Vm _vm;

    internal GuestAttestation(Vm vm) => _vm = vm;

    private AttestationService.AttestationServiceClient Stub => _vm.Process.Connection.Stubs.Attestation;

    /// <summary>MSG_REPORT_REQ. EIO before the launch is finished, for a VMPL that is more privileged than the VMPCK, and for a key that cannot be had.</summary>
    /// <param name="reportData">64 bytes that the report will carry, or empty for zeros.</param>
    /// <param name="vmpl">Whose report.</param>
    /// <param name="key">Which key signs.</param>
    /// <param name="vmpck">Who asks.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    public KvmCall<GetReportResponse, SnpReport> GetReportAsync(
        ReadOnlySpan<byte> reportData = default, uint vmpl = 0, KeySelection key = KeySelection.VlekIfLoaded, uint vmpck = 0, CancellationToken cancellation = default) =>
        _vm.Process.Host.GetReportAsync(Request(reportData, vmpl, key, vmpck), cancellation);

    /// <summary>MSG_KEY_REQ with every field of its argument; host, pid and fd are filled in.</summary>
    public KvmCall<DeriveKeyResponse, ReadOnlyMemory<byte>> DeriveKeyAsync(DeriveKeyRequest request, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(request);
        DeriveKeyRequest filled = request.Clone();
        filled.Host = _vm.Process.Host.Id;
        filled.Pid = _vm.Process.Pid;
        filled.Fd = _vm.Fd;
        return new(
            "MSG_KEY_REQ",
            _vm.Process.Connection.Call(Stub.DeriveKeyAsync(filled, cancellationToken: cancellation)),
            reply => reply.Outcome,
            reply => reply.Key.Memory,
            reply => reply.Sev);
    }

    /// <summary>A report with its chain and exactly one defect, which a verifier must refuse for that reason.</summary>
    public KvmCall<MakeEvidenceResponse, MakeEvidenceResponse> MakeEvidenceAsync(
        EvidenceKind kind, ReadOnlySpan<byte> reportData = default, uint vmpl = 0, KeySelection key = KeySelection.VlekIfLoaded, CancellationToken cancellation = default) =>
        new(
            $"evidence {kind}",
            _vm.Process.Connection.Call(Stub.MakeEvidenceAsync(
                new MakeEvidenceRequest { Kind = kind, Report = Request(reportData, vmpl, key, vmpck: 0) }, cancellationToken: cancellation)),
            reply => reply.Outcome,
            reply => reply);

    private GetReportRequest Request(ReadOnlySpan<byte> reportData, uint vmpl, KeySelection key, uint vmpck) => new()
    {
        Host = _vm.Process.Host.Id,
        Pid = _vm.Process.Pid,
        Fd = _vm.Fd,
        ReportData = ByteString.CopyFrom(reportData),
        Vmpl = vmpl,
        Vmpck = vmpck,
        KeySelection = key,
    };
}
