using SimMachine.Stepping;

namespace SimKvm.Tests.Support;

/// <summary>Does something when a call comes to a step of a label for the n-th time: a signal arrives, another thread gets its turn.</summary>
internal sealed class InterposingBaton(string label, int occurrence, Action<KTask> act) : Baton
{
    private int _seen;
    private bool _acting;

    public bool Acted { get; private set; }

    public override void Pass(SimThread current, StepLabel label1)
    {
        if (_acting || label1.Name != label || ++_seen != occurrence)
        {
            return;
        }
        _acting = true;
        act((KTask)current);
        _acting = false;
        Acted = true;
    }

    /// <summary>A signal comes for the caller.</summary>
    public static InterposingBaton Signal(string label, int occurrence) => new(label, occurrence, current => current.SignalPending = true);
}
