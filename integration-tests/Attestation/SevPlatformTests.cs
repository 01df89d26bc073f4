using System.Buffers.Binary;
using VmmService.Client;
using VmmService.Client.Attestation;
using VmmService.IntegrationTests.Guests;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Attestation;

/// <summary>/dev/sev as the platform's operator uses it (snp.md 1.4): status, and what reports say and who signs them from then on.</summary>
public sealed class SevPlatformTests(Daemon daemon) : IClassFixture<Daemon>
{
    private const uint IssueCmd = 0xC010_5300;

    [Fact]
    public async Task Status_FollowsThePlatform_FromUninitialisedToWorkingGuests()
    {
        await using GuestBench bench = await GuestBench.CreateAsync(daemon, VmType.Default);
        SevDevice sev = await bench.Process.OpenSevAsync();
        SevPlatformStatusResponse status = await sev.PlatformStatusAsync();
        Assert.Equal((1u, 55u, 21u, 0u, 0u, 0u), (status.ApiMajor, status.ApiMinor, status.Build, status.State, status.Flags, status.GuestCount));

        Client.Vm vm = await bench.Kvm.CreateVmAsync(VmType.Sev);
        await vm.SnpLaunch(sev).Init2Async(ghcbVersion: 0);
        Assert.Equal((1u, 0x100u), ((await sev.PlatformStatusAsync()).State, (await sev.PlatformStatusAsync()).Flags));

        await vm.SevLaunch(sev).StartAsync(policy: 1);
        status = await sev.PlatformStatusAsync();
        Assert.Equal((2u, 1u), (status.State, status.GuestCount));
        Assert.Equal("EBUSY", (await sev.MakeKeysAsync(SevPlatformKeys.FactoryReset).Reply).Outcome.ErrnoName);
        SevMakeKeysResponse pek = await sev.MakeKeysAsync(SevPlatformKeys.PekGen).Reply;
        Assert.Equal(("EIO", "INVALID_PLATFORM_STATE"), (pek.Outcome.ErrnoName, pek.Sev.ErrorName));
        await sev.MakeKeysAsync(SevPlatformKeys.PdhGen);

        await vm.DisposeAsync();
        await sev.MakeKeysAsync(SevPlatformKeys.FactoryReset);
        Assert.Equal(0u, (await sev.PlatformStatusAsync()).State);
    }

    [Fact]
    public async Task SnpStatus_CountsGuests_AndTheIdIsThatOfReports()
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon);
        SnpPlatformStatusResponse status = await guest.Sev.SnpPlatformStatusAsync();
        Assert.Equal((1u, true, 1u, 0u), (status.State, status.RmpInitialized, status.GuestCount, status.Flags));
        Assert.Equal(status.CurrentTcb, status.ReportedTcb);
        SnpReport report = await guest.Vm.Attestation.GetReportAsync();
        Assert.Equal(report.ChipId.ToArray(), (await guest.Sev.GetIdAsync()).ToArray());
    }

    [Fact]
    public async Task AnOlderReportedTcb_IsInReports_AndTheirKeyAndCertificateFollow()
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon);
        ulong current = (await guest.Sev.SnpPlatformStatusAsync()).CurrentTcb;
        GetCertificateChainResponse before = await guest.Host.GetCertificateChainAsync();
        // One microcode patch level less.
        ulong older = current - (1UL << 56);

        await guest.Sev.SnpSetConfigAsync(older);

        SnpReport report = await guest.Vm.Attestation.GetReportAsync();
        Assert.Equal((current, older), (report.CurrentTcb, report.ReportedTcb));
        GetCertificateChainResponse after = await guest.Host.GetCertificateChainAsync();
        Assert.NotEqual(before.Endorsement, after.Endorsement);
        Assert.Empty(SnpVerifier.Verify(
            report.Bytes.ToArray(), after.Endorsement.ToByteArray(), after.Intermediate.ToByteArray(), after.Ark.ToByteArray(), (await guest.Host.GetCrlAsync()).ToArray(),
            new Demands(after.Ark.ToByteArray(), new byte[64], Convert.FromHexString(guest.LaunchDigest), 0, [0, 0, 0, 0, 0], false, new DateTime(2030, 6, 1, 0, 0, 0, DateTimeKind.Utc))));

        await guest.Sev.SnpSetConfigAsync(0);
        Assert.Equal(before.Endorsement, (await guest.Host.GetCertificateChainAsync()).Endorsement);
    }

    [Fact]
    public async Task ANewerReportedTcb_UnknownBits_AndABlobThatIsNoVlek_AreRefusedByFirmware()
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon);
        ulong current = (await guest.Sev.SnpPlatformStatusAsync()).CurrentTcb;
        foreach ((ulong tcb, uint mask) in new[] { (current + (1UL << 56), 0u), (current | (1UL << 20), 0u), (current, 4u) })
        {
            SnpSetConfigResponse refused = await guest.Sev.SnpSetConfigAsync(tcb, mask).Reply;
            Assert.Equal(("EIO", "INVALID_PARAM"), (refused.Outcome.ErrnoName, refused.Sev.ErrorName));
        }
        SnpVlekLoadResponse vlek = await guest.Sev.SnpVlekLoadAsync(new byte[432]).Reply;
        Assert.Equal(("EIO", "BAD_MEASUREMENT"), (vlek.Outcome.ErrnoName, vlek.Sev.ErrorName));
    }

    [Fact]
    public async Task MaskingTheChip_HidesItsIdAndLeavesReportsUnsigned()
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon);
        await guest.Sev.SnpSetConfigAsync(0, mask: 3);
        SnpReport report = await guest.Vm.Attestation.GetReportAsync();
        Assert.All(report.ChipId.ToArray(), each => Assert.Equal(0, each));
        Assert.All(report.Signature.ToArray(), each => Assert.Equal(0, each));
        Assert.Equal(3u, (await guest.Sev.SnpPlatformStatusAsync()).Flags);
    }

    [Fact]
    public async Task ALoadedVlek_SignsFromThenOn()
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon);
        Assert.Equal("VCEK", (await guest.Vm.Attestation.GetReportAsync()).SigningKey);
        await guest.Sev.SnpVlekLoadAsync("cloud.example");
        Assert.Equal("VLEK", (await guest.Vm.Attestation.GetReportAsync()).SigningKey);
        Assert.Equal(4u, (await guest.Sev.SnpPlatformStatusAsync()).Flags);
    }

    [Fact]
    public async Task Commit_MovesTheCommittedTcbUpToTheCurrentOne()
    {
        var machine = new MachineConfig
        {
            Attestation = new AttestationConfig
            {
                CurrentTcb = new TcbVersion { BootLoader = 4, Snp = 9, Microcode = 120 },
                CommittedTcb = new TcbVersion { BootLoader = 3, Snp = 8, Microcode = 115 },
            },
        };
        await using SnpGuest guest = await SnpGuest.LaunchAsync(await daemon.Connection.CreateHostAsync(machine: machine));
        SnpReport before = await guest.Vm.Attestation.GetReportAsync();
        await guest.Sev.SnpCommitAsync();
        SnpReport after = await guest.Vm.Attestation.GetReportAsync();
        Assert.NotEqual(before.CurrentTcb, before.CommittedTcb);
        Assert.Equal((after.CurrentTcb, before.ReportedTcb), (after.CommittedTcb, after.ReportedTcb));
    }

    [Fact]
    public async Task ALegacyReport_HasNonceDigestAndPolicy_AndIsOnlyForMeasuredGuests()
    {
        byte[] nonce = [.. Enumerable.Range(1, 16).Select(i => (byte)i)];
        await using GuestBench bench = await GuestBench.CreateAsync(daemon, VmType.Default);
        SevDevice sev = await bench.Process.OpenSevAsync();
        Client.Vm vm = await bench.Kvm.CreateVmAsync(VmType.Sev);
        await vm.SnpLaunch(sev).Init2Async(ghcbVersion: 0);
        SevLaunch launch = vm.SevLaunch(sev);
        await launch.StartAsync(policy: 1);
        ulong uaddr = await bench.Process.MmapAsync(GuestBench.Page);
        await launch.UpdateDataAsync(uaddr, (uint)GuestBench.Page);
        SevGetAttestationReportResponse early = await launch.GetAttestationReportAsync(nonce).Reply;
        Assert.Equal(("EIO", "INVALID_GUEST_STATE"), (early.Outcome.ErrnoName, early.Sev.ErrorName));

        await launch.MeasureAsync();
        SevGetAttestationReportResponse query = await launch.GetAttestationReportAsync(nonce, len: 0).Reply;
        Assert.Equal(("EIO", "INVALID_LEN", 208u), (query.Outcome.ErrnoName, query.Sev.ErrorName, query.Len));
        byte[] report = (await launch.GetAttestationReportAsync(nonce)).ToArray();
        Assert.Equal(nonce, report[..16]);
        Assert.Equal((await launch.GuestStatusAsync()).LaunchDigest, Convert.ToHexStringLower(report.AsSpan(0x10, 32)));
        Assert.Equal(1u, BinaryPrimitives.ReadUInt32LittleEndian(report.AsSpan(0x30)));
        Assert.Contains(report[0x40..], each => each != 0);
    }

    public static TheoryData<uint, string, string> RawCommands => new()
    {
        { 13, "EINVAL", "sev.platform.command" },
        { 9, "EINVAL", "sev.platform.data" },
        { 11, "EINVAL", "sev.platform.data" },
        { 3, "EFAULT", "uaccess.copy-from-user" },
        { 5, "EFAULT", "uaccess.copy-from-user" },
        { 6, "EFAULT", "uaccess.copy-from-user" },
        { 7, "EFAULT", "uaccess.copy-to-user" },
        { 8, "EFAULT", "uaccess.copy-from-user" },
        { 12, "EINVAL", "sev.platform.data" },
    };

    [Theory]
    [MemberData(nameof(RawCommands))]
    public async Task WhatTheDriverOrFirmwareDoesNotKnow_IsRefused(uint command, string errno, string rule)
    {
        await using GuestBench bench = await GuestBench.CreateAsync(daemon, VmType.Default);
        SevDevice sev = await bench.Process.OpenSevAsync();
        byte[] argument = new byte[16];
        BinaryPrimitives.WriteUInt32LittleEndian(argument, command);
        RawIoctlResponse reply = await sev.RawIoctlAsync(IssueCmd, argument).Reply;
        Assert.Equal((errno, rule), (reply.Outcome.ErrnoName, reply.Outcome.Causes[^1].Rule));
    }

    [Fact]
    public async Task AnotherIoctl_IsEinval()
    {
        await using GuestBench bench = await GuestBench.CreateAsync(daemon, VmType.Default);
        SevDevice sev = await bench.Process.OpenSevAsync();
        Assert.Equal("EINVAL", (await sev.RawIoctlAsync(0xC010_5301, new byte[16]).Reply).Outcome.ErrnoName);
    }
}
