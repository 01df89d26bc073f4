using Google.Protobuf;
using Grpc.Core;
using SimKvm.Userspace;
using SimMachine.Addressing;
using SimMachine.Intel;
using VmmService.Server.Sessions;
using VmmService.Server.Wire;
using VmmService.V1;
using SeamcallOperandKind = VmmService.V1.SeamcallOperandKind;
using TdcallRegisters = SimMachine.Intel.TdcallRegisters;
using TdLifecycle = VmmService.V1.TdLifecycle;
using TdState = VmmService.V1.TdState;
using TdxStatus = SimMachine.Intel.TdxStatus;

namespace VmmService.Server.Services;

/// <summary>vmmservice.v1.TdxModuleService: SEAMCALLs and TDCALLs by hand.</summary>
internal sealed class TdxModuleServiceImpl(HostRegistry hosts) : TdxModuleService.TdxModuleServiceBase
{
    private const uint MaxCount = 4096;
    private const int MaxBytes = 1 << 20;
    private const int MaxEntries = 4096;
    private const ulong TypeAccept = 1;
    private const ulong TypePendingPage = 6;
    private const int RequestedLevelShift = 32;
    private const ulong LevelMask = 7;

    public override Task<OpenTdxModuleResponse> OpenTdxModule(OpenTdxModuleRequest request, ServerCallContext context) =>
        Task.FromResult(hosts.RunOn(request.Host, request.Pid, process => new OpenTdxModuleResponse { Outcome = Outcomes.Of(process.OpenTdxModule()) }));

    public override Task<ListSeamcallLeavesResponse> ListSeamcallLeaves(ListSeamcallLeavesRequest request, ServerCallContext context)
    {
        var response = new ListSeamcallLeavesResponse();
        foreach (SeamcallShape shape in SeamcallShape.All)
        {
            var leaf = new SeamcallLeafInfo { Leaf = (ulong)shape.Leaf, Name = shape.Name, Does = shape.Does, Results = shape.Results };
            // The message's values are the kinds, after UNSPECIFIED.
            leaf.Operands.AddRange(shape.Operands.Select(operand =>
                new SeamcallOperandInfo { Register = operand.Register.ToString(), Kind = (SeamcallOperandKind)((int)operand.Kind + 1), Meaning = operand.Meaning }));
            response.Leaves.Add(leaf);
        }
        return Task.FromResult(response);
    }

    public override Task<SeamcallResponse> Seamcall(SeamcallRequest request, ServerCallContext context) =>
        Task.FromResult(hosts.RunOn(request.Host, request.Pid, process =>
        {
            int packages = process.Host.Machine.Config.Tdx.Packages;
            if (request.Package >= packages)
            {
                throw Refusals.BadField("package", $"{request.Package}; the machine has {packages}, numbered from 0 (machine.tdx.packages)");
            }
            TdcallRegisters registers = TdxSteps.ToRegisters(request.Registers);
            CallReport report = process.Seamcall(request.Fd, ref registers, (int)request.Package);
            bool answered = report.Succeeded || report.Errno == SimKvm.Errno.EIO;
            return new SeamcallResponse
            {
                Outcome = Outcomes.Of(report),
                Registers = TdxSteps.FromRegisters(registers),
                StatusName = answered ? ((TdxStatus)registers.Rax).Name() : "",
            };
        }));

    public override Task<TdcallResponse> Tdcall(TdcallRequest request, ServerCallContext context) =>
        Task.FromResult(hosts.RunOn(request.Host, request.Pid, process =>
        {
            TdcallRegisters registers = TdxSteps.ToRegisters(request.Registers);
            bool accepts = (TdcallLeaf)(registers.Rax & 0xffff) == TdcallLeaf.TDG_MEM_PAGE_ACCEPT;
            ulong level = registers.Rcx & LevelMask;
            CallReport report = process.Tdcall(request.Fd, request.Tdvpr, ref registers, out TdVcpuProgress progress);
            bool completed = report.Succeeded && progress.Outcome == TdGuestOutcome.Completed;
            return new TdcallResponse
            {
                Outcome = Outcomes.Of(report),
                Came = Came(report, progress),
                Registers = TdxSteps.FromRegisters(registers),
                StatusName = completed ? ((TdxStatus)registers.Rax).Name() : "",
                FaultGpa = report.Succeeded && !completed ? progress.Fault : 0,
                ExtendedExitQualification = progress.Outcome switch
                {
                    TdGuestOutcome.EptViolation when accepts => TypeAccept | (level << RequestedLevelShift),
                    TdGuestOutcome.PendingEptViolation => TypePendingPage,
                    _ => 0,
                },
            };
        }));

    public override Task<AccessAsTdResponse> AccessAsTd(AccessAsTdRequest request, ServerCallContext context)
    {
        bool write = request.Data.Length > 0;
        uint length = write ? (uint)request.Data.Length : request.Length;
        if (write && request.Length != 0)
        {
            throw Refusals.BadField("length", "it was given together with data; give one of the two");
        }
        if (length == 0 || length > PageSize.Bytes - (request.Gpa & PageSize.OffsetMask))
        {
            throw Refusals.BadField(write ? "data" : "length", $"{length} bytes at 0x{request.Gpa:x}; an access is within one page, and of a byte at least");
        }
        return Task.FromResult(hosts.RunOn(request.Host, request.Pid, process =>
        {
            byte[] data = write ? request.Data.ToByteArray() : new byte[length];
            CallReport report = process.AccessAsTd(request.Fd, request.Tdvpr, request.Gpa, data, write, out TdVcpuProgress progress);
            bool loaded = report.Succeeded && progress.Outcome == TdGuestOutcome.Completed && !write;
            return new AccessAsTdResponse { Outcome = Outcomes.Of(report), Came = Came(report, progress), Data = loaded ? UnsafeByteOperations.UnsafeWrap(data) : ByteString.Empty };
        }));
    }

    public override Task<KickTdVcpuResponse> KickTdVcpu(KickTdVcpuRequest request, ServerCallContext context) => Task.FromResult(
        hosts.RunOn(request.Host, request.Pid, process => new KickTdVcpuResponse { Outcome = Outcomes.Of(process.KickTdVcpu(request.Fd, request.Tdvpr)) }));

    public override Task<AllocateTdxPagesResponse> AllocateTdxPages(AllocateTdxPagesRequest request, ServerCallContext context)
    {
        if (request.Count is 0 or > MaxCount)
        {
            throw Refusals.BadField("count", $"{request.Count}; 1 to {MaxCount} at once");
        }
        return Task.FromResult(hosts.RunOn(request.Host, request.Pid, process =>
        {
            var response = new AllocateTdxPagesResponse { Outcome = Outcomes.Of(process.AllocateTdxPages(request.Fd, (int)request.Count, request.Huge, out IReadOnlyList<ulong> addresses)) };
            response.Addresses.AddRange(addresses);
            return response;
        }));
    }

    public override Task<FreeTdxPagesResponse> FreeTdxPages(FreeTdxPagesRequest request, ServerCallContext context) => Task.FromResult(
        hosts.RunOn(request.Host, request.Pid, process => new FreeTdxPagesResponse { Outcome = Outcomes.Of(process.FreeTdxPages(request.Fd, request.Addresses)) }));

    public override Task<ReadTdxPagesResponse> ReadTdxPages(ReadTdxPagesRequest request, ServerCallContext context)
    {
        if (request.Length is 0 or > MaxBytes)
        {
            throw Refusals.BadField("length", $"{request.Length}; 1 to {MaxBytes} bytes");
        }
        return Task.FromResult(hosts.RunOn(request.Host, request.Pid, process =>
        {
            byte[] data = new byte[request.Length];
            CallReport report = process.ReadTdxPages(request.Fd, request.Address, data);
            return new ReadTdxPagesResponse { Outcome = Outcomes.Of(report), Data = report.Succeeded ? UnsafeByteOperations.UnsafeWrap(data) : ByteString.Empty };
        }));
    }

    public override Task<WriteTdxPagesResponse> WriteTdxPages(WriteTdxPagesRequest request, ServerCallContext context)
    {
        byte[] content = Structs.Bytes("content", request.Content, MaxBytes);
        hosts.CheckBacking();
        return Task.FromResult(
            hosts.RunOn(request.Host, request.Pid, process => new WriteTdxPagesResponse { Outcome = Outcomes.Of(process.WriteTdxPages(request.Fd, request.Address, content)) }));
    }

    public override Task<DescribeTdByTdrResponse> DescribeTdByTdr(DescribeTdByTdrRequest request, ServerCallContext context) =>
        Task.FromResult(hosts.Get(request.Host).Run(sim =>
        {
            var tdr = new Pfn(request.Tdr >> PageSize.Shift);
            if ((request.Tdr & PageSize.OffsetMask) != 0 || sim.Machine.Tdx.Describe(tdr) is not { } td)
            {
                throw Refusals.BadField("tdr", $"0x{request.Tdr:x} is not the TDR of a TD; TDH.MNG.CREATE makes one of a page");
            }
            var response = new DescribeTdByTdrResponse
            {
                // The messages' values are the module's, after UNSPECIFIED.
                Lifecycle = (TdLifecycle)((int)td.Lifecycle + 1),
                OpState = (TdState)((int)td.OpState + 1),
                Hkid = td.Hkid,
                Attributes = td.Attributes,
                Xfam = td.Xfam,
                Gpaw = (uint)td.Gpaw,
                MaxVcpus = (uint)td.MaxVcpus,
                Vcpus = (uint)td.Vcpus,
                Epoch = td.Epoch,
                Pages = (ulong)td.Pages,
                Mrtd = Outcomes.Hex(td.Mrtd),
            };
            response.Rtmr.AddRange(td.Rtmr.Select(rtmr => Outcomes.Hex(rtmr)));
            int limit = request.Limit == 0 ? MaxEntries : (int)Math.Min(request.Limit, MaxEntries);
            response.Entries.AddRange(sim.Machine.Tdx.Entries(tdr).Take(limit).Select(entry =>
                new SeptEntryInfo { Gpa = entry.Gpa, Level = (uint)entry.Level, State = entry.State.ToString(), Page = entry.Pfn.ToAddress() }));
            return response;
        }));

    // The message's values are the outcomes, after UNSPECIFIED.
    private static TdVcpuOutcome Came(CallReport report, TdVcpuProgress progress) =>
        report.Succeeded ? (TdVcpuOutcome)((int)progress.Outcome + 1) : TdVcpuOutcome.Unspecified;
}
