using SimMachine.Addressing;

namespace SimKvm.Userspace;

/// <summary>
/// The huge pages of one size that hugetlbfs may use (struct hstate). How many there are is said when the host is made (nr_hugepages); a mapping reserves what it will need,
/// so that its later faults do not fail.
/// </summary>
/// <remarks>
/// The pool counts; a page's frames are taken from the machine when it is used. On a machine whose other memory is exhausted or in pieces a reserved page can therefore be
/// missing, where Linux set the frames aside at boot.
/// </remarks>
internal sealed class HugetlbPool(SimHost host, PageLevel level, ulong total)
{
    public PageLevel Level => level;

    /// <summary>HugePages_Total</summary>
    public ulong Total { get; } = total;

    /// <summary>HugePages_Free: not in use, reserved or not.</summary>
    public ulong Free { get; private set; } = total;

    /// <summary>HugePages_Rsvd: free, and promised to a mapping.</summary>
    public ulong Reserved { get; private set; }

    /// <summary>hugetlb_acct_memory: promises pages. False when there are not as many.</summary>
    public bool TryReserve(ulong pages)
    {
        if (Free - Reserved < pages)
        {
            return false;
        }
        Reserved += pages;
        return true;
    }

    public void Unreserve(ulong pages) => Reserved -= pages;

    /// <summary>alloc_hugetlb_folio: a page's first frame, cleared.</summary>
    /// <param name="reserved">The page was promised before.</param>
    /// <param name="first">The first frame.</param>
    public bool TryTake(bool reserved, out Pfn first)
    {
        first = default;
        if ((!reserved && Free == Reserved) || !host.Machine.TryAllocateHugeFrame(level, out first))
        {
            return false;
        }
        Free--;
        Reserved -= reserved ? 1UL : 0;
        return true;
    }

    /// <summary>free_huge_folio</summary>
    public void Give(KTask current, Pfn first)
    {
        for (ulong i = 0; i < level.PagesPerLevel(); i++)
        {
            host.PagePins.Free(current, new Pfn(first.Value + i));
        }
        Free++;
    }
}

/// <summary>hugetlbfs of a host: a pool for each size of huge page.</summary>
internal sealed class Hugetlb(SimHost host)
{
    // MAP_HUGE_SHIFT, MFD_HUGE_SHIFT: six bits with the logarithm of the size, 0 for the default of 2 MiB.
    private const int SizeShift = 26;
    private const uint SizeMask = 0x3f;

    public HugetlbPool Pool2M { get; } = new(host, PageLevel.Page2M, host.Config.Hugepages2M);

    public HugetlbPool Pool1G { get; } = new(host, PageLevel.Page1G, host.Config.Hugepages1G);

    /// <summary>hstate_sizelog: the pool that flags of mmap or memfd_create name, or null.</summary>
    public HugetlbPool? PoolOf(uint flags) => ((flags >> SizeShift) & SizeMask) switch
    {
        0 or 21 => Pool2M,
        30 => Pool1G,
        _ => null,
    };
}
