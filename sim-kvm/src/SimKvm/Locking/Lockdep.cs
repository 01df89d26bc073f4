
namespace SimKvm.Locking;

/// <summary>
/// Learns in which order lock classes are taken and reports, as findings: an order that closes a cycle (lock-inversion), a lock taken twice by its holder
/// (lock-recursion), and a sleeping lock taken under a spinning one (sleep-in-atomic). Always on; each pair is reported once.
/// </summary>
/// <remarks>
/// As in the kernel's validator, what counts is classes and not instances, and readers count like writers. A class has one bit in a word, so the graph is ten
/// words and an edge that is known costs one test.
/// </remarks>
internal sealed class Lockdep
{
    private readonly ushort[] _followers = new ushort[LockOrder.All.Count];
    private readonly ushort[] _reported = new ushort[LockOrder.All.Count];
    private readonly ulong[] _learnedInCall = new ulong[LockOrder.All.Count * LockOrder.All.Count];

    public void Acquiring(KTask current, LockClass wanted, SimLock? instance, ulong key, bool shared)
    {
        foreach (ref readonly HeldLock held in current.Held.Items)
        {
            bool sameLock = held.Class == wanted && ReferenceEquals(held.Instance, instance) && held.Key == key;
            if (sameLock || (held.Class == wanted && !wanted.NestsInItself))
            {
                if (sameLock && held.Shared && shared)
                {
                    continue;
                }
                Report(current, held.Class, wanted, "lock-recursion", $"{wanted} is taken while it is held: the task would wait for itself");
            }
            else if (held.Class != wanted)
            {
                if (held.Class.Atomic && !wanted.Atomic)
                {
                    Report(current, held.Class, wanted, "sleep-in-atomic", $"{wanted} may sleep but is taken under {held.Class}, which spins");
                }
                Learn(current, held.Class, wanted);
            }
        }
    }

    /// <summary>might_sleep(): the caller is about to do something that may sleep.</summary>
    public void MightSleep(KTask current, string what)
    {
        foreach (ref readonly HeldLock held in current.Held.Items)
        {
            if (held.Class.Atomic)
            {
                Report(current, held.Class, held.Class, "sleep-in-atomic", $"{what} may sleep but is called under {held.Class}, which spins");
            }
        }
    }

    /// <summary>The pairs seen so far: the first was held when the second was taken.</summary>
    public IEnumerable<(LockClass Outer, LockClass Inner)> Edges()
    {
        foreach (LockClass outer in LockOrder.All)
        {
            foreach (LockClass inner in LockOrder.All)
            {
                if ((_followers[outer.Rank] & (1 << inner.Rank)) != 0)
                {
                    yield return (outer, inner);
                }
            }
        }
    }

    private void Learn(KTask current, LockClass outer, LockClass inner)
    {
        if ((_followers[outer.Rank] & (1 << inner.Rank)) != 0)
        {
            return;
        }
        if (PathExists(inner, outer))
        {
            Report(
                current, outer, inner, "lock-inversion",
                $"{inner} is taken under {outer}, but call {_learnedInCall[inner.Rank * LockOrder.All.Count + outer.Rank]} took them the other way round: two tasks can wait for each other for ever");
        }
        _followers[outer.Rank] |= (ushort)(1 << inner.Rank);
        _learnedInCall[outer.Rank * LockOrder.All.Count + inner.Rank] = current.Call;
    }

    private bool PathExists(LockClass from, LockClass to)
    {
        int reached = _followers[from.Rank];
        while (true)
        {
            int next = reached;
            for (int rank = 0; rank < _followers.Length; rank++)
            {
                if ((reached & (1 << rank)) != 0)
                {
                    next |= _followers[rank];
                }
            }
            if (next == reached)
            {
                return (reached & (1 << to.Rank)) != 0;
            }
            reached = next;
        }
    }

    private void Report(KTask current, LockClass outer, LockClass inner, string kind, string text)
    {
        if ((_reported[outer.Rank] & (1 << inner.Rank)) != 0)
        {
            return;
        }
        _reported[outer.Rank] |= (ushort)(1 << inner.Rank);
        var held = new List<string>();
        foreach (ref readonly HeldLock each in current.Held.Items)
        {
            held.Add($"holds {each.Class}{(each.Shared ? " (shared)" : "")}");
        }
        held.Add($"call {current.Call} takes {inner}");
        current.Machine.Findings.Report(current, kind, text, [], held);
    }
}
