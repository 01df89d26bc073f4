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
    private readonly List<TdxLock> _locks = [];
    private readonly List<(Sept Sept, int Level, ulong Index)> _entries = [];

    public bool Take(TdxLock which, bool exclusive)
    {
        if (!which.TryEnter(exclusive))
        {
            return false;
        }
        _locks.Add(which);
        return true;
    }

    /// <summary>An entry of a Secure EPT. Entries are taken exclusively only.</summary>
    public bool Take(Sept sept, int level, ulong gpa)
    {
        ulong index = Sept.IndexOf(level, gpa);
        if (!sept.LockedEntries.Add((level, index)))
        {
            return false;
        }
        _entries.Add((sept, level, index));
        return true;
    }

    public void Dispose()
    {
        foreach ((Sept sept, int level, ulong index) in _entries)
        {
            sept.LockedEntries.Remove((level, index));
        }
        for (int i = _locks.Count - 1; i >= 0; i--)
        {
            _locks[i].Exit();
        }
        _entries.Clear();
        _locks.Clear();
    }
}
