using System.Formats.Asn1;
using System.Globalization;
using System.Numerics;
using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;

namespace SimMachine.Attestation;

/// <summary>
/// A key on a NIST curve whose signatures are functions of key and message: the nonce is that of RFC 6979, where the platform's ECDSA takes a random one. Points
/// are computed by the platform, scalars here. Verification is the platform's business (<see cref="CreatePublic"/>). As a generator it signs certificates.
/// </summary>
/// <remarks>Keys of a simulation are public by construction, so nothing here takes care of timing.</remarks>
public abstract class EcdsaKey : X509SignatureGenerator
{
    private readonly Curve _curve;
    private readonly BigInteger _d;

    private protected EcdsaKey(Curve curve, BigInteger d)
    {
        _curve = curve;
        _d = d;
        Point = Multiply(d);
    }

    /// <summary>The public point; coordinates are as long as the curve's field, big-endian.</summary>
    public ECPoint Point { get; }

    /// <summary>The public half, for the platform's cryptography.</summary>
    public ECDsa CreatePublic() => ECDsa.Create(new ECParameters { Curve = _curve.Named, Q = Point });

    /// <summary>Signs a digest of the curve's hash, which is as long as its field.</summary>
    /// <returns>R and S, as long as the field, big-endian.</returns>
    public (byte[] R, byte[] S) SignDigest(ReadOnlySpan<byte> digest)
    {
        if (digest.Length != _curve.FieldSize)
        {
            throw new ArgumentException($"a {_curve.Hash.Name} digest has {_curve.FieldSize} bytes", nameof(digest));
        }
        BigInteger z = Number(digest);
        foreach (BigInteger k in Nonces(z))
        {
            BigInteger r = Number(Multiply(k).X) % _curve.Order;
            BigInteger s = BigInteger.ModPow(k, _curve.Order - 2, _curve.Order) * (z + (r * _d)) % _curve.Order;
            if (!r.IsZero && !s.IsZero)
            {
                return (Field(r), Field(s));
            }
        }
        throw new InvalidOperationException("RFC 6979 gives nonces without end");
    }

    public override byte[] GetSignatureAlgorithmIdentifier(HashAlgorithmName hashAlgorithm)
    {
        CheckHash(hashAlgorithm);
        var writer = new AsnWriter(AsnEncodingRules.DER);
        using (writer.PushSequence())
        {
            writer.WriteObjectIdentifier(_curve.SignatureOid);
        }
        return writer.Encode();
    }

    public override byte[] SignData(byte[] data, HashAlgorithmName hashAlgorithm)
    {
        CheckHash(hashAlgorithm);
        (byte[] r, byte[] s) = SignDigest(CryptographicOperations.HashData(_curve.Hash, data));
        var writer = new AsnWriter(AsnEncodingRules.DER);
        using (writer.PushSequence())
        {
            writer.WriteInteger(Number(r));
            writer.WriteInteger(Number(s));
        }
        return writer.Encode();
    }

    protected override PublicKey BuildPublicKey()
    {
        using ECDsa key = CreatePublic();
        return new PublicKey(key);
    }

    private protected static BigInteger Number(ReadOnlySpan<byte> bigEndian) => new(bigEndian, isUnsigned: true, isBigEndian: true);

    private void CheckHash(HashAlgorithmName hashAlgorithm)
    {
        if (hashAlgorithm != _curve.Hash)
        {
            throw new ArgumentException($"this key signs {_curve.Hash.Name} digests", nameof(hashAlgorithm));
        }
    }

    // RFC 6979 3.2. The order has as many bits as the hash, so its bits2int and bits2octets are plain.
    private IEnumerable<BigInteger> Nonces(BigInteger z)
    {
        byte[] x = Field(_d);
        byte[] h = Field(z % _curve.Order);
        byte[] v = new byte[_curve.FieldSize];
        byte[] key = new byte[_curve.FieldSize];
        v.AsSpan().Fill(1);
        key = Hmac(key, [.. v, 0, .. x, .. h]);
        v = Hmac(key, v);
        key = Hmac(key, [.. v, 1, .. x, .. h]);
        v = Hmac(key, v);
        while (true)
        {
            v = Hmac(key, v);
            BigInteger k = Number(v);
            if (k > 0 && k < _curve.Order)
            {
                yield return k;
            }
            key = Hmac(key, [.. v, 0]);
            v = Hmac(key, v);
        }
    }

    private byte[] Hmac(byte[] key, byte[] data) => CryptographicOperations.HmacData(_curve.Hash, key, data);

    private ECPoint Multiply(BigInteger scalar)
    {
        using var key = ECDsa.Create(new ECParameters { Curve = _curve.Named, D = Field(scalar) });
        return key.ExportParameters(includePrivateParameters: false).Q;
    }

    private byte[] Field(BigInteger value)
    {
        byte[] bytes = new byte[_curve.FieldSize];
        byte[] digits = value.ToByteArray(isUnsigned: true, isBigEndian: true);
        digits.CopyTo(bytes, _curve.FieldSize - digits.Length);
        return bytes;
    }

    /// <summary>A curve of FIPS 186 and the hash that goes with it.</summary>
    /// <param name="Named">For the platform.</param>
    /// <param name="Order">Of the group.</param>
    /// <param name="FieldSize">Bytes of a coordinate, of a scalar and of a digest.</param>
    /// <param name="Hash">The hash of what is signed.</param>
    /// <param name="SignatureOid">The algorithm in certificates.</param>
    private protected sealed record Curve(ECCurve Named, BigInteger Order, int FieldSize, HashAlgorithmName Hash, string SignatureOid)
    {
        public static Curve P256 { get; } = new(
            ECCurve.NamedCurves.nistP256, Hex("0ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551"), 32, HashAlgorithmName.SHA256, "1.2.840.10045.4.3.2");

        public static Curve P384 { get; } = new(
            ECCurve.NamedCurves.nistP384,
            Hex("0ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973"),
            48,
            HashAlgorithmName.SHA384,
            "1.2.840.10045.4.3.3");

        private static BigInteger Hex(string digits) => BigInteger.Parse(digits, NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture);
    }
}
