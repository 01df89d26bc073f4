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

    internal KTask(Process process, int tid)
        : base(process.Host.Machine, tid)
    {
        Process = process;
    }

    public Process Process { get; }

    internal SimHost Host => Process.Host;

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
