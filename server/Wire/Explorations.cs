using SimKvm.Exploration;
using VmmService.Server.Scripts.Scenarios;
using VmmService.V1;

namespace VmmService.Server.Wire;

/// <summary>From what an exploration came to to the messages that say so.</summary>
internal static class Explorations
{
    private const int DefaultPreemptions = 2;
    private const int DefaultDepth = 3;
    private const ulong DefaultSeed = 1;

    /// <param name="limit">The most schedules that the daemon runs.</param>
    public static ExplorationOptions ToOptions(ExploreOptions options, int limit) => new()
    {
        Strategy = options.Scheduler == ExploreScheduler.Unspecified ? ExplorationStrategy.Exhaustive : (ExplorationStrategy)(options.Scheduler - 1),
        MaxSchedules = options.MaxSchedules == 0 ? limit : (int)Math.Min(options.MaxSchedules, (uint)limit),
        Preemptions = options.HasPreemptions ? (int)Math.Min(options.Preemptions, 64) : DefaultPreemptions,
        Depth = options.Depth == 0 ? DefaultDepth : (int)Math.Min(options.Depth, 64),
        Seed = options.Seed == 0 ? DefaultSeed : options.Seed,
        StopAtFirst = options.StopAtFirst,
    };

    public static ExploreResult Of(ExplorationResult result, ExplorationOptions options, ScenarioDocument document)
    {
        var message = new ExploreResult
        {
            Title = result.Title,
            Profile = result.Profile,
            Design = result.Design,
            Scheduler = (ExploreScheduler)(result.Strategy + 1),
            Schedules = (uint)result.Schedules,
            Pruned = (uint)result.Pruned,
            Stretches = (ulong)result.Stretches,
            Longest = (uint)result.Longest,
            End = (ExploreEnd)(result.End + 1),
            AsExpected = true,
            Coverage = Coverage(result, options),
            Complete = result.End == ExplorationEnd.Exhausted,
            Seed = result.Strategy is ExplorationStrategy.Pct or ExplorationStrategy.Random ? options.Seed : 0,
            Preemptions = result.Strategy == ExplorationStrategy.Bounded ? (uint)options.Preemptions : 0,
            Depth = result.Strategy == ExplorationStrategy.Pct ? (uint)options.Depth : 0,
        };
        message.Programs.AddRange(result.Programs);
        message.Findings.AddRange(result.Findings.Select(Of));
        message.Outcomes.AddRange(result.Outcomes.Select(outcome => new V1.ExploredOutcome { Text = outcome.Text, Schedules = (uint)outcome.Schedules, Schedule = outcome.Schedule }));
        if (document.Expected.FirstOrDefault(each => each.Profile == result.Profile).Kinds is { } kinds)
        {
            message.Expected.AddRange(kinds.Count > 0 ? kinds : ["none"]);
            message.AsExpected = kinds.Order(StringComparer.Ordinal).SequenceEqual(result.Findings.Select(finding => finding.Kind).Distinct().Order(StringComparer.Ordinal));
        }
        return message;
    }

    private static string Coverage(ExplorationResult result, ExplorationOptions options)
    {
        string ran = result.Schedules == 1 ? "1 schedule" : $"{result.Schedules} schedules";
        string how = result.Strategy switch
        {
            ExplorationStrategy.Exhaustive => "",
            ExplorationStrategy.Bounded => $" with at most {options.Preemptions} preemption{(options.Preemptions == 1 ? "" : "s")}",
            ExplorationStrategy.Pct => $" drawn by PCT (seed {options.Seed}, depth {options.Depth})",
            _ => $" drawn at random (seed {options.Seed})",
        };
        string all = (result.End, result.Strategy) switch
        {
            (ExplorationEnd.Exhausted, ExplorationStrategy.Exhaustive) => ": every order that can be told apart",
            (ExplorationEnd.Exhausted, _) => ": all that there are within the bound",
            (ExplorationEnd.Budget, ExplorationStrategy.Pct) => $", the budget; a bug that needs {options.Depth} orderings is met by each with a chance of at least 1 in {Chance(result, options)}",
            (ExplorationEnd.Budget, ExplorationStrategy.Random) => ", the budget; schedules may have been drawn twice",
            (ExplorationEnd.Budget, _) => ", the budget; there are more",
            (ExplorationEnd.FirstFinding, _) => ", up to the first finding",
            _ => " until it was stopped; there are more",
        };
        string reduced = result.Strategy == ExplorationStrategy.Exhaustive ? $"{result.Pruned} given up as redundant, " : "";
        return $"{ran}{how}{all} ({reduced}the longest has {result.Longest} stretches)";
    }

    // Burckhardt and others 2010: 1 / (n * k^(d-1)).
    private static string Chance(ExplorationResult result, ExplorationOptions options) =>
        (result.Programs.Count * Math.Pow(result.Longest, options.Depth - 1)).ToString("0.##E+0", System.Globalization.CultureInfo.InvariantCulture);

    public static ReplayScheduleResponse Of(string profile, ReplayedSchedule replayed)
    {
        var message = new ReplayScheduleResponse { Schedule = replayed.Schedule, Profile = profile, Problem = replayed.Problem, State = replayed.State is { } state ? Of(state) : null };
        message.Programs.AddRange(replayed.Programs);
        message.Table.AddRange(replayed.Table);
        foreach ((string kind, string text, IReadOnlyList<string> blame) in replayed.Findings)
        {
            message.Findings.Add(new V1.ExploredFinding { Kind = kind, Text = text, Blame = { blame }, Schedules = 1, Schedule = replayed.Schedule });
        }
        foreach (SimKvm.Exploration.ReplayedStretch stretch in replayed.Stretches)
        {
            message.Stretches.Add(new V1.ReplayedStretch
            {
                Number = (uint)stretch.Number,
                Program = (uint)stretch.Program,
                Call = stretch.Call,
                What = stretch.What,
                Step = stretch.Step,
                BeginsCall = stretch.BeginsCall,
                Holds = { stretch.Holds },
                Waiting = { stretch.Waiting },
                Answer = stretch.BeginsCall ? replayed.Answers.GetValueOrDefault(stretch.Call, "") : "",
            });
        }
        return message;
    }

    private static V1.ExploredFinding Of(SimKvm.Exploration.ExploredFinding finding) => new()
    {
        Kind = finding.Kind,
        Text = finding.Text,
        Blame = { finding.Blame },
        Schedules = (uint)finding.Schedules,
        Schedule = finding.Schedule,
        Preemptions = (uint)finding.Preemptions,
        Minimal = finding.Minimal,
        Table = { finding.Trace },
    };

    private static ReplayedState Of(HostState state)
    {
        var message = new ReplayedState();
        message.Programs.AddRange(state.Programs.Select(each => new ReplayedProgram { Position = each.Position, Holds = { each.Holds }, WaitsFor = each.WaitsFor }));
        message.Vms.AddRange(state.Vms.Select(Of));
        message.Files.AddRange(state.Files.Select(file => new ReplayedFile
        {
            Fd = file.Fd,
            Pages = { file.Pages.Select(run => new ReplayedPages { Start = run.Start, End = run.End, Pfn = run.Pfn, Uptodate = run.Uptodate }) },
        }));
        message.Rmp.AddRange(state.Rmp.Select(frame => new ReplayedRmpFrame { Pfn = frame.Pfn.Value, State = frame.State.ToString(), Asid = frame.Asid, Gpa = frame.Gpa }));
        message.Pamt.AddRange(state.Pamt.Select(frame => new ReplayedTdxFrame { Pfn = frame.Pfn.Value, Type = frame.Type.ToString(), Tdr = frame.Tdr.Value }));
        return message;
    }

    private static ReplayedVm Of(VmState vm) => new()
    {
        InProgress = vm.InProgress,
        Seq = vm.Seq,
        Attributes = { vm.Attributes.Select(run => new ReplayedAttributes { Start = run.Start, End = run.End, Attributes = run.Attributes }) },
        Stage2 = { vm.Stage2.Select(run => new ReplayedStage2 { Start = run.Start, End = run.End, Pfn = run.Pfn, Private = run.IsPrivate, Writable = run.Writable }) },
        Sept = { vm.Sept.Select(page => new ReplayedSept { Gpa = page.Gpa, Level = (uint)page.Level, State = page.State.ToString(), Pfn = page.Pfn.Value }) },
    };
}
