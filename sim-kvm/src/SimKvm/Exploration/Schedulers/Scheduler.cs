namespace SimKvm.Exploration;

/// <summary>
/// Decides which schedules are run: an oracle with two questions, whether there is another run and who is next. Everything else is the explorer's.
/// </summary>
internal abstract class Scheduler
{
    /// <summary>What <see cref="Choose"/> answers when the run is not worth going on with.</summary>
    public const int Redundant = -1;

    /// <summary>Another run, from the beginning?</summary>
    public abstract bool TryBegin();

    /// <summary>Who is next.</summary>
    /// <param name="done">The stretches of this run so far.</param>
    /// <param name="enabled">Programs that can go on, as a mask; never 0.</param>
    /// <param name="previous">Who went before, -1 at the beginning.</param>
    public abstract int Choose(IReadOnlyList<Stretch> done, int enabled, int previous);

    /// <summary>Who went before stands at the beginning of a call, or is done.</summary>
    public bool PreviousIsBetweenCalls { get; set; }

    /// <summary>The run is over.</summary>
    /// <param name="stretches">What was done.</param>
    /// <param name="stuck">In a deadlock, what each program that is not done would do next.</param>
    public virtual void Ended(IReadOnlyList<Stretch> stretches, IReadOnlyList<Stretch> stuck)
    {
    }

    /// <summary>There is no run that was not made, within what the scheduler looks at.</summary>
    public virtual bool Exhausted => false;

    /// <summary>Whom to choose where nothing speaks for another: who went before, else the first.</summary>
    public static int Default(int enabled, int previous) => previous >= 0 && (enabled & (1 << previous)) != 0 ? previous : int.TrailingZeroCount(enabled);
}

/// <summary>Numbers from a seed (SplitMix64).</summary>
internal struct Dice(ulong seed)
{
    private ulong _state = seed;

    public ulong Next()
    {
        ulong z = _state += 0x9e3779b97f4a7c15;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
        z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
        return z ^ (z >> 31);
    }

    public int Below(int limit) => (int)(Next() % (ulong)limit);

    /// <summary>One of the bits of a mask.</summary>
    public int OneOf(int mask)
    {
        for (int skip = Below(int.PopCount(mask)); skip > 0; skip--)
        {
            mask &= mask - 1;
        }
        return int.TrailingZeroCount(mask);
    }
}
