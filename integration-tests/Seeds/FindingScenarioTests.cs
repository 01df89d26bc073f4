using VmmService.IntegrationTests.Cli;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Seeds;

/// <summary>
/// Each kind of finding, from a scenario that shows it: found through gRPC, in as few switches as show it, told in a column for each program with the locks that are held, run again
/// from its string with the host at its last step, and exported.
/// </summary>
public sealed class FindingScenarioTests(Daemon daemon) : IClassFixture<Daemon>
{
    private static string Folder => Path.Combine(Repository.Root, "integration-tests", "Seeds");

    public static TheoryData<string, string, string, uint> Kinds => new()
    {
        { "host-rmp-fault", "Scenarios/004-payload-lost.yaml", "UPM22", 1 },
        { "lost-update", "Findings/lost-update.yaml", "K72", 1 },
        { "stale-mapping", "Findings/stale-mapping.yaml", "IP8+K616.PunchHoleFilter", 0 },
        { "page-freed-while-private", "Scenarios/001-punch-hole-against-attributes.yaml", "GM23SNP", 1 },
        { "double-population", "Findings/double-population.yaml", "K72", 1 },
        { "unbalanced-invalidation", "Findings/unbalanced-invalidation.yaml", "GM23", 0 },
        { "lock-inversion", "Scenarios/003-source-inside-the-invalidate-lock.yaml", "IP8+K619.Populate", 0 },
        { "lock-recursion", "Scenarios/003-tdx-populate.yaml", "IP8+K619.Populate+K618.TdxAddsWhileMapping", 0 },
        { "sleep-in-atomic", "Scenarios/001-punch-hole-against-attributes.yaml", "GM23SNP-mmu_lock", 0 },
        { "deadlock", "Scenarios/003-source-inside-the-invalidate-lock.yaml", "IP8+K619.Populate", 1 },
    };

    [Theory]
    [MemberData(nameof(Kinds))]
    public async Task AKindOfFinding_IsFoundInAsFewSwitchesAsShowIt_AndRunsAgainFromItsString(string kind, string file, string profile, uint preemptions)
    {
        string scenario = await File.ReadAllTextAsync(Path.Combine(Folder, file));
        ExploreResult result = await Explore(new ExploreRequest { Scenario = scenario, Profiles = { profile } });

        ExploredFinding finding = result.Findings.First(each => each.Kind == kind);
        Assert.Equal((preemptions, true), (finding.Preemptions, finding.Minimal));
        Assert.StartsWith($"{profile}:", finding.Schedule, StringComparison.Ordinal);
        Assert.NotEmpty(finding.Text);
        Assert.True(result.Complete, result.Coverage);

        ReplayScheduleResponse whole = await daemon.Connection.ReplayScheduleAsync(new ReplayScheduleRequest { Scenario = scenario, Schedule = finding.Schedule });
        Assert.Equal((finding.Schedule, ""), (whole.Schedule, whole.Problem));
        Assert.Contains(whole.Findings, each => each.Kind == kind && each.Text == finding.Text);
        Assert.Equal(finding.Table, whole.Table);
        Assert.Equal(result.Programs.Count, finding.Table[0].Split('|').Length);
        // Where programs come between each other, or locks are the matter, it is told which are held.
        Assert.Equal(preemptions > 0 || kind.StartsWith("lock-", StringComparison.Ordinal) || kind == "sleep-in-atomic", finding.Table.Any(line => line.Contains('[', StringComparison.Ordinal)));
    }

    [Theory]
    [MemberData(nameof(Kinds))]
    public async Task AReplay_ShowsTheHostBeforeEveryStep(string kind, string file, string profile, uint preemptions)
    {
        string scenario = await File.ReadAllTextAsync(Path.Combine(Folder, file));
        ExploreResult result = await Explore(new ExploreRequest { Scenario = scenario, Profiles = { profile } });
        string schedule = result.Findings.First(each => each.Kind == kind).Schedule;
        ReplayScheduleResponse whole = await daemon.Connection.ReplayScheduleAsync(new ReplayScheduleRequest { Scenario = scenario, Schedule = schedule });

        // A few places of it, both ends among them.
        foreach (uint at in new[] { 0u, (uint)whole.Stretches.Count / 3, (uint)whole.Stretches.Count / 2, (uint)whole.Stretches.Count - 1 })
        {
            ReplayScheduleResponse shown = await daemon.Connection.ReplayScheduleAsync(new ReplayScheduleRequest { Scenario = scenario, Schedule = schedule, AtStretch = at });
            ReplayedStretch next = shown.Stretches[(int)at];
            Assert.Equal(next.Holds, shown.State.Programs[(int)next.Program].Holds);
            Assert.NotEmpty(shown.State.Vms);
            Assert.Equal(scenario.Contains("INTEL_TDX", StringComparison.Ordinal), shown.State.Pamt.Count > 0);
        }
        Assert.True(preemptions <= whole.Stretches.Count);
    }

    [Fact]
    public async Task ATdsSecureEpt_IsShownAtAnyStep()
    {
        string path = Path.Combine(Folder, "Scenarios", "001-tdx-conversions.yaml");
        VmmRun before = await VmmRun.Invoke("explore", path, "--replay", "K72:A1", "--step", "0");
        Assert.True(before is { ExitCode: 0, Error: "" }, before.Error);
        Assert.Contains("Secure EPT: gpa 0x0, level 0, MAPPED", before.Output, StringComparison.Ordinal);
        Assert.Contains("PAMT: pfn", before.Output, StringComparison.Ordinal);

        string[] states = await Task.WhenAll(Enumerable.Range(5, 9).Select(async at => (await VmmRun.Invoke("explore", path, "--replay", "K72:A1", "--at", $"{at}")).Output));
        Assert.Contains(states, state => state.Contains("Secure EPT: gpa 0x0, level 0, BLOCKED", StringComparison.Ordinal));
    }

    [Fact]
    public async Task WhatWasFound_IsExported()
    {
        string export = Path.GetTempFileName();
        VmmRun run = await VmmRun.Invoke("explore", Path.Combine(Folder, "Findings", "lost-update.yaml"), "--export", export);
        Assert.True(run is { ExitCode: 0, Error: "" }, run.Output + run.Error);
        using var document = System.Text.Json.JsonDocument.Parse(await File.ReadAllTextAsync(export));
        File.Delete(export);
        string scenario = document.RootElement.GetProperty("scenario").GetString()!;
        string schedule = document.RootElement.GetProperty("results")[0].GetProperty("findings")[0].GetProperty("schedule").GetString()!;
        ReplayScheduleResponse replayed = await daemon.Connection.ReplayScheduleAsync(new ReplayScheduleRequest { Scenario = scenario, Schedule = schedule });
        Assert.Equal("lost-update", Assert.Single(replayed.Findings).Kind);
    }

    private async Task<ExploreResult> Explore(ExploreRequest request)
    {
        ExploreResult? result = null;
        await foreach (ExploreResponse each in daemon.Connection.ExploreAsync(request))
        {
            result = each.Result ?? result;
        }
        return result!;
    }
}
