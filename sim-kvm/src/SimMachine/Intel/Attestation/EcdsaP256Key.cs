using System.Numerics;
using System.Security.Cryptography;
using System.Text;
using SimMachine.Attestation;

namespace SimMachine.Intel.Attestation;

/// <summary>A P-256 key, as sign quotes, enclaves' reports, certificates and collateral: what <see cref="EcdsaKey"/> says of keys, and the form of signatures in quotes.</summary>
public sealed class EcdsaP256Key : EcdsaKey
{
    public const int FieldSize = 32;

    /// <summary>Bytes of a signature or a public key: two numbers of the field, big-endian.</summary>
    public const int PairSize = 2 * FieldSize;

    private EcdsaP256Key(BigInteger d)
        : base(Curve.P256, d)
    {
    }

    /// <summary>x and y, 64 bytes.</summary>
    public byte[] PublicBytes => [.. Point.X!, .. Point.Y!];

    /// <summary>
    /// The key of a name: SHA-256 of it, modulo the order less 1, plus 1. Some scalars are likelier than others by a part in 2^32, which nobody minds in a key that anyone can derive.
    /// </summary>
    public static EcdsaP256Key Named(string name) => new((Number(SHA256.HashData(Encoding.ASCII.GetBytes(name))) % (Curve.P256.Order - 1)) + 1);

    /// <summary>The key with this private scalar, between 1 and the order less 1.</summary>
    public static EcdsaP256Key FromScalar(ReadOnlySpan<byte> bigEndian) => Number(bigEndian) is var d && d > 0 && d < Curve.P256.Order
        ? new(d)
        : throw new ArgumentException("the scalar is not between 1 and the order of P-256 less 1", nameof(bigEndian));

    /// <summary>Signs bytes: r and s, 64 bytes.</summary>
    public byte[] Sign(ReadOnlySpan<byte> message)
    {
        (byte[] r, byte[] s) = SignDigest(SHA256.HashData(message));
        return [.. r, .. s];
    }
}
