namespace SimMachine.Stepping;

/// <summary>
/// A thread of execution on a simulated machine: the one who executes instructions, issues firmware commands and takes locks.
/// It carries the two things that travel with an execution: the step counter's journal, and the causes of the refusal under way.
/// </summary>
/// <remarks>
/// An operating system derives its task from this. The chain of causes starts empty at the entry of a call (<see cref="BeginCall"/>) and grows from the root
/// outwards: the check that refused first is the first entry.
/// </remarks>
public abstract class SimThread
{
    private readonly List<Cause> _causes = [];

    protected SimThread(Machine machine, int id)
    {
        Machine = machine;
        Id = id;
    }

    public Machine Machine { get; }

    /// <summary>Number of the thread on its machine.</summary>
    public int Id { get; }

    /// <summary>Number of the call being executed, from 1; 0 outside calls.</summary>
    public ulong Call { get; private set; }

    /// <summary>Why the call under way was refused, the root first.</summary>
    public IReadOnlyList<Cause> Causes => _causes;

    /// <summary>
    /// Marks a point at which shared state is about to change or another thread could run. Every simulated lock calls it before it acquires, every instruction
    /// that changes shared state before it does.
    /// </summary>
    public void Step(StepLabel label, ulong a = 0, ulong b = 0)
    {
        Journal journal = Machine.Journal;
        journal.Append(new StepRecord(journal.Steps + 1, label, Call, Id, a, b));
        Machine.StepWatcher?.Invoke(this, label);
        Machine.Baton?.Pass(this, label);
    }

    /// <summary>Starts a call: causes of the previous one are forgotten.</summary>
    public void BeginCall(ulong call)
    {
        Call = call;
        _causes.Clear();
    }

    public void EndCall() => Call = 0;

    /// <summary>Records that a check refused.</summary>
    /// <param name="rule">The rule.</param>
    /// <param name="code">What the check answers, as a name.</param>
    /// <param name="operands">As many numbers as the rule declares.</param>
    public void Refuse(Rule rule, string code, params ReadOnlySpan<ulong> operands) =>
        _causes.Add(new Cause(rule, code, Machine.Journal.Steps, operands));

    /// <summary>Forgets causes recorded after <paramref name="count"/>: a failed attempt that the caller recovers from is not a reason.</summary>
    public void ForgetCausesAfter(int count)
    {
        if (count < _causes.Count)
        {
            _causes.RemoveRange(count, _causes.Count - count);
        }
    }
}
