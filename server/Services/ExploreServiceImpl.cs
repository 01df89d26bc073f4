using System.Threading.Channels;
using Grpc.Core;
using SimKvm.Exploration;
using SimKvm.Profiles;
using VmmService.Server.Scripts;
using VmmService.Server.Scripts.Scenarios;
using VmmService.Server.Sessions;
using VmmService.Server.Wire;
using VmmService.V1;

namespace VmmService.Server.Services;

/// <summary>vmmservice.v1.ExploreService. The explorer is SimKvm's, scenarios are in <c>Scripts/Scenarios</c>; here are limits, and the stream.</summary>
internal sealed class ExploreServiceImpl(HostRegistry hosts, ExplorationSlots slots, IHostApplicationLifetime lifetime) : ExploreService.ExploreServiceBase
{
    private const int MaxScenario = 1 << 20;
    private const int DefaultSchedules = 100_000;

    // Schedules between two messages of progress.
    private const int ProgressEvery = 64;

    public override async Task Explore(ExploreRequest request, IServerStreamWriter<ExploreResponse> responseStream, ServerCallContext context)
    {
        using var ended = CancellationTokenSource.CreateLinkedTokenSource(context.CancellationToken, lifetime.ApplicationStopping);
        ScenarioDocument document = Read(request.Scenario);
        ExploreOptions options = Merge(document.Options, request.Options);
        string[] profiles = [.. request.Profiles.Count > 0 ? request.Profiles.Select(Known) : document.Profiles];
        using IDisposable slot = slots.Take();
        foreach (string profile in profiles)
        {
            var events = Channel.CreateBounded<ExploreResponse>(new BoundedChannelOptions(16) { FullMode = BoundedChannelFullMode.Wait, SingleReader = true, SingleWriter = true });
            Task exploring = Task.Factory.StartNew(
                () => ExploreOne(document, profile, options, events.Writer, ended.Token), CancellationToken.None, TaskCreationOptions.LongRunning, TaskScheduler.Default);
            await foreach (ExploreResponse each in events.Reader.ReadAllAsync(CancellationToken.None))
            {
                if (!ended.IsCancellationRequested)
                {
                    await responseStream.WriteAsync(each, CancellationToken.None);
                }
            }
            await exploring;
            ended.Token.ThrowIfCancellationRequested();
        }
    }

    public override Task<ReplayScheduleResponse> ReplaySchedule(ReplayScheduleRequest request, ServerCallContext context)
    {
        ScenarioDocument document = Read(request.Scenario);
        if (!Schedule.TryParse(request.Schedule, out Schedule? schedule, out string problem))
        {
            throw Refusals.BadField("schedule", problem);
        }
        string profile = schedule.Profile.Length > 0 ? Known(schedule.Profile) : request.Profile.Length > 0 ? Known(request.Profile) : document.Profiles.First();
        using IDisposable slot = slots.Take();
        using ScenarioExploration scenario = Boot(document, profile);
        using var explorer = new Explorer(scenario.Scenario);
        ReplayedSchedule replayed = Guarded(scenario, () => explorer.Replay(schedule, request.HasAtStretch ? (int)Math.Min(request.AtStretch, int.MaxValue) : null));
        return Task.FromResult(Explorations.Of(profile, replayed));
    }

    private void ExploreOne(ScenarioDocument document, string profile, ExploreOptions options, ChannelWriter<ExploreResponse> events, CancellationToken cancellation)
    {
        try
        {
            ExplorationOptions bounds = Explorations.ToOptions(options, Math.Min(hosts.Options.MaxExploredSchedules, options.MaxSchedules == 0 ? DefaultSchedules : int.MaxValue));
            Send(events, new ExploreResponse { Started = new ExploreStarted { Title = document.Title, Profile = profile, MaxSchedules = (uint)bounds.MaxSchedules } });
            using ScenarioExploration scenario = Boot(document, profile);
            using var explorer = new Explorer(scenario.Scenario, bounds);
            long began = TimeProvider.System.GetTimestamp();
            var limit = TimeSpan.FromSeconds(Math.Min(options.TimeLimitSeconds == 0 ? int.MaxValue : options.TimeLimitSeconds, (uint)hosts.Options.MaxExploreSeconds));
            ExplorationResult result = Guarded(scenario, () => explorer.Explore(
                progress => Tell(events, profile, progress),
                () => scenario.Wrong is not null || cancellation.IsCancellationRequested || TimeProvider.System.GetElapsedTime(began) >= limit));
            Send(events, new ExploreResponse { Result = Explorations.Of(result, bounds, document) });
            events.Complete();
        }
        catch (Exception failure)
        {
            events.Complete(failure);
        }
    }

    private static void Tell(ChannelWriter<ExploreResponse> events, string profile, ExplorationProgress progress)
    {
        if ((progress.Schedules + progress.Pruned) % ProgressEvery == 0)
        {
            // A client that reads slowly misses some.
            events.TryWrite(new ExploreResponse
            {
                Progress = new V1.ExploreProgress { Profile = profile, Schedules = (uint)progress.Schedules, Pruned = (uint)progress.Pruned, Findings = (uint)progress.Findings },
            });
        }
    }

    private static void Send(ChannelWriter<ExploreResponse> events, ExploreResponse message)
    {
        while (!events.TryWrite(message))
        {
            events.WaitToWriteAsync().AsTask().GetAwaiter().GetResult();
        }
    }

    private static ScenarioDocument Read(string yaml)
    {
        if (yaml.Length > MaxScenario)
        {
            throw Refusals.OverQuota("scenario", $"a scenario has at most {MaxScenario} characters");
        }
        try
        {
            return ScenarioDocument.Read(yaml);
        }
        catch (ScriptException wrong)
        {
            throw Refusals.Of(wrong);
        }
    }

    private ScenarioExploration Boot(ScenarioDocument document, string profile)
    {
        try
        {
            return new ScenarioExploration(document, hosts, profile);
        }
        catch (ScriptException wrong)
        {
            throw Refusals.Of(wrong);
        }
    }

    // What is wrong with a step shows when it is executed.
    private static T Guarded<T>(ScenarioExploration scenario, Func<T> body)
    {
        T result;
        try
        {
            result = body();
        }
        catch (ScriptException wrong)
        {
            throw Refusals.Of(wrong);
        }
        return scenario.Wrong is { } met ? throw Refusals.Of(met) : result;
    }

    private static ExploreOptions Merge(ExploreOptions document, ExploreOptions? wanted)
    {
        ExploreOptions merged = document.Clone();
        if (wanted is not null)
        {
            merged.MergeFrom(wanted);
        }
        return Enum.IsDefined(merged.Scheduler) ? merged : throw Refusals.BadField("options.scheduler", $"{(int)merged.Scheduler} is no scheduler; use 1 to 4");
    }

    private static string Known(string profile) => KernelProfiles.Find(profile)?.Id
        ?? throw Refusals.BadField("profiles", $"there is no profile '{profile}'; {ScenarioDocument.ProfileAdvice(profile)}");
}

/// <summary>How many explorations may go on: each takes a processor for as long as it lasts.</summary>
internal sealed class ExplorationSlots(VmmServerOptions options)
{
    private int _taken;

    public IDisposable Take()
    {
        if (Interlocked.Increment(ref _taken) > options.MaxExplorations)
        {
            Interlocked.Decrement(ref _taken);
            throw Refusals.OverQuota("explorations", $"{options.MaxExplorations} explorations are going on, the daemon's limit; wait for one to end");
        }
        return new Slot(this);
    }

    private sealed class Slot(ExplorationSlots slots) : IDisposable
    {
        public void Dispose() => Interlocked.Decrement(ref slots._taken);
    }
}
