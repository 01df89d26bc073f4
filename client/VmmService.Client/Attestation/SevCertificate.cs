using System.Buffers.Binary;
using System.Security.Cryptography;

namespace VmmService.Client.Attestation;

/// <summary>Whose key a SEV certificate holds, or who signed it (SEV API, appendix C).</summary>
public enum SevKeyUsage : uint
{
    /// <summary>Root of AMD.</summary>
    ARK = 0x0,

    /// <summary>Intermediate authority of AMD.</summary>
    ASK = 0x13,

    /// <summary>A signature that is not there.</summary>
    INVALID = 0x1000,

    /// <summary>Owner of a platform.</summary>
    OCA = 0x1001,

    /// <summary>Platform endorsement key.</summary>
    PEK = 0x1002,

    /// <summary>Diffie-Hellman key, a platform's or a guest owner's.</summary>
    PDH = 0x1003,

    /// <summary>Chip endorsement key.</summary>
    CEK = 0x1004,
}

/// <summary>
/// A SEV certificate of a P-384 key: 2084 bytes with room for two signatures over what stands before them. Not X.509; that AMD's own authorities have, of which the last
/// certificate of a platform's chain is signed (<see cref="SevPlatformChain"/>).
/// </summary>
public sealed class SevCertificate
{
    /// <summary>Bytes of a certificate.</summary>
    public const int Size = 0x824;

    private const uint FormVersion = 1;
    private const uint CurveP384 = 2;
    private const uint EcdsaSha384 = 0x102;
    private const uint EcdhSha384 = 0x103;
    private const uint RsaSha384 = 0x101;

    private const int UsageAt = 0x8;
    private const int AlgorithmAt = 0xC;
    private const int CurveAt = 0x10;
    private const int XAt = 0x14;
    private const int YAt = 0x5C;
    private const int SignedSize = 0x414;
    private const int SignatureStride = 0x208;
    private const int SignatureSize = 512;
    private const int IntegerSize = 72;
    private const int FieldSize = 48;

    private readonly byte[] _bytes;

    private SevCertificate(byte[] bytes) => _bytes = bytes;

    /// <summary>The certificate as it travels.</summary>
    public ReadOnlyMemory<byte> Bytes => _bytes;

    /// <summary>Whose key it is.</summary>
    public SevKeyUsage Usage => (SevKeyUsage)Word(UsageAt);

    /// <summary>The public key.</summary>
    public ECParameters Key => new() { Curve = ECCurve.NamedCurves.nistP384, Q = new ECPoint { X = Field(XAt), Y = Field(YAt) } };

    private ReadOnlySpan<byte> Signed => _bytes.AsSpan(0, SignedSize);

    /// <summary>Reads a certificate.</summary>
    /// <exception cref="FormatException">The bytes are none, or have no point of P-384.</exception>
    public static SevCertificate Parse(ReadOnlySpan<byte> bytes)
    {
        if (bytes.Length != Size)
            throw new FormatException($"a SEV certificate has {Size} bytes and not {bytes.Length}");

        var certificate = new SevCertificate(bytes.ToArray());
        if (certificate.Word(0) != FormVersion || certificate.Word(CurveAt) != CurveP384)
            throw new FormatException($"version {certificate.Word(0)}, curve {certificate.Word(CurveAt)}: only version {FormVersion} with P-384 ({CurveP384}) is known");

        try
        {
            using var key = ECDsa.Create(certificate.Key);
        }
        catch (CryptographicException e)
        {
            throw new FormatException("the key is no point of P-384", e);
        }
        return certificate;
    }

    /// <summary>The certificate of a Diffie-Hellman key that a guest's owner makes sessions with. Nobody signs it.</summary>
    public static SevCertificate OfDiffieHellman(ECDiffieHellman key)
    {
        ArgumentNullException.ThrowIfNull(key);
        return Create(SevKeyUsage.PDH, EcdhSha384, key.ExportParameters(includePrivateParameters: false).Q);
    }

    /// <summary>The certificate of an owner of platforms (OCA), signed by itself.</summary>
    public static SevCertificate OfOwner(ECDsa key)
    {
        ArgumentNullException.ThrowIfNull(key);
        return Create(SevKeyUsage.OCA, EcdsaSha384, key.ExportParameters(includePrivateParameters: false).Q).SignedBy(SevKeyUsage.OCA, key);
    }

    /// <summary>The certificate with a signature in its first place: what an owner makes of a platform's request (SEV_PEK_CSR).</summary>
    public SevCertificate SignedBy(SevKeyUsage signer, ECDsa key)
    {
        ArgumentNullException.ThrowIfNull(key);
        byte[] bytes = [.. _bytes];
        Span<byte> place = bytes.AsSpan(SignedSize, SignatureStride);
        place.Clear();
        BinaryPrimitives.WriteUInt32LittleEndian(place, (uint)signer);
        BinaryPrimitives.WriteUInt32LittleEndian(place[4..], EcdsaSha384);
        byte[] signature = key.SignData(Signed, HashAlgorithmName.SHA384, DSASignatureFormat.IeeeP1363FixedFieldConcatenation);
        PutReversed(signature.AsSpan(0, FieldSize), place[8..]);
        PutReversed(signature.AsSpan(FieldSize), place[(8 + IntegerSize)..]);
        return new SevCertificate(bytes);
    }

    /// <summary>Whether one of the signatures is that of the issuer's key.</summary>
    public bool IsSignedBy(SevCertificate issuer)
    {
        ArgumentNullException.ThrowIfNull(issuer);
        using var key = ECDsa.Create(issuer.Key);
        for (int at = SignedSize; at < Size; at += SignatureStride)
        {
            if (Word(at) == (uint)issuer.Usage && Word(at + 4) == EcdsaSha384)
            {
                byte[] signature = [.. Field(at + 8), .. Field(at + 8 + IntegerSize)];
                if (key.VerifyData(Signed, signature, HashAlgorithmName.SHA384, DSASignatureFormat.IeeeP1363FixedFieldConcatenation))
                    return true;
            }
        }
        return false;
    }

    /// <summary>Whether the first signature is that of AMD's intermediate authority.</summary>
    public bool IsSignedByAsk(RSA ask)
    {
        ArgumentNullException.ThrowIfNull(ask);
        if (Word(SignedSize) != (uint)SevKeyUsage.ASK || Word(SignedSize + 4) != RsaSha384)
            return false;
        byte[] signature = _bytes[(SignedSize + 8)..(SignedSize + 8 + SignatureSize)];
        Array.Reverse(signature);
        return ask.VerifyData(Signed, signature, HashAlgorithmName.SHA384, RSASignaturePadding.Pss);
    }

    /// <summary>Whether both say the same of the same key; signatures do not count.</summary>
    public bool SaysTheSameAs(SevCertificate other)
    {
        ArgumentNullException.ThrowIfNull(other);
        return Signed.SequenceEqual(other.Signed);
    }

    private static SevCertificate Create(SevKeyUsage usage, uint algorithm, ECPoint point)
    {
        byte[] bytes = new byte[Size];
        BinaryPrimitives.WriteUInt32LittleEndian(bytes, FormVersion);
        BinaryPrimitives.WriteUInt32LittleEndian(bytes.AsSpan(UsageAt), (uint)usage);
        BinaryPrimitives.WriteUInt32LittleEndian(bytes.AsSpan(AlgorithmAt), algorithm);
        BinaryPrimitives.WriteUInt32LittleEndian(bytes.AsSpan(CurveAt), CurveP384);
        PutReversed(point.X, bytes.AsSpan(XAt));
        PutReversed(point.Y, bytes.AsSpan(YAt));
        for (int at = SignedSize; at < Size; at += SignatureStride)
            BinaryPrimitives.WriteUInt32LittleEndian(bytes.AsSpan(at), (uint)SevKeyUsage.INVALID);
        return new SevCertificate(bytes);
    }

    private uint Word(int at) => BinaryPrimitives.ReadUInt32LittleEndian(_bytes.AsSpan(at));

    private byte[] Field(int at)
    {
        byte[] number = _bytes[at..(at + FieldSize)];
        Array.Reverse(number);
        return number;
    }

    private static void PutReversed(ReadOnlySpan<byte> number, Span<byte> destination)
    {
        number.CopyTo(destination);
        destination[..number.Length].Reverse();
    }
}
