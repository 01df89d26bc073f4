using System.Buffers.Binary;
using System.Numerics;

namespace VmmService.Client.Digest;

/// <summary>
/// SHA-256 (FIPS 180-4) that can be copied half-way, which the platform's cannot: a search hashes a firmware once and goes on from there many times. For anything else use the
/// platform's, which is several times as fast.
/// </summary>
internal sealed class Sha256State
{
    /// <summary>Bytes of a hash.</summary>
    public const int HashSize = 32;

    private const int BlockSize = 64;
    private const int Rounds = 64;

    // The first 32 bits of the fractional parts of the cube roots of the first 64 primes.
    private static readonly uint[] s_k = Roots(Rounds, cube: true);

    // Of the square roots of the first eight.
    private static readonly uint[] s_initial = Roots(8, cube: false);

    private readonly uint[] _state;
    private readonly byte[] _rest = new byte[BlockSize];
    private ulong _length;

    public Sha256State() => _state = [.. s_initial];

    private Sha256State(Sha256State other)
    {
        _state = [.. other._state];
        other._rest.CopyTo(_rest, 0);
        _length = other._length;
    }

    public Sha256State Copy() => new(this);

    public void Append(ReadOnlySpan<byte> data)
    {
        int held = (int)(_length % BlockSize);
        _length += (ulong)data.Length;
        if (held > 0)
        {
            int taken = Math.Min(BlockSize - held, data.Length);
            data[..taken].CopyTo(_rest.AsSpan(held));
            data = data[taken..];
            if (held + taken < BlockSize)
                return;
            Compress(_rest);
        }

        for (; data.Length >= BlockSize; data = data[BlockSize..])
            Compress(data);
        data.CopyTo(_rest);
    }

    /// <summary>The hash of what was appended so far; more can follow.</summary>
    public void GetHash(Span<byte> hash)
    {
        Sha256State end = Copy();
        int held = (int)(_length % BlockSize);
        Span<byte> padding = stackalloc byte[2 * BlockSize];
        padding.Clear();
        padding[0] = 0x80;
        int size = (held < BlockSize - 8 ? BlockSize : 2 * BlockSize) - held;
        BinaryPrimitives.WriteUInt64BigEndian(padding[(size - 8)..], _length * 8);
        end.Append(padding[..size]);
        for (int i = 0; i < end._state.Length; i++)
            BinaryPrimitives.WriteUInt32BigEndian(hash[(4 * i)..], end._state[i]);
    }

    private void Compress(ReadOnlySpan<byte> block)
    {
        Span<uint> w = stackalloc uint[Rounds];
        for (int t = 0; t < 16; t++)
            w[t] = BinaryPrimitives.ReadUInt32BigEndian(block[(4 * t)..]);
        for (int t = 16; t < Rounds; t++)
        {
            uint s0 = BitOperations.RotateRight(w[t - 15], 7) ^ BitOperations.RotateRight(w[t - 15], 18) ^ (w[t - 15] >> 3);
            uint s1 = BitOperations.RotateRight(w[t - 2], 17) ^ BitOperations.RotateRight(w[t - 2], 19) ^ (w[t - 2] >> 10);
            w[t] = w[t - 16] + s0 + w[t - 7] + s1;
        }

        (uint a, uint b, uint c, uint d, uint e, uint f, uint g, uint h) = (_state[0], _state[1], _state[2], _state[3], _state[4], _state[5], _state[6], _state[7]);
        for (int t = 0; t < Rounds; t++)
        {
            uint t1 = h + (BitOperations.RotateRight(e, 6) ^ BitOperations.RotateRight(e, 11) ^ BitOperations.RotateRight(e, 25)) + ((e & f) ^ (~e & g)) + s_k[t] + w[t];
            uint t2 = (BitOperations.RotateRight(a, 2) ^ BitOperations.RotateRight(a, 13) ^ BitOperations.RotateRight(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
            (h, g, f, e, d, c, b, a) = (g, f, e, d + t1, c, b, a, t1 + t2);
        }

        _state[0] += a;
        _state[1] += b;
        _state[2] += c;
        _state[3] += d;
        _state[4] += e;
        _state[5] += f;
        _state[6] += g;
        _state[7] += h;
    }

    // In whole numbers: the root of p * 2^(32 k), whose low 32 bits are the fraction wanted.
    private static uint[] Roots(int count, bool cube)
    {
        uint[] roots = new uint[count];
        for (int i = 0, candidate = 2; i < count; candidate++)
        {
            if (Enumerable.Range(2, candidate - 2).Any(divisor => candidate % divisor == 0))
                continue;

            int degree = cube ? 3 : 2;
            BigInteger scaled = new BigInteger(candidate) << (32 * degree);
            BigInteger low = 0;
            for (BigInteger high = BigInteger.One << 40; high - low > 1;)
            {
                BigInteger middle = (low + high) / 2;
                if (BigInteger.Pow(middle, degree) <= scaled)
                    low = middle;
                else
                    high = middle;
            }

            roots[i++] = (uint)(low & uint.MaxValue);
        }

        return roots;
    }
}
