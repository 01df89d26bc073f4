using System.Buffers.Binary;
using SimKvm.Kvm;
using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimKvm.Vendors.Amd;

// Page state changes: a guest says which pages it wants private or shared. KVM changes nothing itself: user space is asked, by KVM_EXIT_HYPERCALL, and the RMP follows when the
// pages are touched (private) or given back (shared).
internal sealed partial class SevBackend
{
    private const uint HypercallMapGpaRange = 12;
    private const ulong MapGpaRangePrivate = 0x10;
    private const ulong MapGpaRange2M = 1;
    private const int PscMaxCount = 253;

    // sw_exit_info_2 of a page state change.
    private const ulong PscGenericError = 0x100UL << 32;
    private const ulong PscInvalidHeader = (1UL << 32) | 1;
    private const ulong PscInvalidEntry = (1UL << 32) | 2;

    public static readonly Rule PscNeedsHypercallExit = new(
        "sev.psc.hypercall-exit", "user space does not take KVM_EXIT_HYPERCALL for KVM_HC_MAP_GPA_RANGE, so no page state can change", "snp_begin_psc",
        "enable KVM_CAP_EXIT_HYPERCALL with bit 12 before the vCPU runs");

    public static readonly Rule PscOperation = new(
        "sev.psc.operation", "a page becomes private (1) or shared (2)", "snp_begin_psc_msr", "use operation 1 or 2", "gpa", "operation#");

    public static readonly Rule PscRefused = new(
        "sev.psc.refused", "user space answered the page state change with an error", "snp_complete_psc_msr, snp_complete_one_psc",
        "see why the VMM set hypercall.ret", "ret");

    public static readonly Rule PscHeader = new(
        "sev.psc.header", "the list of page states has at most 253 entries, all of them inside the scratch area", "snp_begin_psc", "set end_entry to the index of the last entry", "end_entry#");

    public static readonly Rule PscEntry = new(
        "sev.psc.entry", "an entry says that more pages are done than it has, or a 2 MiB entry is not aligned", "snp_begin_psc",
        "align the gfn of 2 MiB entries to 512, start with cur_page 0", "index#", "gfn", "cur_page#");

    private bool PageStatesCanChange => (Vm.HypercallExits & (1u << (int)HypercallMapGpaRange)) != 0;

    // snp_begin_psc_msr
    private ExitResult BeginPscMsr(KTask current, Vcpu vcpu, VcpuSevEsState state)
    {
        var entry = new PscEntryWord(state.GhcbMsr & ~GhcbMsr.InfoMask);
        if (entry.Operation is not (PscEntryWord.Private or PscEntryWord.Shared))
        {
            return Fail(PscOperation, entry.Gfn.ToGpa().Value, (ulong)entry.Operation);
        }
        if (!PageStatesCanChange)
        {
            return Fail(PscNeedsHypercallExit);
        }
        MapGpaRangeExit(vcpu, entry.Gfn, 1, entry.Operation, large: false);
        return AskUserSpace(vcpu, next =>
        {
            ulong ret = vcpu.Run.HypercallRet;
            if (ret != 0)
            {
                next.Refuse(PscRefused, "GHCB MSR 0x015", ret);
            }
            state.GhcbMsr = ret != 0 ? GhcbMsr.PageStateChangeError : GhcbMsr.PageStateChangeResponse;
            return ExitResult.Resume;
        });

        ExitResult Fail(Rule rule, params ReadOnlySpan<ulong> operands)
        {
            current.Refuse(rule, "GHCB MSR 0x015", operands);
            state.GhcbMsr = GhcbMsr.PageStateChangeError;
            return ExitResult.Resume;
        }
    }

    // snp_begin_psc: the next run of pages for which user space is asked at once, or the end of the list.
    private ExitResult BeginPsc(KTask current, Vcpu vcpu, VcpuSevEsState state)
    {
        if (!PageStatesCanChange)
        {
            return CompletePsc(current, state, PscGenericError, PscNeedsHypercallExit);
        }
        while (true)
        {
            var list = new PscList(state.Scratch!.Bytes);
            int index = list.CurEntry, end = list.EndEntry;
            if (end >= PscMaxCount || !list.Holds(end))
            {
                return CompletePsc(current, state, PscInvalidHeader, PscHeader, (ulong)end);
            }

            // Entries that are done are skipped. What is left of a 2 MiB entry that was done in part goes on in pages of 4 KiB.
            PscEntryWord first = default;
            int pages = 0;
            bool large = false;
            for (; index <= end && pages == 0; index += pages == 0 ? 1 : 0)
            {
                first = list[index];
                if (first.CurPage > first.Pages || first.Gfn.Value % (ulong)first.Pages != 0)
                {
                    return CompletePsc(current, state, PscInvalidEntry, PscEntry, (ulong)index, first.Gfn.Value, (ulong)first.CurPage);
                }
                pages = first.Pages - first.CurPage;
                large = first.Large && first.CurPage == 0;
                if (pages == 0)
                {
                    StoreCurEntry(current, state, index + 1);
                }
            }
            if (index > end)
            {
                return CompletePsc(current, state, 0, null);
            }

            Gfn start = first.Gfn + (ulong)first.CurPage;
            state.PscIndex = index;
            state.PscInflight = 1;
            for (int next = index + 1; next <= end && list[next].Follows(first, pages, large); next++)
            {
                state.PscInflight++;
                pages += list[next].Pages;
            }
            if (first.Operation is PscEntryWord.Private or PscEntryWord.Shared)
            {
                MapGpaRangeExit(vcpu, start, (ulong)pages, first.Operation, first.Large);
                return AskUserSpace(vcpu, next => CompleteOnePsc(next, vcpu, state));
            }
            // Operations that KVM does not know count as done.
            MarkPscDone(current, state);
        }
    }

    // snp_complete_one_psc
    private ExitResult CompleteOnePsc(KTask current, Vcpu vcpu, VcpuSevEsState state)
    {
        if (vcpu.Run.HypercallRet is not 0 and var ret)
        {
            return CompletePsc(current, state, PscGenericError, PscRefused, ret);
        }
        MarkPscDone(current, state);
        return BeginPsc(current, vcpu, state);
    }

    // __snp_complete_one_psc
    private void MarkPscDone(KTask current, VcpuSevEsState state)
    {
        var list = new PscList(state.Scratch!.Bytes);
        Span<byte> word = stackalloc byte[sizeof(ulong)];
        int end = state.PscIndex + state.PscInflight;
        for (int index = state.PscIndex; index < end; index++)
        {
            BinaryPrimitives.WriteUInt64LittleEndian(word, list[index].Done.Word);
            StoreScratch(current, state.Scratch, PscList.OffsetOf(index), word);
        }
        state.PscInflight = 0;
        StoreCurEntry(current, state, end);
    }

    private void StoreCurEntry(KTask current, VcpuSevEsState state, int index)
    {
        Span<byte> number = stackalloc byte[sizeof(ushort)];
        BinaryPrimitives.WriteUInt16LittleEndian(number, (ushort)index);
        StoreScratch(current, state.Scratch!, 0, number);
    }

    // snp_complete_psc: the answer is always "no action", with a code of its own beside.
    private static ExitResult CompletePsc(KTask current, VcpuSevEsState state, ulong code, Rule? rule, params ReadOnlySpan<ulong> operands)
    {
        if (rule is not null)
        {
            current.Refuse(rule, $"page state change 0x{code:x}", operands);
        }
        state.PscInflight = 0;
        state.PscIndex = 0;
        return Answer(state.Ghcb!, code);
    }

    private void MapGpaRangeExit(Vcpu vcpu, Gfn start, ulong pages, int operation, bool large) => vcpu.Run.Hypercall(
        HypercallMapGpaRange,
        [start.ToGpa().Value, pages, (operation == PscEntryWord.Private ? MapGpaRangePrivate : 0) | (large ? MapGpaRange2M : 0)],
        longMode: false, _host.Profile.HypercallRetPreset);
}

/// <summary>An entry of a list of page states: cur_page 11:0, gfn 51:12, operation 55:52, pagesize 56 (struct psc_entry). The MSR protocol has gfn and operation in the same bits.</summary>
internal readonly record struct PscEntryWord(ulong Word)
{
    public const int Private = 1;
    public const int Shared = 2;

    public PscEntryWord(ulong gfn, int operation, bool large, int curPage)
        : this((ulong)(uint)curPage & 0xfff | ((gfn & 0xff_ffff_ffff) << 12) | ((ulong)operation & 0xf) << 52 | (large ? 1UL << 56 : 0))
    {
    }

    public int CurPage => (int)(Word & 0xfff);

    public Gfn Gfn => new((Word >> 12) & 0xff_ffff_ffff);

    public int Operation => (int)(Word >> 52) & 0xf;

    public bool Large => (Word >> 56 & 1) != 0;

    /// <summary>Pages of 4 KiB.</summary>
    public int Pages => Large ? (int)PageLevel.Page2M.PagesPerLevel() : 1;

    public PscEntryWord Done => new((Word & ~0xfffUL) | (uint)Pages);

    /// <summary>It can be asked for together with a run of <paramref name="pages"/> that begins with <paramref name="first"/>.</summary>
    public bool Follows(PscEntryWord first, int pages, bool large) =>
        Operation == first.Operation && Gfn == first.Gfn + (ulong)pages && CurPage == 0 && Large == large;
}

/// <summary>A list of page states in a scratch area: cur_entry u16, end_entry u16 (the last one, not the one behind it), 4 bytes, then the entries.</summary>
internal readonly ref struct PscList(ReadOnlySpan<byte> bytes)
{
    public const int HeaderSize = 8;

    private readonly ReadOnlySpan<byte> _bytes = bytes;

    public int CurEntry => Holds(-1) ? BinaryPrimitives.ReadUInt16LittleEndian(_bytes) : 0;

    public int EndEntry => Holds(-1) ? BinaryPrimitives.ReadUInt16LittleEndian(_bytes[2..]) : 0;

    public PscEntryWord this[int index] => new(BinaryPrimitives.ReadUInt64LittleEndian(_bytes[OffsetOf(index)..]));

    public static int OffsetOf(int index) => HeaderSize + (index * sizeof(ulong));

    /// <summary>The area is long enough for that entry; -1 asks for the header.</summary>
    public bool Holds(int index) => OffsetOf(index + 1) <= _bytes.Length;
}
