using System.Security.Cryptography;
using System.Text.Json;
using Google.Protobuf;
using Grpc.Core;
using VmmService.Client;
using VmmService.IntegrationTests.Launch;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Attestation;

/// <summary>
/// The secure processor by hand, over gRPC: the vectors whose keys, nonces and digests no launch brings about, and a guest owner who has no cryptography of its own.
/// </summary>
public sealed class PspServiceTests(Daemon daemon) : IClassFixture<Daemon>
{
    private const ulong Page = GuestBench.Page;

    public static TheoryData<string> Chains => SnpVectors.Ids("page-info-chain");

    public static TheoryData<string> IdBlocks => SnpVectors.Ids("id-block");

    public static TheoryData<string> Sessions => SnpVectors.Ids("sev-launch-session");

    public static TheoryData<string> Measurements => SnpVectors.Ids("sev-launch-measure");

    public static TheoryData<string> Secrets => SnpVectors.Ids("sev-launch-secret");

    public static TheoryData<string> Messages => SnpVectors.Ids("guest-message");

    private PspService.PspServiceClient Psp => daemon.Stubs.Psp;

    [Theory]
    [MemberData(nameof(Chains))]
    public async Task AChainOfPages_GoesOnFromItsInitialDigest(string id)
    {
        SnpVector vector = SnpVectors.Get(id);
        var request = new ExtendLaunchDigestRequest { Initial = Given(vector, "initial") };
        foreach (JsonElement op in vector.Params.GetProperty("ops").EnumerateArray())
        {
            var page = new MeasuredPageInfo { Type = (SnpPageType)op.GetProperty("type").GetInt32(), Gpa = SnpVector.Hex(op.GetProperty("gpa").GetString()!) };
            if (page.Type is SnpPageType.Normal or SnpPageType.Vmsa)
            {
                if (op.TryGetProperty("contents_sha384", out _))
                    page.ContentsSha384 = Hex(op, "contents_sha384");
                else
                    page.Page = ByteString.CopyFrom(SnpVectorServiceTests.ContentOf(op, request.Pages.Count));
            }
            request.Pages.Add(page);
        }

        ExtendLaunchDigestResponse response = await Psp.ExtendLaunchDigestAsync(request);

        Assert.Equal(vector.ExpectedText("digest"), Hex(response.Digest));
        Assert.Equal(request.Pages.Count, response.Steps.Count);
        if (vector.Expected.TryGetProperty("steps", out JsonElement steps))
            Assert.Equal(steps.EnumerateArray().Select(step => step.GetString()), response.Steps.Select(Hex));
    }

    // A page and its hash are the same to firmware, and a chain can be cut anywhere.
    [Fact]
    public async Task APage_IsMeasuredAsItsHash_AndAChainGoesOnWhereItWasCut()
    {
        byte[] page = [.. Enumerable.Range(0, 4096).Select(i => (byte)(i * 7))];
        var normal = new MeasuredPageInfo { Type = SnpPageType.Normal, Gpa = Page, Page = ByteString.CopyFrom(page) };
        var hashed = new MeasuredPageInfo { Type = SnpPageType.Normal, Gpa = Page, ContentsSha384 = ByteString.CopyFrom(SHA384.HashData(page)) };
        var zero = new MeasuredPageInfo { Type = SnpPageType.Zero, Gpa = 2 * Page };

        ExtendLaunchDigestResponse whole = await Psp.ExtendLaunchDigestAsync(new ExtendLaunchDigestRequest { Pages = { normal, zero } });
        ExtendLaunchDigestResponse first = await Psp.ExtendLaunchDigestAsync(new ExtendLaunchDigestRequest { Pages = { hashed } });
        ExtendLaunchDigestResponse rest = await Psp.ExtendLaunchDigestAsync(new ExtendLaunchDigestRequest { Initial = first.Digest, Pages = { zero } });

        Assert.Equal(whole.Steps, [first.Digest, rest.Digest]);
        await using PartLaunch launch = await PartLaunch.CreateAsync(daemon);
        await launch.AddPageAsync(Page);
        await launch.AddPageAsync(2 * Page);
        await launch.Snp.StartAsync();
        await launch.UpdateAsync(Page, SnpPageType.Normal, page);
        await launch.UpdateAsync(2 * Page, SnpPageType.Zero, new byte[Page]);
        Assert.Equal(await launch.Snp.FinishAsync(), Hex(whole.Digest));
    }

    [Theory]
    [MemberData(nameof(IdBlocks))]
    public async Task AnIdBlock_IsAcceptedForItsLaunch_AndLeavesItsKeysDigests(string id)
    {
        SnpVector vector = SnpVectors.Get(id);
        byte[] block = Convert.FromHexString(vector.ExpectedText("id_block_hex")!), auth = SnpVectorServiceTests.Authentication(vector);
        Assert.Equal(vector.ExpectedText("id_auth_sha256"), Hex(ByteString.CopyFrom(SHA256.HashData(auth))));
        var request = new CheckIdBlockRequest
        {
            IdBlock = ByteString.CopyFrom(block),
            IdAuth = ByteString.CopyFrom(auth),
            AuthKeyEn = true,
            LaunchDigest = Given(vector, "launch_digest"),
            Policy = SnpVector.Hex(vector.Params.GetProperty("policy").GetString()!),
        };

        CheckIdBlockResponse accepted = await Psp.CheckIdBlockAsync(request);

        Assert.Equal("SUCCESS", accepted.Sev.ErrorName);
        Assert.Empty(accepted.Causes);
        Assert.Equal((vector.ExpectedText("id_key_digest"), vector.ExpectedText("author_key_digest")), (Hex(accepted.IdKeyDigest), Hex(accepted.AuthorKeyDigest)));
        Assert.Equal(
            (vector.Params.GetProperty("family_id").GetString(), vector.Params.GetProperty("image_id").GetString(), vector.Params.GetProperty("guest_svn").GetUInt32()),
            (Hex(accepted.FamilyId), Hex(accepted.ImageId), accepted.GuestSvn));

        CheckIdBlockRequest Changed(Action<CheckIdBlockRequest> change)
        {
            CheckIdBlockRequest copy = request.Clone();
            change(copy);
            return copy;
        }
        (CheckIdBlockRequest Request, string Status, string Rule)[] refused =
        [
            (Changed(each => each.LaunchDigest = Flipped(each.LaunchDigest, 0)), "BAD_MEASUREMENT", "psp.id-block.bad-measurement"),
            (Changed(each => each.Policy ^= 1), "POLICY_FAILURE", "psp.id-block.policy"),
            (Changed(each => each.IdBlock = Flipped(each.IdBlock, 0x30)), "BAD_SIGNATURE", "psp.id-block.bad-signature"),
            (Changed(each => each.IdAuth = Flipped(each.IdAuth, 0x680)), "BAD_SIGNATURE", "psp.id-block.bad-id-key-signature"),
        ];
        foreach ((CheckIdBlockRequest changed, string status, string rule) in refused)
        {
            CheckIdBlockResponse answer = await Psp.CheckIdBlockAsync(changed);
            Assert.Equal((status, rule), (answer.Sev.ErrorName, Assert.Single(answer.Causes).Rule));
            Assert.True(answer.IdKeyDigest.IsEmpty);
        }
    }

    [Theory]
    [MemberData(nameof(Sessions))]
    public async Task ASession_IsMadeAndOpened(string id)
    {
        SnpVector vector = SnpVectors.Get(id);
        uint policy = vector.Params.GetProperty("policy").GetUInt32();

        MakeSessionResponse made = await Psp.MakeSessionAsync(new MakeSessionRequest
        {
            Z = Given(vector, "z_hex"),
            Nonce = Given(vector, "nonce"),
            Iv = Given(vector, "iv"),
            Tek = Given(vector, "tek"),
            Tik = Given(vector, "tik"),
            Policy = policy,
        });

        Assert.Equal(string.Concat(new[] { "nonce", "wrap_tk", "wrap_iv", "wrap_mac", "policy_mac" }.Select(vector.ExpectedText)), Hex(made.Session));
        Assert.Equal(
            (vector.ExpectedText("master_secret"), vector.ExpectedText("kek"), vector.ExpectedText("kik")), (Hex(made.Keys.MasterSecret), Hex(made.Keys.Kek), Hex(made.Keys.Kik)));
        Assert.True(made.DhCert.IsEmpty);

        var open = new OpenSessionRequest { Z = Given(vector, "z_hex"), Session = made.Session, Policy = policy };
        OpenSessionResponse opened = await Psp.OpenSessionAsync(open);
        Assert.Equal(("SUCCESS", Given(vector, "tek"), Given(vector, "tik"), made.Keys), (opened.Sev.ErrorName, opened.Tek, opened.Tik, opened.Keys));
        Assert.Equal((vector.ExpectedText("wrap_mac"), vector.ExpectedText("policy_mac")), (Hex(opened.WrapMac), Hex(opened.PolicyMac)));

        // Which MAC is wrong, and what it has to be.
        OpenSessionResponse otherPolicy = await Psp.OpenSessionAsync(new OpenSessionRequest { Z = open.Z, Session = open.Session, Policy = policy + 1 });
        Assert.Equal(("BAD_MEASUREMENT", true, false), (otherPolicy.Sev.ErrorName, otherPolicy.Tek.IsEmpty, otherPolicy.PolicyMac.IsEmpty));
        Assert.Equal(made.Session.Span[64..96], otherPolicy.WrapMac.Span);
        OpenSessionResponse altered = await Psp.OpenSessionAsync(new OpenSessionRequest { Z = open.Z, Session = Flipped(open.Session, 16), Policy = policy });
        Assert.Equal(("BAD_MEASUREMENT", true, true), (altered.Sev.ErrorName, altered.Tek.IsEmpty, altered.PolicyMac.IsEmpty));
    }

    [Theory]
    [MemberData(nameof(Measurements))]
    public async Task AMeasurement_IsTheVectors(string id)
    {
        SnpVector vector = SnpVectors.Get(id);
        uint Number(string name) => vector.Params.GetProperty(name).GetUInt32();
        ByteString measure = (await Psp.MeasureLaunchAsync(new MeasureLaunchRequest
        {
            Tik = Given(vector, "tik"),
            ApiMajor = Number("api_major"),
            ApiMinor = Number("api_minor"),
            Build = Number("build"),
            Policy = Number("policy"),
            LaunchDigest = Given(vector, "launch_digest"),
            Mnonce = Given(vector, "mnonce"),
        })).Measure;

        Assert.Equal(vector.ExpectedText("measure"), Hex(measure));
        Assert.Equal(vector.ExpectedText("blob_hex"), Hex(measure) + vector.Params.GetProperty("mnonce").GetString());
    }

    [Theory]
    [MemberData(nameof(Secrets))]
    public async Task ASecret_IsSealedAndOpened(string id)
    {
        SnpVector vector = SnpVectors.Get(id);
        SealSecretResponse made = await Psp.SealSecretAsync(new SealSecretRequest
        {
            Tek = Given(vector, "tek"),
            Tik = Given(vector, "tik"),
            Iv = Given(vector, "iv"),
            Data = Given(vector, "data_hex"),
            Measure = Given(vector, "measure"),
        });
        Assert.Equal((vector.ExpectedText("header_hex"), vector.ExpectedText("ciphertext_hex")), (Hex(made.Header), Hex(made.Ciphertext)));

        var open = new OpenSecretRequest { Tek = Given(vector, "tek"), Tik = Given(vector, "tik"), Header = made.Header, Ciphertext = made.Ciphertext, Measure = Given(vector, "measure") };
        OpenSecretResponse opened = await Psp.OpenSecretAsync(open);
        Assert.Equal(("SUCCESS", Given(vector, "data_hex")), (opened.Sev.ErrorName, opened.Data));
        open.Measure = Flipped(open.Measure, 0);
        OpenSecretResponse elsewhere = await Psp.OpenSecretAsync(open);
        Assert.Equal(("BAD_MEASUREMENT", true), (elsewhere.Sev.ErrorName, elsewhere.Data.IsEmpty));
        // Bit 0 of the flags: the data is compressed.
        open.Header = Flipped(open.Header, 0);
        OpenSecretResponse compressed = await Psp.OpenSecretAsync(open);
        Assert.Equal(("UNSUPPORTED", true), (compressed.Sev.ErrorName, compressed.Data.IsEmpty));
    }

    [Theory]
    [MemberData(nameof(Messages))]
    public async Task AGuestMessage_IsSealedAndOpened(string id)
    {
        SnpVector vector = SnpVectors.Get(id);
        var seal = new SealGuestMessageRequest
        {
            Vmpck = Given(vector, "vmpck_hex"),
            MsgVmpck = vector.Params.GetProperty("msg_vmpck").GetUInt32(),
            MsgSeqno = vector.Params.GetProperty("msg_seqno").GetUInt64(),
            MsgType = vector.Params.GetProperty("msg_type").GetUInt32(),
            Payload = Given(vector, "plaintext_hex"),
        };

        ByteString page = (await Psp.SealGuestMessageAsync(seal)).Page;

        Assert.Equal((vector.ExpectedText("header_hex")! + vector.ExpectedText("ciphertext_hex")).PadRight(2 * 4096, '0'), Hex(page));
        OpenGuestMessageResponse opened = await Psp.OpenGuestMessageAsync(new OpenGuestMessageRequest { Vmpck = seal.Vmpck, Page = page });
        Assert.Equal(
            ("SUCCESS", seal.MsgVmpck, seal.MsgSeqno, seal.MsgType, seal.Payload), (opened.Sev.ErrorName, opened.MsgVmpck, opened.MsgSeqno, opened.MsgType, opened.Payload));
        foreach ((int at, string status) in new[] { (0, "BAD_MEASUREMENT"), (0x20, "BAD_MEASUREMENT"), (0x34, "BAD_MEASUREMENT"), (0x37, "INVALID_PARAM"), (0x60, "BAD_MEASUREMENT") })
        {
            OpenGuestMessageResponse refused = await Psp.OpenGuestMessageAsync(new OpenGuestMessageRequest { Vmpck = seal.Vmpck, Page = Flipped(page, at, 0x80) });
            Assert.Equal((status, true), (refused.Sev.ErrorName, refused.Payload.IsEmpty));
        }
    }

    // What a client without any cryptography does, with grpcurl if need be: the arithmetic is the service's, the launch is real.
    [Fact]
    public async Task AnOwnerWithoutCryptography_LaunchesBySession_ComparesTheMeasurement_AndSendsASecret()
    {
        await using SevBench bench = await SevBench.CreateAsync(daemon, VmType.Sev);
        byte[] firmware = GuestBench.Filled(4, 0x42), key = [.. Enumerable.Range(1, 48).Select(i => (byte)i)], secret = [.. "thirty-two bytes to be kept secr"u8];
        var make = new MakeSessionRequest
        {
            Exchange = new KeyExchange { PdhCert = ByteString.CopyFrom((await bench.Sev.ExportPdhAsync()).Pdh.Bytes.Span), PrivateKey = ByteString.CopyFrom(key) },
            Nonce = Filled(16, 1),
            Iv = Filled(16, 2),
            Tek = Filled(16, 3),
            Tik = Filled(16, 4),
            Policy = bench.DefaultPolicy,
        };
        MakeSessionResponse session = await Psp.MakeSessionAsync(make);
        await bench.Launch.StartAsync(make.Policy, dhCertificate: session.DhCert.Memory, session: session.Session.Memory);
        await bench.Process.WriteAsync(bench.Memory, firmware);
        await bench.Launch.UpdateDataAsync(bench.Memory, (uint)firmware.Length);
        SevLaunchMeasureResponse measured = await bench.Launch.MeasureAsync();

        (byte major, byte minor, byte build) = await bench.FirmwareAsync();
        ByteString measure = (await Psp.MeasureLaunchAsync(new MeasureLaunchRequest
        {
            Tik = make.Tik,
            ApiMajor = major,
            ApiMinor = minor,
            Build = build,
            Policy = make.Policy,
            LaunchDigest = ByteString.CopyFrom(SHA256.HashData(firmware)),
            Mnonce = measured.Mnonce,
        })).Measure;
        Assert.Equal(measured.Measure, measure);

        SealSecretResponse packet = await Psp.SealSecretAsync(
            new SealSecretRequest { Tek = make.Tek, Tik = make.Tik, Iv = Filled(16, 5), Data = ByteString.CopyFrom(secret), Measure = measure });
        await bench.Launch.SecretAsync(packet.Header.ToByteArray(), packet.Ciphertext.ToByteArray(), bench.Memory + (6 * Page));
        await bench.Launch.FinishAsync();
        await bench.Vcpu.LoadProgramAsync([Guest.Compare(6 * Page, secret, access: GuestAccess.Private), Guest.Halt()]);
        Assert.False((await bench.Vcpu.RunAsync()).Results[0].HasMismatchAt);
    }

    [Fact]
    public async Task Requests_ThatCannotBe_AreRefusedWithTheField()
    {
        var page = new MeasuredPageInfo { Type = SnpPageType.Normal, Gpa = Page, ContentsSha384 = Filled(48, 1) };
        MeasuredPageInfo With(Action<MeasuredPageInfo> change)
        {
            MeasuredPageInfo copy = page.Clone();
            change(copy);
            return copy;
        }
        Func<Task> Extend(MeasuredPageInfo bad) => async () => await Psp.ExtendLaunchDigestAsync(new ExtendLaunchDigestRequest { Pages = { page, bad } });
        Func<Task> Make(Action<MakeSessionRequest> change) => async () =>
        {
            var request = new MakeSessionRequest { Z = Filled(48, 1), Nonce = Filled(16, 1), Iv = Filled(16, 1), Tek = Filled(16, 1), Tik = Filled(16, 1) };
            change(request);
            await Psp.MakeSessionAsync(request);
        };
        await using SevBench bench = await SevBench.CreateAsync(daemon, VmType.Sev);
        var pdh = ByteString.CopyFrom((await bench.Sev.ExportPdhAsync()).Pdh.Bytes.Span);
        (Func<Task> Call, string Field)[] bad =
        [
            (async () => await Psp.ExtendLaunchDigestAsync(new ExtendLaunchDigestRequest { Initial = Filled(47, 1) }), "initial"),
            (async () => await Psp.ExtendLaunchDigestAsync(new ExtendLaunchDigestRequest { Pages = { Enumerable.Repeat(page, 65537) } }), "pages"),
            (Extend(With(each => each.Type = SnpPageType.Unspecified)), "pages[1].type"),
            (Extend(With(each => each.Type = (SnpPageType)9)), "pages[1].type"),
            (Extend(With(each => each.Gpa++)), "pages[1].gpa"),
            (Extend(With(each => each.ClearContents())), "pages[1].contents"),
            (Extend(With(each => each.Type = SnpPageType.Zero)), "pages[1].contents"),
            (Extend(With(each => each.ContentsSha384 = Filled(47, 1))), "pages[1].contents_sha384"),
            (Extend(With(each => each.Page = Filled(4095, 1))), "pages[1].page"),
            (Extend(With(each => each.Vmpl2Perms = 256)), "pages[1].vmpl2_perms"),
            (async () => await Psp.CheckIdBlockAsync(new CheckIdBlockRequest()), "id_block"),
            (async () => await Psp.CheckIdBlockAsync(new CheckIdBlockRequest { IdBlock = Filled(96, 0) }), "id_auth"),
            (async () => await Psp.CheckIdBlockAsync(new CheckIdBlockRequest { IdBlock = Filled(96, 0), IdAuth = Filled(4096, 0) }), "launch_digest"),
            (Make(each => each.ClearAgreement()), "agreement"),
            (Make(each => each.Z = ByteString.Empty), "z"),
            (Make(each => each.Z = Filled(129, 1)), "z"),
            (Make(each => each.Nonce = Filled(15, 1)), "nonce"),
            (Make(each => each.Iv = ByteString.Empty), "iv"),
            (Make(each => each.Tek = Filled(17, 1)), "tek"),
            (Make(each => each.Tik = Filled(17, 1)), "tik"),
            (Make(each => each.Exchange = new KeyExchange { PdhCert = pdh, PrivateKey = Filled(47, 1) }), "exchange.private_key"),
            (Make(each => each.Exchange = new KeyExchange { PdhCert = pdh, PrivateKey = Filled(48, 0) }), "exchange.private_key"),
            (Make(each => each.Exchange = new KeyExchange { PdhCert = pdh, PrivateKey = Filled(48, 0xFF) }), "exchange.private_key"),
            (Make(each => each.Exchange = new KeyExchange { PdhCert = Flipped(pdh, 0x14), PrivateKey = Filled(48, 1) }), "exchange.pdh_cert"),
            (Make(each => each.Exchange = new KeyExchange { PrivateKey = Filled(48, 1) }), "exchange.pdh_cert"),
            (async () => await Psp.OpenSessionAsync(new OpenSessionRequest { Z = Filled(48, 1), Session = Filled(127, 1) }), "session"),
            (async () => await Psp.MeasureLaunchAsync(new MeasureLaunchRequest { Tik = Filled(16, 1), ApiMajor = 256 }), "api_major"),
            (async () => await Psp.MeasureLaunchAsync(new MeasureLaunchRequest { Tik = Filled(16, 1) }), "launch_digest"),
            (async () => await Psp.SealSecretAsync(new SealSecretRequest { Tek = Filled(16, 1), Tik = Filled(16, 1), Iv = Filled(16, 1), Data = Filled(15, 1) }), "data"),
            (async () => await Psp.SealSecretAsync(new SealSecretRequest { Tek = Filled(16, 1), Tik = Filled(16, 1), Iv = Filled(16, 1), Data = Filled(16400, 1) }), "data"),
            (async () => await Psp.OpenSecretAsync(new OpenSecretRequest()), "ciphertext"),
            (async () => await Psp.SealGuestMessageAsync(new SealGuestMessageRequest { Vmpck = Filled(31, 1) }), "vmpck"),
            (async () => await Psp.SealGuestMessageAsync(new SealGuestMessageRequest { Vmpck = Filled(32, 1), MsgVmpck = 4 }), "msg_vmpck"),
            (async () => await Psp.SealGuestMessageAsync(new SealGuestMessageRequest { Vmpck = Filled(32, 1), MsgType = 256 }), "msg_type"),
            (async () => await Psp.SealGuestMessageAsync(new SealGuestMessageRequest { Vmpck = Filled(32, 1), Payload = Filled(4001, 1) }), "payload"),
            (async () => await Psp.OpenGuestMessageAsync(new OpenGuestMessageRequest { Vmpck = Filled(32, 1), Page = Filled(4095, 1) }), "page"),
        ];
        foreach ((Func<Task> call, string field) in bad)
        {
            RpcException refused = await Assert.ThrowsAsync<RpcException>(call);
            Assert.Equal(StatusCode.InvalidArgument, refused.StatusCode);
            Assert.StartsWith(field + ":", refused.Status.Detail, StringComparison.Ordinal);
        }
    }

    private static ByteString Filled(int length, byte value) => ByteString.CopyFrom(Enumerable.Repeat(value, length).ToArray());

    private static ByteString Flipped(ByteString bytes, int at, byte mask = 1)
    {
        byte[] copy = bytes.ToByteArray();
        copy[at] ^= mask;
        return ByteString.CopyFrom(copy);
    }

    private static ByteString Given(SnpVector vector, string name) => Hex(vector.Params, name);

    private static ByteString Hex(JsonElement element, string name) => ByteString.CopyFrom(Convert.FromHexString(element.GetProperty(name).GetString()!));

    private static string Hex(ByteString bytes) => Convert.ToHexStringLower(bytes.Span);
}
