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
