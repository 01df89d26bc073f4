using System.CommandLine;
using VmmService.Client;
using VmmService.V1;

namespace VmmService.Vmm;

/// <summary>vmm run: executes a script, once and step by step, or under several kernel generations to see where they part.</summary>
internal sealed class RunCommand
{
    private readonly VmmConsole _console;
    private readonly Argument<string?> _file = new("FILE") { Description = "The script; - is standard input.", Arity = ArgumentArity.ZeroOrOne };
    private readonly Option<string[]> _profiles = new("--profile")
    {
        Description = "Kernel generation to run under, see `vmm profiles`. Given several times: run under each, and print the first difference.",
        HelpName = "PROFILE",
    };

    private readonly Option<string[]> _set = ScriptInput.SetOption();
    private readonly Option<ulong?> _seed = Numbers.Option<ulong>("--seed", "Seed of the host. Without it the script's.", "N");
    private readonly Option<string?> _host = new("--host") { Description = "Host of the daemon to run on; without it one is booted for the script.", HelpName = "ID" };
    private readonly Option<string?> _server = InfoCommands.ServerOption();
    private readonly Option<bool> _json = InfoCommands.JsonOption("Print one JSON object.");
    private readonly Option<bool> _keepGoing = new("--keep-going") { Description = "Go on after unmet expectations." };
    private readonly Option<bool> _verbose = new("--verbose", "-v") { Description = "Print everything that an expectation could name, and why calls failed." };
    private readonly Option<bool> _helpSteps = new("--help-steps") { Description = "Print the steps of the language." };

    private RunCommand(VmmConsole console) => _console = console;

    public static Command Create(VmmConsole console)
    {
        var it = new RunCommand(console);
        var command = new Command(
            "run",
            """
            Execute a script: a launch or test flow in YAML.

            The script's process, and the host that is booted for it, end with it. With several --profile it is run under each, and the first step that comes out
            differently is shown side by side, with the behaviour that makes the difference; the exit code is then 0 if there is none and 1 if there is one.
            """)
        {
            it._file, it._profiles, it._set, it._seed, it._host, it._server, it._json, it._keepGoing, it._verbose, it._helpSteps,
        };
        command.SetAction(it.RunAsync);
        return command;
    }

    private async Task<int> RunAsync(ParseResult parsed, CancellationToken cancellation)
    {
        await using DaemonSession session = await DaemonSession.OpenAsync(parsed.GetValue(_server), cancellation);
        if (parsed.GetValue(_helpSteps))
        {
            ScriptReference.Write(_console.Output, await session.Connection.ListScriptStepsAsync(cancellation));
            return ExitCode.Ok;
        }
        string path = parsed.GetValue(_file) ?? throw new UsageException("run needs the FILE of a script; `vmm run --help-steps` says what goes into one");
        string[] profiles = parsed.GetValue(_profiles) ?? [];
        string? host = parsed.GetValue(_host);
        if (host is not null && (profiles.Length > 0 || parsed.GetValue(_seed) is not null))
            throw new UsageException("--host names a host that runs already, so --profile and --seed do not apply; leave one of them out");

        ScriptInput script = await ScriptInput.ReadAsync(path, parsed.GetValue(_set) ?? [], cancellation);
        ScriptHeader header = Header(parsed, host, profiles);
        return profiles.Length > 1
            ? await new ProfileComparison(session.Connection, script, header, cancellation).RunAsync(_console, profiles, parsed.GetValue(_json))
            : await RunOnceAsync(session.Connection, script, header, parsed, cancellation);
    }

    private ScriptHeader Header(ParseResult parsed, string? host, string[] profiles) => new()
    {
        Host = host ?? "",
        KeepGoing = parsed.GetValue(_keepGoing),
        SeedSet = parsed.GetValue(_seed) is not null,
        Boot = new CreateHostRequest { Seed = parsed.GetValue(_seed) ?? 0, Profile = profiles.Length == 1 ? profiles[0] : "" },
    };

    private async Task<int> RunOnceAsync(VmmConnection connection, ScriptInput input, ScriptHeader header, ParseResult parsed, CancellationToken cancellation)
    {
        bool json = parsed.GetValue(_json);
        List<RunScriptResponse> replies = [];
        ScriptSummary summary = new();
        try
        {
            await using RemoteScript script = await input.StartAsync(connection, header, cancellation);
            await script.CompleteAsync();
            await foreach (RunScriptResponse reply in script.RepliesAsync(cancellation))
            {
                if (json)
                    replies.Add(reply);
                else
                    ScriptPrinter.Write(_console.Output, reply, parsed.GetValue(_verbose));

                summary = reply.Summary ?? summary;
            }
        }
        catch (VmmServiceException failure)
        {
            throw input.Explain(failure);
        }
        if (json)
            await _console.Output.WriteLineAsync(ScriptPrinter.Json(replies));
        return summary.Unmet == 0 ? ExitCode.Ok : ExitCode.KernelRefused;
    }
}
