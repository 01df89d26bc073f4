using System.Text.Json;
using VmmService.Client.Launch;
using VmmService.IntegrationTests.Support;
using Xunit;

namespace VmmService.IntegrationTests.Launch.Planning;

/// <summary>What a good image says. Images that lie are next door, in <see cref="HostileFirmwareTests"/>.</summary>
public sealed class FirmwareImageTests
{
    public static TheoryData<string> FooterVectors => SnpVectors.Ids("ovmf-footer-parse");

    [Theory]
    [MemberData(nameof(FooterVectors))]
    public void Parse_VectorImage_HasTheStatedFooter(string id)
    {
        SnpVector vector = SnpVectors.Get(id);
        FirmwareImage image = Parse(vector.Params.GetProperty("firmware").GetString()!);

        Assert.True(image.HasFooter);
        Assert.Equal(SnpVector.Hex(vector.ExpectedText("load_gpa")!), image.Gpa);
        Assert.Equal(
            vector.Expected.GetProperty("entries").EnumerateObject().Select(entry => (Guid.Parse(entry.Name), entry.Value.GetString()!)).Order(),
            image.Entries.Select(entry => (entry.Guid, Convert.ToHexStringLower(entry.Data.Span))).Order());
        Assert.Equal(
            vector.Expected.GetProperty("sev_sections").EnumerateArray().Select(ReadSection),
            image.SevSections.Select(section => ((ulong)section.Gpa, (ulong)section.Size, (uint)section.Type)));
        Assert.Empty(image.UnknownEntries);
    }

    [Fact]
    public void Parse_SyntheticImage_HasAreasAndResetBlock()
    {
        FirmwareImage image = Parse("synfw-hash");
        Assert.Equal(0x0080b004u, image.SevEsResetEip);
        Assert.Equal(new FirmwareArea(0x810c00, 0x400), image.KernelHashArea);
        Assert.Equal(new FirmwareArea(0x810000, 0xc00), image.SecretArea);
        Assert.Null(image.TdxMetadataFromEnd);
        Assert.Null(image.SvsmEntryOffset);
    }

    [Fact]
    public void Parse_AreaWithBaseZero_IsNoArea()
    {
        FirmwareImage image = Parse("synfw-nohash");
        Assert.Null(image.KernelHashArea);
        Assert.Null(image.SecretArea);
        Assert.NotNull(image.Find(FirmwareGuids.KernelHashArea));
    }

    [Fact]
    public void Parse_SvsmImage_HasItsEntryPoint() => Assert.Equal(4656u, Parse("synsvsm").SvsmEntryOffset);

    [Fact]
    public void Parse_RealSvsmImage_HasItsEntryPoint() => Assert.NotNull(Parse("fx-svsm").SvsmEntryOffset);

    [Fact]
    public void Parse_DebianImage_HasTheRawTdxOffset() => Assert.Equal(0x840u, Parse("deb-OVMF_CODE").TdxMetadataFromEnd);

    [Theory]
    [InlineData(4096)]
    [InlineData(3 * 4096)]
    [InlineData(FirmwareImage.MaxSize)]
    public void Parse_WithoutFooter_IsLegal(int size)
    {
        FirmwareImage image = FirmwareImage.Parse(new byte[size]);
        Assert.False(image.HasFooter);
        Assert.Empty(image.Entries);
        Assert.Empty(image.SevSections);
        Assert.Null(image.SevEsResetEip);
        Assert.Equal((1UL << 32) - (ulong)size, image.Gpa);
    }

    [Fact]
    public void Parse_UnknownGuid_IsKeptAndListed()
    {
        byte[] bytes = TestInputs.Require("synfw-hash").ToArray();
        FirmwareEntry known = Parse("synfw-hash").Entries[^1];
        var unknown = new Guid("01234567-89ab-cdef-0123-456789abcdef");
        unknown.TryWriteBytes(bytes.AsSpan(known.Offset + known.Data.Length + sizeof(ushort)));

        FirmwareImage image = FirmwareImage.Parse(bytes);
        FirmwareEntry entry = Assert.Single(image.UnknownEntries);
        Assert.Equal(unknown, entry.Guid);
        Assert.Equal(known.Data.ToArray(), entry.Data.ToArray());
    }

    [Fact]
    public async Task Load_NoSuchFile_SaysSo()
    {
        var error = await Assert.ThrowsAsync<LaunchInputException>(() => FirmwareImage.LoadAsync("no/such/OVMF.fd"));
        Assert.Contains("'no/such/OVMF.fd' does not exist", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Load_Directory_SaysSo()
    {
        var error = await Assert.ThrowsAsync<LaunchInputException>(() => FirmwareImage.LoadAsync(Path.GetTempPath()));
        Assert.Contains("is a directory", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Load_EndlessFile_StopsAtTheLimit()
    {
        Assert.SkipUnless(File.Exists("/dev/zero"), "this system has no /dev/zero");
        var error = await Assert.ThrowsAsync<FirmwareFormatException>(() => FirmwareImage.LoadAsync("/dev/zero"));
        Assert.Contains("more than 16777216 bytes", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Load_File_IsTheSameAsParse()
    {
        FirmwareImage image = await FirmwareImage.LoadAsync(TestInputs.RequireFile("synfw-hash"));
        Assert.Equal(TestInputs.Require("synfw-hash"), image.Bytes.ToArray());
        Assert.Equal(7, image.SevSections.Count);
    }

    internal static FirmwareImage Parse(string input) => FirmwareImage.Parse(TestInputs.Require(input), input);

    private static (ulong Gpa, ulong Size, uint Type) ReadSection(JsonElement section) =>
        (SnpVector.Hex(section[0].GetString()!), SnpVector.Hex(section[1].GetString()!), section[2].GetUInt32());
}
