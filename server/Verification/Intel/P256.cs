using System.Security.Cryptography;

namespace VmmService.Server.Verification.Intel;

/// <summary>ECDSA on P-256 with SHA-256, of bare keys (x and y) and bare signatures (r and s), each 32 bytes and big-endian.</summary>
internal static class P256
{
    private const int KeySize = 64;

    /// <summary>Whether there is such a point on the curve.</summary>
    public static bool IsKey(ReadOnlySpan<byte> key)
    {
        using ECDsa? ecdsa = Key(key);
        return ecdsa is not null;
    }

    /// <summary>Whether a key signed it.</summary>
    public static bool Verifies(ReadOnlySpan<byte> key, ReadOnlySpan<byte> signed, ReadOnlySpan<byte> signature)
    {
        try
        {
            using ECDsa? ecdsa = Key(key);
            return ecdsa is not null && ecdsa.VerifyData(signed, signature, HashAlgorithmName.SHA256, DSASignatureFormat.IeeeP1363FixedFieldConcatenation);
        }
        catch (CryptographicException)
        {
            return false;
        }
    }

    private static ECDsa? Key(ReadOnlySpan<byte> key)
    {
        if (key.Length != KeySize)
        {
            return null;
        }
        try
        {
            var point = new ECPoint { X = key[..(KeySize / 2)].ToArray(), Y = key[(KeySize / 2)..].ToArray() };
            return ECDsa.Create(new ECParameters { Curve = ECCurve.NamedCurves.nistP256, Q = point });
        }
        catch (CryptographicException)
        {
            return null;
        }
    }
}
