using System.Globalization;
using System.Text;
using SimKvm.Auditing;

namespace SimKvm.Exploration;

/// <summary>Something that one run showed.</summary>
internal sealed record RunFinding(string Kind, string Text, IReadOnlyList<string> Blame)
{
    // Numbers of frames, calls and steps differ between runs that show the same; the kind, and for locks the text, do not.
    public string Key => Kind == "lock-inversion" ? Kind + LockPair() : IsAboutLocks || Kind is "must-hold" or "lost-update" ? Kind + Text : Kind;

    /// <summary>Lockdep's: what matters of a call is which locks it held.</summary>
    public bool IsAboutLocks => Kind.StartsWith("lock-", StringComparison.Ordinal) || Kind == "sleep-in-atomic";

    // Which of the two orders came first is the schedule's business; the inversion is the same.
    private string LockPair()
    {
        const string under = " is taken under ";
        int middle = Text.IndexOf(under, StringComparison.Ordinal), end = Text.IndexOf(',', StringComparison.Ordinal);
        return middle < 0 || end < 0 ? Text : string.Join(' ', new[] { Text[..middle], Text[(middle + under.Length)..end] }.Order(StringComparer.Ordinal));
    }
}

/// <summary>A run that is over, and what it came to.</summary>
internal sealed class FinishedRun(Interleaving run, IReadOnlyList<string> programs, List<RunFinding> findings, string outcome, IReadOnlyList<string> left)
{
    public Interleaving Run { get; } = run;

    public IReadOnlyList<string> Programs { get; } = programs;

    public IReadOnlyList<RunFinding> Findings { get; } = findings;

    public void Add(RunFinding finding) => findings.Add(finding);

    /// <summary>What the calls answered, program by program.</summary>
    public string Outcome { get; } = outcome;

    /// <summary>What the programs left behind; empty where nobody wants to know.</summary>
    public IReadOnlyList<string> Left { get; } = left;

    public bool Completed => Run.End is not (RunEnd.Redundant or RunEnd.Diverged);

    public int Preemptions => Run.Stretches.Count(stretch => stretch.IsPreemption);

    public static FinishedRun Of(SimHost host, PreparedScenario scenario, Interleaving run, bool look)
    {
        var findings = new List<RunFinding>(host.Machine.Findings.All.Select(finding => new RunFinding(finding.Kind, Plain(finding.Text, run), [.. finding.Blame.Select(each => Plain(each, run))])));
        // Looked at first, for what must hold may take calls to find out.
        IReadOnlyList<string> left = look && run.End == RunEnd.Done ? HostDigest.Of(host) : [];
        switch (run.End)
        {
            case RunEnd.Deadlock:
                findings.Add(new RunFinding("deadlock", run.Problem, run.Deadlock));
                break;
            case RunEnd.TooLong:
                findings.Add(new RunFinding("no-end", $"the programs did not come to an end within {run.Stretches.Count} stretches", []));
                break;
            case RunEnd.Failed:
                findings.Add(new RunFinding("internal-error", run.Problem, []));
                break;
            case RunEnd.Done:
                findings.AddRange(QuiescentAudit.Of(host).Select(each => new RunFinding(each.Kind, each.Text, [])));
                findings.AddRange(scenario.MustHold().Select(violation => new RunFinding("must-hold", violation, [])));
                break;
        }
        return new FinishedRun(run, [.. scenario.Programs.Select(program => program.Name)], findings, Answers(host, run), left);
    }

    // "call 12" says little to somebody who reads a schedule; which program's call it is says more.
    private static string Plain(string text, Interleaving run) => System.Text.RegularExpressions.Regex.Replace(text, @"\bcall (\d+)", match =>
    {
        ulong call = ulong.Parse(match.Groups[1].Value, CultureInfo.InvariantCulture);
        return run.Stretches.FirstOrDefault(stretch => stretch.Call == call) is { } stretch ? $"{(char)('A' + stretch.Program)} ({stretch.What})" : "the setup";
    });

    private static string Answers(SimHost host, Interleaving run)
    {
        var text = new StringBuilder();
        for (int program = 0; program < run.Programs; program++)
        {
            string separator = "";
            text.Append(program > 0 ? "; " : "").Append((char)('A' + program)).Append(": ");
            foreach (ulong call in run.Stretches.Where(stretch => stretch.BeginsCall && stretch.Program == program).Select(stretch => stretch.Call))
            {
                text.Append(separator).Append(host.CallLog.TryGet(call, out LoggedCall logged) ? Answer(logged) : "never came back");
                separator = ", ";
            }
        }
        return text.ToString();
    }

    private static string Answer(in LoggedCall call) => call.Report.Succeeded ? "OK" : call.Report.Errno.ToString();
}
