using SimKvm.Locking;
using SimMachine.Stepping;

namespace SimKvm.Exploration;

/// <summary>Takes a program out of a call whose run is over. Never leaves the explorer.</summary>
internal sealed class AbandonedException : Exception;

/// <summary>A program of a run, and where it stands.</summary>
internal sealed class Strand(int index, ExploredProgram program, KTask task, StrandWorker worker)
{
    // Readers of SRCU that were there when the program came to wait for them, with how often each had entered by then.
    private readonly List<(Strand Reader, int Sections)> _readers = [];

    public int Index { get; } = index;

    public ExploredProgram Program { get; } = program;

    public KTask Task { get; } = task;

    public StrandWorker Worker { get; } = worker;

    public char Letter => (char)('A' + Index);

    /// <summary>The step that it stands at.</summary>
    public StepLabel Label { get; private set; } = new("");

    /// <summary>Its record in the journal; nothing where the step has none.</summary>
    public StepRecord Record { get; private set; }

    public bool Done { get; set; }

    /// <summary>It is being taken out of its call.</summary>
    public bool Unwinding { get; private set; }

    /// <summary>It stands in line for a reader-writer lock, to write: readers that come later wait behind it.</summary>
    public bool Queued { get; set; }

    /// <summary>How often it entered a section of SRCU as a reader.</summary>
    public int ReaderSections { get; set; }

    /// <summary>It stands at synchronize_srcu.</summary>
    public bool WaitsForReaders => Task.Wants is { Shared: false } wanted && wanted.Class == LockOrder.Srcu;

    public void Arrive(StepLabel label, in StepRecord newest, IEnumerable<Strand> others)
    {
        Label = label;
        Record = newest.Label == label && newest.Thread == Task.Id ? newest : default;
        Queued = false;
        _readers.Clear();
        if (WaitsForReaders)
        {
            HeldLock wanted = Task.Wants!.Value;
            _readers.AddRange(others.Where(other => other.Holds(wanted)).Select(other => (other, other.ReaderSections)));
        }
    }

    /// <summary>A lock that it holds keeps out who wants that.</summary>
    public bool Holds(in HeldLock wanted)
    {
        foreach (ref readonly HeldLock held in Task.Held.Items)
        {
            if (held.ConflictsWith(wanted))
            {
                return true;
            }
        }
        return false;
    }

    /// <summary>The readers whose end it waits for at synchronize_srcu.</summary>
    public IEnumerable<Strand> ReadersInTheWay()
    {
        HeldLock wanted = Task.Wants!.Value;
        return _readers.Where(each => each.Reader.ReaderSections == each.Sections && each.Reader.Holds(wanted)).Select(each => each.Reader);
    }

    public void GiveUp()
    {
        if (!Unwinding)
        {
            Unwinding = true;
            throw new AbandonedException();
        }
    }
}

/// <summary>A thread of this process that runs programs, one after the other, run after run.</summary>
internal sealed class StrandWorker : IDisposable
{
    private readonly SemaphoreSlim _work = new(0);
    private readonly SemaphoreSlim _turn = new(0);
    private readonly SemaphoreSlim _launched = new(0);
    private readonly SemaphoreSlim _idle = new(0);
    private readonly Thread _thread;
    private Action? _body;

    public StrandWorker(int number)
    {
        _thread = new Thread(Loop) { IsBackground = true, Name = $"explored program {number}" };
        _thread.Start();
    }

    /// <summary>Starts a body, and waits until it says that it is launched.</summary>
    public void Launch(Action body)
    {
        _body = body;
        _work.Release();
        _launched.Wait();
    }

    /// <summary>The body has come to its first step, or to its end.</summary>
    public void Launched() => _launched.Release();

    /// <summary>Waits for its turn.</summary>
    public void Park() => _turn.Wait();

    public void Resume() => _turn.Release();

    public void WaitUntilIdle() => _idle.Wait();

    public void Dispose()
    {
        _body = null;
        _work.Release();
        _thread.Join();
        _work.Dispose();
        _turn.Dispose();
        _launched.Dispose();
        _idle.Dispose();
    }

    private void Loop()
    {
        while (true)
        {
            _work.Wait();
            if (_body is null)
            {
                return;
            }
            _body();
            _idle.Release();
        }
    }
}

/// <summary>The threads of one exploration, made when they are first needed.</summary>
internal sealed class StrandPool : IDisposable
{
    private readonly List<StrandWorker> _workers = [];

    /// <summary>The run under way is over.</summary>
    public SemaphoreSlim Over { get; } = new(0);

    public StrandWorker this[int index]
    {
        get
        {
            while (_workers.Count <= index)
            {
                _workers.Add(new StrandWorker(_workers.Count));
            }
            return _workers[index];
        }
    }

    public void Dispose()
    {
        _workers.ForEach(worker => worker.Dispose());
        Over.Dispose();
    }
}
