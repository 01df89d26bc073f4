using System.CommandLine;

namespace VmmService.Vmm;

/// <summary>vmm digest compute: the digest that a launch would have, without the launch.</summary>
internal sealed class DigestComputeCommand
{
    private readonly VmmConsole _console;
    private readonly DigestInputs _inputs = new();
    private readonly Option<string?> _pages = new("--pages")
    {
        Description = "Instead of all these: the pages themselves, as a JSON list of {pageType, gpa, contentHash}, or an object that has such a list as transcript "
            + "(what --json prints does). Their chain is computed afresh.",
        HelpName = "FILE",
    };

    private readonly Option<string?> _initial = new("--initial") { Description = "With --pages: the digest to go on from, 96 hexadecimal digits, instead of zeros.", HelpName = "HEX" };
    private readonly Option<bool> _json = InfoCommands.JsonOption("Print one JSON object with all of it, the whole transcript included.");
    private readonly Option<bool> _transcript = new("--transcript") { Description = "Print every measured page, not runs of alike ones." };

    private DigestComputeCommand(VmmConsole console) => _console = console;

    public static Command Create(VmmConsole console)
    {
        var it = new DigestComputeCommand(console);
        var command = new Command(
            "compute",
            $"""
            Compute the launch digest of a guest that is not launched: what its attestation report would have to say.

            Numbers are decimal, or hexadecimal with 0x.

            {ExitCode.Help}
            """);
        it._inputs.AddTo(command);
        command.Add(it._pages);
        command.Add(it._initial);
        command.Add(it._json);
        command.Add(it._transcript);
        command.Validators.Add(result =>
        {
            if (result.GetResult(it._pages) is not null && it._inputs.Given(result).FirstOrDefault() is { } other)
                result.AddError($"--pages has all that is measured; leave {other} out");
            if (result.GetResult(it._initial) is not null && result.GetResult(it._pages) is null)
                result.AddError("--initial is where --pages go on from; give --pages too, or leave it out");
            if (result.GetResult(it._json) is not null && result.GetResult(it._transcript) is not null)
                result.AddError("--json has the whole transcript already; leave --transcript out");
        });
        command.Add(DigestTdxComputeCommand.Create(console));
        command.SetAction(it.RunAsync);
        return command;
    }

    private async Task<int> RunAsync(ParseResult parsed, CancellationToken cancellation)
    {
        DigestReport report;
        string? firmware = null;
        if (parsed.GetValue(_pages) is { } pages)
        {
            report = DigestReport.Of(await TranscriptFile.MeasurePagesAsync(pages, parsed.GetValue(_initial), cancellation));
        }
        else
        {
            DigestLaunch launch = await _inputs.ReadAsync(parsed, cancellation);
            firmware = launch.Firmware.Describe();
            report = DigestReport.Of(launch);
        }

        cancellation.ThrowIfCancellationRequested();
        if (parsed.GetValue(_json))
            await _console.Output.WriteLineAsync(report.ToJson());
        else
            DigestText.Write(_console.Output, report, firmware, everyStep: parsed.GetValue(_transcript));
        return ExitCode.Ok;
    }
}
