using Google.Protobuf;
using Grpc.Core;
using SimKvm.Abi;
using VmmService.Server.Sessions;
using VmmService.V1;

namespace VmmService.Server.Services;

// A SEV guest that goes to another host: SEND_* on the one, RECEIVE_* on the other.
internal sealed partial class SevLegacyServiceImpl
{
    private const int HeaderSize = 52;

    // Behind the command's structure; what lies there was read when the session is written.
    private const int SessionOffset = 256;

    public override Task<SevSendStartResponse> SevSendStart(SevSendStartRequest request, ServerCallContext context) =>
        On(request.Host, request.Pid, request.Fd, request.SevFd, (_, sev) =>
        {
            var send = new kvm_sev_send_start
            {
                pdh_cert_uaddr = sev.Store("pdh_cert", request.PdhCert, SevCommands.FirstBlobOffset),
                pdh_cert_len = (uint)request.PdhCert.Length,
                plat_certs_uaddr = sev.Store("plat_certs", request.PlatCerts, SevCommands.SecondBlobOffset),
                plat_certs_len = (uint)request.PlatCerts.Length,
                amd_certs_uaddr = sev.Store("amd_certs", request.AmdCerts, SevCommands.ThirdBlobOffset),
                amd_certs_len = (uint)request.AmdCerts.Length,
                session_uaddr = sev.Scratch.Address + SessionOffset,
                session_len = request.SessionLen,
            };
            var response = new SevSendStartResponse();
            (response.Outcome, response.Sev) = sev.Run(SevCmdId.KVM_SEV_SEND_START, ref send);
            response.Policy = send.policy;
            response.SessionLen = send.session_len;
            response.Session = response.Outcome.Errno == 0 ? ByteString.CopyFrom(sev.Scratch.Load(SessionOffset, (int)send.session_len)) : ByteString.Empty;
            return response;
        });

    public override Task<SevSendUpdateDataResponse> SevSendUpdateData(SevSendUpdateDataRequest request, ServerCallContext context) =>
        On(request.Host, request.Pid, request.Fd, request.SevFd, (_, sev) =>
        {
            var send = new kvm_sev_send_update_data
            {
                hdr_uaddr = sev.Scratch.Address + SevCommands.FirstBlobOffset,
                hdr_len = request.Query ? 0u : HeaderSize,
                guest_uaddr = request.GuestUaddr,
                guest_len = request.GuestLen,
                trans_uaddr = sev.Scratch.Address + SevCommands.SecondBlobOffset,
                // A length of 0 would be a question.
                trans_len = request.Query ? 0u : Math.Max(request.GuestLen, 1),
            };
            var response = new SevSendUpdateDataResponse();
            (response.Outcome, response.Sev) = sev.Run(SevCmdId.KVM_SEV_SEND_UPDATE_DATA, ref send);
            (response.HdrLen, response.TransLen) = (send.hdr_len, send.trans_len);
            if (response.Outcome.Errno == 0)
            {
                response.Header = ByteString.CopyFrom(sev.Scratch.Load(SevCommands.FirstBlobOffset, HeaderSize));
                response.Packet = ByteString.CopyFrom(sev.Scratch.Load(SevCommands.SecondBlobOffset, (int)request.GuestLen));
            }
            return response;
        });

    public override Task<SevSendFinishResponse> SevSendFinish(SevSendFinishRequest request, ServerCallContext context) =>
        On(request.Host, request.Pid, request.Fd, request.SevFd, (_, sev) =>
        {
            var response = new SevSendFinishResponse();
            (response.Outcome, response.Sev) = sev.Run(request.Cancel ? SevCmdId.KVM_SEV_SEND_CANCEL : SevCmdId.KVM_SEV_SEND_FINISH);
            return response;
        });

    public override Task<SevReceiveStartResponse> SevReceiveStart(SevReceiveStartRequest request, ServerCallContext context) =>
        On(request.Host, request.Pid, request.Fd, request.SevFd, (_, sev) =>
        {
            var receive = new kvm_sev_receive_start
            {
                handle = request.Handle,
                policy = request.Policy,
                pdh_uaddr = sev.Store("pdh_cert", request.PdhCert, SevCommands.FirstBlobOffset),
                pdh_len = (uint)request.PdhCert.Length,
                session_uaddr = sev.Store("session", request.Session, SevCommands.SecondBlobOffset),
                session_len = (uint)request.Session.Length,
            };
            var response = new SevReceiveStartResponse();
            (response.Outcome, response.Sev) = sev.Run(SevCmdId.KVM_SEV_RECEIVE_START, ref receive);
            response.Handle = receive.handle;
            return response;
        });

    public override Task<SevReceiveUpdateDataResponse> SevReceiveUpdateData(SevReceiveUpdateDataRequest request, ServerCallContext context) =>
        On(request.Host, request.Pid, request.Fd, request.SevFd, (_, sev) =>
        {
            var receive = new kvm_sev_receive_update_data
            {
                hdr_uaddr = sev.Store("header", request.Header, SevCommands.FirstBlobOffset),
                hdr_len = (uint)request.Header.Length,
                guest_uaddr = request.GuestUaddr,
                guest_len = request.GuestLen,
                trans_uaddr = sev.Store("packet", request.Packet, SevCommands.SecondBlobOffset),
                trans_len = (uint)request.Packet.Length,
            };
            var response = new SevReceiveUpdateDataResponse();
            (response.Outcome, response.Sev) = sev.Run(SevCmdId.KVM_SEV_RECEIVE_UPDATE_DATA, ref receive);
            return response;
        });

    public override Task<SevReceiveFinishResponse> SevReceiveFinish(SevReceiveFinishRequest request, ServerCallContext context) =>
        On(request.Host, request.Pid, request.Fd, request.SevFd, (_, sev) =>
        {
            var response = new SevReceiveFinishResponse();
            (response.Outcome, response.Sev) = sev.Run(SevCmdId.KVM_SEV_RECEIVE_FINISH);
            return response;
        });
}
