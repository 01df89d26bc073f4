using System.CommandLine;
using Google.Protobuf;
using VmmService.V1;

namespace VmmService.Vmm;

/// <summary>vmm profiles and vmm capabilities: what a daemon can run and do.</summary>
internal static class InfoCommands
{
    private static readonly JsonFormatter Json = new(JsonFormatter.Settings.Default.WithIndentation().WithFormatDefaultValues(true));

    public static Option<string?> ServerOption() => new("--server")
    {
        Description = "Address of a daemon: http://HOST:PORT or unix:///PATH. Without it the daemon runs inside this process.",
        HelpName = "URI",
    };

    public static Option<bool> JsonOption(string what) => new("--json") { Description = what };

    public static Command CreateProfiles(VmmConsole console)
    {
        Option<string?> server = ServerOption();
        Option<bool> json = JsonOption("Print one JSON object.");
        var two = new Argument<string[]>("PROFILES") { Description = "Two profiles: print what differs between them.", Arity = ArgumentArity.ZeroOrMore };
        var command = new Command("profiles", "List the kernel generations that a host can run, or what differs between two of them.") { two, server, json };
        command.SetAction(async (parsed, cancellation) =>
        {
            string[] compared = parsed.GetValue(two) ?? [];
            if (compared.Length is not (0 or 2))
                throw new UsageException($"profiles takes two profiles to compare, or none; {compared.Length} were given");

            await using DaemonSession session = await DaemonSession.OpenAsync(parsed.GetValue(server), cancellation);
            if (compared.Length == 2)
            {
                IReadOnlyList<Behaviour> differences = await session.Connection.CompareProfilesAsync(compared[0], compared[1], cancellation);
                if (parsed.GetValue(json))
                    await console.Output.WriteLineAsync(Json.Format(new CompareProfilesResponse { Differences = { differences } }));
                else
                    Print(console.Output, compared[0], compared[1], differences);
                return ExitCode.Ok;
            }
            IReadOnlyList<Profile> profiles = await session.Connection.ListProfilesAsync(cancellation);
            if (parsed.GetValue(json))
                await console.Output.WriteLineAsync(Json.Format(new ListProfilesResponse { Profiles = { profiles } }));
            else
                Print(console.Output, profiles);
            return ExitCode.Ok;
        });
        return command;
    }

    public static Command CreateCapabilities(VmmConsole console)
    {
        Option<string?> server = ServerOption();
        Option<bool> json = JsonOption("Print one JSON object.");
        var command = new Command("capabilities", "Show what a daemon is and can do: profiles, ioctls, limits.") { server, json };
        command.SetAction(async (parsed, cancellation) =>
        {
            await using DaemonSession session = await DaemonSession.OpenAsync(parsed.GetValue(server), cancellation);
            CapabilitiesResponse capabilities = await session.Connection.GetCapabilitiesAsync(cancellation);
            if (parsed.GetValue(json))
                await console.Output.WriteLineAsync(Json.Format(capabilities));
            else
                Print(console.Output, session.Name, capabilities);
            return ExitCode.Ok;
        });
        return command;
    }

    private static void Print(TextWriter output, IReadOnlyList<Profile> profiles)
    {
        foreach (Profile profile in profiles)
        {
            output.WriteLine($"{profile.Id}{(profile.IsDefault ? " (default)" : "")}: {profile.Title}");
            if (profile.Parent.Length > 0)
                output.WriteLine($"  as {profile.Parent}, except:");

            foreach (Behaviour delta in profile.Deltas)
                output.WriteLine($"  {delta.Name}: {delta.Value}{(delta.ParentValue.Length > 0 ? $" (there {delta.ParentValue})" : "")}");
        }
    }

    private static void Print(TextWriter output, string from, string to, IReadOnlyList<Behaviour> differences)
    {
        if (differences.Count == 0)
        {
            output.WriteLine($"{from} and {to} do not differ.");
            return;
        }
        var table = new TextTable("Behaviour", from, to, "Source");
        foreach (Behaviour each in differences)
            table.Add(each.Name, each.ParentValue, each.Value, each.Source);
        table.WriteTo(output);
    }

    private static void Print(TextWriter output, string daemon, CapabilitiesResponse capabilities)
    {
        Limits limits = capabilities.Limits;
        output.WriteLine($"Daemon:          {daemon}, version {capabilities.Version}");
        output.WriteLine($"Profiles:        {string.Join(", ", capabilities.Profiles)} (default {capabilities.DefaultProfile})");
        output.WriteLine($"Errno as:        {string.Join(", ", capabilities.ErrnoAs)}");
        output.WriteLine();
        output.WriteLine("Limits");
        output.WriteLine($"  message        {Numbers.Size(limits.MaxMessageBytes)}");
        output.WriteLine($"  read           {Numbers.Size(limits.MaxReadBytes)}");
        output.WriteLine($"  hosts          {limits.MaxHosts}");
        output.WriteLine($"  processes      {limits.MaxProcessesPerHost} on a host");
        output.WriteLine($"  fds            {limits.MaxFdsPerProcess} in a process");
        output.WriteLine($"  host memory    {Numbers.Size(limits.MaxHostMemoryBytes)}");
        output.WriteLine($"  transcript     {limits.MaxTranscriptPage} records in an answer");
        output.WriteLine($"  inspect        {limits.MaxInspectPage} runs in an answer");
        output.WriteLine($"  script         {limits.MaxScriptSteps} steps");
        output.WriteLine($"  idle process   {limits.ProcessIdleSeconds} s");
        output.WriteLine();
        var ioctls = new TextTable("Ioctls", "Number", "On", "Argument");
        foreach (Ioctl ioctl in capabilities.Ioctls)
            ioctls.Add(ioctl.Name, $"0x{ioctl.Request:X8}", ioctl.Fd, ioctl.Argument.Length > 0 ? $"{ioctl.Argument} ({ioctl.ArgumentSize} bytes)" : "a number");
        ioctls.WriteTo(output);
        foreach (UnknownIoctl unknown in capabilities.UnknownIoctls)
            output.WriteLine($"Not modelled, and asked for {unknown.Count} times: 0x{unknown.Request:X8} on {unknown.Fd}");
    }
}
