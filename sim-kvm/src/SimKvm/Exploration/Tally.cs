namespace SimKvm.Exploration;

/// <summary>What the runs of an exploration came to, together.</summary>
internal sealed class Tally
{
    private readonly List<Met> _findings = [];
    private readonly List<ExploredOutcome> _outcomes = [];

    public int Schedules { get; private set; }

    public int Pruned { get; private set; }

    public long Stretches { get; private set; }

    public int Longest { get; private set; }

    public IReadOnlyList<string> Programs { get; private set; } = [];

    /// <summary>Each once, in the order in which they were met.</summary>
    public IReadOnlyList<Met> Findings => _findings;

    public IReadOnlyList<ExploredOutcome> Outcomes => _outcomes;

    public void Add(FinishedRun run, string profile)
    {
        Programs = run.Programs;
        Stretches += run.Run.Stretches.Count;
        Longest = Math.Max(Longest, run.Run.Stretches.Count);
        if (!run.Completed)
        {
            Pruned++;
            return;
        }
        Schedules++;
        foreach (IGrouping<string, RunFinding> same in run.Findings.GroupBy(finding => finding.Key))
        {
            if (_findings.Find(each => each.Finding.Key == same.Key) is { } met)
            {
                met.Schedules++;
            }
            else
            {
                _findings.Add(new Met(same.First(), run) { Schedules = 1 });
            }
        }
        int known = _outcomes.FindIndex(outcome => outcome.Text == run.Outcome);
        if (known >= 0)
        {
            _outcomes[known] = _outcomes[known] with { Schedules = _outcomes[known].Schedules + 1 };
        }
        else if (_outcomes.Count < ExplorationResult.MaxOutcomes)
        {
            _outcomes.Add(new ExploredOutcome(run.Outcome, 1, Schedule.Of(profile, run.Run.Stretches).ToString()));
        }
    }

    /// <summary>A finding, and the first run that showed it.</summary>
    internal sealed class Met(RunFinding finding, FinishedRun first)
    {
        public RunFinding Finding { get; } = finding;

        public FinishedRun First { get; } = first;

        public int Schedules { get; set; }
    }
}
