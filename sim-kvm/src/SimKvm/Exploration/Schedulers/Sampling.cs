namespace SimKvm.Exploration;

/// <summary>Each time somebody, all with the same chance.</summary>
internal sealed class RandomWalk(ulong seed) : Scheduler
{
    private Dice _dice = new(seed);

    public override bool TryBegin() => true;

    public override int Choose(IReadOnlyList<Stretch> done, int enabled, int previous) => _dice.OneOf(enabled);
}

/// <summary>
/// Probabilistic concurrency testing (Burckhardt and others 2010): programs have random priorities, the highest that can go on does, and at depth - 1 random places the one that
/// runs drops below all others. A bug that needs so many orderings is met by one run with a chance of at least 1 in programs * stretches^(depth - 1).
/// </summary>
internal sealed class PriorityWalk(ulong seed, int depth) : Scheduler
{
    private const int FirstGuess = 64;

    private readonly int[] _priorities = new int[PreparedScenario.MaxPrograms];
    private readonly int[] _drops = new int[Math.Max(depth - 1, 0)];
    private Dice _dice = new(seed);

    // The longest run so far: places are drawn below it.
    private int _length = FirstGuess;

    public override bool TryBegin()
    {
        // Priorities above the ones that drops give, which go down from depth - 1.
        for (int i = 0; i < _priorities.Length; i++)
        {
            _priorities[i] = depth + i;
        }
        for (int i = _priorities.Length - 1; i > 0; i--)
        {
            int j = _dice.Below(i + 1);
            (_priorities[i], _priorities[j]) = (_priorities[j], _priorities[i]);
        }
        for (int i = 0; i < _drops.Length; i++)
        {
            _drops[i] = _dice.Below(_length);
        }
        return true;
    }

    public override int Choose(IReadOnlyList<Stretch> done, int enabled, int previous)
    {
        for (int i = 0; i < _drops.Length; i++)
        {
            if (_drops[i] == done.Count)
            {
                _priorities[Highest(enabled)] = _drops.Length - i;
            }
        }
        return Highest(enabled);
    }

    public override void Ended(IReadOnlyList<Stretch> stretches, IReadOnlyList<Stretch> stuck) => _length = Math.Max(_length, stretches.Count);

    private int Highest(int enabled)
    {
        int best = int.TrailingZeroCount(enabled);
        for (int program = best + 1; program < _priorities.Length; program++)
        {
            best = (enabled & (1 << program)) != 0 && _priorities[program] > _priorities[best] ? program : best;
        }
        return best;
    }
}

/// <summary>One schedule, as it was written down. Behind its end the program that runs goes on as long as it can, then the first that can.</summary>
internal sealed class Replay(Schedule schedule) : Scheduler
{
    private bool _begun;

    public override bool TryBegin()
    {
        bool first = !_begun;
        _begun = true;
        return first;
    }

    public override int Choose(IReadOnlyList<Stretch> done, int enabled, int previous) => schedule.ProgramAt(done.Count) ?? Default(enabled, previous);
}
