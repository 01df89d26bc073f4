using Google.Protobuf;
using Grpc.Core;
using SimKvm.Abi;
using SimKvm.Auditing;
using SimKvm.Userspace;
using VmmService.Server.Sessions;
using VmmService.Server.Wire;
using VmmService.V1;

namespace VmmService.Server.Services;

/// <summary>vmmservice.v1.SevLegacyService: SEV and SEV-ES, one RPC for each command.</summary>
internal sealed partial class SevLegacyServiceImpl(HostRegistry hosts) : SevLegacyService.SevLegacyServiceBase
{
    private const int MeasureSize = 32;
    private const int NonceSize = 16;

    public override Task<SevInitResponse> SevInit(SevInitRequest request, ServerCallContext context) =>
        On(request.Host, request.Pid, request.Fd, request.SevFd, (_, sev) =>
        {
            var response = new SevInitResponse();
            (response.Outcome, response.Sev) = sev.Run(request.Es ? SevCmdId.KVM_SEV_ES_INIT : SevCmdId.KVM_SEV_INIT);
            return response;
        });

    public override Task<SevLaunchStartResponse> SevLaunchStart(SevLaunchStartRequest request, ServerCallContext context) =>
        On(request.Host, request.Pid, request.Fd, request.SevFd, (_, sev) =>
        {
            var start = new kvm_sev_launch_start
            {
                handle = request.Handle,
                policy = request.Policy,
                dh_uaddr = sev.Store("dh_cert", request.DhCert, SevCommands.FirstBlobOffset),
                dh_len = (uint)request.DhCert.Length,
                session_uaddr = sev.Store("session", request.Session, SevCommands.SecondBlobOffset),
                session_len = (uint)request.Session.Length,
            };
            var response = new SevLaunchStartResponse();
            (response.Outcome, response.Sev) = sev.Run(SevCmdId.KVM_SEV_LAUNCH_START, ref start);
            response.Handle = start.handle;
            return response;
        });

    public override Task<SevLaunchUpdateDataResponse> SevLaunchUpdateData(SevLaunchUpdateDataRequest request, ServerCallContext context) =>
        On(request.Host, request.Pid, request.Fd, request.SevFd, (_, sev) =>
        {
            var update = new kvm_sev_launch_update_data { uaddr = request.Uaddr, len = request.Len };
            var response = new SevLaunchUpdateDataResponse();
            (response.Outcome, response.Sev) = sev.Run(SevCmdId.KVM_SEV_LAUNCH_UPDATE_DATA, ref update);
            return response;
        });

    public override Task<SevLaunchUpdateVmsaResponse> SevLaunchUpdateVmsa(SevLaunchUpdateVmsaRequest request, ServerCallContext context) =>
        On(request.Host, request.Pid, request.Fd, request.SevFd, (_, sev) =>
        {
            var response = new SevLaunchUpdateVmsaResponse();
            (response.Outcome, response.Sev) = sev.Run(SevCmdId.KVM_SEV_LAUNCH_UPDATE_VMSA);
            return response;
        });

    public override Task<SevLaunchMeasureResponse> SevLaunchMeasure(SevLaunchMeasureRequest request, ServerCallContext context) =>
        On(request.Host, request.Pid, request.Fd, request.SevFd, (_, sev) =>
        {
            var measure = new kvm_sev_launch_measure { uaddr = sev.Scratch.Address + SevCommands.FirstBlobOffset, len = request.Len };
            var response = new SevLaunchMeasureResponse();
            (response.Outcome, response.Sev) = sev.Run(SevCmdId.KVM_SEV_LAUNCH_MEASURE, ref measure);
            response.Len = measure.len;
            if (response.Outcome.Errno == 0)
            {
                byte[] bytes = sev.Scratch.Load(SevCommands.FirstBlobOffset, MeasureSize + NonceSize);
                response.Measure = ByteString.CopyFrom(bytes, 0, MeasureSize);
                response.Mnonce = ByteString.CopyFrom(bytes, MeasureSize, NonceSize);
            }
            return response;
        });

    public override Task<SevGetAttestationReportResponse> SevGetAttestationReport(SevGetAttestationReportRequest request, ServerCallContext context)
    {
        if (request.Mnonce.Length is not (0 or NonceSize))
        {
            throw Refusals.BadField("mnonce", $"{request.Mnonce.Length} bytes; a nonce has {NonceSize}");
        }
        return On(request.Host, request.Pid, request.Fd, request.SevFd, (_, sev) =>
        {
            kvm_sev_attestation_report report = WithNonce(request.Mnonce.Span);
            report.uaddr = sev.Scratch.Address + SevCommands.FirstBlobOffset;
            report.len = request.Len;
            var response = new SevGetAttestationReportResponse();
            (response.Outcome, response.Sev) = sev.Run(SevCmdId.KVM_SEV_GET_ATTESTATION_REPORT, ref report);
            response.Len = report.len;
            response.Report = response.Outcome.Errno == 0 ? ByteString.CopyFrom(sev.Scratch.Load(SevCommands.FirstBlobOffset, (int)report.len)) : ByteString.Empty;
            return response;
        });
    }

    private static unsafe kvm_sev_attestation_report WithNonce(ReadOnlySpan<byte> nonce)
    {
        var report = default(kvm_sev_attestation_report);
        nonce.CopyTo(new Span<byte>(report.mnonce, NonceSize));
        return report;
    }

    public override Task<SevLaunchSecretResponse> SevLaunchSecret(SevLaunchSecretRequest request, ServerCallContext context) =>
        On(request.Host, request.Pid, request.Fd, request.SevFd, (_, sev) =>
        {
            var secret = new kvm_sev_launch_secret
            {
                hdr_uaddr = sev.Store("header", request.Header, SevCommands.FirstBlobOffset),
                hdr_len = (uint)request.Header.Length,
                trans_uaddr = sev.Store("body", request.Body, SevCommands.SecondBlobOffset),
                trans_len = (uint)request.Body.Length,
                guest_uaddr = request.GuestUaddr,
                guest_len = request.GuestLen,
            };
            var response = new SevLaunchSecretResponse();
            (response.Outcome, response.Sev) = sev.Run(SevCmdId.KVM_SEV_LAUNCH_SECRET, ref secret);
            return response;
        });

    public override Task<SevLaunchFinishResponse> SevLaunchFinish(SevLaunchFinishRequest request, ServerCallContext context) =>
        On(request.Host, request.Pid, request.Fd, request.SevFd, (_, sev) =>
        {
            var response = new SevLaunchFinishResponse();
            (response.Outcome, response.Sev) = sev.Run(SevCmdId.KVM_SEV_LAUNCH_FINISH);
            return response;
        });

    public override Task<SevGuestStatusResponse> SevGuestStatus(SevGuestStatusRequest request, ServerCallContext context) =>
        On(request.Host, request.Pid, request.Fd, request.SevFd, (process, sev) =>
        {
            var status = default(kvm_sev_guest_status);
            var response = new SevGuestStatusResponse();
            (response.Outcome, response.Sev) = sev.Run(SevCmdId.KVM_SEV_GUEST_STATUS, ref status);
            response.Handle = status.handle;
            response.Policy = status.policy;
            response.State = status.state;
            response.StateName = ((SimMachine.Amd.Legacy.SevGuestState)status.state).ToString();
            response.LaunchDigest = VmDescription.Of(process, request.Fd)?.Sev.Legacy is { } guest ? Outcomes.Hex(guest.LaunchDigest) : "";
            return response;
        });

    public override Task<SevDebugResponse> SevDebug(SevDebugRequest request, ServerCallContext context) =>
        On(request.Host, request.Pid, request.Fd, request.SevFd, (_, sev) =>
        {
            var debug = new kvm_sev_dbg { src_uaddr = request.SrcUaddr, dst_uaddr = request.DstUaddr, len = request.Len };
            var response = new SevDebugResponse();
            (response.Outcome, response.Sev) = sev.Run(request.Encrypt ? SevCmdId.KVM_SEV_DBG_ENCRYPT : SevCmdId.KVM_SEV_DBG_DECRYPT, ref debug);
            return response;
        });

    public override Task<EncryptRegionResponse> EncryptRegion(EncryptRegionRequest request, ServerCallContext context)
    {
        var region = new kvm_enc_region { addr = request.Addr, size = request.Size };
        uint number = request.Unregister ? KvmIoctl.KVM_MEMORY_ENCRYPT_UNREG_REGION : KvmIoctl.KVM_MEMORY_ENCRYPT_REG_REGION;
        return Task.FromResult(new EncryptRegionResponse
        {
            Outcome = hosts.RunOn(request.Host, request.Pid, process => Outcomes.Of(Structs.Ioctl(process, request.Fd, number, ref region))),
        });
    }

    private Task<T> On<T>(string host, uint pid, int fd, int sevFd, Func<Process, SevCommands, T> body)
    {
        hosts.CheckBacking();
        return Task.FromResult(hosts.RunOn(host, pid, process => body(process, new SevCommands(hosts, host, process, fd, sevFd))));
    }
}
