using SimMachine.Addressing;
using SimMachine.Measurement;

namespace SimMachine.Intel;

/// <summary>For people: what the module has of a TD.</summary>
/// <param name="Mrtd">48 bytes: final, or what it is so far.</param>
/// <param name="MrtdIsFinal">TDH.MR.FINALIZE was called.</param>
/// <param name="Rtmr">Four times 48 bytes.</param>
/// <param name="Pages">Pages that the TD has, its TDR not counted.</param>
public sealed record TdSummary(
    TdLifecycle Lifecycle, TdOpState OpState, uint Hkid, ulong Attributes, ulong Xfam, int Gpaw, int MaxVcpus, int Vcpus, ulong Epoch, long Pages,
    byte[] Mrtd, bool MrtdIsFinal, IReadOnlyList<byte[]> Rtmr, byte[] Mrconfigid, byte[] Mrowner, byte[] Mrownerconfig, MrtdTranscript Transcript);

/// <summary>For people: a page of a Secure EPT.</summary>
/// <param name="Level">0 is 4 KiB.</param>
public readonly record struct SeptPage(ulong Gpa, int Level, SeptState State, Pfn Pfn);

/// <summary>For people: a frame that the module has.</summary>
/// <param name="Tdr">Whose it is.</param>
public readonly record struct TdxFrame(Pfn Pfn, TdxPageType Type, Pfn Tdr);

// For people: looks only.
public sealed partial class TdxModule
{
    /// <summary>A TD by its TDR; null where there is none.</summary>
    public TdSummary? Describe(Pfn tdr)
    {
        if (!_tds.TryGetValue(tdr.Value, out Td? td))
        {
            return null;
        }
        foreach (object state in td.SharedState)
        {
            _machine.Reading(state);
        }
        return new TdSummary(
            td.Lifecycle, td.OpState, td.Hkid, td.Attributes, td.Xfam, td.Gpaw, td.MaxVcpus, td.Vcpus.Count, td.Epoch, td.Children,
            td.OpState == TdOpState.Runnable ? td.FinalMrtd : td.Mrtd.Current, td.OpState == TdOpState.Runnable, td.Rtmr, td.Mrconfigid, td.Mrowner, td.Mrownerconfig, td.Mrtd);
    }

    /// <summary>The frames that the module has, in order.</summary>
    public IEnumerable<TdxFrame> Frames() =>
        _pamt.Taken((_machine.Config.MemoryBytes >> PageSize.Shift) + 1).Select(each => new TdxFrame(each.Pfn, each.Entry.Type, each.Entry.Type == TdxPageType.TDR ? each.Pfn : each.Entry.Owner));

    /// <summary>What the module uses a page for.</summary>
    public TdxPageType TypeOf(Pfn page) => _pamt[page].Type;

    /// <summary>The TDR of a vCPU's TD; 0 where there is no such vCPU.</summary>
    public Pfn TdrOf(Pfn tdvpr) => _vcpus.TryGetValue(tdvpr.Value, out TdVcpu? vcpu) ? vcpu.Td.Tdr : default;

    /// <summary>All entries of a TD's Secure EPT that are not free, tables too, the highest level first.</summary>
    public IEnumerable<SeptPage> Entries(Pfn tdr) => !_tds.TryGetValue(tdr.Value, out Td? td)
        ? []
        : td.Sept.Entries().Select(each => new SeptPage(each.Gpa, each.Level, each.Entry.State, each.Entry.Pfn));

    /// <summary>The Secure EPT entry that a walk for a page of 4 KiB ends at.</summary>
    public SeptPage Look(Pfn tdr, ulong gpa)
    {
        if (!_tds.TryGetValue(tdr.Value, out Td? td) || gpa >= td.SharedBit)
        {
            return default;
        }
        td.Sept.Walk(gpa, 0, out int level, out SeptEntry entry);
        return new SeptPage(gpa & ~(Sept.BytesOf(level) - 1), level, entry.State, entry.Pfn);
    }

    /// <summary>The pages of a TD's Secure EPT that are not free, tables left out, in order of addresses for each size.</summary>
    public IEnumerable<SeptPage> Pages(Pfn tdr) => !_tds.TryGetValue(tdr.Value, out Td? td)
        ? []
        : td.Sept.Entries().Where(each => each.Entry.IsLeaf).Select(each => new SeptPage(each.Gpa, each.Level, each.Entry.State, each.Entry.Pfn));
}
