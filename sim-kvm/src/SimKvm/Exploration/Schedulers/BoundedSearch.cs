namespace SimKvm.Exploration;

/// <summary>
/// Every schedule with at most so many preemptions, depth first. A switch away from a program that could have gone on is one; a switch away from one that waits or is done is free
/// (Musuvathi and Qadeer 2007). Most races need one or two.
/// </summary>
internal sealed class BoundedSearch(int bound) : Scheduler
{
    private readonly List<Node> _nodes = [];
    private bool _started;
    private bool _exhausted;

    public override bool Exhausted => _exhausted;

    public override bool TryBegin()
    {
        if (!_started)
        {
            return _started = true;
        }
        while (_nodes.Count > 0)
        {
            Node node = _nodes[^1];
            node.Explored |= 1 << node.Chosen;
            int left = node.Choices & ~node.Explored;
            if (left != 0)
            {
                _nodes[^1] = node with { Chosen = int.TrailingZeroCount(left), Explored = node.Explored };
                return true;
            }
            _nodes.RemoveAt(_nodes.Count - 1);
        }
        _exhausted = true;
        return false;
    }

    public override int Choose(IReadOnlyList<Stretch> done, int enabled, int previous)
    {
        if (done.Count < _nodes.Count)
        {
            return _nodes[done.Count].Chosen;
        }
        int preemptions = done.Count == 0 ? 0 : _nodes[^1].Preemptions + (done[^1].IsPreemption ? 1 : 0);
        int chosen = Default(enabled, previous);
        bool free = previous < 0 || (enabled & (1 << previous)) == 0;
        _nodes.Add(new Node(free || preemptions < bound ? enabled : 1 << chosen, preemptions) { Chosen = chosen });
        return chosen;
    }

    /// <param name="Choices">Programs by which the place may be left.</param>
    /// <param name="Preemptions">On the way to it.</param>
    private sealed record Node(int Choices, int Preemptions)
    {
        public int Chosen { get; set; }

        public int Explored { get; set; }
    }
}
