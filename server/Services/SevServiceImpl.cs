using Google.Protobuf;
using Grpc.Core;
using SimKvm.Abi;
using SimKvm.Auditing;
using SimKvm.Userspace;
using VmmService.Server.Sessions;
using VmmService.Server.Wire;
using VmmService.V1;

namespace VmmService.Server.Services;

/// <summary>
/// vmmservice.v1.SevService: KVM_MEMORY_ENCRYPT_OP, one RPC for each command. The command's structure is put into the process's scratch pages, as a VMM would put
/// it on its stack.
/// </summary>
internal sealed class SevServiceImpl(HostRegistry hosts) : SevService.SevServiceBase
{
    // Places in the scratch pages of the two blocks of LAUNCH_FINISH.
    private const int IdBlockOffset = SevCommands.FirstBlobOffset;
    private const int IdAuthOffset = SevCommands.SecondBlobOffset;

    public override Task<Init2Response> Init2(Init2Request request, ServerCallContext context)
    {
        kvm_sev_init init = Structs.ToAbi(request.Init);
        return Task.FromResult(hosts.RunOn(request.Host, request.Pid, process =>
        {
            (Outcome outcome, SevStatus sev) = Run(request.Host, process, request.Fd, request.SevFd, SevCmdId.KVM_SEV_INIT2, ref init);
            return new Init2Response { Outcome = outcome, Sev = sev };
        }));
    }

    public override Task<SnpLaunchStartResponse> SnpLaunchStart(SnpLaunchStartRequest request, ServerCallContext context)
    {
        kvm_sev_snp_launch_start start = Structs.ToAbi(request.Start);
        return Task.FromResult(hosts.RunOn(request.Host, request.Pid, process =>
        {
            (Outcome outcome, SevStatus sev) = Run(request.Host, process, request.Fd, request.SevFd, SevCmdId.KVM_SEV_SNP_LAUNCH_START, ref start);
            return new SnpLaunchStartResponse { Outcome = outcome, Sev = sev };
        }));
    }

    public override Task<SnpLaunchUpdateResponse> SnpLaunchUpdate(SnpLaunchUpdateRequest request, ServerCallContext context)
    {
        kvm_sev_snp_launch_update update = Structs.ToAbi(request.Update);
        byte[]? content = request.Content is null ? null : Structs.Bytes("content", request.Content, hosts.Options.MaxMessageBytes);
        if (content is { Length: 0 })
        {
            throw Refusals.BadField("content", "the content is empty; leave the field out to use update.uaddr");
        }
        if (content is not null && update.uaddr != 0)
        {
            throw Refusals.BadField("update.uaddr", "it was given together with content; give one of the two");
        }
        hosts.CheckBacking();
        return Task.FromResult(hosts.RunOn(request.Host, request.Pid, process =>
        {
            var response = new SnpLaunchUpdateResponse();
            update.uaddr = content is null ? update.uaddr : Stage(process, content);
            ulong staged = update.uaddr;
            (response.Outcome, response.Sev) = Run(request.Host, process, request.Fd, request.SevFd, SevCmdId.KVM_SEV_SNP_LAUNCH_UPDATE, ref update);
            response.Update = Structs.FromAbi(update);
            if (content is not null)
            {
                process.Read(staged, content);
                process.Munmap(staged, (ulong)content.Length);
                response.Content = UnsafeByteOperations.UnsafeWrap(content);
            }
            return response;
        }));
    }

    public override Task<SnpLaunchFinishResponse> SnpLaunchFinish(SnpLaunchFinishRequest request, ServerCallContext context)
    {
        kvm_sev_snp_launch_finish finish = Structs.ToAbi(request.Finish);
        return Task.FromResult(hosts.RunOn(request.Host, request.Pid, process =>
        {
            Scratch scratch = hosts.ScratchOf(request.Host, process);
            if (finish.id_block_en != 0)
            {
                scratch.Store(IdBlockOffset, request.Finish.IdBlock.Memory);
                scratch.Store(IdAuthOffset, request.Finish.IdAuth.Memory);
                finish.id_block_uaddr = scratch.Address + IdBlockOffset;
                finish.id_auth_uaddr = scratch.Address + IdAuthOffset;
            }
            var response = new SnpLaunchFinishResponse();
            (response.Outcome, response.Sev) = Run(request.Host, process, request.Fd, request.SevFd, SevCmdId.KVM_SEV_SNP_LAUNCH_FINISH, ref finish);
            if (response.Outcome.Errno == 0 && VmDescription.Of(process, request.Fd)?.Sev.Guest is { } guest)
            {
                response.LaunchDigest = Outcomes.Hex(guest.LaunchDigest);
            }
            return response;
        }));
    }

    public override Task<SnpEnableReqCertsResponse> SnpEnableReqCerts(SnpEnableReqCertsRequest request, ServerCallContext context) =>
        Task.FromResult(hosts.RunOn(request.Host, request.Pid, process =>
        {
            (Outcome outcome, SevStatus sev) = new SevCommands(hosts, request.Host, process, request.Fd, request.SevFd).Run(SevCmdId.KVM_SEV_SNP_ENABLE_REQ_CERTS);
            return new SnpEnableReqCertsResponse { Outcome = outcome, Sev = sev };
        }));

    private (Outcome Outcome, SevStatus Sev) Run<T>(string host, Process process, int fd, int sevFd, SevCmdId id, ref T parameters)
        where T : unmanaged =>
        new SevCommands(hosts, host, process, fd, sevFd).Run(id, ref parameters);

    /// <summary>Maps memory for a content and stores it there; the address.</summary>
    internal static ulong Stage(Process process, byte[] content)
    {
        const uint readWrite = 3, privateAnonymous = 0x22;
        CallReport mapped = process.Mmap(0, (ulong)content.Length, readWrite, privateAnonymous, -1, 0);
        if (!mapped.Succeeded || !process.Write((ulong)mapped.Value, content).Succeeded)
        {
            throw Refusals.OverQuota("content", $"the process has no room for {content.Length} bytes; give the host more memory_bytes");
        }
        return (ulong)mapped.Value;
    }
}
