// PageTree against a model that cannot be wrong: a sorted list of the points where the value changes. After each step the tree
// checks its own form, and every question it can be asked is compared with the model's answer.

using SimMachine.Addressing;
using Xunit;

namespace SimMachine.Tests.Addressing;

public class PageTreeTests
{
    private const ulong Limit = PageTree<byte>.Limit;
    private const ulong TiB = (1UL << 40) / 4096;

    public static TheoryData<int> Seeds => [1, 2, 3, 4, 5, 6, 7, 8];

    [Fact]
    public void NewTree_IsEmptyAndDefaultEverywhere()
    {
        var tree = new PageTree<int>();
        Assert.True(tree.IsEmpty);
        Assert.Equal(0, tree[0]);
        Assert.Equal(0, tree[Limit - 1]);
        Assert.True(tree.AllEqual(0, Limit, 0));
        Assert.Equal([new PageRun<int>(0, Limit, 0)], Runs(tree, 0, Limit));
        Assert.InRange(tree.ApproximateBytes, 1, 64);
        tree.CheckInvariants();
    }

    [Theory]
    [InlineData(0UL, 1UL)]
    [InlineData(511UL, 512UL)]
    [InlineData(0UL, 512UL)]
    [InlineData(512UL, Limit)]
    [InlineData(0x80000UL, 0x100000UL)]
    [InlineData(Limit - 1, Limit)]
    [InlineData(0UL, Limit - 1)]
    [InlineData(1UL, Limit)]
    [InlineData(0UL, Limit)]
    [InlineData(1UL << 45, 1UL << 46)]
    [InlineData(127UL << 45, Limit)]
    [InlineData(0UL, 1UL << 45)]
    public void Set_OneRange_ChangesThatRangeOnlyAndFoldsBackToNothing(ulong start, ulong end)
    {
        var tree = new PageTree<byte>();
        tree.Set(start, end, 7);
        tree.CheckInvariants();
        Assert.Equal(7, tree[start]);
        Assert.Equal(7, tree[end - 1]);
        Assert.True(tree.AllEqual(start, end, 7));
        if (start > 0)
            Assert.Equal(0, tree[start - 1]);
        if (end < Limit)
            Assert.Equal(0, tree[end]);
        Assert.False(tree.IsEmpty);
        Assert.InRange(tree.ApproximateBytes, 1, 2048);

        tree.Set(start, end, 0);
        tree.CheckInvariants();
        Assert.True(tree.IsEmpty);
        Assert.Equal(new PageTree<byte>().ApproximateBytes, tree.ApproximateBytes);
    }

    [Fact]
    public void Set_GuestOfFourGiB_CostsHundredsOfBytes()
    {
        var tree = new PageTree<ulong>();
        tree.Set(0, 0x80000, 8);
        tree.Set(0x100000, 0x180000, 8);
        Assert.InRange(tree.ApproximateBytes, 1, 512);
    }

    [Fact]
    public void Set_PagesOneByOne_EqualsSettingTheRange()
    {
        var single = new PageTree<byte>();
        for (ulong page = 0; page < 2048; page++)
            single.Set(page ^ 0x555, 3);
        var whole = new PageTree<byte>();
        whole.Set(0, 2048, 3);
        single.CheckInvariants();
        Assert.Equal(whole.ApproximateBytes, single.ApproximateBytes);
        Assert.True(single.AllEqual(0, 2048, 3));
    }

    [Fact]
    public void Leaf_ThatGoesBackToTwoValues_IsABitmapAgain()
    {
        var tree = new PageTree<long>();
        tree.Set(10, 1);
        var two = tree.ApproximateBytes;
        for (var page = 11UL; page < 100; page++)
            tree.Set(page, (long)page);
        tree.CheckInvariants();
        Assert.True(tree.ApproximateBytes > two + 4096);
        tree.Set(11, 100, 0);
        tree.CheckInvariants();
        Assert.Equal(two, tree.ApproximateBytes);
    }

    [Fact]
    public void Clear_ForgetsEverything()
    {
        var tree = new PageTree<byte>();
        tree.Set(5, Limit, 9);
        tree.Set(TiB, 2 * TiB, 8);
        tree.Clear();
        tree.CheckInvariants();
        Assert.True(tree.IsEmpty);
    }

    [Fact]
    public void Runs_OfAnAlternatingPattern_AreSinglePages()
    {
        var tree = new PageTree<byte>();
        for (ulong page = 0; page < 2000; page += 2)
            tree.Set(page, 1);
        var runs = Runs(tree, 0, 2000);
        Assert.Equal(2000, runs.Count);
        Assert.All(runs, run => Assert.Equal(run.Start % 2 == 0 ? 1 : 0, run.Value));
    }

    [Fact]
    public void Runs_WhileTheTreeIsChangedBehind_GoesOnFromTheEndOfTheLastRun()
    {
        var tree = new PageTree<byte>();
        tree.Set(100, 200, 1);
        var seen = new List<ulong>();
        foreach (var run in tree.Runs(0, 300))
        {
            seen.Add(run.Start);
            tree.Set(run.Start, run.End, 5);
        }
        Assert.Equal([0UL, 100UL, 200UL], seen);
        Assert.True(tree.AllEqual(0, 300, 5));
    }

    [Theory]
    [InlineData(2UL, 1UL)]
    [InlineData(0UL, Limit + 1)]
    [InlineData(ulong.MaxValue, ulong.MaxValue)]
    public void Range_BackwardsOrPastTheLimit_IsRefused(ulong start, ulong end)
    {
        var tree = new PageTree<byte>();
        Assert.Throws<ArgumentOutOfRangeException>(() => tree.Set(start, end, 1));
        Assert.Throws<ArgumentOutOfRangeException>(() => tree.AllEqual(start, end, 1));
        Assert.Throws<ArgumentOutOfRangeException>(() => tree.Runs(start, end));
        Assert.True(tree.IsEmpty);
    }

    [Theory]
    [InlineData(Limit)]
    [InlineData(ulong.MaxValue)]
    public void Index_PastTheLimit_IsRefused(ulong index)
    {
        var tree = new PageTree<byte>();
        Assert.Throws<ArgumentOutOfRangeException>(() => tree[index]);
        Assert.Throws<ArgumentOutOfRangeException>(() => tree.Set(index, 1));
    }

    /// <summary>Few borders far apart, on all levels and at the limit.</summary>
    [Theory]
    [MemberData(nameof(Seeds))]
    public void RandomSets_OnHugeRanges_MatchTheModel(int seed) =>
        Compare(seed, 400, values: 4, random =>
        {
            var shift = random.Next(0, 53);
            var index = (ulong)random.NextInt64((long)Limit) >> shift;
            return random.Next(4) switch
            {
                0 => index,
                1 => Limit - index,
                2 => Math.Min(Limit, (1UL << random.Next(0, 53)) + (ulong)random.Next(3) - 1),
                _ => index & ~511UL,
            };
        });

    /// <summary>Many values close together: leaves become arrays and bitmaps and fold.</summary>
    [Theory]
    [MemberData(nameof(Seeds))]
    public void RandomSets_OnFewPages_MatchTheModel(int seed) =>
        Compare(seed, 1500, values: 3 + seed % 4, random => (ulong)random.Next(0, 1300));

    /// <summary>Children next to values of three kinds in inner nodes: vacated slots, proofs that are lost, packing.</summary>
    [Theory]
    [MemberData(nameof(Seeds))]
    public void RandomSets_AroundSlotBorders_MatchTheModel(int seed) =>
        Compare(seed, 1200, values: 5, random => ((ulong)random.Next(0, 40) << 9) + (ulong)(random.Next(3) == 0 ? random.Next(0, 512) : 0));

    /// <summary>The same, far up: a tree whose outer value is not the default.</summary>
    [Theory]
    [MemberData(nameof(Seeds))]
    public void RandomSets_NearTheLimit_MatchTheModel(int seed) =>
        Compare(seed, 800, values: 3, random => Limit - (ulong)random.Next(0, 3000));

    private static void Compare(int seed, int steps, int values, Func<Random, ulong> point)
    {
        var random = new Random(seed);
        var tree = new PageTree<ushort>();
        var model = new SortedDictionary<ulong, ushort> { [0] = 0 };
        for (var step = 0; step < steps; step++)
        {
            var at = $"seed {seed}, step {step}";
            var (start, end) = Range(random, point);
            var value = (ushort)random.Next(values);
            tree.Set(start, end, value);
            SetModel(model, start, end, value);
            try
            {
                tree.CheckInvariants();
            }
            catch (InvalidOperationException e)
            {
                Assert.Fail($"{at}: {e.Message}");
            }

            var borders = model.ToArray();
            var ends = borders.Skip(1).Select(border => border.Key).Append(Limit);
            var expected = borders.Zip(ends, (border, end) => new PageRun<ushort>(border.Key, end, border.Value)).ToList();
            Assert.True(expected.SequenceEqual(Runs(tree, 0, Limit)), at);

            (start, end) = Range(random, point);
            var cut = expected
                .Select(run => run with { Start = Math.Max(run.Start, start), End = Math.Min(run.End, end) })
                .Where(run => run.Start < run.End)
                .ToList();
            Assert.True(cut.SequenceEqual(Runs(tree, start, end)), at);
            Assert.True(tree.AllEqual(start, end, value) == cut.TrueForAll(run => run.Value == value), at);
            CheckFound(cut, run => run.Value == value, tree.TryFindFirst(start, end, value, out var index), index, at);
            CheckFound(cut, run => run.Value != value, tree.TryFindFirstOther(start, end, value, out index), index, at);
            foreach (var run in cut)
            {
                Assert.True(tree[run.Start] == run.Value, at);
                Assert.True(tree[run.End - 1] == run.Value, at);
            }
        }

        foreach (var run in Runs(tree, 0, Limit))
            tree.Set(run.Start, run.End, 0);
        tree.CheckInvariants();
        Assert.True(tree.IsEmpty);
    }

    private static void CheckFound(List<PageRun<ushort>> runs, Predicate<PageRun<ushort>> wanted, bool found, ulong index, string at)
    {
        var i = runs.FindIndex(wanted);
        Assert.True(found == i >= 0, at);
        Assert.True(index == (found ? runs[i].Start : 0), at);
    }

    private static (ulong Start, ulong End) Range(Random random, Func<Random, ulong> point)
    {
        var a = point(random);
        var b = random.Next(3) == 0 ? Math.Min(a + 1, Limit) : point(random);
        return (Math.Min(a, b), Math.Max(a, b));
    }

    private static void SetModel(SortedDictionary<ulong, ushort> model, ulong start, ulong end, ushort value)
    {
        if (start == end)
            return;
        var after = model.Last(border => border.Key <= end).Value;
        foreach (var key in model.Keys.Where(key => key >= start && key <= end).ToList())
            model.Remove(key);
        model[start] = value;
        if (end < Limit)
            model[end] = after;
        ushort? before = null;
        foreach (var (key, current) in model.ToList())
        {
            if (current == before)
                model.Remove(key);
            before = current;
        }
    }

    private static List<PageRun<T>> Runs<T>(PageTree<T> tree, ulong start, ulong end)
        where T : unmanaged, IEquatable<T>
    {
        var runs = new List<PageRun<T>>();
        foreach (var run in tree.Runs(start, end))
            runs.Add(run);
        return runs;
    }
}
