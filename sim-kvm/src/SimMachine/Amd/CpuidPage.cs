using System.Buffers.Binary;
using SimMachine.Stepping;

namespace SimMachine.Amd;

/// <summary>One entry of a CPUID page: what a guest asks (the inputs) and what it is told. Layout of Linux struct snp_cpuid_fn, 48 bytes.</summary>
public readonly record struct CpuidFunction(
    uint EaxIn, uint EcxIn, ulong Xcr0In, ulong XssIn, uint Eax, uint Ebx, uint Ecx, uint Edx, ulong Reserved);

/// <summary>
/// The CPUID page of an SNP launch: a table of CPUID answers that the hypervisor proposes and firmware checks against the processor
/// (<see cref="PlatformCpuid"/>) before it is encrypted for the guest. Next door: <see cref="SecretsPage"/>, the other page that firmware has a say
/// in.
/// </summary>
/// <remarks>
/// Layout (snp.md 9.2): count u32 @0, reserved u32 @4, reserved u64 @8, then up to 64 entries of 48 bytes. Bytes behind the last counted entry are
/// not looked at.
/// <para>
/// Every function is checked by the rule of snp.md 3.4, a function that the processor does not have must be zero. The hypervisor's own range
/// 0x40000000-0x4FFFFFFF passes: a Linux guest takes it from the page (snp_cpuid), so firmware lets it stand. The exact policy of silicon is not known.
/// </para>
/// Invariant: a page that was accepted is as the caller wrote it; in one that was refused for its values, every output is one that would be
/// accepted.
/// </remarks>
public static class CpuidPage
{
    public const int Size = 4096;

    /// <summary>Entries that fit.</summary>
    public const int MaxCount = 64;

    private const int HeaderSize = 16;
    private const int EntrySize = 48;
    private const int OutputsOffset = 24;
    private const int ReservedOffset = 40;

    public static readonly Rule TooManyEntries = new(
        "psp.cpuid-page.count", "a CPUID page holds at most 64 entries", "SNP firmware ABI, SNP_LAUNCH_UPDATE",
        "leave out leaves with four zero outputs: a guest takes a leaf that is missing inside its range for zeros", "count#", "max#");

    public static readonly Rule HeaderReserved = new(
        "psp.cpuid-page.header-reserved", "the reserved fields of the CPUID page header must be zero", "SNP firmware ABI, SNP_LAUNCH_UPDATE",
        "zero the bytes 4 to 15 of the page", "reserved1", "reserved2");

    public static readonly Rule EntryReserved = new(
        "psp.cpuid-page.entry-reserved", "the reserved field of a CPUID page entry must be zero", "SNP firmware ABI, SNP_LAUNCH_UPDATE",
        "zero the last 8 bytes of each entry", "function", "subleaf", "reserved");

    public static readonly Rule ValueRefused = new(
        "psp.cpuid-page.value",
        "an output of a CPUID function claims what the processor does not have; register 0 is EAX, 1 EBX, 2 ECX, 3 EDX",
        "SNP firmware ABI, SNP_LAUNCH_UPDATE",
        "use the accepted values, which now stand in the source page for all refused entries: call again, or take the feature from the vCPU model",
        "function", "subleaf", "register#", "provided", "accepted", "refused_entries#");

    public static readonly Rule UnknownLeaf = new(
        "psp.cpuid-page.unknown-leaf",
        "a CPUID function that the processor does not have must have zero outputs; register 0 is EAX, 1 EBX, 2 ECX, 3 EDX",
        "SNP firmware ABI, SNP_LAUNCH_UPDATE",
        "leave the entry out, or give its index as 0 if the function has no subleaves; the source page now has zeros there",
        "function", "subleaf", "register#", "provided", "accepted", "refused_entries#");

    /// <summary>
    /// What firmware does with a CPUID page in SNP_LAUNCH_UPDATE before it measures and encrypts it. If values are refused, all of them are
    /// replaced in
    /// <paramref name="page"/> and the caller hands the page back to the host.
    /// </summary>
    /// <param name="page">4096 bytes.</param>
    /// <returns>SUCCESS, or INVALID_PARAM with the first offence as the cause.</returns>
    public static SevStatus Validate(SimThread thread, Span<byte> page, PlatformCpuid host)
    {
        if (page.Length != Size)
        {
            throw new ArgumentException($"a CPUID page has {Size} bytes, not {page.Length}", nameof(page));
        }
        uint reserved1 = BinaryPrimitives.ReadUInt32LittleEndian(page[4..]);
        ulong reserved2 = BinaryPrimitives.ReadUInt64LittleEndian(page[8..]);
        if ((reserved1 | reserved2) != 0)
        {
            return thread.Fail(SevStatus.INVALID_PARAM, HeaderReserved, reserved1, reserved2);
        }
        uint count = BinaryPrimitives.ReadUInt32LittleEndian(page);
        if (count > MaxCount)
        {
            return thread.Fail(SevStatus.INVALID_PARAM, TooManyEntries, count, MaxCount);
        }

        Offence first = default;
        int refused = 0;
        for (int i = 0; i < (int)count; i++)
        {
            Offence offence = Correct(Entry(page, i), host);
            if (offence.Rule is not null && refused++ == 0)
            {
                first = offence;
            }
        }
        if (first.Rule is null)
        {
            return SevStatus.SUCCESS;
        }
        if (first.Rule == EntryReserved)
        {
            return thread.Fail(SevStatus.INVALID_PARAM, EntryReserved, first.Function.EaxIn, first.Function.EcxIn, first.Function.Reserved);
        }
        return thread.Fail(
            SevStatus.INVALID_PARAM, first.Rule,
            first.Function.EaxIn, first.Function.EcxIn, (ulong)first.Register, first.Provided, first.Accepted, (ulong)refused);
    }

    /// <summary>The counted entries, in the page's order, whether firmware would accept them or not. A count beyond 64 reads as 64.</summary>
    /// <param name="page">4096 bytes.</param>
    public static IReadOnlyList<CpuidFunction> Read(ReadOnlySpan<byte> page)
    {
        var functions = new CpuidFunction[Math.Min(BinaryPrimitives.ReadUInt32LittleEndian(page), MaxCount)];
        for (int i = 0; i < functions.Length; i++)
        {
            functions[i] = ReadFunction(page.Slice(HeaderSize + (i * EntrySize), EntrySize));
        }
        return functions;
    }

    private readonly record struct Offence(Rule? Rule, CpuidFunction Function, CpuidRegister Register, uint Provided, uint Accepted);

    // Rewrites the outputs of one entry to what is accepted; answers the first thing that was wrong with it.
    private static Offence Correct(Span<byte> entry, PlatformCpuid host)
    {
        CpuidFunction function = ReadFunction(entry);
        if (!IsChecked(function.EaxIn))
        {
            return default;
        }
        Offence first = function.Reserved != 0 ? new Offence(EntryReserved, function, default, 0, 0) : default;
        bool known = host.TryFind(function.EaxIn, function.EcxIn, out CpuidEntry leaf);
        for (CpuidRegister register = CpuidRegister.EAX; register <= CpuidRegister.EDX; register++)
        {
            Span<byte> output = entry.Slice(OutputsOffset + (4 * (int)register), 4);
            uint provided = BinaryPrimitives.ReadUInt32LittleEndian(output);
            uint accepted = known ? host.Accept(leaf, register, provided, function.Xcr0In, function.XssIn) : 0;
            if (accepted == provided)
            {
                continue;
            }
            BinaryPrimitives.WriteUInt32LittleEndian(output, accepted);
            if (first.Rule is null)
            {
                first = new Offence(known ? ValueRefused : UnknownLeaf, function, register, provided, accepted);
            }
        }
        return first;
    }

    private static bool IsChecked(uint function) => function is < 0x40000000 or > 0x4FFFFFFF;

    private static Span<byte> Entry(Span<byte> page, int index) => page.Slice(HeaderSize + (index * EntrySize), EntrySize);

    private static CpuidFunction ReadFunction(ReadOnlySpan<byte> entry) => new(
        BinaryPrimitives.ReadUInt32LittleEndian(entry),
        BinaryPrimitives.ReadUInt32LittleEndian(entry[4..]),
        BinaryPrimitives.ReadUInt64LittleEndian(entry[8..]),
        BinaryPrimitives.ReadUInt64LittleEndian(entry[16..]),
        BinaryPrimitives.ReadUInt32LittleEndian(entry[OutputsOffset..]),
        BinaryPrimitives.ReadUInt32LittleEndian(entry[(OutputsOffset + 4)..]),
        BinaryPrimitives.ReadUInt32LittleEndian(entry[(OutputsOffset + 8)..]),
        BinaryPrimitives.ReadUInt32LittleEndian(entry[(OutputsOffset + 12)..]),
        BinaryPrimitives.ReadUInt64LittleEndian(entry[ReservedOffset..]));
}
