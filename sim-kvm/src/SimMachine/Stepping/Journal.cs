namespace SimMachine.Stepping;

/// <summary>Name of a kind of step, declared once as a static and compared by reference.</summary>
public sealed class StepLabel(string name)
{
    public string Name { get; } = name;

    public override string ToString() => Name;
}

/// <summary>One step: its number (from 1), what, in which call, by whom, and two operands whose meaning is the label's.</summary>
public readonly record struct StepRecord(ulong Step, StepLabel Label, ulong Call, int Thread, ulong A, ulong B);

/// <summary>
/// The steps of a machine, in order: a ring of fixed-size records. The count of steps is the machine's only clock.
/// </summary>
public sealed class Journal
{
    private const int FirstCapacity = 64;
    private const int LastCapacity = 1 << 14;

    // The ring doubles until it is large, so that an idle host stays small; then it wraps. Records keep their place: step s is at (s - 1) % length once the
    // ring is at its last size, and at s - 1 before.
    private StepRecord[] _ring = [];

    /// <summary>Steps taken since the machine was made.</summary>
    public ulong Steps { get; private set; }

    /// <summary>The newest record; nothing before the first step.</summary>
    public StepRecord Newest => Steps == 0 ? default : _ring[(int)((Steps - 1) & (LastCapacity - 1))];

    internal void Append(in StepRecord record)
    {
        int index = (int)(Steps & (LastCapacity - 1));
        if (index >= _ring.Length)
        {
            Array.Resize(ref _ring, Math.Max(FirstCapacity, _ring.Length * 2));
        }
        _ring[index] = record;
        Steps++;
    }

    /// <summary>The records still held with a number of at least <paramref name="fromStep"/>, oldest first.</summary>
    public IEnumerable<StepRecord> Read(ulong fromStep)
    {
        ulong oldest = Steps > LastCapacity ? Steps - LastCapacity + 1 : 1;
        for (ulong step = Math.Max(fromStep, oldest); step <= Steps; step++)
        {
            yield return _ring[(int)((step - 1) & (LastCapacity - 1))];
        }
    }
}
