using VmmService.Client;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Guests;

/// <summary>The MSR protocol of the GHCB: what a guest asks before it has a GHCB (snp.md 6.1).</summary>
public sealed class GhcbMsrTests(Daemon daemon) : IClassFixture<Daemon>
{
    [Fact]
    public async Task SevInfo_SaysTheVersionsAndTheCBit()
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon);
        Assert.Equal((2UL << 48) | (1UL << 32) | (51UL << 24) | 0x001, await Ask(guest, GhcbGuest.SevInfo()));
    }

    [Fact]
    public async Task HypervisorFeatures_AreSnpAndApCreation()
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon);
        Assert.Equal(0x3081UL, await Ask(guest, GhcbGuest.HypervisorFeatures()));
    }

    [Fact]
    public async Task APreferredGhcb_ThereIsNone_AndTheOneThatIsRegisteredIsEchoed()
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon);
        Assert.Equal(0xffff_ffff_ffff_f011UL, await Ask(guest, GhcbGuest.PreferredGhcb()));
        Assert.Equal(SnpGuest.Ghcb | 0x013, await Ask(guest, GhcbGuest.RegisterGhcb(SnpGuest.Ghcb)));
    }

    [Fact]
    public async Task Cpuid_GivesOneRegisterOfWhatTheVmmSet()
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon);
        await guest.Vcpu.SetCpuid2Async([new KvmCpuidEntry2 { Function = 0x4000_0000, Eax = 1, Ebx = 2, Ecx = 3, Edx = 0xdead_beef }]);
        for (uint register = 0; register < 4; register++)
        {
            ulong answer = await Ask(guest, GhcbGuest.Cpuid(0x4000_0000, register));
            Assert.Equal((0x005UL, register == 3 ? 0xdead_beef : register + 1UL), (answer & 0xfff, answer >> 32));
        }
        Assert.Equal(0x005UL, await Ask(guest, GhcbGuest.Cpuid(0x4000_0001, 0)) & 0xffff_ffff_3fff_ffff);
    }

    [Fact]
    public async Task Terminate_IsASystemEventWithTheReason_AndTheVcpuCanGoOn()
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon);
        RunResponse run = await guest.Run(GhcbGuest.Terminate(reasonSet: 1, reason: 3), Guest.Halt());
        Assert.Equal((0, KernelNumbers.KVM_EXIT_SYSTEM_EVENT), (run.Outcome.Errno, run.Run.ExitReason));
        Assert.Equal(KernelNumbers.KVM_SYSTEM_EVENT_SEV_TERM, run.Run.SystemEvent.Type);
        Assert.Equal([0x3_1100UL], run.Run.SystemEvent.Data);
        Assert.Equal(KernelNumbers.KVM_EXIT_HLT, (await guest.Continue()).Run.ExitReason);
    }

    [Fact]
    public async Task ApResetHold_ExitsToUserSpace_AndAnswersThatNoSipiCame()
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon);
        RunResponse run = await guest.Run(GhcbGuest.Vmgexit(0x006), Guest.Halt());
        Assert.Equal((0, KernelNumbers.KVM_EXIT_AP_RESET_HOLD), (run.Outcome.Errno, run.Run.ExitReason));
        Assert.Equal(0x007UL, run.Results.Single().Rax);
    }

    [Fact]
    public async Task AnUnknownRequest_LeavesTheMsrAsItWas()
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon);
        Assert.Equal(0x1234_5999UL, await Ask(guest, GhcbGuest.Vmgexit(0x1234_5999)));
    }

    [Theory]
    [InlineData(true, 0UL, 0x015UL)]
    [InlineData(false, 0UL, 0x015UL)]
    [InlineData(true, 22UL, 0x8000_0000_0000_0015UL)]
    public async Task APageStateChange_IsAHypercallExit_AndTheVmmsAnswerReachesTheGuest(bool isPrivate, ulong ret, ulong msr)
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon);
        RunResponse run = await guest.Run(GhcbGuest.PageState(5 * SnpGuest.Page, isPrivate), Guest.Halt());
        Assert.Equal((0, KernelNumbers.KVM_EXIT_HYPERCALL), (run.Outcome.Errno, run.Run.ExitReason));
        Assert.Equal(0UL, run.Run.Hypercall.Ret);
        Assert.Equal([5 * SnpGuest.Page, 1, isPrivate ? 0x10UL : 0], run.Run.Hypercall.Args.Take(3));
        Assert.Equal(KernelNumbers.KVM_HC_MAP_GPA_RANGE, run.Run.Hypercall.Nr);

        run = await guest.Continue(new RunPageUpdate { HypercallRet = ret });
        Assert.Equal((KernelNumbers.KVM_EXIT_HLT, msr), (run.Run.ExitReason, run.Results[0].Rax));
        Assert.Equal(ret == 0 ? [] : ["sev.psc.refused"], run.Results[0].Causes.Select(cause => cause.Rule));
    }

    [Fact]
    public async Task APageStateChange_WithoutTheHypercallExit_IsRefusedAtOnce()
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon, hypercallExits: false);
        RunResponse run = await guest.Run(GhcbGuest.PageState(0, isPrivate: true), Guest.Halt());
        Assert.Equal((KernelNumbers.KVM_EXIT_HLT, 0x8000_0000_0000_0015UL), (run.Run.ExitReason, run.Results[0].Rax));
        Assert.Equal("sev.psc.hypercall-exit", run.Results[0].Causes.Single().Rule);
        Assert.Empty(run.Outcome.Causes);
    }

    [Theory]
    [InlineData(0UL)]
    [InlineData(3UL)]
    [InlineData(15UL)]
    public async Task APageStateChange_OfAnotherOperation_IsRefusedAtOnce(ulong operation)
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon);
        Assert.Equal(0x8000_0000_0000_0015UL, await Ask(guest, GhcbGuest.Vmgexit((operation << 52) | 0x5014)));
    }

    [Fact]
    public async Task OutsideOfSevEs_VmgexitIsAnUndefinedInstruction()
    {
        await using GuestBench bench = await GuestBench.CreateAsync(daemon, VmType.SwProtected);
        RunResponse run = await bench.Run(GhcbGuest.SevInfo(), Guest.Halt());
        Assert.Equal("#UD", run.Results[0].Exception.Name);
    }

    private static async Task<ulong> Ask(SnpGuest guest, GuestStep step) => (await guest.RunToHalt(step))[0].Rax;
}
