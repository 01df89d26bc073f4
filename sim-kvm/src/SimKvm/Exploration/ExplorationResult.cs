namespace SimKvm.Exploration;

/// <summary>Why an exploration ended.</summary>
public enum ExplorationEnd
{
    /// <summary>Nothing was left to run, within what the strategy looks at.</summary>
    Exhausted,

    /// <summary>As many schedules were run as might be.</summary>
    Budget,

    /// <summary>The caller stopped it, for example because its time was up.</summary>
    Stopped,

    /// <summary>At the first finding, as asked.</summary>
    FirstFinding,
}

/// <summary>How far an exploration is.</summary>
/// <param name="Schedules">Schedules run to their end.</param>
/// <param name="Pruned">Schedules given up because they would have shown nothing new.</param>
/// <param name="Findings">Findings so far.</param>
public readonly record struct ExplorationProgress(int Schedules, int Pruned, int Findings);

/// <summary>What came of an exploration. The same scenario and options give the same result on any machine, unless it was stopped.</summary>
public sealed record ExplorationResult
{
    public required string Title { get; init; }

    public required string Profile { get; init; }

    /// <summary>What the profile is, in words.</summary>
    public required string Design { get; init; }

    /// <summary>The programs, in the order of their letters.</summary>
    public required IReadOnlyList<string> Programs { get; init; }

    public required ExplorationStrategy Strategy { get; init; }

    /// <summary>Schedules run to their end.</summary>
    public required int Schedules { get; init; }

    /// <summary>Schedules given up because all that could follow was seen in an equivalent order.</summary>
    public required int Pruned { get; init; }

    /// <summary>Stretches of all of them.</summary>
    public required long Stretches { get; init; }

    /// <summary>Stretches of the longest.</summary>
    public required int Longest { get; init; }

    public required ExplorationEnd End { get; init; }

    /// <summary>Each kind of finding once, in the order in which they were met.</summary>
    public required IReadOnlyList<ExploredFinding> Findings { get; init; }

    /// <summary>What the calls answered, each combination once, in the order in which they were met; at most <see cref="MaxOutcomes"/>.</summary>
    public required IReadOnlyList<ExploredOutcome> Outcomes { get; init; }

    public const int MaxOutcomes = 64;
}

/// <summary>A finding, with the schedule that shows it.</summary>
/// <param name="Kind">Stable kind, as in <see cref="SimMachine.Stepping.Finding.Kind"/>; those of exploration are deadlock, must-hold, lost-update, stale-mapping,
/// unbalanced-invalidation, double-population, no-end and internal-error.</param>
/// <param name="Text">One sentence.</param>
/// <param name="Blame">Who brought it about.</param>
/// <param name="Schedules">Schedules in which it was met.</param>
/// <param name="Schedule">One of them, to replay.</param>
/// <param name="Preemptions">Preemptions in it.</param>
/// <param name="Minimal">No schedule with fewer shows it.</param>
/// <param name="Trace">It, as a table of two columns or more, one for each program.</param>
public sealed record ExploredFinding(
    string Kind, string Text, IReadOnlyList<string> Blame, int Schedules, string Schedule, int Preemptions, bool Minimal, IReadOnlyList<string> Trace);

/// <summary>What the calls of the programs answered.</summary>
/// <param name="Text">For each program its calls' answers.</param>
/// <param name="Schedules">In how many schedules.</param>
/// <param name="Schedule">The first of them.</param>
public sealed record ExploredOutcome(string Text, int Schedules, string Schedule);
