using System.CommandLine;
using System.Text;
using Spectre.Console;
using VmmService.Client;
using VmmService.V1;

namespace VmmService.Vmm;

/// <summary>vmm explore: runs a scenario's programs in every order, or one schedule of it again.</summary>
internal sealed class ExploreCommand
{
    private static readonly string[] Schedulers = ["exhaustive", "bounded", "pct", "random"];

    private readonly VmmConsole _console;
    private readonly Argument<string> _file = new("FILE") { Description = "The scenario; - is standard input." };
    private readonly Option<string[]> _profiles = new("--profile") { Description = "Kernel generation to explore under; may be given several times. Without it those of the scenario.", HelpName = "PROFILE" };
    private readonly Option<string?> _scheduler = new("--scheduler")
    {
        Description = "exhaustive (the default): every schedule, but of those that nobody can tell apart one. bounded: every schedule with at most --preemptions. pct: probabilistic concurrency testing. random.",
        HelpName = "NAME",
    };

    private readonly Option<uint?> _budget = Numbers.Option<uint>("--budget", "Schedules that are run at most.", "N");
    private readonly Option<uint?> _seconds = Numbers.Option<uint>("--seconds", "Seconds after which exploring stops; what was found until then is told.", "N");
    private readonly Option<uint?> _preemptions = Numbers.Option<uint>("--preemptions", "With the scheduler bounded. Default 2.", "N");
    private readonly Option<uint?> _depth = Numbers.Option<uint>("--depth", "With the scheduler pct: how many orderings the bug needs. Default 3.", "N");
    private readonly Option<ulong?> _seed = Numbers.Option<ulong>("--seed", "Of the schedulers pct and random.", "N");
    private readonly Option<string?> _replay = new("--replay") { Description = "Run one schedule again and print it step by step, as a finding gives it: PROFILE:A14B22A3.", HelpName = "SCHEDULE" };
    private readonly Option<uint?> _at = Numbers.Option<uint>(
        "--at", "With --replay: show the host before this step, counted from 0: locks, attributes, stage 2, pages, RMP, Secure EPT and PAMT. --step is the same.", "N");

    private readonly Option<string?> _export = new("--export") { Description = "Write the scenario and what it came to into a file, as JSON: findings, schedules, tables.", HelpName = "FILE" };
    private readonly Option<string?> _server = InfoCommands.ServerOption();
    private readonly Option<bool> _json = InfoCommands.JsonOption("Print one JSON object.");

    private ExploreCommand(VmmConsole console) => _console = console;

    public static Command Create(VmmConsole console)
    {
        var it = new ExploreCommand(console);
        it._at.Aliases.Add("--step");
        var command = new Command(
            "explore",
            """
            Run the programs of a scenario in every order, and tell what goes wrong in which.

            The exit code is 0 if each profile came to what the scenario expects of it, or to no finding where it expects nothing, and 1 otherwise. A replay ends with 0 if the
            schedule could be followed.
            """)
        {
            it._file, it._profiles, it._scheduler, it._budget, it._seconds, it._preemptions, it._depth, it._seed, it._replay, it._at, it._export, it._server, it._json,
        };
        command.SetAction(it.RunAsync);
        return command;
    }

    private async Task<int> RunAsync(ParseResult parsed, CancellationToken cancellation)
    {
        ScriptInput scenario = await ScriptInput.ReadAsync(parsed.GetRequiredValue(_file), [], cancellation);
        string? replay = parsed.GetValue(_replay);
        if (replay is null && parsed.GetValue(_at) is not null)
            throw new UsageException("--at shows the host in a schedule, so it needs --replay");

        if (replay is not null && parsed.GetValue(_export) is not null)
            throw new UsageException("--export is of an exploration; a replay is one schedule of it, and --json has all of that");

        await using DaemonSession session = await DaemonSession.OpenAsync(parsed.GetValue(_server), cancellation);
        try
        {
            return replay is null
                ? await ExploreAsync(session.Connection, scenario, parsed, cancellation)
                : await ReplayAsync(session.Connection, scenario, replay, parsed, cancellation);
        }
        catch (VmmServiceException failure)
        {
            throw scenario.Explain(failure);
        }
    }

    private async Task<int> ExploreAsync(VmmConnection connection, ScriptInput scenario, ParseResult parsed, CancellationToken cancellation)
    {
        var request = new ExploreRequest { Scenario = scenario.Yaml, Options = Options(parsed) };
        request.Profiles.AddRange(parsed.GetValue(_profiles) ?? []);
        bool json = parsed.GetValue(_json);
        List<ExploreResult> results = await WatchAsync(!json, async bar =>
        {
            List<ExploreResult> list = [];
            await foreach (ExploreResponse each in connection.ExploreAsync(request, cancellation))
            {
                bar?.Invoke(each);
                if (each.Result is not null)
                    list.Add(each.Result);
            }
            return list;
        });
        if (parsed.GetValue(_export) is { } export)
            await OutputFile.WriteAsync(export, Encoding.UTF8.GetBytes(ExplorePrinter.Export(scenario.Yaml, results)), cancellation);

        if (json)
            await _console.Output.WriteLineAsync(ExplorePrinter.Json(results));
        else
            ExplorePrinter.Write(_console.Output, results, scenario.Path);

        return results.All(Passed) ? ExitCode.Ok : ExitCode.KernelRefused;
    }

    // What a scenario does not speak of is expected to be clean.
    private static bool Passed(ExploreResult result) => result.Expected.Count > 0 ? result.AsExpected : result.Findings.Count == 0;

    private async Task<int> ReplayAsync(VmmConnection connection, ScriptInput scenario, string schedule, ParseResult parsed, CancellationToken cancellation)
    {
        var request = new ReplayScheduleRequest { Scenario = scenario.Yaml, Schedule = schedule };
        if (parsed.GetValue(_profiles) is { Length: > 0 } profiles)
            request.Profile = profiles[0];
        if (parsed.GetValue(_at) is { } at)
            request.AtStretch = at;

        ReplayScheduleResponse replayed = await connection.ReplayScheduleAsync(request, cancellation);
        if (parsed.GetValue(_json))
            await _console.Output.WriteLineAsync(ScriptPrinter.Show(ScriptPrinter.Node(replayed)));
        else
            ExplorePrinter.Write(_console.Output, replayed);

        return replayed.Problem.Length == 0 ? ExitCode.Ok : ExitCode.KernelRefused;
    }

    private ExploreOptions Options(ParseResult parsed)
    {
        var options = new ExploreOptions
        {
            MaxSchedules = parsed.GetValue(_budget) ?? 0,
            TimeLimitSeconds = parsed.GetValue(_seconds) ?? 0,
            Depth = parsed.GetValue(_depth) ?? 0,
            Seed = parsed.GetValue(_seed) ?? 0,
        };
        if (parsed.GetValue(_preemptions) is { } preemptions)
            options.Preemptions = preemptions;
        if (parsed.GetValue(_scheduler) is { } name)
        {
            int index = Array.IndexOf(Schedulers, name);
            options.Scheduler = index >= 0 ? (ExploreScheduler)(index + 1) : throw new UsageException($"--scheduler {name}: not a scheduler; use one of {string.Join(", ", Schedulers)}");
        }
        return options;
    }

    // One bar for each profile, on standard error, and only where somebody watches.
    private async Task<T> WatchAsync<T>(bool enabled, Func<Action<ExploreResponse>?, Task<T>> explore)
    {
        if (!enabled || !_console.ErrorIsTerminal)
            return await explore(null);

        IAnsiConsole terminal = AnsiConsole.Create(new AnsiConsoleSettings { Out = new AnsiConsoleOutput(_console.Error) });
        return await terminal.Progress()
            .AutoClear(true)
            .Columns(new ProgressBarColumn(), new TaskDescriptionColumn { Alignment = Justify.Left })
            .StartAsync(context =>
            {
                ProgressTask? bar = null;
                return explore(each =>
                {
                    switch (each.EventCase)
                    {
                        case ExploreResponse.EventOneofCase.Started:
                            bar = context.AddTask(Markup.Escape(each.Started.Profile), maxValue: each.Started.MaxSchedules);
                            break;
                        case ExploreResponse.EventOneofCase.Progress:
                            bar!.Value = each.Progress.Schedules;
                            bar.Description = Markup.Escape($"{each.Progress.Profile}: {each.Progress.Schedules} schedules, {each.Progress.Findings} findings");
                            break;
                        case ExploreResponse.EventOneofCase.Result:
                            bar!.Value = bar.MaxValue;
                            break;
                    }
                });
            });
    }
}
