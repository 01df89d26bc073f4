using System.Buffers.Binary;
using System.Security.Cryptography;
using Google.Protobuf;
using Grpc.Core;
using SimMachine;
using SimMachine.Addressing;
using SimMachine.Amd;
using SimMachine.Amd.Attestation;
using SimMachine.Amd.Legacy;
using SimMachine.Measurement;
using SimMachine.Stepping;
using VmmService.Server.Wire;
using VmmService.V1;
using SevStatus = SimMachine.Amd.SevStatus;
using SnpPageType = VmmService.V1.SnpPageType;

namespace VmmService.Server.Services;

/// <summary>vmmservice.v1.PspService: the functions of the simulated secure processor's firmware, each by itself. No host, no state.</summary>
internal sealed class PspServiceImpl : PspService.PspServiceBase
{
    private const int MaxPages = 1 << 16;
    private const int MaxZ = 128;

    public override Task<ExtendLaunchDigestResponse> ExtendLaunchDigest(ExtendLaunchDigestRequest request, ServerCallContext context)
    {
        if (request.Pages.Count > MaxPages)
        {
            throw Refusals.BadField("pages", $"{request.Pages.Count} pages were given; one call takes {MaxPages}, and the next goes on from its digest (initial)");
        }
        byte[] initial = new byte[SnpLaunchDigest.Size];
        Structs.Fixed("initial", request.Initial, initial);
        var digest = new SnpLaunchDigest(initial);
        var response = new ExtendLaunchDigestResponse();
        byte[] contents = new byte[SnpLaunchDigest.Size];
        for (int i = 0; i < request.Pages.Count; i++)
        {
            MeasuredPageInfo page = request.Pages[i];
            ContentsOf($"pages[{i}]", page, contents);
            byte Perms(int vmpl, uint value) => Structs.U8($"pages[{i}].vmpl{vmpl}_perms", value);
            digest.Extend(
                (SimMachine.Measurement.SnpPageType)page.Type, page.Gpa, contents, page.ImiPage, Perms(1, page.Vmpl1Perms), Perms(2, page.Vmpl2Perms), Perms(3, page.Vmpl3Perms));
            response.Steps.Add(ByteString.CopyFrom(digest.Current));
        }
        response.Digest = ByteString.CopyFrom(digest.Current);
        return Task.FromResult(response);
    }

    public override Task<CheckIdBlockResponse> CheckIdBlock(CheckIdBlockRequest request, ServerCallContext context)
    {
        ReadOnlySpan<byte> block = Exactly("id_block", request.IdBlock, IdBlock.BlockSize), auth = Exactly("id_auth", request.IdAuth, IdBlock.AuthSize);
        ReadOnlySpan<byte> digest = Exactly("launch_digest", request.LaunchDigest, SnpLaunchDigest.Size);
        // Firmware checks on a processor; this one has nothing else to do.
        using var machine = new Machine(new SimMachine.MachineConfig(), seed: 0);
        var thread = new MachineThread(machine);
        SevStatus status = IdBlock.Check(thread, block, auth, request.AuthKeyEn, digest, request.Policy, out IdBlockResult result);
        var response = new CheckIdBlockResponse { Sev = Outcomes.OfSev((uint)status) };
        response.Causes.AddRange(thread.Causes.Select(Outcomes.Of));
        if (status == SevStatus.SUCCESS)
        {
            response.IdKeyDigest = Bytes(result.IdKeyDigest);
            response.AuthorKeyDigest = Bytes(result.AuthorKeyDigest);
            response.FamilyId = Bytes(result.FamilyId);
            response.ImageId = Bytes(result.ImageId);
            response.GuestSvn = result.GuestSvn;
        }
        return Task.FromResult(response);
    }

    public override Task<MakeSessionResponse> MakeSession(MakeSessionRequest request, ServerCallContext context)
    {
        byte[] dhCertificate = [];
        byte[] z = request.AgreementCase switch
        {
            MakeSessionRequest.AgreementOneofCase.Z => Secret("z", request.Z),
            MakeSessionRequest.AgreementOneofCase.Exchange => Agree(request.Exchange, out dhCertificate),
            _ => throw Refusals.BadField("agreement", "it is missing; give z, or the exchange that it comes from"),
        };
        ReadOnlySpan<byte> nonce = Key("nonce", request.Nonce), iv = Key("iv", request.Iv), tek = Key("tek", request.Tek), tik = Key("tik", request.Tik);
        return Task.FromResult(new MakeSessionResponse
        {
            Session = Bytes(SevSession.Wrap(z, nonce, iv, tek, tik, request.Policy)),
            DhCert = Bytes(dhCertificate),
            Keys = KeysOf(SevSession.WrappingKeys(z, nonce)),
        });
    }

    public override Task<OpenSessionResponse> OpenSession(OpenSessionRequest request, ServerCallContext context)
    {
        OpenedSevSession opened = SevSession.Open(Secret("z", request.Z), Exactly("session", request.Session, SevSession.BlobSize), request.Policy);
        return Task.FromResult(new OpenSessionResponse
        {
            Sev = Status(opened.Holds),
            Keys = KeysOf(opened.Keys),
            WrapMac = Bytes(opened.WrapMac),
            PolicyMac = Bytes(opened.PolicyMac),
            Tek = Bytes(opened.Tek),
            Tik = Bytes(opened.Tik),
        });
    }

    public override Task<MeasureLaunchResponse> MeasureLaunch(MeasureLaunchRequest request, ServerCallContext context)
    {
        var version = (Structs.U8("api_major", request.ApiMajor), Structs.U8("api_minor", request.ApiMinor), Structs.U8("build", request.Build));
        byte[] measure = SevSession.Measure(
            Key("tik", request.Tik), version, request.Policy, Exactly("launch_digest", request.LaunchDigest, SHA256.HashSizeInBytes), Key("mnonce", request.Mnonce));
        return Task.FromResult(new MeasureLaunchResponse { Measure = Bytes(measure) });
    }

    public override Task<SealSecretResponse> SealSecret(SealSecretRequest request, ServerCallContext context)
    {
        (byte[] header, byte[] body) = SevSession.SealSecret(
            Key("tek", request.Tek), Key("tik", request.Tik), Key("iv", request.Iv), SecretData("data", request.Data), Exactly("measure", request.Measure, SevSession.MacSize));
        return Task.FromResult(new SealSecretResponse { Header = Bytes(header), Ciphertext = Bytes(body) });
    }

    public override Task<OpenSecretResponse> OpenSecret(OpenSecretRequest request, ServerCallContext context)
    {
        ReadOnlySpan<byte> body = SecretData("ciphertext", request.Ciphertext), header = Exactly("header", request.Header, SevSession.HeaderSize);
        bool holds = SevSession.TryOpenSecret(
            Key("tek", request.Tek), Key("tik", request.Tik), header, body, (uint)body.Length, Exactly("measure", request.Measure, SevSession.MacSize), out byte[] secret);
        // As in LAUNCH_UPDATE_SECRET: nothing is decompressed, whoever sealed it.
        return BinaryPrimitives.ReadUInt32LittleEndian(header) != 0
            ? Task.FromResult(new OpenSecretResponse { Sev = Outcomes.OfSev((uint)SevStatus.UNSUPPORTED) })
            : Task.FromResult(new OpenSecretResponse { Sev = Status(holds), Data = Bytes(secret) });
    }

    public override Task<SealGuestMessageResponse> SealGuestMessage(SealGuestMessageRequest request, ServerCallContext context)
    {
        if (request.MsgVmpck > 3)
        {
            throw Refusals.BadField("msg_vmpck", $"{request.MsgVmpck} is not a VMPCK; there are 0 to 3");
        }
        if (request.Payload.Length > GuestMessage.MaxPayload)
        {
            throw Refusals.BadField("payload", $"{request.Payload.Length} bytes were given; a message has room for {GuestMessage.MaxPayload}");
        }
        byte[] page = new byte[GuestMessage.PageSize];
        var type = (GuestMessageType)Structs.U8("msg_type", request.MsgType);
        GuestMessage.Seal(page, Exactly("vmpck", request.Vmpck, SecretsPage.VmpckSize), (byte)request.MsgVmpck, request.MsgSeqno, type, request.Payload.Span);
        return Task.FromResult(new SealGuestMessageResponse { Page = Bytes(page) });
    }

    public override Task<OpenGuestMessageResponse> OpenGuestMessage(OpenGuestMessageRequest request, ServerCallContext context)
    {
        ReadOnlySpan<byte> page = Exactly("page", request.Page, GuestMessage.PageSize);
        snp_guest_msg_hdr header = System.Runtime.InteropServices.MemoryMarshal.Read<snp_guest_msg_hdr>(page);
        byte[]? payload = GuestMessage.Open(page, Exactly("vmpck", request.Vmpck, SecretsPage.VmpckSize));
        SevStatus status = payload is not null ? SevStatus.SUCCESS : header.msg_sz > GuestMessage.MaxPayload ? SevStatus.INVALID_PARAM : SevStatus.BAD_MEASUREMENT;
        return Task.FromResult(new OpenGuestMessageResponse
        {
            Sev = Outcomes.OfSev((uint)status),
            MsgVmpck = header.msg_vmpck,
            MsgSeqno = header.msg_seqno,
            MsgType = header.msg_type,
            Payload = Bytes(payload),
        });
    }

    // CONTENTS of PAGE_INFO: zeros but for the types whose content is measured.
    private static void ContentsOf(string field, MeasuredPageInfo page, Span<byte> contents)
    {
        if (page.Type == SnpPageType.Unspecified || !Enum.IsDefined(page.Type))
        {
            throw Refusals.BadEnum($"{field}.type", page.Type);
        }
        if ((page.Gpa & PageSize.OffsetMask) != 0)
        {
            throw Refusals.BadField($"{field}.gpa", $"0x{page.Gpa:x} is not a multiple of {PageSize.Bytes}");
        }
        bool measured = page.Type is SnpPageType.Normal or SnpPageType.Vmsa;
        if (measured == (page.ContentsCase == MeasuredPageInfo.ContentsOneofCase.None))
        {
            throw Refusals.BadField($"{field}.contents", measured ? $"a {page.Type} page is measured by its content; give page or contents_sha384" : $"the content of a {page.Type} page is not measured; leave it out");
        }
        switch (page.ContentsCase)
        {
            case MeasuredPageInfo.ContentsOneofCase.Page:
                SnpLaunchDigest.ContentHash((SimMachine.Measurement.SnpPageType)page.Type, Exactly($"{field}.page", page.Page, PageSize.Bytes), contents);
                break;
            case MeasuredPageInfo.ContentsOneofCase.ContentsSha384:
                Exactly($"{field}.contents_sha384", page.ContentsSha384, contents.Length).CopyTo(contents);
                break;
            default:
                contents.Clear();
                break;
        }
    }

    private static byte[] Agree(KeyExchange exchange, out byte[] dhCertificate)
    {
        byte[] scalar = Exactly("exchange.private_key", exchange.PrivateKey, EcdsaP384Key.FieldSize).ToArray();
        if (!SevCertificate.TryRead(exchange.PdhCert.Span, out SevCertificate pdh) || !pdh.TryGetKey(out ECParameters point))
        {
            throw Refusals.BadField("exchange.pdh_cert", $"{exchange.PdhCert.Length} bytes that are no SEV certificate with a key on P-384; SevPdhCertExport gives one of {SevCertificate.Size} bytes");
        }
        try
        {
            using var owner = ECDiffieHellman.Create(new ECParameters { Curve = ECCurve.NamedCurves.nistP384, D = scalar });
            using var platform = ECDiffieHellman.Create(point);
            ECParameters own = owner.ExportParameters(includePrivateParameters: false);
            dhCertificate = SevCertificate.Create(SevKeyUsage.PDH, SevCertificate.EcdhSha384, (0, 0), own.Q).Bytes.ToArray();
            return owner.DeriveRawSecretAgreement(platform.PublicKey);
        }
        catch (CryptographicException)
        {
            throw Refusals.BadField("exchange.private_key", "it is not between 1 and the order of P-384 less 1");
        }
    }

    private static byte[] Secret(string field, ByteString z) => z.Length is > 0 and <= MaxZ
        ? z.ToByteArray()
        : throw Refusals.BadField(field, $"{z.Length} bytes were given; the shared secret of P-384 has 48, and up to {MaxZ} are taken");

    private static ReadOnlySpan<byte> SecretData(string field, ByteString data)
    {
        const int block = 16, limit = 16384;
        return data.Length is > 0 and <= limit && data.Length % block == 0
            ? data.Span
            : throw Refusals.BadField(field, $"{data.Length} bytes were given; a secret has a multiple of {block}, at most {limit}");
    }

    private static ReadOnlySpan<byte> Key(string field, ByteString key) => Exactly(field, key, SevSession.KeySize);

    private static ReadOnlySpan<byte> Exactly(string field, ByteString bytes, int length) =>
        bytes.Length == length ? bytes.Span : throw Refusals.BadField(field, $"{bytes.Length} bytes were given; it has {length}");

    private static SessionKeys KeysOf(SevWrappingKeys keys) => new() { MasterSecret = Bytes(keys.MasterSecret), Kek = Bytes(keys.Kek), Kik = Bytes(keys.Kik) };

    private static V1.SevStatus Status(bool holds) => Outcomes.OfSev((uint)(holds ? SevStatus.SUCCESS : SevStatus.BAD_MEASUREMENT));

    private static ByteString Bytes(ReadOnlyMemory<byte> bytes) => UnsafeByteOperations.UnsafeWrap(bytes);
}
