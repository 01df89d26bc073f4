using SimMachine.Stepping;

namespace SimKvm.Exploration;

/// <summary>What a program did from one of its steps to its next, or would do.</summary>
/// <param name="Program">Index of the program.</param>
/// <param name="Label">The step that it begins with.</param>
/// <param name="Record">That step in the journal; nothing where it begins a call.</param>
/// <param name="What">The call in words.</param>
internal sealed record Stretch(int Program, StepLabel Label, StepRecord Record, string What)
{
    public ulong Call { get; init; }

    public bool BeginsCall { get; init; }

    /// <summary>Programs that could have gone on here, as a mask.</summary>
    public int Enabled { get; init; }

    /// <summary>Another program went before.</summary>
    public bool IsSwitch { get; init; }

    /// <summary>And that one could have gone on.</summary>
    public bool IsPreemption { get; init; }

    public Footprint Footprint { get; } = new();

    /// <summary>Locks that the program held when it began.</summary>
    public IReadOnlyList<Access> Holds { get; init; } = [];

    /// <summary>The lock that it takes first.</summary>
    public Access? Takes { get; set; }

    /// <summary>The lock is read by others, and all it does is to stand in line for it.</summary>
    public bool Queues { get; set; }

    /// <summary>The other cannot go on while this one's program stands here: it holds the lock that the other takes.</summary>
    public bool KeepsOut(Stretch other)
    {
        if (other.Takes is not { } wanted || other.Queues)
        {
            return false;
        }
        foreach (Access held in Holds)
        {
            if (held.ConflictsWith(wanted))
            {
                return true;
            }
        }
        return false;
    }
}
