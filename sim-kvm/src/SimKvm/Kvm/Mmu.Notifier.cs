using SimKvm.Userspace;
using SimMachine.Addressing;

namespace SimKvm.Kvm;

// MMU notifiers: the memory behind the slots tells of every page that goes or is replaced, and stage 2 forgets it (kvm_mmu_notifier_invalidate_range_start and _end).
internal sealed partial class Mmu : IMmuNotifier
{
    /// <summary>mn_active_invalidate_count: a change of slots is published when there is none.</summary>
    public int ActiveInvalidations
    {
        get
        {
            _vm.Host.Machine.Reading(_activeInvalidations);
            return _activeInvalidations.Count;
        }
    }

    private readonly Counter _activeInvalidations = new();

    /// <summary>Begins at the first slot that lies over the range; without one nothing happens, and seq stays.</summary>
    public void InvalidateRangeStart(KTask current, ulong start, ulong end)
    {
        current.Machine.Writing(_activeInvalidations);
        _activeInvalidations.Count++;
        (Memslot Slot, GfnRange Range)[] parts = [.. _vm.Memslots.OverUserRange(start, end)];
        if (parts.Length == 0)
        {
            return;
        }
        using var mmu = Lock.Enter(current);
        InvalidateBegin(current);
        bool unmapped = false;
        foreach ((_, GfnRange range) in parts)
        {
            InvalidateRangeAdd(current, range);
            unmapped |= UnmapUnflushed(current, range, Stage2Sides.Shared);
        }
        FlushIf(current, unmapped);
    }

    public void InvalidateRangeEnd(KTask current, ulong start, ulong end)
    {
        if (_vm.Memslots.OverUserRange(start, end).Any())
        {
            using var mmu = Lock.Enter(current);
            InvalidateEnd(current);
        }
        current.Machine.Writing(_activeInvalidations);
        _activeInvalidations.Count--;
    }

    // A thing of its own for who watches what threads touch.
    private sealed class Counter
    {
        public int Count { get; set; }
    }
}
