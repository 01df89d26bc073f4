using System.Diagnostics.CodeAnalysis;
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;

namespace SimMachine.Measurement;

/// <summary>Eight messages in 512-bit vectors (AVX-512F and BW). Rotation and any function of three bits are one instruction each.</summary>
internal readonly unsafe struct EightLanes : ILanes<Vector512<ulong>>
{
    // TernaryLogic's control byte is the function's truth table. The three operands' own columns of it are X, Y and Z, so the function applied to
    // them is the table.
    private const byte X = 0b1111_0000;
    private const byte Y = 0b1100_1100;
    private const byte Z = 0b1010_1010;
    private const byte XorTable = X ^ Y ^ Z;
    private const byte ChooseTable = Z ^ (X & (Y ^ Z));
    private const byte MajorityTable = (X & Y) | (Z & (X | Y));

    // Bytes of a word in reverse, within each 128-bit quarter.
    private const ulong ReverseLow = 0x0001020304050607;
    private const ulong ReverseHigh = ReverseLow + 0x0808080808080808;

    // Shuffle4x128: two quarters of the first operand, then two of the second, two bits each from the low end.
    private const byte EvenQuarters = 0b10_00_10_00;
    private const byte OddQuarters = 0b11_01_11_01;

    public static bool IsSupported => Vector512.IsHardwareAccelerated && Avx512BW.IsSupported;

    public static int Count => Vector512<ulong>.Count;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<ulong> Broadcast(ulong value) => Vector512.Create(value);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<ulong> Add(Vector512<ulong> x, Vector512<ulong> y) => x + y;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<ulong> Xor(Vector512<ulong> x, Vector512<ulong> y, Vector512<ulong> z) => Avx512F.TernaryLogic(x, y, z, XorTable);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<ulong> Choose(Vector512<ulong> x, Vector512<ulong> y, Vector512<ulong> z) => Avx512F.TernaryLogic(x, y, z, ChooseTable);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<ulong> Majority(Vector512<ulong> x, Vector512<ulong> y, Vector512<ulong> z) =>
        Avx512F.TernaryLogic(x, y, z, MajorityTable);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<ulong> RotateRight(Vector512<ulong> x, [ConstantExpected] byte count) => Avx512F.RotateRight(x, count);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<ulong> ShiftRight(Vector512<ulong> x, [ConstantExpected] byte count) => x >>> count;

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void Load(byte** messages, int offset, Vector512<ulong>* words)
    {
        for (int word = 0; word < Sha384Constants.BlockWords; word += Count)
        {
            Transpose(messages, offset + (word * sizeof(ulong)), words + word);
        }
    }

    // A square of 8 words of 8 messages, its diagonal turned, in three steps: word pairs of neighbouring messages within 128-bit quarters, then the
    // quarters of messages 0-3 and of 4-7 put together, then both.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Transpose(byte** messages, int offset, Vector512<ulong>* words)
    {
        Interleave(messages[0] + offset, messages[1] + offset, out Vector512<ulong> even01, out Vector512<ulong> odd01);
        Interleave(messages[2] + offset, messages[3] + offset, out Vector512<ulong> even23, out Vector512<ulong> odd23);
        Interleave(messages[4] + offset, messages[5] + offset, out Vector512<ulong> even45, out Vector512<ulong> odd45);
        Interleave(messages[6] + offset, messages[7] + offset, out Vector512<ulong> even67, out Vector512<ulong> odd67);
        Gather(even01, even23, even45, even67, words);
        Gather(odd01, odd23, odd45, odd67, words + 1);
    }

    // Quarter q of the results: word 2q, or word 2q + 1, of both messages.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Interleave(byte* first, byte* second, out Vector512<ulong> even, out Vector512<ulong> odd)
    {
        Vector512<byte> reverse = Vector512.Create(Vector256.Create(ReverseLow, ReverseHigh, ReverseLow, ReverseHigh).AsByte());
        Vector512<ulong> row0 = Avx512BW.Shuffle(Vector512.Load(first), reverse).AsUInt64();
        Vector512<ulong> row1 = Avx512BW.Shuffle(Vector512.Load(second), reverse).AsUInt64();
        even = Avx512F.UnpackLow(row0, row1);
        odd = Avx512F.UnpackHigh(row0, row1);
    }

    // Given the words of one parity, quarter q of each pair of messages being the q-th such word, stores all messages' q-th at words[2q].
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Gather(
        Vector512<ulong> pair01, Vector512<ulong> pair23, Vector512<ulong> pair45, Vector512<ulong> pair67, Vector512<ulong>* words)
    {
        Vector512<ulong> low02 = Avx512F.Shuffle4x128(pair01, pair23, EvenQuarters);
        Vector512<ulong> low13 = Avx512F.Shuffle4x128(pair01, pair23, OddQuarters);
        Vector512<ulong> high02 = Avx512F.Shuffle4x128(pair45, pair67, EvenQuarters);
        Vector512<ulong> high13 = Avx512F.Shuffle4x128(pair45, pair67, OddQuarters);

        // low02 is quarters 0 and 2 of messages 0 and 1, then of 2 and 3: its even quarters are word 0 of the four, its odd ones word 4.
        words[0] = Avx512F.Shuffle4x128(low02, high02, EvenQuarters);
        words[2] = Avx512F.Shuffle4x128(low13, high13, EvenQuarters);
        words[4] = Avx512F.Shuffle4x128(low02, high02, OddQuarters);
        words[6] = Avx512F.Shuffle4x128(low13, high13, OddQuarters);
    }
}
