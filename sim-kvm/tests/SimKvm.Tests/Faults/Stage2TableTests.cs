using SimKvm.Kvm;
using SimMachine.Addressing;
using Xunit;

namespace SimKvm.Tests.Faults;

/// <summary>The stage-2 table against a dictionary of leaves: removing a part of a leaf removes it whole, whatever its size.</summary>
public sealed class Stage2TableTests
{
    private const ulong Pages2M = 512;

    [Theory]
    [InlineData(3)]
    [InlineData(17)]
    [InlineData(40)]
    [InlineData(271)]
    public void RandomChanges_MatchTheModel(int seed)
    {
        var random = new Random(seed);
        var table = new Stage2Table();
        var model = new SortedDictionary<ulong, (PageLevel Level, ulong Pfn, bool Writable)>();
        for (int step = 0; step < 400; step++)
        {
            // Eight huge pages; frames so that neighbours sometimes follow each other.
            ulong gfn = (ulong)random.Next((int)(8 * Pages2M));
            ulong end = gfn + 1 + (ulong)random.Next(random.Next(3) == 0 ? 1100 : 4);
            switch (random.Next(5))
            {
                case 0:
                    bool expected = Overlapping(model, gfn, end).Count > 0;
                    Assert.Equal(expected, table.Unmap(new GfnRange(new Gfn(gfn), new Gfn(end))));
                    Overlapping(model, gfn, end).ForEach(each => model.Remove(each));
                    break;
                case 1:
                    bool split = random.Next(2) == 0;
                    table.WriteProtect(new GfnRange(new Gfn(gfn), new Gfn(end)), split);
                    foreach (ulong start in Overlapping(model, gfn, end))
                    {
                        (PageLevel level, ulong pfn, _) = model[start];
                        model.Remove(start);
                        for (ulong i = 0; i < level.PagesPerLevel(); i += split ? 1 : level.PagesPerLevel())
                        {
                            model[start + i] = (split ? PageLevel.Page4K : level, pfn + i, false);
                        }
                    }
                    break;
                default:
                    PageLevel size = random.Next(4) == 0 ? PageLevel.Page2M : PageLevel.Page4K;
                    ulong first = gfn & ~(size.PagesPerLevel() - 1);
                    ulong frame = first + (ulong)random.Next(2) * 0x10_0000 + 0x20_0000;
                    bool writable = random.Next(2) == 0;
                    table.Map(new Gfn(gfn), new Stage2Entry(new Pfn(frame + (gfn - first)), size, writable, IsPrivate: false));
                    Overlapping(model, first, first + size.PagesPerLevel()).ForEach(each => model.Remove(each));
                    model[first] = (size, frame, writable);
                    break;
            }
            table.CheckInvariants();
            for (int probe = 0; probe < 20; probe++)
            {
                ulong at = (ulong)random.Next((int)(9 * Pages2M));
                List<ulong> leaf = Overlapping(model, at, at + 1);
                Assert.Equal(leaf.Count == 1, table.TryGet(new Gfn(at), out Stage2Entry entry));
                if (leaf.Count == 1)
                {
                    (PageLevel level, ulong pfn, bool mayWrite) = model[leaf[0]];
                    Assert.Equal(new Stage2Entry(new Pfn(pfn + at - leaf[0]), level, mayWrite, false), entry);
                }
            }
        }
        Assert.Equal(model.Count == 0, table.IsEmpty);
    }

    [Fact]
    public void FrameBelowItsGfn_IsKept()
    {
        var table = new Stage2Table();
        var low = new Stage2Entry(new Pfn(7), PageLevel.Page4K, true, true);
        table.Map(new Gfn((1UL << 40) - 1), low);
        Assert.True(table.TryGet(new Gfn((1UL << 40) - 1), out Stage2Entry entry));
        Assert.Equal(low, entry);
    }

    [Fact]
    public void Unmap_SaysWhetherSomethingWasMapped()
    {
        var table = new Stage2Table();
        table.Map(new Gfn(5), new Stage2Entry(new Pfn(9), PageLevel.Page4K, true, false));
        Assert.False(table.Unmap(new GfnRange(new Gfn(6), new Gfn(7))));
        Assert.False(table.Unmap(default));
        Assert.True(table.Unmap(new GfnRange(new Gfn(0), new Gfn(6))));
        Assert.True(table.IsEmpty);
    }

    private static List<ulong> Overlapping(SortedDictionary<ulong, (PageLevel Level, ulong Pfn, bool Writable)> model, ulong start, ulong end) =>
        [.. model.Where(leaf => leaf.Key < end && leaf.Key + leaf.Value.Level.PagesPerLevel() > start).Select(leaf => leaf.Key)];
}
