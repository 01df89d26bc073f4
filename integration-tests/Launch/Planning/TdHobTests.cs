using System.Security.Cryptography;
using System.Text.Json;
using VmmService.Client.Launch;
using VmmService.IntegrationTests.Support;
using Xunit;

namespace VmmService.IntegrationTests.Launch.Planning;

/// <summary>The hand-off blocks of a TD, byte for byte.</summary>
public sealed class TdHobTests
{
    public static TheoryData<string> Vectors => TdxVectors.Ids("td_hob");

    public static TheoryData<ulong, string> Layouts => new()
    {
        { 0x8000_0000, "0x0 to 0x80000000" },
        { 0xafff_f000, "0x0 to 0xaffff000" },
        { 0xb000_0000, "0x0 to 0x80000000, 0x100000000 to 0x130000000" },
        { 0x2_0000_0000, "0x0 to 0x80000000, 0x100000000 to 0x280000000" },
    };

    [Theory]
    [MemberData(nameof(Vectors))]
    public void Build_VectorGuest_GivesTheBytesAndTheDigest(string id)
    {
        JsonElement vector = TdxVectors.Get("td_hob", id);
        byte[] hob = TdHob.Build(TdxVectors.Number(vector, "hob_gpa"), Ranges(vector, "ram"), Ranges(vector, "accepted_in_metadata_order"));

        Assert.Equal(TdxVectors.Text(vector, "hob_hex"), Convert.ToHexStringLower(hob));
        Assert.Equal(vector.GetProperty("measured_length").GetInt32(), TdHob.Measured(hob).Length);
        string digest = TdxVectors.Sha384(TdHob.Measured(hob));
        Assert.Equal(TdxVectors.Text(vector, "td_hob_digest"), digest);
        Assert.Equal(TdxVectors.Text(vector, "rtmr0_after_only_this_event"), TdxVectors.Sha384([.. new byte[SHA384.HashSizeInBytes], .. Convert.FromHexString(digest)]));
    }

    [Theory]
    [MemberData(nameof(Vectors))]
    public void Q35Memory_OfAsMuchMemory_IsTheVectorsLayout(string id)
    {
        GuestRange[] ram = [.. Ranges(TdxVectors.Get("td_hob", id), "ram")];
        Assert.Equal(ram, TdHob.Q35Memory(ram.Aggregate(0UL, (sum, range) => sum + range.Size)));
    }

    [Theory]
    [MemberData(nameof(Layouts))]
    public void Q35Memory_IsSplitFrom2816MiBOn(ulong bytes, string layout) => Assert.Equal(layout, string.Join(", ", TdHob.Q35Memory(bytes)));

    [Fact]
    public void Build_SectionOutsideOfMemory_IsRefused() => Assert.Throws<LaunchInputException>(() => TdHob.Build(0, [new(0, 0x10000)], [new(0xf000, 0x2000)]));

    [Fact]
    public void Build_SectionsThatOverlap_AreRefused() => Assert.Throws<LaunchInputException>(() => TdHob.Build(0, [new(0, 0x10000)], [new(0x1000, 0x2000), new(0x2000, 0x1000)]));

    [Fact]
    public void Build_SectionAtBothEndsOfMemory_LeavesNothingBeside()
    {
        byte[] hob = TdHob.Build(0, [new(0, 0x1000)], [new(0, 0x1000)]);
        Assert.Equal(56 + 48 + 8, hob.Length);
    }

    private static IEnumerable<GuestRange> Ranges(JsonElement vector, string name) =>
        vector.GetProperty(name).EnumerateArray().Select(range => new GuestRange(TdxVectors.Number(range[0]), TdxVectors.Number(range[1])));
}
