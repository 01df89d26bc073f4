using Grpc.Core;
using SimKvm.Abi;
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

    public override Task<SetMemoryAttributes2Response> SetMemoryAttributes2(SetMemoryAttributes2Request request, ServerCallContext context)
    {
        KvmMemoryAttributes2 message = request.Attributes ?? throw Refusals.BadField("attributes", "it is missing");
        return Task.FromResult(hosts.RunOn(request.Host, request.Pid, process =>
        {
            var args = new kvm_memory_attributes2 { offset = message.Offset, size = message.Size, attributes = message.Attributes, flags = message.Flags };
            CallReport report = Structs.Ioctl(process, request.Fd, KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES2, ref args);
            return new SetMemoryAttributes2Response { Outcome = Outcomes.Of(report), ErrorOffset = args.error_offset };
        }));
    }

    public override Task<FstatResponse> Fstat(FstatRequest request, ServerCallContext context) =>
        Task.FromResult(hosts.RunOn(request.Host, request.Pid, process =>
        {
            CallReport report = process.Fstat(request.Fd, out FileStat stat);
            return new FstatResponse { Outcome = Outcomes.Of(report), StSize = stat.Size, StMode = stat.Mode, StBlocks = stat.Blocks };
        }));
}
