using System.Buffers.Binary;
using System.Diagnostics.CodeAnalysis;
using System.Runtime.CompilerServices;

namespace SimMachine.Measurement;

// SHA-384 (FIPS 180-4) of several messages of equal length at once: word i of every message lies in one vector, and each operation on a vector is
// that operation on all messages. The algorithm is written once, here, over ILanes; EightLanes, FourLanes and OneLane next door say what the
// operations are on a machine. PageHasher cuts pages into batches of lanes; PageInfoHash is the one-lane use for the launch digest's chain.
//
// Invariant: lane l of every vector depends on message l alone. The referee is the platform's SHA384, which every lane width is tested against.

/// <summary>What SHA-512's rounds need of a machine word, for a word of each of <see cref="Count"/> messages. Addition is modulo 2^64 in each
/// lane.</summary>
internal unsafe interface ILanes<TWord>
    where TWord : unmanaged
{
    /// <summary>Messages at once. A <typeparamref name="TWord"/> is this many 64-bit words.</summary>
    static abstract int Count { get; }

    static abstract TWord Broadcast(ulong value);

    static abstract TWord Add(TWord x, TWord y);

    static abstract TWord Xor(TWord x, TWord y, TWord z);

    /// <summary>Ch of the standard: y where a bit of x is set, z elsewhere.</summary>
    static abstract TWord Choose(TWord x, TWord y, TWord z);

    /// <summary>Maj of the standard: each bit as in two of the three at least.</summary>
    static abstract TWord Majority(TWord x, TWord y, TWord z);

    static abstract TWord RotateRight(TWord x, [ConstantExpected] byte count);

    static abstract TWord ShiftRight(TWord x, [ConstantExpected] byte count);

    /// <summary>The 16 big-endian words of a 128-byte block of each message: words[i] gets word i of all of them.</summary>
    /// <param name="messages"><see cref="Count"/> addresses.</param>
    /// <param name="offset">Of the block in each message, bytes.</param>
    static abstract void Load(byte** messages, int offset, TWord* words);
}

/// <summary>Numbers of SHA-384 that do not depend on the number of lanes.</summary>
internal static class Sha384Constants
{
    public const int BlockBytes = 128;
    public const int BlockWords = BlockBytes / sizeof(ulong);
    public const int Rounds = 80;
    public const int StateWords = 8;

    /// <summary>SHA-384 gives out six of the eight words of state.</summary>
    public const int DigestWords = DigestBytes / sizeof(ulong);
    public const int DigestBytes = 48;

    /// <summary>The first padding bit, as the first word after a message of whole words.</summary>
    public const ulong PaddingBit = 1UL << 63;

    /// <summary>K: the first 64 bits of the fractional parts of the cube roots of the first 80 primes.</summary>
    public static ReadOnlySpan<ulong> K =>
    [
        0x428a2f98d728ae22, 0x7137449123ef65cd, 0xb5c0fbcfec4d3b2f, 0xe9b5dba58189dbbc,
        0x3956c25bf348b538, 0x59f111f1b605d019, 0x923f82a4af194f9b, 0xab1c5ed5da6d8118,
        0xd807aa98a3030242, 0x12835b0145706fbe, 0x243185be4ee4b28c, 0x550c7dc3d5ffb4e2,
        0x72be5d74f27b896f, 0x80deb1fe3b1696b1, 0x9bdc06a725c71235, 0xc19bf174cf692694,
        0xe49b69c19ef14ad2, 0xefbe4786384f25e3, 0x0fc19dc68b8cd5b5, 0x240ca1cc77ac9c65,
        0x2de92c6f592b0275, 0x4a7484aa6ea6e483, 0x5cb0a9dcbd41fbd4, 0x76f988da831153b5,
        0x983e5152ee66dfab, 0xa831c66d2db43210, 0xb00327c898fb213f, 0xbf597fc7beef0ee4,
        0xc6e00bf33da88fc2, 0xd5a79147930aa725, 0x06ca6351e003826f, 0x142929670a0e6e70,
        0x27b70a8546d22ffc, 0x2e1b21385c26c926, 0x4d2c6dfc5ac42aed, 0x53380d139d95b3df,
        0x650a73548baf63de, 0x766a0abb3c77b2a8, 0x81c2c92e47edaee6, 0x92722c851482353b,
        0xa2bfe8a14cf10364, 0xa81a664bbc423001, 0xc24b8b70d0f89791, 0xc76c51a30654be30,
        0xd192e819d6ef5218, 0xd69906245565a910, 0xf40e35855771202a, 0x106aa07032bbd1b8,
        0x19a4c116b8d2d0c8, 0x1e376c085141ab53, 0x2748774cdf8eeb99, 0x34b0bcb5e19b48a8,
        0x391c0cb3c5c95a63, 0x4ed8aa4ae3418acb, 0x5b9cca4f7763e373, 0x682e6ff3d6b2b8a3,
        0x748f82ee5defb2fc, 0x78a5636f43172f60, 0x84c87814a1f0ab72, 0x8cc702081a6439ec,
        0x90befffa23631e28, 0xa4506cebde82bde9, 0xbef9a3f7b2c67915, 0xc67178f2e372532b,
        0xca273eceea26619c, 0xd186b8c721c0c207, 0xeada7dd6cde0eb1e, 0xf57d4f7fee6ed178,
        0x06f067aa72176fba, 0x0a637dc5a2c898a6, 0x113f9804bef90dae, 0x1b710b35131c471b,
        0x28db77f523047d84, 0x32caab7b40c72493, 0x3c9ebe0a15c9bebc, 0x431d67c49c100d4c,
        0x4cc5d4becb3e42b6, 0x597f299cfc657e2a, 0x5fcb6fab3ad6faec, 0x6c44198c4a475817,
    ];

    /// <summary>H(0): the first 64 bits of the fractional parts of the square roots of the 9th to 16th primes.</summary>
    public static ReadOnlySpan<ulong> InitialState =>
    [
        0xcbbb9d5dc1059ed8, 0x629a292a367cd507, 0x9159015a3070dd17, 0x152fecd8f70e5939,
        0x67332667ffc00b31, 0x8eb44a8768581511, 0xdb0c2e0d64f98fa7, 0x47b5481dbefa4fa4,
    ];
}

/// <summary>SHA-384's schedule and rounds over lanes.</summary>
/// <remarks>Methods are compiled with full optimization at first use: a launch would be over before the runtime had found out that they are
/// hot.</remarks>
internal static unsafe class Sha384Lanes<TLanes, TWord>
    where TLanes : ILanes<TWord>
    where TWord : unmanaged
{
    /// <summary>The state before the first block.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void Start(TWord* state)
    {
        for (int i = 0; i < Sha384Constants.StateWords; i++)
        {
            state[i] = TLanes.Broadcast(Sha384Constants.InitialState[i]);
        }
    }

    /// <summary>The block after a message of whole blocks: the bit that ends the message, zeros, and the message's length.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void LoadPadding(TWord* words, int messageBytes)
    {
        words[0] = TLanes.Broadcast(Sha384Constants.PaddingBit);
        for (int i = 1; i < Sha384Constants.BlockWords - 1; i++)
        {
            words[i] = TLanes.Broadcast(0);
        }
        words[Sha384Constants.BlockWords - 1] = TLanes.Broadcast((ulong)messageBytes * 8);
    }

    /// <summary>Of one message, the digest, 48 bytes.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void StoreDigest(TWord* state, int lane, Span<byte> digest)
    {
        for (int i = 0; i < Sha384Constants.DigestWords; i++)
        {
            BinaryPrimitives.WriteUInt64BigEndian(digest[(i * sizeof(ulong))..], ((ulong*)(state + i))[lane]);
        }
    }

    /// <summary>The message schedule: words 16 to 79 from words 0 to 15.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void Expand(TWord* words)
    {
        // Each word needs the one two before it, which two locals hand on faster than memory does.
        TWord before2 = words[14], before1 = words[15];
        for (TWord* w = words + Sha384Constants.BlockWords; w < words + Sha384Constants.Rounds; w += 2)
        {
            before2 = TLanes.Add(TLanes.Add(SmallSigma0(w[-15]), TLanes.Add(w[-7], w[-16])), SmallSigma1(before2));
            before1 = TLanes.Add(TLanes.Add(SmallSigma0(w[-14]), TLanes.Add(w[-6], w[-15])), SmallSigma1(before1));
            w[0] = before2;
            w[1] = before1;
        }
    }

    /// <summary>The 80 rounds over an expanded block, and the feed-forward.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void Compress(TWord* state, TWord* words)
    {
        TWord a = state[0], b = state[1], c = state[2], d = state[3], e = state[4], f = state[5], g = state[6], h = state[7];
        fixed (ulong* constants = Sha384Constants.K)
        {
            // Eight rounds and every letter is back in its place: the standard's shifting of letters costs nothing.
            ulong* k = constants;
            for (TWord* w = words; w < words + Sha384Constants.Rounds; w += 8, k += 8)
            {
                Round(a, b, c, ref d, e, f, g, ref h, w[0], k[0]);
                Round(h, a, b, ref c, d, e, f, ref g, w[1], k[1]);
                Round(g, h, a, ref b, c, d, e, ref f, w[2], k[2]);
                Round(f, g, h, ref a, b, c, d, ref e, w[3], k[3]);
                Round(e, f, g, ref h, a, b, c, ref d, w[4], k[4]);
                Round(d, e, f, ref g, h, a, b, ref c, w[5], k[5]);
                Round(c, d, e, ref f, g, h, a, ref b, w[6], k[6]);
                Round(b, c, d, ref e, f, g, h, ref a, w[7], k[7]);
            }
        }
        state[0] = TLanes.Add(state[0], a);
        state[1] = TLanes.Add(state[1], b);
        state[2] = TLanes.Add(state[2], c);
        state[3] = TLanes.Add(state[3], d);
        state[4] = TLanes.Add(state[4], e);
        state[5] = TLanes.Add(state[5], f);
        state[6] = TLanes.Add(state[6], g);
        state[7] = TLanes.Add(state[7], h);
    }

    // d and h are the two letters that a round changes.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Round(TWord a, TWord b, TWord c, ref TWord d, TWord e, TWord f, TWord g, ref TWord h, TWord word, ulong constant)
    {
        TWord t1 = TLanes.Add(TLanes.Add(h, TLanes.Add(word, TLanes.Broadcast(constant))), TLanes.Add(TLanes.Choose(e, f, g), BigSigma1(e)));
        d = TLanes.Add(d, t1);
        h = TLanes.Add(TLanes.Add(t1, TLanes.Majority(a, b, c)), BigSigma0(a));
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static TWord BigSigma0(TWord x) => TLanes.Xor(TLanes.RotateRight(x, 28), TLanes.RotateRight(x, 34), TLanes.RotateRight(x, 39));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static TWord BigSigma1(TWord x) => TLanes.Xor(TLanes.RotateRight(x, 14), TLanes.RotateRight(x, 18), TLanes.RotateRight(x, 41));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static TWord SmallSigma0(TWord x) => TLanes.Xor(TLanes.RotateRight(x, 1), TLanes.RotateRight(x, 8), TLanes.ShiftRight(x, 7));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static TWord SmallSigma1(TWord x) => TLanes.Xor(TLanes.RotateRight(x, 19), TLanes.RotateRight(x, 61), TLanes.ShiftRight(x, 6));
}
