// ID blocks: a real one from the vectors, fresh ones signed here, each way to get one wrong, and noise.

using System.Buffers.Binary;
using System.Security.Cryptography;
using SimMachine.Amd;
using SimMachine.Stepping;
using Xunit;

namespace SimMachine.Tests.Amd;

public sealed class IdBlockTests : IDisposable
{
    private const ulong Policy = 0x30000;
    private const int BlockSignature = 0x40;
    private const int IdKey = 0x240;
    private const int IdKeySignature = 0x680;
    private const int AuthorKey = 0x880;
    private const int KeySize = 0x404;

    private static readonly byte[] Order =
        Convert.FromHexString("ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973");

    private readonly Machine _machine = new(new MachineConfig(), 1);
    private readonly MachineThread _thread;

    public IdBlockTests() => _thread = new MachineThread(_machine);

    public static TheoryData<int> Seeds => [1, 2, 3, 5, 8, 13];

    // Offset in the ID authentication page, bytes to put there, whether an author key is needed to be refused, status and rule.
    public static TheoryData<int, string, bool, SevStatus, string> BadAuthPages => new()
    {
        { 0, "00000000", false, SevStatus.INVALID_PARAM, "psp.id-block.id-key-algo" },
        { 0, "02000000", false, SevStatus.INVALID_PARAM, "psp.id-block.id-key-algo" },
        { 0, "01000001", false, SevStatus.INVALID_PARAM, "psp.id-block.id-key-algo" },
        { 4, "00000000", true, SevStatus.INVALID_PARAM, "psp.id-block.author-key-algo" },
        { 4, "ffffffff", true, SevStatus.INVALID_PARAM, "psp.id-block.author-key-algo" },
        { 8, "01", false, SevStatus.INVALID_PARAM, "psp.id-block.reserved" },
        { 0x3F, "80", false, SevStatus.INVALID_PARAM, "psp.id-block.reserved" },
        { 0x644, "01", false, SevStatus.INVALID_PARAM, "psp.id-block.reserved" },
        { 0x67F, "01", false, SevStatus.INVALID_PARAM, "psp.id-block.reserved" },
        { 0xC84, "01", false, SevStatus.INVALID_PARAM, "psp.id-block.reserved" },
        { 0xFFF, "01", false, SevStatus.INVALID_PARAM, "psp.id-block.reserved" },
        { IdKey, "00000000", false, SevStatus.INVALID_PARAM, "psp.id-block.curve" },
        { IdKey, "01000000", false, SevStatus.INVALID_PARAM, "psp.id-block.curve" },
        { AuthorKey, "03000000", true, SevStatus.INVALID_PARAM, "psp.id-block.curve" },
        { IdKey + 4 + 48, "01", false, SevStatus.INVALID_PARAM, "psp.id-block.reserved" },
        { IdKey + 4 + 72 + 71, "01", false, SevStatus.INVALID_PARAM, "psp.id-block.reserved" },
        { IdKey + 4 + 144, "01", false, SevStatus.INVALID_PARAM, "psp.id-block.reserved" },
        { IdKey + KeySize - 1, "01", false, SevStatus.INVALID_PARAM, "psp.id-block.reserved" },
        { AuthorKey + KeySize - 1, "01", true, SevStatus.INVALID_PARAM, "psp.id-block.reserved" },
        { IdKey + 4, Repeat(0x00, 144), false, SevStatus.INVALID_PARAM, "psp.id-block.not-on-curve" },
        { IdKey + 4, Repeat(0xFF, 48), false, SevStatus.INVALID_PARAM, "psp.id-block.not-on-curve" },
        { AuthorKey + 4 + 72, Repeat(0xFF, 48), true, SevStatus.INVALID_PARAM, "psp.id-block.not-on-curve" },
        { BlockSignature, Repeat(0x00, 48), false, SevStatus.INVALID_PARAM, "psp.id-block.signature-range" },
        { BlockSignature + 72, Repeat(0x00, 48), false, SevStatus.INVALID_PARAM, "psp.id-block.signature-range" },
        { BlockSignature, OrderLittleEndian(0), false, SevStatus.INVALID_PARAM, "psp.id-block.signature-range" },
        { BlockSignature + 72, Repeat(0xFF, 48), false, SevStatus.INVALID_PARAM, "psp.id-block.signature-range" },
        { IdKeySignature, Repeat(0x00, 48), true, SevStatus.INVALID_PARAM, "psp.id-block.signature-range" },
        { BlockSignature, OrderLittleEndian(-1), false, SevStatus.BAD_SIGNATURE, "psp.id-block.bad-signature" },
        { BlockSignature + 48, "01", false, SevStatus.INVALID_PARAM, "psp.id-block.reserved" },
        { BlockSignature + 72 + 48, "01", false, SevStatus.INVALID_PARAM, "psp.id-block.reserved" },
        { BlockSignature + 511, "01", false, SevStatus.INVALID_PARAM, "psp.id-block.reserved" },
        { IdKeySignature + 144, "01", true, SevStatus.INVALID_PARAM, "psp.id-block.reserved" },
        { IdKeySignature, "0102030405060708", true, SevStatus.BAD_SIGNATURE, "psp.id-block.bad-id-key-signature" },
    };

    public void Dispose() => _machine.Dispose();

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void Check_BlockOfTheVector_IsAcceptedAndRecorded(bool authorKeyEnabled)
    {
        (byte[] block, byte[] auth) = Vector();
        Assert.Equal("357559109700077566355a0fefd0fbdcfdf7f5b82de7e3ede55f8054d4bea447", Convert.ToHexStringLower(SHA256.HashData(auth)));
        Assert.Equal(SevStatus.SUCCESS, IdBlock.Check(_thread, block, auth, authorKeyEnabled, block.AsSpan(0, 48), Policy, out IdBlockResult result));
        Assert.Equal(
            "59fb2c686dfa4fef49f38339aa775c90051c28d57383ddc3baf3b5eb4b1496df3b0dbbdcbae5fe27677a644820773fe2", Hex(result.IdKeyDigest));
        Assert.Equal(
            authorKeyEnabled
                ? "eed81169fb0cb5e0ec34794f128fd4e0c4a46f67c65a1adfa81fcb24bcc088c272369b7ffc3eb2b6af6a4284a1b36c5f"
                : Repeat(0, 48),
            Hex(result.AuthorKeyDigest));
        Assert.Equal((0u, Repeat(0, 16), Repeat(0, 16)), (result.GuestSvn, Hex(result.FamilyId), Hex(result.ImageId)));
        Assert.Empty(_thread.Causes);
    }

    [Fact]
    public void Check_FreshKeys_AreAcceptedAndTheIdsRecorded()
    {
        using var pair = new Owner();
        Assert.Equal(SevStatus.SUCCESS, Check(pair.Block, pair.Auth, true, out IdBlockResult result));
        Assert.Equal(pair.Block.AsSpan(0x30, 16), result.FamilyId.Span);
        Assert.Equal(pair.Block.AsSpan(0x40, 16), result.ImageId.Span);
        Assert.Equal(0x01020304u, result.GuestSvn);
        Assert.Equal(SHA384.HashData(pair.Auth.AsSpan(IdKey, KeySize)), result.IdKeyDigest.ToArray());
        Assert.Equal(SHA384.HashData(pair.Auth.AsSpan(AuthorKey, KeySize)), result.AuthorKeyDigest.ToArray());
    }

    [Fact]
    public void Check_OtherLaunchDigest_IsBadMeasurement()
    {
        using var pair = new Owner();
        byte[] launched = pair.Block[..48];
        launched[47] ^= 1;
        launched[0] = 0xEE;
        Assert.Equal(SevStatus.BAD_MEASUREMENT, IdBlock.Check(_thread, pair.Block, pair.Auth, true, launched, Policy, out IdBlockResult result));
        AssertCause(
            IdBlock.BadMeasurement, BinaryPrimitives.ReadUInt64BigEndian(pair.Block), BinaryPrimitives.ReadUInt64BigEndian(launched));
        Assert.Same(IdBlockResult.None, result);
    }

    [Fact]
    public void Check_OtherPolicy_IsPolicyFailure()
    {
        using var pair = new Owner();
        Assert.Equal(
            SevStatus.POLICY_FAILURE,
            IdBlock.Check(_thread, pair.Block, pair.Auth, false, pair.Block.AsSpan(0, 48), 0xB0000, out IdBlockResult result));
        AssertCause(IdBlock.PolicyMismatch, Policy, 0xB0000);
        Assert.Same(IdBlockResult.None, result);
    }

    [Theory]
    [InlineData(0u)]
    [InlineData(2u)]
    [InlineData(0x01000000u)]
    public void Check_UnknownVersion_IsInvalid(uint version)
    {
        using var pair = new Owner(version);
        Assert.Equal(SevStatus.INVALID_PARAM, Check(pair.Block, pair.Auth, false, out _));
        AssertCause(IdBlock.UnknownVersion, version);
    }

    [Theory]
    [MemberData(nameof(BadAuthPages))]
    public void Check_BadAuthenticationPage_IsRefused(int offset, string bytes, bool authorOnly, SevStatus status, string rule)
    {
        using var pair = new Owner();
        Convert.FromHexString(bytes).CopyTo(pair.Auth, offset);
        Assert.Equal(status, Check(pair.Block, pair.Auth, true, out IdBlockResult result));
        Assert.Equal(rule, Assert.Single(_thread.Causes).Rule.Id);
        Assert.Same(IdBlockResult.None, result);

        _thread.BeginCall(2);
        Assert.Equal(authorOnly ? SevStatus.SUCCESS : status, Check(pair.Block, pair.Auth, false, out _));
    }

    [Fact]
    public void Check_SignatureByAnotherKey_IsBadSignature()
    {
        using var pair = new Owner();
        using var other = new Owner();
        other.Auth.AsSpan(BlockSignature, 512).CopyTo(pair.Auth.AsSpan(BlockSignature));
        Assert.Equal(SevStatus.BAD_SIGNATURE, Check(pair.Block, pair.Auth, true, out _));
        AssertCause(
            IdBlock.BadBlockSignature,
            BinaryPrimitives.ReadUInt64BigEndian(SHA384.HashData(pair.Block)),
            BinaryPrimitives.ReadUInt64BigEndian(SHA384.HashData(pair.Auth.AsSpan(IdKey, KeySize))));
    }

    // Digest and policy follow the flipped block, so that nothing but the signature (or the version) can tell.
    [Fact]
    public void Check_AnyFlippedBitOfTheBlock_IsRefused()
    {
        using var pair = new Owner();
        for (int bit = 0; bit < 96 * 8; bit++)
        {
            byte[] block = [.. pair.Block];
            block[bit / 8] ^= (byte)(1 << (bit % 8));
            ulong policy = BinaryPrimitives.ReadUInt64LittleEndian(block.AsSpan(0x58));
            SevStatus status = IdBlock.Check(_thread, block, pair.Auth, false, block.AsSpan(0, 48), policy, out _);
            Assert.True(status == (bit / 8 is >= 0x50 and < 0x54 ? SevStatus.INVALID_PARAM : SevStatus.BAD_SIGNATURE), $"bit {bit}: {status}");
        }
    }

    // Every bit of the curve and the integers; one bit of each byte of the padding, which is compared with zero.
    [Theory]
    [InlineData(BlockSignature, 144, 512)]
    [InlineData(IdKey, 148, KeySize)]
    [InlineData(IdKeySignature, 144, 512)]
    [InlineData(AuthorKey, 148, KeySize)]
    public void Check_AnyFlippedBitOfSignatureOrKey_IsRefused(int offset, int integers, int size)
    {
        using var pair = new Owner();
        for (int bit = 0; bit < size * 8; bit += bit / 8 < integers ? 1 : 9)
        {
            pair.Auth[offset + (bit / 8)] ^= (byte)(1 << (bit % 8));
            SevStatus status = Check(pair.Block, pair.Auth, true, out _);
            Assert.True(status is SevStatus.BAD_SIGNATURE or SevStatus.INVALID_PARAM, $"bit {bit}: {status}");
            pair.Auth[offset + (bit / 8)] ^= (byte)(1 << (bit % 8));
        }
        Assert.Equal(SevStatus.SUCCESS, Check(pair.Block, pair.Auth, true, out _));
    }

    [Theory]
    [MemberData(nameof(Seeds))]
    public void Check_Noise_IsRefusedWithACause(int seed)
    {
        var random = new Random(seed);
        (byte[] block, byte[] auth) = Vector();
        for (int round = 0; round < 200; round++)
        {
            byte[] noisyBlock = [.. block];
            byte[] noisyAuth = [.. auth];
            int at = random.Next(96);
            random.NextBytes(noisyBlock.AsSpan(at, random.Next(1, 97 - at)));
            if (random.Next(2) == 0)
            {
                // Only where bytes are free, so that the noise reaches the arithmetic: the 48-byte integers of keys and signatures.
                int field = new[] { BlockSignature, BlockSignature + 72, IdKey + 4, IdKey + 76, IdKeySignature, AuthorKey + 4 }[random.Next(6)];
                random.NextBytes(noisyAuth.AsSpan(field, 48));
            }
            else
            {
                random.NextBytes(noisyAuth.AsSpan(random.Next(4096)));
            }
            _thread.BeginCall((ulong)round + 1);
            bool follow = random.Next(2) == 0;
            SevStatus status = IdBlock.Check(
                _thread,
                follow ? noisyBlock : block,
                noisyAuth,
                random.Next(2) == 0,
                noisyBlock.AsSpan(0, 48),
                BinaryPrimitives.ReadUInt64LittleEndian(noisyBlock.AsSpan(0x58)),
                out IdBlockResult result);
            Assert.True((status == SevStatus.SUCCESS) == (_thread.Causes.Count == 0), $"seed {seed}, round {round}");
            Assert.True((status == SevStatus.SUCCESS) != ReferenceEquals(result, IdBlockResult.None), $"seed {seed}, round {round}");
            Assert.True(!follow || status != SevStatus.SUCCESS || noisyBlock.SequenceEqual(block), $"forged: seed {seed}, round {round}");
        }
    }

    [Theory]
    [InlineData(95, 4096, 48)]
    [InlineData(96, 4095, 48)]
    [InlineData(96, 4096, 47)]
    public void Check_WrongSizes_AreTheCallersBug(int block, int auth, int digest) =>
        Assert.Throws<ArgumentException>(() => IdBlock.Check(_thread, new byte[block], new byte[auth], false, new byte[digest], 0, out _));

    private SevStatus Check(byte[] block, byte[] auth, bool authorKeyEnabled, out IdBlockResult result) =>
        IdBlock.Check(_thread, block, auth, authorKeyEnabled, block.AsSpan(0, 48), Policy, out result);

    private void AssertCause(Rule rule, params ulong[] operands)
    {
        Cause cause = Assert.Single(_thread.Causes);
        Assert.Same(rule, cause.Rule);
        Assert.Equal(operands, cause.Operands.Select(operand => operand.Value));
    }

    private static string Hex(ReadOnlyMemory<byte> bytes) => Convert.ToHexStringLower(bytes.Span);

    private static string Repeat(byte value, int count) => string.Concat(Enumerable.Repeat(value.ToString("x2"), count));

    private static string OrderLittleEndian(int offset)
    {
        byte[] bytes = [.. Order.Reverse()];
        bytes[0] = (byte)(bytes[0] + offset);
        return Convert.ToHexStringLower(bytes);
    }

    private static void PutKey(byte[] auth, int offset, byte[] bigEndianX, byte[] bigEndianY)
    {
        BinaryPrimitives.WriteUInt32LittleEndian(auth.AsSpan(offset), 2);
        PutInteger(auth, offset + 4, bigEndianX);
        PutInteger(auth, offset + 76, bigEndianY);
    }

    private static void PutInteger(byte[] auth, int offset, ReadOnlySpan<byte> bigEndian)
    {
        bigEndian.CopyTo(auth.AsSpan(offset));
        auth.AsSpan(offset, bigEndian.Length).Reverse();
    }

    // snp-vectors.json, idblock-virtee.
    private static (byte[] Block, byte[] Auth) Vector()
    {
        byte[] block = Convert.FromHexString(
            "a14d638341e5674628fe1e02fbedebe5e5ab4faf1dd72d8966068e615bb99efd13d214b35c231715b38e263dc6059745"
            + Repeat(0, 32) + "01000000" + "00000000" + "0000030000000000");
        byte[] auth = new byte[4096];
        auth[0] = 1;
        auth[4] = 1;
        PutKey(
            auth,
            IdKey,
            Convert.FromHexString("f6763e4d2609cf1b2cf22f2cc8b8ca4cf55d470c3c23552c93b168874390dd95cb3fdee847ddf79ff29efbb8803c6d1f"),
            Convert.FromHexString("ccd7a8d047b9cdc1c750b1190abe6d1dad37a8decb14327b766619f712607cfd0d38853c50da9bcd080b35389c93be3e"));
        PutKey(
            auth,
            AuthorKey,
            Convert.FromHexString("6270c78bd6904cd1336299a25b98736a71ce92fef07494d72cb28b073c830f9f564af7a5c1c6ffc5a34973d5da45868c"),
            Convert.FromHexString("863c7930a2c98448a77a10088102e2a95f9308cd3e56b559b7fd3acc88b3cc2a19774348fea2f2c9031191e07187acf5"));
        Convert.FromHexString("e5d3bf7d9bf9e061bd4e8f7c6acae05909a9c3c69f04f318f0135eae71ff7d05ef5c8c6b1bc8c047613a7b6f01b738da")
            .CopyTo(auth, BlockSignature);
        Convert.FromHexString("d4194dca67de8381ec6d267c032b03dd3c1f5eafa6aa61e92964e5548bef332b1ae921f26de16ac33b642744d197a5d8")
            .CopyTo(auth, BlockSignature + 72);
        Convert.FromHexString("bb887b94557f568689ff4855c3f7ed99810c3d54ecd429651134dc18dd020ecaa771a34cb97666771aa31f0eb462ea99")
            .CopyTo(auth, IdKeySignature);
        Convert.FromHexString("f261e8b95da71b2a35425f48a219a77dbb0fee252f64d18ce99888b9fb4f70b104011b7dfea3e0349371a2bfaf6f9133")
            .CopyTo(auth, IdKeySignature + 72);
        return (block, auth);
    }

    /// <summary>A guest owner with two fresh keys and a block signed with them.</summary>
    private sealed class Owner : IDisposable
    {
        private readonly ECDsa _idKey = ECDsa.Create(ECCurve.NamedCurves.nistP384);
        private readonly ECDsa _authorKey = ECDsa.Create(ECCurve.NamedCurves.nistP384);

        public Owner(uint version = 1)
        {
            for (int i = 0; i < 0x50; i++)
            {
                Block[i] = (byte)(i + 1);
            }
            BinaryPrimitives.WriteUInt32LittleEndian(Block.AsSpan(0x50), version);
            BinaryPrimitives.WriteUInt32LittleEndian(Block.AsSpan(0x54), 0x01020304);
            BinaryPrimitives.WriteUInt64LittleEndian(Block.AsSpan(0x58), Policy);
            Auth[0] = 1;
            Auth[4] = 1;
            ECPoint id = _idKey.ExportParameters(false).Q;
            ECPoint author = _authorKey.ExportParameters(false).Q;
            PutKey(Auth, IdKey, id.X!, id.Y!);
            PutKey(Auth, AuthorKey, author.X!, author.Y!);
            Sign(_idKey, Block, BlockSignature);
            Sign(_authorKey, Auth.AsSpan(IdKey, KeySize).ToArray(), IdKeySignature);
        }

        public byte[] Block { get; } = new byte[96];

        public byte[] Auth { get; } = new byte[4096];

        public void Dispose()
        {
            _idKey.Dispose();
            _authorKey.Dispose();
        }

        private void Sign(ECDsa key, byte[] content, int offset)
        {
            byte[] signature = key.SignData(content, HashAlgorithmName.SHA384, DSASignatureFormat.IeeeP1363FixedFieldConcatenation);
            PutInteger(Auth, offset, signature.AsSpan(0, 48));
            PutInteger(Auth, offset + 72, signature.AsSpan(48));
        }
    }
}
