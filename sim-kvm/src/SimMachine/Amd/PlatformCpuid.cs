using System.Numerics;
using System.Text;

namespace SimMachine.Amd;

/// <summary>The processors a machine can be.</summary>
public enum EpycProduct
{
    /// <summary>EPYC 7003, family 0x19 model 0x01 stepping 1.</summary>
    Milan,

    /// <summary>EPYC 9004, family 0x19 model 0x11 stepping 1.</summary>
    Genoa,

    /// <summary>EPYC 9005, family 0x1A model 0x02 stepping 1.</summary>
    Turin,
}

/// <summary>An output register of CPUID, numbered in the order in which a CPUID page stores them.</summary>
public enum CpuidRegister
{
    EAX = 0,
    EBX = 1,
    ECX = 2,
    EDX = 3,
}

/// <summary>What firmware accepts in one output register of a CPUID page.</summary>
public enum CpuidPolicy
{
    /// <summary>Whatever the hypervisor says: topology, cache sizes, model, names, the highest leaf.</summary>
    Any,

    /// <summary>The processor's own value.</summary>
    Exact,

    /// <summary>Feature bits: none that the processor lacks.</summary>
    SubsetOfHost,

    /// <summary>0x8000001F EBX: the position of the C-bit (bits 5:0) is exact. The reduction of physical bits and the number of VMPLs are the
    /// hypervisor's.</summary>
    CBitPosition,

    /// <summary>0xD.0 EBX: the size of an XSAVE area for the entry's xcr0_in.</summary>
    XsaveSize,

    /// <summary>0xD.1 EBX: the size of a compacted XSAVE area for the entry's xcr0_in and xss_in.</summary>
    CompactedXsaveSize,
}

/// <summary>What CPUID answers for one function and index, and what firmware lets a hypervisor make of it.</summary>
/// <param name="Function">EAX in.</param>
/// <param name="Index">ECX in; 0 where it is not significant.</param>
/// <param name="SignificantIndex">The answer depends on ECX (KVM_CPUID_FLAG_SIGNIFCANT_INDEX).</param>
public readonly record struct CpuidEntry(uint Function, uint Index, bool SignificantIndex, uint Eax, uint Ebx, uint Ecx, uint Edx)
{
    public CpuidPolicy EaxPolicy { get; init; }

    public CpuidPolicy EbxPolicy { get; init; }

    public CpuidPolicy EcxPolicy { get; init; }

    public CpuidPolicy EdxPolicy { get; init; }

    /// <summary>Bits of ECX that mirror the CR4 of whoever asks (OSXSAVE, OSPKE): clear in <see cref="Ecx"/>, never checked.</summary>
    public uint EcxOsBits { get; init; }

    public uint this[CpuidRegister register] => register switch
    {
        CpuidRegister.EAX => Eax,
        CpuidRegister.EBX => Ebx,
        CpuidRegister.ECX => Ecx,
        _ => Edx,
    };

    public CpuidPolicy PolicyOf(CpuidRegister register) => register switch
    {
        CpuidRegister.EAX => EaxPolicy,
        CpuidRegister.EBX => EbxPolicy,
        CpuidRegister.ECX => EcxPolicy,
        _ => EdxPolicy,
    };
}

/// <summary>
/// The CPUID leaves of a machine's processor, seen from inside a guest, and the bounds that firmware puts on a CPUID page (see
/// <see cref="CpuidPage"/>).
/// </summary>
/// <remarks>
/// Values are those that EPYC 7713, 9124 and 9655 report; the numbers that depend on a machine's size (topology, caches) are one plausible choice,
/// and the brand string says that the processor is simulated. Policies are snp.md 3.4. KVM makes its own list of this table
/// (KVM_GET_SUPPORTED_CPUID): it takes features away (MONITOR) and adds some that it emulates (TSC_DEADLINE_TIMER, TSC_ADJUST, ARCH_CAPABILITIES);
/// firmware does not know of the latter, which is why a VMM leaves them out of a CPUID page.
/// <para>Invariant: sorted by function and index, no pair twice, no entry with four zero outputs.</para>
/// </remarks>
public sealed class PlatformCpuid
{
    /// <summary>Position of the C-bit in a page-table entry.</summary>
    public const int CBit = 51;

    /// <summary>Bytes of an XSAVE area before the first extended component: the legacy region and the header.</summary>
    public const uint XsaveLegacyBytes = 0x240;

    private const uint VendorEbx = 0x68747541;
    private const uint VendorEcx = 0x444D4163;
    private const uint VendorEdx = 0x69746E65;

    private readonly CpuidEntry[] _entries;

    private PlatformCpuid(EpycProduct product, List<CpuidEntry> entries)
    {
        Product = product;
        _entries = [.. entries];
    }

    public EpycProduct Product { get; }

    /// <summary>Sorted by function and index.</summary>
    public IReadOnlyList<CpuidEntry> Entries => _entries;

    /// <summary>Family, model and stepping, as CPUID 1 EAX has them.</summary>
    public uint Fms => Signature(Product);

    /// <summary>CPUID 1 EAX of a product.</summary>
    public static uint Signature(EpycProduct product) => product switch
    {
        EpycProduct.Milan => 0x00A00F11,
        EpycProduct.Genoa => 0x00A10F11,
        EpycProduct.Turin => 0x00B00F21,
        _ => throw new ArgumentOutOfRangeException(nameof(product), product, "unknown product"),
    };

    /// <summary>The table of a product.</summary>
    /// <param name="maxAsid">0x8000001F ECX: the highest ASID, a number of the product and its firmware settings.</param>
    /// <param name="minSevAsid">0x8000001F EDX: the lowest ASID of an SEV guest without encrypted state, a firmware setting.</param>
    public static PlatformCpuid For(EpycProduct product, uint maxAsid = 509, uint minSevAsid = 100) =>
        new(product, Build(product, maxAsid, minSevAsid));

    /// <summary>A table of another vendor's processor.</summary>
    /// <param name="entries">Sorted by function and index.</param>
    internal static PlatformCpuid Of(List<CpuidEntry> entries) => new(default, entries);

    /// <summary>Finds a leaf. A leaf whose index is not significant is found at index 0 only, as a CPUID page names it.</summary>
    public bool TryFind(uint function, uint index, out CpuidEntry entry)
    {
        ulong wanted = Key(function, index);
        int low = 0;
        int high = _entries.Length - 1;
        while (low <= high)
        {
            int middle = (low + high) >> 1;
            ulong key = Key(_entries[middle].Function, _entries[middle].Index);
            if (key == wanted)
            {
                entry = _entries[middle];
                return true;
            }
            if (key < wanted)
            {
                low = middle + 1;
            }
            else
            {
                high = middle - 1;
            }
        }
        entry = default;
        return false;
    }

    /// <summary>
    /// What firmware accepts in place of <paramref name="provided"/>: the same value if the policy allows it, else one near it that does.
    /// </summary>
    /// <param name="host">The processor's entry for the leaf.</param>
    /// <param name="xcr0">xcr0_in of the page's entry; matters for XSAVE sizes only.</param>
    /// <param name="xss">xss_in of the page's entry.</param>
    public uint Accept(in CpuidEntry host, CpuidRegister register, uint provided, ulong xcr0, ulong xss)
    {
        const uint cBitMask = 0x3F;
        uint own = host[register];
        return host.PolicyOf(register) switch
        {
            CpuidPolicy.Any => provided,
            CpuidPolicy.Exact => own,
            CpuidPolicy.SubsetOfHost => provided & (own | (register == CpuidRegister.ECX ? host.EcxOsBits : 0)),
            CpuidPolicy.CBitPosition => (provided & ~cBitMask) | (own & cBitMask),
            CpuidPolicy.XsaveSize => XsaveSize(xcr0, compacted: false),
            CpuidPolicy.CompactedXsaveSize => XsaveSize(xcr0 | xss, compacted: true),
            _ => throw new InvalidOperationException($"leaf 0x{host.Function:x} has an unknown policy"),
        };
    }

    /// <summary>Bytes of an XSAVE area with the given state components (APM vol. 2, 11.5). Components the processor lacks take no room.</summary>
    public uint XsaveSize(ulong components, bool compacted)
    {
        uint size = XsaveLegacyBytes;
        // Components 0 and 1 (x87 and SSE) live in the legacy region. None of the others asks for alignment (0xD.n ECX bit 1).
        for (ulong rest = components & ~3UL; rest != 0; rest &= rest - 1)
        {
            if (TryFind(0xD, (uint)BitOperations.TrailingZeroCount(rest), out CpuidEntry component))
            {
                size = compacted ? size + component.Eax : Math.Max(size, component.Ebx + component.Eax);
            }
        }
        return size;
    }

    private static ulong Key(uint function, uint index) => ((ulong)function << 32) | index;

    private static List<CpuidEntry> Build(EpycProduct product, uint maxAsid, uint minSevAsid)
    {
        bool zen4 = product >= EpycProduct.Genoa;
        uint fms = Signature(product);
        uint Pick(uint milan, uint genoa, uint turin) => product switch
        {
            EpycProduct.Milan => milan,
            EpycProduct.Genoa => genoa,
            _ => turin,
        };

        var table = new List<CpuidEntry>
        {
            Leaf(0x0, Any(0x10), Exact(VendorEbx), Exact(VendorEcx), Exact(VendorEdx)),
            // ECX bit 31: no processor sets it, every hypervisor may.
            Leaf(0x1, Any(fms), Any(0x00400800), Subset(0xF6FA320B), Subset(0x178BFBFF)) with { EcxOsBits = 1u << 27 },
            Leaf(0x5, Any(0x40), Any(0x40), Any(0x3), Any(Pick(0x11, 0x11, 0x21))),
            Leaf(0x6, Subset(0x4), Subset(0), Subset(0x1), Subset(0)),
            Leaf(0x7, 0, Any(Pick(0, 1, 1)), Subset(Pick(0x219C97A9, 0xF1BF97A9, 0xF1BF97AB)), Subset(Pick(0x0040068C, 0x00415FCE, 0x19415FCE)),
                Subset(Pick(0x00000010, 0x10000010, 0x10000110))) with { EcxOsBits = 1u << 4 },
        };
        if (zen4)
        {
            table.Add(Leaf(0x7, 1, Subset(Pick(0, 0x20, 0x30)), Subset(0), Subset(0), Subset(0)));
        }

        table.Add(Leaf(0xB, 0, Any(0x1), Any(0x2), Any(0x100), Any(0)));
        table.Add(Leaf(0xB, 1, Any(0x7), Any(0x80), Any(0x201), Any(0)));

        AddXsave(table, zen4);

        uint rmids = Pick(0xFF, 0xFF, 0xFFF);
        table.Add(Leaf(0xF, 0, Subset(0), Any(rmids), Subset(0), Subset(0x2)));
        table.Add(Leaf(0xF, 1, Any(Pick(0, 0x14, 0x14)), Any(0x40), Any(rmids), Any(0x7)));
        table.Add(Leaf(0x10, 0, Subset(0), Subset(0x2), Subset(0), Subset(0)));
        table.Add(Leaf(0x10, 1, Any(0xF), Any(0), Any(0x4), Any(0xF)));

        table.Add(Leaf(0x80000000, Any(Pick(0x80000023, 0x80000028, 0x80000028)), Exact(VendorEbx), Exact(VendorEcx), Exact(VendorEdx)));
        table.Add(Leaf(0x80000001, Any(fms), Any(0x40000000), Subset(0x75C237FF), Subset(0x2FD3FBFF)));
        AddBrand(table, $"AMD EPYC-{product} Processor (simulated)");
        table.Add(Leaf(0x80000005, Any(Pick(0xFF40FF40, 0xFF48FF40, 0xFF60FF40)), Any(Pick(0xFF40FF40, 0xFF48FF40, 0xFF60FF40)),
            Any(Pick(0x20080140, 0x20080140, 0x300C0140)), Any(0x20080140)));
        table.Add(Leaf(0x80000006, Any(Pick(0x48002200, 0x5C002200, 0x40802040)), Any(Pick(0x68004200, 0x6C004200, 0x60804040)),
            Any(Pick(0x02006140, 0x04006140, 0x04008140)), Any(0x08009140)));
        table.Add(Leaf(0x80000007, Subset(0), Subset(0x3B), Any(0), Subset(0x6799)));
        table.Add(Leaf(0x80000008, Any(Pick(0x3030, 0x3934, 0x3934)), Subset(Pick(0x91BEF75F, 0x79BEF25F, 0x79BEF25F)),
            Any(Pick(0x707F, 0x601F, 0x703F)), Any(0x00010007)));
        table.Add(Leaf(0x8000000A, Any(0x1), Any(0x8000), Subset(0), Subset(Pick(0x119B9CFF, 0x1FBFBCFF, 0xFFBFBDFF))));
        table.Add(Leaf(0x80000019, Any(Pick(0xF040F040, 0xF048F040, 0xF060F040)), Any(Pick(0xF0400000, 0xF0400000, 0x40200000)),
            Subset(0), Subset(0)));
        table.Add(Leaf(0x8000001A, Subset(Pick(0x6, 0x6, 0xA)), Subset(0), Subset(0), Subset(0)));
        table.Add(Leaf(0x8000001B, Subset(Pick(0x3FF, 0xBFF, 0x81BFF)), Subset(0), Subset(0), Subset(0)));
        AddCaches(table, Pick);
        table.Add(Leaf(0x8000001E, Any(0), Any(0x100), Any(0), Any(0)));
        // EBX: 4 VMPLs, physical addresses lose bits when encryption is on, the C-bit.
        table.Add(Leaf(0x8000001F, Subset(Pick(0x0001FC3F, 0x030FFFFB, 0xCFFFFFFB)),
            (0x4000 | (Pick(5, 6, 6) << 6) | CBit, CpuidPolicy.CBitPosition), Any(maxAsid), Any(minSevAsid)));
        table.Add(Leaf(0x80000020, 0, Subset(0), Subset(Pick(0x2, 0x1E, 0x7E)), Subset(0), Subset(0)));
        if (zen4)
        {
            uint bandwidthBits = Pick(0, 0xB, 0xC);
            table.Add(Leaf(0x80000020, 1, Any(bandwidthBits), Any(0), Any(0), Any(0xF)));
            table.Add(Leaf(0x80000020, 2, Any(bandwidthBits), Any(0), Any(0), Any(0xF)));
            table.Add(Leaf(0x80000020, 3, Any(0), Any(0x2), Subset(0x7F), Any(0)));
        }
        table.Add(Leaf(0x80000021, Subset(Pick(0x0000204D, 0x00062FCF, 0xD93FFFCF)), Any(Pick(0, 0x15C, 0x80382)), Subset(0), Subset(0)));
        if (zen4)
        {
            table.Add(Leaf(0x80000022, Subset(0x7), Any(Pick(0, 0x44106, 0x304106)), Any(Pick(0, 0x8, 0xFFF)), Subset(0)));
            table.Add(Leaf(0x80000023, Subset(0x1), Any(0x3F), Subset(0), Subset(0)));
            table.Add(Leaf(0x80000026, 0, Any(0x1), Any(0x2), Any(0x100), Any(0)));
            table.Add(Leaf(0x80000026, 1, Any(0x4), Any(0x10), Any(0x201), Any(0)));
            table.Add(Leaf(0x80000026, 2, Any(0x4), Any(0x10), Any(0x302), Any(0)));
            table.Add(Leaf(0x80000026, 3, Any(0x7), Any(0x80), Any(0x403), Any(0)));
        }
        return table;
    }

    // 0xD.0 ECX is the size with every XCR0 component, 0xD.1 ECX the XSS components. The EBX values are sizes with everything enabled, as KVM lists
    // them.
    private static void AddXsave(List<CpuidEntry> table, bool avx512)
    {
        const uint compactedAvx = 0x370;
        const uint compactedAvx512 = 0x9B0;
        table.Add(Leaf(0xD, 0, Subset(avx512 ? 0x2E7u : 0x207u), (0x988, CpuidPolicy.XsaveSize), Any(0x988), Subset(0)));
        table.Add(Leaf(0xD, 1, Subset(0xF), (avx512 ? compactedAvx512 : compactedAvx, CpuidPolicy.CompactedXsaveSize), Subset(0x1800), Subset(0)));
        Component(2, 0x100, 0x240);
        if (avx512)
        {
            Component(5, 0x40, 0x340);
            Component(6, 0x200, 0x380);
            Component(7, 0x400, 0x580);
        }
        Component(9, 0x8, 0x980);
        Component(11, 0x10, 0, supervisor: true);
        Component(12, 0x18, 0, supervisor: true);

        void Component(uint number, uint size, uint offset, bool supervisor = false) =>
            table.Add(Leaf(0xD, number, Exact(size), Exact(offset), Exact(supervisor ? 1u : 0), Exact(0)));
    }

    private static void AddCaches(List<CpuidEntry> table, Func<uint, uint, uint, uint> pick)
    {
        Cache(0, 0x4121, pick(0x01C0003F, 0x01C0003F, 0x02C0003F), 0x3F, 0);
        Cache(1, 0x4122, 0x01C0003F, 0x3F, 0);
        Cache(2, 0x4143, pick(0x01C0003F, 0x01C0003F, 0x03C0003F), pick(0x3FF, 0x7FF, 0x3FF), 0x2);
        Cache(3, 0x3C163, 0x03C0003F, 0x7FFF, 0x1);

        void Cache(uint index, uint eax, uint ebx, uint ecx, uint edx) => table.Add(Leaf(0x8000001D, index, Any(eax), Any(ebx), Any(ecx), Any(edx)));
    }

    private static void AddBrand(List<CpuidEntry> table, string name)
    {
        Span<byte> brand = stackalloc byte[48];
        Encoding.ASCII.GetBytes(name, brand[..47]);
        for (uint part = 0; part < 3; part++)
        {
            ReadOnlySpan<byte> text = brand[(int)(16 * part)..];
            table.Add(Leaf(0x80000002 + part, Any(Word(text, 0)), Any(Word(text, 1)), Any(Word(text, 2)), Any(Word(text, 3))));
        }

        static uint Word(ReadOnlySpan<byte> text, int index) => System.Buffers.Binary.BinaryPrimitives.ReadUInt32LittleEndian(text[(4 * index)..]);
    }

    private static CpuidEntry Leaf(
        uint function, (uint, CpuidPolicy) eax, (uint, CpuidPolicy) ebx, (uint, CpuidPolicy) ecx, (uint, CpuidPolicy) edx) =>
        Leaf(function, 0, eax, ebx, ecx, edx) with { SignificantIndex = false };

    private static CpuidEntry Leaf(
        uint function,
        uint index,
        (uint Value, CpuidPolicy Policy) eax,
        (uint Value, CpuidPolicy Policy) ebx,
        (uint Value, CpuidPolicy Policy) ecx,
        (uint Value, CpuidPolicy Policy) edx) =>
        new(function, index, true, eax.Value, ebx.Value, ecx.Value, edx.Value)
        {
            EaxPolicy = eax.Policy,
            EbxPolicy = ebx.Policy,
            EcxPolicy = ecx.Policy,
            EdxPolicy = edx.Policy,
        };

    private static (uint Value, CpuidPolicy Policy) Any(uint value) => (value, CpuidPolicy.Any);

    private static (uint Value, CpuidPolicy Policy) Exact(uint value) => (value, CpuidPolicy.Exact);

    private static (uint Value, CpuidPolicy Policy) Subset(uint value) => (value, CpuidPolicy.SubsetOfHost);
}
