using System.Buffers.Binary;
using VmmService.V1;

namespace VmmService.Client.Launch;

/// <summary>
/// The CPUID page that a VMM proposes to firmware (struct snp_cpuid_table; snp.md 9.2), built from what KVM supports the way QEMU builds it.
/// </summary>
public static class CpuidPage
{
    public const int Size = 4096;

    /// <summary>Entries that fit.</summary>
    public const int MaxCount = 64;

    private const int HeaderSize = 16;
    private const int EntrySize = 48;
    private const uint SignificantIndex = 1;

    // What QEMU masks because firmware refuses it: TSC_DEADLINE; TSC_ADJUST; SPEC_CTRL, STIBP, L1D flush, arch and core capabilities, SSBD; VIRT_SSBD.
    private static readonly (uint Function, uint Index, char Register, uint Mask)[] Masked =
    [
        (0x1, 0, 'c', 1u << 24),
        (0x7, 0, 'b', 1u << 1),
        (0x7, 0, 'd', (1u << 26) | (1u << 27) | (1u << 28) | (1u << 29) | (1u << 30) | (1u << 31)),
        (0x8000_0008, 0, 'b', 1u << 25),
    ];

    /// <summary>Builds the page.</summary>
    /// <exception cref="LaunchPlanException">More than 64 entries are not zero.</exception>
    public static byte[] Build(IEnumerable<KvmCpuidEntry2> supported)
    {
        ArgumentNullException.ThrowIfNull(supported);
        KvmCpuidEntry2[] entries = [.. supported.Where(entry => (entry.Eax | entry.Ebx | entry.Ecx | entry.Edx) != 0)];
        if (entries.Length > MaxCount)
        {
            throw new LaunchPlanException($"The host lists {entries.Length} CPUID entries that are not zero; an SNP CPUID page has room for {MaxCount}.");
        }
        byte[] page = new byte[Size];
        BinaryPrimitives.WriteUInt32LittleEndian(page, (uint)entries.Length);
        for (int i = 0; i < entries.Length; i++)
        {
            Write(page.AsSpan(HeaderSize + (i * EntrySize), EntrySize), entries[i]);
        }
        return page;
    }

    private static void Write(Span<byte> slot, KvmCpuidEntry2 entry)
    {
        uint index = (entry.Flags & SignificantIndex) != 0 ? entry.Index : 0;
        bool xsaveSize = entry.Function == 0xd && index is 0 or 1;
        BinaryPrimitives.WriteUInt32LittleEndian(slot, entry.Function);
        BinaryPrimitives.WriteUInt32LittleEndian(slot[4..], index);
        BinaryPrimitives.WriteUInt64LittleEndian(slot[8..], xsaveSize ? 1UL : 0);
        BinaryPrimitives.WriteUInt32LittleEndian(slot[24..], Mask(entry, index, 'a', entry.Eax));
        BinaryPrimitives.WriteUInt32LittleEndian(slot[28..], xsaveSize ? 0x240 : Mask(entry, index, 'b', entry.Ebx));
        BinaryPrimitives.WriteUInt32LittleEndian(slot[32..], Mask(entry, index, 'c', entry.Ecx));
        BinaryPrimitives.WriteUInt32LittleEndian(slot[36..], Mask(entry, index, 'd', entry.Edx));
    }

    private static uint Mask(KvmCpuidEntry2 entry, uint index, char register, uint value)
    {
        foreach ((uint function, uint maskedIndex, char maskedRegister, uint mask) in Masked)
        {
            value &= function == entry.Function && maskedIndex == index && maskedRegister == register ? ~mask : uint.MaxValue;
        }
        return value;
    }
}
