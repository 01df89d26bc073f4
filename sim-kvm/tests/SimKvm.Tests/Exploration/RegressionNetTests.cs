using SimKvm.Abi;
using SimKvm.Exploration;
using Xunit;

namespace SimKvm.Tests.Exploration;

/// <summary>Every pair of operations on guest memory in the kernels of today: no order of theirs shows anything that a real machine would suffer from.</summary>
public sealed class RegressionNetTests
{
    // Each pair is explored to the end; this is far above what any needs.
    private const int Budget = 20_000;

    // The kernels of today have none. Those before have what was found and fixed since: a slot that is deleted while its guest_memfd dies (fixed in 6.18), and a second launch
    // finish, which stores to a VMSA that firmware has already (fixed in 2026).
    [Theory]
    [InlineData("K611", VmType.KVM_X86_SW_PROTECTED_VM, "close file, delete slot: stale-binding")]
    [InlineData("K611", VmType.KVM_X86_SNP_VM, "close file, delete slot: stale-binding", "launch finish, launch finish: host-rmp-fault")]
    [InlineData("K616", VmType.KVM_X86_SW_PROTECTED_VM, "close file, delete slot: stale-binding")]
    [InlineData("K616", VmType.KVM_X86_SNP_VM, "close file, delete slot: stale-binding", "launch finish, launch finish: host-rmp-fault")]
    [InlineData("K618", VmType.KVM_X86_SW_PROTECTED_VM)]
    [InlineData("K618", VmType.KVM_X86_SNP_VM, "launch finish, launch finish: host-rmp-fault")]
    [InlineData("K70", VmType.KVM_X86_SW_PROTECTED_VM)]
    [InlineData("K70", VmType.KVM_X86_SNP_VM, "launch finish, launch finish: host-rmp-fault")]
    [InlineData("K72", VmType.KVM_X86_SW_PROTECTED_VM)]
    [InlineData("K72", VmType.KVM_X86_SNP_VM)]
    [InlineData("NEXTHOOK", VmType.KVM_X86_SW_PROTECTED_VM)]
    [InlineData("NEXTHOOK", VmType.KVM_X86_SNP_VM)]
    public void Pairs_OfOperations_ShowWhatIsKnownAndNothingElse(string profile, VmType type, params string[] known)
    {
        var found = new List<string>();
        foreach ((string first, string second) in Operations.Pairs(type == VmType.KVM_X86_SNP_VM ? Operations.OfSnp : Operations.OfSwProtected))
        {
            ExplorationResult result = Explored.Explore(Operations.Pair(profile, type, first, second), new ExplorationOptions { MaxSchedules = Budget });
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
