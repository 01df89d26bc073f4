using System.Runtime.InteropServices;
using Grpc.Core;
using SimKvm.Abi;
using VmmService.Server.Sessions;
using VmmService.Server.Wire;
using VmmService.V1;

namespace VmmService.Server.Services;

/// <summary>vmmservice.v1.SevPlatformService: SEV_ISSUE_CMD, one RPC for each command. Structures and blobs are put into the process's scratch pages.</summary>
internal sealed class SevPlatformServiceImpl(HostRegistry hosts) : SevPlatformService.SevPlatformServiceBase
{
    private const int BlobOffset = SevCommands.FirstBlobOffset;
    private const int ChipIdSize = 64;
    private const int WrappedVlekSize = 432;

    public override Task<SevPlatformStatusResponse> SevPlatformStatus(SevPlatformStatusRequest request, ServerCallContext context) =>
        On(request.Host, request.Pid, request.Fd, sev =>
        {
            (Outcome outcome, SevStatus status) = sev.Run(SevPlatformCommand.SEV_PLATFORM_STATUS, default(sev_user_data_status), out sev_user_data_status answer);
            return new SevPlatformStatusResponse
            {
                Outcome = outcome,
                Sev = status,
                ApiMajor = answer.api_major,
                ApiMinor = answer.api_minor,
                State = answer.state,
                Flags = answer.flags,
                Build = answer.build,
                GuestCount = answer.guest_count,
            };
        });

    public override Task<SevGetIdResponse> SevGetId(SevGetIdRequest request, ServerCallContext context) =>
        On(request.Host, request.Pid, request.Fd, sev =>
        {
            var id = new sev_user_data_get_id2 { address = sev.Scratch.Address + BlobOffset, length = ChipIdSize };
            (Outcome outcome, SevStatus status) = sev.Run(SevPlatformCommand.SEV_GET_ID2, id, out _);
            return new SevGetIdResponse
            {
                Outcome = outcome,
                Sev = status,
                Id = sev.Load(outcome, BlobOffset, ChipIdSize),
            };
        });

    public override Task<SevMakeKeysResponse> SevMakeKeys(SevMakeKeysRequest request, ServerCallContext context)
    {
        SevPlatformCommand command = request.Keys switch
        {
            SevPlatformKeys.FactoryReset => SevPlatformCommand.SEV_FACTORY_RESET,
            SevPlatformKeys.PekGen => SevPlatformCommand.SEV_PEK_GEN,
            SevPlatformKeys.PdhGen => SevPlatformCommand.SEV_PDH_GEN,
            _ => throw Refusals.BadEnum("keys", request.Keys),
        };
        return On(request.Host, request.Pid, request.Fd, sev =>
        {
            (Outcome outcome, SevStatus status) = sev.Run(command);
            return new SevMakeKeysResponse { Outcome = outcome, Sev = status };
        });
    }

    public override Task<SevPdhCertExportResponse> SevPdhCertExport(SevPdhCertExportRequest request, ServerCallContext context) =>
        On(request.Host, request.Pid, request.Fd, sev => sev.ExportPdh(request.Query));

    public override Task<SevPekCsrResponse> SevPekCsr(SevPekCsrRequest request, ServerCallContext context) =>
        On(request.Host, request.Pid, request.Fd, sev =>
        {
            sev_user_data_pek_csr csr = request.Query ? default : new() { address = sev.Scratch.Address + BlobOffset, length = SevPlatformCalls.CertificateSize };
            (Outcome outcome, SevStatus status) = sev.Run(SevPlatformCommand.SEV_PEK_CSR, csr, out sev_user_data_pek_csr answer);
            return new SevPekCsrResponse { Outcome = outcome, Sev = status, Csr = sev.Load(outcome, BlobOffset, SevPlatformCalls.CertificateSize), CsrLen = answer.length };
        });

    public override Task<SevPekCertImportResponse> SevPekCertImport(SevPekCertImportRequest request, ServerCallContext context) =>
        On(request.Host, request.Pid, request.Fd, sev =>
        {
            var import = new sev_user_data_pek_cert_import
            {
                pek_cert_address = sev.Store("pek_cert", request.PekCert, BlobOffset),
                pek_cert_len = (uint)request.PekCert.Length,
                oca_cert_address = sev.Store("oca_cert", request.OcaCert, SevCommands.SecondBlobOffset),
                oca_cert_len = (uint)request.OcaCert.Length,
            };
            (Outcome outcome, SevStatus status) = sev.Run(SevPlatformCommand.SEV_PEK_CERT_IMPORT, import, out _);
            return new SevPekCertImportResponse { Outcome = outcome, Sev = status };
        });

    public override Task<SnpPlatformStatusResponse> SnpPlatformStatus(SnpPlatformStatusRequest request, ServerCallContext context) =>
        On(request.Host, request.Pid, request.Fd, sev =>
        {
            (Outcome outcome, SevStatus status) = sev.Run(SevPlatformCommand.SNP_PLATFORM_STATUS, default(sev_user_data_snp_status), out sev_user_data_snp_status answer);
            return new SnpPlatformStatusResponse
            {
                Outcome = outcome,
                Sev = status,
                ApiMajor = answer.api_major,
                ApiMinor = answer.api_minor,
                State = answer.state,
                RmpInitialized = answer.is_rmp_initialized != 0,
                BuildId = answer.build_id,
                Flags = answer.flags,
                GuestCount = answer.guest_count,
                CurrentTcb = answer.current_tcb_version,
                ReportedTcb = answer.reported_tcb_version,
            };
        });

    public override Task<SnpCommitResponse> SnpCommit(SnpCommitRequest request, ServerCallContext context) =>
        On(request.Host, request.Pid, request.Fd, sev =>
        {
            (Outcome outcome, SevStatus status) = sev.Run(SevPlatformCommand.SNP_COMMIT);
            return new SnpCommitResponse { Outcome = outcome, Sev = status };
        });

    public override Task<SnpSetConfigResponse> SnpSetConfig(SnpSetConfigRequest request, ServerCallContext context) =>
        On(request.Host, request.Pid, request.Fd, sev =>
        {
            var config = new sev_user_data_snp_config { reported_tcb = request.ReportedTcb, mask = request.Mask };
            (Outcome outcome, SevStatus status) = sev.Run(SevPlatformCommand.SNP_SET_CONFIG, config, out _);
            return new SnpSetConfigResponse { Outcome = outcome, Sev = status };
        });

    public override Task<SnpVlekLoadResponse> SnpVlekLoad(SnpVlekLoadRequest request, ServerCallContext context)
    {
        if (request.Wrapped.Length != WrappedVlekSize)
        {
            throw Refusals.BadField("wrapped", $"{request.Wrapped.Length} bytes; a wrapped VLEK has {WrappedVlekSize}");
        }
        return On(request.Host, request.Pid, request.Fd, sev =>
        {
            sev.Scratch.Store(BlobOffset, request.Wrapped.Memory);
            var load = new sev_user_data_snp_vlek_load { len = (uint)Marshal.SizeOf<sev_user_data_snp_vlek_load>(), vlek_wrapped_address = sev.Scratch.Address + BlobOffset };
            (Outcome outcome, SevStatus status) = sev.Run(SevPlatformCommand.SNP_VLEK_LOAD, load, out _);
            return new SnpVlekLoadResponse { Outcome = outcome, Sev = status };
        });
    }

    private Task<T> On<T>(string host, uint pid, int fd, Func<SevPlatformCalls, T> body) =>
        Task.FromResult(hosts.RunOn(host, pid, process => body(new SevPlatformCalls(process, fd, hosts.ScratchOf(host, process)))));
}
