using System.Text.Json.Nodes;
using VmmService.V1;

namespace VmmService.Vmm;

/// <summary>What an exploration came to, so that it can be pasted into a mail; and one schedule of it, step by step.</summary>
internal static class ExplorePrinter
{
    public static void Write(TextWriter output, IReadOnlyList<ExploreResult> results, string path)
    {
        foreach (string line in results.Count > 0 ? [results[0].Title, ""] : Array.Empty<string>())
            output.WriteLine(line);

        foreach (ExploreResult result in results)
        {
            output.WriteLine($"{result.Profile}, {result.Design}");
            output.WriteLine($"  {result.Coverage}");
            foreach (ExploredFinding finding in result.Findings)
                Write(output, result, finding, path);

            if (result.Findings.Count == 0)
                output.WriteLine("  no finding");

            foreach (ExploredOutcome outcome in result.Outcomes.Count > 1 ? result.Outcomes : [])
                output.WriteLine($"  {Count(outcome.Schedules, "schedule")}: {outcome.Text} ({outcome.Schedule})");

            if (!result.AsExpected)
                output.WriteLine($"  EXPECTED: {string.Join(", ", result.Expected)}");

            output.WriteLine();
        }
    }

    public static string Json(IEnumerable<ExploreResult> results) => ScriptPrinter.Show(new JsonObject { ["results"] = new JsonArray([.. results.Select(ScriptPrinter.Node)]) });

    public static string Export(string scenario, IEnumerable<ExploreResult> results) =>
        ScriptPrinter.Show(new JsonObject { ["scenario"] = scenario, ["results"] = new JsonArray([.. results.Select(ScriptPrinter.Node)]) });

    public static void Write(TextWriter output, ReplayScheduleResponse replayed)
    {
        output.WriteLine($"{replayed.Schedule}");
        output.WriteLine();
        foreach (string line in replayed.Table)
            output.WriteLine(line);

        foreach (ExploredFinding finding in replayed.Findings)
        {
            output.WriteLine();
            output.WriteLine($"{finding.Kind}: {finding.Text}");
            foreach (string blame in finding.Blame)
                output.WriteLine($"  {blame}");
        }
        if (replayed.Problem.Length > 0)
            output.WriteLine($"\nThe schedule could not be followed: {replayed.Problem}");
        if (replayed.State is not null)
            WriteState(output, replayed.State);
    }

    private static void Write(TextWriter output, ExploreResult result, ExploredFinding finding, string path)
    {
        output.WriteLine($"  finding {finding.Kind}, in {finding.Schedules} of {Count(result.Schedules, "schedule")}");
        output.WriteLine($"  {finding.Text}");
        foreach (string blame in finding.Blame)
            output.WriteLine($"    {blame}");

        output.WriteLine($"  with {Count(finding.Preemptions, "preemption")}{(finding.Minimal ? "; none with fewer shows it" : "")}");
        output.WriteLine($"  again: vmm explore {path} --replay {finding.Schedule}");
        output.WriteLine();
        foreach (string line in finding.Table)
            output.WriteLine($"    {line}");

        output.WriteLine();
    }

    private static void WriteState(TextWriter output, ReplayedState state)
    {
        output.WriteLine();
        for (int i = 0; i < state.Programs.Count; i++)
        {
            ReplayedProgram program = state.Programs[i];
            string holds = program.Holds.Count > 0 ? $"; holds {string.Join(", ", program.Holds)}" : "";
            output.WriteLine($"{(char)('A' + i)}: {program.Position}{holds}{(program.WaitsFor.Length > 0 ? $"; waits for {program.WaitsFor}" : "")}");
        }
        foreach (ReplayedVm vm in state.Vms)
        {
            output.WriteLine($"VM: mmu_invalidate_in_progress {vm.InProgress}, seq {vm.Seq}");
            foreach (ReplayedAttributes run in vm.Attributes)
                output.WriteLine($"  gfns {Numbers.Hex(run.Start)} to {Numbers.Hex(run.End)}: attributes {run.Attributes}");
            foreach (ReplayedStage2 run in vm.Stage2)
                output.WriteLine($"  gfns {Numbers.Hex(run.Start)} to {Numbers.Hex(run.End)}: mapped {(run.Private ? "private" : "shared")} to pfn {Numbers.Hex(run.Pfn)}{(run.Writable ? "" : ", read-only")}");
            foreach (ReplayedSept page in vm.Sept)
                output.WriteLine($"  Secure EPT: gpa {Numbers.Hex(page.Gpa)}, level {page.Level}, {page.State}, pfn {Numbers.Hex(page.Pfn)}");
        }
        foreach (ReplayedFile file in state.Files)
        {
            foreach (ReplayedPages run in file.Pages)
                output.WriteLine($"guest_memfd {file.Fd}: pages {Numbers.Hex(run.Start)} to {Numbers.Hex(run.End)} in pfn {Numbers.Hex(run.Pfn)}{(run.Uptodate ? "" : ", not up to date")}");
        }
        foreach (ReplayedRmpFrame frame in state.Rmp)
            output.WriteLine($"RMP: pfn {Numbers.Hex(frame.Pfn)} {frame.State}, ASID {frame.Asid}, gpa {Numbers.Hex(frame.Gpa)}");

        foreach (ReplayedTdxFrame frame in state.Pamt)
            output.WriteLine($"PAMT: pfn {Numbers.Hex(frame.Pfn)} {frame.Type} of the TD at {Numbers.Hex(frame.Tdr)}");
    }

    private static string Count(uint number, string what) => number == 1 ? $"1 {what}" : $"{number} {what}s";
}
