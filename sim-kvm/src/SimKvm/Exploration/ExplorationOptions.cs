namespace SimKvm.Exploration;

/// <summary>How schedules are chosen.</summary>
public enum ExplorationStrategy
{
    /// <summary>All, but of those that cannot be told apart one (dynamic partial-order reduction with sleep sets).</summary>
    Exhaustive,

    /// <summary>All with at most <see cref="ExplorationOptions.Preemptions"/> preemptions, without reduction.</summary>
    Bounded,

    /// <summary>Probabilistic concurrency testing: random priorities that drop at <see cref="ExplorationOptions.Depth"/> - 1 places.</summary>
    Pct,

    /// <summary>At each step somebody, all with the same chance.</summary>
    Random,
}

/// <summary>What to explore, and for how long.</summary>
public sealed record ExplorationOptions
{
    public ExplorationStrategy Strategy { get; init; }

    /// <summary>Schedules that are run at most.</summary>
    public int MaxSchedules { get; init; } = 100_000;

    /// <summary>Stretches of one schedule; a longer one is the finding no-end.</summary>
    public int MaxStretches { get; init; } = 20_000;

    /// <summary>Preemptions of a schedule, with <see cref="ExplorationStrategy.Bounded"/>.</summary>
    public int Preemptions { get; init; } = 2;

    /// <summary>How many orderings the bug needs that <see cref="ExplorationStrategy.Pct"/> looks for.</summary>
    public int Depth { get; init; } = 3;

    /// <summary>For the random strategies.</summary>
    public ulong Seed { get; init; } = 1;

    /// <summary>A finding's schedule is replaced by one with as few preemptions as possible.</summary>
    public bool Minimise { get; init; } = true;

    /// <summary>Schedules that are run to minimise one finding, for each number of preemptions.</summary>
    public int MaxMinimisingSchedules { get; init; } = 20_000;

    /// <summary>End at the first finding.</summary>
    public bool StopAtFirst { get; init; }
}
