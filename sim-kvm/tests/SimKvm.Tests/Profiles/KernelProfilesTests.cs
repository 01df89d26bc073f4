using SimKvm.Profiles;
using Xunit;

namespace SimKvm.Tests;

/// <summary>The profiles as data: ids, parents, and a source for every behaviour (kvm-guest-memory.md 14).</summary>
public sealed class KernelProfilesTests
{
    [Fact]
    public void Ids_AreUniqueAndFound()
    {
        Assert.Equal(
            [
                "K68", "UPM22", "UPM22-v5", "UPM22-selftest", "UPM22-shm_lock", "UPM22-shareable", "UPM22-pkvm", "UPM22-sev", "UPM22-tdx", "RM22", "GM23", "GM23SNP",
                "GM23SNP-slots_lock", "GM23SNP-mutex", "GM23SNP-mmu_lock", "MAP24v1", "MAP24v2",
                "POP24", "POP24-prepare", "K611", "K616", "TDX24", "K618", "K619", "K70", "K72", "K72-nullchk", "NEXTHOOK", "IP8", "IPDEV",
            ],
            KernelProfiles.All.Select(profile => profile.Id));
        foreach (KernelProfile profile in KernelProfiles.All)
        {
            Assert.Same(profile, KernelProfiles.Find(profile.Id));
            Assert.Same(profile, KernelProfiles.Find(profile.Id.ToLowerInvariant()));
        }
        Assert.Null(KernelProfiles.Find("K1"));
        Assert.Same(KernelProfiles.K72, KernelProfiles.Default);
    }

    [Fact]
    public void EveryProfileButTheFirst_DiffersFromItsParent_AndTheParentIsOlder()
    {
        for (int i = 0; i < KernelProfiles.All.Count; i++)
        {
            KernelProfile profile = KernelProfiles.All[i];
            if (i == 0)
            {
                Assert.Null(profile.Parent);
                continue;
            }
            Assert.Contains(profile.Parent!, KernelProfiles.All.Take(i));
            BehaviourDelta[] deltas = [.. KernelProfiles.Differences(profile.Parent!, profile)];
            Assert.NotEmpty(deltas);
            Assert.All(deltas, delta => Assert.True(delta.Source.Length > 0 && delta.Before != delta.After));
        }
    }

    [Fact]
    public void EveryBehaviour_HasASource()
    {
        string[] identity = [nameof(KernelProfile.Id), nameof(KernelProfile.Title), nameof(KernelProfile.Proposed), nameof(KernelProfile.Parent)];
        string[] without = typeof(KernelProfile).GetProperties()
            .Where(property => property.GetCustomAttributes(typeof(SourceAttribute), inherit: false).Length == 0)
            .Select(property => property.Name).ToArray();
        Assert.Equal(identity, without);
    }

    [Fact]
    public void Differences_OfAProfileFromItself_AreNone() => Assert.Empty(KernelProfiles.Differences(KernelProfiles.K72, KernelProfiles.K72));

    // Section 14 and snp.md 3.1, spelt out.
    [Fact]
    public void SnpPolicyMasks_AreThoseOfTheSpecification()
    {
        const ulong bits0To17 = 0x3_ffff;
        Assert.Equal(bits0To17 | (1 << 19) | (1 << 20), KernelProfiles.K616.SnpPolicyMask);
        Assert.Equal(bits0To17 | (0x7fUL << 19), KernelProfiles.K72.SnpPolicyMask);
    }
}
