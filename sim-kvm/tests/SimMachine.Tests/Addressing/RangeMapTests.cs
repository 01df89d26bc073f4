// RangeMap against an array with one owner per address, after each of many random steps.

using SimMachine.Addressing;
using Xunit;

namespace SimMachine.Tests.Addressing;

public class RangeMapTests
{
    /// <summary>A value that knows where in its first owner it begins, as a file mapping does.</summary>
    private sealed record Piece(int Id, ulong Offset);

    public static TheoryData<int> Seeds => [11, 12, 13, 14, 15, 16];

    [Fact]
    public void Add_Overlapping_IsRefusedAndChangesNothing()
    {
        var map = new RangeMap<string>();
        Assert.True(map.Add(10, 20, "a"));
        Assert.True(map.Add(20, 30, "b"));
        Assert.False(map.Add(19, 20, "c"));
        Assert.False(map.Add(0, 100, "c"));
        Assert.Equal(2, map.Count);
        Assert.True(map.TryFind(20, out var range, out var value));
        Assert.Equal((new AddressRange(20, 30), "b"), (range, value));
        Assert.False(map.TryFind(30, out _, out _));
    }

    [Theory]
    [InlineData(5UL, 5UL)]
    [InlineData(6UL, 5UL)]
    public void Add_EmptyOrBackwards_IsRefused(ulong start, ulong end) =>
        Assert.Throws<ArgumentException>(() => new RangeMap<int>().Add(start, end, 0));

    [Fact]
    public void Remove_InTheMiddle_LeavesBothEndsWithTheirOffsets()
    {
        var map = new RangeMap<Piece>();
        map.Add(100, 200, new Piece(1, 0));
        var removed = new List<(AddressRange, Piece)>();
        Assert.Equal(1, map.Remove(120, 150, Tail, (range, piece) => removed.Add((range, piece))));
        Assert.Equal([(new AddressRange(120, 150), new Piece(1, 20))], removed);
        Assert.Equal([(new AddressRange(100, 120), new Piece(1, 0)), (new AddressRange(150, 200), new Piece(1, 50))], All(map));
    }

    [Fact]
    public void Enumerate_WhileTheMapIsChanged_IsRefused()
    {
        var map = new RangeMap<int>();
        map.Add(0, 1, 1);
        map.Add(5, 6, 2);
        Assert.Throws<InvalidOperationException>(() =>
        {
            foreach (var (range, _) in map.Enumerate())
                map.Remove(range.Start, range.End, (value, _) => value);
        });
    }

    [Theory]
    [InlineData(0UL, 1000UL, 100UL, 1UL, 0UL)]
    [InlineData(0UL, 1000UL, 101UL, 1UL, 200UL)]
    [InlineData(50UL, 1000UL, 60UL, 1UL, 200UL)]
    [InlineData(0UL, 1000UL, 90UL, 256UL, 0UL)]
    [InlineData(1UL, 1000UL, 90UL, 256UL, 256UL)]
    [InlineData(1UL, 1000UL, 300UL, 256UL, 512UL)]
    [InlineData(0UL, 300UL, 100UL, 1UL, 0UL)]
    [InlineData(150UL, 300UL, 100UL, 1UL, 200UL)]
    [InlineData(0UL, ulong.MaxValue, 301UL, 1UL, 510UL)]
    public void FindGap_IsTheLowestThatFits(ulong low, ulong high, ulong size, ulong alignment, ulong expected)
    {
        var map = new RangeMap<int>();
        map.Add(100, 200, 0);
        map.Add(500, 510, 0);
        Assert.Equal(expected, map.FindGap(low, high, size, alignment));
    }

    [Theory]
    [InlineData(0UL, 200UL, 101UL, 1UL)]
    [InlineData(100UL, 200UL, 1UL, 1UL)]
    [InlineData(0UL, ulong.MaxValue, ulong.MaxValue, 1UL)]
    [InlineData(1UL, ulong.MaxValue, 1UL, 1UL << 63)]
    public void FindGap_WhereNothingFits_IsNull(ulong low, ulong high, ulong size, ulong alignment)
    {
        var map = new RangeMap<int>();
        map.Add(100, 200, 0);
        map.Add(1UL << 63, (1UL << 63) + 1, 0);
        Assert.Null(map.FindGap(low, high, size, alignment));
    }

    [Theory]
    [MemberData(nameof(Seeds))]
    public void RandomSteps_MatchTheModel(int seed)
    {
        const int size = 300;
        var random = new Random(seed);
        var map = new RangeMap<Piece>();
        var owner = new Piece?[size]; // of each address: id, and offset from the start of the range as it was added
        for (var step = 0; step < 2000; step++)
        {
            var at = $"seed {seed}, step {step}";
            var start = random.Next(0, size - 1);
            var end = Math.Min(size, start + random.Next(1, 40));
            var taken = owner[start..end].Any(piece => piece is not null);
            Assert.True(map.Overlaps((ulong)start, (ulong)end) == taken, at);
            if (random.Next(2) == 0)
            {
                Assert.True(map.Add((ulong)start, (ulong)end, new Piece(step, 0)) == !taken, at);
                for (var i = start; i < end && !taken; i++)
                    owner[i] = new Piece(step, (ulong)(i - start));
            }
            else
            {
                var removed = new Piece?[size];
                map.Remove((ulong)start, (ulong)end, Tail, (range, piece) => Paint(removed, range, piece));
                for (var i = 0; i < size; i++)
                    Assert.True(removed[i] == (i >= start && i < end ? owner[i] : null), at);
                Array.Clear(owner, start, end - start);
            }

            map.CheckInvariants();
            var painted = new Piece?[size];
            foreach (var (range, piece) in map.Enumerate())
                Paint(painted, range, piece);
            Assert.True(owner.SequenceEqual(painted), at);

            var address = random.Next(0, size);
            var found = map.TryFind((ulong)address, out var hit, out var value);
            Assert.True(found == owner[address] is not null, at);
            if (found)
                Assert.True(value! with { Offset = value.Offset + (ulong)address - hit.Start } == owner[address], at);

            var want = random.Next(1, 30);
            var gaps = Enumerable.Range(start, Math.Max(0, size - want - start + 1))
                .Where(low => owner[low..(low + want)].All(piece => piece is null));
            Assert.True(map.FindGap((ulong)start, size, (ulong)want) == (ulong?)gaps.Cast<int?>().FirstOrDefault(), at);

            var within = new HashSet<AddressRange>();
            foreach (var (range, _) in map.Enumerate((ulong)start, (ulong)end))
                within.Add(range);
            var expected = All(map).Select(entry => entry.Item1).Where(range => range.Start < (ulong)end && range.End > (ulong)start);
            Assert.True(within.SetEquals(expected), at);
        }
    }

    private static Piece Tail(Piece piece, ulong cut) => piece with { Offset = piece.Offset + cut };

    private static void Paint(Piece?[] canvas, AddressRange range, Piece piece)
    {
        for (var i = range.Start; i < range.End; i++)
        {
            Assert.Null(canvas[i]);
            canvas[i] = Tail(piece, i - range.Start);
        }
    }

    private static List<(AddressRange, T)> All<T>(RangeMap<T> map)
    {
        var all = new List<(AddressRange, T)>();
        foreach (var entry in map.Enumerate())
            all.Add(entry);
        return all;
    }
}
