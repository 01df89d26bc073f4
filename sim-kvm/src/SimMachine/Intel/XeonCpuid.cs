using System.Buffers.Binary;
using System.Text;
using SimMachine.Amd;

namespace SimMachine.Intel;

/// <summary>The CPUID leaves of an Intel machine: a processor of the generation that TDX module 1.5 runs on (family 6, model 0x8f).</summary>
/// <remarks>Feature bits are those that such a processor reports and KVM passes on; the brand string says that the processor is simulated.</remarks>
internal static class XeonCpuid
{
    private const uint VendorEbx = 0x756E6547;
    private const uint VendorEdx = 0x49656E69;
    private const uint VendorEcx = 0x6C65746E;
    private const uint X87 = 3;
    private const int BrandBytes = 48;

    public static PlatformCpuid For(TdxModuleConfig config)
    {
        List<CpuidEntry> table =
        [
            Leaf(0x0, 0x20, VendorEbx, VendorEcx, VendorEdx),
            Leaf(0x1, config.Fms, 0x00400800, 0xFFFAB223, 0x178BFBFF),
            Sub(0x4, 0, 0xFC004121, 0x02C0003F, 0x3F, 0),
            Sub(0x4, 1, 0xFC004122, 0x01C0003F, 0x3F, 0),
            Sub(0x4, 2, 0xFC01C143, 0x03C0003F, 0x7FF, 0),
            Sub(0x4, 3, 0xFC1FC163, 0x0380003F, 0x1FFFF, 0x4),
            Sub(0x7, 0, 2, 0xF1BF27EB, 0x1B415FEE, 0xBFC14410),
            Sub(0x7, 1, 0x00001C30, 0, 0, 0),
            Sub(0x7, 2, 0, 0, 0, 0x3F),
            Sub(0xB, 0, 1, 2, 0x100, 0),
            Sub(0xB, 1, 7, (uint)config.PresentCpus, 0x201, 0),
        ];
        AddXsave(table, config);
        table.Add(Leaf(0x80000000, 0x80000008, 0, 0, 0));
        table.Add(Leaf(0x80000001, 0, 0, 0x121, 0x2C100800));
        AddBrand(table, "Intel Xeon Processor (simulated)");
        table.Add(Leaf(0x80000006, 0, 0, 0x08007040, 0));
        table.Add(Leaf(0x80000007, 0, 0, 0, 0x100));
        table.Add(Leaf(0x80000008, 0x3934, 0x200, 0, 0));
        return PlatformCpuid.Of(table);
    }

    private static void AddXsave(List<CpuidEntry> table, TdxModuleConfig config)
    {
        // State component, bytes, offset in the standard format. Tiles (17 and 18) are left out: a process gets them only after it asked for permission.
        (uint Number, uint Size, uint Offset)[] components = [(2, 0x100, 0x240), (5, 0x40, 0x440), (6, 0x200, 0x480), (7, 0x400, 0x680), (9, 8, 0xA80)];
        uint supported = (uint)config.HostXcr0OrXss;
        components = [.. components.Where(component => ((supported >> (int)component.Number) & 1) != 0)];
        uint size = components.Length == 0 ? PlatformCpuid.XsaveLegacyBytes : components.Max(component => component.Offset + component.Size);
        table.Add(Sub(0xD, 0, components.Aggregate(X87, (mask, component) => mask | (1u << (int)component.Number)), PlatformCpuid.XsaveLegacyBytes, size, 0));
        table.Add(Sub(0xD, 1, 0xF, PlatformCpuid.XsaveLegacyBytes, 0, 0));
        table.AddRange(components.Select(component => Sub(0xD, component.Number, component.Size, component.Offset, 0, 0)));
    }

    private static void AddBrand(List<CpuidEntry> table, string name)
    {
        Span<byte> brand = stackalloc byte[BrandBytes];
        Encoding.ASCII.GetBytes(name, brand[..(BrandBytes - 1)]);
        for (uint part = 0; part < 3; part++)
        {
            ReadOnlySpan<byte> text = brand[(int)(16 * part)..];
            table.Add(Leaf(0x80000002 + part, Word(text, 0), Word(text, 1), Word(text, 2), Word(text, 3)));
        }
    }

    private static uint Word(ReadOnlySpan<byte> text, int index) => BinaryPrimitives.ReadUInt32LittleEndian(text[(4 * index)..]);

    private static CpuidEntry Leaf(uint function, uint eax, uint ebx, uint ecx, uint edx) => new(function, 0, false, eax, ebx, ecx, edx);

    private static CpuidEntry Sub(uint function, uint index, uint eax, uint ebx, uint ecx, uint edx) => new(function, index, true, eax, ebx, ecx, edx);
}
