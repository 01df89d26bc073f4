namespace SimMachine.Stepping;

/// <summary>
/// Decides which thread runs next at each step. None is attached in live service, where a host runs one call at a time.
/// </summary>
public abstract class Baton
{
    /// <summary>Called on the running thread at each of its steps; returns when that thread may go on.</summary>
    public abstract void Pass(SimThread current, StepLabel label);

    /// <summary>
    /// The running thread looks at, or changes, state that other threads can reach. Two stretches of two threads that touch nothing in common can be exchanged without
    /// anybody noticing: that is all that an explorer needs to know to leave one of the two orders out.
    /// </summary>
    /// <param name="state">The object that has the state.</param>
    /// <param name="start">First of the keys in it (a gfn, a frame, an index), where its parts are apart from each other.</param>
    /// <param name="end">One past the last.</param>
    /// <param name="write">It is changed.</param>
    public virtual void Touch(object state, ulong start, ulong end, bool write)
    {
    }

    /// <summary>Until this is disposed the running thread keeps the baton and nothing it does is looked at: what a program does in its own memory for its own ends.</summary>
    public virtual IDisposable? Quietly() => null;
}
