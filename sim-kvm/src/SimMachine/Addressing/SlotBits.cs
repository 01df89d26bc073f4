// 512 bits inline in a node of a PageTree: which of its slots hold the second value, or which hold a child.

using System.Numerics;
using System.Runtime.CompilerServices;

namespace SimMachine.Addressing;

[InlineArray(Words)]
internal struct SlotBits
{
    public const int Slots = 512;
    public const int Words = Slots / 64;

    private ulong _first;

    public readonly bool IsEmpty => !((ReadOnlySpan<ulong>)this).ContainsAnyExcept(0UL);

    public readonly bool IsFull => !((ReadOnlySpan<ulong>)this).ContainsAnyExcept(ulong.MaxValue);

    /// <summary>The bits of word <paramref name="word"/> that stand for slots in [<paramref name="start"/>, <paramref name="end"/>).</summary>
    public static ulong Mask(int word, int start, int end)
    {
        var low = Math.Max(start - word * 64, 0);
        var high = Math.Min(end - word * 64, 64);
        return low < high ? (ulong.MaxValue >> (64 - high)) & (ulong.MaxValue << low) : 0;
    }

    /// <summary>No bounds check: the callers' slots are nine bits by construction.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly bool Contains(int slot) => Bit(slot) != 0;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly int Bit(int slot) => (int)(Word(slot >> 6) >> slot) & 1;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly ulong Word(int word) => Unsafe.Add(ref Unsafe.AsRef(in _first), word);

    /// <summary>Members among the slots of this slot's word that come before it.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly int RankInWord(int slot) => BitOperations.PopCount(Word(slot >> 6) & ((1UL << slot) - 1));

    public void Add(int start, int end)
    {
        for (var word = start >> 6; word <= (end - 1) >> 6; word++)
            this[word] |= Mask(word, start, end);
    }

    public void Remove(int start, int end)
    {
        for (var word = start >> 6; word <= (end - 1) >> 6; word++)
            this[word] &= ~Mask(word, start, end);
    }
}
