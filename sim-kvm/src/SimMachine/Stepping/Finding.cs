namespace SimMachine.Stepping;

/// <summary>
/// Something that a real machine would have suffered from (a fault in the host, a lock inversion, a page freed while it belongs to a guest), with who is to
/// blame. A finding is a product output: never silent, never an exception.
/// </summary>
/// <param name="Kind">Stable kind, for example <c>host-rmp-fault</c>.</param>
/// <param name="Text">One sentence for a person.</param>
/// <param name="Operands">The numbers in it.</param>
/// <param name="Step">Step of the journal at which it happened.</param>
/// <param name="Call">Call in which it happened.</param>
/// <param name="Blame">Who brought the state about, oldest first.</param>
public sealed record Finding(string Kind, string Text, IReadOnlyList<Operand> Operands, ulong Step, ulong Call, IReadOnlyList<string> Blame);

/// <summary>The findings of a machine, in order; bounded, the count goes on.</summary>
public sealed class FindingLog
{
    private const int Kept = 1024;
    private readonly List<Finding> _findings = [];

    /// <summary>Findings reported so far, kept or not.</summary>
    public ulong Count { get; private set; }

    /// <summary>The first findings, oldest first; later ones than the bound are only counted.</summary>
    public IReadOnlyList<Finding> All => _findings;

    public void Report(SimThread thread, string kind, string text, IReadOnlyList<Operand> operands, IReadOnlyList<string> blame)
    {
        Count++;
        if (_findings.Count < Kept)
        {
            _findings.Add(new Finding(kind, text, operands, thread.Machine.Journal.Steps, thread.Call, blame));
        }
    }
}
