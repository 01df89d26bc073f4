using SimMachine.Addressing;

namespace SimKvm.Userspace;

/// <summary>
/// References to frames that outlive a call (FOLL_LONGTERM pins, as devices and io_uring hold them). A frame that its owner gives back while it is pinned lives on until the
/// last pin goes.
/// </summary>
internal sealed class PagePins(SimHost host)
{
    private readonly SortedDictionary<ulong, int> _counts = [];
    private readonly HashSet<ulong> _orphans = [];

    public int Count => _counts.Count;

    /// <summary>Frames that have no owner any more but their pins.</summary>
    public IEnumerable<Pfn> Orphans => _orphans.Select(pfn => new Pfn(pfn));

    public void Pin(Pfn pfn)
    {
        host.Machine.Writing(this, pfn.Value, pfn.Value + 1);
        _counts[pfn.Value] = _counts.GetValueOrDefault(pfn.Value) + 1;
    }

    public void Unpin(KTask current, Pfn pfn)
    {
        host.Machine.Writing(this, pfn.Value, pfn.Value + 1);
        if (--_counts[pfn.Value] > 0)
        {
            return;
        }
        _counts.Remove(pfn.Value);
        if (_orphans.Remove(pfn.Value))
        {
            host.Machine.FreeFrame(current, pfn);
        }
    }

    /// <summary>The owner drops its reference.</summary>
    public void Free(KTask current, Pfn pfn)
    {
        host.Machine.Reading(this, pfn.Value, pfn.Value + 1);
        if (_counts.ContainsKey(pfn.Value))
        {
            _orphans.Add(pfn.Value);
        }
        else
        {
            host.Machine.FreeFrame(current, pfn);
        }
    }

    /// <summary>The lowest pinned frame of a run of frames.</summary>
    public bool TryFindPinned(Pfn first, ulong count, out Pfn pinned)
    {
        host.Machine.Reading(this, first.Value, first.Value + count);
        foreach (ulong pfn in _counts.Keys)
        {
            if (pfn >= first.Value && pfn - first.Value < count)
            {
                pinned = new Pfn(pfn);
                return true;
            }
        }
        pinned = default;
        return false;
    }
}
