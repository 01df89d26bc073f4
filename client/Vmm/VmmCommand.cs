using System.CommandLine;
using System.CommandLine.Invocation;
using System.Reflection;
using Grpc.Core;
using VmmService.Client;
using VmmService.Client.Launch;
using VmmService.Server;

namespace VmmService.Vmm;

/// <summary>
/// The vmm command as a function of its arguments: the tree of commands, and the one place where exceptions become a paragraph on standard error and an exit
/// code. No stack trace is ever shown.
/// </summary>
public static class VmmCommand
{
    /// <summary>The version of this build.</summary>
    public static string Version { get; } =
        typeof(VmmCommand).Assembly.GetCustomAttribute<AssemblyInformationalVersionAttribute>()?.InformationalVersion.Split('+')[0] ?? "unknown";

    /// <summary>Runs the command.</summary>
    /// <param name="args">Arguments without the program's name.</param>
    /// <param name="console">Where to write.</param>
    /// <param name="cancellation">Interrupts; the exit code is then 130.</param>
    /// <returns>The exit code; --help lists them.</returns>
    public static async Task<int> RunAsync(string[] args, VmmConsole console, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(console);
        ParseResult parsed = Create(console).Parse(args);
        if (parsed.Action is ParseErrorAction)
        {
            foreach (System.CommandLine.Parsing.ParseError error in parsed.Errors)
                await console.Error.WriteLineAsync($"vmm: {error.Message}");

            await console.Error.WriteLineAsync($"Try: {CommandLine(parsed.CommandResult)} --help");
            return ExitCode.Usage;
        }

        var configuration = new InvocationConfiguration
        {
            Output = console.Output,
            Error = console.Error,
            EnableDefaultExceptionHandler = false,
            // Signals are the business of Program and, under vmm serve, of the daemon, which drains.
            ProcessTerminationTimeout = null,
        };
        try
        {
            return await parsed.InvokeAsync(configuration, cancellation);
        }
        catch (Exception) when (cancellation.IsCancellationRequested)
        {
            await console.Error.WriteLineAsync("vmm: interrupted");
            return ExitCode.Cancelled;
        }
        catch (Exception exception)
        {
            (int code, string message) = Explain(exception);
            await console.Error.WriteLineAsync($"vmm: {message}");
            return code;
        }
    }

    private static RootCommand Create(VmmConsole console)
    {
        var root = new RootCommand($"Launch confidential VMs on a simulated Linux KVM.\n\n{ExitCode.Help}");
        foreach (VersionOption version in root.Options.OfType<VersionOption>())
            version.Action = new PrintVersion();

        var launch = new Command("launch", "Launch a guest and print what was measured.");
        launch.Add(LaunchSnpCommand.Create(console));
        launch.Add(LaunchTdxCommand.Create(console));
        launch.Add(LaunchSevCommand.Create(console, es: false));
        launch.Add(LaunchSevCommand.Create(console, es: true));
        root.Add(launch);
        root.Add(RunCommand.Create(console));
        root.Add(ExploreCommand.Create(console));
        root.Add(RecordCommands.CreateRecord(console));
        root.Add(RecordCommands.CreateReplay(console));
        root.Add(InspectCommands.CreateMap(console));
        root.Add(InspectCommands.CreateWatch(console));
        root.Add(InspectCommands.CreateExplain(console));
        root.Add(DigestCommand.Create(console));
        root.Add(ReportCommand.Create(console));
        root.Add(QuoteCommand.Create(console));
        root.Add(ServeCommand.Create());
        root.Add(InfoCommands.CreateProfiles(console));
        root.Add(InfoCommands.CreateCapabilities(console));
        return root;
    }

    private static (int Code, string Message) Explain(Exception exception) => exception switch
    {
        UsageException or LaunchInputException or ServerConfigurationException => (ExitCode.Usage, exception.Message),
        _ when Find<KvmException>(exception) is not null => (ExitCode.KernelRefused, exception.Message),
        _ when Find<VmmServiceException>(exception) is { StatusCode: StatusCode.InvalidArgument } => (ExitCode.Usage, exception.Message),
        _ when Find<VmmServiceException>(exception) is { } failure => (ExitCode.NoServer, exception.Message + WhatToTry(failure)),
        _ => (ExitCode.NoServer, $"unexpected {exception.GetType().Name}: {exception.Message} This is a bug of vmm; please report it with the command line."),
    };

    private static string WhatToTry(VmmServiceException failure) => failure.StatusCode switch
    {
        StatusCode.Unavailable => ". Start a daemon there with `vmm serve`, or leave --server out to run it inside this process.",
        StatusCode.NotFound => ".",
        StatusCode.ResourceExhausted => ". A limit of the daemon was met; `vmm capabilities` lists them.",
        _ => ". The daemon's log may say more.",
    };

    private static T? Find<T>(Exception? exception)
        where T : Exception
    {
        while (exception is not (null or T))
            exception = exception.InnerException;
        return (T?)exception;
    }

    private static string CommandLine(System.CommandLine.Parsing.CommandResult? result)
    {
        List<string> names = [];
        for (; result is not null; result = result.Parent as System.CommandLine.Parsing.CommandResult)
            names.Insert(0, result.Command is RootCommand ? "vmm" : result.Command.Name);
        return string.Join(' ', names);
    }

    private sealed class PrintVersion : SynchronousCommandLineAction
    {
        public override bool Terminating => true;

        public override int Invoke(ParseResult parseResult)
        {
            parseResult.InvocationConfiguration.Output.WriteLine($"vmm {Version}");
            return ExitCode.Ok;
        }
    }
}
