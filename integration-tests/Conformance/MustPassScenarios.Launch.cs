using System.Buffers.Binary;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Conformance;

// kvm_gmem_populate, through SNP_LAUNCH_UPDATE, which flattens its errno to EIO: the first cause has what populate answered.
public sealed partial class MustPassScenarios
{
    [Theory]
    [InlineData("POP24", "kvm.gmem.populate.exists")]
    [InlineData("K611", "kvm.gmem.populate.prepared")]
    [InlineData("K616", "kvm.gmem.populate.prepared")]
    [InlineData("K618", "kvm.gmem.populate.prepared")]
    [InlineData("K70", "sev.snp.update.assigned")]
    [InlineData("K72", "sev.snp.update.assigned")]
    public async Task Scenario_23_PopulateTwice_IsEexist_ByGenericCodeThenByTheVendor(string profile, string rule)
    {
        await using GuestBench bench = await GuestBench.StartSnpAsync(daemon, 4, profile);
        Assert.Equal(0, (await bench.Populate(0, 1, GuestBench.Filled(1))).Outcome.Errno);
        AssertPopulateRefused("EEXIST", rule, await bench.Populate(0, 1, GuestBench.Filled(1)));
    }

    [Theory]
    [InlineData("POP24", false)]
    [InlineData("K611", true)]
    [InlineData("K616", true)]
    [InlineData("K619", true)]
    [InlineData("K72", true)]
    public async Task Scenario_24_PopulateOfAGpaThatIsNotPrivate_IsEinval_ButNotIn2024(string profile, bool refused)
    {
        await using GuestBench bench = await GuestBench.StartSnpAsync(daemon, 4, profile);
        await bench.SetShared(0, 1);
        SnpLaunchUpdateResponse update = await bench.Populate(0, 1, GuestBench.Filled(1));
        if (refused)
            AssertPopulateRefused("EINVAL", "kvm.gmem.populate.gfn-not-private", update);
        else
            Assert.Equal((0, 0ul), (update.Outcome.Errno, update.Update.Len));
    }

    [Theory]
    [InlineData("POP24", true)]
    [InlineData("K611", false)]
    [InlineData("K616", false)]
    [InlineData("K72", false)]
    public async Task Scenario_25_FallocateThenPopulate_IsFine_ButWasEexistIn2024(string profile, bool refused)
    {
        await using GuestBench bench = await GuestBench.StartSnpAsync(daemon, 4, profile);
        await bench.Memfd.FallocateAsync(1, 0, 4 * 4096);
        SnpLaunchUpdateResponse update = await bench.Populate(0, 1, GuestBench.Filled(1));
        if (refused)
            AssertPopulateRefused("EEXIST", "kvm.gmem.populate.exists", update);
        else
            Assert.Equal((0, 0ul), (update.Outcome.Errno, update.Update.Len));
    }

    [Theory]
    [InlineData("POP24", 2)]
    [InlineData("K611", 3)]
    [InlineData("K616", 3)]
    [InlineData("K72", 3)]
    public async Task Scenario_26_CallbackFailsOnPage3Of5_TwoAreDone_AndTheThirdIsPunchedOrKept(string profile, int pagesInTheFile)
    {
        await using GuestBench bench = await GuestBench.StartSnpAsync(daemon, 16, profile);
        // The daemon's copy of the content is mapped and touched from here on.
        Assert.Equal(0ul, (await bench.Populate(8, 5, new byte[5 * 4096], SnpPageType.Cpuid)).Update.Len);
        ulong before = await bench.AllocatedPages();

        byte[] content = new byte[5 * 4096];
        RefusedCpuidPage().CopyTo(content, 2 * 4096);
        SnpLaunchUpdateResponse update = await bench.Populate(0, 5, content, SnpPageType.Cpuid);

        Assert.Equal(0, update.Outcome.Errno);
        Assert.Equal((2ul, 3 * Page), (update.Update.GfnStart, update.Update.Len));
        Assert.Equal(before + (ulong)pagesInTheFile, await bench.AllocatedPages());
        // Absent, or present and not up to date: either way it can be populated now.
        Assert.Equal(0ul, (await bench.Populate(2, 3, new byte[3 * 4096], SnpPageType.Cpuid)).Update.Len);
        Assert.Equal(before + 5, await bench.AllocatedPages());
    }

    // One function that no platform answers with all ones.
    private static byte[] RefusedCpuidPage()
    {
        byte[] page = new byte[Page];
        BinaryPrimitives.WriteUInt32LittleEndian(page, 1);
        BinaryPrimitives.WriteUInt32LittleEndian(page.AsSpan(16), 0xffff);
        page.AsSpan(16 + 24, 16).Fill(0xff);
        return page;
    }

    private static void AssertPopulateRefused(string code, string rule, SnpLaunchUpdateResponse update)
    {
        Assert.Equal("EIO", update.Outcome.ErrnoName);
        Assert.Equal((code, rule), (update.Outcome.Causes[0].Code, update.Outcome.Causes[0].Rule));
        Assert.Equal("sev.snp.update.populate", update.Outcome.Causes[^1].Rule);
    }
}
