using Google.Protobuf;
using Grpc.Core;
using VmmService.Client.Attestation;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Attestation;

/// <summary>Reports, keys, certificates and evidence over gRPC, judged by a verifier that knows nothing of the simulator.</summary>
public sealed class AttestationServiceTests(Daemon daemon) : IClassFixture<Daemon>
{
    public static TheoryData<EvidenceKind, Refusal> MustRefuse => new()
    {
        { EvidenceKind.WrongMeasurement, Refusal.Measurement },
        { EvidenceKind.DebugPolicy, Refusal.Debug },
        { EvidenceKind.StaleTcb, Refusal.TcbTooOld },
        { EvidenceKind.WrongVmpl, Refusal.Vmpl },
        { EvidenceKind.BrokenChain, Refusal.IntermediateSignature },
        { EvidenceKind.UntrustedRoot, Refusal.UntrustedRoot },
        { EvidenceKind.Revoked, Refusal.Revoked },
        { EvidenceKind.ReplayedNonce, Refusal.ReportData },
        { EvidenceKind.AlteredReport, Refusal.ReportSignature },
        { EvidenceKind.ForeignChip, Refusal.ChipId },
        { EvidenceKind.TcbMismatch, Refusal.TcbOfCertificate },
        { EvidenceKind.ExpiredCertificate, Refusal.CertificateExpired },
    };

    [Theory]
    [InlineData(EpycProduct.Milan, 2u)]
    [InlineData(EpycProduct.Genoa, 3u)]
    [InlineData(EpycProduct.Turin, 5u)]
    public async Task Evidence_OfALaunch_IsAcceptedAndMeasuresThatLaunch(EpycProduct product, uint version)
    {
        var machine = new MachineConfig { Product = product, Attestation = new AttestationConfig { ReportVersion = version } };
        await using AttestedGuest guest = await AttestedGuest.Launch(daemon.Stubs, machine);

        MakeEvidenceResponse evidence = await guest.Evidence(EvidenceKind.Sound);

        Assert.Empty(AttestedGuest.Verify(evidence));
        Assert.Equal("", evidence.Defect);
        Assert.Equal(guest.LaunchDigest, evidence.Expected.Measurement);
        var report = SnpReport.Parse(evidence.Report.Memory);
        Assert.Equal((version, 0x30000ul), (report.Version, report.Policy));
        Assert.Equal(guest.LaunchDigest, Convert.ToHexStringLower(report.Measurement.Span));
        Assert.Equal(AttestedGuest.Nonce, report.ReportData.ToArray());
        Assert.Equal(AttestedGuest.Nonce[..32], report.HostData.ToArray());
        Assert.True(report.IsSimulated);
        Assert.Equal(evidence.Expected.MinTcb, report.DecodeTcb(report.ReportedTcb));
    }

    [Theory]
    [MemberData(nameof(MustRefuse))]
    public async Task Evidence_ThatMustBeRefused_IsForItsOwnReasonAlone(EvidenceKind kind, Refusal reason)
    {
        await using AttestedGuest guest = await AttestedGuest.Launch(daemon.Stubs);

        MakeEvidenceResponse evidence = await guest.Evidence(kind);

        Assert.Equal([reason], AttestedGuest.Verify(evidence));
        Assert.Equal(kind, evidence.Kind);
        Assert.NotEqual("", evidence.Defect);
        Assert.Equal(guest.LaunchDigest, evidence.Expected.Measurement);
    }

    [Fact]
    public void EveryKindButSound_IsInTheTable() =>
        Assert.Equal(Enum.GetValues<EvidenceKind>().Except([EvidenceKind.Unspecified, EvidenceKind.Sound]).Order(), MustRefuse.Select(row => row.Data.Item1).Order());

    [Fact]
    public async Task GuestsOfTheSameSeed_GetTheSameBytes()
    {
        await using AttestedGuest first = await AttestedGuest.Launch(daemon.Stubs), second = await AttestedGuest.Launch(daemon.Stubs);
        await using AttestedGuest other = await AttestedGuest.Launch(daemon.Stubs, content: 0x5B);

        Assert.Equal((await first.Report()).Report, (await second.Report()).Report);
        Assert.Equal((await first.Report()).Report, (await first.Report()).Report);
        Assert.NotEqual((await first.Report()).Report, (await other.Report()).Report);
        Assert.Equal(await Chain(first), await Chain(second));

        async Task<GetCertificateChainResponse> Chain(AttestedGuest guest) =>
            await daemon.Stubs.Attestation.GetCertificateChainAsync(new GetCertificateChainRequest { Host = guest.Process.Host });
    }

    [Fact]
    public async Task Host_TellsItsPlatformWithAllDefaultsFilledIn()
    {
        var tcb = new TcbVersion { BootLoader = 2, Tee = 1, Snp = 7, Microcode = 100 };
        var machine = new MachineConfig
        {
            Product = EpycProduct.Genoa,
            Attestation = new AttestationConfig { CommittedTcb = new TcbVersion { BootLoader = 3, Snp = 8, Microcode = 115 }, ReportedTcb = new TcbVersion { Snp = 1 }, Tio = true },
        };
        machine.Attestation.CurrentTcb = new TcbVersion { BootLoader = 3, Tee = 1, Snp = 8, Microcode = 115 };
        machine.Attestation.LaunchTcb = tcb;

        Host host = (await daemon.Stubs.Hosts.CreateHostAsync(new CreateHostRequest { Machine = machine })).Host;

        Assert.Equal(EpycProduct.Genoa, host.Machine.Product);
        AttestationConfig told = host.Machine.Attestation;
        Assert.Equal((1u, 8u, tcb, true, false), (told.ReportedTcb.Snp, told.CommittedTcb.Snp, told.LaunchTcb, told.Tio, told.MaskChipKey));
        await daemon.Stubs.Hosts.DeleteHostAsync(new DeleteHostRequest { Host = host.Host_ });
    }

    [Fact]
    public async Task Platforms_ThatCannotBe_AreRefusedWithTheField()
    {
        (AttestationConfig Config, string Says)[] bad =
        [
            (new() { ReportVersion = 4 }, "report_version"),
            (new() { ReportedTcb = new TcbVersion { Snp = 200 } }, "reported_tcb"),
            (new() { CurrentTcb = new TcbVersion { Snp = 256 } }, "machine.attestation.current_tcb.snp"),
            (new() { CurrentTcb = new TcbVersion { Fmc = 1 } }, "current_tcb.fmc"),
            (new() { VlekCspId = "\u00e9" }, "vlek_csp_id"),
        ];
        foreach ((AttestationConfig config, string says) in bad)
        {
            RpcException refused = await Assert.ThrowsAsync<RpcException>(async () =>
                await daemon.Stubs.Hosts.CreateHostAsync(new CreateHostRequest { Machine = new MachineConfig { Attestation = config } }));
            Assert.Equal(StatusCode.InvalidArgument, refused.StatusCode);
            Assert.Contains(says, refused.Status.Detail, StringComparison.Ordinal);
        }
    }

    [Fact]
    public async Task Report_BeforeTheLaunchIsFinished_IsEioWithTheFirmwaresReason()
    {
        await using BareProcess process = await BareProcess.Start(daemon.Stubs);
        SnpVm vm = await process.StartSnpVm();

        GetReportResponse response = await daemon.Stubs.Attestation.GetReportAsync(new GetReportRequest { Host = process.Host, Pid = process.Pid, Fd = vm.Fd });

        Assert.Equal(("EIO", "INVALID_GUEST_STATE"), (response.Outcome.ErrnoName, response.Sev.ErrorName));
        Assert.Equal("psp.guest-state", response.Outcome.Causes[0].Rule);
        Assert.True(response.Report.IsEmpty);
    }

    [Fact]
    public async Task Report_OfAVmWithoutSnp_IsEio()
    {
        await using BareProcess process = await BareProcess.Start(daemon.Stubs);
        int vm = await process.CreateVm(VmType.Default);

        GetReportResponse response = await daemon.Stubs.Attestation.GetReportAsync(new GetReportRequest { Host = process.Host, Pid = process.Pid, Fd = vm });

        Assert.Equal("EIO", response.Outcome.ErrnoName);
        Assert.NotEmpty(response.Outcome.Causes);
    }

    // VMPL, VMPCK, key; status in the answer and the rule.
    [Theory]
    [InlineData(0u, 1u, KeySelection.Unspecified, "INVALID_PARAM", "psp.guest-message.vmpl")]
    [InlineData(4u, 0u, KeySelection.Unspecified, "INVALID_PARAM", "psp.guest-message.vmpl")]
    [InlineData(0u, 0u, KeySelection.Vlek, "INVALID_KEY", "psp.guest-message.key-unavailable")]
    public async Task Report_ThatFirmwareDenies_IsEioWithTheStatusOfTheAnswer(uint vmpl, uint vmpck, KeySelection key, string status, string rule)
    {
        await using AttestedGuest guest = await AttestedGuest.Launch(daemon.Stubs);

        GetReportResponse response = await guest.Report(guest.Request(vmpl, vmpck, key));

        Assert.Equal(("EIO", "SUCCESS", status), (response.Outcome.ErrnoName, response.Sev.ErrorName, response.MessageStatus.StatusName));
        Assert.Equal([rule, "sev.guest-message.denied"], response.Outcome.Causes.Select(cause => cause.Rule));
    }

    [Fact]
    public async Task Requests_ThatCannotBe_AreRefusedWithTheField()
    {
        await using AttestedGuest guest = await AttestedGuest.Launch(daemon.Stubs);
        (Func<Task> Call, string Field)[] bad =
        [
            (() => guest.Report(Changed(each => each.ReportData = ByteString.CopyFrom(1))), "report_data"),
            (() => guest.Report(Changed(each => each.Vmpck = 4)), "vmpck"),
            (() => guest.Report(Changed(each => each.KeySelection = (KeySelection)9)), "key_selection"),
            (() => guest.Report(Changed(each => each.Fd = guest.Process.Kvm)), "fd"),
            (() => guest.Evidence(EvidenceKind.Unspecified), "kind"),
            (() => guest.Evidence((EvidenceKind)99), "kind"),
            (async () => await daemon.Stubs.Attestation.MakeEvidenceAsync(new MakeEvidenceRequest { Kind = EvidenceKind.Sound }), "report"),
            (async () => await daemon.Stubs.Attestation.DeriveKeyAsync(new DeriveKeyRequest { RootKey = (RootKey)7 }), "root_key"),
            (async () => await daemon.Stubs.Attestation.GetCertificateChainAsync(new GetCertificateChainRequest { Host = guest.Process.Host, KeySelection = KeySelection.Vlek }), "key_selection"),
        ];
        foreach ((Func<Task> call, string field) in bad)
        {
            RpcException refused = await Assert.ThrowsAsync<RpcException>(call);
            Assert.Equal(StatusCode.InvalidArgument, refused.StatusCode);
            Assert.StartsWith(field, refused.Status.Detail, StringComparison.Ordinal);
        }

        GetReportRequest Changed(Action<GetReportRequest> change)
        {
            GetReportRequest request = guest.Request();
            change(request);
            return request;
        }
    }

    [Fact]
    public async Task DerivedKey_IsBoundToWhatWasSelected()
    {
        await using AttestedGuest guest = await AttestedGuest.Launch(daemon.Stubs), other = await AttestedGuest.Launch(daemon.Stubs, content: 0x5B);
        const ulong measurement = 1 << 3;

        ByteString plain = (await Derive(guest, 0)).Key, measured = (await Derive(guest, measurement)).Key;

        Assert.Equal(32, plain.Length);
        Assert.Equal(plain, (await Derive(other, 0)).Key);
        Assert.NotEqual(measured, (await Derive(other, measurement)).Key);
        Assert.NotEqual(plain, measured);
        DeriveKeyResponse denied = await Derive(guest, 1 << 7);
        Assert.Equal(("EIO", "INVALID_PARAM", "psp.guest-message.key-fields"), (denied.Outcome.ErrnoName, denied.MessageStatus.StatusName, denied.Outcome.Causes[0].Rule));

        async Task<DeriveKeyResponse> Derive(AttestedGuest of, ulong fields) => await daemon.Stubs.Attestation.DeriveKeyAsync(
            new DeriveKeyRequest { Host = of.Process.Host, Pid = of.Process.Pid, Fd = of.Fd, GuestFieldSelect = fields });
    }

    [Theory]
    [InlineData(false, "63da758d-e664-4564-adc5-f4b93be8accd")]
    [InlineData(true, "a8074bc2-a25a-483e-aae6-39c045a0b8a1")]
    public async Task CertificateTable_HasTheChain(bool vlek, string endorsementGuid)
    {
        var machine = new MachineConfig { Attestation = new AttestationConfig { VlekCspId = vlek ? "CSP" : "" } };
        await using AttestedGuest guest = await AttestedGuest.Launch(daemon.Stubs, machine);
        string host = guest.Process.Host;

        GetCertificateChainResponse chain = await daemon.Stubs.Attestation.GetCertificateChainAsync(new GetCertificateChainRequest { Host = host });
        byte[] table = (await daemon.Stubs.Attestation.GetCertificateTableAsync(new GetCertificateTableRequest { Host = host, WithCrl = true })).Table.ToByteArray();
        ByteString crl = (await daemon.Stubs.Attestation.GetCrlAsync(new GetCrlRequest { Host = host })).Crl;

        Assert.Equal(vlek, chain.Vlek);
        (Guid, ByteString)[] expected =
        [
            (Guid.Parse(endorsementGuid), chain.Endorsement),
            (Guid.Parse("4ab7b379-bbac-4fe4-a02f-05aef327c782"), chain.Intermediate),
            (Guid.Parse("c0b406a4-a803-4952-9743-3fb6014cd0ae"), chain.Ark),
            (Guid.Parse("92f81bc3-5811-4d3d-97ff-d19f88dc67ea"), crl),
        ];
        for (int i = 0; i < expected.Length; i++)
        {
            ReadOnlySpan<byte> entry = table.AsSpan(24 * i, 24);
            int offset = BitConverter.ToInt32(entry[16..]), length = BitConverter.ToInt32(entry[20..]);
            Assert.Equal(expected[i].Item1, new Guid(entry[..16], bigEndian: true));
            Assert.Equal(expected[i].Item2, ByteString.CopyFrom(table.AsSpan(offset, length)));
        }
        Assert.All(table[(24 * 4)..(24 * 5)], each => Assert.Equal(0, each));
        Assert.Empty(AttestedGuest.Verify(await guest.Evidence(EvidenceKind.Sound)));
    }
}
