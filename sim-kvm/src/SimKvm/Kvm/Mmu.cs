using SimKvm.Locking;
using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimKvm.Kvm;

/// <summary>
/// The stage-2 translation of a VM and its invalidation protocol: a change of what backs gfns brackets itself with begin and end, and a fault that began before the
/// end, or falls between, is retried (kvm-guest-memory.md 1.3). The page-fault path is in <c>Mmu.Fault.cs</c>, mapping levels in <c>Mmu.Level.cs</c>, what the
/// host's memory tells in <c>Mmu.Notifier.cs</c>. All state is under
/// mmu_lock.
/// </summary>
/// <remarks>
/// Invariants: in_progress is not negative; the range is the smallest interval over all ranges added since in_progress was last 0; seq counts ends. A leaf agrees with the
/// slot, the attributes and the page that it was made from, or one of them is being changed and the range is under invalidation.
/// </remarks>
internal sealed partial class Mmu
{
    private static readonly StepLabel BeginStep = new("mmu invalidate begin");
    private static readonly StepLabel RangeAddStep = new("mmu invalidate range add");
    private static readonly StepLabel UnmapStep = new("mmu unmap");
    private static readonly StepLabel FlushStep = new("mmu flush remote tlbs");
    private static readonly StepLabel EndStep = new("mmu invalidate end");

    private readonly Vm _vm;
    private readonly Stage2Table _table = new();

    // Tables of private memory, for vendors that have them apart; else the one table.
    private readonly Stage2Table _privateTable;

    private ulong _seq;
    private ulong _rangeStart;
    private ulong _rangeEnd;

    public Mmu(Vm vm, bool separatePrivateTable)
    {
        _vm = vm;
        _privateTable = separatePrivateTable ? new Stage2Table() : _table;
    }

    public SimLock Lock { get; } = new(LockOrder.Mmu);

    public IEnumerable<object> SharedState => [this, Lock, _activeInvalidations, _table, .. ReferenceEquals(_table, _privateTable) ? Array.Empty<object>() : [_privateTable]];

    /// <summary>mmu_invalidate_in_progress</summary>
    public int InProgress { get; private set; }

    /// <summary>mmu_invalidate_seq</summary>
    public ulong Seq
    {
        get
        {
            _vm.Host.Machine.Reading(this);
            return _seq;
        }
    }

    /// <summary>mmu_invalidate_range_start and _end, as gfns. Of use only while an invalidation is in progress; it stays until the next one begins.</summary>
    public (ulong Start, ulong End) InvalidateRange => (_rangeStart, _rangeEnd);

    /// <summary>kvm_mmu_invalidate_begin (_start in newer trees).</summary>
    public void InvalidateBegin(KTask current)
    {
        Lock.AssertHeld(current);
        current.Step(BeginStep);
        current.Machine.Writing(this);
        if (++InProgress == 1)
        {
            _rangeStart = _rangeEnd = 0;
        }
    }

    /// <summary>kvm_mmu_invalidate_range_add: ranges only grow until nothing is in progress.</summary>
    public void InvalidateRangeAdd(KTask current, GfnRange range)
    {
        Lock.AssertHeld(current);
        current.Step(RangeAddStep, range.Start.Value, range.End.Value);
        current.Machine.Writing(this);
        bool first = _rangeStart == _rangeEnd;
        _rangeStart = first ? range.Start.Value : Math.Min(_rangeStart, range.Start.Value);
        _rangeEnd = first ? range.End.Value : Math.Max(_rangeEnd, range.End.Value);
    }

    /// <summary>kvm_mmu_invalidate_end.</summary>
    public void InvalidateEnd(KTask current)
    {
        Lock.AssertHeld(current);
        current.Step(EndStep);
        current.Machine.Writing(this);
        _seq++;
        if (--InProgress < 0)
        {
            _vm.Bug(current, "an invalidation ended that had not begun");
        }
    }

    /// <summary>kvm_unmap_gfn_range, with the flush: leaves that have a page in the range go.</summary>
    /// <returns>Something was mapped.</returns>
    public bool Unmap(KTask current, GfnRange range, Stage2Sides sides = Stage2Sides.Both)
    {
        bool unmapped = UnmapUnflushed(current, range, sides);
        FlushIf(current, unmapped);
        return unmapped;
    }

    /// <summary>kvm_flush_remote_tlbs, where something was unmapped: once for all that was unmapped under this hold of mmu_lock.</summary>
    public void FlushIf(KTask current, bool unmapped)
    {
        Lock.AssertHeld(current);
        if (unmapped)
        {
            current.Step(FlushStep);
        }
    }

    /// <summary>kvm_unmap_gfn_range: the caller flushes when it has unmapped all that goes.</summary>
    /// <returns>Something was mapped.</returns>
    public bool UnmapUnflushed(KTask current, GfnRange range, Stage2Sides sides)
    {
        Lock.AssertHeld(current);
        current.Step(UnmapStep, range.Start.Value, range.End.Value);
        bool unmapped = false;
        if ((sides & Stage2Sides.Shared) != 0 || ReferenceEquals(_privateTable, _table))
        {
            unmapped = Unmap(_table, range);
        }
        if ((sides & Stage2Sides.Private) != 0 && !ReferenceEquals(_privateTable, _table))
        {
            // The mirror's leaf goes first (tdp_mmu_set_spte): a fault that comes while the Secure EPT loses the page finds no mapping, and waits for the invalidation.
            (GfnRange Gfns, Stage2Entry First)[] leaves = [.. PrivateLeaves(range)];
            unmapped |= Unmap(_privateTable, range);
            _vm.Backend.RemoveExternalSptes(current, leaves);
        }
        return unmapped;
    }

    /// <summary>kvm_mmu_slot_remove_write_access and its kin: stores fault again. Dirty logging splits leaves on the way.</summary>
    public void WriteProtect(KTask current, GfnRange range, bool split)
    {
        Lock.AssertHeld(current);
        Touch(_table, range, write: true);
        _table.WriteProtect(range, split);
    }

    /// <summary>All leaves of shared and private memory, in gfn order within each; for people.</summary>
    public IEnumerable<(GfnRange Gfns, Stage2Entry First)> Runs() =>
        ReferenceEquals(_privateTable, _table) ? _table.Runs() : _table.Runs().Concat(_privateTable.Runs());

    /// <summary>The leaves of private memory in a range, of vendors whose private memory has tables of its own.</summary>
    public IEnumerable<(GfnRange Gfns, Stage2Entry First)> PrivateLeaves(GfnRange range) => _privateTable.Runs(range);

    internal void CheckInvariants()
    {
        _table.CheckInvariants();
        _privateTable.CheckInvariants();
        if (InProgress < 0)
        {
            throw new InvalidOperationException("mmu_invalidate_in_progress is negative");
        }
    }

    // mmu_invalidate_retry_gfn
    private bool IsStale(Gfn gfn, ulong seq) => Seq != seq || IsInvalidated(gfn);

    private bool IsInvalidated(Gfn gfn) => InProgress != 0 && gfn.Value >= _rangeStart && gfn.Value < _rangeEnd;

    private bool Unmap(Stage2Table table, GfnRange range)
    {
        if (_vm.Host.Machine.Baton is not null && !range.IsEmpty)
        {
            range = table.Cover(range);
        }
        bool unmapped = table.Unmap(range);
        Touch(table, range, write: unmapped);
        return unmapped;
    }

    // Tells an explorer which gfns' leaves are looked at or changed.
    private void Touch(Stage2Table table, GfnRange range, bool write) => _vm.Host.Machine.Baton?.Touch(table, range.Start.Value, range.End.Value, write);

    private Stage2Table TableOf(bool isPrivate) => isPrivate ? _privateTable : _table;
}
