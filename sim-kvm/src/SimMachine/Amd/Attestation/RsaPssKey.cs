using System.Buffers.Binary;
using System.Formats.Asn1;
using System.Numerics;
using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;
using SimMachine.Stepping;

namespace SimMachine.Amd.Attestation;

/// <summary>
/// An RSA-4096 key of a simulated authority, found by a search that a label starts, and RSASSA-PSS with SHA-384 whose salt is a function of key and message. So
/// certificates are the same bytes wherever they are made. As a signature generator it plugs into the platform's certificate and CRL builders.
/// </summary>
/// <remarks>
/// <para>
/// The search: a prime is the first of base, base + 2, base + 4, ... that is prime and whose predecessor 65537 does not divide, where base is 256 bytes of <see
/// cref="Entropy"/> under <see cref="Seed"/> and the label, its two top bits and its lowest bit set. Searching takes seconds; who knows how many steps
/// it takes passes that number, and the tests check that it is right.
/// </para>
/// Keys of a simulation are public by construction, so nothing here takes care of timing.
/// </remarks>
internal sealed class RsaPssKey : X509SignatureGenerator
{
    /// <summary>"SIMULATE" in ASCII. The authorities belong to the simulator and not to a host, so that one root can be trusted once.</summary>
    public const ulong Seed = 0x53494D554C415445;

    private const int ModulusSize = 512;
    private const int PrimeSize = ModulusSize / 2;
    private const int SaltSize = SHA384.HashSizeInBytes;

    private static readonly BigInteger Exponent = 65537;

    private readonly BigInteger _p;
    private readonly BigInteger _q;
    private readonly BigInteger _dp;
    private readonly BigInteger _dq;
    private readonly BigInteger _inverseQ;
    private readonly byte[] _modulus;
    private readonly byte[] _saltKey;

    /// <param name="label">Name of the key; its primes are those of label/p and label/q.</param>
    /// <param name="stepsToP">Steps of the search for p.</param>
    /// <param name="stepsToQ">Steps of the search for q.</param>
    public RsaPssKey(string label, int stepsToP, int stepsToQ)
    {
        _p = Candidate(label + "/p", stepsToP);
        _q = Candidate(label + "/q", stepsToQ);
        BigInteger d = Inverse(Exponent, (_p - 1) * (_q - 1));
        _dp = d % (_p - 1);
        _dq = d % (_q - 1);
        _inverseQ = Inverse(_q, _p);
        _modulus = Bytes(_p * _q, ModulusSize);
        _saltKey = SHA384.HashData(Bytes(d, ModulusSize));
    }

    /// <summary>The number that a search looks at in a step, from 0.</summary>
    internal static BigInteger Candidate(string label, int step)
    {
        Span<byte> start = stackalloc byte[PrimeSize];
        new Entropy(Seed).Derive(label, start);
        start[0] |= 0xC0;
        start[^1] |= 1;
        return Number(start) + (2 * step);
    }

    /// <summary>The public half, for the platform's cryptography.</summary>
    public RSA CreatePublic() => RSA.Create(new RSAParameters { Modulus = _modulus, Exponent = [1, 0, 1] });

    /// <summary>RSASSA-PSS: SHA-384, MGF1 with SHA-384, salt of 48 bytes; the trailer field has its default and is left out, as DER wants.</summary>
    public override byte[] GetSignatureAlgorithmIdentifier(HashAlgorithmName hashAlgorithm)
    {
        const string rsassaPss = "1.2.840.113549.1.1.10", mgf1 = "1.2.840.113549.1.1.8";
        var writer = new AsnWriter(AsnEncodingRules.DER);
        using (writer.PushSequence())
        {
            writer.WriteObjectIdentifier(rsassaPss);
            using (writer.PushSequence())
            {
                using (writer.PushSequence(Context(0)))
                {
                    WriteSha384(writer);
                }
                using (writer.PushSequence(Context(1)))
                using (writer.PushSequence())
                {
                    writer.WriteObjectIdentifier(mgf1);
                    WriteSha384(writer);
                }
                using (writer.PushSequence(Context(2)))
                {
                    writer.WriteInteger(SaltSize);
                }
            }
        }
        return writer.Encode();
    }

    public override byte[] SignData(byte[] data, HashAlgorithmName hashAlgorithm)
    {
        BigInteger message = Number(Encode(SHA384.HashData(data)));
        BigInteger modP = BigInteger.ModPow(message, _dp, _p);
        BigInteger modQ = BigInteger.ModPow(message, _dq, _q);
        BigInteger h = _inverseQ * (modP - modQ) % _p;
        return Bytes(modQ + ((h.Sign < 0 ? h + _p : h) * _q), ModulusSize);
    }

    protected override PublicKey BuildPublicKey()
    {
        using RSA rsa = CreatePublic();
        return new PublicKey(rsa);
    }

    // EMSA-PSS-ENCODE (RFC 8017 9.1.1) for a modulus of 4096 bits: the encoded message has 4095 bits, so its top bit is clear.
    private byte[] Encode(byte[] digest)
    {
        const int hashSize = SHA384.HashSizeInBytes, maskedSize = ModulusSize - hashSize - 1;
        byte[] salt = HMACSHA384.HashData(_saltKey, digest);
        byte[] hash = SHA384.HashData([.. new byte[8], .. digest, .. salt]);
        byte[] encoded = new byte[ModulusSize];
        Span<byte> masked = encoded.AsSpan(0, maskedSize);
        masked[maskedSize - SaltSize - 1] = 1;
        salt.CopyTo(masked[(maskedSize - SaltSize)..]);
        Mask(masked, hash);
        masked[0] &= 0x7F;
        hash.CopyTo(encoded, maskedSize);
        encoded[^1] = 0xBC;
        return encoded;
    }

    // MGF1 (RFC 8017 B.2.1), applied.
    private static void Mask(Span<byte> target, byte[] seed)
    {
        byte[] input = [.. seed, 0, 0, 0, 0];
        for (int offset = 0, counter = 0; offset < target.Length; offset += SHA384.HashSizeInBytes, counter++)
        {
            BinaryPrimitives.WriteInt32BigEndian(input.AsSpan(seed.Length), counter);
            byte[] block = SHA384.HashData(input);
            for (int i = 0; i < block.Length && offset + i < target.Length; i++)
            {
                target[offset + i] ^= block[i];
            }
        }
    }

    private static void WriteSha384(AsnWriter writer)
    {
        using (writer.PushSequence())
        {
            writer.WriteObjectIdentifier("2.16.840.1.101.3.4.2.2");
            writer.WriteNull();
        }
    }

    private static Asn1Tag Context(int number) => new(TagClass.ContextSpecific, number, isConstructed: true);

    // Euclid's algorithm, extended.
    private static BigInteger Inverse(BigInteger value, BigInteger modulus)
    {
        (BigInteger r, BigInteger next) = (modulus, value % modulus);
        (BigInteger t, BigInteger nextT) = (0, 1);
        while (!next.IsZero)
        {
            BigInteger quotient = r / next;
            (r, next) = (next, r - (quotient * next));
            (t, nextT) = (nextT, t - (quotient * nextT));
        }
        return t.Sign < 0 ? t + modulus : t;
    }

    private static BigInteger Number(ReadOnlySpan<byte> bigEndian) => new(bigEndian, isUnsigned: true, isBigEndian: true);

    private static byte[] Bytes(BigInteger value, int size)
    {
        byte[] bytes = new byte[size];
        byte[] digits = value.ToByteArray(isUnsigned: true, isBigEndian: true);
        digits.CopyTo(bytes, size - digits.Length);
        return bytes;
    }
}
