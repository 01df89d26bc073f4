// Ranges of addresses that do not overlap, each with a value: for what there are few of and what is found by address, such as
// the mappings of a process. Per-page facts belong in a PageTree. The invariant: sorted, none empty, none overlapping.
// Neighbours are never merged, for their values may differ in what cannot be seen here. Not thread safe.

using System.Diagnostics.CodeAnalysis;

namespace SimMachine.Addressing;

/// <summary>The addresses from <see cref="Start"/> up to, but not including, <see cref="End"/>.</summary>
public readonly record struct AddressRange(ulong Start, ulong End)
{
    public ulong Length => End - Start;

    public bool Contains(ulong address) => address >= Start && address < End;

    public override string ToString() => $"[0x{Start:x}, 0x{End:x})";
}

/// <summary>Sorted ranges with values. Look-up is a binary search, insertion moves what lies above. Nothing is allocated while it is empty.</summary>
public sealed class RangeMap<T>
{
    private AddressRange[] _ranges = [];
    private T[] _values = [];
    private int _version;

    public int Count { get; private set; }

    public bool TryFind(ulong address, out AddressRange range, [MaybeNullWhen(false)] out T value)
    {
        var i = FirstEndingAfter(address);
        if (i < Count && _ranges[i].Start <= address)
        {
            range = _ranges[i];
            value = _values[i];
            return true;
        }
        range = default;
        value = default;
        return false;
    }

    /// <summary>Adds a range. False, and nothing is changed, if an existing one overlaps it.</summary>
    /// <exception cref="ArgumentException">The range is empty or backwards.</exception>
    public bool Add(ulong start, ulong end, T value)
    {
        if (start >= end)
            throw new ArgumentException($"[0x{start:x}, 0x{end:x}) holds no address.", nameof(end));
        if (Overlaps(start, end))
            return false;
        Insert(FirstEndingAfter(start), new AddressRange(start, end), value);
        return true;
    }

    /// <summary>Removes all addresses in [<paramref name="start"/>, <paramref name="end"/>), cutting ranges that stick out.</summary>
    /// <param name="start">First address to remove.</param>
    /// <param name="end">One past the last address to remove.</param>
    /// <param name="tail">The value of the upper part when a range is cut, from its value and the bytes cut off below. The lower
    /// part keeps the value itself.</param>
    /// <param name="removed">Told of each piece that goes, lowest first, with the value of just that piece. It must not change the map.</param>
    /// <returns>The number of pieces removed.</returns>
    public int Remove(ulong start, ulong end, Func<T, ulong, T> tail, Action<AddressRange, T>? removed = null)
    {
        if (!Overlaps(start, end))
            return 0;
        SplitAt(start, tail);
        SplitAt(end, tail);
        var first = FirstEndingAfter(start);
        var last = first;
        for (; last < Count && _ranges[last].Start < end; last++)
            removed?.Invoke(_ranges[last], _values[last]);
        Array.Copy(_ranges, last, _ranges, first, Count - last);
        Array.Copy(_values, last, _values, first, Count - last);
        var count = last - first;
        Array.Clear(_values, Count - count, count);
        Count -= count;
        _version++;
        return count;
    }

    /// <summary>Makes <paramref name="address"/> a border: a range which holds both it and the address below becomes two.</summary>
    /// <inheritdoc cref="Remove" path="/param[@name='tail']"/>
    public void SplitAt(ulong address, Func<T, ulong, T> tail)
    {
        var i = FirstEndingAfter(address);
        if (i == Count || _ranges[i].Start >= address)
            return;
        var (start, end) = _ranges[i];
        var upper = tail(_values[i], address - start);
        Insert(i + 1, new AddressRange(address, end), upper);
        _ranges[i] = new AddressRange(start, address);
    }

    /// <summary>Whether any range shares an address with [<paramref name="start"/>, <paramref name="end"/>).</summary>
    public bool Overlaps(ulong start, ulong end)
    {
        if (start >= end)
            return false;
        var i = FirstEndingAfter(start);
        return i < Count && _ranges[i].Start < end;
    }

    /// <summary>The ranges that share an address with [<paramref name="start"/>, <paramref name="end"/>), lowest first, whole: not cut at
    /// its ends.</summary>
    public Sequence Enumerate(ulong start, ulong end) => new(this, start, end);

    /// <summary>All ranges, lowest first.</summary>
    public Sequence Enumerate() => new(this, 0, ulong.MaxValue);

    /// <summary>The lowest aligned address in [<paramref name="low"/>, <paramref name="high"/>) from which <paramref name="size"/> free
    /// bytes follow below <paramref name="high"/>; null if there is none.</summary>
    /// <exception cref="ArgumentException">The size is zero or the alignment is no power of two.</exception>
    public ulong? FindGap(ulong low, ulong high, ulong size, ulong alignment = 1)
    {
        ArgumentOutOfRangeException.ThrowIfZero(size);
        if (!System.Numerics.BitOperations.IsPow2(alignment))
            throw new ArgumentException($"0x{alignment:x} is not a power of two.", nameof(alignment));
        var i = FirstEndingAfter(low);
        var at = low;
        while (true)
        {
            var aligned = (at + (alignment - 1)) & ~(alignment - 1);
            if (aligned < at || aligned >= high || high - aligned < size)
                return null;
            if (i == Count || (_ranges[i].Start >= aligned && _ranges[i].Start - aligned >= size))
                return aligned;
            // The range may lie wholly below the aligned address, then the same address is tried against the next one.
            at = Math.Max(at, _ranges[i++].End);
        }
    }

    public void Clear()
    {
        _ranges = [];
        _values = [];
        Count = 0;
        _version++;
    }

    /// <exception cref="InvalidOperationException">The ranges are not sorted and apart: a bug of this class.</exception>
    public void CheckInvariants()
    {
        if (Count > _ranges.Length || _ranges.Length != _values.Length)
            throw new InvalidOperationException($"RangeMap: {Count} ranges in arrays of {_ranges.Length} and {_values.Length}.");
        for (var i = 0; i < Count; i++)
        {
            if (_ranges[i].Start >= _ranges[i].End)
                throw new InvalidOperationException($"RangeMap: {_ranges[i]} is empty.");
            if (i > 0 && _ranges[i - 1].End > _ranges[i].Start)
                throw new InvalidOperationException($"RangeMap: {_ranges[i - 1]} and {_ranges[i]} overlap or are out of order.");
        }
    }

    private int FirstEndingAfter(ulong address)
    {
        int low = 0, high = Count;
        while (low < high)
        {
            var middle = (low + high) >>> 1;
            if (_ranges[middle].End > address)
                high = middle;
            else
                low = middle + 1;
        }
        return low;
    }

    private void Insert(int i, AddressRange range, T value)
    {
        if (Count == _ranges.Length)
        {
            var capacity = Math.Max(4, Count * 2);
            Array.Resize(ref _ranges, capacity);
            Array.Resize(ref _values, capacity);
        }
        Array.Copy(_ranges, i, _ranges, i + 1, Count - i);
        Array.Copy(_values, i, _values, i + 1, Count - i);
        _ranges[i] = range;
        _values[i] = value;
        Count++;
        _version++;
    }

    public readonly struct Sequence
    {
        private readonly RangeMap<T> _map;
        private readonly ulong _start;
        private readonly ulong _end;

        internal Sequence(RangeMap<T> map, ulong start, ulong end) => (_map, _start, _end) = (map, start, end);

        public Enumerator GetEnumerator() => new(_map, _start, _end);
    }

    /// <summary>The map must not be changed while it is in use.</summary>
    public struct Enumerator
    {
        private readonly RangeMap<T> _map;
        private readonly ulong _end;
        private readonly int _version;
        private int _index;

        internal Enumerator(RangeMap<T> map, ulong start, ulong end)
        {
            _map = map;
            _end = end;
            _version = map._version;
            _index = start < end ? map.FirstEndingAfter(start) - 1 : map.Count;
        }

        public readonly (AddressRange Range, T Value) Current => (_map._ranges[_index], _map._values[_index]);

        public bool MoveNext()
        {
            if (_version != _map._version)
                throw new InvalidOperationException("RangeMap: it was changed while it was being enumerated.");
            return _index < _map.Count && ++_index < _map.Count && _map._ranges[_index].Start < _end;
        }
    }
}
