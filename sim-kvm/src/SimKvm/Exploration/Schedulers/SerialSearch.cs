namespace SimKvm.Exploration;

/// <summary>Every order of the programs' calls, each call whole: what a kernel with one big lock could do.</summary>
internal sealed class SerialSearch : Scheduler
{
    private readonly List<(int Enabled, int Chosen, int Explored)> _nodes = [];
    private bool _started;

    public override bool TryBegin()
    {
        if (!_started)
        {
            return _started = true;
        }
        while (_nodes.Count > 0)
        {
            (int enabled, int chosen, int explored) = _nodes[^1];
            explored |= 1 << chosen;
            if ((enabled & ~explored) != 0)
            {
                _nodes[^1] = (enabled, int.TrailingZeroCount(enabled & ~explored), explored);
                return true;
            }
            _nodes.RemoveAt(_nodes.Count - 1);
        }
        return false;
    }

    public override int Choose(IReadOnlyList<Stretch> done, int enabled, int previous)
    {
        if (done.Count < _nodes.Count)
        {
            return _nodes[done.Count].Chosen;
        }
        int chosen = Default(enabled, previous);
        _nodes.Add((PreviousIsBetweenCalls || chosen != previous ? enabled : 1 << chosen, chosen, 0));
        return chosen;
    }
}
