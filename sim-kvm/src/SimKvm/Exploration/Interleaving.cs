using SimKvm.Locking;
using SimMachine.Stepping;

namespace SimKvm.Exploration;

/// <summary>Why a run came to its end.</summary>
internal enum RunEnd
{
    /// <summary>All programs are done.</summary>
    Done,

    /// <summary>Nobody can go on: each waits for what another holds.</summary>
    Deadlock,

    /// <summary>The scheduler gave it up: what would come has been seen in another order.</summary>
    Redundant,

    /// <summary>A replayed schedule names a program that cannot go on there.</summary>
    Diverged,

    /// <summary>The run is longer than a run may be.</summary>
    TooLong,

    /// <summary>A program failed: a bug of ours.</summary>
    Failed,
}

/// <summary>
/// One run of a scenario's programs on one host. Each program is a thread of this process that runs while it has the baton; at every step of the simulated kernel the baton may
/// go to another. So kernel flows stay ordinary code, and a step at which the same program goes on costs no switch.
/// </summary>
/// <remarks>
/// A stretch is what a program does from one of its steps to its next. Chosen at a step is only who can go on: a program that stands before a lock if it would get it, one that
/// must retry a fault if what it waits for has come. So a chosen program never waits, and when nobody can be chosen the programs wait for each other.
/// Exactly one thread runs at any time, the explorer's or the one with the baton, and each hand-over is a barrier. That is why nothing here is locked.
/// What who waits for is in <c>Interleaving.Waiting.cs</c>.
/// </remarks>
internal sealed partial class Interleaving : Baton
{
    private readonly SimHost _host;
    private readonly Strand[] _strands;
    private readonly Scheduler _scheduler;
    private readonly StateNumbers _numbers;
    private readonly int _maxStretches;
    private readonly SemaphoreSlim _over;
    private readonly List<Stretch> _stretches = [];
    private readonly List<Stretch> _stuck = [];
    private Stretch? _current;
    private bool _launching;
    private bool _abandoned;
    private int _quiet;

    public Interleaving(SimHost host, PreparedScenario scenario, Scheduler scheduler, StateNumbers numbers, StrandPool pool, int maxStretches)
    {
        _host = host;
        _scheduler = scheduler;
        _numbers = numbers;
        _maxStretches = maxStretches;
        _over = pool.Over;
        _strands = [.. scenario.Programs.Select((program, i) => new Strand(i, program, program.Process.AddThread(), pool[i]))];
    }

    /// <summary>What was done, in order.</summary>
    public IReadOnlyList<Stretch> Stretches => _stretches;

    public RunEnd End { get; private set; }

    public int Programs => _strands.Length;

    /// <summary>Why it diverged or failed.</summary>
    public string Problem { get; private set; } = "";

    /// <summary>Looks before each stretch; for replay.</summary>
    public Action<Stretch>? Observer { get; init; }

    /// <summary>In a deadlock, what each program that is not done would do next.</summary>
    public IReadOnlyList<Stretch> Stuck => _stuck;

    /// <summary>Runs the programs, from their beginnings to the end of all of them.</summary>
    public void Run()
    {
        _host.Machine.Baton = this;
        KTask[] before = [.. _strands.Select(strand => strand.Program.Process.Switch(strand.Task))];

        // What a program does before its first call is nobody's business but its own.
        _launching = true;
        foreach (Strand strand in _strands)
        {
            strand.Program.Process.Switch(strand.Task);
            strand.Worker.Launch(() => Body(strand));
        }
        _launching = false;

        if (Next(-1) is { } first)
        {
            first.Worker.Resume();
            _over.Wait();
        }
        Unwind();
        _host.Machine.Baton = null;
        for (int i = _strands.Length - 1; i >= 0; i--)
        {
            _strands[i].Program.Process.Switch(before[i]);
        }
    }

    public override void Pass(SimThread current, StepLabel label)
    {
        if (_quiet > 0 || Find(current) is not { } strand || strand.Unwinding)
        {
            return;
        }
        if (!_abandoned)
        {
            strand.Arrive(label, current.Machine.Journal.Newest, _strands.Where(other => other != strand));
            if (strand.WaitsForReaders)
            {
                // Which readers there are is looked at on arrival, so it belongs to what came before the step.
                Touch(strand.Task.Wants!.Value.Identity, 0, 1, write: true);
            }
            HandOver(strand);
        }
        if (_abandoned)
        {
            strand.GiveUp();
        }
    }

    public override void Touch(object state, ulong start, ulong end, bool write)
    {
        if (_current is not null && _quiet == 0)
        {
            _current.Footprint.Add(new Access(_numbers.Of(state), start, end, write));
        }
    }

    public override IDisposable Quietly()
    {
        _quiet++;
        return new Quiet(this);
    }

    private void HandOver(Strand from)
    {
        if (_launching)
        {
            from.Worker.Launched();
            from.Worker.Park();
            return;
        }
        Strand? next = Next(from.Index);
        if (next == from)
        {
            return;
        }
        Resume(next);
        from.Worker.Park();
    }

    private void Resume(Strand? next)
    {
        if (next is null)
        {
            _over.Release();
        }
        else
        {
            next.Worker.Resume();
        }
    }

    private void Body(Strand strand)
    {
        try
        {
            strand.Program.Body(strand.Program.Process);
        }
        catch (AbandonedException)
        {
            // The run is over for this program.
        }
        catch (Exception failure) when (failure is not OutOfMemoryException)
        {
            Problem = $"program {strand.Letter}: {failure.GetType().Name}: {failure.Message}";
            Stop(RunEnd.Failed);
        }
        strand.Done = true;
        _current = null;
        if (_launching)
        {
            strand.Worker.Launched();
        }
        else if (!strand.Unwinding)
        {
            Resume(Next(strand.Index));
        }
    }

    // The one who goes on, its next stretch begun; null when the run is over.
    private Strand? Next(int previous)
    {
        while (!_abandoned)
        {
            _current = null;
            int enabled = Enabled();
            if (enabled == 0)
            {
                if (Array.TrueForAll(_strands, strand => strand.Done))
                {
                    Stop(RunEnd.Done);
                }
                else
                {
                    RecordDeadlock();
                    Stop(RunEnd.Deadlock);
                }
                return null;
            }
            if (_stretches.Count == _maxStretches)
            {
                Stop(RunEnd.TooLong);
                return null;
            }
            _scheduler.PreviousIsBetweenCalls = previous < 0 || _strands[previous].Done || _strands[previous].Task.Call == 0;
            int chosen = _scheduler.Choose(_stretches, enabled, previous);
            if (chosen < 0 || (enabled & (1 << chosen)) == 0)
            {
                Problem = chosen < 0 ? "" : Divergence(chosen);
                Stop(chosen < 0 ? RunEnd.Redundant : RunEnd.Diverged);
                return null;
            }
            if (!Begin(_strands[chosen], enabled, previous).Queues)
            {
                return _strands[chosen];
            }
            // Standing in line was all that it did.
            previous = chosen;
        }
        return null;
    }

    private Stretch Begin(Strand strand, int enabled, int previous)
    {
        bool isSwitch = previous >= 0 && previous != strand.Index;
        bool begins = strand.Task.Call == 0;
        var stretch = new Stretch(strand.Index, strand.Label, strand.Record, strand.Task.What)
        {
            Call = begins ? _host.Calls + 1 : strand.Task.Call,
            BeginsCall = begins,
            Enabled = enabled,
            IsSwitch = isSwitch,
            IsPreemption = isSwitch && (enabled & (1 << previous)) != 0,
            Holds = [.. strand.Task.Held.Items.ToArray().Select(held => _numbers.Of(held, !held.Shared))],
        };
        if (strand.Task.Wants is { } wanted)
        {
            stretch.Queues = !IsFree(strand, wanted);
            stretch.Takes = _numbers.Of(wanted, !wanted.Shared);
            strand.Queued = stretch.Queues;
            strand.ReaderSections += wanted.Shared && wanted.Class == LockOrder.Srcu ? 1 : 0;
            if (stretch.Queues)
            {
                stretch.Footprint.Add(stretch.Takes.Value);
            }
        }
        Observer?.Invoke(stretch);
        _stretches.Add(stretch);
        _current = stretch;

        // Asked once more, so that the stretch is seen to depend on it.
        strand.Task.ResumesWhen?.Invoke();
        strand.Program.Process.Switch(strand.Task);
        return stretch;
    }

    private void Stop(RunEnd end)
    {
        if (!_abandoned)
        {
            End = end;
            _abandoned = true;
        }
    }

    // Programs that stand somewhere are taken out of their calls; the host is of no use afterwards but to look at.
    private void Unwind()
    {
        _abandoned = true;
        foreach (Strand strand in _strands)
        {
            if (!strand.Done)
            {
                strand.Worker.Resume();
            }
            strand.Worker.WaitUntilIdle();
        }
    }

    private Strand? Find(SimThread thread)
    {
        foreach (Strand strand in _strands)
        {
            if (ReferenceEquals(strand.Task, thread))
            {
                return strand;
            }
        }
        return null;
    }

    private sealed class Quiet(Interleaving run) : IDisposable
    {
        public void Dispose() => run._quiet--;
    }
}
