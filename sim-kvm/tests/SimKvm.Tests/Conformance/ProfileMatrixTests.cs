using SimKvm.Profiles;
using SimKvm.Tests.Support;
using Xunit;

namespace SimKvm.Tests.Conformance;

/// <summary>
/// The matrix of kernel generations, one test a cell: a probe measures the behaviour by system calls, the table says what it must find. Probes know no profile.
/// </summary>
public sealed class ProfileMatrixTests : KvmTest
{
    public static TheoryData<string, string, string, bool> Cells => ProfileMatrix.Cells;

    [Fact]
    public void Table_HasEveryProfile_AndAProbeForEachBehaviour()
    {
        // Section 14 has the generations of guest_memfd; the designs before it, their ports, and what else was proposed (with a hyphen) have tests of their own.
        IEnumerable<string> generations = KernelProfiles.All
            .Where(profile => profile.PrivateMemory is PrivateMemoryDesign.GuestMemfd or PrivateMemoryDesign.GuestMemfdRfc && profile.Id != "GM23SNP" && !profile.Id.Contains('-', StringComparison.Ordinal))
            .Select(profile => profile.Id);
        Assert.Equal(generations.Order(StringComparer.Ordinal), ProfileMatrix.Profiles.Order(StringComparer.Ordinal));
        Assert.All(ProfileMatrix.AllRows, row => Assert.Equal(ProfileMatrix.Profiles.Count + 2, row.Length));
        Assert.Equal(ProfileMatrix.Behaviours.Order(StringComparer.Ordinal), BehaviourProbes.All.Keys.Order(StringComparer.Ordinal));
    }

    [Theory]
    [MemberData(nameof(Cells))]
    public void Cell(string behaviour, string profile, string expected, bool confirmed)
    {
        string measured = BehaviourProbes.All[behaviour](Boot(profile));
        Assert.True(expected == measured, $"{profile}, {behaviour}: expected {expected}{(confirmed ? "" : " (no source confirms it)")}, measured {measured}");
    }
}
