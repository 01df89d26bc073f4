using System.Globalization;
using System.Text;
using Grpc.Core;
using SimKvm.Auditing;
using VmmService.Server.Wire;
using VmmService.V1;
using FolioRun = VmmService.V1.FolioRun;
using FolioState = VmmService.V1.FolioState;
using GfnRange = VmmService.V1.GfnRange;
using GpaRun = VmmService.V1.GpaRun;
using LevelLimit = VmmService.V1.LevelLimit;
using Stage2Leaf = VmmService.V1.Stage2Leaf;
using Stage2Run = VmmService.V1.Stage2Run;

namespace VmmService.Server.Services;

// The guest physical space: its map, one page of it, and what backs it.
internal sealed partial class InspectServiceImpl
{
    public override Task<GpaMapResponse> GpaMap(GpaMapRequest request, ServerCallContext context)
    {
        if (request.End != 0 && request.End <= request.Start)
        {
            throw Refusals.BadField("end", $"0x{request.End:x} is not behind start 0x{request.Start:x}; 0 is the end of the space");
        }
        int limit = hosts.Options.MaxInspectPage;
        int count = request.MaxRuns == 0 ? limit : (int)Math.Min(request.MaxRuns, (uint)limit);
        return Task.FromResult(hosts.RunOn(request.Host, request.Pid, process =>
        {
            GpaMap map = SimKvm.Auditing.GpaMap.Of(process, request.Fd) ?? throw NotAVm(process.Pid, request.Fd);
            var response = new GpaMapResponse();
            foreach (SimKvm.Auditing.GpaRun run in map.Runs(request.Start, request.End))
            {
                if (response.Runs.Count == count)
                {
                    response.NextStart = run.Gpa;
                    break;
                }
                response.Runs.Add(ToMessage(run));
            }
            return response;
        }));
    }

    public override Task<ExplainGpaResponse> ExplainGpa(ExplainGpaRequest request, ServerCallContext context) =>
        Task.FromResult(hosts.RunOn(request.Host, request.Pid, process =>
        {
            GpaExplanation page = GpaExplanation.Of(process, request.Fd, request.Gpa) ?? throw NotAVm(process.Pid, request.Fd);
            var response = new ExplainGpaResponse
            {
                Run = page.Run is null ? null : ToMessage(page.Run),
                Attributes = page.Attributes,
                GuestMemfdIndex = page.GmemIndex,
                FolioPfn = page.FolioPfn,
                FolioOrder = (uint)page.FolioOrder,
                UnderInvalidation = page.UnderInvalidation,
                Level = (uint)page.Level,
                Rmp = page.RmpEntry is not { } rmp
                    ? null
                    : new RmpEntry { Assigned = rmp.Assigned, Level = (uint)rmp.Level, Immutable = rmp.Immutable, Asid = rmp.Asid, Gpa = rmp.Gpa },
            };
            response.Leaves.AddRange(page.Leaves.Select(leaf => new Stage2Leaf
            {
                Gpa = leaf.Gpa,
                Pfn = leaf.Pfn,
                Level = (uint)leaf.Level,
                Writable = leaf.Writable,
                Private = leaf.IsPrivate,
            }));
            response.Lpages.AddRange(page.Lpages.Select(lpage => new LpageInfo { Level = (uint)lpage.Level, Gpa = lpage.Gpa, Count = lpage.Count, Mixed = lpage.Mixed }));
            response.Limits.AddRange(page.Limits.Select(each => new LevelLimit { What = each.What, Level = (uint)each.Level, Why = each.Why }));
            response.Text.AddRange(page.Text);
            return response;
        }));

    public override Task<ListVmsResponse> ListVms(ListVmsRequest request, ServerCallContext context) =>
        Task.FromResult(hosts.Get(request.Host).Run(sim =>
        {
            var response = new ListVmsResponse();
            response.Vms.AddRange(VmDescription.All(sim).Select(ToMessage));
            return response;
        }));

    private static void AddBacking(DescribeVmResponse response, VmDescription vm, int limit)
    {
        response.Stage2.AddRange(Cut(vm.Stage2, limit, response).Select(run => new Stage2Run
        {
            GfnStart = run.GfnStart,
            GfnEnd = run.GfnEnd,
            Pfn = run.Pfn,
            Level = (uint)run.Level,
            Writable = run.Writable,
            Private = run.IsPrivate,
        }));
        foreach (GuestMemfdDescription file in vm.GuestMemfds)
        {
            var message = new GuestMemfdState { Size = file.Size, Flags = file.Flags, FileReferences = (uint)file.FileReferences };
            message.Fds.AddRange(file.Fds.Select(ToMessage));
            message.Slots.AddRange(file.Slots.Select(slot => (uint)slot));
            message.Folios.AddRange(Cut(file.Folios, limit, response).Select(run => new FolioRun
            {
                Start = run.Start,
                End = run.End,
                Pfn = run.Pfn,
                Uptodate = run.Uptodate,
                Poisoned = run.Poisoned,
                Order = (uint)run.Order,
            }));
            message.PrivateIndexes.AddRange(Cut(file.PrivateIndexes, limit, response).Select(run => new IndexRange { Start = run.Start, End = run.End }));
            response.GuestMemfds.Add(message);
        }
        response.MmuInvalidateInProgress = (uint)vm.MmuInvalidateInProgress;
        response.MmuInvalidateRange = vm.MmuInvalidateInProgress == 0 ? null : new GfnRange { Start = vm.MmuInvalidateRange.Start, End = vm.MmuInvalidateRange.End };
        response.Users = (uint)vm.Users;
        response.References.AddRange(vm.References.Select(ToMessage));
    }

    private static IEnumerable<T> Cut<T>(IReadOnlyList<T> list, int limit, DescribeVmResponse response)
    {
        response.Cut |= list.Count > limit;
        return list.Take(limit);
    }

    private static FdReference ToMessage(VmReference reference) => new() { Pid = (uint)reference.Pid, Fd = reference.Fd, Name = reference.Name };

    private static GpaRun ToMessage(SimKvm.Auditing.GpaRun run)
    {
        var message = new GpaRun
        {
            Gpa = run.Gpa,
            Size = run.Size,
            UserspaceAddr = run.UserspaceAddr,
            Folio = (FolioState)(int)run.Folio,
            Private = run.IsPrivate,
            Level = (uint)(run.Level ?? 0),
            Writable = run.Writable,
            Rmp = run.Rmp?.ToString().ToUpperInvariant() ?? "",
            Text = Text(run),
        };
        if (run.Slot is { } slot)
        {
            message.Slot = (uint)slot.Id;
        }
        if (run.GmemOffset is { } offset)
        {
            message.GuestMemfdOffset = offset;
        }
        return message;
    }

    // "0x0-0x200000 slot 0 private guest_memfd+0x0 uptodate 4K rw"
    private static string Text(SimKvm.Auditing.GpaRun run)
    {
        var text = new StringBuilder();
        text.Append(CultureInfo.InvariantCulture, $"0x{run.Gpa:x}-0x{unchecked(run.Gpa + run.Size):x} ");
        text.Append(run.Slot is { } slot ? string.Create(CultureInfo.InvariantCulture, $"slot {slot.Id}") : "no slot");
        text.Append(run.IsPrivate ? " private" : " shared");
        if (run.Slot is not null)
        {
            text.Append(CultureInfo.InvariantCulture, $" user 0x{run.UserspaceAddr:x}");
        }
        if (run.GmemOffset is { } offset)
        {
            text.Append(CultureInfo.InvariantCulture, $" guest_memfd+0x{offset:x} {run.Folio.ToString().ToLowerInvariant()}");
        }
        text.Append(run.Level is { } level ? $" {level.ToString()["Page".Length..]} {(run.Writable ? "rw" : "r")}" : " unmapped");
        return text.Append(run.Rmp is { } rmp ? $" rmp {rmp.ToString().ToUpperInvariant()}" : "").ToString();
    }

    private static RpcException NotAVm(int pid, int fd) => Refusals.BadField("fd", $"fd {fd} of process {pid} is not a VM");
}
