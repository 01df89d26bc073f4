using System.Security.Cryptography;
using VmmService.Client.Digest;
using VmmService.Client.Launch;
using VmmService.IntegrationTests.Launch.Planning;
using VmmService.IntegrationTests.Support;
using Xunit;

namespace VmmService.IntegrationTests.Digest;

/// <summary>The VMSA as the client lays it out, and the names of its fields.</summary>
public sealed class VmsaPageTests
{
    public static TheoryData<string> Vectors =>
        new(SnpVectors.All.Where(vector => vector.Kind == "vmsa-page" && vector.Params.GetProperty("vmm_type").GetString() != "svsm").Select(vector => vector.Id));

    [Theory]
    [MemberData(nameof(Vectors))]
    public void Build_Vector_MakesTheSamePage(string id)
    {
        SnpVector vector = SnpVectors.Get(id);
        ulong number(string name) => SnpVector.Hex(vector.Params.GetProperty(name).GetString()!);

        byte[] page = VmsaPage.Build(VmmFlavor.Find(vector.Params.GetProperty("vmm_type").GetString()!).Bsp(new((uint)number("vcpu_sig"))), number("sev_features"));

        Assert.Equal(vector.ExpectedText("sha384"), Convert.ToHexStringLower(SHA384.HashData(page)));
        Assert.Equal(vector.ExpectedText("sha256"), Convert.ToHexStringLower(SHA256.HashData(page)));
    }

    [Fact]
    public void Build_EveryRegister_IsWhereTheRefereeHasIt()
    {
        SegmentState segment(int i) => new((ushort)(i + 1), new((ushort)(0x90 + i)), (uint)(1000 * i), (ulong)i << 40);
        var state = new VcpuResetState
        {
            Es = segment(0),
            Cs = segment(1),
            Ss = segment(2),
            Ds = segment(3),
            Fs = segment(4),
            Gs = segment(5),
            Ldtr = segment(6),
            Tr = segment(7),
            Gdtr = new(8, 9),
            Idtr = new(10, 11),
            Rip = 12,
            Rsp = 13,
            Rax = 14,
            Rbx = 15,
            Rcx = 16,
            Rdx = 17,
            Rsi = 18,
            Rdi = 19,
            Rbp = 20,
            R8 = 21,
            R9 = 22,
            R10 = 23,
            R11 = 24,
            R12 = 25,
            R13 = 26,
            R14 = 27,
            R15 = 28,
            Cr3 = 29,
            GPat = 30,
            Mxcsr = 31,
            Fcw = 32,
            Xcr0 = 33,
            Dr6 = 34,
            Dr7 = 35,
        };

        Assert.Equal(PlanReferee.Vmsa(state, 36), VmsaPage.Build(state, 36));
    }

    [Fact]
    public void Fields_AscendAndDoNotOverlap()
    {
        int end = 0;
        foreach (VmsaField field in VmsaLayout.Fields)
        {
            Assert.True(field.Offset >= end, $"{field} begins before the end of its neighbour");
            end = field.End;
        }

        Assert.Equal(0x670, end);
    }

    // Places from AMD's manual, one or two from each part of the page.
    [Theory]
    [InlineData(0x012, "cs.attrib")]
    [InlineData(0x09f, "tr.base")]
    [InlineData(0x0cb, "cpl")]
    [InlineData(0x0d0, "efer")]
    [InlineData(0x148, "cr4")]
    [InlineData(0x178, "rip")]
    [InlineData(0x1d8, "rsp")]
    [InlineData(0x1f8, "rax")]
    [InlineData(0x240, "cr2")]
    [InlineData(0x268, "g_pat")]
    [InlineData(0x2f8, "guest_tsc_offset")]
    [InlineData(0x310, "rdx")]
    [InlineData(0x378, "r15")]
    [InlineData(0x3b0, "sev_features")]
    [InlineData(0x3c8, "virtual_tom")]
    [InlineData(0x3e8, "xcr0")]
    [InlineData(0x408, "mxcsr")]
    [InlineData(0x410, "x87_fcw")]
    [InlineData(0x0e0, "reserved")]
    [InlineData(0xfff, "reserved")]
    public void At_NamesTheFieldOfAByte(int offset, string name) => Assert.Equal(name, VmsaLayout.At(offset).Name);

    [Fact]
    public void Compare_NamesEachFieldOnceWithBothValues()
    {
        byte[] a = new byte[VmsaLayout.Size];
        byte[] b = new byte[VmsaLayout.Size];
        (b[0x178], b[0x179], b[0x3b0], b[0x900]) = (0xf0, 0xff, 0x21, 1);

        Assert.Equal(
            ["rip (offset 0x178) is 0x0 in A and 0xfff0 in B", "sev_features (offset 0x3b0) is 0x0 in A and 0x21 in B", "reserved (offset 0x900) is 0x0 in A and 0x1 in B"],
            VmsaPage.Compare(a, b).Select(difference => difference.ToString()));
    }

    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    [InlineData(55)]
    [InlineData(56)]
    [InlineData(63)]
    [InlineData(64)]
    [InlineData(119)]
    [InlineData(4096)]
    [InlineData(70_001)]
    public void Sha256State_InAnyPieces_IsSha256(int length)
    {
        byte[] data = TestInputs.Sha256Counter("sha256-state", length);
        foreach (int piece in new[] { 1, 7, 64, 100, length + 1 })
        {
            var hash = new Sha256State();
            for (int offset = 0; offset < length; offset += piece)
            {
                Sha256State before = hash.Copy();
                hash.Append(data.AsSpan(offset, Math.Min(piece, length - offset)));
                before.Append([1, 2, 3]);
            }

            byte[] digest = new byte[Sha256State.HashSize];
            hash.GetHash(digest);
            Assert.Equal(SHA256.HashData(data), digest);
        }
    }
}
