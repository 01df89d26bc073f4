using SimKvm.Abi;
using SimMachine.Addressing;

namespace SimKvm.Kvm;

/// <summary>Why a slot cannot be mapped at a level (struct kvm_lpage_info).</summary>
/// <param name="Count">bits 30:0: 1 where the page sticks out of the slot, or gfn and user address differ modulo its size.</param>
/// <param name="Mixed">bit 31: private and shared pages are mixed in it.</param>
internal readonly record struct LpageInfo(uint Count, bool Mixed)
{
    public bool Disallowed => Count != 0 || Mixed;
}

// At which level a gfn may be mapped (kvm_mmu_hugepage_adjust, kvm_mmu_max_mapping_level). The kernel keeps this per huge page and updates it when slots and attributes
// change; here it is read off them when asked for, which is the same answer without the tables.
internal sealed partial class Mmu
{
    /// <summary>disallow_lpage of the huge page around a gfn of a slot.</summary>
    public LpageInfo DisallowLpage(Memslot slot, Gfn gfn, PageLevel level)
    {
        GfnRange page = level.RangeAround(gfn);
        bool contained = slot.Range.Contains(page);
        bool congruent = ((slot.BaseGfn ^ (slot.UserspaceAddr >> PageSize.Shift)) & (level.PagesPerLevel() - 1)) == 0;
        bool mixed = contained && _vm.HasPrivateMem && IsMixed(slot, page);
        return new LpageInfo(contained && congruent ? 0u : 1, mixed);
    }

    private bool IsMixed(Memslot slot, GfnRange page)
    {
        if (_vm.Host.Profile.InPlaceConversion == Profiles.InPlaceConversion.None)
        {
            return !_vm.Attributes.AllEqual(page, _vm.Attributes[page.Start]);
        }
        if (slot.GmemFile is not { } file)
        {
            return false;
        }
        ulong index = page.Start.Value - slot.BaseGfn + slot.GmemPgoff;
        return !file.Inode.AllPrivate(index, index + page.Count, file.Inode.IsPrivate(index));
    }

    // kvm_mmu_hugepage_adjust
    private PageLevel ChooseLevel(in PageFault fault)
    {
        if (fault.MaxLevel == PageLevel.Page4K || (fault.Slot!.Flags & KvmMem.LOG_DIRTY_PAGES) != 0)
        {
            return PageLevel.Page4K;
        }
        PageLevel level = fault.MaxLevel;
        while (level > PageLevel.Page4K && DisallowLpage(fault.Slot, fault.Gfn, level).Disallowed)
        {
            level--;
        }
        if (level == PageLevel.Page4K)
        {
            return level;
        }
        PageLevel limit = fault.FromGmem ? _vm.Backend.GmemMaxMappingLevel(fault.Pfn, fault.IsPrivate) : fault.HostLevel;
        level = limit < level ? limit : level;
        while (level > PageLevel.Page4K && ((fault.Gfn.Value ^ fault.Pfn.Value) & (level.PagesPerLevel() - 1)) != 0)
        {
            level--;
        }
        return level;
    }
}
