using System.Globalization;
using System.Text;
using SimKvm.Auditing;

namespace SimKvm.Exploration;

/// <summary>One stretch of a replayed schedule.</summary>
/// <param name="Number">From 0.</param>
/// <param name="Program">Index of the program.</param>
/// <param name="Call">Number of the call on the host.</param>
/// <param name="What">The call in words.</param>
/// <param name="Step">The step that the stretch begins with, with its operands.</param>
/// <param name="BeginsCall">It begins the call.</param>
/// <param name="Holds">Locks that the program holds when it begins, outermost first.</param>
/// <param name="Waiting">For each program what it waits for here; empty where it could go on or is done.</param>
public sealed record ReplayedStretch(
    int Number, int Program, ulong Call, string What, string Step, bool BeginsCall, IReadOnlyList<string> Holds, IReadOnlyList<string> Waiting);

/// <summary>A schedule that was run again.</summary>
/// <param name="Schedule">The shortest form of it.</param>
/// <param name="Problem">Why it could not be followed to its end; empty where it could.</param>
/// <param name="Programs">In the order of their letters.</param>
/// <param name="Stretches">What was done, in order.</param>
/// <param name="Answers">What each call answered, by number of the call.</param>
/// <param name="Findings">What came of it: kind and text.</param>
/// <param name="Table">All of it, one column for each program.</param>
/// <param name="State">The host at the place that was asked for.</param>
public sealed record ReplayedSchedule(
    string Schedule, string Problem, IReadOnlyList<string> Programs, IReadOnlyList<ReplayedStretch> Stretches, IReadOnlyDictionary<ulong, string> Answers,
    IReadOnlyList<(string Kind, string Text, IReadOnlyList<string> Blame)> Findings, IReadOnlyList<string> Table, HostState? State);

/// <summary>Writes down a run while it goes on.</summary>
internal sealed class TraceRecorder(int? atStretch)
{
    private readonly List<ReplayedStretch> _stretches = [];
    private readonly SortedDictionary<ulong, string> _answers = [];
    private SimHost? _host;
    private Interleaving? _run;
    private HostState? _state;

    public void Begin(SimHost host, Interleaving run, PreparedScenario scenario)
    {
        _host = host;
        _run = run;
    }

    public void Observe(Stretch stretch)
    {
        Look();
        _stretches.Add(new ReplayedStretch(
            _stretches.Count, stretch.Program, stretch.Call, stretch.What, stretch.Queues ? $"stands in line, {Step(stretch)}" : Step(stretch), stretch.BeginsCall,
            _run!.Holds(stretch.Program), [.. Enumerable.Range(0, _run.Programs).Select(_run.WaitsFor)]));
    }

    public void End(FinishedRun run)
    {
        Look();
        foreach (LoggedCall call in _host!.CallLog.Read(1))
        {
            _answers[call.Revision] = call.Report.Succeeded ? $"= {call.Report.Value.ToString(CultureInfo.InvariantCulture)}" : $"= {call.Report.Errno}{Why(call)}";
        }
    }

    public ReplayedSchedule Finish(FinishedRun run, string schedule) => new(
        schedule, run.Run.End == RunEnd.Diverged ? run.Run.Problem : "", run.Programs, _stretches, _answers,
        [.. run.Findings.Select(finding => (finding.Kind, finding.Text, finding.Blame))], ScheduleTable.Of(run.Programs, _stretches, _answers, run.Run.Deadlock, run.Findings.Any(finding => finding.IsAboutLocks || finding.Kind == "deadlock")), _state);

    private void Look()
    {
        if (atStretch == _stretches.Count)
        {
            _state = HostState.Of(_host!, _run!);
        }
    }

    private static string Why(in LoggedCall call) => call.Report.Causes.Count > 0 ? $" ({call.Report.Causes[0].Rule.Id})" : "";

    private static string Step(Stretch stretch)
    {
        var text = new StringBuilder(stretch.Label.Name);
        if (stretch.Record.A != 0 || stretch.Record.B > 1)
        {
            text.Append(CultureInfo.InvariantCulture, $" 0x{stretch.Record.A:x}");
        }
        if (stretch.Record.B > 1)
        {
            text.Append(CultureInfo.InvariantCulture, $" 0x{stretch.Record.B:x}");
        }
        return text.ToString();
    }
}
