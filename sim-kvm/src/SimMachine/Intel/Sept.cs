using SimMachine.Addressing;

namespace SimMachine.Intel;

/// <summary>State of a Secure EPT entry, with the module's public codes (TDX module ABI, SEPT entry states).</summary>
/// <remarks>
/// <code>
///            SEPT.ADD                        PAGE.ADD
///   FREE ───────────────▶ NL_MAPPED   FREE ─────────────────────▶ MAPPED ◀──┐ ACCEPT (guest)
///    ▲                      │ BLOCK    │ PAGE.AUG                   │ BLOCK  │
///    │ SEPT.REMOVE          ▼          └────────▶ PENDING ──────────┼────────┘
///    └────────────────── NL_BLOCKED                  │ BLOCK        ▼
///                                              PENDING_BLOCKED   BLOCKED
/// </code>
/// PAGE.REMOVE leads from the four leaf states to FREE; UNBLOCK undoes BLOCK. States of migration are left out.
/// </remarks>
public enum SeptState : byte
{
    FREE = 0,
    BLOCKED = 1,
    PENDING = 2,
    PENDING_BLOCKED = 3,
    MAPPED = 4,
    NL_BLOCKED = 0x81,
    NL_MAPPED = 0x84,
}

/// <summary>What a call that looks at a Secure EPT entry returns of it in RCX and RDX.</summary>
/// <param name="Entry">The architectural entry.</param>
/// <param name="Level">Of the entry: 0 is 4 KiB.</param>
public readonly record struct SeptInfo(ulong Entry, int Level, SeptState State)
{
    /// <summary>RDX: level in bits 2:0, state in bits 15:8.</summary>
    public ulong Rdx => (uint)Level | ((ulong)State << 8);
}

/// <summary>One entry of a Secure EPT.</summary>
/// <param name="Pfn">The page, or the table.</param>
internal readonly record struct SeptEntry(SeptState State, Pfn Pfn)
{
    private const ulong Suppressed = 1UL << 63;
    private const ulong Permissions = 7;

    // Write-back, ignore PAT, page size.
    private const ulong LeafBits = (6UL << 3) | (1UL << 6) | (1UL << 7);

    public bool IsTable => State is SeptState.NL_MAPPED or SeptState.NL_BLOCKED;

    public bool IsLeaf => State is SeptState.MAPPED or SeptState.PENDING or SeptState.BLOCKED or SeptState.PENDING_BLOCKED;

    public bool IsBlocked => State is SeptState.BLOCKED or SeptState.PENDING_BLOCKED or SeptState.NL_BLOCKED;

    /// <summary>The state after TDH.MEM.RANGE.BLOCK; the same where there is nothing to block.</summary>
    public SeptState Blocked => State switch
    {
        SeptState.MAPPED => SeptState.BLOCKED,
        SeptState.PENDING => SeptState.PENDING_BLOCKED,
        SeptState.NL_MAPPED => SeptState.NL_BLOCKED,
        _ => State,
    };

    /// <summary>The state after TDH.MEM.RANGE.UNBLOCK.</summary>
    public SeptState Unblocked => State switch
    {
        SeptState.BLOCKED => SeptState.MAPPED,
        SeptState.PENDING_BLOCKED => SeptState.PENDING,
        SeptState.NL_BLOCKED => SeptState.NL_MAPPED,
        _ => State,
    };

    /// <summary>The entry as RCX shows it.</summary>
    public ulong Architectural => State switch
    {
        SeptState.FREE => Suppressed,
        SeptState.NL_MAPPED or SeptState.NL_BLOCKED => Pfn.ToAddress() | Permissions,
        SeptState.MAPPED => Suppressed | Pfn.ToAddress() | LeafBits | Permissions,
        _ => Suppressed | Pfn.ToAddress() | LeafBits,
    };
}

/// <summary>
/// The Secure EPT of a TD: what the processor translates the TD's private addresses with. The kernel keeps a mirror of it and changes this one by SEAMCALLs only. Guarded by
/// the tree's lock; an entry is changed under the entry's.
/// </summary>
/// <remarks>
/// Level 0 is a page of 4 KiB. Invariant: below an entry that is no table all entries are FREE. A level is kept as a tree of its entries, as distances from index to frame so
/// that neighbours that lie together in memory are one run.
/// </remarks>
internal sealed class Sept
{
    private const int StateBits = 8;
    private const int BitsPerLevel = 9;
    private const ulong FrameMask = (1UL << 52) - 1;

    private readonly Machine _machine;
    private readonly PageTree<ulong>[] _levels;

    /// <param name="machine">Whose explorer is told what is looked at and changed.</param>
    /// <param name="levels">4 or 5: the root table has the entries of the highest.</param>
    public Sept(Machine machine, int levels)
    {
        _machine = machine;
        _levels = [.. Enumerable.Range(0, levels).Select(_ => new PageTree<ulong>())];
    }

    /// <summary>The level of the root table's entries.</summary>
    public int Top => _levels.Length - 1;

    public TdxLock Lock { get; } = new();

    /// <summary>Entries that are being changed by somebody, as (level, index).</summary>
    public HashSet<(int Level, ulong Index)> LockedEntries { get; } = [];

    public SeptEntry this[int level, ulong gpa]
    {
        get
        {
            Touch(level, gpa, write: false);
            ulong index = IndexOf(level, gpa);
            ulong value = _levels[level][index];
            return new SeptEntry((SeptState)(byte)value, value == 0 ? default : new Pfn(((value >> StateBits) + index) & FrameMask));
        }

        set
        {
            Touch(level, gpa, write: true);
            ulong index = IndexOf(level, gpa);
            _levels[level].Set(index, value.State == SeptState.FREE ? 0 : (((value.Pfn.Value - index) & FrameMask) << StateBits) | (byte)value.State);
        }
    }

    public static ulong IndexOf(int level, ulong gpa) => gpa >> (PageSize.Shift + (BitsPerLevel * level));

    public static ulong BytesOf(int level) => 1UL << (PageSize.Shift + (BitsPerLevel * level));

    /// <summary>Follows tables down to a level.</summary>
    /// <param name="found">The entry at which it ended: of that level, or the last one before a table is missing.</param>
    /// <returns>The level was reached.</returns>
    public bool Walk(ulong gpa, int level, out int foundLevel, out SeptEntry found)
    {
        for (foundLevel = Top; ; foundLevel--)
        {
            found = this[foundLevel, gpa];
            if (foundLevel == level)
            {
                return true;
            }
            if (!found.IsTable)
            {
                return false;
            }
        }
    }

    /// <summary>All entries of the table below an entry are FREE.</summary>
    public bool IsTableEmpty(int level, ulong gpa)
    {
        Touch(level, gpa, write: false);
        ulong first = IndexOf(level, gpa) << BitsPerLevel;
        return _levels[level - 1].AllEqual(first, first + SlotBits.Slots, 0);
    }

    /// <summary>See <see cref="Stepping.Baton.Touch"/>: an entry is the gfns that it covers, so that it meets those below and above it.</summary>
    public void Touch(int level, ulong gpa, bool write)
    {
        ulong first = (gpa & ~(BytesOf(level) - 1)) >> PageSize.Shift;
        _machine.Baton?.Touch(this, first, first + (BytesOf(level) >> PageSize.Shift), write);
    }

    /// <summary>Entries that are not FREE, highest level first, each level in order of addresses; for people and audits.</summary>
    public IEnumerable<(int Level, ulong Gpa, SeptEntry Entry)> Entries()
    {
        for (int level = Top; level >= 0; level--)
        {
            for (ulong next = 0; _levels[level].TryFindFirstOther(next, PageTree<ulong>.Limit, 0, out ulong index); next = index + 1)
            {
                ulong gpa = index << (PageSize.Shift + (BitsPerLevel * level));
                yield return (level, gpa, this[level, gpa]);
            }
        }
    }
}
