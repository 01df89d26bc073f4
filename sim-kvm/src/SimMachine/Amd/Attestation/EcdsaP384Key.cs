using System.Numerics;
using SimMachine.Attestation;

namespace SimMachine.Amd.Attestation;

/// <summary>A P-384 key, as sign reports: what <see cref="EcdsaKey"/> says of keys, and the form of signatures in reports.</summary>
public sealed class EcdsaP384Key : EcdsaKey
{
    public const int FieldSize = 48;

    private EcdsaP384Key(BigInteger d)
        : base(Curve.P384, d)
    {
    }

    /// <summary>A key from at least 56 bytes (FIPS 186-5 A.2.1: 64 bits more than the order, so that no scalar is noticeably likelier).</summary>
    public static EcdsaP384Key FromBytes(ReadOnlySpan<byte> bytes) => bytes.Length >= FieldSize + 8
        ? new((Number(bytes) % (Curve.P384.Order - 1)) + 1)
        : throw new ArgumentException($"a P-384 key is derived from at least {FieldSize + 8} bytes", nameof(bytes));

    /// <summary>The key with this private scalar, between 1 and the order less 1.</summary>
    public static EcdsaP384Key FromScalar(ReadOnlySpan<byte> bigEndian) => Number(bigEndian) is var d && d > 0 && d < Curve.P384.Order
        ? new(d)
        : throw new ArgumentException("the scalar is not between 1 and the order of P-384 less 1", nameof(bigEndian));

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
}
