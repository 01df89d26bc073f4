using System.Buffers.Binary;

namespace VmmService.Client.Launch;

/// <summary>An entry of the CPUID page: a question and its answer. Layout of Linux struct snp_cpuid_fn.</summary>
public readonly record struct SnpCpuidEntry(uint EaxIn, uint EcxIn, ulong Xcr0In, ulong XssIn, uint Eax, uint Ebx, uint Ecx, uint Edx)
{
    /// <summary>KVM_CPUID_FLAG_SIGNIFCANT_INDEX, with the kernel's spelling: the function has subleaves and the index counts.</summary>
    public const uint SIGNIFCANT_INDEX = 1;

    // Size of the XSAVE area with x87 and SSE only, which is what a guest has before it sets XCR0.
    private const uint XsaveLegacySize = 0x240;

    /// <summary>
    /// What QEMU makes of an entry of KVM_GET_CPUID2 (snp.md 9.2): the index is left out where it does not count, the XSAVE size is that of the start, and features
    /// that firmware is known to refuse are masked.
    /// </summary>
    public static SnpCpuidEntry FromKvm(uint function, uint index, uint flags, uint eax, uint ebx, uint ecx, uint edx)
    {
        bool indexed = (flags & SIGNIFCANT_INDEX) != 0;
        var entry = new SnpCpuidEntry(function, indexed ? index : 0, 0, 0, eax, ebx, ecx, edx);
        return (entry.EaxIn, entry.EcxIn) switch
        {
            (0x0000_0001, _) => entry with { Ecx = ecx & ~Bit(24) }, // TSC deadline timer
            (0x0000_0007, 0) => entry with
            {
                Ebx = ebx & ~Bit(1), // TSC_ADJUST
                // SPEC_CTRL, STIBP, L1D flush, arch-capabilities, core-capabilities, SSBD
                Edx = edx & ~(Bit(26) | Bit(27) | Bit(28) | Bit(29) | Bit(30) | Bit(31)),
            },
            (0x0000_000d, 0 or 1) => entry with { Xcr0In = 1, Ebx = XsaveLegacySize },
            (0x8000_0008, _) => entry with { Ebx = ebx & ~Bit(25) }, // VIRT_SSBD
            _ => entry,
        };
    }

    private static uint Bit(int bit) => 1u << bit;
}

/// <summary>
/// The CPUID page that a VMM proposes to firmware: the table from which a guest takes its CPUID answers without trusting the hypervisor (snp.md 9.2; Linux struct
/// snp_cpuid_table). Its content is not measured.
/// </summary>
public static class CpuidPage
{
    /// <summary>Entries that fit.</summary>
    public const int MaxEntries = 64;

    private const int HeaderSize = 16;
    private const int EntrySize = 48;

    /// <summary>Lays out the page of 4096 bytes; entries keep their order.</summary>
    /// <exception cref="LaunchInputException">More than <see cref="MaxEntries"/>.</exception>
    public static byte[] Build(IReadOnlyList<SnpCpuidEntry> entries)
    {
        ArgumentNullException.ThrowIfNull(entries);
        if (entries.Count > MaxEntries)
        {
            throw new LaunchInputException(
                $"The CPUID page would have {entries.Count} entries and its limit is {MaxEntries}. Leave out functions whose four answers are zero: a guest takes one that is missing in a range for zeros.");
        }

        byte[] page = new byte[FirmwareImage.PageSize];
        BinaryPrimitives.WriteUInt32LittleEndian(page, (uint)entries.Count);
        for (int i = 0; i < entries.Count; i++)
            Write(page.AsSpan(HeaderSize + (i * EntrySize), EntrySize), entries[i]);

        return page;
    }

    private static void Write(Span<byte> at, in SnpCpuidEntry entry)
    {
        BinaryPrimitives.WriteUInt32LittleEndian(at, entry.EaxIn);
        BinaryPrimitives.WriteUInt32LittleEndian(at[4..], entry.EcxIn);
        BinaryPrimitives.WriteUInt64LittleEndian(at[8..], entry.Xcr0In);
        BinaryPrimitives.WriteUInt64LittleEndian(at[16..], entry.XssIn);
        BinaryPrimitives.WriteUInt32LittleEndian(at[24..], entry.Eax);
        BinaryPrimitives.WriteUInt32LittleEndian(at[28..], entry.Ebx);
        BinaryPrimitives.WriteUInt32LittleEndian(at[32..], entry.Ecx);
        BinaryPrimitives.WriteUInt32LittleEndian(at[36..], entry.Edx);
    }
}
