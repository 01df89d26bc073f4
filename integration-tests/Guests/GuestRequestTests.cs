using System.Buffers.Binary;
using Google.Protobuf;
using VmmService.Client;
using VmmService.Client.Attestation;
using VmmService.IntegrationTests.Attestation;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Guests;

/// <summary>Messages between a guest and firmware, sent by the guest itself: key from its secrets page, AES-256-GCM, guest request by the GHCB (snp.md 6.4, 11.1, 13).</summary>
public sealed class GuestRequestTests(Daemon daemon) : IClassFixture<Daemon>
{
    private const uint KeyType = 3;
    private const uint ReportType = 5;
    private const uint TscInfoType = 17;
    private const ulong Enospc = 28;
    private const ulong Eagain = 11;
    private const ulong Eio = 5;

    private static readonly byte[] Nonce = [.. Enumerable.Range(1, 64).Select(i => (byte)i)];

    [Fact]
    public async Task AGuestsReport_HasTheDigestOfItsLaunch_AndVerifies()
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon);
        GuestStepResult result = (await guest.RunToHalt(Register, Ask(ReportType, GhcbGuest.ReportRequest(Nonce))))[1];
        Assert.Equal((GuestMessageOutcome.Answered, 1UL), (result.Message.Outcome, result.Message.Sequence));
        SnpReport report = ReportOf(result);
        Assert.Equal(guest.LaunchDigest, Convert.ToHexStringLower(report.Measurement.Span));
        Assert.Equal(Nonce, report.ReportData.ToArray());

        GetCertificateChainResponse chain = await guest.Host.GetCertificateChainAsync();
        IReadOnlyList<Refusal> refusals = SnpVerifier.Verify(
            report.Bytes.ToArray(), chain.Endorsement.ToByteArray(), chain.Intermediate.ToByteArray(), chain.Ark.ToByteArray(), (await guest.Host.GetCrlAsync()).ToArray(),
            new Demands(
                chain.Ark.ToByteArray(), Nonce, Convert.FromHexString(guest.LaunchDigest), 0, [0, 0, 0, 0, 0], AllowDebug: false, new DateTime(2030, 6, 1, 0, 0, 0, DateTimeKind.Utc)));
        Assert.Empty(refusals);
    }

    [Fact]
    public async Task EachAnswerCountsTheSequenceOnByTwo_InTheSecretsPageToo()
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon);
        GuestStep ask = Ask(ReportType, GhcbGuest.ReportRequest(Nonce));
        IReadOnlyList<GuestStepResult> results = await guest.RunToHalt(Register, ask, ask, ask, Guest.Read(SnpGuest.Secrets + 0xA0, 16));
        Assert.Equal([1UL, 3UL, 5UL], results.Skip(1).Take(3).Select(result => result.Message.Sequence));
        Assert.Equal(6u, BinaryPrimitives.ReadUInt32LittleEndian(results[4].Data.Span));
    }

    [Fact]
    public async Task EachVmpck_HasItsOwnSequence_AndAsksForItsOwnLevelOrALowerOne()
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon);
        IReadOnlyList<GuestStepResult> results = await guest.RunToHalt(
            Register,
            Ask(ReportType, GhcbGuest.ReportRequest(Nonce, vmpl: 2), vmpck: 2),
            Ask(ReportType, GhcbGuest.ReportRequest(Nonce, vmpl: 1), vmpck: 2),
            Ask(ReportType, GhcbGuest.ReportRequest(Nonce, vmpl: 3), vmpck: 0));
        Assert.Equal([1UL, 3UL, 1UL], results.Skip(1).Select(result => result.Message.Sequence));
        // A denial is an answer, with a status inside: 0x16 invalid parameters.
        Assert.Equal([0u, 0x16u, 0u], results.Skip(1).Select(result => BinaryPrimitives.ReadUInt32LittleEndian(result.Data.Span)));
        Assert.Equal(3u, ReportOf(results[3]).Vmpl);
    }

    [Fact]
    public async Task DerivedKeys_AreEqualForEqualRequests_AndDifferWithWhatIsSelected()
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon);
        IReadOnlyList<GuestStepResult> results = await guest.RunToHalt(
            Register, Ask(KeyType, GhcbGuest.KeyRequest(0)), Ask(KeyType, GhcbGuest.KeyRequest(0)), Ask(KeyType, GhcbGuest.KeyRequest(8)), Ask(KeyType, GhcbGuest.KeyRequest(0, fromVmrk: true)));
        string[] keys = [.. results.Skip(1).Select(result => Convert.ToHexString(result.Data.Span[0x20..]))];
        Assert.All(results.Skip(1), result => Assert.Equal(64, result.Data.Length));
        Assert.Equal(keys[0], keys[1]);
        Assert.Equal(3, keys.Distinct().Count());
        // The same as a tool gets that asks in the guest's stead.
        DeriveKeyResponse tool = await guest.Vm.Attestation.DeriveKeyAsync(new DeriveKeyRequest()).Reply;
        Assert.Equal(keys[0], Convert.ToHexString(tool.Key.Span));
    }

    [Fact]
    public async Task TscInfo_IsAnswered()
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon);
        GuestStepResult result = (await guest.RunToHalt(Register, Ask(TscInfoType, ByteString.CopyFrom(new byte[128]))))[1];
        Assert.Equal((GuestMessageOutcome.Answered, 128), (result.Message.Outcome, result.Data.Length));
    }

    [Fact]
    public async Task ARefusedMessage_IsToldToTheGuest_WhichWipesTheKey()
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon);
        GuestStep ask = Ask(7, ByteString.CopyFrom(new byte[32]));
        RunResponse run = await guest.Run(Register, ask, ask, Guest.Read(SnpGuest.Secrets + 0x20, 64), Guest.Halt());
        Assert.Equal(GuestMessageOutcome.Refused, run.Results[1].Message.Outcome);
        Assert.Equal((0UL, 0x16UL), (run.Results[1].Ghcb.ExitInfo1, run.Results[1].Ghcb.ExitInfo2));
        Assert.Contains("psp.guest-request.type", run.Results[1].Causes.Select(cause => cause.Rule));
        Assert.Equal(GuestMessageOutcome.NoKey, run.Results[2].Message.Outcome);
        Assert.All(run.Results[3].Data.Take(32), each => Assert.Equal(0, each));
        Assert.Contains(run.Results[3].Data.Skip(32), each => each != 0);
    }

    // The host cannot read a message, but it can put another one in its place.
    [Fact]
    public async Task AMessageUnderAnotherKey_IsRefusedByFirmware()
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon, certificates: true);
        byte[] forged = new GuestMessages(new byte[32]).SealReportRequest(Nonce);
        RunResponse run = await guest.Run(Register, Ask(ReportType, GhcbGuest.ReportRequest(Nonce), extended: true), Guest.Halt());
        Assert.Equal(KernelNumbers.KVM_EXIT_SNP_REQ_CERTS, run.Run.ExitReason);
        await guest.Process.WriteAsync(guest.Shared + (SnpGuest.Request - SnpGuest.Ghcb), forged);
        run = await guest.Continue(new RunPageUpdate { SnpReqCerts = new SnpReqCertsAnswer() });
        GuestStepResult result = SnpGuest.Last(run);
        Assert.Equal((GuestMessageOutcome.Refused, 0xBUL), (result.Message.Outcome, result.Ghcb.ExitInfo2));
        Assert.Contains("psp.guest-request.authtag", result.Causes.Select(cause => cause.Rule));
    }

    [Fact]
    public async Task AnExtendedRequest_WithoutCertificateSupport_GetsAnEmptyTable()
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon);
        IReadOnlyList<GuestStepResult> results = await guest.RunToHalt(
            Register,
            Guest.Fill(SnpGuest.Certificates, SnpGuest.Page, [0xff], GuestAccess.Shared),
            Ask(ReportType, GhcbGuest.ReportRequest(Nonce), extended: true),
            Guest.Read(SnpGuest.Certificates, 32, GuestAccess.Shared));
        Assert.Equal(GuestMessageOutcome.Answered, results[2].Message.Outcome);
        Assert.Equal([.. new byte[24], .. Enumerable.Repeat((byte)0xff, 8)], results[3].Data.ToByteArray());
    }

    [Fact]
    public async Task AnExtendedRequest_WithCertificates_ExitsToTheVmm_WhichGivesTheTable()
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon, certificates: true);
        byte[] table = (await guest.Host.GetCertificateTableAsync()).ToArray();
        ulong pages = ((ulong)table.Length + SnpGuest.Page - 1) / SnpGuest.Page;

        RunResponse run = await guest.Run(
            Register, Ask(ReportType, GhcbGuest.ReportRequest(Nonce), extended: true, pages: pages), Guest.Read(SnpGuest.Certificates, (ulong)table.Length, GuestAccess.Shared), Guest.Halt());
        Assert.Equal((0, KernelNumbers.KVM_EXIT_SNP_REQ_CERTS), (run.Outcome.Errno, run.Run.ExitReason));
        Assert.Equal((SnpGuest.Certificates, pages), (run.Run.SnpReqCerts.Gpa, run.Run.SnpReqCerts.Npages));

        await guest.Process.WriteAsync(guest.Shared + (SnpGuest.Certificates - SnpGuest.Ghcb), table);
        run = await guest.Continue(new RunPageUpdate { SnpReqCerts = new SnpReqCertsAnswer { Ret = 0 } });
        Assert.Equal(GuestMessageOutcome.Answered, run.Results[0].Message.Outcome);
        Assert.Equal(guest.LaunchDigest, Convert.ToHexStringLower(ReportOf(run.Results[0]).Measurement.Span));
        Assert.Equal(table, run.Results[1].Data.ToByteArray());
    }

    [Fact]
    public async Task WhereCertificatesNeedMoreRoom_TheGuestLearnsHowMuch_AndItsMessageGoesWithoutThem()
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon, certificates: true);
        await guest.Run(Register, Ask(ReportType, GhcbGuest.ReportRequest(Nonce), extended: true, pages: 1), Ask(ReportType, GhcbGuest.ReportRequest(Nonce)), Guest.Halt());
        RunResponse run = await guest.Continue(new RunPageUpdate { SnpReqCerts = new SnpReqCertsAnswer { Ret = Enospc, Npages = 7 } });
        Assert.Equal(KernelNumbers.KVM_EXIT_HLT, run.Run.ExitReason);
        Assert.Equal((GuestMessageOutcome.Answered, 7UL), (run.Results[0].Message.Outcome, run.Results[0].Message.CertificatePages));
        // The count stayed in step: the next message is answered too.
        Assert.Equal((GuestMessageOutcome.Answered, 3UL), (run.Results[1].Message.Outcome, run.Results[1].Message.Sequence));
    }

    [Fact]
    public async Task WhileTheVmmIsBusy_TheGuestComesAgain_WithTheSameMessage()
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon, certificates: true);
        RunResponse run = await guest.Run(Register, Ask(ReportType, GhcbGuest.ReportRequest(Nonce), extended: true), Guest.Halt());
        for (int i = 0; i < 3; i++)
        {
            Assert.Equal(KernelNumbers.KVM_EXIT_SNP_REQ_CERTS, run.Run.ExitReason);
            run = await guest.Continue(new RunPageUpdate { SnpReqCerts = new SnpReqCertsAnswer { Ret = Eagain } });
        }
        run = await guest.Continue(new RunPageUpdate { SnpReqCerts = new SnpReqCertsAnswer { Ret = 0 } });
        Assert.Equal((GuestMessageOutcome.Answered, 1UL), (SnpGuest.Last(run).Message.Outcome, SnpGuest.Last(run).Message.Sequence));
    }

    [Fact]
    public async Task AVmmThatIsBusyForAMinute_IsGivenUp()
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon, certificates: true);
        RunResponse run = await guest.Run(Register, Ask(ReportType, GhcbGuest.ReportRequest(Nonce), extended: true), Guest.Halt());
        int exits = 0;
        for (; run.Run.ExitReason == KernelNumbers.KVM_EXIT_SNP_REQ_CERTS; exits++)
            run = await guest.Continue(new RunPageUpdate { SnpReqCerts = new SnpReqCertsAnswer { Ret = Eagain } });
        Assert.Equal((30, GuestMessageOutcome.Busy), (exits, SnpGuest.Last(run).Message.Outcome));
    }

    [Fact]
    public async Task AnotherErrorOfTheVmm_IsAGenericOne_AndWhatIsNoErrnoOfTheInterfaceFailsTheRun()
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon, certificates: true);
        await guest.Run(Register, Ask(ReportType, GhcbGuest.ReportRequest(Nonce), extended: true), Guest.Halt());
        RunResponse run = await guest.Continue(new RunPageUpdate { SnpReqCerts = new SnpReqCertsAnswer { Ret = Eio } });
        Assert.Equal((GuestMessageOutcome.Refused, 1UL << 63), (SnpGuest.Last(run).Message.Outcome, SnpGuest.Last(run).Ghcb.ExitInfo2));

        await using SnpGuest other = await SnpGuest.LaunchAsync(daemon, certificates: true);
        await other.Run(Register, Ask(ReportType, GhcbGuest.ReportRequest(Nonce), extended: true), Guest.Halt());
        run = await other.Continue(new RunPageUpdate { SnpReqCerts = new SnpReqCertsAnswer { Ret = 22 } });
        Assert.Equal(("EINVAL", "sev.guest-request.certificates-answer"), (run.Outcome.ErrnoName, run.Outcome.Causes.Single().Rule));
    }

    [Fact]
    public async Task ARequestPageThatKvmCannotRead_FailsTheRunWithEio()
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon);
        await guest.RunToHalt(Register);
        var call = new GuestGhcbCall { GhcbGpa = SnpGuest.Ghcb, ExitCode = 0x8000_0011, ExitInfo1 = 1UL << 40, ExitInfo2 = SnpGuest.Response };
        RunResponse run = await guest.Run(GhcbGuest.Call(call), Guest.Halt());
        Assert.Equal(("EIO", "sev.guest-request.memory"), (run.Outcome.ErrnoName, run.Outcome.Causes[^1].Rule));
        Assert.Equal(KernelNumbers.KVM_EXIT_HLT, (await guest.Continue()).Run.ExitReason);
    }

    [Theory]
    [InlineData(SnpGuest.Request, SnpGuest.Request)]
    [InlineData(SnpGuest.Request + 8, SnpGuest.Response)]
    [InlineData(SnpGuest.Request, SnpGuest.Response + 8)]
    public async Task RequestAndResponse_AreTwoPages(ulong request, ulong response)
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon);
        var call = new GuestGhcbCall { GhcbGpa = SnpGuest.Ghcb, ExitCode = 0x8000_0011, ExitInfo1 = request, ExitInfo2 = response };
        IReadOnlyList<GuestStepResult> results = await guest.RunToHalt(Register, GhcbGuest.Call(call));
        Assert.Equal((2UL, 4UL), (results[1].Ghcb.ExitInfo1, results[1].Ghcb.ExitInfo2));
    }

    // A VMM that closed the descriptor of /dev/sev which it launched with cannot carry messages any more: KVM_RUN fails, the guest is not told.
    [Fact]
    public async Task WithoutTheLaunchsSevFd_TheRunFailsWithEbadf()
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon);
        await guest.Process.CloseAsync(guest.Sev.Fd);
        RunResponse run = await guest.Run(Register, Ask(ReportType, GhcbGuest.ReportRequest(Nonce)), Guest.Halt());
        Assert.Equal(("EBADF", "ccp.sev-fd"), (run.Outcome.ErrnoName, run.Outcome.Causes.Single().Rule));
    }

    private static GuestStep Register { get; } = GhcbGuest.RegisterGhcb(SnpGuest.Ghcb);

    private static GuestStep Ask(uint type, ByteString payload, uint vmpck = 0, bool extended = false, ulong pages = 4) => GhcbGuest.Request(new GuestSnpRequest
    {
        GhcbGpa = SnpGuest.Ghcb,
        SecretsGpa = SnpGuest.Secrets,
        RequestGpa = SnpGuest.Request,
        ResponseGpa = SnpGuest.Response,
        Vmpck = vmpck,
        MessageType = type,
        Payload = payload,
        Extended = extended,
        CertificatesGpa = SnpGuest.Certificates,
        CertificatesPages = pages,
    });

    private static SnpReport ReportOf(GuestStepResult result) => SnpReport.Parse(result.Data.Memory[0x20..]);
}
