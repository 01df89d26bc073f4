using SimKvm.Exploration;
using Xunit;

namespace SimKvm.Tests.Exploration;

/// <summary>
/// Leaving out orders that nobody could tell apart leaves nothing out: whatever chance or a bound on preemptions brings about in the end, the reduced search has brought about too.
/// </summary>
public sealed class ReductionTests
{
    private const int Walks = 150;

    public static TheoryData<string, VmUnderTest> Kernels => new()
    {
        { "K72", VmUnderTest.SwProtected },
        { "K72", VmUnderTest.Snp },
        { "K611", VmUnderTest.SwProtected },
        { "K611", VmUnderTest.Snp },
        { "K72", VmUnderTest.Td },
        { "K72", VmUnderTest.RunningTd },
        { "K618", VmUnderTest.Td },
        { "K618", VmUnderTest.RunningTd },
    };

    [Theory]
    [MemberData(nameof(Kernels))]
    public void ReducedSearch_MeetsEveryEndThatChanceMeets(string profile, VmUnderTest kind)
    {
        foreach ((string first, string second) in Operations.Pairs(Operations.Of(kind)))
        {
            Scenario scenario = Operations.Pair(profile, kind, first, second);
            HashSet<string> reduced = Ends(scenario, ExplorationStrategy.Exhaustive, int.MaxValue);
            HashSet<string> met = Ends(scenario, ExplorationStrategy.Random, Walks);
            met.ExceptWith(reduced);
            Assert.True(met.Count == 0, $"{first}, {second}: {reduced.Count} ends by reduced search, but not\n{string.Join("\n\n", met)}");
        }
    }

    [Fact]
    public void ReducedSearch_MeetsEveryFindingOfTheUnreducedOne()
    {
        Scenario scenario = Explored.PunchHoleAgainstAttributes("GM23SNP");
        HashSet<string> unreduced = Ends(scenario, ExplorationStrategy.Bounded, int.MaxValue);
        Assert.Subset(Ends(scenario, ExplorationStrategy.Exhaustive, int.MaxValue), unreduced);
        Assert.Contains(unreduced, end => end.Contains("page-freed-while-private", StringComparison.Ordinal));
    }

    // Chance seldom makes two switches at just the two places that matter; here all pairs of places are tried.
    [Theory]
    [InlineData("K72", VmUnderTest.Snp, "launch update", "launch update")]
    [InlineData("K72", VmUnderTest.Snp, "launch update", "punch hole")]
    [InlineData("K72", VmUnderTest.Td, "add region", "punch hole")]
    [InlineData("K72", VmUnderTest.Td, "add region", "add region")]
    [InlineData("K618", VmUnderTest.Td, "add region", "punch hole")]
    [InlineData("K618", VmUnderTest.Td, "add region", "finalize")]
    [InlineData("K618", VmUnderTest.Td, "init vcpu", "finalize")]
    [InlineData("K618", VmUnderTest.RunningTd, "run", "make shared")]
    [InlineData("K72", VmUnderTest.RunningTd, "run", "punch hole")]
    [InlineData("K72", VmUnderTest.RunningTd, "pre-fault", "pre-fault")]
    [InlineData("K72", VmUnderTest.RunningTd, "punch hole", "pre-fault")]
    public void ReducedSearch_MeetsEveryEndOfAllSchedulesWithTwoPreemptions(string profile, VmUnderTest kind, string first, string second)
    {
        Scenario scenario = Operations.Pair(profile, kind, first, second);
        HashSet<string> met = Ends(scenario, ExplorationStrategy.Bounded, int.MaxValue);
        met.ExceptWith(Ends(scenario, ExplorationStrategy.Exhaustive, int.MaxValue));
        Assert.Empty(met);
    }

    // Answers, findings and what was left behind.
    private static HashSet<string> Ends(Scenario scenario, ExplorationStrategy strategy, int schedules)
    {
        using var explorer = new Explorer(scenario, new ExplorationOptions { Strategy = strategy, MaxSchedules = schedules, Minimise = false });
        var ends = new HashSet<string>();
        explorer.Explore(ended: run => ends.Add(run));
        return ends;
    }
}
