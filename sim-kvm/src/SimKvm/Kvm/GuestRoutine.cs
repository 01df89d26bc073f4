namespace SimKvm.Kvm;

/// <summary>
/// Software of the guest: a step that takes several instructions, where a later one depends on what an earlier one brought. Each instruction can leave the guest and is made
/// again, as any step; the routine goes on behind it.
/// </summary>
public abstract record GuestRoutine : GuestStep
{
    /// <summary>The instructions, at least one; between two of them the routine looks at <see cref="GuestRoutineState.Last"/>.</summary>
    internal abstract IEnumerable<GuestStep> Instructions(GuestRoutineState state);
}

/// <summary>What a routine sees of its instructions, and what it leaves as the result of the step.</summary>
internal sealed class GuestRoutineState
{
    /// <summary>Of the last instruction.</summary>
    public GuestStepResult Last { get; set; } = null!;

    public ReadOnlyMemory<byte> Data { get; set; }

    public ulong Rax { get; set; }

    public Vendors.Amd.Guests.GhcbReply? Ghcb { get; set; }

    public Vendors.Amd.Guests.GuestMessageResult? Message { get; set; }
}

/// <summary>A routine that a vCPU is in the middle of. An exception ends it.</summary>
internal sealed class RunningRoutine
{
    private readonly GuestRoutineState _state = new();
    private readonly List<SimMachine.Stepping.Cause> _causes = [];
    private readonly IEnumerator<GuestStep> _instructions;

    public RunningRoutine(GuestRoutine routine)
    {
        _instructions = routine.Instructions(_state).GetEnumerator();
        if (!_instructions.MoveNext())
        {
            throw new InvalidOperationException($"{routine} has no instructions");
        }
    }

    public GuestStep Instruction => _instructions.Current;

    /// <summary>An instruction is done; whether another one follows.</summary>
    public bool Continues(GuestStepResult done)
    {
        _state.Last = done;
        _causes.AddRange(done.Causes);
        return done.Exception is null && _instructions.MoveNext();
    }

    /// <summary>What the step brought, behind its last instruction.</summary>
    public GuestStepResult Result(GuestStepResult last) =>
        new(last.Step, _state.Data, _state.Rax, false, null, last.Exception) { Ghcb = _state.Ghcb, Message = _state.Message, Causes = _causes };
}
