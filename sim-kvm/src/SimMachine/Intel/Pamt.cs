using SimMachine.Addressing;

namespace SimMachine.Intel;

/// <summary>What the module uses a host page for (PT_* of the TDX module).</summary>
public enum TdxPageType : byte
{
    /// <summary>Nothing: the page is the host's.</summary>
    NDA = 0,
    RSVD = 1,

    /// <summary>Memory of a TD.</summary>
    REG = 3,
    TDR = 4,

    /// <summary>Control page of a TD or of a vCPU.</summary>
    TDCX = 5,
    TDVPR = 6,

    /// <summary>A table of a Secure EPT.</summary>
    EPT = 8,
}

/// <summary>The module's record of one host page of 4 KiB.</summary>
/// <param name="Owner">The TDR of the TD that has it; a TDR has none.</param>
/// <param name="Level">Size at which it was given: 0 is 4 KiB.</param>
/// <param name="Bepoch">The TD's epoch in which its mapping was blocked.</param>
/// <param name="WrittenByCall">Low bits of the number of the call that wrote the record, for blame.</param>
internal readonly record struct PamtEntry(TdxPageType Type, Pfn Owner, byte Level = 0, ulong Bepoch = 0, uint WrittenByCall = 0);

/// <summary>The physical address metadata table: whose each page of memory is. A page that is not NDA is encrypted with a key that the host does not have.</summary>
/// <param name="machine">Whose explorer is told what is looked at and changed.</param>
internal sealed class Pamt(Machine machine)
{
    private readonly PageTree<PamtEntry> _entries = new();

    public PamtEntry this[Pfn pfn]
    {
        get
        {
            machine.Reading(this, pfn.Value, pfn.Value + 1);
            return _entries[pfn.Value];
        }

        set
        {
            machine.Writing(this, pfn.Value, pfn.Value + 1);
            _entries.Set(pfn.Value, value);
        }
    }

    /// <summary>Pages that are not the host's, in frame order; for audits.</summary>
    public IEnumerable<(Pfn Pfn, PamtEntry Entry)> Taken(ulong frames)
    {
        for (ulong next = 0; _entries.TryFindFirstOther(next, frames, default, out ulong found); next = found + 1)
        {
            yield return (new Pfn(found), _entries[found]);
        }
    }
}
