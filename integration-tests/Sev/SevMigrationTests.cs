using System.Runtime.InteropServices;
using SimKvm.Abi;
using VmmService.Client;
using VmmService.Client.Attestation;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;
using VmType = VmmService.V1.VmType;

namespace VmmService.IntegrationTests.Sev;

/// <summary>SEND_* and RECEIVE_*: a SEV guest goes from one host to another (snp.md 4.2), and who may not.</summary>
public sealed class SevMigrationTests(Daemon daemon) : IClassFixture<Daemon>
{
    private const ulong Page = GuestBench.Page;
    private const uint MostOfKmalloc = 4 << 20;
    private const uint NoSend = 8, Domain = 16, SevOnly = 32;

    private static readonly byte[] s_content = GuestBench.Filled(4, 0x5e);

    [Theory]
    [InlineData(0u)]
    [InlineData(SevOnly)]
    public async Task AGuest_GoesToAnotherHost_AndFindsItsMemoryThere(uint policy)
    {
        await using SevBench from = await RunningAsync(policy);
        await using SevBench to = await SevBench.CreateAsync(daemon, VmType.Sev, seed: 2);
        SevSendStartResponse sent = await from.Migration.SendStartAsync(await to.TrustedChainAsync());
        Assert.Equal((policy, 128, 4u), (sent.Policy, sent.Session.Length, (await from.Launch.GuestStatusAsync()).State));

        await to.Migration.ReceiveStartAsync((await from.Sev.ExportPdhAsync()).Pdh, sent.Policy, sent.Session.Memory);
        Assert.Equal(5u, (await to.Launch.GuestStatusAsync()).State);
        for (ulong at = 0; at < (ulong)s_content.Length; at += Page)
        {
            SevSendUpdateDataResponse packet = await from.Migration.SendUpdateDataAsync(from.Memory + at, (uint)Page);
            Assert.Equal((52, (int)Page), (packet.Header.Length, packet.Packet.Length));
            Assert.NotEqual(s_content[(int)at..(int)(at + Page)], packet.Packet.ToByteArray());
            await to.Migration.ReceiveUpdateDataAsync(packet.Header.Memory, packet.Packet.Memory, to.Memory + at);
        }
        await from.Migration.SendFinishAsync();
        await to.Migration.ReceiveFinishAsync();
        Assert.Equal((6u, 3u), ((await from.Launch.GuestStatusAsync()).State, (await to.Launch.GuestStatusAsync()).State));

        await to.Vcpu.LoadProgramAsync([Guest.Compare(0, s_content, access: GuestAccess.Private), Guest.Halt()]);
        RunResponse run = await to.Vcpu.RunAsync();
        Assert.False(run.Results[0].HasMismatchAt);
    }

    [Fact]
    public async Task AGuestWhoseSendingIsCancelled_Stays()
    {
        await using SevBench from = await RunningAsync(0);
        await from.Migration.SendStartAsync(await from.TrustedChainAsync());
        await from.Migration.SendFinishAsync(cancel: true);
        Assert.Equal(3u, (await from.Launch.GuestStatusAsync()).State);
        await from.Migration.SendStartAsync(await from.TrustedChainAsync());
    }

    [Theory]
    [InlineData(NoSend, "POLICY_FAILURE", "psp.sev.nosend")]
    [InlineData(Domain, "POLICY_FAILURE", "psp.sev.target-domain")]
    [InlineData(SevOnly, "BAD_SIGNATURE", "psp.sev.target-authority")]
    public async Task APolicy_KeepsAGuestFromPlatformsThatItDoesNotAllow(uint policy, string status, string rule)
    {
        await using SevBench from = await RunningAsync(policy);
        await using SevBench to = await SevBench.CreateAsync(daemon, VmType.Sev, seed: 3);
        // The chain as firmware exports it: AMD's signature is not in it.
        SevSendStartResponse refused = await from.Migration.SendStartAsync(await to.Sev.ExportPdhAsync()).Reply;
        Assert.Equal(("EIO", status, rule), (refused.Outcome.ErrnoName, refused.Sev.ErrorName, refused.Outcome.Causes[0].Rule));
        Assert.Equal(3u, (await from.Launch.GuestStatusAsync()).State);
    }

    [Fact]
    public async Task AChainWhoseLinksDoNotFit_AndASessionBufferThatIsTooSmall_AreRefused()
    {
        await using SevBench from = await RunningAsync(0);
        await using SevBench to = await SevBench.CreateAsync(daemon, VmType.Sev, seed: 4);
        SevPlatformChain chain = await to.Sev.ExportPdhAsync(), own = await from.Sev.ExportPdhAsync();
        foreach ((string status, SevPlatformChain target, uint length) in new[]
        {
            ("INVALID_CERTIFICATE", chain with { Pdh = own.Pdh }, 128u), ("INVALID_CERTIFICATE", chain with { Oca = own.Oca }, 128u), ("INVALID_CERTIFICATE", chain with { Cek = own.Cek }, 128u),
            ("INVALID_LEN", chain, 127u), ("INVALID_LEN", chain, 0u),
        })
        {
            SevSendStartResponse refused = await from.Migration.SendStartAsync(target, length).Reply;
            string rule = status == "INVALID_LEN" ? "psp.sev.session-length" : "psp.sev.target-certificates";
            Assert.Equal(("EIO", status, rule), (refused.Outcome.ErrnoName, refused.Sev.ErrorName, refused.Outcome.Causes[0].Rule));
            if (status == "INVALID_LEN")
                Assert.Equal(128u, refused.SessionLen);
        }
        SevSendStartResponse tooLong = await from.Migration.SendStartAsync(chain, 0x4001).Reply;
        Assert.Equal(("EINVAL", "sev.send.parameters"), (tooLong.Outcome.ErrnoName, tooLong.Outcome.Causes[0].Rule));
    }

    [Fact]
    public async Task APacket_ThatWasAltered_IsReplayedElsewhere_OrCrossesAPage_IsRefused()
    {
        await using SevBench from = await RunningAsync(0);
        await using SevBench to = await SevBench.CreateAsync(daemon, VmType.Sev, seed: 5);
        SevSendStartResponse sent = await from.Migration.SendStartAsync(await to.TrustedChainAsync());
        await to.Migration.ReceiveStartAsync((await from.Sev.ExportPdhAsync()).Pdh, sent.Policy, sent.Session.Memory);
        SevSendUpdateDataResponse question = await from.Migration.SendUpdateDataAsync(0, 0, query: true).Reply;
        Assert.Equal(("EIO", "INVALID_LEN", 52u, "psp.sev.packet-length"), (question.Outcome.ErrnoName, question.Sev.ErrorName, question.HdrLen, question.Outcome.Causes[0].Rule));
        SevSendUpdateDataResponse packet = await from.Migration.SendUpdateDataAsync(from.Memory, 64);
        byte[] altered = packet.Packet.ToByteArray();
        altered[0] ^= 1;
        SevReceiveUpdateDataResponse bad = await to.Migration.ReceiveUpdateDataAsync(packet.Header.Memory, altered, to.Memory).Reply;
        Assert.Equal(("EIO", "BAD_MEASUREMENT", "psp.sev.packet"), (bad.Outcome.ErrnoName, bad.Sev.ErrorName, bad.Outcome.Causes[0].Rule));
        SevReceiveUpdateDataResponse crossing = await to.Migration.ReceiveUpdateDataAsync(packet.Header.Memory, packet.Packet.Memory, to.Memory + Page - 32).Reply;
        Assert.Equal(("EINVAL", "sev.receive.parameters"), (crossing.Outcome.ErrnoName, crossing.Outcome.Causes[0].Rule));
        Assert.Equal("EINVAL", (await from.Migration.SendUpdateDataAsync(from.Memory, 0x1001).Reply).Outcome.ErrnoName);
        foreach ((ulong offset, uint length, string status) in new[] { (8ul, 16u, "INVALID_ADDRESS"), (0ul, 20u, "INVALID_LEN") })
        {
            SevSendUpdateDataResponse unaligned = await from.Migration.SendUpdateDataAsync(from.Memory + offset, length).Reply;
            Assert.Equal(("EIO", status), (unaligned.Outcome.ErrnoName, unaligned.Sev.ErrorName));
        }

        // The session's keys are its own: what is sent to one session opens in no other.
        await using SevBench third = await SevBench.CreateAsync(daemon, VmType.Sev, seed: 5);
        await from.Migration.SendFinishAsync(cancel: true);
        SevSendStartResponse again = await from.Migration.SendStartAsync(await third.TrustedChainAsync());
        await third.Migration.ReceiveStartAsync((await from.Sev.ExportPdhAsync()).Pdh, again.Policy, again.Session.Memory);
        SevReceiveUpdateDataResponse replayed = await third.Migration.ReceiveUpdateDataAsync(packet.Header.Memory, packet.Packet.Memory, third.Memory).Reply;
        Assert.Equal(("EIO", "BAD_MEASUREMENT"), (replayed.Outcome.ErrnoName, replayed.Sev.ErrorName));
    }

    // KVM allocates as much as it is told to, before firmware says how long a packet is; and firmware has not begun to send.
    [Theory]
    [InlineData(MostOfKmalloc, MostOfKmalloc, "EIO", "psp.sev.state")]
    [InlineData(MostOfKmalloc + 1, 16u, "ENOMEM", "sev.send.buffer")]
    [InlineData(52u, MostOfKmalloc + 1, "ENOMEM", "sev.send.buffer")]
    [InlineData(uint.MaxValue, uint.MaxValue, "ENOMEM", "sev.send.buffer")]
    public async Task APacketBuffer_IsAsLongAsTheKernelCanAllocate(uint headerLength, uint packetLength, string errno, string rule)
    {
        await using SevBench bench = await RunningAsync(0);
        ulong data = await bench.Process.MmapAsync(Page);
        var send = new kvm_sev_send_update_data { hdr_uaddr = data, hdr_len = headerLength, guest_uaddr = bench.Memory, guest_len = 16, trans_uaddr = data, trans_len = packetLength };
        await bench.Process.WriteAsync(data, MemoryMarshal.AsBytes([send]).ToArray());
        var cmd = new kvm_sev_cmd { id = (uint)SevCmdId.KVM_SEV_SEND_UPDATE_DATA, data = data, sev_fd = (uint)bench.Sev.Fd };
        Outcome outcome = (await bench.Vm.RawIoctlAsync(KvmIoctl.KVM_MEMORY_ENCRYPT_OP, MemoryMarshal.AsBytes([cmd]).ToArray()).Reply).Outcome;
        Assert.Equal((errno, rule), (outcome.ErrnoName, outcome.Causes[0].Rule));
    }

    // In a VM that is no SEV guest, one command answers otherwise than all others.
    [Fact]
    public async Task BeforeInit_EveryCommandIsEnotty_ButReceiveUpdateData()
    {
        await using SevBench bench = await SevBench.CreateAsync(daemon, VmType.Sev, initialise: false);
        SevPlatformChain chain = await bench.Sev.ExportPdhAsync();
        Assert.Equal("ENOTTY", (await bench.Migration.SendStartAsync(chain).Reply).Outcome.ErrnoName);
        Assert.Equal("ENOTTY", (await bench.Migration.SendUpdateDataAsync(bench.Memory, 16).Reply).Outcome.ErrnoName);
        Assert.Equal("ENOTTY", (await bench.Migration.SendFinishAsync().Reply).Outcome.ErrnoName);
        Assert.Equal("ENOTTY", (await bench.Migration.SendFinishAsync(cancel: true).Reply).Outcome.ErrnoName);
        Assert.Equal("ENOTTY", (await bench.Migration.ReceiveStartAsync(chain.Pdh, 0, new byte[128]).Reply).Outcome.ErrnoName);
        Assert.Equal("ENOTTY", (await bench.Migration.ReceiveFinishAsync().Reply).Outcome.ErrnoName);
        Assert.Equal("EINVAL", (await bench.Migration.ReceiveUpdateDataAsync(new byte[52], new byte[16], bench.Memory).Reply).Outcome.ErrnoName);
    }

    private async Task<SevBench> RunningAsync(uint policy)
    {
        SevBench bench = await SevBench.CreateAsync(daemon, VmType.Sev, seed: 1);
        await bench.Process.WriteAsync(bench.Memory, s_content);
        await bench.Launch.StartAsync(policy);
        await bench.Launch.UpdateDataAsync(bench.Memory, (uint)s_content.Length);
        await bench.Launch.FinishAsync();
        return bench;
    }
}
