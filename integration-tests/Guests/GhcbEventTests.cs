using Google.Protobuf;
using VmmService.Client;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Guests;

/// <summary>Events by a GHCB page: its checks, and the exits of the architecture that a guest's #VC handler asks for (snp.md 6.2).</summary>
public sealed class GhcbEventTests(Daemon daemon) : IClassFixture<Daemon>
{
    private const uint MtrrFix64K = 0x250;
    private const ulong Cpuid = 0x72, Ioio = 0x7B, Msr = 0x7C, Vmmcall = 0x81, MmioRead = 0x8000_0001, MmioWrite = 0x8000_0002;

    [Theory]
    [InlineData("K72", "")]
    [InlineData("K70", "EINVAL")]
    [InlineData("K611", "EINVAL")]
    public async Task AGhcbThatIsNotRegistered_IsAnswered_ButFailedTheRunOnce(string profile, string errno)
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon, profile);
        RunResponse run = await guest.Run(GhcbGuest.Call(Event(0x8000_FFFD)), Guest.Halt());
        Assert.Equal(errno, run.Outcome.ErrnoName);
        if (errno.Length > 0)
        {
            Assert.Equal("sev.vmgexit.not-registered", run.Outcome.Causes.Single().Rule);
            // VMGEXIT is a trap: run again, the guest goes on behind it, with the GHCB as it left it.
            run = await guest.Continue();
        }
        GuestStepResult result = SnpGuest.Last(run);
        Assert.Equal(errno.Length == 0 ? (2UL, 1UL) : (0UL, 0UL), (result.Ghcb.ExitInfo1, result.Ghcb.ExitInfo2));
        Assert.Equal(["sev.vmgexit.not-registered"], result.Causes.Select(cause => cause.Rule));
    }

    public static TheoryData<ulong, GuestGhcbCall> Malformed => new()
    {
        { 2, new GuestGhcbCall { ExitCode = 0x8000_FFFD, Usage = 1 } },
        { 4, new GuestGhcbCall { ExitCode = Cpuid, Rax = 1 } },
        { 4, new GuestGhcbCall { ExitCode = Cpuid, Rax = 0xd, Rcx = 0 } },
        { 4, new GuestGhcbCall { ExitCode = Ioio, ExitInfo1 = 0x3f8_0010 } },
        { 4, new GuestGhcbCall { ExitCode = Msr } },
        { 4, new GuestGhcbCall { ExitCode = Msr, ExitInfo1 = 1, Rcx = 0x277, Rax = 1 } },
        { 4, new GuestGhcbCall { ExitCode = Vmmcall, Rax = 1 } },
        { 4, new GuestGhcbCall { ExitCode = MmioRead, ExitInfo2 = 8 } },
        { 4, new GuestGhcbCall { ExitCode = 0x8000_0010 } },
        { 4, new GuestGhcbCall { ExitCode = 0x8000_0013, ExitInfo1 = 1 } },
        { 5, new GuestGhcbCall { ExitCode = 0x8000_0005, ExitInfo1 = 2 } },
        { 5, new GuestGhcbCall { ExitCode = Ioio, ExitInfo1 = 0x3f8_0030, Rax = 1 } },
        { 6, new GuestGhcbCall { ExitCode = 0x8000_0014 } },
        { 6, new GuestGhcbCall { ExitCode = 0x400 } },
        { 6, new GuestGhcbCall { ExitCode = 0x78 } },
    };

    [Theory]
    [MemberData(nameof(Malformed))]
    public async Task WhatAnEventLacks_IsSaidByItsReason(ulong reason, GuestGhcbCall call)
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon);
        call.GhcbGpa = SnpGuest.Ghcb;
        IReadOnlyList<GuestStepResult> results = await guest.RunToHalt(Register, GhcbGuest.Call(call));
        Assert.Equal((2UL, reason), (results[1].Ghcb.ExitInfo1, results[1].Ghcb.ExitInfo2));
        string rule = reason switch { 2 => "sev.vmgexit.usage", 4 => "sev.vmgexit.missing-input", 5 => "sev.vmgexit.input", _ => "sev.vmgexit.event" };
        Assert.Equal(rule, results[1].Causes[^1].Rule);
    }

    [Fact]
    public async Task CpuidMsrAndHypervisorFeatures_AreAnsweredWithoutAnExit()
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon);
        await guest.Vcpu.SetCpuid2Async([new KvmCpuidEntry2 { Function = 0x4000_0000, Eax = 1, Ebx = 2, Ecx = 3, Edx = 4 }]);
        GuestGhcbCall write = Event(Msr, info1: 1);
        (write.Rcx, write.Rax, write.Rdx) = (MtrrFix64K, 0x0606_0605, 0x0605_0606);
        GuestGhcbCall read = Event(Msr);
        read.Rcx = MtrrFix64K;
        GuestGhcbCall unknown = Event(Msr);
        unknown.Rcx = 0xdead_0000;
        GuestGhcbCall leaf = Event(Cpuid);
        (leaf.Rax, leaf.Rcx) = (0x4000_0000, 0);
        IReadOnlyList<GuestStepResult> results = await guest.RunToHalt(
            Register, GhcbGuest.Call(leaf), GhcbGuest.Call(Event(0x8000_FFFD)), GhcbGuest.Call(unknown), GhcbGuest.Call(write), GhcbGuest.Call(read));
        Assert.Equal((1UL, 2UL, 3UL, 4UL), (results[1].Ghcb.Rax, results[1].Ghcb.Rbx, results[1].Ghcb.Rcx, results[1].Ghcb.Rdx));
        Assert.Equal((0UL, 3UL), (results[2].Ghcb.ExitInfo1, results[2].Ghcb.ExitInfo2));
        // #GP: vector 13, exception with error code, valid.
        Assert.Equal((1UL, 0x8000_0B0DUL), (results[3].Ghcb.ExitInfo1, results[3].Ghcb.ExitInfo2));
        Assert.Equal((0UL, 0x0606_0605UL, 0x0605_0606UL), (results[5].Ghcb.ExitInfo1, results[5].Ghcb.Rax, results[5].Ghcb.Rdx));
    }

    [Fact]
    public async Task PortIo_IsAnExit_WithTheBytesOfRax_AndALoadComesBackInRax()
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon);
        GuestGhcbCall output = Event(Ioio, info1: 0x3f8_0020);
        output.Rax = 0x1122_3344;
        RunResponse run = await guest.Run(Register, GhcbGuest.Call(output), GhcbGuest.Call(Event(Ioio, info1: 0x3f9_0011)), Guest.Halt());
        Assert.Equal((true, 0x3f8u, 2u, "4433"), (run.Run.Io.Out, run.Run.Io.Port, run.Run.Io.Size, Convert.ToHexString(run.Run.Io.Data.Span)));
        run = await guest.Continue();
        Assert.Equal((false, 0x3f9u, 1u), (run.Run.Io.Out, run.Run.Io.Port, run.Run.Io.Size));
        run = await guest.Continue(new RunPageUpdate { IoData = ByteString.CopyFrom(0x77) });
        Assert.Equal((0UL, 0x77UL), (SnpGuest.Last(run).Ghcb.ExitInfo1, SnpGuest.Last(run).Ghcb.Rax));
    }

    [Fact]
    public async Task AStringOfPortIo_IsOneExitWithAllItsBytes()
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon);
        GuestGhcbCall output = Event(Ioio, info1: 0x3f8_001c, info2: 5);
        output.SharedBuffer = ByteString.CopyFromUtf8("hello");
        GuestGhcbCall input = Event(Ioio, info1: 0x3f8_001d, info2: 3);
        input.SharedBuffer = ByteString.CopyFrom(new byte[3]);
        RunResponse run = await guest.Run(Register, GhcbGuest.Call(output), GhcbGuest.Call(input), Guest.Halt());
        Assert.Equal((5u, "hello"), (run.Run.Io.Count, run.Run.Io.Data.ToStringUtf8()));
        run = await guest.Continue();
        Assert.Equal((false, 3u), (run.Run.Io.Out, run.Run.Io.Count));
        run = await guest.Continue(new RunPageUpdate { IoData = ByteString.CopyFromUtf8("yes") });
        Assert.Equal("yes", SnpGuest.Last(run).Data.ToStringUtf8());
    }

    [Fact]
    public async Task Mmio_GoesThroughTheScratchArea_EightBytesAnExit()
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon);
        GuestGhcbCall write = Event(MmioWrite, info1: 0xfee0_0000, info2: 12);
        write.SharedBuffer = ByteString.CopyFromUtf8("twelve bytes");
        GuestGhcbCall read = Event(MmioRead, info1: 0xfee0_0010, info2: 4);
        read.SharedBuffer = ByteString.CopyFrom(new byte[4]);
        RunResponse run = await guest.Run(Register, GhcbGuest.Call(write), GhcbGuest.Call(read), Guest.Halt());
        Assert.Equal((0xfee0_0000UL, 8u, true, "twelve b"), (run.Run.Mmio.PhysAddr, run.Run.Mmio.Len, run.Run.Mmio.IsWrite, run.Run.Mmio.Data.ToStringUtf8()));
        run = await guest.Continue();
        Assert.Equal((0xfee0_0008UL, 4u, "ytes"), (run.Run.Mmio.PhysAddr, run.Run.Mmio.Len, run.Run.Mmio.Data.ToStringUtf8()));
        run = await guest.Continue();
        Assert.Equal((0xfee0_0010UL, 4u, false), (run.Run.Mmio.PhysAddr, run.Run.Mmio.Len, run.Run.Mmio.IsWrite));
        run = await guest.Continue(new RunPageUpdate { MmioData = ByteString.CopyFromUtf8("read") });
        Assert.Equal("read", SnpGuest.Last(run).Data.ToStringUtf8());
    }

    [Fact]
    public async Task AHypercallByGhcb_ExitsAsAnyHypercall()
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon);
        GuestGhcbCall call = Event(Vmmcall);
        (call.Rax, call.Rbx, call.Rcx, call.Rdx, call.Cpl) = (12, 16 * SnpGuest.Page, 2, 0x10, 0);
        RunResponse run = await guest.Run(Register, GhcbGuest.Call(call), Guest.Halt());
        Assert.Equal([16 * SnpGuest.Page, 2, 0x10UL], run.Run.Hypercall.Args.Take(3));
        run = await guest.Continue(new RunPageUpdate { HypercallRet = 9 });
        Assert.Equal(9UL, SnpGuest.Last(run).Ghcb.Rax);
        // From user mode: -KVM_EPERM.
        call.Cpl = 3;
        Assert.Equal(ulong.MaxValue, (await guest.RunToHalt(GhcbGuest.Call(call)))[0].Ghcb.Rax);
    }

    [Fact]
    public async Task TheApJumpTable_IsKeptForWhoeverAsks()
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon);
        IReadOnlyList<GuestStepResult> results = await guest.RunToHalt(
            Register, GhcbGuest.Call(Event(0x8000_0005, 1)), GhcbGuest.Call(Event(0x8000_0005, 0, 0x1234_5000)), GhcbGuest.Call(Event(0x8000_0005, 1)));
        Assert.Equal([0UL, 0x1234_5000UL], new[] { results[1].Ghcb.ExitInfo2, results[3].Ghcb.ExitInfo2 });
    }

    [Fact]
    public async Task Termination_IsASystemEvent_AndAnUnsupportedEventFailsTheRun()
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon);
        RunResponse run = await guest.Run(Register, GhcbGuest.Call(Event(0x8000_FFFE, 1, 2)), GhcbGuest.Call(Event(0x8000_FFFF, 0x4e)), Guest.Halt());
        Assert.Equal((KernelNumbers.KVM_EXIT_SYSTEM_EVENT, KernelNumbers.KVM_SYSTEM_EVENT_SEV_TERM), (run.Run.ExitReason, run.Run.SystemEvent.Type));
        run = await guest.Continue();
        Assert.Equal(("EINVAL", "sev.vmgexit.unsupported"), (run.Outcome.ErrnoName, run.Outcome.Causes.Single().Rule));
    }

    [Fact]
    public async Task WhatKvmHasNoHandlerFor_IsAnInternalError()
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon);
        RunResponse run = await guest.Run(Register, GhcbGuest.Call(Event(0x6E)), Guest.Halt());
        Assert.Equal((0, KernelNumbers.KVM_EXIT_INTERNAL_ERROR, 4u, 0x6EUL), (run.Outcome.Errno, run.Run.ExitReason, run.Run.InternalError.Suberror, run.Run.InternalError.Data[0]));
    }

    [Fact]
    public async Task AGhcbThatKvmCannotMap_GetsNoAnswer_AndTheReasonIsToldWithTheCall()
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon);
        RunResponse run = await guest.Run(GhcbGuest.Vmgexit(1UL << 45), GhcbGuest.Vmgexit(0), Guest.Halt());
        Assert.Equal([1UL << 45, 0], run.Results.Take(2).Select(result => result.Rax));
        Assert.All(run.Results.Take(2), result => Assert.Equal("sev.vmgexit.no-ghcb", result.Causes.Single().Rule));
    }

    [Fact]
    public async Task AGuestWhoseGhcbIsStillPrivate_FaultsOnIt_AndTheVmmCanHelp()
    {
        const ulong ghcb = 64 * SnpGuest.Page;
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon);
        GuestGhcbCall call = Event(0x8000_FFFD);
        call.GhcbGpa = ghcb;
        RunResponse run = await guest.Run(GhcbGuest.RegisterGhcb(ghcb), GhcbGuest.Call(call), Guest.Halt());
        Assert.Equal(("EFAULT", KernelNumbers.KVM_EXIT_MEMORY_FAULT, ghcb, 0UL), (run.Outcome.ErrnoName, run.Run.ExitReason, run.Run.MemoryFault.Gpa, run.Run.MemoryFault.Flags));
        await guest.Convert(ghcb, 1, isPrivate: false);
        run = await guest.Continue();
        Assert.Equal((KernelNumbers.KVM_EXIT_HLT, 3UL), (run.Run.ExitReason, SnpGuest.Last(run).Ghcb.ExitInfo2));
    }

    private static GuestStep Register { get; } = GhcbGuest.RegisterGhcb(SnpGuest.Ghcb);

    private static GuestGhcbCall Event(ulong code, ulong info1 = 0, ulong info2 = 0) =>
        new() { GhcbGpa = SnpGuest.Ghcb, ExitCode = code, ExitInfo1 = info1, ExitInfo2 = info2 };
}
