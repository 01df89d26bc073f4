using System.Security.Cryptography;
using VmmService.Client.Launch;
using VmmService.IntegrationTests.Support;
using Xunit;

namespace VmmService.IntegrationTests.Launch.Planning;

/// <summary>The registers that a flavour starts vCPUs with, laid out as a VMSA and compared with the reference's.</summary>
public sealed class VcpuResetStateTests
{
    public static TheoryData<string> VmsaVectors =>
        new(SnpVectors.All.Where(vector => vector.Kind == "vmsa-page" && vector.Params.GetProperty("vmm_type").GetString() != "svsm").Select(vector => vector.Id));

    [Theory]
    [MemberData(nameof(VmsaVectors))]
    public void Bsp_Vector_MakesTheSameVmsa(string id)
    {
        SnpVector vector = SnpVectors.Get(id);
        Assert.Equal("0xfffffff0", vector.Params.GetProperty("eip").GetString());
        VcpuResetState state = VmmFlavor.Find(vector.Params.GetProperty("vmm_type").GetString()!).Bsp(new((uint)Number("vcpu_sig")));
        byte[] vmsa = PlanReferee.Vmsa(state, Number("sev_features"));

        Assert.Equal(
            vector.Expected.GetProperty("nonzero_qwords").EnumerateArray().SelectMany(run => Qwords(SnpVector.Hex(run[0].GetString()!), run[1].GetString()!)),
            Enumerable.Range(0, 512).Select(i => (Offset: (ulong)i * 8, Hex: Convert.ToHexStringLower(vmsa.AsSpan(i * 8, 8)))).Where(qword => qword.Hex != new string('0', 16)));
        Assert.Equal(vector.ExpectedText("sha384"), Convert.ToHexStringLower(SHA384.HashData(vmsa)));

        ulong Number(string name) => SnpVector.Hex(vector.Params.GetProperty(name).GetString()!);
    }

    [Fact]
    public void Ap_StartsWhereTheResetBlockSays()
    {
        VcpuResetState ap = VmmFlavor.Qemu.Ap(new(0x800f12), 0x0080b004);
        Assert.Equal(new SegmentState(0xf000, new(0x9b), 0xffff, 0x00800000), ap.Cs);
        Assert.Equal(0xb004UL, ap.Rip);
    }

    [Theory]
    [InlineData("qemu", 0x9b, 0x9b, 0x800f12)]
    [InlineData("EC2", 0x9a, 0x9b, 0x600)]
    [InlineData("gce", 0x9b, 0x9b, 0x600)]
    public void Flavors_DifferInCodeSegmentAndRdx(string name, ushort bsp, ushort ap, ulong rdx)
    {
        VmmFlavor flavor = VmmFlavor.Find(name);
        Assert.Equal(bsp, flavor.Bsp(new(0x800f12)).Cs.Attrib.Value);
        Assert.Equal(ap, flavor.Ap(new(0x800f12), 0x0080b004).Cs.Attrib.Value);
        Assert.Equal(rdx, flavor.Bsp(new(0x800f12)).Rdx);
    }

    [Fact]
    public void Find_UnknownFlavor_ListsThem() => Assert.Contains(
        "Did you mean 'qemu'? Known names, in any case: qemu, ec2, gce.", Assert.Throws<LaunchInputException>(() => VmmFlavor.Find("qmeu")).Message, StringComparison.Ordinal);

    // Columns: VMSA attribute, then kvm_segment's type, s, dpl, present, avl, l, db, g, unusable.
    [Theory]
    [InlineData(0x09b, 0xb, 1, 0, 1, 0, 0, 0, 0, 0)] // 16-bit code, accessed
    [InlineData(0x093, 0x3, 1, 0, 1, 0, 0, 0, 0, 0)] // data, accessed
    [InlineData(0x082, 0x2, 0, 0, 1, 0, 0, 0, 0, 0)] // LDT
    [InlineData(0x08b, 0xb, 0, 0, 1, 0, 0, 0, 0, 0)] // busy TSS
    [InlineData(0xc9b, 0xb, 1, 0, 1, 0, 0, 1, 1, 0)] // flat 32-bit code
    [InlineData(0x2fb, 0xb, 1, 3, 1, 0, 1, 0, 0, 0)] // 64-bit user code
    [InlineData(0x100, 0x0, 0, 0, 0, 1, 0, 0, 0, 1)] // not present
    public void SegmentAttributes_ComeApartAsKvmSegment(ushort attrib, int type, int s, int dpl, int present, int avl, int l, int db, int g, int unusable)
    {
        var it = new SegmentAttributes(attrib);
        Assert.Equal(
            (type, s, dpl, present, avl, l, db, g, unusable), ((int)it.Type, (int)it.S, (int)it.Dpl, (int)it.Present, (int)it.Avl, (int)it.L, (int)it.Db, (int)it.G, (int)it.Unusable));
    }

    [Fact]
    public void Sregs_AreWithoutWhatKvmSetsItself()
    {
        VcpuResetState state = VmmFlavor.Qemu.Bsp(default);
        Assert.Equal((0x1000UL, 0x40UL), (state.Efer, state.Cr4));
        Assert.Equal((0UL, 0UL), (state.SregsEfer, state.SregsCr4));
    }

    private static IEnumerable<(ulong Offset, string Hex)> Qwords(ulong offset, string hex)
    {
        for (int i = 0; i < hex.Length; i += 16)
        {
            string qword = hex.Substring(i, 16);
            if (qword != new string('0', 16))
                yield return (offset + (ulong)(i / 2), qword);
        }
    }
}
