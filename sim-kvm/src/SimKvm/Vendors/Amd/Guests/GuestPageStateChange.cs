using System.Buffers.Binary;
using SimKvm.Kvm;
using SimMachine.Addressing;
using SimMachine.Amd;

namespace SimKvm.Vendors.Amd.Guests;

/// <summary>An entry of a list of page states.</summary>
/// <param name="Gfn">The page's.</param>
/// <param name="Operation">1 private, 2 shared.</param>
/// <param name="Large">2 MiB.</param>
/// <param name="CurPage">Pages of 4 KiB that are done already.</param>
public readonly record struct PageStateEntry(ulong Gfn, int Operation, bool Large = false, int CurPage = 0);

/// <summary>
/// Page state changes by a GHCB, as a guest's kernel makes them: the list goes into the shared buffer, at most 253 entries at a time, and VMGEXIT is repeated until all entries
/// are done or one failed. With <paramref name="Validate"/> the guest's own part is done too: pages that become shared are given up first, pages that became private are
/// validated. The step's data is the last list afterwards, its RAX the result of the last PVALIDATE.
/// </summary>
/// <param name="GhcbGpa">A GHCB that the guest has registered.</param>
/// <param name="Entries">At least one.</param>
/// <param name="Validate">PVALIDATE as well.</param>
public sealed record GuestPageStateChange(ulong GhcbGpa, IReadOnlyList<PageStateEntry> Entries, bool Validate) : GuestRoutine
{
    private const int MaxEntries = 253;

    /// <summary>Bytes of the pages that the guest itself works on.</summary>
    public ulong ValidatedBytes =>
        Validate ? Entries.Aggregate(0UL, (sum, entry) => sum + (entry.Large ? PageLevel.Page2M : PageLevel.Page4K).Bytes()) : 0;

    internal override IEnumerable<GuestStep> Instructions(GuestRoutineState state)
    {
        foreach (GuestStep instruction in PvalidateAll(state, PscEntryWord.Shared, validate: false))
        {
            yield return instruction;
        }
        if (state.Rax != (ulong)GuestRmpResult.OK)
        {
            yield break;
        }
        foreach (PageStateEntry[] part in Entries.Chunk(MaxEntries))
        {
            byte[] list = List(part);
            int entriesDone = -1;
            while (true)
            {
                var call = new GuestGhcbCall(GhcbGpa, (ulong)GhcbExitCode.PSC, 0, 0) { SharedBuffer = list };
                foreach (GuestStep instruction in call.Instructions(state))
                {
                    yield return instruction;
                }
                list = state.Data.ToArray();
                int done = BinaryPrimitives.ReadUInt16LittleEndian(list);
                if (state.Ghcb is not { ExitInfo1: Ghcb.NoAction, ExitInfo2: 0 } || done <= entriesDone)
                {
                    state.Rax = (ulong)GuestRmpResult.OK;
                    yield break;
                }
                if (done >= part.Length)
                {
                    break;
                }
                entriesDone = done;
            }
        }
        foreach (GuestStep instruction in PvalidateAll(state, PscEntryWord.Private, validate: true))
        {
            yield return instruction;
        }
    }

    // A page of 2 MiB that the host backs in smaller pieces is validated piece by piece.
    private IEnumerable<GuestStep> PvalidateAll(GuestRoutineState state, int operation, bool validate)
    {
        state.Rax = (ulong)GuestRmpResult.OK;
        foreach (PageStateEntry entry in Validate ? Entries.Where(entry => entry.Operation == operation) : [])
        {
            yield return new GuestPvalidate(entry.Gfn << PageSize.Shift, entry.Large, validate);
            state.Rax = state.Last.Rax;
            ulong pieces = entry.Large && state.Rax == (ulong)GuestRmpResult.FAIL_SIZEMISMATCH ? PageLevel.Page2M.PagesPerLevel() : 0;
            for (ulong i = 0; i < pieces && (i == 0 || state.Rax == (ulong)GuestRmpResult.OK); i++)
            {
                yield return new GuestPvalidate((entry.Gfn + i) << PageSize.Shift, Large: false, validate);
                state.Rax = state.Last.Rax;
            }
            if (state.Rax != (ulong)GuestRmpResult.OK)
            {
                yield break;
            }
        }
    }

    private static byte[] List(PageStateEntry[] entries)
    {
        byte[] list = new byte[PscList.OffsetOf(entries.Length)];
        BinaryPrimitives.WriteUInt16LittleEndian(list.AsSpan(2), (ushort)(entries.Length - 1));
        for (int i = 0; i < entries.Length; i++)
        {
            PageStateEntry entry = entries[i];
            var word = new PscEntryWord(entry.Gfn, entry.Operation, entry.Large, entry.CurPage);
            BinaryPrimitives.WriteUInt64LittleEndian(list.AsSpan(PscList.OffsetOf(i)), word.Word);
        }
        return list;
    }
}
