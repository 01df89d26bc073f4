using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Profiles;
using SimKvm.Userspace;
using SimMachine.Addressing;
using SimMachine.Amd;

namespace SimKvm.Auditing;

/// <summary>What the page cache of a guest_memfd has for a page.</summary>
public enum FolioState
{
    /// <summary>No guest_memfd backs the page.</summary>
    None,
    Absent,

    /// <summary>Allocated, not cleared or populated yet.</summary>
    Present,
    Uptodate,
    Poisoned,
}

/// <summary>Guest physical pages that follow each other and are alike in everything that is told here.</summary>
/// <param name="Gpa">First byte.</param>
/// <param name="Size">Bytes.</param>
/// <param name="Slot">The slot that has them, or null.</param>
/// <param name="UserspaceAddr">User address of the first byte; 0 without a slot.</param>
/// <param name="GmemOffset">Byte offset in the slot's guest_memfd, where one is bound and open.</param>
/// <param name="Folio">What the guest_memfd has there.</param>
/// <param name="IsPrivate">The page is private: by attribute, or in place.</param>
/// <param name="Level">Level at which stage 2 maps them, null where it does not.</param>
/// <param name="Writable">Guest stores pass.</param>
/// <param name="Rmp">State of the frames that the RMP assigns to the guest there, or null.</param>
public sealed record GpaRun(
    ulong Gpa, ulong Size, SlotDescription? Slot, ulong UserspaceAddr, ulong? GmemOffset, FolioState Folio, bool IsPrivate, PageLevel? Level, bool Writable, RmpPageState? Rmp);

/// <summary>
/// A walk over the guest physical space of a VM that puts side by side what the kernel keeps apart: slot, backing, attribute, stage 2, RMP. Its cost is that of the runs
/// it meets, not of the pages.
/// </summary>
public sealed class GpaMap
{
    private readonly Vm _vm;
    private readonly Memslot[] _slots;
    private readonly RmpRun[] _rmp;

    private GpaMap(Vm vm)
    {
        _vm = vm;
        _slots = [.. vm.Memslots.All.Where(slot => slot.AsId == 0)];
        _rmp = vm.Backend is Vendors.Amd.SevBackend { Summary.Active: true } backend ? [.. RmpRun.Merge(vm.Host.Machine.Rmp.Owned(backend.Summary.Asid)).Where(run => !run.Vmsa)] : [];
    }

    /// <summary>The map of the VM behind a VM fd; null where the fd is no VM fd.</summary>
    public static GpaMap? Of(Process process, int fd) => process.Files.TryGet(fd, out KernelFile? file) && file is VmFile { Vm: var vm } ? new GpaMap(vm) : null;

    /// <summary>Runs from a gpa on, in order: of pages that a slot has, or that are marked private without one.</summary>
    /// <param name="start">First byte looked at; rounded down to its page.</param>
    /// <param name="end">One past the last; rounded up. 0 is the end of the space.</param>
    public IEnumerable<GpaRun> Runs(ulong start, ulong end)
    {
        ulong limit = end == 0 ? GfnRange.Limit : ((end - 1) >> PageSize.Shift) + 1;
        GpaRun? run = null;
        for (ulong gfn = start >> PageSize.Shift, next; gfn < limit; gfn = next)
        {
            GpaRun? segment = Segment(gfn, limit, out next);
            if (run is not null && segment is not null && Joins(run, segment))
            {
                run = run with { Size = run.Size + segment.Size };
                continue;
            }
            if (run is not null)
            {
                yield return run;
            }
            run = segment;
        }
        if (run is not null)
        {
            yield return run;
        }
    }

    // The longest run from a gfn on in which nothing changes at all; null for one of which there is nothing to tell.
    private GpaRun? Segment(ulong gfn, ulong limit, out ulong end)
    {
        Memslot? slot = _slots.FirstOrDefault(slot => slot.Range.End.Value > gfn);
        bool inside = slot is not null && slot.BaseGfn <= gfn;
        end = slot is null ? limit : Math.Min(limit, inside ? slot.Range.End.Value : slot.BaseGfn);
        end = _vm.Attributes.RunEnd(gfn, end);
        if (!inside)
        {
            bool marked = (_vm.Attributes[new Gfn(gfn)] & kvm_memory_attributes.PRIVATE) != 0;
            return marked ? new GpaRun(gfn << PageSize.Shift, Bytes(gfn, end), null, 0, null, FolioState.None, true, null, false, null) : null;
        }
        end = _vm.Mmu.RunEnd(gfn, end);
        bool isPrivate = _vm.Attributes.IsPrivate(new Gfn(gfn));
        var folio = FolioState.None;
        ulong? offset = null;
        if (slot!.GmemFile is { Inode: var inode })
        {
            ulong index = gfn - slot.BaseGfn + slot.GmemPgoff;
            ulong last = inode.FolioRunEnd(index, index + (end - gfn));
            if (_vm.Host.Profile.InPlaceConversion != InPlaceConversion.None)
            {
                last = inode.PrivateRunEnd(index, last);
            }
            end = gfn + (last - index);
            folio = StateOf(inode, index);
            offset = index << PageSize.Shift;
        }
        RmpPageState? rmp = RmpAt(gfn, ref end);
        bool mapped = _vm.Mmu.TryGetLeaf(new Gfn(gfn), out Stage2Entry leaf);
        return new GpaRun(
            gfn << PageSize.Shift, Bytes(gfn, end), SlotDescription.Of(slot), slot.UserspaceAddr + ((gfn - slot.BaseGfn) << PageSize.Shift), offset, folio, isPrivate,
            mapped ? leaf.Level : null, mapped && leaf.Writable, rmp);
    }

    // Frames of a run need not follow each other in memory, so runs are joined on what is told of them.
    private static bool Joins(GpaRun run, GpaRun next) =>
        run.Gpa + run.Size == next.Gpa && run == next with
        {
            Gpa = run.Gpa,
            Size = run.Size,
            UserspaceAddr = next.Slot is null ? 0 : next.UserspaceAddr - run.Size,
            GmemOffset = next.GmemOffset - run.Size,
        };

    private RmpPageState? RmpAt(ulong gfn, ref ulong end)
    {
        ulong gpa = gfn << PageSize.Shift;
        // The first run that ends behind the gpa.
        int low = 0, high = _rmp.Length;
        while (low < high)
        {
            int middle = (low + high) / 2;
            (low, high) = _rmp[middle].Gpa + _rmp[middle].Size <= gpa ? (middle + 1, high) : (low, middle);
        }
        if (low == _rmp.Length)
        {
            return null;
        }
        RmpRun run = _rmp[low];
        bool inside = run.Gpa <= gpa;
        end = Math.Min(end, (inside ? run.Gpa + run.Size : run.Gpa) >> PageSize.Shift);
        return inside ? run.State : null;
    }

    internal static FolioState StateOf(GmemInode inode, ulong index) => !inode.TryGet(index, out Folio folio) ? FolioState.Absent
        : folio.Poisoned ? FolioState.Poisoned
        : folio.Uptodate ? FolioState.Uptodate
        : FolioState.Present;

    // A run that covers the whole space has 2^64 bytes; it is told as one page less.
    private static ulong Bytes(ulong start, ulong end) => end - start >= GfnRange.Limit ? ulong.MaxValue << PageSize.Shift : (end - start) << PageSize.Shift;
}
