using System.CommandLine;
using System.CommandLine.Parsing;
using System.Text.Json;
using VmmService.Client.Attestation;
using VmmService.Client.Digest;
using VmmService.Client.Launch;

namespace VmmService.Vmm;

/// <summary>vmm digest compute tdx: the MRTD of a TD that is not launched, and what its RTMR0 begins with.</summary>
internal static class DigestTdxComputeCommand
{
    public static Command Create(VmmConsole console)
    {
        var inputs = new TdxInputs();
        Option<bool> json = InfoCommands.JsonOption("Print one JSON object.");
        var command = new Command(
            "tdx",
            $"""
            Compute the MRTD of a TD that is not launched: what its quote would have to say.

            {ExitCode.Help}
            """)
        {
            json,
        };
        inputs.AddTo(command);
        command.SetAction(async (parsed, cancellation) =>
        {
            TdxLaunch launch = await inputs.ReadAsync(parsed, cancellation);
            MrtdReport report = MrtdReport.Of(launch);
            cancellation.ThrowIfCancellationRequested();
            if (parsed.GetValue(json))
                await console.Output.WriteLineAsync(JsonSerializer.Serialize(report, DigestReport.Json));
            else
                Write(console.Output, launch, report);
            return ExitCode.Ok;
        });
        return command;
    }

    private static void Write(TextWriter output, TdxLaunch launch, MrtdReport report)
    {
        output.WriteLine($"MRTD            {report.Mrtd}");
        output.WriteLine();
        output.WriteLine($"Order           {report.Order}");
        output.WriteLine($"VMM             {report.Vmm}");
        output.WriteLine($"Firmware        {DescribeFirmware(launch.Firmware)}");
        output.WriteLine($"                {report.Firmware.Size} bytes, sha256 {report.Firmware.Sha256}");
        output.WriteLine($"Memory          {Numbers.Size(launch.Memory)}");
        output.WriteLine();
        output.WriteLine("Added, in this order");
        var table = new TextTable("  section", "gpa", "pages", "extended");
        foreach (MrtdReport.RegionEntry region in report.Regions)
            table.Add($"  {region.Section}", region.Gpa, $"{region.Size / FirmwareImage.PageSize}", region.Extended ? "yes" : "no");
        table.WriteTo(output);
        output.WriteLine();
        output.WriteLine("Measured first at run time, into RTMR0");
        foreach (MrtdReport.EventEntry each in report.FirstEvents)
            output.WriteLine($"  {each.Digest}  {each.What}");
        output.WriteLine($"  {report.Rtmr0AfterThem}  RTMR0 after them");
    }

    internal static string DescribeFirmware(FirmwareChoice firmware) => firmware.Source == FirmwareChoice.Sample
        ? "generated sample, which starts and halts (no firmware on this machine has TDX metadata)"
        : firmware.Describe();
}

/// <summary>A computed MRTD as data: the property names are those of --json.</summary>
internal sealed record MrtdReport(
    string Mrtd,
    string Order,
    string Vmm,
    LaunchReport.FirmwareEntry Firmware,
    ulong MemoryBytes,
    string HobGpa,
    IReadOnlyList<MrtdReport.RegionEntry> Regions,
    IReadOnlyList<MrtdReport.EventEntry> FirstEvents,
    string Rtmr0AfterThem)
{
    public sealed record RegionEntry(string Section, string Gpa, ulong Size, bool Extended);

    public sealed record EventEntry(string What, string EventType, string Digest);

    public static MrtdReport Of(TdxLaunch launch)
    {
        FirmwareImage image = launch.Firmware.Image;
        IReadOnlyList<TdEvent> events = TdEventLog.FirstEvents(launch.Plan);
        return new MrtdReport(
            launch.Mrtd().ToString(),
            launch.Order == MrtdOrder.PerPage ? "per page" : "per region",
            launch.Plan.Flavor.Name,
            new LaunchReport.FirmwareEntry(launch.Firmware.Path, image.Size, Sha256Hex.Of(image.Bytes.Span), launch.Firmware.Source),
            launch.Memory,
            Numbers.Hex(launch.Plan.HobGpa),
            [.. launch.Plan.Regions.Select(region => new RegionEntry(region.Label, Numbers.Hex(region.Gpa), region.Size, region.Extend))],
            [.. events.Select(each => new EventEntry(each.Type == TdEvent.HandOffTables ? "hand-off blocks" : "variable store", Numbers.Hex(each.Type), each.Digest.ToString()))],
            TdEventLog.Replay(events)[0].ToString());
    }
}

/// <summary>vmm digest diff tdx: why two MRTDs differ.</summary>
internal static class DigestTdxDiffCommand
{
    public static Command Create(VmmConsole console)
    {
        var a = new Argument<string>("A") { Description = "One launch." };
        var b = new Argument<string>("B") { Description = "The other." };
        var server = new Option<string?>("--server") { Description = "Address of the daemon that has the VMs: http://HOST:PORT or unix:///PATH.", HelpName = "URI" };
        Option<bool> json = InfoCommands.JsonOption("Print one JSON object.");
        var command = new Command(
            "tdx",
            """
            Put the measured pages of two TD launches side by side, name the first that differs, and say what it means.

            A and B are each one of
              "--firmware F ..." options of `vmm digest compute tdx`, in quotes
              vm:HOST/PID/FD     a TD of the daemon at --server

            Exit codes:
              0    they measure the same
              1    they differ
              2    the command line or an input file cannot be used
              3    the daemon could not be reached, or failed
              130  interrupted
            """)
        {
            a, b, server, json,
        };
        command.SetAction(async (parsed, cancellation) =>
        {
            Side sideA = await ReadAsync(parsed.GetRequiredValue(a), parsed.GetValue(server), cancellation);
            Side sideB = await ReadAsync(parsed.GetRequiredValue(b), parsed.GetValue(server), cancellation);
            MrtdDiff diff = MrtdDiff.Compare(sideA.Steps, sideB.Steps);
            cancellation.ThrowIfCancellationRequested();
            if (parsed.GetValue(json))
                await console.Output.WriteLineAsync(JsonSerializer.Serialize(Report.Of(sideA, sideB, diff), DigestReport.Json));
            else
                Write(console.Output, sideA, sideB, diff);
            return diff.FirstIndex is null ? ExitCode.Ok : ExitCode.Different;
        });
        return command;
    }

    private static async Task<Side> ReadAsync(string text, string? server, CancellationToken cancellation)
    {
        if (DigestSides.IsVm(text))
        {
            (string host, uint pid, int fd) = DigestSides.ParseVm(text, server);
            await using DaemonSession session = await DaemonSession.OpenAsync(server, cancellation);
            (IReadOnlyList<MrtdStep> steps, string mrtd) = await session.Connection.ReadMrtdAsync(host, pid, fd, cancellation);
            return new Side(text, mrtd, steps);
        }

        var inputs = new TdxInputs();
        var command = new Command("launch");
        inputs.AddTo(command);
        ParseResult parsed = command.Parse([.. CommandLineParser.SplitCommandLine(text)]);
        if (parsed.Errors.Count > 0)
            throw new UsageException($"in '{text}': {parsed.Errors[0].Message}. Try: vmm digest compute tdx --help");

        TdxLaunch launch = await inputs.ReadAsync(parsed, cancellation);
        return new Side(text, launch.Mrtd().ToString(), MrtdStep.Of(launch.Plan.Regions, launch.Order));
    }

    private static void Write(TextWriter output, Side a, Side b, MrtdDiff diff)
    {
        output.WriteLine($"A  {a.Mrtd}  {a.Name}");
        output.WriteLine($"B  {b.Mrtd}  {b.Name}");
        output.WriteLine();
        if (diff.FirstIndex is not { } first)
        {
            output.WriteLine($"The same: {a.Steps.Count} steps, none differs.");
            return;
        }

        output.WriteLine($"First difference: step {first}");
        output.WriteLine($"  A: {At(a, first)}");
        output.WriteLine($"  B: {At(b, first)}");
        output.WriteLine();
        foreach (string meaning in diff.Meanings)
            output.WriteLine(meaning);
    }

    private static string At(Side side, int index) => index < side.Steps.Count ? side.Steps[index].ToString() : $"has ended after {side.Steps.Count} steps";

    private sealed record Side(string Name, string Mrtd, IReadOnlyList<MrtdStep> Steps);

    // The property names are those of --json.
    private sealed record Report(bool Same, string MrtdA, string MrtdB, int? FirstIndex, string? FirstA, string? FirstB, IReadOnlyList<string> Meanings)
    {
        public static Report Of(Side a, Side b, MrtdDiff diff) => new(
            diff.FirstIndex is null, a.Mrtd, b.Mrtd, diff.FirstIndex, diff.FirstIndex is { } first ? At(a, first) : null, diff.FirstIndex is { } same ? At(b, same) : null, diff.Meanings);
    }
}

/// <summary>vmm digest explain tdx: what an unexpected MRTD is of.</summary>
internal static class DigestTdxExplainCommand
{
    private const uint DefaultMax = 4000;

    public static Command Create(VmmConsole console)
    {
        var inputs = new TdxInputs();
        var target = new Option<string>("--target") { Description = "The MRTD to explain, 96 hexadecimal digits.", HelpName = "HEX", Required = true };
        var others = new Option<string[]>("--or-firmware") { Description = "Another image that it may have been; may be given several times. Code halves of split builds do, too.", HelpName = "FILE" };
        Option<uint?> max = Numbers.Option<uint>("--max-combinations", "Give up after so many.", "N", DefaultMax);
        Option<bool> json = InfoCommands.JsonOption("Print one JSON object.");
        var command = new Command(
            "tdx",
            """
            Find out what an MRTD is of: search what people get wrong (order of measuring, VMM, sections that are extended or added and their order, hand-off blocks, memory,
            firmware and its halves) for the combination that gives it, the fewest changes from the options first.

            Exit codes:
              0    found
              1    no combination that was tried gives the MRTD
              2    the command line or an input file cannot be used
              130  interrupted
            """)
        {
            target, others, max, json,
        };
        inputs.AddTo(command);
        command.SetAction(async (parsed, cancellation) =>
        {
            if (!Hash384.TryParse(parsed.GetRequiredValue(target), out Hash384 mrtd))
                throw new UsageException($"--target: an MRTD is 96 hexadecimal digits, and this has {parsed.GetRequiredValue(target).Length} characters. In a quote of version 4 it is the 48 bytes at 184.");
            uint most = parsed.GetValue(max) ?? DefaultMax;
            if (most == 0)
                throw new UsageException("--max-combinations 0: nothing would be tried; give at least 1");

            (MrtdGuess asked, IReadOnlyList<MrtdKnob> knobs) = await inputs.AskAsync(parsed, parsed.GetValue(others) ?? [], cancellation);
            MrtdFinding finding = await Task.Run(() => MrtdSearch.Run(mrtd, asked, knobs, (int)Math.Min(most, int.MaxValue), cancellation), cancellation);
            if (parsed.GetValue(json))
                await console.Output.WriteLineAsync(JsonSerializer.Serialize(Report.Of(mrtd, knobs, finding), DigestReport.Json));
            else
                Write(console.Output, mrtd, knobs, finding);
            return finding.Changes is null ? ExitCode.Different : ExitCode.Ok;
        });
        return command;
    }

    private static void Write(TextWriter output, Hash384 target, IReadOnlyList<MrtdKnob> knobs, MrtdFinding finding)
    {
        output.WriteLine($"{(finding.Changes is null ? "Not found       " : "Found           ")}{target}");
        output.WriteLine();
        if (finding.Changes is not { } changes)
        {
            output.WriteLine($"None of {finding.Tried} combinations gives it. Tried were:");
            foreach (MrtdKnob knob in knobs)
                output.WriteLine($"  {knob.Name}: {string.Join("; ", knob.Choices.Select(choice => choice.Text))}");
            output.WriteLine();
            output.WriteLine("Most likely it is of another build of the firmware: give others with --or-firmware.");
            return;
        }

        output.WriteLine(changes.Count switch
        {
            0 => "It is the MRTD of what was asked for.",
            1 => "It is the MRTD of what was asked for but for one thing:",
            _ => $"It is the MRTD of what was asked for but for {changes.Count} things:",
        });
        foreach (KnobChange change in changes)
            output.WriteLine($"  {change.Knob}: {change.Found} (asked for: {change.Asked})");
        output.WriteLine();
        output.WriteLine("All of it");
        var table = new TextTable("  what", "is");
        foreach ((string knob, string choice) in finding.Settings)
            table.Add($"  {knob}", choice);
        table.WriteTo(output);
        output.WriteLine();
        output.WriteLine($"{finding.Tried} combinations tried, the fewest changes first.");
    }

    // The property names are those of --json.
    private sealed record Report(string Target, bool Found, IReadOnlyList<KnobChange>? Changes, IReadOnlyDictionary<string, string> Settings, int Tried, IReadOnlyDictionary<string, IReadOnlyList<string>> Knobs)
    {
        public static Report Of(Hash384 target, IReadOnlyList<MrtdKnob> knobs, MrtdFinding finding) => new(
            target.ToString(),
            finding.Changes is not null,
            finding.Changes,
            finding.Settings.ToDictionary(each => each.Knob, each => each.Choice, StringComparer.Ordinal),
            finding.Tried,
            knobs.ToDictionary(knob => knob.Name, IReadOnlyList<string> (knob) => [.. knob.Choices.Select(choice => choice.Text)], StringComparer.Ordinal));
    }
}
