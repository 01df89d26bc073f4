using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimMachine.Amd;

/// <summary>Result of RMPUPDATE and PSMASH (codes of the early SNP host patches; snp.md 5.2).</summary>
public enum RmpResult
{
    OK = 0,
    FAIL_INPUT = 1,
    FAIL_PERMISSION = 2,
    FAIL_INUSE = 3,

    /// <summary>RMPUPDATE: the change would leave a 4 KiB entry inside an assigned 2 MiB entry, or the reverse. PSMASH: bad address.</summary>
    FAIL_OVERLAP = 4,
}

/// <summary>
/// The reverse map: to whom each host page belongs. The host changes it by RMPUPDATE and PSMASH only; firmware changes it inside commands
/// (<see cref="Psp"/>); the guest by PVALIDATE and RMPADJUST.
/// </summary>
/// <remarks>
/// Invariants. A page that is not assigned has the default entry. A 2 MiB entry stands at a 2 MiB-aligned frame and the 511 entries behind it are alike but
/// for their gpa, which counts up where a guest owns them. The state table is at <see cref="RmpEntry"/>.
/// </remarks>
public sealed partial class Rmp
{
    private static readonly StepLabel RmpUpdateStep = new("rmpupdate");
    private static readonly StepLabel PsmashStep = new("psmash");

    public static readonly Rule NotCovered = new(
        "rmp.not-covered", "the frame is not covered by the RMP", "APM vol. 3 RMPUPDATE; snp_lookup_rmpentry",
        "use a frame of the machine's memory", "pfn");

    public static readonly Rule Misaligned = new(
        "rmp.misaligned", "a 2 MiB RMP entry must stand at a 2 MiB-aligned frame and gpa", "APM vol. 3 RMPUPDATE",
        "use 4 KiB entries, or an aligned frame and gpa", "pfn", "gpa");

    public static readonly Rule BadInput = new(
        "rmp.bad-input", "the new RMP entry has a field that cannot be: an unaligned gpa or an ASID that does not exist", "APM vol. 3 RMPUPDATE",
        "give a page-aligned gpa and an ASID of the processor", "pfn", "gpa", "asid#");

    public static readonly Rule Immutable = new(
        "rmp.immutable", "the page is immutable: it belongs to firmware or is being launched", "APM vol. 3 RMPUPDATE",
        "finish or reclaim the page by firmware (SNP_PAGE_RECLAIM) first", "pfn", "asid#", "gpa");

    public static readonly Rule Overlap = new(
        "rmp.overlap", "the change would mix a 4 KiB entry into an assigned 2 MiB entry", "APM vol. 3 RMPUPDATE",
        "PSMASH the 2 MiB entry first", "pfn", "entry_pfn");

    public static readonly Rule NotSmashable = new(
        "rmp.psmash", "PSMASH wants an assigned 2 MiB entry at an aligned frame that is not immutable", "APM vol. 3 PSMASH",
        "look the entry up first", "pfn");

    private readonly Machine _machine;
    private readonly PageTree<RmpEntry> _entries = new();

    // Pages of each ASID, so that nobody has to look through the table.
    private readonly Dictionary<uint, long> _owned = [];

    internal Rmp(Machine machine) => _machine = machine;

    /// <summary>RMPUPDATE. Clears validated and VMSA and resets the permissions to VMPL0 only.</summary>
    public RmpResult Update(SimThread thread, Pfn pfn, in RmpState state)
    {
        thread.Step(RmpUpdateStep, pfn.Value, state.Assigned ? state.Gpa : 0);
        if (!Covers(pfn))
        {
            return Fail(thread, RmpResult.FAIL_INPUT, NotCovered, pfn.Value);
        }
        bool is2M = state.Level == PageLevel.Page2M;
        ulong count = is2M ? PageLevel.Page2M.PagesPerLevel() : 1;
        if (is2M && (pfn.Value % count != 0 || !Covers(new Pfn(pfn.Value + count - 1)) || (state.Assigned && state.Gpa % (count << PageSize.Shift) != 0)))
        {
            return Fail(thread, RmpResult.FAIL_INPUT, Misaligned, pfn.Value, state.Gpa);
        }
        if (state.Gpa % PageSize.Bytes != 0 || state.Gpa >> 51 != 0 || state.Asid > _machine.Config.MaxAsid)
        {
            return Fail(thread, RmpResult.FAIL_INPUT, BadInput, pfn.Value, state.Gpa, state.Asid);
        }
        for (ulong i = 0; i < count; i++)
        {
            RmpEntry old = Entry(new Pfn(pfn.Value + i));
            if (old.Immutable)
            {
                return Fail(thread, RmpResult.FAIL_PERMISSION, Immutable, pfn.Value + i, old.Asid, old.Gpa);
            }
            if (old.Assigned && old.Is2M != is2M)
            {
                return Fail(thread, RmpResult.FAIL_OVERLAP, Overlap, pfn.Value, pfn.Value + i);
            }
        }
        for (ulong i = 0; i < count; i++)
        {
            Set(new Pfn(pfn.Value + i), state.Assigned ? New(thread, state, i << PageSize.Shift) : default);
        }
        return RmpResult.OK;
    }

    /// <summary>PSMASH: splits a 2 MiB entry into 512 entries that keep owner and validated; gpa counts up.</summary>
    public RmpResult Psmash(SimThread thread, Pfn pfn)
    {
        thread.Step(PsmashStep, pfn.Value);
        ulong count = PageLevel.Page2M.PagesPerLevel();
        if (!Covers(pfn) || pfn.Value % count != 0)
        {
            return Fail(thread, RmpResult.FAIL_INPUT, NotSmashable, pfn.Value);
        }
        RmpEntry head = Entry(pfn);
        if (!head.Assigned || !head.Is2M)
        {
            return Fail(thread, RmpResult.FAIL_OVERLAP, NotSmashable, pfn.Value);
        }
        if (head.Immutable)
        {
            return Fail(thread, RmpResult.FAIL_PERMISSION, NotSmashable, pfn.Value);
        }
        for (ulong i = 0; i < count; i++)
        {
            Pfn page = new(pfn.Value + i);
            Set(page, Entry(page) with { Is2M = false, WrittenByCall = (uint)thread.Call });
        }
        return RmpResult.OK;
    }

    /// <summary>RMPREAD: the entry of a frame and the level it stands at. False where the RMP does not cover the frame.</summary>
    public bool TryRead(Pfn pfn, out RmpState state)
    {
        if (!Covers(pfn))
        {
            state = default;
            return false;
        }
        RmpEntry entry = Entry(pfn);
        state = new RmpState(entry.Assigned, entry.Level, entry.Immutable, entry.Asid, entry.Gpa);
        return true;
    }

    /// <summary>For people: pages that belong to an ASID, as (gpa, state, VMSA), in frame order.</summary>
    public IEnumerable<(ulong Gpa, RmpPageState State, bool Vmsa)> Owned(uint asid)
    {
        foreach ((ulong start, ulong end, RmpEntry entry) in Runs())
        {
            for (ulong pfn = start; pfn < end; pfn++)
            {
                if (entry.Assigned && entry.Asid == asid)
                {
                    yield return (entry.Gpa, entry.State, entry.Vmsa);
                }
            }
        }
    }

    /// <summary>For people: frames that are assigned to somebody, in order.</summary>
    public IEnumerable<RmpFrame> Assigned() =>
        Runs().Where(run => run.Entry.Assigned).Select(run => new RmpFrame(new Pfn(run.Start), run.Entry.State, run.Entry.Asid, run.Entry.Gpa));

    internal RmpEntry Entry(Pfn pfn)
    {
        _machine.Reading(this, pfn.Value, pfn.Value + 1);
        return _entries[pfn.Value];
    }

    /// <summary>A change by firmware, inside a command. Firmware changes what RMPUPDATE may not.</summary>
    internal void Set(Pfn pfn, in RmpEntry entry)
    {
        _machine.Writing(this, pfn.Value, pfn.Value + 1);
        Count(Entry(pfn).Asid, -1);
        Count(entry.Asid, 1);
        _entries.Set(pfn.Value, entry);
    }

    /// <summary>Pages assigned to an ASID other than 0.</summary>
    internal long CountOwned(uint asid) => _owned.GetValueOrDefault(asid);

    internal void CheckInvariants()
    {
        foreach ((ulong start, ulong end, RmpEntry entry) in Runs())
        {
            for (ulong pfn = start; pfn < end; pfn++)
            {
                if (!entry.Assigned && entry != default)
                {
                    throw new InvalidOperationException($"frame 0x{pfn:x} is not assigned but has an entry {entry}");
                }
                ulong head = pfn & ~(PageLevel.Page2M.PagesPerLevel() - 1);
                if (entry.Is2M && Entry(new Pfn(head)) is var first && (!first.Is2M || first.Asid != entry.Asid || (entry.Asid != 0 && first.Gpa + ((pfn - head) << PageSize.Shift) != entry.Gpa)))
                {
                    throw new InvalidOperationException($"frame 0x{pfn:x} does not agree with its 2 MiB entry at 0x{head:x}");
                }
            }
        }
    }

    internal void ReportHostFault(SimThread thread, Pfn pfn)
    {
        RmpEntry entry = Entry(pfn);
        _machine.Findings.Report(
            thread, "host-rmp-fault",
            $"the host stored to frame 0x{pfn.Value:x}, which the RMP assigns to ASID {entry.Asid} (gpa 0x{entry.Gpa:x}, {entry.State}): a real host takes a fatal #PF here",
            [Operand.Of("pfn", pfn.Value), Operand.Of("gpa", entry.Gpa), Operand.Of("asid#", entry.Asid), Operand.Of("error_code", 0x8000_0003)],
            Blame(entry, thread, "stored to it"));
    }

    internal void ReportFreedWhilePrivate(SimThread thread, Pfn pfn)
    {
        RmpEntry entry = Entry(pfn);
        _machine.Findings.Report(
            thread, "page-freed-while-private",
            $"frame 0x{pfn.Value:x} was freed while the RMP assigns it to ASID {entry.Asid} (gpa 0x{entry.Gpa:x}, {entry.State}): its next owner would take an RMP fault; the frame is kept out of use",
            [Operand.Of("pfn", pfn.Value), Operand.Of("gpa", entry.Gpa), Operand.Of("asid#", entry.Asid)],
            Blame(entry, thread, "freed it"));
    }

    /// <summary>
    /// A guest keeps faulting on a page that nested paging gives it and the RMP gives to another guest, or to another of its own gpas. No software repairs that by retrying.
    /// </summary>
    public void ReportWrongOwner(SimThread thread, Pfn pfn, uint asid, ulong gpa)
    {
        RmpEntry entry = Entry(pfn);
        _machine.Findings.Report(
            thread, "rmp-wrong-owner",
            $"the guest of ASID {asid} accessed frame 0x{pfn.Value:x} as its gpa 0x{gpa:x}, but the RMP assigns it to ASID {entry.Asid}, gpa 0x{entry.Gpa:x} ({entry.State}): it faults for ever",
            [Operand.Of("pfn", pfn.Value), Operand.Of("gpa", gpa), Operand.Of("asid#", asid), Operand.Of("owner_gpa", entry.Gpa), Operand.Of("owner_asid#", entry.Asid)],
            Blame(entry, thread, "accessed it"));
    }

    private static IReadOnlyList<string> Blame(RmpEntry entry, SimThread thread, string deed) =>
        [$"call {entry.WrittenByCall} made it {entry.State}", $"call {thread.Call}, step {thread.Machine.Journal.Steps}, {deed}"];

    private static RmpEntry New(SimThread thread, in RmpState state, ulong gpaOffset) => new()
    {
        Assigned = true,
        Is2M = state.Level == PageLevel.Page2M,
        Immutable = state.Immutable,
        Asid = state.Asid,
        Gpa = state.Asid == 0 && state.Gpa == 0 ? 0 : state.Gpa + gpaOffset,
        Permissions = RmpEntry.PermissionsAfterUpdate,
        WrittenByCall = (uint)thread.Call,
    };

    private static RmpResult Fail(SimThread thread, RmpResult result, Rule rule, params ReadOnlySpan<ulong> operands)
    {
        thread.Refuse(rule, $"{result} {(int)result}", operands);
        return result;
    }

    private void Count(uint asid, int change)
    {
        if (asid != 0)
        {
            _owned[asid] = _owned.GetValueOrDefault(asid) + change;
        }
    }

    // Frame numbers start at 1 (frame 0 is never handed out), so the last one equals the count.
    private bool Covers(Pfn pfn) => pfn.Value <= _machine.Config.MemoryBytes >> PageSize.Shift;

    private IEnumerable<(ulong Start, ulong End, RmpEntry Entry)> Runs()
    {
        ulong end = (_machine.Config.MemoryBytes >> PageSize.Shift) + 1;
        for (ulong pfn = 0; pfn < end && _entries.TryFindFirstOther(pfn, end, default, out ulong found); pfn = found + 1)
        {
            yield return (found, found + 1, _entries[found]);
        }
    }
}

/// <summary>A frame that the RMP assigns.</summary>
/// <param name="Asid">The guest's; 0 is firmware's or the hypervisor's.</param>
/// <param name="Gpa">Guest physical address, bytes.</param>
public readonly record struct RmpFrame(Pfn Pfn, RmpPageState State, uint Asid, ulong Gpa);
