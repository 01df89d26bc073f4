using System.Globalization;
using SimKvm.Locking;

namespace SimKvm.Exploration;

// Who can go on, and who waits for whom.
internal sealed partial class Interleaving
{
    // Programs that can go on, as a mask. Those that would only retry a fault in vain come last: when nobody else is left, trying is all that the kernel would do.
    private int Enabled()
    {
        int enabled = 0, futile = 0;
        foreach (Strand strand in _strands)
        {
            if (strand.Done || (strand.Task.Wants is { } wanted && !IsFree(strand, wanted) && !CanQueue(strand, wanted)))
            {
                continue;
            }
            if (strand.Task.ResumesWhen is { } ready && !ready())
            {
                futile |= strand.Task.Spins ? 1 << strand.Index : 0;
            }
            else
            {
                enabled |= 1 << strand.Index;
            }
        }
        return enabled != 0 ? enabled : futile;
    }

    private bool IsFree(Strand strand, in HeldLock wanted)
    {
        if (wanted.Class == LockOrder.Srcu)
        {
            // Readers never wait; who synchronises waits for those that were there.
            return wanted.Shared || !strand.ReadersInTheWay().Any();
        }
        foreach (Strand other in _strands)
        {
            if (other != strand && (other.Holds(wanted) || (wanted.Shared && other.Queued && other.Task.Wants is { } queued && queued.ConflictsWith(wanted))))
            {
                return false;
            }
        }
        return true;
    }

    // A writer who finds readers stands in line, and from then on readers wait behind it (rwsem). With two programs there is nobody whom that could keep waiting.
    private bool CanQueue(Strand strand, in HeldLock wanted)
    {
        if (strand.Queued || wanted.Shared || _strands.Length < 3 || (wanted.Class != LockOrder.Mmap && wanted.Class != LockOrder.Invalidate))
        {
            return false;
        }
        HeldLock asReader = wanted with { Shared = true };
        foreach (Strand other in _strands)
        {
            if (other != strand && other.Holds(asReader))
            {
                return false;
            }
        }
        return true;
    }

    /// <summary>What a program waits for and from whom, in words; empty where it can go on or is done.</summary>
    public string WaitsFor(int program)
    {
        Strand strand = _strands[program];
        if (strand.Done)
        {
            return "";
        }
        if (strand.Task.Wants is { } wanted && !IsFree(strand, wanted))
        {
            string from = string.Join(" and ", Obstacles(strand, wanted).Select(other => other.Letter));
            return $"{wanted.Class}{(wanted.Shared ? " (shared)" : "")}{(strand.Queued ? ", in line" : "")}, {(Obstacles(strand, wanted).All(other => other.Holds(wanted)) ? "held by" : "behind")} {from}";
        }
        return strand.Task.ResumesWhen is { } ready && !ready() ? "the end of an invalidation" : "";
    }

    /// <summary>The call of a program and the step that it stands at.</summary>
    public string Position(int program) => _strands[program] is { Done: false } strand ? $"{strand.Task.What}, at '{strand.Label}'" : "done";

    /// <summary>The locks that a program holds, outermost first.</summary>
    public IReadOnlyList<string> Holds(int program) => [.. _strands[program].Task.Held.Items.ToArray().Select(held => held.Class + (held.Shared ? " (shared)" : ""))];

    /// <summary>The cycle of a deadlock: each waits for the next, the last for the first.</summary>
    public IReadOnlyList<int> Cycle()
    {
        var path = new List<int>();
        Strand? at = _strands.FirstOrDefault(strand => !strand.Done && strand.Task.Wants is not null);
        while (at is not null && !path.Contains(at.Index))
        {
            path.Add(at.Index);
            Strand from = at;
            at = at.Task.Wants is { } wanted ? Obstacles(from, wanted).FirstOrDefault(other => !other.Done) : null;
        }
        return at is null ? path : path[path.IndexOf(at.Index)..];
    }

    // Told now, while everybody still holds what it holds.
    private void RecordDeadlock()
    {
        foreach (Strand strand in _strands)
        {
            if (!strand.Done && strand.Task.Wants is { } wanted)
            {
                Access takes = _numbers.Of(wanted, !wanted.Shared);
                var stuck = new Stretch(strand.Index, strand.Label, strand.Record, strand.Task.What) { Takes = takes };
                stuck.Footprint.Add(takes);
                _stuck.Add(stuck);
            }
        }
        IReadOnlyList<int> cycle = Cycle();
        Problem = string.Join("; ", cycle.Select(program => $"{_strands[program].Letter} waits for {WaitsFor(program)}"));
        Deadlock = [.. _strands.Where(strand => !strand.Done).Select(strand =>
            $"{strand.Letter}: {strand.Task.What}: holds {(Holds(strand.Index) is { Count: > 0 } held ? string.Join(", ", held) : "nothing")}; waits for {WaitsFor(strand.Index)}")];
    }

    /// <summary>In a deadlock: what each program holds and waits for.</summary>
    public IReadOnlyList<string> Deadlock { get; private set; } = [];

    private IEnumerable<Strand> Obstacles(Strand strand, HeldLock wanted)
    {
        if (wanted.Class == LockOrder.Srcu)
        {
            return strand.ReadersInTheWay();
        }
        Strand[] holders = [.. _strands.Where(other => other != strand && other.Holds(wanted))];
        return holders.Length > 0 ? holders : _strands.Where(other => other != strand && other.Queued && other.Task.Wants is { } queued && queued.ConflictsWith(wanted));
    }

    private string Divergence(int chosen)
    {
        string where = string.Create(CultureInfo.InvariantCulture, $"at stretch {_stretches.Count + 1} the schedule wants program {(char)('A' + chosen)}");
        if (chosen >= _strands.Length)
        {
            return $"{where}, which the scenario does not have";
        }
        return _strands[chosen].Done ? $"{where}, which is done" : $"{where}, which stands at '{_strands[chosen].Label}' and waits for {WaitsFor(chosen)}";
    }
}
