using SimKvm.Userspace;

namespace SimKvm.Auditing;

/// <summary>A call that was made on a host.</summary>
/// <param name="Pid">The process that made it.</param>
/// <param name="Report">What it answered, and why.</param>
/// <param name="FirstStep">Its first step in the host's journal.</param>
/// <param name="LastStep">Its last; before <paramref name="FirstStep"/> for a call without steps.</param>
public readonly record struct LoggedCall(int Pid, CallReport Report, ulong FirstStep, ulong LastStep)
{
    /// <summary>Number of the call on its host: the revision of the host's state that it made.</summary>
    public ulong Revision => Report.Call;
}

/// <summary>
/// The last calls of a host, so that an outcome can be asked for again and be watched as it comes. Bounded: old calls make room for new ones. Like everything of a host it
/// is touched by one call at a time.
/// </summary>
public sealed class CallLog
{
    /// <summary>Calls that are kept.</summary>
    public const int Kept = 4096;

    private const int FirstCapacity = 64;

    // Call n is at (n - 1) % Kept; the ring doubles until it has its last size, so that an idle host stays small.
    private LoggedCall[] _ring = [];
    private TaskCompletionSource? _next;
    private bool _closed;

    /// <summary>The newest revision, 0 before the first call.</summary>
    public ulong Last { get; private set; }

    /// <summary>The oldest revision that is kept. Above <see cref="Last"/> before the first call.</summary>
    public ulong First => Last > Kept ? Last - Kept + 1 : 1;

    /// <summary>Completes when another call was made, or when the host is switched off. Ask for it in the same turn on the host in which the log was read.</summary>
    public Task Next => _closed ? Task.CompletedTask : (_next ??= new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously)).Task;

    /// <summary>A call that is kept, or false.</summary>
    public bool TryGet(ulong revision, out LoggedCall call)
    {
        call = default;
        if (revision < First || revision > Last)
        {
            return false;
        }
        call = _ring[(int)((revision - 1) % Kept)];
        // A number can be taken by a call that never came to its end.
        return call.Report is not null && call.Revision == revision;
    }

    /// <summary>Kept calls from a revision on, oldest first.</summary>
    public IEnumerable<LoggedCall> Read(ulong from)
    {
        for (ulong revision = Math.Max(from, First); revision <= Last; revision++)
        {
            if (TryGet(revision, out LoggedCall call))
            {
                yield return call;
            }
        }
    }

    internal void Append(in LoggedCall call)
    {
        int index = (int)((call.Revision - 1) % Kept);
        if (index >= _ring.Length)
        {
            Array.Resize(ref _ring, Math.Min(Kept, Math.Max(Math.Max(FirstCapacity, _ring.Length * 2), index + 1)));
        }
        _ring[index] = call;
        Last = Math.Max(Last, call.Revision);
        TaskCompletionSource? waiting = _next;
        _next = null;
        waiting?.SetResult();
    }

    /// <summary>Nothing more comes.</summary>
    internal void Close()
    {
        _closed = true;
        _next?.SetResult();
        _next = null;
    }
}
