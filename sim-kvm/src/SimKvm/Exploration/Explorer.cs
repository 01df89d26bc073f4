namespace SimKvm.Exploration;

/// <summary>
/// Runs a scenario's programs in many orders and tells what went wrong in which. Each run begins with a host of its own that is booted and set up alike; within a run, who goes
/// on at each step is the scheduler's choice and nothing else.
/// </summary>
/// <remarks>
/// The folder: <see cref="Scenario"/> is what is explored, <see cref="Interleaving"/> one run of it, <c>Schedulers/</c> who chooses, <see cref="Footprint"/> what makes two
/// orders one, <see cref="Schedule"/> a choice written down, <see cref="ReplayedSchedule"/> one told to people.
/// </remarks>
public sealed class Explorer : IDisposable
{
    private readonly Scenario _scenario;
    private readonly ExplorationOptions _options;
    private readonly StrandPool _pool = new();
    private readonly Dictionary<object, int> _kinds = [];

    // What runs leave behind is looked at.
    private bool _looks;

    // What every order of whole calls leaves behind; null where the scenario does not ask for it, or it was not found out yet.
    private HashSet<string>? _serial;

    public Explorer(Scenario scenario, ExplorationOptions? options = null)
    {
        _scenario = scenario;
        _options = options ?? new ExplorationOptions();
        _looks = scenario.Serializable;
    }

    public void Dispose() => _pool.Dispose();

    /// <summary>What every order of whole calls leaves behind; null where the scenario does not ask for one of them.</summary>
    private HashSet<string>? SerialResults()
    {
        if (!_scenario.Serializable)
        {
            return null;
        }
        var results = new HashSet<string>();
        var serial = new SerialSearch();
        for (int i = 0; i < _options.MaxSchedules && serial.TryBegin(); i++)
        {
            FinishedRun run = RunOnce(serial);
            if (run.Run.End == RunEnd.Done)
            {
                results.Add(string.Join('\n', run.Left));
            }
        }
        return results;
    }

    // What is there that no order leaves, against the order that comes closest.
    private RunFinding LostUpdate(FinishedRun run)
    {
        string[] closest = _serial!.Select(result => result.Split('\n')).OrderBy(lines => lines.Except(run.Left).Count() + run.Left.Except(lines).Count())
            .ThenBy(lines => string.Join('\n', lines), StringComparer.Ordinal).FirstOrDefault([]);
        string there = string.Join(", ", run.Left.Except(closest)), missing = string.Join(", ", closest.Except(run.Left));
        return new RunFinding(
            "lost-update", "no order of the calls leaves behind what they left here: "
                + (there.Length > 0 ? there : "nothing more") + (missing.Length > 0 ? $"; an order of them would leave: {missing}" : ""), []);
    }

    /// <summary>Explores.</summary>
    /// <param name="progress">Told after each schedule.</param>
    /// <param name="stop">Asked before each schedule: true ends the exploration, for example because time is up.</param>
    public ExplorationResult Explore(Action<ExplorationProgress>? progress = null, Func<bool>? stop = null) => Explore(null, progress, stop);

    /// <summary>The same, with each run's end told as text: answers, findings, and what was left behind.</summary>
    internal ExplorationResult Explore(Action<string>? ended, Action<ExplorationProgress>? progress = null, Func<bool>? stop = null)
    {
        _looks |= ended is not null;
        _serial = SerialResults();
        Scheduler scheduler = Strategy();
        var tally = new Tally();
        ExplorationEnd end = ExplorationEnd.Budget;
        while (tally.Schedules < _options.MaxSchedules)
        {
            if (stop?.Invoke() == true)
            {
                end = ExplorationEnd.Stopped;
                break;
            }
            if (!scheduler.TryBegin())
            {
                end = ExplorationEnd.Exhausted;
                break;
            }
            FinishedRun run = RunOnce(scheduler);
            if (run.Completed)
            {
                ended?.Invoke(string.Join('\n', [run.Outcome, .. run.Findings.Select(finding => finding.Key), .. run.Left]));
            }
            tally.Add(run, _scenario.Profile.Id);
            progress?.Invoke(new ExplorationProgress(tally.Schedules, tally.Pruned, tally.Findings.Count));
            if (_options.StopAtFirst && tally.Findings.Count > 0)
            {
                end = ExplorationEnd.FirstFinding;
                break;
            }
        }
        return new ExplorationResult
        {
            Title = _scenario.Title,
            Profile = _scenario.Profile.Id,
            Design = _scenario.Profile.Title,
            Programs = tally.Programs,
            Strategy = _options.Strategy,
            Schedules = tally.Schedules,
            Pruned = tally.Pruned,
            Stretches = tally.Stretches,
            Longest = tally.Longest,
            End = end,
            Findings = [.. tally.Findings.Select(each => Tell(each, stop))],
            Outcomes = tally.Outcomes,
        };
    }

    /// <summary>Runs one schedule again.</summary>
    /// <param name="schedule">As a finding gave it.</param>
    /// <param name="atStretch">The place, from 0, at which the state of the host is looked at; null for none, the number of stretches for the end.</param>
    public ReplayedSchedule Replay(Schedule schedule, int? atStretch = null)
    {
        _serial ??= SerialResults();
        var trace = new TraceRecorder(atStretch);
        FinishedRun run = RunOnce(new Replay(schedule), trace);
        return trace.Finish(run, Schedule.Of(_scenario.Profile.Id, run.Run.Stretches).ToString());
    }

    private Scheduler Strategy() => _options.Strategy switch
    {
        ExplorationStrategy.Exhaustive => new ReducedSearch(),
        ExplorationStrategy.Bounded => new BoundedSearch(_options.Preemptions),
        ExplorationStrategy.Pct => new PriorityWalk(_options.Seed, _options.Depth),
        _ => new RandomWalk(_options.Seed),
    };

    private FinishedRun RunOnce(Scheduler scheduler, TraceRecorder? trace = null)
    {
        var host = new SimHost(_scenario.Profile, _scenario.Machine, _scenario.Seed) { Config = _scenario.Kernel };
        try
        {
            PreparedScenario prepared = _scenario.Prepare(host);
            if (prepared.Programs.Count is 0 or > PreparedScenario.MaxPrograms)
            {
                throw new InvalidOperationException($"a scenario has 1 to {PreparedScenario.MaxPrograms} programs, this one {prepared.Programs.Count}");
            }
            var run = new Interleaving(host, prepared, scheduler, new StateNumbers(host.SharedState, _kinds), _pool, _options.MaxStretches)
            {
                Observer = trace is null ? null : trace.Observe,
            };
            trace?.Begin(host, run, prepared);
            run.Run();
            scheduler.Ended(run.Stretches, run.Stuck);
            FinishedRun finished = FinishedRun.Of(host, prepared, run, _looks);
            if (_serial is not null && run.End == RunEnd.Done && !_serial.Contains(string.Join('\n', finished.Left)))
            {
                finished.Add(LostUpdate(finished));
            }
            trace?.End(finished);
            return finished;
        }
        finally
        {
            host.PullPlug();
        }
    }

    // A finding in as few preemptions as show it: fewer are tried first, all of them where the budget lasts.
    private ExploredFinding Tell(Tally.Met met, Func<bool>? stop)
    {
        FinishedRun run = met.First;
        RunFinding finding = met.Finding;
        bool minimal = run.Preemptions == 0;
        for (int bound = 0; _options.Minimise && !minimal && bound < run.Preemptions; bound++)
        {
            (FinishedRun? fewer, bool all) = Search(finding.Key, bound, stop);
            if (fewer is not null)
            {
                run = fewer;
                finding = fewer.Findings.First(each => each.Key == finding.Key);
                minimal = true;
            }
            else if (!all)
            {
                break;
            }
            else
            {
                minimal = bound + 1 == run.Preemptions;
            }
        }
        Schedule schedule = Schedule.Of(_scenario.Profile.Id, run.Run.Stretches);
        return new ExploredFinding(finding.Kind, finding.Text, finding.Blame, met.Schedules, schedule.ToString(), run.Preemptions, minimal, Replay(schedule).Table);
    }

    private (FinishedRun? Found, bool All) Search(string key, int bound, Func<bool>? stop)
    {
        var search = new BoundedSearch(bound);
        for (int i = 0; i < _options.MaxMinimisingSchedules && stop?.Invoke() != true; i++)
        {
            if (!search.TryBegin())
            {
                return (null, true);
            }
            FinishedRun run = RunOnce(search);
            if (run.Findings.Any(finding => finding.Key == key))
            {
                return (run, true);
            }
        }
        return (null, false);
    }
}
