using Grpc.Core;
using SimKvm.Auditing;
using SimKvm.Userspace;
using SimMachine.Amd;
using VmmService.Server.Sessions;
using VmmService.Server.Wire;
using VmmService.V1;

namespace VmmService.Server.Services;

/// <summary>vmmservice.v1.InspectService: looks that change nothing and are no calls of the simulation.</summary>
internal sealed partial class InspectServiceImpl(HostRegistry hosts, IHostApplicationLifetime lifetime) : InspectService.InspectServiceBase
{
    public override Task<DescribeVmResponse> DescribeVm(DescribeVmRequest request, ServerCallContext context) =>
        Task.FromResult(hosts.RunOn(request.Host, request.Pid, process => Message(Find(process, request.Fd), hosts.Options.MaxInspectPage)));

    public override Task<ListTranscriptResponse> ListTranscript(ListTranscriptRequest request, ServerCallContext context)
    {
        int limit = hosts.Options.MaxTranscriptPage;
        int count = request.MaxRecords == 0 ? limit : (int)Math.Min(request.MaxRecords, (uint)limit);
        return Task.FromResult(hosts.RunOn(request.Host, request.Pid, process =>
        {
            var response = new ListTranscriptResponse();
            if (Find(process, request.Fd).Sev.Guest is not { } guest)
            {
                return response;
            }
            response.Total = (ulong)guest.Transcript.Count;
            response.LaunchDigest = Outcomes.Hex(guest.LaunchDigest);
            long start = (long)Math.Min(request.Start, response.Total);
            foreach (SimMachine.Measurement.TranscriptRecord record in guest.Transcript.Read(start, count))
            {
                response.Records.Add(new TranscriptRecord
                {
                    Index = (ulong)record.Index,
                    PageType = (SnpPageType)record.PageType,
                    Gpa = record.Gpa,
                    ContentHash = Outcomes.Hex(record.ContentHash.Span),
                    DigestAfter = Outcomes.Hex(record.DigestAfter.Span),
                });
            }
            return response;
        }));
    }

    public override Task<InjectMemoryFailureResponse> InjectMemoryFailure(InjectMemoryFailureRequest request, ServerCallContext context) =>
        Task.FromResult(new InjectMemoryFailureResponse
        {
            Outcome = hosts.RunOn(request.Host, request.Pid, process => Outcomes.Of(process.InjectMemoryFailure(request.Fd, request.Index))),
        });

    public override Task<ListFindingsResponse> ListFindings(ListFindingsRequest request, ServerCallContext context) =>
        Task.FromResult(hosts.Get(request.Host).Run(sim =>
        {
            var response = new ListFindingsResponse();
            response.Findings.AddRange(sim.Machine.Findings.All.Select(Outcomes.Of));
            return response;
        }));

    private static VmDescription Find(Process process, int fd) => VmDescription.Of(process, fd)
        ?? throw Refusals.BadField("fd", $"fd {fd} of process {process.Pid} is not a VM");

    private static DescribeVmResponse Message(VmDescription vm, int limit)
    {
        var response = new DescribeVmResponse { Type = vm.Type == SimKvm.Abi.VmType.KVM_VM_TYPE_ARM_PROTECTED ? VmType.ArmProtected : (VmType)((int)vm.Type + 1), Dead = vm.Dead, MmuInvalidateSeq = vm.MmuInvalidateSeq };
        response.Slots.AddRange(vm.Slots.Select(slot => new Memslot
        {
            AsId = (uint)slot.AsId,
            Id = (uint)slot.Id,
            BaseGfn = slot.BaseGfn,
            Npages = slot.Npages,
            UserspaceAddr = slot.UserspaceAddr,
            Flags = slot.Flags,
            GuestMemfdBound = slot.GmemBound,
            GuestMemfdPgoff = slot.GmemPgoff,
        }));
        response.Attributes.AddRange(vm.Attributes.Select(run => new AttributeRange { GfnStart = run.Start, GfnEnd = run.End, Attributes = run.Value }));
        response.Vcpus.AddRange(vm.Vcpus.Select(vcpu => new Vcpu { VcpuId = vcpu.Id, Index = (uint)vcpu.Index, GuestStateProtected = vcpu.GuestStateProtected }));
        response.Rmp.AddRange(vm.Rmp.Select(run => new RmpRange
        {
            Gpa = run.Gpa,
            Size = run.Size,
            Validated = run.State == RmpPageState.GuestValid,
            Immutable = run.State is RmpPageState.PreGuest or RmpPageState.PreSwap,
            Vmsa = run.Vmsa,
        }));
        if (vm.Type is SimKvm.Abi.VmType.KVM_X86_SEV_VM or SimKvm.Abi.VmType.KVM_X86_SEV_ES_VM or SimKvm.Abi.VmType.KVM_X86_SNP_VM)
        {
            response.Sev = new Sev
            {
                Active = vm.Sev.Active,
                Asid = vm.Sev.Asid,
                VmsaFeatures = vm.Sev.VmsaFeatures,
                GhcbVersion = vm.Sev.GhcbVersion,
                Policy = vm.Sev.Policy,
                GuestState = vm.Sev.Guest?.State.ToString().ToUpperInvariant() ?? "NONE",
                LaunchDigest = vm.Sev.Guest is null ? "" : Outcomes.Hex(vm.Sev.Guest.LaunchDigest),
                SnpCertsEnabled = vm.Sev.CertsEnabled,
                TranscriptRecords = (ulong)(vm.Sev.Guest?.Transcript.Count ?? 0),
            };
        }
        AddBacking(response, vm, limit);
        return response;
    }
}
