namespace SimKvm.Exploration;

/// <summary>
/// Schedules depth first: a place for each stretch of the run, left one way at a time; the next run leaves the last place that has a way left by it. Which ways a place has is
/// the search's idea.
/// </summary>
internal abstract class DepthFirstSearch<TPlace> : Scheduler
    where TPlace : DepthFirstPlace
{
    private bool _started;
    private bool _exhausted;

    public override bool Exhausted => _exhausted;

    /// <summary>The places of the run under way, by stretch.</summary>
    protected List<TPlace> Places { get; } = [];

    public override bool TryBegin()
    {
        if (!_started)
        {
            return _started = true;
        }
        while (Places.Count > 0)
        {
            TPlace place = Places[^1];
            place.Explored |= 1 << place.Chosen;
            if (place.Left != 0)
            {
                place.Chosen = int.TrailingZeroCount(place.Left);
                return true;
            }
            Places.RemoveAt(Places.Count - 1);
        }
        _exhausted = true;
        return false;
    }

    public override int Choose(IReadOnlyList<Stretch> done, int enabled, int previous) =>
        done.Count < Places.Count ? Places[done.Count].Chosen : ChooseAtNewPlace(done, enabled, previous);

    /// <summary>The run comes to where none was: adds the place and leaves it, or says <see cref="Scheduler.Redundant"/>.</summary>
    protected abstract int ChooseAtNewPlace(IReadOnlyList<Stretch> done, int enabled, int previous);
}

/// <summary>A place in a schedule, with the programs by which it can be left, as masks.</summary>
internal abstract class DepthFirstPlace
{
    public int Chosen { get; set; }

    /// <summary>Those by which everything was seen.</summary>
    public int Explored { get; set; }

    /// <summary>Those by which it is yet to be left.</summary>
    public abstract int Left { get; }
}
