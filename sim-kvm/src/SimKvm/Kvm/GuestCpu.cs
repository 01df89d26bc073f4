using SimMachine.Addressing;
using SimMachine.Intel;
using SimMachine.Stepping;

namespace SimKvm.Kvm;

/// <summary>
/// The guest's side of a vCPU: executes its program step by step, as a processor executes instructions. An access that stage 2 does not allow leaves the guest; when KVM
/// comes back, the same access is made again from where it stopped.
/// </summary>
/// <remarks>A memory step is executed page by page, each part an instruction of its own; parts that were done stay done.</remarks>
internal sealed class GuestCpu(Vcpu vcpu)
{
    private static readonly StepLabel ExecuteStep = new("guest step");

    private readonly List<GuestStepResult> _results = [];
    private GuestStep[] _program = [];

    // The routine under way, where the current step is one.
    private RunningRoutine? _routine;

    // Bytes of the current memory step that are done, and what it read so far.
    private ulong _done;
    private byte[] _buffer = [];
    private ulong? _mismatchAt;

    /// <summary>The next step; equal to the length of the program at its end.</summary>
    public int Pc { get; private set; }

    public int Length => _program.Length;

    /// <summary>VM privilege level of an SNP guest, 0 to 3.</summary>
    public int Vmpl { get; set; }

    /// <summary>Results of the steps done since the last time somebody took them.</summary>
    public IReadOnlyList<GuestStepResult> TakeResults()
    {
        GuestStepResult[] taken = [.. _results];
        _results.Clear();
        return taken;
    }

    /// <summary>Replaces the program and starts it from its first step.</summary>
    public void Load(IEnumerable<GuestStep> program)
    {
        _program = [.. program];
        _results.Clear();
        _routine = null;
        Pc = 0;
        Begin();
    }

    /// <summary>The step to execute, of a routine its next instruction; behind the program's end, a halt without end.</summary>
    public GuestStep Current(KTask current)
    {
        current.Step(ExecuteStep, (ulong)Pc, _done);
        GuestStep step = Pc < _program.Length ? _program[Pc] : Idle;
        if (step is GuestRoutine routine)
        {
            _routine ??= new RunningRoutine(routine);
            return _routine.Instruction;
        }
        return step;
    }

    /// <summary>The part of a memory step that comes next: where, and how many bytes up to the end of the page or of the step.</summary>
    public (ulong Gpa, int Length) NextPart(GuestMemoryStep step)
    {
        ulong gpa = step.Gpa + _done;
        ulong left = Math.Min(step.Length - _done, PageSize.Bytes - (gpa & PageSize.OffsetMask));
        return (gpa, (int)left);
    }

    public bool IsDone(GuestMemoryStep step) => _done == step.Length;

    /// <summary>The bytes that a store stores next.</summary>
    public void Outgoing(GuestMemoryStep step, Span<byte> part)
    {
        switch (step)
        {
            case GuestWrite write:
                write.Data.Span.Slice((int)_done, part.Length).CopyTo(part);
                break;
            case GuestFill fill:
                Repeat(fill.Pattern.Span, _done, part);
                break;
        }
    }

    /// <summary>Takes in what a load loaded, or that a store was done.</summary>
    public void Advance(GuestMemoryStep step, ReadOnlySpan<byte> part)
    {
        switch (step)
        {
            case GuestRead read:
                if (_buffer.Length == 0)
                {
                    _buffer = new byte[read.Length];
                }
                part.CopyTo(_buffer.AsSpan((int)_done));
                break;
            case GuestCompare compare when _mismatchAt is null:
                var expected = new byte[part.Length];
                Repeat(compare.Pattern.Span, _done, expected);
                int same = part.CommonPrefixLength(expected);
                _mismatchAt = same < part.Length ? _done + (ulong)same : null;
                break;
        }
        _done += (ulong)part.Length;
    }

    /// <summary>The step is over: the next one is the program's next.</summary>
    /// <param name="exception">The step raised an exception in the guest, which skips the rest of it.</param>
    /// <param name="causes">Why it was not done, where the guest only learns a number.</param>
    public void Retire(
        ReadOnlyMemory<byte> data = default, ulong rax = 0, bool carry = false, GuestException? exception = null, IReadOnlyList<Cause>? causes = null,
        TdcallRegisters? registers = null)
    {
        if (Pc < _program.Length)
        {
            var result = new GuestStepResult(Pc, _buffer.Length > 0 ? _buffer : data, rax, carry, _mismatchAt, exception) { Causes = causes ?? [], Registers = registers };
            if (_routine is { } routine)
            {
                if (routine.Continues(result))
                {
                    Begin();
                    return;
                }
                result = routine.Result(result);
                _routine = null;
            }
            _results.Add(result);
            Pc++;
        }
        Begin();
    }

    /// <summary>Whether the guest's access is private.</summary>
    public bool IsPrivate(GuestAccess access, Gfn gfn) => vcpu.IsPrivateAccess(gfn, access);

    private static GuestHalt Idle { get; } = new();

    private void Begin()
    {
        _done = 0;
        _buffer = [];
        _mismatchAt = null;
    }

    private static void Repeat(ReadOnlySpan<byte> pattern, ulong offset, Span<byte> destination)
    {
        int at = (int)(offset % (ulong)pattern.Length);
        while (!destination.IsEmpty)
        {
            int take = Math.Min(pattern.Length - at, destination.Length);
            pattern.Slice(at, take).CopyTo(destination);
            destination = destination[take..];
            at = 0;
        }
    }
}
