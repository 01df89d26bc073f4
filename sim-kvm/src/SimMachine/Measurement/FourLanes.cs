using System.Diagnostics.CodeAnalysis;
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;

namespace SimMachine.Measurement;

/// <summary>Four messages in 256-bit vectors (AVX2).</summary>
internal readonly unsafe struct FourLanes : ILanes<Vector256<ulong>>
{
    // Bytes of a word in reverse, within each 128-bit half.
    private const ulong ReverseLow = 0x0001020304050607;
    private const ulong ReverseHigh = ReverseLow + 0x0808080808080808;

    // Permute2x128: which half of which operand makes each half of the result.
    private const byte LowHalves = 0x20;
    private const byte HighHalves = 0x31;

    public static bool IsSupported => Vector256.IsHardwareAccelerated && Avx2.IsSupported;

    public static int Count => Vector256<ulong>.Count;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<ulong> Broadcast(ulong value) => Vector256.Create(value);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<ulong> Add(Vector256<ulong> x, Vector256<ulong> y) => x + y;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<ulong> Xor(Vector256<ulong> x, Vector256<ulong> y, Vector256<ulong> z) => x ^ y ^ z;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<ulong> Choose(Vector256<ulong> x, Vector256<ulong> y, Vector256<ulong> z) => z ^ (x & (y ^ z));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<ulong> Majority(Vector256<ulong> x, Vector256<ulong> y, Vector256<ulong> z) => y ^ ((x ^ y) & (y ^ z));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<ulong> RotateRight(Vector256<ulong> x, [ConstantExpected] byte count) => (x >>> count) | (x << (64 - count));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<ulong> ShiftRight(Vector256<ulong> x, [ConstantExpected] byte count) => x >>> count;

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void Load(byte** messages, int offset, Vector256<ulong>* words)
    {
        for (int word = 0; word < Sha384Constants.BlockWords; word += Count)
        {
            Transpose(messages, offset + (word * sizeof(ulong)), words + word);
        }
    }

    // A square of 4 words of 4 messages, its diagonal turned. First pairs of rows are interleaved within 128-bit halves, then halves are put
    // together.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Transpose(byte** messages, int offset, Vector256<ulong>* words)
    {
        Vector256<ulong> row0 = Row(messages[0] + offset);
        Vector256<ulong> row1 = Row(messages[1] + offset);
        Vector256<ulong> row2 = Row(messages[2] + offset);
        Vector256<ulong> row3 = Row(messages[3] + offset);

        Vector256<ulong> even01 = Avx2.UnpackLow(row0, row1);
        Vector256<ulong> odd01 = Avx2.UnpackHigh(row0, row1);
        Vector256<ulong> even23 = Avx2.UnpackLow(row2, row3);
        Vector256<ulong> odd23 = Avx2.UnpackHigh(row2, row3);

        words[0] = Avx2.Permute2x128(even01, even23, LowHalves);
        words[1] = Avx2.Permute2x128(odd01, odd23, LowHalves);
        words[2] = Avx2.Permute2x128(even01, even23, HighHalves);
        words[3] = Avx2.Permute2x128(odd01, odd23, HighHalves);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector256<ulong> Row(byte* message) =>
        Avx2.Shuffle(Vector256.Load(message), Vector256.Create(ReverseLow, ReverseHigh, ReverseLow, ReverseHigh).AsByte()).AsUInt64();
}
