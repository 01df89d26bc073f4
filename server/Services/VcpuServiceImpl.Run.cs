using Grpc.Core;
using SimKvm.Abi;
using SimKvm.Userspace;
using VmmService.Server.Wire;
using VmmService.V1;

namespace VmmService.Server.Services;

// The guest's program, KVM_RUN, and mapping memory ahead of the guest.
internal sealed partial class VcpuServiceImpl
{
    public override Task<LoadGuestProgramResponse> LoadGuestProgram(LoadGuestProgramRequest request, ServerCallContext context) =>
        Task.FromResult(hosts.RunOn(request.Host, request.Pid, process =>
        {
            bool marked = process.GuestAccessesAreMarked(request.Fd) ?? throw NotAVcpu(request.Fd);
            process.LoadGuestProgram(request.Fd, GuestSteps.ToProgram(request.Steps, marked, hosts.Options.MaxReadBytes));
            return new LoadGuestProgramResponse { Steps = (uint)request.Steps.Count };
        }));

    public override Task<RunResponse> Run(RunRequest request, ServerCallContext context)
    {
        hosts.CheckBacking();
        return Task.FromResult(hosts.RunOn(request.Host, request.Pid, process =>
        {
            GuestSteps.Apply(request.Update, (offset, bytes) =>
            {
                if (!process.StoreToRunPage(request.Fd, offset, bytes))
                {
                    throw NotAVcpu(request.Fd);
                }
            });
            CallReport report = process.Ioctl(request.Fd, KvmIoctl.KVM_RUN, 0);
            var response = new RunResponse { Outcome = Outcomes.Of(report) };
            if (process.TakeGuestProgress(request.Fd) is { } progress)
            {
                response.Run = GuestSteps.ReadRun(progress.Run.Span);
                response.Results.AddRange(progress.Results.Select(GuestSteps.ToMessage));
                response.NextStep = (uint)progress.Next;
                response.ProgramSteps = (uint)progress.Length;
            }
            return response;
        }));
    }

    public override Task<PreFaultMemoryResponse> PreFaultMemory(PreFaultMemoryRequest request, ServerCallContext context)
    {
        if (request.Range is null)
        {
            throw Refusals.BadField("range", "it is missing");
        }
        var range = new kvm_pre_fault_memory { gpa = request.Range.Gpa, size = request.Range.Size, flags = request.Range.Flags };
        Outcome outcome = Run(request.Host, request.Pid, request.Fd, KvmIoctl.KVM_PRE_FAULT_MEMORY, range, out kvm_pre_fault_memory left);
        return Task.FromResult(new PreFaultMemoryResponse { Outcome = outcome, Range = new KvmPreFaultMemory { Gpa = left.gpa, Size = left.size, Flags = left.flags } });
    }

    public override Task<MapMemoryResponse> MapMemory(MapMemoryRequest request, ServerCallContext context)
    {
        switch (request.Mapping?.FormCase)
        {
            case KvmMemoryMapping.FormOneofCase.V1:
                KvmMemoryMappingV1 v1 = request.Mapping.V1;
                var first = new kvm_map_memory_v1 { base_gfn = v1.BaseGfn, nr_pages = v1.NrPages, flags = v1.Flags, source = v1.Source };
                Outcome ofFirst = Run(request.Host, request.Pid, request.Fd, KvmIoctl.KVM_MAP_MEMORY_V1, first, out first);
                var leftOfFirst = new KvmMemoryMappingV1 { BaseGfn = first.base_gfn, NrPages = first.nr_pages, Flags = first.flags, Source = first.source };
                return Task.FromResult(new MapMemoryResponse { Outcome = ofFirst, Mapping = new KvmMemoryMapping { V1 = leftOfFirst } });
            case KvmMemoryMapping.FormOneofCase.V2:
                KvmMemoryMappingV2 v2 = request.Mapping.V2;
                var second = new kvm_map_memory_v2 { base_address = v2.BaseAddress, size = v2.Size, flags = v2.Flags };
                Outcome ofSecond = Run(request.Host, request.Pid, request.Fd, KvmIoctl.KVM_MAP_MEMORY_V2, second, out second);
                var leftOfSecond = new KvmMemoryMappingV2 { BaseAddress = second.base_address, Size = second.size, Flags = second.flags };
                return Task.FromResult(new MapMemoryResponse { Outcome = ofSecond, Mapping = new KvmMemoryMapping { V2 = leftOfSecond } });
            default:
                throw Refusals.BadField("mapping", "give v1 (2024-03-01: pages) or v2 (2024-04-10: bytes)");
        }
    }

    private static RpcException NotAVcpu(int fd) =>
        Refusals.BadField("fd", $"{fd} is not a vCPU; VmService.CreateVcpu gives its descriptor");
}
