using Grpc.Core;
using SimKvm.Userspace;
using VmmService.Server.Sessions;
using VmmService.Server.Wire;
using VmmService.V1;

namespace VmmService.Server.Services;

/// <summary>vmmservice.v1.GuestMemfdService: file calls of a guest_memfd (they answer for other descriptors what the VFS answers).</summary>
internal sealed class GuestMemfdServiceImpl(HostRegistry hosts) : GuestMemfdService.GuestMemfdServiceBase
{
    public override Task<FallocateResponse> Fallocate(FallocateRequest request, ServerCallContext context) => Task.FromResult(new FallocateResponse
    {
        Outcome = hosts.RunOn(
            request.Host, request.Pid, process => Outcomes.Of(process.Fallocate(request.Fd, request.Mode, request.Offset, request.Len))),
    });

    public override Task<FstatResponse> Fstat(FstatRequest request, ServerCallContext context) =>
        Task.FromResult(hosts.RunOn(request.Host, request.Pid, process =>
        {
            CallReport report = process.Fstat(request.Fd, out FileStat stat);
            return new FstatResponse { Outcome = Outcomes.Of(report), StSize = stat.Size, StMode = stat.Mode, StBlocks = stat.Blocks };
        }));
}
