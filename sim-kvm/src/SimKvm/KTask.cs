using SimKvm.Locking;
using SimKvm.Userspace;
using SimMachine.Stepping;

namespace SimKvm;

/// <summary>
/// A thread of a VMM process while it is in the kernel: Linux's <c>current</c>, passed as a parameter. It carries the reasons of a failing call, the locks it
/// holds, and its pending signal.
/// </summary>
public sealed class KTask : SimThread
{
    private int? _checksBeforeSignal;
    private bool _signalSeen;
    private readonly List<KernelFile> _borrowed = [];

    internal KTask(Process process, int tid)
        : base(process.Host.Machine, tid)
    {
        Process = process;
    }

    public Process Process { get; }

    internal SimHost Host => Process.Host;

    /// <summary>The call under way in a few words, for people.</summary>
    internal string What { get; set; } = "";

    /// <summary>The lock that the task is about to take, while it stands at that step.</summary>
    internal HeldLock? Wants { get; set; }

    /// <summary>What must hold before the task can go on from the step that it stands at; null for nothing.</summary>
    internal Func<bool>? ResumesWhen { get; private set; }

    /// <summary>It would go on without, in vain: it looks again and again.</summary>
    internal bool Spins { get; private set; }

    /// <summary>The task sleeps until a condition holds. With one call at a time nobody else could bring it about, so then nothing waits, and there is no step.</summary>
    internal void WaitUntil(StepLabel label, Func<bool> ready)
    {
        if (Machine.Baton is { } baton)
        {
            (ResumesWhen, Spins) = (ready, false);
            baton.Pass(this, label);
            ResumesWhen = null;
        }
    }

    /// <summary>A step behind which the task tries in vain, again and again, until a condition holds.</summary>
    internal void SpinUntil(StepLabel label, ulong a, Func<bool> ready)
    {
        (ResumesWhen, Spins) = (ready, true);
        Step(label, a);
        ResumesWhen = null;
    }

    /// <summary>Locks held, innermost last. Lockdep's.</summary>
    internal LockStack Held { get; } = new();

    /// <summary>
    /// signal_pending(): loops that can be interrupted stop at their next check. Reading it is one check: a signal that is to arrive after so many checks
    /// (<see cref="SignalAfter"/>) comes one check closer.
    /// </summary>
    public bool SignalPending
    {
        get
        {
            if (Killed)
            {
                return true;
            }
            if (_checksBeforeSignal is not { } checks)
            {
                return false;
            }
            _signalSeen = checks == 0;
            _checksBeforeSignal = Math.Max(checks - 1, 0);
            return _signalSeen;
        }

        set => (_checksBeforeSignal, _signalSeen) = (value ? 0 : null, false);
    }

    /// <summary>fatal_signal_pending(): whoever made the call is gone, and so nobody wants its end.</summary>
    public bool Killed => Process.Caller.IsCancellationRequested;

    /// <summary>On the way out to user space: a signal that the call noticed is delivered, and gone.</summary>
    internal void DeliverSignal()
    {
        if (_signalSeen)
        {
            SignalPending = false;
        }
    }

    /// <summary>A signal that the call itself brings, such as SIGPIPE; it is told with the answer.</summary>
    internal Signal? Signal { get; set; }

    /// <summary>A signal arrives when it was looked for so many times in vain.</summary>
    public void SignalAfter(int checks) => _checksBeforeSignal = checks;

    /// <summary>Other threads of its process run between its steps, so what it works on must be kept.</summary>
    internal bool Borrows { get; init; }

    /// <summary>
    /// fdget(): a file that a call works on stays until the call is over, though another thread closes its descriptor meanwhile. With one call at a time nobody can.
    /// </summary>
    internal void Borrow(KernelFile file)
    {
        if (Borrows)
        {
            file.Get();
            _borrowed.Add(file);
        }
    }

    /// <summary>fdput(), on the way out to user space.</summary>
    internal void ReturnBorrowed()
    {
        foreach (KernelFile file in _borrowed)
        {
            file.Put(this);
        }
        _borrowed.Clear();
    }

    /// <summary>Records why, and returns the errno to return.</summary>
    /// <param name="errno">What this check answers. A caller may flatten it to another errno, as Linux does; the cause stays.</param>
    /// <param name="rule">The rule that refused.</param>
    /// <param name="operands">As many numbers as the rule declares.</param>
    public Errno Fail(Errno errno, Rule rule, params ReadOnlySpan<ulong> operands)
    {
        Refuse(rule, errno.ToString(), operands);
        return errno;
    }
}
