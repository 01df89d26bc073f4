using System.Buffers.Binary;
using System.Globalization;
using System.Numerics;
using System.Security.Cryptography;
using SimMachine.Stepping;

namespace SimMachine.Amd;

/// <summary>What an accepted ID block leaves in the guest context and later in every attestation report.</summary>
/// <param name="FamilyId">16 bytes, the guest owner's.</param>
/// <param name="ImageId">16 bytes, the guest owner's.</param>
/// <param name="GuestSvn">Security version of the guest, the guest owner's.</param>
/// <param name="IdKeyDigest">SHA-384 of the ID key in its public-key form, 48 bytes.</param>
/// <param name="AuthorKeyDigest">The same of the author key; zeros if none was used.</param>
public sealed record IdBlockResult(
    ReadOnlyMemory<byte> FamilyId,
    ReadOnlyMemory<byte> ImageId,
    uint GuestSvn,
    ReadOnlyMemory<byte> IdKeyDigest,
    ReadOnlyMemory<byte> AuthorKeyDigest)
{
    /// <summary>A guest that was launched without an ID block: zeros.</summary>
    public static IdBlockResult None { get; } = new(new byte[16], new byte[16], 0, new byte[48], new byte[48]);
}

/// <summary>
/// The guest owner's say in SNP_LAUNCH_FINISH: a signed statement of what the launch digest and the policy must be (the ID block), and the
/// signatures and keys that vouch for it (the ID authentication page).
/// </summary>
/// <remarks>
/// Layouts and checks: snp.md 10.3, SNP firmware ABI, SNP_LAUNCH_FINISH. Integers of keys and signatures are little-endian in 72 bytes; the
/// platform's ECDSA takes 48 big-endian bytes. Whether a point is on the curve is decided here, so that no key, however odd, makes the library
/// throw.
/// <para>Bytes of the author key and its signature are not looked at unless the author key is enabled.</para>
/// Invariant: SUCCESS means that both signatures hold over the bytes as given; otherwise the result is <see cref="IdBlockResult.None"/>.
/// </remarks>
public static class IdBlock
{
    /// <summary>Bytes of an ID block.</summary>
    public const int BlockSize = 96;

    /// <summary>Bytes of an ID authentication page.</summary>
    public const int AuthSize = 4096;

    /// <summary>Bytes of a public key.</summary>
    public const int KeySize = 0x404;

    /// <summary>Bytes of a signature.</summary>
    public const int SignatureSize = 512;

    /// <summary>ECDSA on P-384 with SHA-384.</summary>
    public const uint AlgorithmEcdsaP384Sha384 = 1;

    /// <summary>The curve's number in a public key.</summary>
    public const uint CurveP384 = 2;

    // ID block.
    private const int FamilyIdOffset = 0x30;
    private const int ImageIdOffset = 0x40;
    private const int IdSize = 16;
    private const int VersionOffset = 0x50;
    private const int GuestSvnOffset = 0x54;
    private const int PolicyOffset = 0x58;

    // ID authentication page.
    private const int AuthorKeyAlgoOffset = 0x4;
    private const int Reserved1Offset = 0x8;
    private const int BlockSignatureOffset = 0x40;
    private const int IdKeyOffset = 0x240;
    private const int Reserved2Offset = IdKeyOffset + KeySize;
    private const int IdKeySignatureOffset = 0x680;
    private const int AuthorKeyOffset = 0x880;
    private const int Reserved3Offset = AuthorKeyOffset + KeySize;

    // A public key: CURVE, QX, QY, zeros. A signature: R, S, zeros.
    private const int IntegerSize = 72;
    private const int QxOffset = 4;
    private const int QyOffset = QxOffset + IntegerSize;

    private const int FieldSize = 48;

    // P-384 (FIPS 186): the prime 2^384 - 2^128 - 2^96 + 2^32 - 1, the order, and b of y^2 = x^3 - 3x + b.
    private static readonly BigInteger Prime =
        BigInteger.Pow(2, 384) - BigInteger.Pow(2, 128) - BigInteger.Pow(2, 96) + BigInteger.Pow(2, 32) - 1;

    private static readonly BigInteger Order =
        Hex("ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973");
    private static readonly BigInteger B =
        Hex("b3312fa7e23ee7e4988e056be3f82d19181d9c6efe8141120314088f5013875ac656398d8a2ed19d2a85c8edd3ec2aef");

    private const string Source = "SNP firmware ABI, SNP_LAUNCH_FINISH";

    public static readonly Rule BadMeasurement = new(
        "psp.id-block.bad-measurement", "the launch digest in the ID block must be the digest of what was launched (first 8 bytes shown)", Source,
        "compare the measurement transcript with what the ID block was made for: firmware image, number and kind of vCPUs, kernel hashes, features",
        "expected", "launched");

    public static readonly Rule PolicyMismatch = new(
        "psp.id-block.policy", "the policy in the ID block must be the guest's", Source,
        "give SNP_LAUNCH_START the policy that the ID block was signed with", "expected", "guest_policy");

    public static readonly Rule UnknownVersion = new(
        "psp.id-block.version", "the version of the ID block must be 1", Source, "use version 1", "version#");

    public static readonly Rule UnknownIdKeyAlgorithm = new(
        "psp.id-block.id-key-algo", "ID_KEY_ALGO must be 1, ECDSA on P-384 with SHA-384", Source, "sign with an ECDSA P-384 key", "algo#");

    public static readonly Rule UnknownAuthorKeyAlgorithm = new(
        "psp.id-block.author-key-algo", "with the author key enabled, AUTH_KEY_ALGO must be 1, ECDSA on P-384 with SHA-384", Source,
        "sign with an ECDSA P-384 key, or clear auth_key_en", "algo#");

    public static readonly Rule ReservedNotZero = new(
        "psp.id-block.reserved", "reserved bytes and padding of the ID authentication page must be zero", Source,
        "zero the page before filling it; integers are little-endian, so that their padding is behind them", "offset", "byte");

    public static readonly Rule UnknownCurve = new(
        "psp.id-block.curve", "the curve of a public key must be 2, P-384", Source, "use a P-384 key", "key_offset", "curve#");

    public static readonly Rule NotOnCurve = new(
        "psp.id-block.not-on-curve", "a public key must be a point of P-384 (first 8 bytes of the coordinates shown)", Source,
        "store QX and QY as little-endian integers", "key_offset", "qx", "qy");

    public static readonly Rule SignatureOutOfRange = new(
        "psp.id-block.signature-range", "R and S of a signature must lie between 1 and the order of P-384 less 1 (first 8 bytes shown)", Source,
        "store R and S as little-endian integers", "signature_offset", "r", "s");

    public static readonly Rule BadBlockSignature = new(
        "psp.id-block.bad-signature",
        "ID_BLOCK_SIG must be the ID key's signature over the 96 bytes of the ID block (first 8 bytes of digests shown)", Source,
        "sign the ID block again, with the private half of this ID key, after its last change", "block_sha384", "id_key_digest");

    public static readonly Rule BadIdKeySignature = new(
        "psp.id-block.bad-id-key-signature",
        "ID_KEY_SIG must be the author key's signature over the 0x404 bytes of the ID key (first 8 bytes of digests shown)", Source,
        "sign the ID key in its public-key form, with the private half of this author key", "id_key_digest", "author_key_digest");

    /// <summary>Checks an ID block as SNP_LAUNCH_FINISH does, before the guest may run.</summary>
    /// <param name="idBlock">96 bytes.</param>
    /// <param name="idAuth">4096 bytes.</param>
    /// <param name="authorKeyEnabled">auth_key_en: an author key vouches for the ID key.</param>
    /// <param name="launchDigest">48 bytes: the digest after the last measured page.</param>
    /// <param name="guestPolicy">As given to SNP_LAUNCH_START.</param>
    /// <param name="result">What to record; zeros unless the answer is SUCCESS.</param>
    /// <returns>
    /// BAD_MEASUREMENT, POLICY_FAILURE or BAD_SIGNATURE for what their names say; INVALID_PARAM for versions, algorithms, curves and forms that
    /// cannot be. The order of the checks and the use of INVALID_PARAM are assumptions (snp.md 10.3).
    /// </returns>
    public static SevStatus Check(
        SimThread thread,
        ReadOnlySpan<byte> idBlock,
        ReadOnlySpan<byte> idAuth,
        bool authorKeyEnabled,
        ReadOnlySpan<byte> launchDigest,
        ulong guestPolicy,
        out IdBlockResult result)
    {
        if (idBlock.Length != BlockSize || idAuth.Length != AuthSize || launchDigest.Length != SHA384.HashSizeInBytes)
        {
            throw new ArgumentException($"an ID block has {BlockSize} bytes, its authentication {AuthSize}, a launch digest 48");
        }
        result = IdBlockResult.None;

        ReadOnlySpan<byte> expected = idBlock[..SHA384.HashSizeInBytes];
        if (!expected.SequenceEqual(launchDigest))
        {
            return thread.Fail(SevStatus.BAD_MEASUREMENT, BadMeasurement, Head(expected), Head(launchDigest));
        }
        ulong policy = BinaryPrimitives.ReadUInt64LittleEndian(idBlock[PolicyOffset..]);
        if (policy != guestPolicy)
        {
            return thread.Fail(SevStatus.POLICY_FAILURE, PolicyMismatch, policy, guestPolicy);
        }
        uint version = BinaryPrimitives.ReadUInt32LittleEndian(idBlock[VersionOffset..]);
        if (version != 1)
        {
            return thread.Fail(SevStatus.INVALID_PARAM, UnknownVersion, version);
        }
        uint idKeyAlgo = BinaryPrimitives.ReadUInt32LittleEndian(idAuth);
        if (idKeyAlgo != AlgorithmEcdsaP384Sha384)
        {
            return thread.Fail(SevStatus.INVALID_PARAM, UnknownIdKeyAlgorithm, idKeyAlgo);
        }
        uint authorKeyAlgo = BinaryPrimitives.ReadUInt32LittleEndian(idAuth[AuthorKeyAlgoOffset..]);
        if (authorKeyEnabled && authorKeyAlgo != AlgorithmEcdsaP384Sha384)
        {
            return thread.Fail(SevStatus.INVALID_PARAM, UnknownAuthorKeyAlgorithm, authorKeyAlgo);
        }
        SevStatus status = CheckZero(thread, idAuth, Reserved1Offset, BlockSignatureOffset);
        if (status == SevStatus.SUCCESS)
        {
            status = CheckZero(thread, idAuth, Reserved2Offset, IdKeySignatureOffset);
        }
        if (status == SevStatus.SUCCESS)
        {
            status = CheckZero(thread, idAuth, Reserved3Offset, AuthSize);
        }
        if (status == SevStatus.SUCCESS)
        {
            status = CheckSigned(thread, idBlock, idAuth, IdKeyOffset, BlockSignatureOffset, BadBlockSignature);
        }
        ReadOnlySpan<byte> idKey = idAuth.Slice(IdKeyOffset, KeySize);
        if (status == SevStatus.SUCCESS && authorKeyEnabled)
        {
            status = CheckSigned(thread, idKey, idAuth, AuthorKeyOffset, IdKeySignatureOffset, BadIdKeySignature);
        }
        if (status != SevStatus.SUCCESS)
        {
            return status;
        }

        result = new IdBlockResult(
            idBlock.Slice(FamilyIdOffset, IdSize).ToArray(),
            idBlock.Slice(ImageIdOffset, IdSize).ToArray(),
            BinaryPrimitives.ReadUInt32LittleEndian(idBlock[GuestSvnOffset..]),
            SHA384.HashData(idKey),
            authorKeyEnabled ? SHA384.HashData(idAuth.Slice(AuthorKeyOffset, KeySize)) : IdBlockResult.None.AuthorKeyDigest);
        return SevStatus.SUCCESS;
    }

    private static SevStatus CheckSigned(
        SimThread thread, ReadOnlySpan<byte> content, ReadOnlySpan<byte> idAuth, int keyOffset, int signatureOffset, Rule badSignature)
    {
        ReadOnlySpan<byte> key = idAuth.Slice(keyOffset, KeySize);
        uint curve = BinaryPrimitives.ReadUInt32LittleEndian(key);
        if (curve != CurveP384)
        {
            return thread.Fail(SevStatus.INVALID_PARAM, UnknownCurve, (ulong)keyOffset, curve);
        }
        SevStatus status = CheckIntegers(thread, idAuth, keyOffset + QxOffset, keyOffset + KeySize);
        if (status != SevStatus.SUCCESS)
        {
            return status;
        }
        byte[] qx = BigEndian(key[QxOffset..]);
        byte[] qy = BigEndian(key[QyOffset..]);
        if (!IsOnCurve(qx, qy))
        {
            return thread.Fail(SevStatus.INVALID_PARAM, NotOnCurve, (ulong)keyOffset, Head(qx), Head(qy));
        }

        status = CheckIntegers(thread, idAuth, signatureOffset, signatureOffset + SignatureSize);
        if (status != SevStatus.SUCCESS)
        {
            return status;
        }
        byte[] r = BigEndian(idAuth[signatureOffset..]);
        byte[] s = BigEndian(idAuth[(signatureOffset + IntegerSize)..]);
        if (!IsScalar(r) || !IsScalar(s))
        {
            return thread.Fail(SevStatus.INVALID_PARAM, SignatureOutOfRange, (ulong)signatureOffset, Head(r), Head(s));
        }

        using var ecdsa = ECDsa.Create(new ECParameters { Curve = ECCurve.NamedCurves.nistP384, Q = new ECPoint { X = qx, Y = qy } });
        byte[] signature = [.. r, .. s];
        return ecdsa.VerifyData(content, signature, HashAlgorithmName.SHA384, DSASignatureFormat.IeeeP1363FixedFieldConcatenation)
            ? SevStatus.SUCCESS
            : thread.Fail(SevStatus.BAD_SIGNATURE, badSignature, Head(SHA384.HashData(content)), Head(SHA384.HashData(key)));
    }

    // Two 72-byte integers from start on, then zeros until end. An integer that needs more than 48 bytes does not fit the curve.
    private static SevStatus CheckIntegers(SimThread thread, ReadOnlySpan<byte> idAuth, int start, int end)
    {
        SevStatus status = CheckZero(thread, idAuth, start + FieldSize, start + IntegerSize);
        return status == SevStatus.SUCCESS ? CheckZero(thread, idAuth, start + IntegerSize + FieldSize, end) : status;
    }

    private static SevStatus CheckZero(SimThread thread, ReadOnlySpan<byte> idAuth, int start, int end)
    {
        int index = idAuth[start..end].IndexOfAnyExcept((byte)0);
        return index < 0
            ? SevStatus.SUCCESS
            : thread.Fail(SevStatus.INVALID_PARAM, ReservedNotZero, (ulong)(start + index), idAuth[start + index]);
    }

    private static bool IsOnCurve(byte[] bigEndianX, byte[] bigEndianY)
    {
        var x = new BigInteger(bigEndianX, isUnsigned: true, isBigEndian: true);
        var y = new BigInteger(bigEndianY, isUnsigned: true, isBigEndian: true);
        return x < Prime && y < Prime && ((y * y) - (x * x * x) + (3 * x) - B) % Prime == 0;
    }

    private static bool IsScalar(byte[] bigEndian)
    {
        var value = new BigInteger(bigEndian, isUnsigned: true, isBigEndian: true);
        return !value.IsZero && value < Order;
    }

    private static byte[] BigEndian(ReadOnlySpan<byte> littleEndian)
    {
        byte[] bytes = littleEndian[..FieldSize].ToArray();
        Array.Reverse(bytes);
        return bytes;
    }

    // The first 8 bytes as a person reads them in a hex string.
    private static ulong Head(ReadOnlySpan<byte> bytes) => BinaryPrimitives.ReadUInt64BigEndian(bytes);

    private static BigInteger Hex(string digits) => BigInteger.Parse("0" + digits, NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture);
}
