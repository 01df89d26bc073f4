namespace SimKvm.Exploration;

/// <summary>
/// Every schedule with at most so many preemptions, depth first. A switch away from a program that could have gone on is one; a switch away from one that waits or is done is free
/// (Musuvathi and Qadeer 2007). Most races need one or two.
/// </summary>
internal sealed class BoundedSearch(int bound) : DepthFirstSearch<BoundedSearch.Place>
{
    protected override int ChooseAtNewPlace(IReadOnlyList<Stretch> done, int enabled, int previous)
    {
        int preemptions = done.Count == 0 ? 0 : Places[^1].Preemptions + (done[^1].IsPreemption ? 1 : 0);
        int chosen = Default(enabled, previous);
        bool free = previous < 0 || (enabled & (1 << previous)) == 0;
        Places.Add(new Place(free || preemptions < bound ? enabled : 1 << chosen, preemptions) { Chosen = chosen });
        return chosen;
    }

    /// <param name="choices">Programs by which the place may be left.</param>
    /// <param name="preemptions">On the way to it.</param>
    internal sealed class Place(int choices, int preemptions) : DepthFirstPlace
    {
        public int Preemptions => preemptions;

        public override int Left => choices & ~Explored;
    }
}
