using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Userspace;
using SimMachine.Addressing;
using SimMachine.Amd;

namespace SimKvm.Auditing;

/// <summary>A leaf of stage 2.</summary>
/// <param name="Gpa">First byte of the leaf.</param>
/// <param name="Pfn">First frame of it.</param>
public sealed record Stage2Leaf(ulong Gpa, ulong Pfn, PageLevel Level, bool Writable, bool IsPrivate);

/// <summary>disallow_lpage of the huge page around a gpa.</summary>
/// <param name="Count">How many edges of the slot or alignments forbid it.</param>
/// <param name="Mixed">Private and shared pages are mixed in it.</param>
public sealed record LpageDescription(PageLevel Level, ulong Gpa, uint Count, bool Mixed);

/// <summary>Everything about one guest physical page.</summary>
/// <param name="Run">The page as the map has it; null where nothing is known of it.</param>
/// <param name="Attributes">Of KVM_SET_MEMORY_ATTRIBUTES.</param>
/// <param name="GmemIndex">Page index in the guest_memfd of the slot.</param>
/// <param name="FolioPfn">Frame of the guest_memfd's folio, 0 without one.</param>
/// <param name="FolioOrder">log2 of the folio's pages.</param>
/// <param name="Leaves">Of the shared and the private table, where they differ.</param>
/// <param name="Limits">What limits the mapping level, in the order in which the fault path asks.</param>
/// <param name="Level">The level that comes of the limits; 4 KiB without a slot.</param>
/// <param name="RmpEntry">The RMP's entry of the folio's or leaf's frame, on SNP VMs.</param>
/// <param name="Text">The same in sentences: what an access would do, and why.</param>
public sealed record GpaExplanation(
    ulong Gpa, GpaRun? Run, ulong Attributes, ulong GmemIndex, ulong FolioPfn, int FolioOrder, IReadOnlyList<Stage2Leaf> Leaves, bool UnderInvalidation,
    IReadOnlyList<LpageDescription> Lpages, IReadOnlyList<LevelLimit> Limits, PageLevel Level, RmpState? RmpEntry, IReadOnlyList<string> Text)
{
    /// <summary>Explains a gpa of the VM behind a VM fd; null where the fd is no VM fd.</summary>
    public static GpaExplanation? Of(Process process, int fd, ulong gpa)
    {
        if (!process.Files.TryGet(fd, out KernelFile? file) || file is not VmFile { Vm: var vm })
        {
            return null;
        }
        Gfn gfn = new Gpa(gpa).ToGfn();
        ulong page = gfn.ToGpa().Value;
        GpaRun? run = GpaMap.Of(process, fd)!.Runs(page, page + PageSize.Bytes).FirstOrDefault();
        Memslot? slot = vm.Memslots.Find(gfn);
        Folio folio = default;
        ulong index = slot is null ? 0 : gfn.Value - slot.BaseGfn + slot.GmemPgoff;
        slot?.GmemFile?.Inode.TryGet(index, out folio);
        Stage2Leaf[] leaves = [.. LeavesOf(vm, gfn)];
        LevelLimit[] limits = slot is null ? [] : [.. vm.Mmu.LevelLimits(slot, gfn)];
        PageLevel level = slot is null ? PageLevel.Page4K : limits.Select(limit => limit.Level).Append(PageLevel.Page1G).Min();
        ulong frame = folio.Pfn.Value != 0 ? folio.Pfn.Value : vm.Mmu.TryGetLeaf(gfn, out Stage2Entry leaf) ? leaf.Pfn.Value : 0;
        RmpState? rmp = vm.Type == VmType.KVM_X86_SNP_VM && frame != 0 && vm.Host.Machine.Rmp.TryRead(new Pfn(frame), out RmpState state) ? state : null;
        var explanation = new GpaExplanation(
            page, run, vm.Attributes[gfn], slot?.GmemFile is null ? 0 : index, folio.Pfn.Value, folio.Order, leaves, vm.Mmu.IsUnderInvalidation(gfn),
            slot is null ? [] : [.. LpagesOf(vm, slot, gfn)], limits, level, rmp, []);
        return explanation with { Text = [.. explanation.Sentences(vm)] };
    }

    private static IEnumerable<Stage2Leaf> LeavesOf(Vm vm, Gfn gfn)
    {
        bool found = vm.Mmu.TryGetLeaf(isPrivate: false, gfn, out Stage2Entry shared);
        if (found)
        {
            yield return Leaf(gfn, shared);
        }
        if (vm.Backend.HasPrivateTable && vm.Mmu.TryGetLeaf(isPrivate: true, gfn, out Stage2Entry entry))
        {
            yield return Leaf(gfn, entry);
        }
    }

    private static Stage2Leaf Leaf(Gfn gfn, in Stage2Entry entry)
    {
        Gfn first = entry.Level.AlignDown(gfn);
        return new Stage2Leaf(first.ToGpa().Value, entry.Pfn.Value - (gfn - first), entry.Level, entry.Writable, entry.IsPrivate);
    }

    private static IEnumerable<LpageDescription> LpagesOf(Vm vm, Memslot slot, Gfn gfn)
    {
        foreach (PageLevel level in new[] { PageLevel.Page2M, PageLevel.Page1G })
        {
            LpageInfo info = vm.Mmu.DisallowLpage(slot, gfn, level);
            yield return new LpageDescription(level, level.AlignDown(gfn).ToGpa().Value, info.Count, info.Mixed);
        }
    }

    private IEnumerable<string> Sentences(Vm vm)
    {
        if (Run?.Slot is not { } slot)
        {
            yield return Run is null ? "no slot has the gpa, and no attribute is set" : "no slot has the gpa, though it is marked private";
            yield return Run is null ? "a shared access is emulated: KVM_EXIT_MMIO" : "a guest access ends in KVM_EXIT_MEMORY_FAULT: there is no slot for private memory";
            yield break;
        }
        string backing = Run.GmemOffset is { } offset ? $"user address 0x{Run.UserspaceAddr:x} and guest_memfd offset 0x{offset:x}" : $"user address 0x{Run.UserspaceAddr:x}";
        yield return $"slot {slot.Id} backs it with {backing}";
        if (vm.HasPrivateMem)
        {
            (string now, string other) = Run.IsPrivate ? ("private", "shared") : ("shared", "private");
            yield return $"the page is {now}: an access marked {other} ends in KVM_EXIT_MEMORY_FAULT";
        }
        if (Run.IsPrivate && Run.GmemOffset is null)
        {
            yield return "private memory needs a guest_memfd and the slot has none open: private accesses end in KVM_EXIT_MEMORY_FAULT";
        }
        if (Run.Folio == FolioState.Poisoned)
        {
            yield return "the page is poisoned: nobody gets it any more";
        }
        if (UnderInvalidation)
        {
            yield return "its range is being invalidated: faults are retried until the end of that";
        }
        yield return Run.Level is { } mapped
            ? $"stage 2 maps it at {Mmu.Name(mapped)}, {(Run.Writable ? "writable" : "read-only: stores fault")}"
            : $"stage 2 does not map it; the first access faults, and maps at most {Mmu.Name(Level)}";
        foreach (LevelLimit limit in Limits.Where(limit => limit.Level == Level))
        {
            yield return $"no larger than {Mmu.Name(limit.Level)} because of {limit.What}: {limit.Why}";
        }
    }
}
