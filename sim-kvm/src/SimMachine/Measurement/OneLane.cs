using System.Buffers.Binary;
using System.Diagnostics.CodeAnalysis;
using System.Numerics;
using System.Runtime.CompilerServices;

namespace SimMachine.Measurement;

/// <summary>One message, plain 64-bit words: the scalar twin of <see cref="EightLanes"/> and <see cref="FourLanes"/>, on any machine.</summary>
internal readonly unsafe struct OneLane : ILanes<ulong>
{
    public static int Count => 1;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Broadcast(ulong value) => value;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Add(ulong x, ulong y) => unchecked(x + y);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Xor(ulong x, ulong y, ulong z) => x ^ y ^ z;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Choose(ulong x, ulong y, ulong z) => z ^ (x & (y ^ z));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Majority(ulong x, ulong y, ulong z) => y ^ ((x ^ y) & (y ^ z));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong RotateRight(ulong x, [ConstantExpected] byte count) => BitOperations.RotateRight(x, count);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong ShiftRight(ulong x, [ConstantExpected] byte count) => x >> count;

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void Load(byte** messages, int offset, ulong* words) =>
        BinaryPrimitives.ReverseEndianness(
            new ReadOnlySpan<ulong>(messages[0] + offset, Sha384Constants.BlockWords), new Span<ulong>(words, Sha384Constants.BlockWords));
}
