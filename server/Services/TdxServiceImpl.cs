using System.Runtime.InteropServices;
using Grpc.Core;
using SimKvm.Abi;
using SimKvm.Auditing;
using SimKvm.Userspace;
using SimMachine.Intel;
using VmmService.Server.Sessions;
using VmmService.Server.Wire;
using VmmService.V1;
using MrtdCall = VmmService.V1.MrtdCall;
using MrtdRecord = VmmService.V1.MrtdRecord;
using SeptPage = VmmService.V1.SeptPage;
using TdState = VmmService.V1.TdState;
using TdxStatus = VmmService.V1.TdxStatus;

namespace VmmService.Server.Services;

/// <summary>vmmservice.v1.TdxService: KVM_MEMORY_ENCRYPT_OP of TDs, one RPC for each command, and what the TDX module has of them.</summary>
internal sealed class TdxServiceImpl(HostRegistry hosts) : TdxService.TdxServiceBase
{
    private const int MaxRecords = 4096;

    public override Task<TdxCapabilitiesResponse> TdxCapabilities(TdxCapabilitiesRequest request, ServerCallContext context)
    {
        int room = TdxCommands.Room("nent", request.HasNent ? request.Nent : kvm_cpuid2.MAX_CPUID_ENTRIES);
        return Task.FromResult(hosts.RunOn(request.Host, request.Pid, process =>
        {
            byte[] structure = TdxStructs.CapabilitiesBuffer(room);
            (Outcome outcome, TdxStatus tdx) = new TdxCommands(hosts, request.Host, process, request.Fd).Run(TdxCmdId.KVM_TDX_CAPABILITIES, request.Flags, structure);
            return new TdxCapabilitiesResponse { Outcome = outcome, Tdx = tdx, Capabilities = outcome.Errno == 0 ? TdxStructs.ReadCapabilities(structure) : null };
        }));
    }

    public override Task<TdxInitVmResponse> TdxInitVm(TdxInitVmRequest request, ServerCallContext context)
    {
        byte[] structure = TdxStructs.ToAbi(request.Init);
        return Task.FromResult(hosts.RunOn(request.Host, request.Pid, process =>
        {
            (Outcome outcome, TdxStatus tdx) = new TdxCommands(hosts, request.Host, process, request.Fd).Run(TdxCmdId.KVM_TDX_INIT_VM, request.Flags, structure);
            return new TdxInitVmResponse { Outcome = outcome, Tdx = tdx };
        }));
    }

    public override Task<TdxInitVcpuResponse> TdxInitVcpu(TdxInitVcpuRequest request, ServerCallContext context) =>
        Task.FromResult(hosts.RunOn(request.Host, request.Pid, process => new TdxInitVcpuResponse
        {
            Outcome = new TdxCommands(hosts, request.Host, process, request.Fd).Run(TdxCmdId.KVM_TDX_INIT_VCPU, request.Flags, request.InitialRcx).Outcome,
        }));

    public override Task<TdxInitMemRegionResponse> TdxInitMemRegion(TdxInitMemRegionRequest request, ServerCallContext context)
    {
        KvmTdxInitMemRegion given = request.Region ?? new KvmTdxInitMemRegion();
        byte[]? content = request.Content is null ? null : Structs.Bytes("content", request.Content, hosts.Options.MaxMessageBytes);
        if (content is { Length: 0 })
        {
            throw Refusals.BadField("content", "the content is empty; leave the field out to use region.source_addr");
        }
        if (content is not null && given.SourceAddr != 0)
        {
            throw Refusals.BadField("region.source_addr", "it was given together with content; give one of the two");
        }
        hosts.CheckBacking();
        return Task.FromResult(hosts.RunOn(request.Host, request.Pid, process =>
        {
            ulong staged = content is null ? 0 : SevServiceImpl.Stage(process, content);
            var region = new kvm_tdx_init_mem_region { source_addr = content is null ? given.SourceAddr : staged, gpa = given.Gpa, nr_pages = given.NrPages };
            Outcome outcome = new TdxCommands(hosts, request.Host, process, request.Fd).Run(TdxCmdId.KVM_TDX_INIT_MEM_REGION, request.Flags, ref region).Outcome;
            if (content is not null)
            {
                process.Munmap(staged, (ulong)content.Length);
            }
            return new TdxInitMemRegionResponse
            {
                Outcome = outcome,
                Region = new KvmTdxInitMemRegion { SourceAddr = region.source_addr, Gpa = region.gpa, NrPages = region.nr_pages },
            };
        }));
    }

    public override Task<TdxFinalizeVmResponse> TdxFinalizeVm(TdxFinalizeVmRequest request, ServerCallContext context) =>
        Task.FromResult(hosts.RunOn(request.Host, request.Pid, process =>
        {
            (Outcome outcome, TdxStatus tdx) = new TdxCommands(hosts, request.Host, process, request.Fd).Run(TdxCmdId.KVM_TDX_FINALIZE_VM, request.Flags, request.Data);
            var response = new TdxFinalizeVmResponse { Outcome = outcome, Tdx = tdx };
            if (outcome.Errno == 0 && TdDescription.Of(process, request.Fd)?.Module is { } td)
            {
                response.Mrtd = Outcomes.Hex(td.Mrtd);
            }
            return response;
        }));

    public override Task<TdxGetCpuidResponse> TdxGetCpuid(TdxGetCpuidRequest request, ServerCallContext context)
    {
        int room = TdxCommands.Room("nent", request.HasNent ? request.Nent : kvm_cpuid2.MAX_CPUID_ENTRIES);
        return Task.FromResult(hosts.RunOn(request.Host, request.Pid, process =>
        {
            byte[] structure = VcpuStructs.CpuidBuffer(room);
            Outcome outcome = new TdxCommands(hosts, request.Host, process, request.Fd).Run(TdxCmdId.KVM_TDX_GET_CPUID, request.Flags, structure).Outcome;
            var response = new TdxGetCpuidResponse { Outcome = outcome, Nent = MemoryMarshal.Read<kvm_cpuid2>(structure).nent };
            response.Cpuid.AddRange(outcome.Errno == 0 ? VcpuStructs.ReadCpuid(structure) : []);
            return response;
        }));
    }

    public override Task<DescribeTdResponse> DescribeTd(DescribeTdRequest request, ServerCallContext context) =>
        Task.FromResult(hosts.RunOn(request.Host, request.Pid, process =>
        {
            TdDescription td = Find(process, request.Fd);
            // The message's values are the kernel's, after UNSPECIFIED.
            var response = new DescribeTdResponse { State = (TdState)((int)td.State + 1), TdParams = Google.Protobuf.ByteString.CopyFrom(td.TdParams.Span) };
            if (td.Module is { } module)
            {
                response.Hkid = module.Hkid;
                response.Attributes = module.Attributes;
                response.Xfam = module.Xfam;
                response.Gpaw = (uint)module.Gpaw;
                response.MaxVcpus = (uint)module.MaxVcpus;
                response.Vcpus = (uint)module.Vcpus;
                response.Epoch = module.Epoch;
                response.Pages = (ulong)module.Pages;
                response.Mrtd = Outcomes.Hex(module.Mrtd);
                response.Rtmr.AddRange(module.Rtmr.Select(rtmr => Outcomes.Hex(rtmr)));
                response.Mrconfigid = Outcomes.Hex(module.Mrconfigid);
                response.Mrowner = Outcomes.Hex(module.Mrowner);
                response.Mrownerconfig = Outcomes.Hex(module.Mrownerconfig);
                response.MeasuredCalls = (ulong)module.Transcript.Count;
                response.Measured.AddRange(module.Transcript.Runs().Take(MaxRecords).Select(run => run.ToString()));
            }
            return response;
        }));

    public override Task<ListMrtdTranscriptResponse> ListMrtdTranscript(ListMrtdTranscriptRequest request, ServerCallContext context) =>
        Task.FromResult(hosts.RunOn(request.Host, request.Pid, process =>
        {
            var response = new ListMrtdTranscriptResponse();
            if (Find(process, request.Fd).Module is not { } module)
            {
                return response;
            }
            response.Total = (ulong)module.Transcript.Count;
            long start = (long)Math.Min(request.Start, long.MaxValue);
            response.Records.AddRange(module.Transcript.Read(start, Limit(request.Limit)).Select(record => new MrtdRecord
            {
                Index = (ulong)record.Index,
                Call = record.Call == SimMachine.Measurement.MrtdCall.PageAdd ? MrtdCall.PageAdd : MrtdCall.MrExtend,
                Gpa = record.Gpa,
                ContentHash = Outcomes.Hex(record.ContentHash.Span),
            }));
            return response;
        }));

    public override Task<ListSeptPagesResponse> ListSeptPages(ListSeptPagesRequest request, ServerCallContext context) =>
        Task.FromResult(hosts.RunOn(request.Host, request.Pid, process =>
        {
            var response = new ListSeptPagesResponse();
            response.Pages.AddRange(Find(process, request.Fd).Pages.Where(page => page.Gpa >= request.Start).Take(Limit(request.Limit)).Select(page => new SeptPage
            {
                Gpa = page.Gpa,
                Level = (uint)page.Level,
                State = page.State.ToString(),
            }));
            return response;
        }));

    public override Task<InjectSeamcallStatusResponse> InjectSeamcallStatus(InjectSeamcallStatusRequest request, ServerCallContext context)
    {
        const uint most = 1 << 20;
        if (!Enum.IsDefined((SeamcallLeaf)request.Leaf))
        {
            throw Refusals.BadField("leaf", $"{request.Leaf} is no SEAMCALL leaf; use one of {string.Join(", ", Enum.GetValues<SeamcallLeaf>().Select(leaf => $"{(ulong)leaf} {leaf}"))}");
        }
        if (request.Status == 0)
        {
            throw Refusals.BadField("status", "0 is success, which a call that did nothing cannot answer");
        }
        if (request.Skip > most || request.Times > most)
        {
            throw Refusals.BadField("times", $"skip and times are at most {most}");
        }
        var status = (SimMachine.Intel.TdxStatus)request.Status;
        hosts.Get(request.Host).Run(sim =>
        {
            sim.Machine.Tdx.Inject((SeamcallLeaf)request.Leaf, status, (int)request.Skip, (int)Math.Max(request.Times, 1));
            return true;
        });
        return Task.FromResult(new InjectSeamcallStatusResponse { StatusName = status.Name() });
    }

    private static int Limit(uint asked) => asked == 0 ? MaxRecords : (int)Math.Min(asked, MaxRecords);

    private static TdDescription Find(Process process, int fd) =>
        TdDescription.Of(process, fd) ?? throw Refusals.BadField("fd", $"{fd} is neither the VM nor a vCPU of a TD");
}
