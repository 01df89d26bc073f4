using SimKvm.Locking;
using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimKvm.Kvm;

/// <summary>
/// The invalidation protocol of a VM's stage-2 translation: a change of what backs gfns brackets itself with begin and end, and a fault that began before the
/// end, or falls between, is retried (kvm-guest-memory.md 1.3). All state is under mmu_lock.
/// </summary>
/// <remarks>
/// Invariants: in_progress is not negative; the range is the smallest interval over all ranges added since in_progress was last 0; seq counts ends.
/// </remarks>
internal sealed class Mmu(Vm vm)
{
    private static readonly StepLabel BeginStep = new("mmu invalidate begin");
    private static readonly StepLabel UnmapStep = new("mmu unmap");
    private static readonly StepLabel EndStep = new("mmu invalidate end");

    private ulong _rangeStart;
    private ulong _rangeEnd;

    public SimLock Lock { get; } = new(LockOrder.Mmu);

    /// <summary>mmu_invalidate_in_progress</summary>
    public int InProgress { get; private set; }

    /// <summary>mmu_invalidate_seq</summary>
    public ulong Seq { get; private set; }

    /// <summary>kvm_mmu_invalidate_begin (_start in newer trees).</summary>
    public void InvalidateBegin(KTask current)
    {
        Lock.AssertHeld(current);
        current.Step(BeginStep);
        if (++InProgress == 1)
        {
            _rangeStart = _rangeEnd = 0;
        }
    }

    /// <summary>kvm_mmu_invalidate_range_add: ranges only grow until nothing is in progress.</summary>
    public void InvalidateRangeAdd(KTask current, GfnRange range)
    {
        Lock.AssertHeld(current);
        bool first = _rangeStart == _rangeEnd;
        _rangeStart = first ? range.Start.Value : Math.Min(_rangeStart, range.Start.Value);
        _rangeEnd = first ? range.End.Value : Math.Max(_rangeEnd, range.End.Value);
    }

    /// <summary>kvm_mmu_invalidate_end.</summary>
    public void InvalidateEnd(KTask current)
    {
        Lock.AssertHeld(current);
        current.Step(EndStep);
        Seq++;
        if (--InProgress < 0)
        {
            vm.Bug(current, "an invalidation ended that had not begun");
        }
    }

    /// <summary>kvm_unmap_gfn_range: stage-2 entries of the range go.</summary>
    public void Unmap(KTask current, GfnRange range)
    {
        Lock.AssertHeld(current);
        current.Step(UnmapStep, range.Start.Value, range.End.Value);
    }
}
