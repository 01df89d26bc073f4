namespace SimKvm.Exploration;

/// <summary>
/// Every schedule, but of those that differ only in the order of stretches that touch nothing in common, one: dynamic partial-order reduction (Flanagan and Godefroid 2005) with
/// sleep sets (Godefroid 1996). Depth first, without a bound.
/// </summary>
/// <remarks>
/// After each run the races in it are looked for: two stretches of two programs that conflict, and of which nothing else forces the order. For each, the place before the first
/// of them is marked, to be left towards the second there. Where two stretches meet in a lock, it is the takings that race; a program that waits for the lock is no choice while
/// the other holds it.
/// Invariant: a place's Slept are programs whose next stretch was explored further up and has met nothing since that it conflicts with.
/// </remarks>
internal sealed class ReducedSearch : DepthFirstSearch<ReducedSearch.Place>
{
    protected override int ChooseAtNewPlace(IReadOnlyList<Stretch> done, int enabled, int previous)
    {
        var place = new Place(enabled);
        if (done.Count > 0)
        {
            place.InheritSleep(Places[^1], done[^1].Footprint);
        }
        int awake = enabled & ~place.SleptMask;
        if (awake == 0)
        {
            return Redundant;
        }
        place.Chosen = Default(awake, previous);
        place.Wanted = 1 << place.Chosen;
        Places.Add(place);
        return place.Chosen;
    }

    public override void Ended(IReadOnlyList<Stretch> stretches, IReadOnlyList<Stretch> stuck)
    {
        for (int i = 0; i < stretches.Count; i++)
        {
            Places[i].Footprints[Places[i].Chosen] = stretches[i].Footprint;
        }
        FindRaces([.. stretches, .. stuck], stretches.Count);
    }

    // clocks[j][p] is the last stretch of program p that comes before stretch j in every equivalent order, j itself included; -1 for none.
    private void FindRaces(Stretch[] all, int done)
    {
        int[][] clocks = new int[all.Length][];
        int[] last = [.. Enumerable.Repeat(-1, PreparedScenario.MaxPrograms)];
        int[] none = [.. last];
        for (int j = 0; j < all.Length; j++)
        {
            Stretch later = all[j];
            int[] before = last[later.Program] < 0 ? none : clocks[last[later.Program]];
            int[] clock = [.. before], raced = [.. before];
            for (int i = Math.Min(j, done) - 1; i >= 0; i--)
            {
                Stretch earlier = all[i];
                int p = earlier.Program;
                if (p == later.Program || (clock[p] >= i && raced[p] >= i) || !earlier.Footprint.ConflictsWith(later.Footprint))
                {
                    continue;
                }
                if (raced[p] < i && !earlier.KeepsOut(later))
                {
                    Mark(all, i, j, before);
                    Merge(raced, clocks[i]);
                }
                Merge(clock, clocks[i]);
            }
            clock[later.Program] = j;
            clocks[j] = clock;
            if (j < done)
            {
                last[later.Program] = j;
            }
        }
    }

    // The place before stretch i is to be left towards stretch j: by j's program, or by one whose stretch j's program has waited for in between. Where none of them can go on
    // there, by all that can.
    private void Mark(Stretch[] all, int i, int j, int[] before)
    {
        Place place = Places[i];
        int towards = 1 << all[j].Program;
        for (int k = i + 1; k < j; k++)
        {
            towards |= before[all[k].Program] >= k ? 1 << all[k].Program : 0;
        }
        towards &= place.Enabled;
        if (towards == 0)
        {
            place.Wanted |= place.Enabled;
        }
        else if ((towards & (place.Wanted | place.Explored)) == 0)
        {
            place.Wanted |= (towards & (1 << all[j].Program)) != 0 ? 1 << all[j].Program : towards & -towards;
        }
    }

    private static void Merge(int[] into, int[] from)
    {
        for (int p = 0; p < into.Length; p++)
        {
            into[p] = Math.Max(into[p], from[p]);
        }
    }

    /// <summary>A place on the path from the beginning to the run under way.</summary>
    internal sealed class Place(int enabled) : DepthFirstPlace
    {
        private readonly Footprint?[] _slept = new Footprint?[PreparedScenario.MaxPrograms];

        public int Enabled { get; } = enabled;

        /// <summary>Programs by which the place is to be left, sooner or later.</summary>
        public int Wanted { get; set; }

        public override int Left => Wanted & Enabled & ~Explored & ~SleptMask;

        public int SleptMask { get; private set; }

        /// <summary>What each program that left the place did next.</summary>
        public Footprint?[] Footprints { get; } = new Footprint?[PreparedScenario.MaxPrograms];

        public void InheritSleep(Place parent, Footprint step)
        {
            for (int p = 0; p < _slept.Length; p++)
            {
                Footprint? next = p == parent.Chosen ? null : (parent.Explored & (1 << p)) != 0 ? parent.Footprints[p] : parent._slept[p];
                if (next is not null && !next.ConflictsWith(step))
                {
                    _slept[p] = next;
                    SleptMask |= 1 << p;
                }
            }
        }
    }
}
