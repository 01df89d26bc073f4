using SimKvm.Locking;

namespace SimKvm.Exploration;

/// <summary>A piece of shared state that a stretch of a program touched: part of an object, or a lock.</summary>
internal readonly record struct Access(int State, ulong Start, ulong End, bool Write)
{
    public bool ConflictsWith(in Access other) => State == other.State && (Write || other.Write) && Start < other.End && other.Start < End;
}

/// <summary>
/// What the stretch of a program between two of its steps touched. Two stretches of two programs whose footprints do not conflict can be exchanged: whatever comes after
/// cannot tell which came first.
/// </summary>
internal sealed class Footprint
{
    private readonly List<Access> _accesses = [];

    public void Add(in Access access)
    {
        foreach (ref readonly Access each in System.Runtime.InteropServices.CollectionsMarshal.AsSpan(_accesses))
        {
            if (each.State == access.State && each.Start <= access.Start && each.End >= access.End && (each.Write || !access.Write))
            {
                return;
            }
        }
        _accesses.Add(access);
    }

    public bool ConflictsWith(Footprint other)
    {
        foreach (ref readonly Access mine in System.Runtime.InteropServices.CollectionsMarshal.AsSpan(_accesses))
        {
            foreach (ref readonly Access its in System.Runtime.InteropServices.CollectionsMarshal.AsSpan(other._accesses))
            {
                if (mine.ConflictsWith(its))
                {
                    return true;
                }
            }
        }
        return false;
    }
}

/// <summary>
/// Numbers for the objects that are touched, the same in every run, so that footprints of different runs can be compared. What exists when the programs begin is numbered in
/// the host's own order. What programs make has no such order; it shares one number with everything of its kind, which makes more stretches look dependent than are, and never
/// fewer.
/// </summary>
internal sealed class StateNumbers
{
    private readonly Dictionary<object, int> _numbers = new(ReferenceEqualityComparer.Instance);
    private readonly Dictionary<object, int> _kinds;

    /// <param name="existing">What exists now.</param>
    /// <param name="kinds">Numbers of kinds; one table for all runs of an exploration.</param>
    public StateNumbers(IEnumerable<object> existing, Dictionary<object, int> kinds)
    {
        _kinds = kinds;
        foreach (object state in existing)
        {
            _numbers.TryAdd(state, _numbers.Count);
        }
    }

    public int Of(object state)
    {
        if (_numbers.TryGetValue(state, out int number))
        {
            return number;
        }
        object kind = state is SimLock held ? held.Class : state is LockClass ? state : state.GetType();
        if (!_kinds.TryGetValue(kind, out number))
        {
            _kinds.Add(kind, number = -1 - _kinds.Count);
        }
        return number;
    }

    /// <summary>A lock as a piece of state; folio locks are one object, apart by frame.</summary>
    public Access Of(in HeldLock held, bool write) => new(Of(held.Identity), held.Key, held.Key + 1, write);
}
