using VmmService.Client;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Conformance;

// The guest touches memory, or user space does it ahead of the guest.
public sealed partial class MustPassScenarios
{
    [Fact]
    public async Task Scenario_12_PrivateGpa_SlotWithoutGuestMemfd_IsAPrivateMemoryFault()
    {
        await using GuestBench bench = await GuestBench.CreateAsync(daemon);
        await bench.AddSlot(0, 0, 4);
        await bench.SetPrivate(0, 4);

        RunResponse run = await bench.Run(Guest.Read(2 * Page + 0x123, 8));

        AssertRefused("EFAULT", "kvm.fault.no-gmem", run.Outcome);
        Assert.Equal(39u, run.Run.ExitReason);
        Assert.Equal((8ul, 2 * Page, Page), (run.Run.MemoryFault.Flags, run.Run.MemoryFault.Gpa, run.Run.MemoryFault.Size));
        Assert.Equal(0u, run.NextStep);
    }

    [Fact]
    public async Task Scenario_12_AfterTheConversion_TheSameAccessSucceeds()
    {
        await using GuestBench bench = await GuestBench.CreateAsync(daemon);
        ulong uaddr = await bench.AddSlot(0, 0, 4);
        await bench.Process.WriteAsync(uaddr + (2 * Page), new byte[] { 7, 8, 9 });
        await bench.SetPrivate(0, 4);
        await bench.Run(Guest.Read(2 * Page, 3), Guest.Halt());

        await bench.SetShared(2 * Page, 1);
        RunResponse again = await bench.Continue();

        Assert.Equal((0, KernelNumbers.KVM_EXIT_HLT), (again.Outcome.Errno, again.Run.ExitReason));
        Assert.Equal([7, 8, 9], again.Results[0].Data.ToByteArray());
    }

    [Fact]
    public async Task Scenario_15_PreFaultOfThreePages_ThirdWithoutSlot()
    {
        await using GuestBench bench = await GuestBench.CreateAsync(daemon);
        await bench.AddSlot(0, 0, 2);

        PreFaultMemoryResponse first = await bench.PreFault(0, 3 * Page);
        PreFaultMemoryResponse second = await bench.PreFault(first.Range.Gpa, first.Range.Size);

        Assert.Equal((0, 2 * Page, Page), (first.Outcome.Errno, first.Range.Gpa, first.Range.Size));
        AssertRefused("ENOENT", "kvm.pre-fault.no-slot", second.Outcome);
        Assert.Equal((2 * Page, Page), (second.Range.Gpa, second.Range.Size));
    }

    [Theory]
    [InlineData(0, 0, "kvm.pre-fault.range")]
    [InlineData(4096, 1, "kvm.pre-fault.flags")]
    public async Task Scenario_16_BadPreFault_IsEinvalAndEchoesTheStructure(ulong size, ulong flags, string rule)
    {
        await using GuestBench bench = await GuestBench.CreateAsync(daemon);
        await bench.AddSlot(0, 0, 2);
        PreFaultMemoryResponse refused = await bench.PreFault(Page, size, flags);
        AssertRefused("EINVAL", rule, refused.Outcome);
        Assert.Equal((Page, size, flags), (refused.Range.Gpa, refused.Range.Size, refused.Range.Flags));
    }

    [Fact]
    public async Task Scenario_17_PreFaultOfAPrivatePage_WhoseFileIsClosed_IsEfault()
    {
        await using GuestBench bench = await GuestBench.CreateAsync(daemon);
        Client.GuestMemfd memfd = await bench.AddGmemSlot(0, 0, 4);
        await bench.SetPrivate(0, 4);
        Assert.Equal(0, (await bench.PreFault(0, Page)).Outcome.Errno);

        await memfd.CloseAsync();

        AssertRefused("EFAULT", "kvm.gmem.file-gone", (await bench.PreFault(0, Page)).Outcome);
    }

    [Fact]
    public async Task Scenario_18_PunchHoleUnderTheGuest_GivesItANewZeroPage()
    {
        await using GuestBench bench = await GuestBench.CreateAsync(daemon);
        Client.GuestMemfd memfd = await bench.AddGmemSlot(0, 0, 4);
        await bench.SetPrivate(0, 4);
        await bench.GuestWrite(Page, 1, 2, 3);
        await bench.GuestWrite(2 * Page, 4, 5, 6);
        (ulong seq, ulong pages) = (await bench.Seq(), await bench.AllocatedPages());

        await memfd.PunchHoleAsync((long)Page, (long)Page);

        Assert.Equal((seq + 1, pages - 1), (await bench.Seq(), await bench.AllocatedPages()));
        Assert.Equal([0, 0, 0], await bench.GuestRead(Page, 3));
        Assert.Equal([4, 5, 6], await bench.GuestRead(2 * Page, 3));
        Assert.Equal(pages, await bench.AllocatedPages());
    }

    [Theory]
    [InlineData(1, "EFAULT")]
    [InlineData(3, "")]
    public async Task Scenario_21_TouchOfAMappedGuestMemfd_IsSigbusUnlessItBeganShared(ulong flags, string errno)
    {
        await using GuestBench bench = await GuestBench.CreateAsync(daemon, VmType.Default);
        Client.GuestMemfd memfd = await bench.Vm.CreateGuestMemfdAsync(Page, flags);
        ulong mapping = await bench.Process.MmapAsync(new MmapRequest { Length = Page, Prot = 3, Flags = KernelNumbers.MAP_SHARED, Fd = memfd.Fd });

        ReadMemoryResponse touch = await bench.Process.ReadAsync(mapping, Page).Reply;

        Assert.Equal(errno, touch.Outcome.ErrnoName);
        if (errno.Length == 0)
            Assert.Equal(new byte[Page], touch.Data.ToByteArray());
        else
            Assert.Contains("SIGBUS", touch.Outcome.Causes[0].Sentence, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(false, 4ul, unchecked((ulong)-1000L))]
    [InlineData(true, 0ul, unchecked((ulong)-22L))]
    public async Task Scenario_22_MapGpaRange_NotEnabledOrEmpty_AnswersTheGuest(bool enabled, ulong pages, ulong rax)
    {
        await using GuestBench bench = await GuestBench.CreateAsync(daemon);
        if (enabled)
            await EnableHypercallExit(bench);
        RunResponse run = await bench.Run(Guest.MapGpaRange(Page, pages, isPrivate: true), Guest.Halt());
        Assert.Equal((0, KernelNumbers.KVM_EXIT_HLT), (run.Outcome.Errno, run.Run.ExitReason));
        Assert.Equal(rax, run.Results[0].Rax);
    }

    [Fact]
    public async Task Scenario_22_MapGpaRange_Enabled_IsAnExitWithItsArguments()
    {
        await using GuestBench bench = await GuestBench.CreateAsync(daemon);
        await EnableHypercallExit(bench);

        RunResponse exit = await bench.Run(Guest.MapGpaRange(Page, 4, isPrivate: true), Guest.Halt());
        RunResponse after = await bench.Continue(new RunPageUpdate { HypercallRet = 5 });

        Assert.Equal((0, 3u), (exit.Outcome.Errno, exit.Run.ExitReason));
        HypercallExit call = exit.Run.Hypercall;
        Assert.Equal((12ul, 0ul, 1ul), (call.Nr, call.Ret, call.Flags));
        Assert.Equal([Page, 4, 0x10, 0, 0, 0], call.Args);
        Assert.Equal((KernelNumbers.KVM_EXIT_HLT, 5ul), (after.Run.ExitReason, after.Results[0].Rax));
    }

    private static async Task EnableHypercallExit(GuestBench bench) =>
        await bench.Vm.EnableCapAsync(new KvmEnableCap { Cap = (uint)KernelNumbers.KVM_CAP_EXIT_HYPERCALL, Args = { 1 << (int)KernelNumbers.KVM_HC_MAP_GPA_RANGE } });
}
