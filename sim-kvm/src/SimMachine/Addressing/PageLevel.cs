// Sizes of pages. The base page is 4 KiB everywhere in the machine; larger pages are levels with the kernel's PG_LEVEL numbers.

namespace SimMachine.Addressing;

/// <summary>The base page: 4 KiB.</summary>
public static class PageSize
{
    public const int Bytes = 1 << Shift;
    public const int Shift = 12;

    /// <summary>The bits of an address which say where in its page it is.</summary>
    public const ulong OffsetMask = Bytes - 1;
}

/// <summary>The size of a mapping. Numbers are the kernel's enum pg_level (arch/x86/include/asm/pgtable_types.h).</summary>
public enum PageLevel
{
    Page4K = 1,
    Page2M = 2,
    Page1G = 3,
}

public static class PageLevelExtensions
{
    /// <summary>Base pages that a page of this level covers.</summary>
    public static ulong PagesPerLevel(this PageLevel level) => 1UL << (level.Shift() - PageSize.Shift);

    public static ulong Bytes(this PageLevel level) => 1UL << level.Shift();

    /// <summary>The first base page of the page of this level around <paramref name="gfn"/>.</summary>
    public static Gfn AlignDown(this PageLevel level, Gfn gfn) => new(gfn.Value & ~(level.PagesPerLevel() - 1));

    /// <summary>The base pages of the page of this level around <paramref name="gfn"/>.</summary>
    public static GfnRange RangeAround(this PageLevel level, Gfn gfn) => GfnRange.FromPages(level.AlignDown(gfn), level.PagesPerLevel());

    public static bool IsAligned(this PageLevel level, Gfn gfn) => level.AlignDown(gfn) == gfn;

    public static bool IsAligned(this PageLevel level, Pfn pfn) => (pfn.Value & (level.PagesPerLevel() - 1)) == 0;

    private static int Shift(this PageLevel level) => level switch
    {
        PageLevel.Page4K => 12,
        PageLevel.Page2M => 21,
        PageLevel.Page1G => 30,
        _ => throw new ArgumentOutOfRangeException(nameof(level), level, "not a page level"),
    };
}
