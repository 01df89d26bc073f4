// The nodes of a PageTree. A node has 512 slots; a slot holds a value or, in an inner node, a child. While at most two values
// occur among its slots they are kept as two values and a bit per slot, otherwise as an array. Children are kept without gaps,
// in slot order, found by counting bits: an inner node with one child costs a few hundred bytes, not the four kilobytes of 512 references.
//
// Invariants: a slot with a child has no value (its bit is clear, its array element default); an array has three different
// values among the slots without a child, and the node remembers a place for each of them.

using System.Numerics;
using System.Runtime.CompilerServices;

namespace SimMachine.Addressing;

public sealed partial class PageTree<T>
{
    private static Node NewNode(int shift, T value) => shift == 0 ? new Node(value) : new Inner(value);

    private class Node
    {
        private Pair _pair;
        private SlotBits _bits;
        private T[]? _values;

        // Three slots of _values that differ from each other: the proof that a bitmap would not do. Only a write that hits one of
        // them has to look for another, so filling an array page by page does not scan it each time.
        private (short A, short B, short C) _proof;

        public Node(T value) => _pair[0] = _pair[1] = value;

        public virtual long OwnBytes => 104 + 2 * Unsafe.SizeOf<T>() + (_values is null ? 0 : 24 + SlotBits.Slots * Unsafe.SizeOf<T>());

        /// <summary>The bit picks the value by address: random look-ups in an
        /// alternating pattern take 6 ns so, 13 ns with a branch.</summary>
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public T Get(int slot) => _values is null ? _pair.Pick(_bits.Bit(slot)) : _values[slot];

        /// <summary>Whether all 512 slots hold one value and none a child: such a node must be folded.</summary>
        public bool IsUniform(out T value)
        {
            value = _pair[0];
            if (_values is not null || this is Inner { ChildCount: > 0 })
                return false;
            if (_bits.IsEmpty)
                return true;
            value = _pair[1];
            return _bits.IsFull;
        }

        /// <summary>Gives the slots in [<paramref name="start"/>, <paramref name="end"/>) the value. None of them has a child.</summary>
        public void Fill(int start, int end, T value)
        {
            if (_values is not null)
            {
                _values.AsSpan(start, end - start).Fill(value);
                Prove(start, end);
            }
            else if (value.Equals(_pair[0]))
            {
                _bits.Remove(start, end);
            }
            else if (value.Equals(_pair[1]))
            {
                _bits.Add(start, end);
            }
            else
            {
                FillWithNewValue(start, end, value);
            }
        }

        /// <summary>The first slot in [<paramref name="start"/>, <paramref name="end"/>) that has a child or whose value is equal
        /// (or is not equal) to the given one; -1 if there is none.</summary>
        public int NextCandidate(int start, int end, T value, bool equal)
        {
            var inner = this as Inner;
            if (_values is not null)
            {
                for (var slot = start; slot < end; slot++)
                {
                    if (_values[slot].Equals(value) == equal || (inner is not null && inner.Present.Contains(slot)))
                        return slot;
                }
                return -1;
            }
            var zeros = _pair[0].Equals(value) == equal ? ulong.MaxValue : 0;
            var ones = _pair[1].Equals(value) == equal ? ulong.MaxValue : 0;
            for (var word = start >> 6; word << 6 < end; word++)
            {
                var bits = _bits.Word(word);
                var candidates = (~bits & zeros) | (bits & ones) | (inner is null ? 0 : inner.Present.Word(word));
                candidates &= SlotBits.Mask(word, start, end);
                if (candidates != 0)
                    return word * 64 + BitOperations.TrailingZeroCount(candidates);
            }
            return -1;
        }

        public virtual void CheckForm(ulong page)
        {
            if (_values is null)
            {
                Require(_bits.IsEmpty || !_pair[0].Equals(_pair[1]), "both values of a bitmap are the same", page);
                return;
            }
            Require(AreProof(_proof.A, _proof.B, _proof.C), "an array node is not known to need an array", page);
        }

        /// <summary>The value of a slot that receives a child goes.</summary>
        protected void Vacate(int slot)
        {
            _bits.Remove(slot, slot + 1);
            if (_values is null)
                return;
            _values[slot] = default;
            Prove(slot, slot + 1);
        }

        protected bool IsVacated(int slot) => _values is null ? !_bits.Contains(slot) : _values[slot].Equals(default);

        private bool HasChild(int slot) => this is Inner inner && inner.Present.Contains(slot);

        private void FillWithNewValue(int start, int end, T value)
        {
            // Is one of the two values used by no slot but those that are overwritten? Then the new one takes its place.
            var inner = this as Inner;
            ulong zeros = 0, ones = 0;
            for (var word = 0; word < SlotBits.Words; word++)
            {
                var kept = ~SlotBits.Mask(word, start, end) & ~(inner is null ? 0 : inner.Present.Word(word));
                zeros |= ~_bits.Word(word) & kept;
                ones |= _bits.Word(word) & kept;
            }
            if (ones == 0)
            {
                _pair[1] = value;
                _bits = default;
                _bits.Add(start, end);
            }
            else if (zeros == 0)
            {
                _pair[0] = value;
                _bits.Remove(start, end);
            }
            else
            {
                var values = new T[SlotBits.Slots];
                for (var slot = 0; slot < values.Length; slot++)
                    values[slot] = HasChild(slot) ? default : _bits.Contains(slot) ? _pair[1] : _pair[0];
                values.AsSpan(start, end - start).Fill(value);
                _values = values;
                _bits = default;
                FindProofOrPack();
            }
        }

        /// <summary>After a write to [<paramref name="start"/>, <paramref name="end"/>): is the array still needed?</summary>
        private void Prove(int start, int end)
        {
            var (a, b, c) = _proof;
            var hit = (a >= start && a < end) || (b >= start && b < end) || (c >= start && c < end);
            if (hit && !AreProof(a, b, c))
                FindProofOrPack();
        }

        private bool AreProof(int a, int b, int c)
        {
            var values = _values!;
            return !HasChild(a) && !HasChild(b) && !HasChild(c)
                && !values[a].Equals(values[b]) && !values[a].Equals(values[c]) && !values[b].Equals(values[c]);
        }

        /// <summary>Finds three different values or, if there are not so many, goes back to the bitmap.</summary>
        private void FindProofOrPack()
        {
            var values = _values!;
            int a = -1, b = -1;
            for (var slot = 0; slot < values.Length; slot++)
            {
                if (HasChild(slot) || (a >= 0 && values[slot].Equals(values[a])) || (b >= 0 && values[slot].Equals(values[b])))
                    continue;
                if (a < 0)
                {
                    a = slot;
                }
                else if (b < 0)
                {
                    b = slot;
                }
                else
                {
                    _proof = ((short)a, (short)b, (short)slot);
                    return;
                }
            }
            _pair[0] = a < 0 ? default : values[a];
            _pair[1] = b < 0 ? _pair[0] : values[b];
            _values = null;
            _bits = default;
            for (var slot = b; b >= 0 && slot < values.Length; slot++)
            {
                if (!HasChild(slot) && values[slot].Equals(_pair[1]))
                    _bits.Add(slot, slot + 1);
            }
        }
    }

    private sealed class Inner(T value) : Node(value)
    {
        public SlotBits Present;
        private Ranks _ranks;
        private Node[] _children = [];

        public int ChildCount { get; private set; }

        public ReadOnlySpan<Node> Children => _children.AsSpan(0, ChildCount);

        public override long OwnBytes => base.OwnBytes + SlotBits.Slots / 8 + Unsafe.SizeOf<Ranks>() + 16
            + (_children.Length == 0 ? 0 : 24 + 8L * _children.Length);

        /// <summary>The child in a slot which has one.</summary>
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public Node Child(int slot) => _children[Rank(slot)];

        public void SetChild(int slot, Node child)
        {
            var rank = Rank(slot);
            if (ChildCount == _children.Length)
                Array.Resize(ref _children, Math.Max(1, ChildCount * 2));
            Array.Copy(_children, rank, _children, rank + 1, ChildCount - rank);
            _children[rank] = child;
            Present.Add(slot, slot + 1);
            Recount();
            Vacate(slot);
        }

        /// <summary>Drops the children in [<paramref name="start"/>, <paramref name="end"/>), if any. Their slots have no value until
        /// they are filled.</summary>
        public void RemoveChildren(int start, int end)
        {
            var first = Rank(start);
            var last = end == SlotBits.Slots ? ChildCount : Rank(end);
            if (first == last)
                return;
            Array.Copy(_children, last, _children, first, ChildCount - last);
            Array.Clear(_children, ChildCount - (last - first), last - first);
            Present.Remove(start, end);
            Recount();
            if (ChildCount == 0)
                _children = [];
            else if (ChildCount <= _children.Length / 4)
                Array.Resize(ref _children, ChildCount * 2);
        }

        public override void CheckForm(ulong page)
        {
            base.CheckForm(page);
            var count = 0;
            for (var slot = 0; slot < SlotBits.Slots; slot++)
            {
                Require(Rank(slot) == count, "children are miscounted", page);
                if (!Present.Contains(slot))
                    continue;
                Require(IsVacated(slot), "a slot has a child and a value", page);
                Require(_children[count] is not null, "a child is missing", page);
                count++;
            }
            Require(ChildCount == count, "children are miscounted", page);
            Require(count > 0 == _children.Length > 0 && count * 4 >= _children.Length - 3, "room for children was not given back", page);
            for (var rank = count; rank < _children.Length; rank++)
                Require(_children[rank] is null, "a dropped child is still held", page);
        }

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        private int Rank(int slot) => _ranks.Before(slot >> 6) + Present.RankInWord(slot);

        private void Recount()
        {
            var count = 0;
            for (var word = 0; word < SlotBits.Words; word++)
            {
                _ranks[word] = (ushort)count;
                count += BitOperations.PopCount(Present.Word(word));
            }
            ChildCount = count;
        }
    }

    /// <summary>The values of clear and of set bits.</summary>
    [InlineArray(2)]
    private struct Pair
    {
        private T _first;

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public readonly T Pick(int bit) => Unsafe.Add(ref Unsafe.AsRef(in _first), bit);
    }

    /// <summary>For each word of <see cref="Inner.Present"/>, the children in the words before it.</summary>
    [InlineArray(SlotBits.Words)]
    private struct Ranks
    {
        private ushort _first;

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public readonly int Before(int word) => Unsafe.Add(ref Unsafe.AsRef(in _first), word);
    }
}
