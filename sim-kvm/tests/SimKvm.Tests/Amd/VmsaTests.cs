// VMSA pages: the vectors, reached through the ioctls that a VMM uses, and what KVM forces or leaves out on the way.

using System.Buffers.Binary;
using System.Globalization;
using System.Runtime.InteropServices;
using System.Security.Cryptography;
using System.Text.Json;
using SimKvm.Abi;
using SimKvm.Tests.X86;
using SimKvm.Vendors.Amd;
using Xunit;

namespace SimKvm.Tests.Amd;

public sealed class VmsaTests : IDisposable
{
    private const int XstateBv = 0x200;

    private readonly TestVcpu _vcpu = new();

    public static TheoryData<string> Vectors
    {
        get
        {
            var ids = new TheoryData<string>();
            foreach (JsonElement vector in VmsaVectors())
            {
                ids.Add(vector.GetProperty("id").GetString()!);
            }
            return ids;
        }
    }

    public void Dispose() => _vcpu.Dispose();

    [Theory]
    [MemberData(nameof(Vectors))]
    public void Vector_ThroughTheIoctls_IsTheSamePage(string id)
    {
        JsonElement vector = VmsaVectors().Single(candidate => candidate.GetProperty("id").GetString() == id);
        JsonElement parameters = vector.GetProperty("params");
        ulong eip = Hex(parameters.GetProperty("eip"));
        uint signature = (uint)Hex(parameters.GetProperty("vcpu_sig"));
        Prepare(parameters.GetProperty("vmm_type").GetString()!, eip, signature);

        byte[] page = Page(Hex(parameters.GetProperty("sev_features")));

        JsonElement expected = vector.GetProperty("expected");
        byte[] wanted = new byte[Vmsa.Size];
        foreach (JsonElement run in expected.GetProperty("nonzero_qwords").EnumerateArray())
        {
            Convert.FromHexString(run[1].GetString()!).CopyTo(wanted, (int)Hex(run[0]));
        }
        Assert.Equal(Fields(wanted), Fields(page));
        Assert.Equal(wanted, page);
        Assert.Equal(expected.GetProperty("sha384").GetString(), Convert.ToHexStringLower(SHA384.HashData(page)));
        Assert.Equal(expected.GetProperty("sha256").GetString(), Convert.ToHexStringLower(SHA256.HashData(page)));
    }

    [Fact]
    public void Vectors_AreSeven() => Assert.Equal(7, VmsaVectors().Count);

    [Fact]
    public void FreshVcpu_IsRawKvm()
    {
        Assert.Equal(
            [
                "es 0000 attrib 0092 limit 0000ffff base 0",
                "cs f000 attrib 009a limit 0000ffff base ffff0000",
                "ss 0000 attrib 0092 limit 0000ffff base 0",
                "ds 0000 attrib 0092 limit 0000ffff base 0",
                "fs 0000 attrib 0092 limit 0000ffff base 0",
                "gs 0000 attrib 0092 limit 0000ffff base 0",
                "gdtr 0000 attrib 0000 limit 0000ffff base 0",
                "ldtr 0000 attrib 0082 limit 0000ffff base 0",
                "idtr 0000 attrib 0000 limit 0000ffff base 0",
                "tr 0000 attrib 0083 limit 0000ffff base 0",
                "efer 0x1000", "cr4 0x40", "cr0 0x10", "dr7 0x400", "dr6 0xffff0ff0",
                "rflags 0x2", "rip 0xfff0",
                "g_pat 0x7040600070406", "rdx 0x600",
                "sev_features 0x1", "xcr0 0x1", "mxcsr 0x1f80", "x87_fcw 0x37f",
            ],
            Fields(Page(1)));
    }

    // The ec2 flavour is what a VMM gets that reads the system registers and writes them back, on a kernel that did not copy floating-point state.
    [Fact]
    public void FreshVcpu_AfterSregsAreReadAndWrittenBack_IsTheEc2Page()
    {
        Assert.Equal(Errno.OK, _vcpu.Arch.SetSregs(_vcpu.Current, _vcpu.Sregs()));
        byte[] page = Page(1, copyFpu: false);
        Assert.Equal("d6c9d0409668043e96874082e992eb1a08393f1ad6f3c1be450e51bc2cc66004", Convert.ToHexStringLower(SHA256.HashData(page)));
    }

    [Fact]
    public void Sync_OverwritesTheWholePage()
    {
        byte[] page = new byte[Vmsa.Size];
        page.AsSpan().Fill(0xFF);
        Vmsa.Sync(page, _vcpu.Arch, 1, copyFpu: true);
        Assert.Equal(Page(1), page);
    }

    [Fact]
    public void Sync_TakesEveryGeneralRegister()
    {
        kvm_regs regs = default;
        Span<ulong> words = MemoryMarshal.Cast<kvm_regs, ulong>(new Span<kvm_regs>(ref regs));
        for (int i = 0; i < words.Length; i++)
        {
            words[i] = (ulong)i + 1;
        }
        Assert.Equal(Errno.OK, _vcpu.Arch.SetRegs(_vcpu.Current, regs));
        byte[] page = Page(0);
        (int, ulong)[] fields =
        [
            (0x1F8, 1), (0x318, 2), (0x308, 3), (0x310, 4), (0x330, 5), (0x338, 6), (0x1D8, 7), (0x328, 8),
            (0x340, 9), (0x348, 10), (0x350, 11), (0x358, 12), (0x360, 13), (0x368, 14), (0x370, 15), (0x378, 16),
            (0x178, 17), (0x170, 18), (0x320, 0),
        ];
        Assert.All(fields, field => Assert.Equal(field.Item2, Qword(page, field.Item1)));
    }

    [Fact]
    public void Sync_TakesModelSpecificRegisters()
    {
        (uint Index, ulong Value, int Offset)[] msrs =
        [
            (0xC0000081, 0x11, 0x200), (0xC0000082, 0x12, 0x208), (0xC0000083, 0x13, 0x210), (0xC0000084, 0x14, 0x218), (0xC0000102, 0x15, 0x220),
            (0x174, 0x16, 0x228), (0x175, 0x17, 0x230), (0x176, 0x18, 0x238), (0x277, 0x06, 0x268), (0x1D9, 1, 0x270), (0x48, 1, 0x2E0),
            (0xC0000100, 0x1A000, 0x48), (0xC0000101, 0x1B000, 0x58),
        ];
        foreach ((uint index, ulong value, _) in msrs)
        {
            Assert.Equal(Errno.OK, _vcpu.Arch.SetMsr(_vcpu.Current, index, value));
        }
        byte[] page = Page(0);
        Assert.All(msrs, msr => Assert.Equal(msr.Value, Qword(page, msr.Offset)));
    }

    [Fact]
    public void Sync_ForcesSvmeAndMce_AndDropsCacheDisable()
    {
        kvm_sregs sregs = _vcpu.Sregs();
        sregs.efer = 0xD00;
        sregs.cr0 = 0xE0050033;
        sregs.cr4 = 0x20;
        sregs.cr3 = 0x123000;
        sregs.cr2 = 0xDEAD;
        sregs.ss.dpl = 3;
        Assert.Equal(Errno.OK, _vcpu.Arch.SetSregs(_vcpu.Current, sregs));
        byte[] page = Page(0);
        Assert.Equal(0x1D00UL, Qword(page, 0xD0));
        Assert.Equal(0x80050033UL, Qword(page, 0x158));
        Assert.Equal(0x60UL, Qword(page, 0x148));
        Assert.Equal(0x123000UL, Qword(page, 0x150));
        Assert.Equal(3, page[0xCB]);
        // CR2 reaches the VMCB at the first entry only.
        Assert.Equal(0UL, Qword(page, 0x240));
    }

    [Fact]
    public void Sync_TakesDr6AndDr7_NotTheBreakpoints()
    {
        var debugregs = new kvm_debugregs { dr6 = 0xFFFF0FF1, dr7 = 0x401 };
        debugregs.db[0] = 0x1234;
        Assert.Equal(Errno.OK, _vcpu.Arch.SetDebugregs(_vcpu.Current, debugregs));
        byte[] page = Page(0);
        Assert.Equal(0xFFFF0FF1UL, Qword(page, 0x168));
        Assert.Equal(0x401UL, Qword(page, 0x160));
        Assert.Equal(0UL, Qword(page, 0x180));
    }

    [Fact]
    public void Sync_TearsX87RegistersApart()
    {
        var fpu = new kvm_fpu { fcw = 0x27F, fsw = 0x3800, ftwx = 0x80, last_opcode = 0x7, last_ip = 0x1122, last_dp = 0x3344 };
        for (int register = 0; register < 8; register++)
        {
            for (int i = 0; i < 10; i++)
            {
                fpu.fpr[register][i] = (byte)((16 * register) + i + 1);
            }
        }
        fpu.xmm[0][0] = 0xA1;
        fpu.xmm[15][15] = 0xA2;
        Assert.Equal(Errno.OK, _vcpu.Arch.SetFpu(_vcpu.Current, fpu));
        byte[] page = Page(0);
        Assert.Equal(0x3344UL, Qword(page, 0x400));
        Assert.Equal(0x3800_0080_0000_1F80UL, Qword(page, 0x408));
        Assert.Equal(0x0000_0000_0007_027FUL, Qword(page, 0x410));
        Assert.Equal(0x1122UL, Qword(page, 0x418));
        Assert.Equal(Convert.FromHexString("0102030405060708"), page[0x420..0x428]);
        Assert.Equal(Convert.FromHexString("7172737475767778"), page[0x458..0x460]);
        Assert.Equal(Convert.FromHexString("090a191a292a393a494a595a696a797a"), page[0x460..0x470]);
        Assert.Equal(0xA1, page[0x470]);
        Assert.Equal(0xA2, page[0x56F]);
    }

    [Fact]
    public void Sync_TakesAvxOnlyIfXstateBvHasIt()
    {
        Assert.Equal(Errno.OK, _vcpu.SetXsave((XstateBv, 7), (0x18, 0x1F80), (0x240, 0x9A), (0x33C, 0x9B)));
        byte[] page = Page(0);
        Assert.Equal(0x9A, page[0x570]);
        Assert.Equal(0x9B, page[0x66C]);
        Assert.Equal(Errno.OK, _vcpu.SetXsave((XstateBv, 3), (0x18, 0x1F80)));
        Assert.Equal(0, Page(0)[0x570]);
    }

    [Fact]
    public void Sync_TakesPkruAndXcr0()
    {
        _vcpu.SetSupportedCpuid();
        Assert.Equal(Errno.OK, _vcpu.SetXsave((XstateBv, 0x200), (0x980, 0x55555554)));
        var xcrs = new kvm_xcrs { nr_xcrs = 1 };
        xcrs.xcrs[0].value = 0x207;
        Assert.Equal(Errno.OK, _vcpu.Arch.SetXcrs(_vcpu.Current, xcrs));
        byte[] page = Page(0);
        Assert.Equal(0x55555554UL, Qword(page, 0x2E8));
        Assert.Equal(0x207UL, Qword(page, 0x3E8));
    }

    [Fact]
    public void Sync_WithoutFpu_LeavesTheWholeAreaZero() => Assert.Equal(-1, Page(1, copyFpu: false).AsSpan(0x400).IndexOfAnyExcept((byte)0));

    [Theory]
    [InlineData(0)]
    [InlineData(4095)]
    [InlineData(4097)]
    public void Page_OfAnotherSize_IsRefused(int size)
    {
        Assert.Throws<ArgumentException>(() => Vmsa.Describe(new byte[size]));
        Assert.Throws<ArgumentException>(() => Vmsa.Sync(new byte[size], _vcpu.Arch, 0, copyFpu: true));
    }

    // Every byte that a page can hold is a field, and fields do not overlap: a page of ones is described completely up to 0x670.
    [Fact]
    public void Describe_FieldsDoNotOverlap()
    {
        byte[] page = new byte[Vmsa.Size];
        page.AsSpan().Fill(0xFF);
        int end = 0;
        foreach (VmsaField field in Vmsa.Describe(page))
        {
            Assert.True(field.Offset >= end, field.Name);
            end = field.Offset + field.Size;
        }
        Assert.Equal(0x670, end);
    }

    // Registers as a VMM of that kind leaves them, set in the order in which VMMs do: system registers, model-specific, floating point, general.
    private void Prepare(string vmm, ulong eip, uint signature)
    {
        kvm_sregs sregs = _vcpu.Sregs();
        ulong rip = eip & 0xFFFF;
        ulong rdx = signature;
        (uint fcw, uint mxcsr) = (0x37F, 0x1F80);
        sregs.cr0 = 0x10;
        sregs.cs = Segment(0xF000, 0xB) with { @base = eip & 0xFFFF0000 };
        sregs.es = sregs.ds = sregs.fs = sregs.gs = sregs.ss = Segment(0, 3);
        sregs.tr = Segment(0, 0xB) with { s = 0 };
        sregs.ldt = Segment(0, 2) with { s = 0 };
        switch (vmm)
        {
            case "QEMU":
                break;
            case "ec2":
                sregs.cs.type = (byte)(eip == 0xFFFF_FFF0 ? 0xA : 0xB);
                sregs.ss.type = 2;
                sregs.tr.type = 3;
                rdx = 0x600;
                (fcw, mxcsr) = (0, 0);
                break;
            case "gce":
                rdx = 0x600;
                (fcw, mxcsr) = (0, 0);
                Assert.Equal(Errno.OK, _vcpu.Arch.SetMsr(_vcpu.Current, 0x277, 0x70106));
                break;
            case "svsm":
                sregs.cr0 = 0x11;
                sregs.cs = Flat(8, 0xB);
                sregs.es = sregs.ds = sregs.fs = sregs.ss = Flat(16, 3);
                rip = eip;
                fcw = 0;
                break;
            default:
                Assert.Fail($"no recipe for {vmm}");
                break;
        }
        Assert.Equal(Errno.OK, _vcpu.Arch.SetSregs(_vcpu.Current, sregs));
        Assert.Equal(Errno.OK, _vcpu.SetXsave((XstateBv, 3), (0, fcw), (0x18, mxcsr)));
        Assert.Equal(Errno.OK, _vcpu.Arch.SetRegs(_vcpu.Current, new kvm_regs { rip = rip, rdx = rdx, rflags = 2 }));
    }

    private static kvm_segment Segment(ushort selector, byte type) => new() { selector = selector, limit = 0xFFFF, type = type, present = 1, s = 1 };

    private static kvm_segment Flat(ushort selector, byte type) => Segment(selector, type) with { limit = uint.MaxValue, db = 1, g = 1 };

    private byte[] Page(ulong sevFeatures, bool copyFpu = true)
    {
        byte[] page = new byte[Vmsa.Size];
        Vmsa.Sync(page, _vcpu.Arch, sevFeatures, copyFpu);
        return page;
    }

    private static IEnumerable<string> Fields(byte[] page) => Vmsa.Describe(page).Select(field => $"{field.Name} {field.Text}");

    private static ulong Qword(byte[] page, int offset) => BinaryPrimitives.ReadUInt64LittleEndian(page.AsSpan(offset));

    private static ulong Hex(JsonElement text) => ulong.Parse(text.GetString()!.AsSpan(2), NumberStyles.HexNumber, CultureInfo.InvariantCulture);

    private static List<JsonElement> VmsaVectors()
    {
        using JsonDocument file = JsonDocument.Parse(File.ReadAllBytes(Path.Combine(AppContext.BaseDirectory, "Vectors", "snp-vectors.json")));
        return [.. file.RootElement.GetProperty("vectors").EnumerateArray()
            .Where(vector => vector.GetProperty("kind").GetString() == "vmsa-page")
            .Select(vector => vector.Clone())];
    }
}
