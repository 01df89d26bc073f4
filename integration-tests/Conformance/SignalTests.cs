using VmmService.Client;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Conformance;

/// <summary>A signal that arrives in the middle of a call: what each interruptible loop answers, and what is done by then.</summary>
public sealed class SignalTests(Daemon daemon) : IClassFixture<Daemon>
{
    private const ulong Page = GuestBench.Page;

    [Fact]
    public async Task Run_IsEintrWithExitIntr_AndGoesOnWhereItWas()
    {
        await using GuestBench bench = await GuestBench.CreateAsync(daemon);
        await bench.AddSlot(0, 0, 4);
        await bench.PreFault(0, 4 * Page);
        await bench.Vcpu.LoadProgramAsync([Guest.Write(0, [1]), Guest.Write(Page, [2]), Guest.Halt()]);
        await bench.Process.RaiseSignalAsync(afterChecks: 0);

        RunResponse stopped = await bench.Continue();
        RunResponse done = await bench.Continue();

        Assert.Equal(("EINTR", KernelNumbers.KVM_EXIT_INTR, 0u), (stopped.Outcome.ErrnoName, stopped.Run.ExitReason, stopped.NextStep));
        Assert.Equal((0, KernelNumbers.KVM_EXIT_HLT, 3u), (done.Outcome.Errno, done.Run.ExitReason, done.NextStep));
    }

    [Fact]
    public async Task PreFault_Is0WithTheRest_ThenEintr()
    {
        await using GuestBench bench = await GuestBench.CreateAsync(daemon);
        await bench.AddSlot(0, 0, 4);
        // The loop and the fault look once each for a page.
        await bench.Process.RaiseSignalAsync(afterChecks: 4);
        PreFaultMemoryResponse partial = await bench.PreFault(0, 4 * Page);
        await bench.Process.RaiseSignalAsync(afterChecks: 0);
        PreFaultMemoryResponse none = await bench.PreFault(partial.Range.Gpa, partial.Range.Size);

        Assert.Equal((0, 2 * Page, 2 * Page), (partial.Outcome.Errno, partial.Range.Gpa, partial.Range.Size));
        Assert.Equal(("EINTR", 2 * Page), (none.Outcome.ErrnoName, none.Range.Gpa));
    }

    [Fact]
    public async Task Allocate_IsEintr_AndWhatIsDoneStays()
    {
        await using GuestBench bench = await GuestBench.CreateAsync(daemon);
        Client.GuestMemfd memfd = await bench.Vm.CreateGuestMemfdAsync(8 * Page);
        ulong before = await bench.AllocatedPages();
        await bench.Process.RaiseSignalAsync(afterChecks: 3);

        FallocateResponse stopped = await memfd.FallocateAsync(1, 0, 8 * 4096).Reply;

        Assert.Equal(("EINTR", before + 3), (stopped.Outcome.ErrnoName, await bench.AllocatedPages()));
        Assert.Equal(0, (await memfd.FallocateAsync(1, 0, 8 * 4096).Reply).Outcome.Errno);
        Assert.Equal(before + 8, await bench.AllocatedPages());
    }

    [Theory]
    [InlineData("K611", true)]
    [InlineData("K72", true)]
    [InlineData("POP24", false)]
    public async Task Populate_StopsBetweenPages_ButDidNotIn2024(string profile, bool stops)
    {
        await using GuestBench bench = await GuestBench.StartSnpAsync(daemon, 8, profile);
        await bench.Process.RaiseSignalAsync(afterChecks: 2);
        SnpLaunchUpdateResponse update = await bench.Populate(0, 5, GuestBench.Filled(5));
        Assert.Equal((0, stops ? 3 * Page : 0), (update.Outcome.Errno, update.Update.Len));
    }
}
