using VmmService.IntegrationTests.Support;
using Xunit;

namespace VmmService.IntegrationTests.Cli;

/// <summary>vmm explore: what it prints, what it ends with, and what it says of scenarios that are none.</summary>
public sealed class ExploreCommandTests
{
    private static string Seed001 => Path.Combine(Repository.Root, "integration-tests", "Seeds", "Scenarios", "001-punch-hole-against-attributes.yaml");

    [Fact]
    public async Task AFinding_IsPrintedWithItsScheduleInColumns()
    {
        VmmRun run = await VmmRun.Invoke("explore", Seed001, "--profile", "GM23SNP");
        Assert.True(run is { ExitCode: 0, Error: "" }, run.Output + run.Error);
        Assert.Contains("finding page-freed-while-private, in 4 of 29 schedules", run.Output, StringComparison.Ordinal);
        Assert.Contains("A: punch hole", run.Output, StringComparison.Ordinal);
        Assert.Contains("| B: make private", run.Output, StringComparison.Ordinal);
        Assert.Contains("--replay GM23SNP:A", run.Output, StringComparison.Ordinal);
    }

    [Fact]
    public async Task AReplay_ShowsLocksRmpAndAttributesAtAStep()
    {
        VmmRun run = await VmmRun.Invoke("explore", Seed001, "--replay", "GM23SNP:A10B1", "--at", "10");
        Assert.True(run is { ExitCode: 0, Error: "" }, run.Output + run.Error);
        Assert.Contains("holds invalidate_lock", run.Output, StringComparison.Ordinal);
        Assert.Contains("mmu_invalidate_in_progress 1", run.Output, StringComparison.Ordinal);
        Assert.Contains("RMP: pfn", run.Output, StringComparison.Ordinal);
        Assert.Contains("attributes 8", run.Output, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("exhaustive")]
    [InlineData("bounded")]
    [InlineData("pct")]
    [InlineData("random")]
    public async Task EveryScheduler_CanBeNamed_AndSaysTheSameTwice(string scheduler)
    {
        string[] words = ["explore", Seed001, "--profile", "GM23SNP", "--scheduler", scheduler, "--budget", "300", "--json"];
        VmmRun first = await VmmRun.Invoke(words), second = await VmmRun.Invoke(words);
        Assert.True(first is { ExitCode: 0, Error: "" }, first.Output + first.Error);
        Assert.Equal(first.Output, second.Output);
    }

    [Fact]
    public async Task WhatIsNotExpected_EndsWith1()
    {
        VmmRun run = await VmmRun.Invoke("explore", Seed001, "--profile", "GM23SNP", "--budget", "1");
        Assert.Equal(1, run.ExitCode);
        Assert.Contains("EXPECTED: page-freed-while-private", run.Output, StringComparison.Ordinal);
        Assert.Contains("the budget; there are more", run.Output, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("--scheduler", "none")]
    [InlineData("--at", "3")]
    [InlineData("--step", "3")]
    [InlineData("--replay", "Q9")]
    [InlineData("--profile", "K1")]
    [InlineData("--budget", "many")]
    public async Task BadOptions_AreUsageErrors(string option, string value)
    {
        VmmRun run = await VmmRun.Invoke("explore", Seed001, option, value);
        Assert.Equal(2, run.ExitCode);
        Assert.NotEmpty(run.Error);
    }

    // A schedule is checked against the scenario that it is given with.
    [Theory]
    [InlineData("K72:A1F1", 1, "program F, which the scenario does not have")]
    [InlineData("K72:A999", 1, "which is done")]
    [InlineData("GM23SNP:A3B9C1", 1, "waits for kvm->mmu_lock, held by A")]
    [InlineData("K999:A1", 2, "there is no profile 'K999'")]
    [InlineData("K72+K611.Nothing:A1", 2, "K72+K611.Behaviour")]
    [InlineData("K72:A3 B2", 2, "a schedule is written as PROFILE:A14B22A3")]
    [InlineData("UPM22:A3", 2, "the setup did not come about")]
    public async Task AScheduleOfSomethingElse_IsToldWhereItDoesNotFit(string schedule, int exitCode, string why)
    {
        VmmRun run = await VmmRun.Invoke("explore", Seed001, "--replay", schedule);
        Assert.Equal(exitCode, run.ExitCode);
        Assert.Contains(why, run.Output + run.Error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task EveryKindOfFinding_IsInThePage()
    {
        string page = await File.ReadAllTextAsync(Path.Combine(Repository.Root, "client", "docs", "scenarios.md"));
        Assert.All(SimKvm.Exploration.FindingKinds.All, kind => Assert.Contains($"`{kind}`", page, StringComparison.Ordinal));
    }

    // What was looked at is said, with what another run needs to look at the same.
    [Theory]
    [InlineData("exhaustive", "every order that can be told apart")]
    [InlineData("bounded", "with at most 2 preemptions")]
    [InlineData("pct", "(seed 7, depth 3), the budget; a bug that needs 3 orderings")]
    [InlineData("random", "drawn at random (seed 7), the budget")]
    public async Task TheResult_SaysHowMuchWasLookedAt(string scheduler, string coverage)
    {
        VmmRun run = await VmmRun.Invoke("explore", Seed001, "--profile", "K72", "--scheduler", scheduler, "--seed", "7", "--budget", "500");
        Assert.True(run is { ExitCode: 0, Error: "" }, run.Output + run.Error);
        Assert.Contains(coverage, run.Output, StringComparison.Ordinal);
    }

    // A scenario that is none, and the line that is to blame.
    [Theory]
    [InlineData("title: nothing", 1)]
    [InlineData("programs: {}", 1)]
    [InlineData("programs: {a: [], b: [], c: [], d: [], e: [], f: [], g: []}", 1)]
    [InlineData("programs:\n  a: 3", 2)]
    [InlineData("programs: {a: []}\nprogram: 1", 2)]
    [InlineData("programs: {a: []}\nexpect: {K1: none}", 2)]
    [InlineData("programs: {a: []}\nexplore: {scheduler: lucky}", 2)]
    [InlineData("programs:\n  a:\n    - open: /dev/kvm\n    - nothing: 1", 4)]
    [InlineData("setup:\n  - open: /dev/nothing\nprograms: {a: []}", 2)]
    [InlineData("programs:\n  a:\n    - open: /dev/kvm\n      in: 2", 4)]
    [InlineData("programs: {a: {in: 99, steps: []}}", 1)]
    [InlineData("programs: {a: []}\nexpect: {K72: no-such-kind}", 2)]
    [InlineData("programs: {a: []}\nexpect: {K72+K611.Nothing: none}", 2)]
    [InlineData("programs: {a: []}\nexpect: {K72+K0.Populate: none}", 2)]
    [InlineData("programs: {a: []}\nmachine: {memory_bytes: 1}", 2)]
    [InlineData("programs: {a: []}\nmachine: {platform: NOWHERE}", 2)]
    [InlineData("programs: {a: []}\nexplore: {schedules: 99999999999999}", 2)]
    [InlineData("vars: {a: $b, b: $a}\nprograms: {p: []}", 1)]
    [InlineData("x: &x\n  - *x\nprograms: {a: []}", 1)]
    [InlineData("setup:\n  - repeat: {times: 18446744073709551615, steps: []}\nprograms: {a: []}", 2)]
    [InlineData("setup:\n  - open: /dev/kvm\n    as: kvm\n  - create_vm: TDX\nprograms: {a: []}", 4)]
    public async Task AScenarioThatIsNone_IsToldWithItsLine(string yaml, int line)
    {
        string file = Path.GetTempFileName();
        await File.WriteAllTextAsync(file, yaml);
        VmmRun run = await VmmRun.Invoke("explore", file);
        File.Delete(file);
        Assert.True(run.ExitCode == 2, run.Output + run.Error);
        Assert.Contains($"{file}:{line}:", run.Error, StringComparison.Ordinal);
    }
}
