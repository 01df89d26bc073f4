using System.Buffers.Binary;
using System.Runtime.InteropServices;
using System.Text.Json;
using SimMachine.Amd;
using SimMachine.Amd.Attestation;
using SimMachine.Tests.Measurement;
using Xunit;

namespace SimMachine.Tests.Attestation;

/// <summary>SNP_GUEST_REQUEST: the envelope against the vectors, each check of it, sequence numbers, and the answers other than reports.</summary>
public sealed class GuestRequestTests
{
    public static TheoryData<string> Messages => new(SnpVectors.IdsOf("guest-message"));

    // Where, what to put there, before the message is sealed (so that only this is wrong), and the rule. Offsets are those of the header.
    public static TheoryData<int, byte, string> BadHeaders => new()
    {
        { 0x28, 1, "psp.guest-request.header" }, // reserved
        { 0x2F, 0x80, "psp.guest-request.header" },
        { 0x30, 0, "psp.guest-request.header" }, // algo
        { 0x30, 2, "psp.guest-request.header" },
        { 0x31, 0, "psp.guest-request.header" }, // hdr_version
        { 0x31, 2, "psp.guest-request.header" },
        { 0x32, 0x61, "psp.guest-request.header" }, // hdr_sz
        { 0x33, 1, "psp.guest-request.header" },
        { 0x35, 0, "psp.guest-request.header" }, // msg_version
        { 0x35, 2, "psp.guest-request.header" },
        { 0x37, 0x10, "psp.guest-request.header" }, // msg_sz beyond the page
        { 0x38, 1, "psp.guest-request.header" }, // reserved
        { 0x3D, 1, "psp.guest-request.header" },
        { 0x5F, 1, "psp.guest-request.header" },
        { 0x3C, 4, "psp.guest-request.vmpck" },
        { 0x3C, 255, "psp.guest-request.vmpck" },
        { 0x34, 0, "psp.guest-request.type" },
        { 0x34, 1, "psp.guest-request.type" },
        { 0x34, 6, "psp.guest-request.type" }, // a response
        { 0x34, 7, "psp.guest-request.type" },
        { 0x34, 19, "psp.guest-request.type" },
        { 0x20, 0, "psp.guest-request.sequence" },
        { 0x20, 2, "psp.guest-request.sequence" },
        { 0x27, 0x80, "psp.guest-request.sequence" },
    };

    // Type, bytes of the payload.
    public static TheoryData<byte, int> BadSizes => new() { { 5, 95 }, { 5, 97 }, { 5, 0 }, { 3, 31 }, { 3, 33 }, { 3, 40 }, { 3, 41 }, { 17, 127 }, { 17, 129 } };

    // Type, bytes, offset of a byte that must be zero.
    public static TheoryData<byte, int, int> ReservedBytes => new() { { 5, 96, 0x44 }, { 5, 96, 0x45 }, { 5, 96, 0x5F }, { 3, 32, 4 }, { 3, 32, 7 }, { 17, 128, 0 }, { 17, 128, 127 } };

    [Theory]
    [MemberData(nameof(Messages))]
    public void Message_IsSealedAndOpened(string id)
    {
        JsonElement vector = SnpVectors.Get(id), parameters = vector.GetProperty("params");
        byte[] key = parameters.Bytes("vmpck_hex"), plaintext = parameters.Bytes("plaintext_hex");
        byte[] page = new byte[4096];

        GuestMessage.Seal(
            page, key, parameters.GetProperty("msg_vmpck").GetByte(), parameters.GetProperty("msg_seqno").GetUInt64(),
            (GuestMessageType)parameters.GetProperty("msg_type").GetByte(), plaintext);

        byte[] expected = [.. vector.GetProperty("expected").Bytes("header_hex"), .. vector.GetProperty("expected").Bytes("ciphertext_hex")];
        Assert.Equal([.. expected, .. new byte[4096 - expected.Length]], page);
        Assert.Equal(plaintext, GuestMessage.Open(page, key));
        for (int bit = 0x30 * 8; bit < expected.Length * 8; bit += 61)
        {
            byte[] altered = [.. page];
            altered[bit / 8] ^= (byte)(1 << (bit % 8));
            Assert.Null(GuestMessage.Open(altered, key));
        }
    }

    [Theory]
    [MemberData(nameof(BadHeaders))]
    public void Request_WithABadHeader_IsInvalidParamAndDoesNotCount(int offset, byte value, string rule)
    {
        using var guest = new RunningGuest();
        byte[] page = Sealed(guest, 1, GuestMessageType.REPORT_REQ, new byte[96]);
        page[offset] = value;
        byte[] response = new byte[4096];

        Assert.Equal(SevStatus.INVALID_PARAM, guest.Request(page, response));

        Assert.Equal(rule, Assert.Single(guest.Causes).Rule.Id);
        Assert.All(response, each => Assert.Equal(0, each));
        Assert.Equal(SevStatus.SUCCESS, guest.Request(Sealed(guest, 1, GuestMessageType.REPORT_REQ, new byte[96]), response));
    }

    [Theory]
    [InlineData(0x00)] // the tag
    [InlineData(0x0F)]
    [InlineData(0x60)] // the ciphertext
    [InlineData(0xBF)]
    public void Request_AlteredOnTheWay_IsBadMeasurement(int offset)
    {
        using var guest = new RunningGuest();
        byte[] page = Sealed(guest, 1, GuestMessageType.REPORT_REQ, new byte[96]);
        page[offset] ^= 1;

        Assert.Equal(SevStatus.BAD_MEASUREMENT, guest.Request(page, new byte[4096]));
        Assert.Same(Psp.MessageAuthentication, Assert.Single(guest.Causes).Rule);
    }

    [Fact]
    public void Request_UnderTheKeyOfAnotherVmpl_IsBadMeasurement()
    {
        using var guest = new RunningGuest();
        byte[] page = new byte[4096];
        GuestMessage.Seal(page, guest.Vmpck(1), 0, 1, GuestMessageType.REPORT_REQ, new byte[96]);

        Assert.Equal(SevStatus.BAD_MEASUREMENT, guest.Request(page, new byte[4096]));
    }

    [Theory]
    [MemberData(nameof(BadSizes))]
    public void Request_WithAPayloadOfAnotherSize_IsInvalidParam(byte type, int size)
    {
        using var guest = new RunningGuest();

        Assert.Equal(SevStatus.INVALID_PARAM, guest.Request(Sealed(guest, 1, (GuestMessageType)type, new byte[size]), new byte[4096]));
        Assert.Same(Psp.MessagePayloadSize, Assert.Single(guest.Causes).Rule);
    }

    [Theory]
    [MemberData(nameof(ReservedBytes))]
    public void Request_WithReservedBits_IsInvalidParam(byte type, int size, int offset)
    {
        using var guest = new RunningGuest();
        byte[] payload = new byte[size];
        payload[offset] = 0x80;

        Assert.Equal(SevStatus.INVALID_PARAM, guest.Request(Sealed(guest, 1, (GuestMessageType)type, payload), new byte[4096]));
        Assert.Same(Psp.MessagePayloadReserved, Assert.Single(guest.Causes).Rule);
        Assert.Equal((ulong)offset, Assert.Single(guest.Causes).Operands.Last().Value);
    }

    [Fact]
    public void Sequence_GoesUpByTwoForEachVmpck()
    {
        using var guest = new RunningGuest();
        byte[] response = new byte[4096];
        foreach (ulong sequence in (ulong[])[1, 3, 5])
        {
            for (byte vmpck = 0; vmpck < 4; vmpck++)
            {
                byte[] request = new byte[4096];
                GuestMessage.Seal(request, guest.Vmpck(vmpck), vmpck, sequence, GuestMessageType.TSC_INFO_REQ, new byte[128]);

                Assert.Equal(SevStatus.SUCCESS, guest.Request(request, response));

                var header = MemoryMarshal.Read<snp_guest_msg_hdr>(response);
                Assert.Equal((sequence + 1, (byte)18, vmpck), (header.msg_seqno, header.msg_type, header.msg_vmpck));
                Assert.NotNull(GuestMessage.Open(response, guest.Vmpck(vmpck)));
                Assert.Equal(SevStatus.INVALID_PARAM, guest.Request(request, response));
            }
        }
    }

    [Fact]
    public void Sequence_UsedUp_IsAeadOverflow()
    {
        using var guest = new RunningGuest();
        guest.SetMessageCount(2, ulong.MaxValue - 1);

        byte[] request = new byte[4096];
        GuestMessage.Seal(request, guest.Vmpck(2), 2, ulong.MaxValue, GuestMessageType.TSC_INFO_REQ, new byte[128]);

        Assert.Equal(SevStatus.AEAD_OFLOW, guest.Request(request, new byte[4096]));
        Assert.Equal("psp.guest-request.exhausted", Assert.Single(guest.Causes).Rule.Id);
    }

    [Fact]
    public void Request_BeforeLaunchFinish_IsInvalidGuestState()
    {
        using var guest = new RunningGuest(finish: false);

        Assert.Equal(SevStatus.INVALID_GUEST_STATE, guest.Request(new byte[4096], new byte[4096]));
    }

    [Fact]
    public void AskingForTools_LeavesTheGuestsCountAlone()
    {
        using var guest = new RunningGuest();
        guest.Ask(GuestMessageType.TSC_INFO_REQ, new byte[128]);
        guest.Ask(GuestMessageType.TSC_INFO_REQ, new byte[128]);

        Assert.Equal(SevStatus.SUCCESS, guest.Request(Sealed(guest, 1, GuestMessageType.TSC_INFO_REQ, new byte[128]), new byte[4096]));
    }

    [Fact]
    public void TscInfo_IsAFactorOfOneWithoutOffset()
    {
        using var guest = new RunningGuest();

        byte[] answer = guest.Ask(GuestMessageType.TSC_INFO_REQ, new byte[128]);

        Assert.Equal([.. new byte[8], .. BitConverter.GetBytes(1UL << 32), .. new byte[112]], answer);
    }

    [Fact]
    public void NoiseOfAnySeed_IsRefused()
    {
        using var guest = new RunningGuest();
        for (int seed = 0; seed < 200; seed++)
        {
            byte[] page = new byte[4096];
            new Random(seed).NextBytes(page);
            // Half of them with a header that could be.
            if (seed % 2 == 0)
                Sealed(guest, 1, GuestMessageType.KEY_REQ, new byte[32]).AsSpan(0x20, 0x40).CopyTo(page.AsSpan(0x20));

            Assert.NotEqual(SevStatus.SUCCESS, guest.Request(page, new byte[4096]));
        }
    }

    [Fact]
    public void DerivedKey_IsAFunctionOfWhatWasSelected()
    {
        // Firmware that has all fields.
        var config = new MachineConfig { ApiMinor = 58 };
        using RunningGuest guest = new(config), again = new(config), other = new(config, seed: 2);
        byte[] plain = Key(guest, KeyRequest());

        Assert.Equal(plain, Key(guest, KeyRequest()));
        Assert.Equal(plain, Key(again, KeyRequest()));
        Assert.NotEqual(plain, Key(other, KeyRequest()));
        // A field that is not selected does not matter, the long form neither.
        Assert.Equal(plain, Key(guest, KeyRequest(tcb: 1)));
        Assert.Equal(plain, Key(guest, [.. KeyRequest(), .. BitConverter.GetBytes(7UL)]));

        var keys = new List<string> { Convert.ToHexString(plain), Convert.ToHexString(Key(guest, KeyRequest(root: 1))), Convert.ToHexString(Key(guest, KeyRequest(vmpl: 2))) };
        for (int bit = 0; bit < 7; bit++)
            keys.Add(Convert.ToHexString(Key(guest, KeyRequest(fields: 1UL << bit))));
        keys.Add(Convert.ToHexString(Key(guest, KeyRequest(fields: 1 << 5, tcb: 1))));
        keys.Add(Convert.ToHexString(Key(guest, [.. KeyRequest(fields: 1 << 6), .. BitConverter.GetBytes(7UL)])));
        Assert.Equal(keys.Count, keys.Distinct().Count());
    }

    [Fact]
    public void DerivedKey_OfTheMeasurement_DiffersBetweenLaunches()
    {
        using RunningGuest guest = new(), other = new(policy: 0x30000 | Psp.PolicyBits.Debug);

        Assert.Equal(Key(guest, KeyRequest()), Key(other, KeyRequest()));
        Assert.NotEqual(Key(guest, KeyRequest(fields: 1)), Key(other, KeyRequest(fields: 1)));
    }

    [Theory]
    [InlineData(2u, 0, 0u, 0u, 0ul, 0)] // root
    [InlineData(0u, 1 << 7, 0u, 0u, 0ul, 0)] // field
    [InlineData(0u, 1 << 6, 0u, 0u, 0ul, 0, "psp.guest-message.key-fields")] // field of firmware 1.58
    [InlineData(0u, 0, 4u, 0u, 0ul, 0)] // VMPL
    [InlineData(0u, 0, 0u, 0u, 0ul, 1)] // VMPL above the VMPCK's
    [InlineData(0u, 0, 0u, 1u, 0ul, 0, "psp.guest-message.key-svn")] // SVN above the guest's
    [InlineData(0u, 0, 0u, 0u, 4ul, 0, "psp.guest-message.key-tcb")] // boot loader newer than committed
    [InlineData(0u, 0, 0u, 0u, 1ul << 16, 0)] // reserved part of the TCB version
    public void DerivedKey_ThatMayNotBe_IsAnsweredWithInvalidParam(uint root, int fields, uint vmpl, uint svn, ulong tcb, byte vmpck, string? rule = null)
    {
        using var guest = new RunningGuest();

        byte[] answer = guest.Ask(GuestMessageType.KEY_REQ, KeyRequest(root, (ulong)fields, vmpl, svn, tcb), vmpck);

        Assert.Equal([0x16, .. new byte[63]], answer);
        Assert.Equal(rule ?? guest.Causes[^1].Rule.Id, guest.Causes[^1].Rule.Id);
    }

    [Fact]
    public void Report_SignedByAKeyThatIsNone_IsAnsweredWithInvalidParam()
    {
        using var guest = new RunningGuest();
        byte[] request = new byte[96];
        request[0x44] = 3;

        Assert.Equal(0x16u, BinaryPrimitives.ReadUInt32LittleEndian(guest.Ask(GuestMessageType.REPORT_REQ, request)));
        Assert.Equal("psp.guest-message.key-select", guest.Causes[^1].Rule.Id);
    }

    [Fact]
    public void DerivedKey_OfADisabledVcek_IsAnsweredWithInvalidKey()
    {
        using RunningGuest guest = new(vcekDisabled: true), withVlek = new(new MachineConfig { VlekCspId = "CSP" }, vcekDisabled: true);

        Assert.Equal(0x27u, BinaryPrimitives.ReadUInt32LittleEndian(guest.Ask(GuestMessageType.KEY_REQ, KeyRequest())));
        Assert.Equal(0u, BinaryPrimitives.ReadUInt32LittleEndian(guest.Ask(GuestMessageType.KEY_REQ, KeyRequest(root: 1))));
        Assert.Equal(0u, BinaryPrimitives.ReadUInt32LittleEndian(withVlek.Ask(GuestMessageType.KEY_REQ, KeyRequest())));
    }

    private static byte[] Sealed(RunningGuest guest, ulong sequence, GuestMessageType type, byte[] payload)
    {
        byte[] page = new byte[4096];
        GuestMessage.Seal(page, guest.Vmpck(0), 0, sequence, type, payload);
        return page;
    }

    private static byte[] KeyRequest(uint root = 0, ulong fields = 0, uint vmpl = 0, uint svn = 0, ulong tcb = 0) =>
        [.. BitConverter.GetBytes(root), .. new byte[4], .. BitConverter.GetBytes(fields), .. BitConverter.GetBytes(vmpl), .. BitConverter.GetBytes(svn), .. BitConverter.GetBytes(tcb)];

    private static byte[] Key(RunningGuest guest, byte[] request)
    {
        byte[] answer = guest.Ask(GuestMessageType.KEY_REQ, request);
        Assert.Equal(new byte[32], answer[..32]);
        return answer[32..];
    }
}
