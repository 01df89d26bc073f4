namespace SimMachine.Intel;

/// <summary>
/// A lock of the TDX module. Nobody ever waits for one: a leaf that finds it taken answers OPERAND_BUSY, and what the caller does about it is the caller's business.
/// </summary>
internal sealed class TdxLock
{
    private const int Exclusively = -1;

    // Holders, or Exclusively.
    private int _holders;

    public bool IsFree => _holders == 0;

    public bool TryEnter(bool exclusive)
    {
        if (exclusive ? _holders != 0 : _holders == Exclusively)
        {
            return false;
        }
        _holders = exclusive ? Exclusively : _holders + 1;
        return true;
    }

    public void Exit() => _holders = _holders == Exclusively ? 0 : _holders - 1;
}

/// <summary>The locks that a leaf has taken; they go when it ends, the last taken first.</summary>
internal sealed class TdxHold : IDisposable
{
    private readonly List<(TdxLock Lock, bool Exclusive)> _locks = [];
    private readonly List<(Sept Sept, int Level, ulong Gpa)> _entries = [];
    private Machine? _machine;

    /// <summary>Whether a lock is free is seen by everybody who tries it, so trying is a look at it, and for an exclusive one a change.</summary>
    public bool Take(Machine machine, TdxLock which, bool exclusive)
    {
        _machine = machine;
        Touch(which, exclusive);
        if (!which.TryEnter(exclusive))
        {
            return false;
        }
        _locks.Add((which, exclusive));
        return true;
    }

    /// <summary>An entry of a Secure EPT. Entries are taken exclusively only.</summary>
    public bool Take(Sept sept, int level, ulong gpa)
    {
        sept.Touch(level, gpa, write: true);
        if (!sept.LockedEntries.Add((level, Sept.IndexOf(level, gpa))))
        {
            return false;
        }
        _entries.Add((sept, level, gpa));
        return true;
    }

    public void Dispose()
    {
        foreach ((Sept sept, int level, ulong gpa) in _entries)
        {
            sept.Touch(level, gpa, write: true);
            sept.LockedEntries.Remove((level, Sept.IndexOf(level, gpa)));
        }
        for (int i = _locks.Count - 1; i >= 0; i--)
        {
            Touch(_locks[i].Lock, _locks[i].Exclusive);
            _locks[i].Lock.Exit();
        }
        _entries.Clear();
        _locks.Clear();
    }

    private void Touch(TdxLock which, bool exclusive) => _machine!.Baton?.Touch(which, 0, 1, exclusive);
}
