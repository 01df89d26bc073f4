using SimMachine.Addressing;
using Xunit;

namespace SimMachine.Tests.Addressing;

public class AddressTests
{
    [Fact]
    public void Gpa_InsideAPage_NamesThatPage()
    {
        var gpa = new Gpa(0xffffd123);
        Assert.Equal(new Gfn(0xffffd), gpa.ToGfn());
        Assert.Equal(0x123, gpa.PageOffset);
        Assert.False(gpa.IsPageAligned);
        Assert.Equal(new Gpa(0xffffd000), gpa.ToGfn().ToGpa());
    }

    [Fact]
    public void Addresses_PrintInHex()
    {
        Assert.Equal("0xffffd000", new Gpa(0xffffd000).ToString());
        Assert.Equal("0x10", new Gfn(16).ToString());
        Assert.Equal("0xa", new Pfn(10).ToString());
        Assert.Equal("[0x1, 0x10)", GfnRange.FromBytes(0x1000, 0xf000).ToString());
    }

    [Fact]
    public void FromBytes_UpToTheLastPage_IsARange()
    {
        var range = GfnRange.FromBytes(0xffff_ffff_ffff_f000, 0x1000);
        Assert.Equal(1UL, range.Count);
        Assert.True(range.Contains(new Gfn(GfnRange.Limit - 1)));
    }

    [Theory]
    [InlineData(0x800UL, 0x1000UL)]
    [InlineData(0x1000UL, 0x1001UL)]
    [InlineData(0xffff_ffff_ffff_f000UL, 0x2000UL)]
    [InlineData(0x1000UL, 0xffff_ffff_ffff_f000UL + 0x1)]
    public void FromBytes_MisalignedOrWrapping_IsRefused(ulong gpa, ulong size) =>
        Assert.Throws<ArgumentException>(() => GfnRange.FromBytes(gpa, size));

    [Theory]
    [InlineData(1UL, ulong.MaxValue)]
    [InlineData(1UL, GfnRange.Limit)]
    public void FromPages_PastTheLimit_IsRefused(ulong start, ulong count) =>
        Assert.Throws<ArgumentException>(() => GfnRange.FromPages(new Gfn(start), count));

    [Theory]
    [InlineData(0, 10, 5, 15, 5, 10)]
    [InlineData(0, 10, 2, 3, 2, 3)]
    [InlineData(0, 10, 10, 20, 0, 0)]
    [InlineData(5, 5, 0, 10, 0, 0)]
    public void Intersect_IsWhatBothHave(ulong a, ulong b, ulong c, ulong d, ulong start, ulong end)
    {
        var left = new GfnRange(new Gfn(a), new Gfn(b));
        var right = new GfnRange(new Gfn(c), new Gfn(d));
        var both = left.Intersect(right);
        Assert.Equal(new GfnRange(new Gfn(start), new Gfn(end)), both);
        Assert.Equal(both, right.Intersect(left));
        Assert.Equal(!both.IsEmpty, left.Overlaps(right));
    }

    [Fact]
    public void PageLevels_HaveTheSizesOfTheArchitecture()
    {
        Assert.Equal([1UL, 512UL, 262144UL], Enum.GetValues<PageLevel>().Select(level => level.PagesPerLevel()));
        Assert.Equal(2UL << 20, PageLevel.Page2M.Bytes());
        Assert.Equal(new Gfn(0x200), PageLevel.Page2M.AlignDown(new Gfn(0x3ff)));
        Assert.Equal(GfnRange.FromPages(new Gfn(0x200), 0x200), PageLevel.Page2M.RangeAround(new Gfn(0x3ff)));
        Assert.Throws<ArgumentOutOfRangeException>(() => ((PageLevel)0).PagesPerLevel());
    }
}
