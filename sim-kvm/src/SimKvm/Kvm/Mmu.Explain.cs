using SimKvm.Abi;
using SimMachine.Addressing;

namespace SimKvm.Kvm;

/// <summary>One thing that limits the level at which a gfn is mapped.</summary>
/// <param name="What">The limit by the kernel's name for it.</param>
/// <param name="Level">The largest level that it allows.</param>
/// <param name="Why">One sentence.</param>
public sealed record LevelLimit(string What, PageLevel Level, string Why);

// Why a gfn is mapped as it is. Looks only: what the fault path would decide is told from the same predicates, without a fault.
internal sealed partial class Mmu
{
    /// <summary>The leaf of one side's table.</summary>
    public bool TryGetLeaf(bool isPrivate, Gfn gfn, out Stage2Entry entry) => TableOf(isPrivate).TryGet(gfn, out entry);

    /// <summary>The leaf of the side that an access must have to pass: private where the page is private.</summary>
    public bool TryGetLeaf(Gfn gfn, out Stage2Entry entry) => TryGetLeaf(_vm.Attributes.IsPrivate(gfn), gfn, out entry);

    /// <summary>Up to where both tables are alike from a gfn on.</summary>
    public ulong RunEnd(ulong gfn, ulong limit) => Math.Min(_table.RunEnd(gfn, limit), _privateTable.RunEnd(gfn, limit));

    /// <summary>Faults on the gfn are retried because something in its range is being invalidated.</summary>
    public bool IsUnderInvalidation(Gfn gfn) => InProgress != 0 && gfn.Value >= _rangeStart && gfn.Value < _rangeEnd;

    /// <summary>Everything that limits the level of a gfn of a slot, in the order in which the fault path asks. The least of the levels is the gfn's.</summary>
    public IEnumerable<LevelLimit> LevelLimits(Memslot slot, Gfn gfn)
    {
        bool isPrivate = _vm.Attributes.IsPrivate(gfn);
        bool fromGmem = isPrivate || (slot.Flags & KvmMem.MEMSLOT_GMEM_ONLY) != 0;
        Folio folio = default;
        bool present = fromGmem && slot.GmemFile is { } file && file.Inode.TryGet(gfn.Value - slot.BaseGfn + slot.GmemPgoff, out folio);
        if (fromGmem)
        {
            yield return new LevelLimit(
                "max_order", folio.Order >= Folio.HugeOrder ? PageLevel.Page2M : PageLevel.Page4K,
                present ? $"the folio of the guest_memfd has order {folio.Order}" : "the guest_memfd has no folio there yet; a new one has order 0");
        }
        if ((slot.Flags & KvmMem.LOG_DIRTY_PAGES) != 0)
        {
            yield return new LevelLimit("dirty-logging", PageLevel.Page4K, "stores to the slot are logged page by page");
        }
        foreach (PageLevel level in new[] { PageLevel.Page1G, PageLevel.Page2M })
        {
            LpageInfo info = DisallowLpage(slot, gfn, level);
            if (info.Disallowed)
            {
                yield return new LevelLimit($"disallow_lpage {Name(level)}", level - 1, Why(slot, gfn, level, info));
            }
        }
        bool mapped = TryGetLeaf(gfn, out Stage2Entry leaf);
        if (present)
        {
            PageLevel vendor = _vm.Backend.GmemMaxMappingLevel(folio.Pfn, isPrivate);
            if (vendor < PageLevel.Page1G)
            {
                yield return new LevelLimit("gmem_max_mapping_level", vendor, "the vendor allows no more for this frame");
            }
        }
        else if (!fromGmem && mapped && leaf.Level < PageLevel.Page1G)
        {
            yield return new LevelLimit("host mapping", leaf.Level, "the host maps the user address behind it no larger");
        }
    }

    /// <summary>4K, 2M or 1G.</summary>
    internal static string Name(PageLevel level) => level.ToString()["Page".Length..];

    private static string Why(Memslot slot, Gfn gfn, PageLevel level, LpageInfo info)
    {
        var reasons = new List<string>();
        if (!slot.Range.Contains(level.RangeAround(gfn)))
        {
            reasons.Add("the huge page sticks out of the slot");
        }
        if (((slot.BaseGfn ^ (slot.UserspaceAddr >> PageSize.Shift)) & (level.PagesPerLevel() - 1)) != 0)
        {
            reasons.Add("userspace_addr and gpa of the slot are not aligned alike");
        }
        if (info.Mixed)
        {
            reasons.Add("private and shared pages are mixed in the huge page");
        }
        return string.Join("; ", reasons);
    }
}
