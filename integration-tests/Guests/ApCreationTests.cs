using System.Buffers.Binary;
using VmmService.Client;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Guests;

/// <summary>AP creation: the guest gives a vCPU a VMSA of its own making (snp.md 6.4).</summary>
public sealed class ApCreationTests(Daemon daemon) : IClassFixture<Daemon>
{
    private const ulong Vmsa = 33 * SnpGuest.Page;
    private const ulong SnpActive = 1;

    [Theory]
    [InlineData(0)]
    [InlineData(2)]
    public async Task ACreatedAp_RunsAtThePrivilegeLevelOfItsVmsa(byte vmpl)
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon, vcpus: 2);
        IReadOnlyList<GuestStepResult> results = await guest.RunToHalt([Register, .. MakeVmsa(vmpl), Create(1, Vmsa)]);
        Assert.Equal((0UL, 0UL), (results[^1].Ghcb.ExitInfo1, results[^1].Ghcb.ExitInfo2));

        // Level 0 may validate pages, no other may: 2 is FAIL_PERMISSION.
        RunResponse run = await guest.Run(guest.Vcpus[1], GhcbGuest.Pvalidate(40 * SnpGuest.Page), Guest.Halt());
        Assert.Equal((KernelNumbers.KVM_EXIT_HLT, vmpl == 0 ? 0UL : 2UL), (run.Run.ExitReason, run.Results[0].Rax));
    }

    [Fact]
    public async Task AnApWhoseVmsaIsNone_CannotBeEntered()
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon, vcpus: 2);
        await guest.RunToHalt(Register, GhcbGuest.Pvalidate(Vmsa), Create(1, Vmsa));
        RunResponse run = await guest.Run(guest.Vcpus[1], Guest.Halt());
        Assert.Equal((0, KernelNumbers.KVM_EXIT_FAIL_ENTRY, ulong.MaxValue), (run.Outcome.Errno, run.Run.ExitReason, run.Run.FailEntry.HardwareEntryFailureReason));
    }

    [Fact]
    public async Task ADestroyedAp_CannotRun_UntilItIsCreatedAnew()
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon, vcpus: 2);
        await guest.RunToHalt([Register, .. MakeVmsa(0), Create(1, Vmsa), Call(2, 1, 0)]);
        RunResponse run = await guest.Run(guest.Vcpus[1], Guest.Halt());
        Assert.Equal(("EINVAL", "sev.run.no-vmsa"), (run.Outcome.ErrnoName, run.Outcome.Causes.Single().Rule));
        await guest.RunToHalt(Create(1, Vmsa));
        Assert.Equal(KernelNumbers.KVM_EXIT_HLT, (await guest.Run(guest.Vcpus[1], Guest.Halt())).Run.ExitReason);
    }

    [Fact]
    public async Task CreationOnInit_WaitsForTheInit()
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon, vcpus: 2);
        await guest.RunToHalt(Register, Call(0, 1, Vmsa));
        // Nobody sends an INIT here, so the vCPU still has the VMSA of the launch.
        Assert.Equal(KernelNumbers.KVM_EXIT_HLT, (await guest.Run(guest.Vcpus[1], Guest.Halt())).Run.ExitReason);
    }

    public static TheoryData<uint, ulong, ulong, ulong, string> Refused => new()
    {
        { 1, 7, Vmsa, SnpActive, "sev.ap-creation.target" },
        { 1, 1, Vmsa, 0, "sev.ap-creation.features" },
        { 1, 1, Vmsa, 3, "sev.ap-creation.features" },
        { 1, 1, Vmsa + 8, SnpActive, "sev.ap-creation.vmsa" },
        { 1, 1, 0x20_0000, SnpActive, "sev.ap-creation.vmsa" },
        { 1, 1, 1UL << 52, SnpActive, "sev.ap-creation.vmsa" },
        { 3, 1, Vmsa, SnpActive, "sev.ap-creation.request" },
    };

    [Theory]
    [MemberData(nameof(Refused))]
    public async Task WhatCannotBe_IsInvalidInput(uint request, ulong apicId, ulong vmsa, ulong features, string rule)
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon, vcpus: 2);
        RunResponse run = await guest.Run(Register, Call(request, apicId, vmsa, features), Guest.Halt());
        Assert.Equal((2UL, 5UL), (run.Results[1].Ghcb.ExitInfo1, run.Results[1].Ghcb.ExitInfo2));
        Assert.Equal(rule, run.Results[1].Causes.Single().Rule);
    }

    private static GuestStep Register { get; } = GhcbGuest.RegisterGhcb(SnpGuest.Ghcb);

    // A page of the guest's with the fields of a VMSA that matter, and RMPADJUST to make it one.
    private static GuestStep[] MakeVmsa(byte vmpl)
    {
        byte[] features = new byte[8];
        BinaryPrimitives.WriteUInt64LittleEndian(features, SnpActive);
        return [GhcbGuest.Pvalidate(Vmsa), Guest.Write(Vmsa + 0xCA, [vmpl]), Guest.Write(Vmsa + 0x3B0, features), GhcbGuest.Rmpadjust(Vmsa, 1, 0, vmsa: true)];
    }

    private static GuestStep Create(uint apicId, ulong vmsa) => Call(1, apicId, vmsa);

    private static GuestStep Call(uint request, ulong apicId, ulong vmsa, ulong features = SnpActive) => GhcbGuest.Call(
        new GuestGhcbCall { GhcbGpa = SnpGuest.Ghcb, ExitCode = 0x8000_0013, ExitInfo1 = (apicId << 32) | request, ExitInfo2 = vmsa, Rax = features });
}
