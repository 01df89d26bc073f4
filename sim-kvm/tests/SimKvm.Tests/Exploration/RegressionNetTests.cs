using SimKvm.Exploration;
using Xunit;

namespace SimKvm.Tests.Exploration;

/// <summary>Every pair of operations on guest memory in the kernels of today: no order of theirs shows anything that a real machine would suffer from.</summary>
public sealed class RegressionNetTests
{
    // Each pair is explored to the end; this is far above what any needs.
    private const int Budget = 20_000;

    // The kernels of today have none. Those before have what was found and fixed since: a slot that is deleted while its guest_memfd dies (fixed in 6.18), and a second launch
    // finish, which stores to a VMSA that firmware has already (fixed in 2026). A vCPU of a TD that is initialised while the module has the TD's state locked finds it busy, which kills
    // the VM (fixed in 6.19, whose commands take all locks).
    [Theory]
    [InlineData("K611", VmUnderTest.SwProtected, "close file, delete slot: stale-binding")]
    [InlineData("K611", VmUnderTest.Snp, "close file, delete slot: stale-binding", "launch finish, launch finish: host-rmp-fault")]
    [InlineData("K616", VmUnderTest.SwProtected, "close file, delete slot: stale-binding")]
    [InlineData("K616", VmUnderTest.Snp, "close file, delete slot: stale-binding", "launch finish, launch finish: host-rmp-fault")]
    [InlineData("K618", VmUnderTest.SwProtected)]
    [InlineData("K618", VmUnderTest.Snp, "launch finish, launch finish: host-rmp-fault")]
    [InlineData("K70", VmUnderTest.SwProtected)]
    [InlineData("K70", VmUnderTest.Snp, "launch finish, launch finish: host-rmp-fault")]
    [InlineData("K72", VmUnderTest.SwProtected)]
    [InlineData("K72", VmUnderTest.Snp)]
    [InlineData("NEXTHOOK", VmUnderTest.SwProtected)]
    [InlineData("NEXTHOOK", VmUnderTest.Snp)]
    [InlineData("K616", VmUnderTest.Td, "close file, delete slot: stale-binding", "add region, init vcpu: vm-bugged", "finalize, init vcpu: vm-bugged")]
    [InlineData("K616", VmUnderTest.RunningTd, "close file, delete slot: stale-binding")]
    [InlineData("K618", VmUnderTest.Td, "add region, init vcpu: vm-bugged", "finalize, init vcpu: vm-bugged")]
    [InlineData("K618", VmUnderTest.RunningTd)]
    [InlineData("K619", VmUnderTest.Td)]
    [InlineData("K72", VmUnderTest.Td)]
    [InlineData("K72", VmUnderTest.RunningTd)]
    public void Pairs_OfOperations_ShowWhatIsKnownAndNothingElse(string profile, VmUnderTest kind, params string[] known)
    {
        var found = new List<string>();
        foreach ((string first, string second) in Operations.Pairs(Operations.Of(kind)))
        {
            ExplorationResult result = Explored.Explore(Operations.Pair(profile, kind, first, second), new ExplorationOptions { MaxSchedules = Budget });
            Assert.True(result.End == ExplorationEnd.Exhausted, $"{first}, {second}: not exhausted in {result.Schedules} schedules");
            foreach (ExploredFinding finding in result.Findings)
            {
                string name = $"{first}, {second}: {finding.Kind}";
                found.Add(name);
                Assert.True(known.Contains(name), $"{name}: {finding.Text} ({finding.Schedule})\n{string.Join('\n', finding.Trace)}");
            }
        }
        Assert.Equal(known, found);
    }
}
