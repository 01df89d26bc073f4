using VmmService.Client;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Conformance;

/// <summary>
/// The must-pass scenarios of the specification of guest memory (its section 15), each by its number, as a client sees them. T is a software-protected VM. Here are files,
/// slots and attributes; next door faults, launch updates and conversion in place. Scenarios 13, 14, 29 and 30 need a second thread, a second process or the kernel's own
/// tables: they stand in the tests of the simulated kernel.
/// </summary>
public sealed partial class MustPassScenarios(Daemon daemon) : IClassFixture<Daemon>
{
    private const ulong Page = GuestBench.Page;
    private const ulong TwoMib = 512;
    private const uint GMEM = KernelNumbers.KVM_MEM_GUEST_MEMFD;
    private const ulong PRIVATE = KernelNumbers.KVM_MEMORY_ATTRIBUTE_PRIVATE;

    [Theory]
    [InlineData(0, 0, "kvm.gmem.create.size")]
    [InlineData(4097, 0, "kvm.gmem.create.size")]
    [InlineData(4096, 4, "kvm.gmem.create.flags")]
    public async Task Scenario_01_GuestMemfdOfSize0OrUnalignedOrUnknownFlags_IsEinval(ulong size, ulong flags, string rule)
    {
        await using GuestBench bench = await GuestBench.CreateAsync(daemon);
        AssertRefused("EINVAL", rule, await bench.TryCreateMemfd(size, flags));
    }

    [Fact]
    public async Task Scenario_02_InitShared_IsForVmsWithoutPrivateMemory()
    {
        await using GuestBench t = await GuestBench.CreateAsync(daemon);
        await using GuestBench plain = await GuestBench.CreateAsync(daemon, VmType.Default);
        AssertRefused("EINVAL", "kvm.gmem.create.flags", await t.TryCreateMemfd(Page, KernelNumbers.GUEST_MEMFD_FLAG_INIT_SHARED));
        Assert.Equal(0, (await plain.TryCreateMemfd(Page, KernelNumbers.GUEST_MEMFD_FLAG_INIT_SHARED)).Errno);
    }

    [Theory]
    [InlineData("K72", "EEXIST")]
    [InlineData("K70", "EINVAL")]
    [InlineData("K68", "EINVAL")]
    public async Task Scenario_03_OverlappingBindings_AreEexist_AndWereEinval(string profile, string errno)
    {
        await using GuestBench bench = await GuestBench.CreateAsync(daemon, profile: profile);
        Client.GuestMemfd memfd = await bench.Vm.CreateGuestMemfdAsync(4 * TwoMib * Page);
        await bench.Vm.SetUserMemoryRegion2Async(GuestBench.Region(1, GMEM, 0, TwoMib, memfd: memfd.Fd));
        Outcome overlap = await bench.TrySetRegion(GuestBench.Region(2, GMEM, 1UL << 30, TwoMib, memfd: memfd.Fd, offset: TwoMib / 2 * Page));
        AssertRefused(errno, "kvm.gmem.bind.overlap", overlap);
    }

    [Fact]
    public async Task Scenario_04_OverlappingGpa_ComesBeforeABadFd()
    {
        await using GuestBench bench = await GuestBench.CreateAsync(daemon);
        await bench.AddGmemSlot(1, 0, TwoMib);
        AssertRefused("EEXIST", "kvm.memslot.overlap", await bench.TrySetRegion(GuestBench.Region(2, GMEM, 0, TwoMib, memfd: 999)));
    }

    [Theory]
    [InlineData(KernelNumbers.KVM_MEM_READONLY)]
    [InlineData(KernelNumbers.KVM_MEM_LOG_DIRTY_PAGES)]
    public async Task Scenario_05_GuestMemfdSlot_IsNeitherReadOnlyNorDirtyLogged(uint flag)
    {
        await using GuestBench bench = await GuestBench.CreateAsync(daemon);
        Client.GuestMemfd memfd = await bench.Vm.CreateGuestMemfdAsync(TwoMib * Page);
        AssertRefused("EINVAL", "kvm.memslot.flags", await bench.TrySetRegion(GuestBench.Region(1, GMEM | flag, 0, TwoMib, memfd: memfd.Fd)));
    }

    [Fact]
    public async Task Scenario_06_GuestMemfdSlotAgainUnchanged_IsEinval()
    {
        await using GuestBench bench = await GuestBench.CreateAsync(daemon);
        Client.GuestMemfd memfd = await bench.AddGmemSlot(1, 0, TwoMib);
        AssertRefused("EINVAL", "kvm.memslot.gmem-immutable", await bench.TrySetRegion(GuestBench.Region(1, GMEM, 0, TwoMib, memfd: memfd.Fd)));
    }

    [Fact]
    public async Task Scenario_07_DeleteWithTheFlagAndAnyFd_Succeeds()
    {
        await using GuestBench bench = await GuestBench.CreateAsync(daemon);
        await bench.AddGmemSlot(1, 0, TwoMib);
        Assert.Equal(0, (await bench.TrySetRegion(GuestBench.Region(1, GMEM, 0, 0, memfd: -1))).Errno);
        Assert.Empty((await bench.Vm.DescribeAsync()).Slots);
    }

    [Fact]
    public async Task Scenario_08_AttributesWithoutSlots_LeaveSeqAlone()
    {
        await using GuestBench bench = await GuestBench.CreateAsync(daemon);
        ulong before = await bench.Seq();
        await bench.SetPrivate(0, TwoMib);
        Assert.Equal(before, await bench.Seq());
    }

    [Fact]
    public async Task Scenario_09_AttributesTwice_AreANoOpTheSecondTime()
    {
        await using GuestBench bench = await GuestBench.CreateAsync(daemon);
        await bench.AddGmemSlot(1, 0, TwoMib);
        ulong before = await bench.Seq();
        await bench.SetPrivate(0, TwoMib);
        Assert.Equal(before + 1, await bench.Seq());
        await bench.SetPrivate(0, TwoMib);
        Assert.Equal(before + 1, await bench.Seq());
    }

    [Theory]
    [InlineData(0, 4096, 1, 0, "kvm.attributes.unsupported")]
    [InlineData(0, 0, 8, 0, "kvm.attributes.range")]
    [InlineData(1, 4096, 8, 0, "kvm.attributes.alignment")]
    [InlineData(0, 4096, 8, 1, "kvm.attributes.flags")]
    public async Task Scenario_10_BadAttributes_AreEinval(ulong address, ulong size, ulong attributes, ulong flags, string rule)
    {
        await using GuestBench bench = await GuestBench.CreateAsync(daemon);
        AssertRefused("EINVAL", rule, await bench.TrySetAttributes(address, size, attributes, flags));
    }

    [Fact]
    public async Task Scenario_11_DefaultVm_KnowsNoPrivateAttribute()
    {
        await using GuestBench bench = await GuestBench.CreateAsync(daemon, VmType.Default);
        AssertRefused("EINVAL", "kvm.attributes.unsupported", await bench.TrySetAttributes(0, Page, PRIVATE));
        Assert.Equal(0, (await bench.TrySetAttributes(0, Page, 0)).Errno);
    }

    [Fact]
    public async Task Scenario_19_PunchHolePastTheEnd_Succeeds()
    {
        await using GuestBench bench = await GuestBench.CreateAsync(daemon);
        Client.GuestMemfd memfd = await bench.Vm.CreateGuestMemfdAsync(4 * Page);
        Assert.Equal(0, (await memfd.PunchHoleAsync(8 * 4096, 4096).Reply).Outcome.Errno);
        Assert.Equal(0, (await memfd.PunchHoleAsync(2 * 4096, 1L << 40).Reply).Outcome.Errno);
    }

    [Theory]
    [InlineData(0, 0, 4096, "EOPNOTSUPP", "kvm.gmem.fallocate.mode")]
    [InlineData(3, 1, 4096, "EINVAL", "kvm.gmem.fallocate.alignment")]
    [InlineData(1, 4 * 4096, 4096, "EINVAL", "kvm.gmem.allocate.size")]
    public async Task Scenario_20_BadFallocate(uint mode, long offset, long len, string errno, string rule)
    {
        await using GuestBench bench = await GuestBench.CreateAsync(daemon);
        Client.GuestMemfd memfd = await bench.Vm.CreateGuestMemfdAsync(4 * Page);
        AssertRefused(errno, rule, (await memfd.FallocateAsync(mode, offset, len).Reply).Outcome);
    }

    // The errno, and the check that refused first.
    private static void AssertRefused(string errno, string rule, Outcome outcome)
    {
        Assert.Equal(errno, outcome.ErrnoName);
        Assert.Equal(rule, outcome.Causes[0].Rule);
    }
}
