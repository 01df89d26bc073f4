namespace SimKvm.Locking;

/// <summary>
/// A lock of the simulated kernel: a mutex, a reader-writer semaphore or a spinning lock, by its class. Taking it is a step; lockdep looks on; the scope
/// releases it.
/// </summary>
/// <remarks>
/// A host runs one call at a time, so in live service a lock is free whenever it is asked for, unless the asking task holds it itself: that is recursion, a
/// finding, after which the task goes on as if it nested, for nothing may hang the daemon.
/// </remarks>
internal sealed class SimLock(LockClass @class)
{
    public LockClass Class { get; } = @class;

    /// <summary>down_write, mutex_lock, write_lock.</summary>
    public LockScope Enter(KTask current) => LockScope.Acquire(current, Class, this, 0, shared: false);

    /// <summary>down_read, read_lock.</summary>
    public LockScope EnterShared(KTask current) => LockScope.Acquire(current, Class, this, 0, shared: true);

    /// <summary>lockdep_assert_held: a caller that comes without the lock is our bug.</summary>
    public void AssertHeld(KTask current)
    {
        if (!current.Held.Holds(this))
        {
            throw new InvalidOperationException($"{Class.Name} must be held here");
        }
    }

    /// <summary>The lock of a folio, known by its frame number.</summary>
    public static LockScope EnterFolio(KTask current, ulong pfn) => LockScope.Acquire(current, LockOrder.Folio, null, pfn, shared: false);
}

/// <summary>A held lock; disposing releases it. Scopes nest as the braces that they stand in. The default is no lock.</summary>
internal readonly ref struct LockScope
{
    private readonly KTask? _task;
    private readonly int _depth;

    private LockScope(KTask task, int depth)
    {
        _task = task;
        _depth = depth;
    }

    public static LockScope Acquire(KTask current, LockClass @class, SimLock? instance, ulong key, bool shared)
    {
        var wanted = new HeldLock(@class, instance, key, shared);
        current.Wants = wanted;
        current.Step(@class.AcquireStep, key, shared ? 1UL : 0);
        current.Wants = null;
        wanted.Touch(current);
        current.Host.Lockdep.Acquiring(current, @class, instance, key, shared);
        return new LockScope(current, current.Held.Push(wanted));
    }

    public void Dispose()
    {
        if (_task is null)
        {
            return;
        }
        HeldLock released = _task.Held.Items[_depth];
        _task.Step(released.Class.ReleaseStep, released.Key);
        released.Touch(_task);
        _task.Held.Pop(_depth);
    }
}

/// <summary>A lock that a task holds: which class, which instance (an object, or a number for folios), and how.</summary>
internal readonly record struct HeldLock(LockClass Class, SimLock? Instance, ulong Key, bool Shared)
{
    /// <summary>The object that stands for the lock; folio locks have one together and are apart by <see cref="Key"/>.</summary>
    public object Identity => (object?)Instance ?? Class;

    /// <summary>The same lock, held or wanted, and not by two readers.</summary>
    public bool ConflictsWith(in HeldLock other) => Identity == other.Identity && Key == other.Key && !(Shared && other.Shared);

    public void Touch(KTask current) => current.Machine.Baton?.Touch(Identity, Key, Key + 1, write: !Shared);
}

/// <summary>The locks a task holds, innermost last.</summary>
internal sealed class LockStack
{
    private HeldLock[] _held = new HeldLock[8];

    public int Count { get; private set; }

    public ReadOnlySpan<HeldLock> Items => _held.AsSpan(0, Count);

    public int Push(in HeldLock held)
    {
        if (Count == _held.Length)
        {
            Array.Resize(ref _held, Count * 2);
        }
        _held[Count] = held;
        return Count++;
    }

    /// <summary>Takes out the lock at a depth; scopes normally release from the top, an early release (slots_arch_lock) may not.</summary>
    public HeldLock Pop(int depth)
    {
        if (depth >= Count)
        {
            throw new InvalidOperationException("a lock was released twice, or in the wrong order");
        }
        HeldLock released = _held[depth];
        Array.Copy(_held, depth + 1, _held, depth, Count - depth - 1);
        _held[--Count] = default;
        return released;
    }

    public bool Holds(SimLock instance)
    {
        foreach (ref readonly HeldLock held in Items)
        {
            if (ReferenceEquals(held.Instance, instance))
            {
                return true;
            }
        }
        return false;
    }
}
