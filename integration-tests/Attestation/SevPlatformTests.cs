using System.Buffers.Binary;
using System.Runtime.InteropServices;
using SimKvm.Abi;
using VmmService.Client;
using VmmService.Client.Attestation;
using VmmService.IntegrationTests.Guests;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;
using VmType = VmmService.V1.VmType;

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
        Outcome reset = (await sev.MakeKeysAsync(SevPlatformKeys.FactoryReset).Reply).Outcome;
        Assert.Equal(("EBUSY", "sev.platform.working"), (reset.ErrnoName, reset.Causes[0].Rule));
        SevMakeKeysResponse pek = await sev.MakeKeysAsync(SevPlatformKeys.PekGen).Reply;
        Assert.Equal(("EIO", "INVALID_PLATFORM_STATE", "psp.platform.guests"), (pek.Outcome.ErrnoName, pek.Sev.ErrorName, pek.Outcome.Causes[0].Rule));
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
        foreach ((ulong tcb, uint mask, string rule) in new[] { (current + (1UL << 56), 0u, "psp.snp-config.tcb"), (current | (1UL << 20), 0u, "psp.snp-config.tcb"), (current, 4u, "psp.snp-config.reserved") })
        {
            SnpSetConfigResponse refused = await guest.Sev.SnpSetConfigAsync(tcb, mask).Reply;
            Assert.Equal(("EIO", "INVALID_PARAM", rule), (refused.Outcome.ErrnoName, refused.Sev.ErrorName, refused.Outcome.Causes[0].Rule));
        }
        SnpVlekLoadResponse vlek = await guest.Sev.SnpVlekLoadAsync(new byte[432]).Reply;
        Assert.Equal(("EIO", "BAD_MEASUREMENT", "psp.vlek-load.wrapped"), (vlek.Outcome.ErrnoName, vlek.Sev.ErrorName, vlek.Outcome.Causes[0].Rule));
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
        Assert.Equal(("EIO", "INVALID_GUEST_STATE", "psp.sev.report-state"), (early.Outcome.ErrnoName, early.Sev.ErrorName, early.Outcome.Causes[0].Rule));

        await launch.MeasureAsync();
        SevGetAttestationReportResponse query = await launch.GetAttestationReportAsync(nonce, len: 0).Reply;
        Assert.Equal(("EIO", "INVALID_LEN", "psp.sev.report-length", 208u), (query.Outcome.ErrnoName, query.Sev.ErrorName, query.Outcome.Causes[0].Rule, query.Len));
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

    // By number: FACTORY_RESET to VLEK_LOAD. The key that guests' owners need may be exported once the platform is initialised.
    [Theory]
    [InlineData(0u, "EPERM")]
    [InlineData(1u, "")]
    [InlineData(2u, "EPERM")]
    [InlineData(3u, "EPERM")]
    [InlineData(4u, "EPERM")]
    [InlineData(5u, "EPERM")]
    [InlineData(6u, "EPERM")]
    [InlineData(7u, "")]
    [InlineData(9u, "")]
    [InlineData(10u, "")]
    [InlineData(11u, "EPERM")]
    [InlineData(12u, "EPERM")]
    public async Task DeviceOpenForReading_TakesCommandsThatChangeNothing(uint command, string errno)
    {
        await using GuestBench bench = await GuestBench.CreateAsync(daemon, VmType.Default);
        ulong data = await bench.Process.MmapAsync(GuestBench.Page);
        OpenResponse opened = await daemon.Stubs.Processes.OpenAsync(new OpenRequest { Host = bench.Host.Id, Pid = bench.Process.Pid, Path = "/dev/sev", Flags = 0 });
        Outcome outcome = await IssueAsync(bench.Process, (int)opened.Outcome.Value, command, data);
        Assert.Equal((errno, errno.Length > 0 ? "sev.platform.read-only" : ""), (outcome.ErrnoName, outcome.Causes.Count > 0 ? outcome.Causes[^1].Rule : ""));

        await (await bench.Kvm.CreateVmAsync(VmType.Sev)).SnpLaunch(await bench.Process.OpenSevAsync()).Init2Async(ghcbVersion: 0);
        Outcome initialised = await IssueAsync(bench.Process, (int)opened.Outcome.Value, command, data);
        Assert.Equal(command == 5, initialised.ErrnoName != errno);
    }

    /// <summary>A command by number with a structure that the driver does not pass on, errno and rule. Addresses in it are those of a page.</summary>
    public static TheoryData<string, uint, string, string> BadStructures => new()
    {
        { "PEK_CSR: more than 16 KiB", 3, "EFAULT", "sev.platform.buffer" },
        { "PDH_CERT_EXPORT: a PDH of more than 16 KiB", 5, "EFAULT", "sev.platform.buffer" },
        { "PDH_CERT_EXPORT: a chain of more than 16 KiB", 5, "EFAULT", "sev.platform.buffer" },
        { "PEK_CERT_IMPORT: no certificate", 6, "EINVAL", "sev.platform.blob" },
        { "PEK_CERT_IMPORT: an owner's of more than 16 KiB", 6, "EINVAL", "sev.platform.blob" },
        { "GET_ID2: more than the kernel allocates", 8, "ENOMEM", "sev.platform.buffer" },
        { "SNP_VLEK_LOAD: a structure of another length", 12, "EINVAL", "sev.platform.vlek" },
        { "SNP_VLEK_LOAD: a structure of another version", 12, "EINVAL", "sev.platform.vlek" },
    };

    [Theory]
    [MemberData(nameof(BadStructures))]
    public async Task StructureThatTheDriverDoesNotPassOn_IsRefused(string what, uint command, string errno, string rule)
    {
        await using GuestBench bench = await GuestBench.CreateAsync(daemon, VmType.Default);
        SevDevice sev = await bench.Process.OpenSevAsync();
        ulong data = await bench.Process.MmapAsync(GuestBench.Page), page = await bench.Process.MmapAsync(GuestBench.Page);
        const uint blob = 0x4000, mostOfKmalloc = 4 << 20;
        byte[] structure = what switch
        {
            "PEK_CSR: more than 16 KiB" => Bytes(new sev_user_data_pek_csr { address = page, length = blob + 1 }),
            "PDH_CERT_EXPORT: a PDH of more than 16 KiB" => Bytes(new sev_user_data_pdh_cert_export { pdh_cert_address = page, pdh_cert_len = blob + 1, cert_chain_address = page, cert_chain_len = blob }),
            "PDH_CERT_EXPORT: a chain of more than 16 KiB" => Bytes(new sev_user_data_pdh_cert_export { pdh_cert_address = page, pdh_cert_len = blob, cert_chain_address = page, cert_chain_len = blob + 1 }),
            "PEK_CERT_IMPORT: no certificate" => Bytes(new sev_user_data_pek_cert_import { oca_cert_address = page, oca_cert_len = 16 }),
            "PEK_CERT_IMPORT: an owner's of more than 16 KiB" => Bytes(new sev_user_data_pek_cert_import { pek_cert_address = page, pek_cert_len = 16, oca_cert_address = page, oca_cert_len = blob + 1 }),
            "GET_ID2: more than the kernel allocates" => Bytes(new sev_user_data_get_id2 { address = page, length = mostOfKmalloc + 1 }),
            "SNP_VLEK_LOAD: a structure of another length" => Bytes(new sev_user_data_snp_vlek_load { len = 15, vlek_wrapped_address = page }),
            _ => Bytes(new sev_user_data_snp_vlek_load { len = 16, vlek_wrapped_version = 1, vlek_wrapped_address = page }),
        };
        await bench.Process.WriteAsync(data, structure);
        Outcome outcome = await IssueAsync(bench.Process, sev.Fd, command, data);
        Assert.Equal((errno, rule), (outcome.ErrnoName, outcome.Causes[^1].Rule));
        Assert.Equal(structure, (await bench.Process.ReadAsync(data, (ulong)structure.Length)).ToArray());

        static byte[] Bytes<T>(T structure)
            where T : unmanaged => MemoryMarshal.AsBytes(new ReadOnlySpan<T>(in structure)).ToArray();
    }

    private static async Task<Outcome> IssueAsync(RemoteProcess process, int fd, uint command, ulong data)
    {
        byte[] argument = new byte[16];
        BinaryPrimitives.WriteUInt32LittleEndian(argument, command);
        BinaryPrimitives.WriteUInt64LittleEndian(argument.AsSpan(4), data);
        return (await process.RawIoctlAsync(fd, IssueCmd, argument).Reply).Outcome;
    }

    [Fact]
    public async Task AnotherIoctl_IsEinval()
    {
        await using GuestBench bench = await GuestBench.CreateAsync(daemon, VmType.Default);
        SevDevice sev = await bench.Process.OpenSevAsync();
        Assert.Equal("EINVAL", (await sev.RawIoctlAsync(0xC010_5301, new byte[16]).Reply).Outcome.ErrnoName);
    }
}
