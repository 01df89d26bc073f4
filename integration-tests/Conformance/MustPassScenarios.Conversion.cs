using VmmService.Client;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Conformance;

// Conversion in place, which was proposed and not merged.
public sealed partial class MustPassScenarios
{
    private const ulong MappedShared = KernelNumbers.GUEST_MEMFD_FLAG_MMAP | KernelNumbers.GUEST_MEMFD_FLAG_INIT_SHARED;

    [Theory]
    [InlineData("IP8")]
    [InlineData("IPDEV")]
    public async Task Scenario_27_ConversionToPrivate_WithAHostPinOnPage7_IsEagain(string profile)
    {
        await using GuestBench bench = await GuestBench.CreateAsync(daemon, profile: profile);
        Client.GuestMemfd memfd = await bench.AddGmemSlot(0, 0, 16, flags: MappedShared);
        ulong mapping = await MapShared(bench, memfd);
        ulong pin = await bench.Process.PinPagesAsync(mapping + (7 * Page), Page, write: true);

        SetMemoryAttributes2Response refused = await memfd.SetMemoryAttributes2Async(0, 16 * Page, PRIVATE).Reply;

        AssertRefused("EAGAIN", "kvm.gmem.attributes.in-use", refused.Outcome);
        Assert.Equal(7 * Page, refused.ErrorOffset);
        // Nothing was converted: the host reads every page.
        Assert.Equal(new byte[16 * Page], (await bench.Process.ReadAsync(mapping, 16 * Page)).ToArray());

        await bench.Process.UnpinPagesAsync(pin);
        Assert.Equal(0, (await memfd.SetMemoryAttributes2Async(0, 16 * Page, PRIVATE).Reply).Outcome.Errno);
    }

    [Theory]
    [InlineData("IP8")]
    [InlineData("IPDEV")]
    public async Task Scenario_28_HostReadOfAPrivatePage_IsSigbus(string profile)
    {
        await using GuestBench bench = await GuestBench.CreateAsync(daemon, profile: profile);
        Client.GuestMemfd memfd = await bench.AddGmemSlot(0, 0, 4, flags: MappedShared);
        ulong mapping = await MapShared(bench, memfd);
        await bench.Process.WriteAsync(mapping, GuestBench.Filled(4));
        await memfd.SetMemoryAttributes2Async(Page, Page, PRIVATE);

        ReadMemoryResponse read = await bench.Process.ReadAsync(mapping, 4 * Page).Reply;

        AssertRefused("EFAULT", "kvm.gmem.fault.private", read.Outcome);
        Assert.Contains("SIGBUS", read.Outcome.Causes[0].Sentence, StringComparison.Ordinal);
        Assert.Equal(GuestBench.Filled(1), read.Data.ToByteArray());
        Assert.Equal(GuestBench.Filled(2, 3), (await bench.Process.ReadAsync(mapping + (2 * Page), 2 * Page)).ToArray());
    }

    private static async Task<ulong> MapShared(GuestBench bench, Client.GuestMemfd memfd) =>
        await bench.Process.MmapAsync(new MmapRequest { Length = memfd.Size, Prot = 3, Flags = KernelNumbers.MAP_SHARED, Fd = memfd.Fd });
}
