using System.CommandLine;
using System.Globalization;
using System.Text.Json.Nodes;
using VmmService.Client;
using VmmService.V1;

namespace VmmService.Vmm;

/// <summary>vmm map, vmm watch, vmm explain: what a host is, does, and did.</summary>
internal static class InspectCommands
{
    public static Command CreateMap(VmmConsole console)
    {
        var target = new InspectTarget();
        Option<ulong?> gpa = Numbers.Option<ulong>("--gpa", "Explain this guest physical address instead.", "GPA");
        Option<bool> json = InfoCommands.JsonOption("Print one JSON object.");
        var command = new Command("map", "Show the guest physical space of a VM: slot, backing, attribute, stage 2 and RMP side by side.") { gpa, json };
        target.AddTo(command, withVm: true);
        command.SetAction((parsed, cancellation) => target.LookAsync(
            parsed,
            async (host, _) =>
            {
                FdReference vm = await target.VmAsync(parsed, host, cancellation);
                return parsed.GetValue(gpa) is { } address
                    ? ExplainGpa(console, await host.ExplainGpaAsync(vm.Pid, vm.Fd, address, cancellation), parsed.GetValue(json))
                    : await MapAsync(console, host, vm, parsed.GetValue(json), cancellation);
            },
            cancellation));
        return command;
    }

    public static Command CreateWatch(VmmConsole console)
    {
        var target = new InspectTarget();
        Option<ulong?> from = Numbers.Option<ulong>("--from", "First revision (call number) wanted. Without it the oldest that is kept.", "REVISION", 0);
        var follow = new Option<bool>("--follow", "-f") { Description = "Go on with calls as they are made, until interrupted." };
        var steps = new Option<bool>("--steps") { Description = "With the steps of each call." };
        Option<bool> json = InfoCommands.JsonOption("Print one JSON object a line.");
        var command = new Command("watch", "Show the calls of a host in order, with what they answered.") { from, follow, steps, json };
        target.AddTo(command, withVm: false);
        command.SetAction((parsed, cancellation) => target.LookAsync(
            parsed,
            async (host, _) =>
            {
                await foreach (WatchResponse each in host.WatchAsync(parsed.GetValue(from) ?? 0, parsed.GetValue(follow), parsed.GetValue(steps), cancellation))
                {
                    if (parsed.GetValue(json))
                        await console.Output.WriteLineAsync(ScriptPrinter.Node(each).ToJsonString());
                    else
                        Write(console.Output, each);
                }
                return ExitCode.Ok;
            },
            cancellation));
        return command;
    }

    public static Command CreateExplain(VmmConsole console)
    {
        var target = new InspectTarget();
        Argument<ulong> revision = new("REVISION") { Description = "Number of the call on its host (Outcome.call)." };
        Option<bool> json = InfoCommands.JsonOption("Print one JSON object.");
        var command = new Command("explain", "Show what an earlier call answered, and why, with its steps.") { revision, json };
        target.AddTo(command, withVm: false);
        command.SetAction((parsed, cancellation) => target.LookAsync(
            parsed,
            async (host, _) =>
            {
                CallEvent call;
                try
                {
                    call = await host.ExplainAsync(parsed.GetValue(revision), cancellation);
                }
                catch (VmmServiceException failure) when (failure.ResourceInfo is { ResourceType: "revision" } kept)
                {
                    throw new UsageException($"explain {parsed.GetValue(revision)}: there is no such revision; {kept.Description}");
                }
                if (parsed.GetValue(json))
                    await console.Output.WriteLineAsync(ScriptPrinter.Show(ScriptPrinter.Node(call)));
                else
                    WriteCall(console.Output, call);
                return ExitCode.Ok;
            },
            cancellation));
        return command;
    }

    private static async Task<int> MapAsync(VmmConsole console, HostInspector host, FdReference vm, bool json, CancellationToken cancellation)
    {
        DescribeVmResponse state = await host.DescribeVmAsync(vm.Pid, vm.Fd, cancellation);
        if (json)
        {
            var runs = new JsonArray();
            await foreach (GpaRun run in host.MapAsync(vm.Pid, vm.Fd, cancellation: cancellation))
                runs.Add(ScriptPrinter.Node(run));

            await console.Output.WriteLineAsync(ScriptPrinter.Show(new JsonObject { ["vm"] = ScriptPrinter.Node(state), ["map"] = runs }));
            return ExitCode.Ok;
        }

        TextWriter output = console.Output;
        output.WriteLine($"VM of process {vm.Pid}, fd {vm.Fd}: {state.Type}{(state.Dead ? ", dead" : "")}, {state.Vcpus.Count} vCPUs, {state.Users} users ({string.Join(", ", state.References.Select(each => $"{each.Name} {each.Pid}:{each.Fd}"))})");
        if (state.MmuInvalidateInProgress > 0)
            output.WriteLine($"Invalidation in progress: {state.MmuInvalidateInProgress}, gfns {Numbers.Hex(state.MmuInvalidateRange.Start)} to {Numbers.Hex(state.MmuInvalidateRange.End)}");

        output.WriteLine();
        var table = new TextTable("gpa", "size", "slot", "side", "user address", "guest_memfd", "folio", "stage 2", "RMP");
        await foreach (GpaRun run in host.MapAsync(vm.Pid, vm.Fd, cancellation: cancellation))
        {
            table.Add(
                Numbers.Hex(run.Gpa),
                Numbers.Size(run.Size),
                run.HasSlot ? run.Slot.ToString(CultureInfo.InvariantCulture) : "-",
                run.Private ? "private" : "shared",
                run.HasSlot ? Numbers.Hex(run.UserspaceAddr) : "-",
                run.HasGuestMemfdOffset ? $"+{Numbers.Hex(run.GuestMemfdOffset)}" : "-",
                run.Folio == FolioState.Unspecified ? "-" : run.Folio.ToString().ToLowerInvariant(),
                run.Level == 0 ? "-" : $"{Level(run.Level)} {(run.Writable ? "rw" : "r")}",
                run.Rmp.Length > 0 ? run.Rmp : "-");
        }
        table.WriteTo(output);
        return ExitCode.Ok;
    }

    private static int ExplainGpa(VmmConsole console, ExplainGpaResponse page, bool json)
    {
        if (json)
        {
            console.Output.WriteLine(ScriptPrinter.Show(ScriptPrinter.Node(page)));
            return ExitCode.Ok;
        }
        if (page.Run is not null)
            console.Output.WriteLine(page.Run.Text);

        foreach (string line in page.Text)
            console.Output.WriteLine($"  {line}");

        foreach (Stage2Leaf leaf in page.Leaves)
            console.Output.WriteLine($"  stage 2: gpa {Numbers.Hex(leaf.Gpa)} -> pfn {Numbers.Hex(leaf.Pfn)}, {Level(leaf.Level)}, {(leaf.Writable ? "rw" : "r")}");

        foreach (LpageInfo lpage in page.Lpages)
            console.Output.WriteLine($"  lpage_info {Level(lpage.Level)} at {Numbers.Hex(lpage.Gpa)}: count {lpage.Count}{(lpage.Mixed ? ", mixed" : "")}");

        return ExitCode.Ok;
    }

    private static void Write(TextWriter output, WatchResponse response)
    {
        if (response.Dropped is { } dropped)
        {
            output.WriteLine($"(revisions {dropped.First} to {dropped.FirstAvailable - 1} are no longer kept)");
            return;
        }
        CallEvent call = response.Call;
        output.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{call.Revision,6}  pid {call.Pid}  {call.Outcome.Text}"));
        WriteDetails(output, call);
    }

    private static void WriteCall(TextWriter output, CallEvent call)
    {
        output.WriteLine(string.Create(CultureInfo.InvariantCulture, $"Revision {call.Revision}, process {call.Pid}: {call.Outcome.Text}"));
        foreach (Cause cause in call.Outcome.Causes)
        {
            output.WriteLine($"  {cause.Code} at step {cause.Step}: {cause.Sentence} ({string.Join(", ", cause.Operands.Select(operand => $"{operand.Name} {operand.Text}"))})");
            output.WriteLine($"    rule {cause.Rule}, {cause.Source}. Try: {cause.Advice}");
        }
        WriteDetails(output, call);
    }

    private static void WriteDetails(TextWriter output, CallEvent call)
    {
        foreach (Finding finding in call.Outcome.Findings)
            output.WriteLine($"        finding {finding.Kind} at step {finding.Step}: {finding.Text}");

        if (call.StepsDropped)
            output.WriteLine("        (the first steps are no longer kept)");

        foreach (JournalStep step in call.Steps)
            output.WriteLine(string.Create(CultureInfo.InvariantCulture, $"        {step.Step,6}  {step.Label}  0x{step.A:x} 0x{step.B:x}"));
    }

    private static string Level(uint level) => level switch { 1 => "4K", 2 => "2M", 3 => "1G", _ => "-" };
}
