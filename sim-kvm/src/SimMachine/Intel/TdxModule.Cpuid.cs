using SimMachine.Addressing;
using SimMachine.Amd;

namespace SimMachine.Intel;

// The CPUID that a TD sees: the processor's, with what the host configured, and two leaves of the module's own.
public sealed partial class TdxModule
{
    private const uint TdxLeaf = 0x21;
    private const uint TscLeaf = 0x15;
    private const uint HighestLeaf = 0x23;
    private const uint CrystalHz = 25_000_000;

    // "IntelTDX    " in EBX, EDX, ECX.
    private const uint IdEbx = 0x65746E49;
    private const uint IdEdx = 0x5844546C;
    private const uint IdEcx = 0x20202020;

    /// <summary>The leaves that the module can report of an initialised TD (TDH.MNG.RD of CPUID_VALUES), sorted by function and index.</summary>
    public IReadOnlyList<CpuidEntry> VirtualCpuid(Pfn tdr)
    {
        Td td = _tds[tdr.Value];
        var leaves = new SortedDictionary<(uint, uint), CpuidEntry>();
        foreach (CpuidEntry native in _machine.Cpuid.Entries)
        {
            leaves[(native.Function, native.Index)] = native.Function == 0 ? native with { Eax = HighestLeaf } : native;
        }
        leaves[(TscLeaf, 0)] = new CpuidEntry(TscLeaf, 0, false, 1, td.TscFrequency, CrystalHz, 0);
        leaves[(TdxLeaf, 0)] = new CpuidEntry(TdxLeaf, 0, true, 0, IdEbx, IdEcx, IdEdx);
        for (int i = 0; i < _config.CpuidSlots.Count; i++)
        {
            TdxCpuidSlot slot = _config.CpuidSlots[i];
            leaves.TryGetValue((slot.Function, slot.Index), out CpuidEntry native);
            bool ownFms = slot.Function == 1 && td.CpuidValues[i * 4] == 0;
            leaves[(slot.Function, slot.Index)] = new CpuidEntry(
                slot.Function, slot.Index, slot.HasSubleaf,
                ownFms ? _config.Fms : Merge(native.Eax, slot.Eax, td.CpuidValues[i * 4]), Merge(native.Ebx, slot.Ebx, td.CpuidValues[(i * 4) + 1]),
                Merge(native.Ecx, slot.Ecx, td.CpuidValues[(i * 4) + 2]), Merge(native.Edx, slot.Edx, td.CpuidValues[(i * 4) + 3]));
        }
        return [.. leaves.Values];
    }

    // Bits that the host may configure are as it did; the others are the processor's.
    private static uint Merge(uint native, uint mask, uint configured) => (native & ~mask) | (configured & mask);
}
