using System.Buffers.Binary;
using System.Security.Cryptography;
using SimMachine.Amd.Attestation;

namespace SimMachine.Amd.Legacy;

/// <summary>Whose key a SEV certificate holds, or who signed it (SEV API, appendix C: key usage).</summary>
public enum SevKeyUsage : uint
{
    /// <summary>Root of AMD.</summary>
    ARK = 0x0,

    /// <summary>Intermediate authority of AMD.</summary>
    ASK = 0x13,

    /// <summary>No key: a signature that is not there.</summary>
    INVALID = 0x1000,

    /// <summary>Owner certificate authority: whoever owns the platform.</summary>
    OCA = 0x1001,

    /// <summary>Platform endorsement key, which the owner and the chip sign.</summary>
    PEK = 0x1002,

    /// <summary>Platform Diffie-Hellman key, which the PEK signs.</summary>
    PDH = 0x1003,

    /// <summary>Chip endorsement key, which AMD signs.</summary>
    CEK = 0x1004,
}

/// <summary>
/// A SEV certificate (SEV API, appendix C.1; Linux has it as bytes only): a public key of a platform or of a guest's owner, its usage, and up to two signatures over what stands
/// before them. 2084 bytes, all numbers little-endian.
/// </summary>
/// <remarks>Nothing in the form says "simulated"; the chip key that a chain ends at does, through the authority that signed it (<see cref="SimulatedAuthority"/>).</remarks>
public sealed class SevCertificate
{
    public const int Size = 0x824;

    /// <summary>ECDSA with SHA-384.</summary>
    public const uint EcdsaSha384 = 0x102;

    /// <summary>Diffie-Hellman, with SHA-384 where a hash is taken.</summary>
    public const uint EcdhSha384 = 0x103;

    /// <summary>RSASSA-PSS with SHA-384.</summary>
    public const uint RsaSha384 = 0x101;

    private const uint FormVersion = 1;
    private const uint CurveP384 = 2;

    private const int ApiAt = 0x4;
    private const int UsageAt = 0x8;
    private const int AlgorithmAt = 0xC;
    private const int CurveAt = 0x10;
    private const int XAt = 0x14;
    private const int YAt = 0x5C;
    private const int SignedSize = 0x414;
    private const int SignatureStride = 0x208;
    private const int SignatureSize = 512;
    private const int IntegerSize = 72;
    private const int CoordinateSize = 48;

    private readonly byte[] _bytes;

    private SevCertificate(byte[] bytes) => _bytes = bytes;

    public ReadOnlySpan<byte> Bytes => _bytes;

    public SevKeyUsage Usage => (SevKeyUsage)Word(UsageAt);

    /// <summary>What signatures are over.</summary>
    public ReadOnlySpan<byte> Signed => _bytes.AsSpan(0, SignedSize);

    /// <summary>Version of the form, API of the firmware, key and its usage are those of another: the same but for signatures.</summary>
    public bool SaysTheSameAs(SevCertificate other) => Signed.SequenceEqual(other.Signed);

    /// <summary>A certificate that nobody signed yet.</summary>
    /// <param name="usage">Whose key it is.</param>
    /// <param name="algorithm">What the key is for.</param>
    /// <param name="api">API version of the firmware that makes it; 0.0 where none does.</param>
    /// <param name="point">The public key, big-endian coordinates of 48 bytes.</param>
    public static SevCertificate Create(SevKeyUsage usage, uint algorithm, (byte Major, byte Minor) api, ECPoint point)
    {
        byte[] bytes = new byte[Size];
        BinaryPrimitives.WriteUInt32LittleEndian(bytes, FormVersion);
        bytes[ApiAt] = api.Major;
        bytes[ApiAt + 1] = api.Minor;
        BinaryPrimitives.WriteUInt32LittleEndian(bytes.AsSpan(UsageAt), (uint)usage);
        BinaryPrimitives.WriteUInt32LittleEndian(bytes.AsSpan(AlgorithmAt), algorithm);
        BinaryPrimitives.WriteUInt32LittleEndian(bytes.AsSpan(CurveAt), CurveP384);
        PutCoordinate(bytes, XAt, point.X!);
        PutCoordinate(bytes, YAt, point.Y!);
        for (int slot = 0; slot < 2; slot++)
        {
            BinaryPrimitives.WriteUInt32LittleEndian(bytes.AsSpan(SlotAt(slot)), (uint)SevKeyUsage.INVALID);
        }
        return new SevCertificate(bytes);
    }

    /// <summary>The certificate with a signature in a place.</summary>
    /// <param name="slot">0 or 1.</param>
    /// <param name="signer">Whose key.</param>
    /// <param name="key">The key.</param>
    internal SevCertificate SignedBy(int slot, SevKeyUsage signer, EcdsaP384Key key)
    {
        byte[] bytes = [.. _bytes];
        key.SignInto(SHA384.HashData(Signed), Slot(bytes, slot, signer, EcdsaSha384));
        return new SevCertificate(bytes);
    }

    /// <summary>The certificate with the signature of an authority of AMD's in its first place: RSASSA-PSS, least significant byte first.</summary>
    internal SevCertificate SignedBy(SevKeyUsage signer, RsaPssKey key)
    {
        byte[] bytes = [.. _bytes];
        byte[] signature = key.SignData(Signed.ToArray(), HashAlgorithmName.SHA384);
        Array.Reverse(signature);
        signature.CopyTo(Slot(bytes, 0, signer, RsaSha384));
        return new SevCertificate(bytes);
    }

    /// <summary>Reads a certificate of a P-384 key; false where the bytes are none, or the point is not on the curve.</summary>
    public static bool TryRead(ReadOnlySpan<byte> bytes, out SevCertificate certificate)
    {
        certificate = null!;
        if (bytes.Length != Size || BinaryPrimitives.ReadUInt32LittleEndian(bytes) != FormVersion || BinaryPrimitives.ReadUInt32LittleEndian(bytes[CurveAt..]) != CurveP384)
        {
            return false;
        }
        certificate = new SevCertificate(bytes.ToArray());
        return certificate.TryGetKey(out _);
    }

    /// <summary>The key; false where it is no point of the curve.</summary>
    public bool TryGetKey(out ECParameters key)
    {
        key = new ECParameters { Curve = ECCurve.NamedCurves.nistP384, Q = new ECPoint { X = Coordinate(XAt), Y = Coordinate(YAt) } };
        try
        {
            using var imported = ECDsa.Create(key);
            return true;
        }
        catch (CryptographicException)
        {
            return false;
        }
    }

    /// <summary>Whether one of the signatures is that of a P-384 key.</summary>
    /// <param name="signer">Whose signature.</param>
    /// <param name="issuer">The certificate with the signer's key.</param>
    public bool IsSignedBy(SevKeyUsage signer, SevCertificate issuer)
    {
        if (!issuer.TryGetKey(out ECParameters parameters))
        {
            return false;
        }
        using var key = ECDsa.Create(parameters);
        for (int slot = 0; slot < 2; slot++)
        {
            int at = SlotAt(slot);
            if (Word(at) == (uint)signer && Word(at + 4) == EcdsaSha384)
            {
                ReadOnlySpan<byte> signature = _bytes.AsSpan(at + 8, SignatureSize);
                byte[] r = BigEndian(signature), s = BigEndian(signature[IntegerSize..]);
                if (key.VerifyData(Signed, [.. r, .. s], HashAlgorithmName.SHA384, DSASignatureFormat.IeeeP1363FixedFieldConcatenation))
                {
                    return true;
                }
            }
        }
        return false;
    }

    /// <summary>Whether the first signature is that of an authority of AMD's.</summary>
    public bool IsSignedBy(SevKeyUsage signer, RSA authority)
    {
        int at = SlotAt(0);
        if (Word(at) != (uint)signer || Word(at + 4) != RsaSha384)
        {
            return false;
        }
        byte[] signature = _bytes[(at + 8)..(at + 8 + SignatureSize)];
        Array.Reverse(signature);
        return authority.VerifyData(Signed, signature, HashAlgorithmName.SHA384, RSASignaturePadding.Pss);
    }

    private static int SlotAt(int slot) => SignedSize + (slot * SignatureStride);

    private static Span<byte> Slot(byte[] bytes, int slot, SevKeyUsage signer, uint algorithm)
    {
        Span<byte> place = bytes.AsSpan(SlotAt(slot), SignatureStride);
        BinaryPrimitives.WriteUInt32LittleEndian(place, (uint)signer);
        BinaryPrimitives.WriteUInt32LittleEndian(place[4..], algorithm);
        return place[8..];
    }

    private uint Word(int at) => BinaryPrimitives.ReadUInt32LittleEndian(_bytes.AsSpan(at));

    private byte[] Coordinate(int at) => BigEndian(_bytes.AsSpan(at));

    private static byte[] BigEndian(ReadOnlySpan<byte> littleEndian)
    {
        byte[] number = littleEndian[..CoordinateSize].ToArray();
        Array.Reverse(number);
        return number;
    }

    private static void PutCoordinate(byte[] bytes, int at, byte[] bigEndian)
    {
        for (int i = 0; i < CoordinateSize; i++)
        {
            bytes[at + i] = bigEndian[^(i + 1)];
        }
    }
}
