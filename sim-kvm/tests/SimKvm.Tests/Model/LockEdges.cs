using SimKvm.Locking;

namespace SimKvm.Tests.Model;

/// <summary>Which lock may be taken under which: the lines of kvm-guest-memory.md 1.2, and what follows from joining them.</summary>
internal static class LockEdges
{
    // Each line is a chain, outermost first.
    private static readonly LockClass[][] s_chains =
    [
        [LockOrder.KvmLock, LockOrder.Vm],
        [LockOrder.Vm, LockOrder.Vcpu],
        [LockOrder.Vm, LockOrder.Slots],
        [LockOrder.Slots, LockOrder.SlotsArch],
        [LockOrder.Slots, LockOrder.Invalidate, LockOrder.Folio],
        [LockOrder.Invalidate, LockOrder.Mmu],
        // synchronize_srcu of a slot change; a fault reads under SRCU.
        [LockOrder.Slots, LockOrder.Srcu],
        [LockOrder.Vcpu, LockOrder.Srcu, LockOrder.Folio],
        [LockOrder.Srcu, LockOrder.Mmu],
        [LockOrder.Srcu, LockOrder.Mmap],
        [LockOrder.Mmap, LockOrder.Folio],
        // MMU notifiers.
        [LockOrder.Mmap, LockOrder.Mmu],
        // Not a line of 1.2: a launch ioctl pins the source of populate, or its callback reads it, under slots_lock (10.2, 10.4).
        [LockOrder.Slots, LockOrder.Mmap],
    ];

    public static IReadOnlySet<(LockClass Outer, LockClass Inner)> Allowed { get; } = Join();

    private static HashSet<(LockClass, LockClass)> Join()
    {
        var edges = s_chains.SelectMany(chain => chain.Zip(chain.Skip(1))).ToHashSet();
        int before;
        do
        {
            before = edges.Count;
            edges.UnionWith([.. from a in edges from b in edges where a.Second == b.First select (a.First, b.Second)]);
        }
        while (edges.Count > before);
        return edges;
    }
}
