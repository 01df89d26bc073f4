using System.Globalization;
using System.Numerics;
using System.Security.Cryptography;

namespace SimMachine.Amd.Attestation;

/// <summary>
/// A P-384 key whose signatures are functions of key and message: the nonce is that of RFC 6979, where the platform's ECDSA takes a random one. Points are
/// computed by the platform, scalars here. Verification is the platform's business (<see cref="CreatePublic"/>).
/// </summary>
/// <remarks>Keys of a simulation are public by construction, so nothing here takes care of timing.</remarks>
public sealed class EcdsaP384Key
{
    public const int FieldSize = 48;

    // FIPS 186: the order of P-384.
    private static readonly BigInteger Order = BigInteger.Parse(
        "0ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973",
        NumberStyles.AllowHexSpecifier,
        CultureInfo.InvariantCulture);

    private readonly BigInteger _d;

    private EcdsaP384Key(BigInteger d)
    {
        _d = d;
        Point = Multiply(d);
    }

    /// <summary>The public point; coordinates are 48 bytes, big-endian.</summary>
    public ECPoint Point { get; }

    /// <summary>A key from at least 56 bytes (FIPS 186-5 A.2.1: 64 bits more than the order, so that no scalar is noticeably likelier).</summary>
    public static EcdsaP384Key FromBytes(ReadOnlySpan<byte> bytes) => bytes.Length >= FieldSize + 8
        ? new((Number(bytes) % (Order - 1)) + 1)
        : throw new ArgumentException($"a P-384 key is derived from at least {FieldSize + 8} bytes", nameof(bytes));

    /// <summary>The key with this private scalar, between 1 and the order less 1.</summary>
    public static EcdsaP384Key FromScalar(ReadOnlySpan<byte> bigEndian) => Number(bigEndian) is var d && d > 0 && d < Order
        ? new(d)
        : throw new ArgumentException("the scalar is not between 1 and the order of P-384 less 1", nameof(bigEndian));

    /// <summary>The public half, for the platform's cryptography.</summary>
    public ECDsa CreatePublic() => ECDsa.Create(new ECParameters { Curve = ECCurve.NamedCurves.nistP384, Q = Point });

    /// <summary>Signs a SHA-384 digest.</summary>
    /// <returns>R and S, 48 bytes each, big-endian.</returns>
    public (byte[] R, byte[] S) SignDigest(ReadOnlySpan<byte> digest)
    {
        if (digest.Length != SHA384.HashSizeInBytes)
        {
            throw new ArgumentException("a SHA-384 digest has 48 bytes", nameof(digest));
        }
        BigInteger z = Number(digest);
        foreach (BigInteger k in Nonces(z))
        {
            BigInteger r = Number(Multiply(k).X) % Order;
            BigInteger s = BigInteger.ModPow(k, Order - 2, Order) * (z + (r * _d)) % Order;
            if (!r.IsZero && !s.IsZero)
            {
                return (Field(r), Field(s));
            }
        }
        throw new InvalidOperationException("RFC 6979 gives nonces without end");
    }

    /// <summary>Writes a signature in the form of reports: R and S little-endian in 72 bytes each, then zeros.</summary>
    internal void SignInto(ReadOnlySpan<byte> digest, Span<byte> signature)
    {
        const int integerSize = 72;
        (byte[] r, byte[] s) = SignDigest(digest);
        signature.Clear();
        Array.Reverse(r);
        Array.Reverse(s);
        r.CopyTo(signature);
        s.CopyTo(signature[integerSize..]);
    }

    // RFC 6979 3.2. The order has as many bits as the hash, so its bits2int and bits2octets are plain.
    private IEnumerable<BigInteger> Nonces(BigInteger z)
    {
        byte[] x = Field(_d);
        byte[] h = Field(z % Order);
        byte[] v = new byte[FieldSize];
        byte[] key = new byte[FieldSize];
        v.AsSpan().Fill(1);
        key = Hmac(key, [.. v, 0, .. x, .. h]);
        v = Hmac(key, v);
        key = Hmac(key, [.. v, 1, .. x, .. h]);
        v = Hmac(key, v);
        while (true)
        {
            v = Hmac(key, v);
            BigInteger k = Number(v);
            if (k > 0 && k < Order)
            {
                yield return k;
            }
            key = Hmac(key, [.. v, 0]);
            v = Hmac(key, v);
        }
    }

    private static byte[] Hmac(byte[] key, byte[] data) => HMACSHA384.HashData(key, data);

    private static ECPoint Multiply(BigInteger scalar)
    {
        using var key = ECDsa.Create(new ECParameters { Curve = ECCurve.NamedCurves.nistP384, D = Field(scalar) });
        return key.ExportParameters(includePrivateParameters: false).Q;
    }

    private static BigInteger Number(ReadOnlySpan<byte> bigEndian) => new(bigEndian, isUnsigned: true, isBigEndian: true);

    private static byte[] Field(BigInteger value)
    {
        byte[] bytes = new byte[FieldSize];
        byte[] digits = value.ToByteArray(isUnsigned: true, isBigEndian: true);
        digits.CopyTo(bytes, FieldSize - digits.Length);
        return bytes;
    }
}
