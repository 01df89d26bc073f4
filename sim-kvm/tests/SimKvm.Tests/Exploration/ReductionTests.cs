using SimKvm.Abi;
using SimKvm.Exploration;
using Xunit;

namespace SimKvm.Tests.Exploration;

/// <summary>
/// Leaving out orders that nobody could tell apart leaves nothing out: whatever chance or a bound on preemptions brings about in the end, the reduced search has brought about too.
/// </summary>
public sealed class ReductionTests
{
    private const int Walks = 150;

    public static TheoryData<string, VmType> Kernels => new()
    {
        { "K72", VmType.KVM_X86_SW_PROTECTED_VM },
        { "K72", VmType.KVM_X86_SNP_VM },
        { "K611", VmType.KVM_X86_SW_PROTECTED_VM },
        { "K611", VmType.KVM_X86_SNP_VM },
    };

    [Theory]
    [MemberData(nameof(Kernels))]
    public void ReducedSearch_MeetsEveryEndThatChanceMeets(string profile, VmType type)
    {
        foreach ((string first, string second) in Operations.Pairs(type == VmType.KVM_X86_SNP_VM ? Operations.OfSnp : Operations.OfSwProtected))
        {
            Scenario scenario = Operations.Pair(profile, type, first, second);
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

    // Answers, findings and what was left behind.
    private static HashSet<string> Ends(Scenario scenario, ExplorationStrategy strategy, int schedules)
    {
        using var explorer = new Explorer(scenario, new ExplorationOptions { Strategy = strategy, MaxSchedules = schedules, Minimise = false });
        var ends = new HashSet<string>();
        explorer.Explore(ended: run => ends.Add(run));
        return ends;
    }
}
