using Google.Rpc;
using Grpc.Core;
using SimKvm;
using SimKvm.Auditing;
using VmmService.Server.Sessions;
using VmmService.Server.Wire;
using VmmService.V1;

namespace VmmService.Server.Services;

// The calls of a host, as they come and afterwards. Nothing is kept for a watcher but the revision it comes to next: what it did not take in time is gone from the host's
// log, and it is told so.
internal sealed partial class InspectServiceImpl
{
    // Calls that are read in one turn on the host, so that a long history does not keep its callers waiting.
    private const int CallsAtOnce = 64;

    public override async Task Watch(WatchRequest request, IServerStreamWriter<WatchResponse> responseStream, ServerCallContext context)
    {
        ServedHost host = hosts.Get(request.Host);
        using var ended = CancellationTokenSource.CreateLinkedTokenSource(context.CancellationToken, lifetime.ApplicationStopping);
        ulong next = request.FromRevision;
        while (!ended.IsCancellationRequested)
        {
            if (!TryRead(host, ref next, request.Steps, out List<WatchResponse> events, out Task more))
            {
                return;
            }
            foreach (WatchResponse each in events)
            {
                if (ended.IsCancellationRequested)
                {
                    return;
                }
                await responseStream.WriteAsync(each, context.CancellationToken);
            }
            if (events.Count > 0)
            {
                continue;
            }
            if (!request.Follow)
            {
                return;
            }
            await WhenEither(more, ended.Token);
        }
    }

    public override Task<ExplainResponse> Explain(ExplainRequest request, ServerCallContext context) =>
        Task.FromResult(hosts.Get(request.Host).Run(sim => sim.CallLog.TryGet(request.Revision, out LoggedCall call)
            ? new ExplainResponse { Call = ToMessage(sim, call, withSteps: true) }
            : throw NoSuchRevision(request.Host, request.Revision, sim.CallLog)));

    // False when the host was switched off.
    private static bool TryRead(ServedHost host, ref ulong next, bool withSteps, out List<WatchResponse> events, out Task more)
    {
        var read = new List<WatchResponse>();
        ulong from = next;
        Task after = Task.CompletedTask;
        bool there = host.TryRun(sim =>
        {
            CallLog log = sim.CallLog;
            if (from != 0 && from < log.First)
            {
                read.Add(new WatchResponse { Dropped = new CallsDropped { First = from, FirstAvailable = log.First } });
            }
            foreach (LoggedCall call in log.Read(from).Take(CallsAtOnce))
            {
                read.Add(new WatchResponse { Call = ToMessage(sim, call, withSteps) });
                from = call.Revision + 1;
            }
            after = log.Next;
        });
        (events, more, next) = (read, after, from);
        return there;
    }

    private static CallEvent ToMessage(SimHost sim, in LoggedCall call, bool withSteps)
    {
        var message = new CallEvent { Revision = call.Revision, Pid = (uint)call.Pid, What = call.Report.What, Outcome = Outcomes.Of(call.Report) };
        if (withSteps && call.LastStep >= call.FirstStep)
        {
            ulong last = call.LastStep;
            message.Steps.AddRange(sim.Machine.Journal.Read(call.FirstStep)
                .TakeWhile(step => step.Step <= last)
                .Select(step => new JournalStep { Step = step.Step, Label = step.Label.Name, A = step.A, B = step.B }));
            message.StepsDropped = message.Steps.Count == 0 || message.Steps[0].Step != call.FirstStep;
        }
        return message;
    }

    private static async Task WhenEither(Task more, CancellationToken ended)
    {
        var end = new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously);
        using (ended.Register(end.SetResult))
        {
            await Task.WhenAny(more, end.Task);
        }
    }

    private static RpcException NoSuchRevision(string host, ulong revision, CallLog log)
    {
        string kept = log.Last == 0 ? "it has made no call yet" : $"revisions {log.First} to {log.Last} are kept";
        return Refusals.With(
            StatusCode.NotFound,
            $"host {host} has no revision {revision}; {kept}",
            new ResourceInfo { ResourceType = "revision", ResourceName = $"{host}/{revision}", Description = kept });
    }
}
