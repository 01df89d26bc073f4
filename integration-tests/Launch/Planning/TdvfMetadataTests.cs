using System.Buffers.Binary;
using System.Text.Json;
using VmmService.Client.Launch;
using VmmService.IntegrationTests.Support;
using Xunit;

namespace VmmService.IntegrationTests.Launch.Planning;

/// <summary>TDX metadata of firmware images: what good ones say and why bad ones are refused.</summary>
public sealed class TdvfMetadataTests
{
    // Places in the image "tdvf-basic".
    private const int Descriptor = 0x7000;
    private const int FirstSection = Descriptor + 16;
    private const int Pointer = 0x7fb8;

    public static TheoryData<string> Good => TdxVectors.Ids("tdvf", vector => !vector.TryGetProperty("expect", out _));

    public static TheoryData<string> Bad => TdxVectors.Ids("tdvf", vector => vector.TryGetProperty("expect", out _));

    /// <summary>A field of the basic image, its value, its size, and what the refusal names.</summary>
    public static TheoryData<string, int, ulong, int, string> Lies => new()
    {
        { "pointer in front of the image", Pointer, 0x8001, 4, "TDX metadata pointer" },
        { "pointer without room for the descriptor", Pointer, 15, 4, "TDX metadata pointer" },
        { "pointer at the very end", Pointer, 0, 4, "TDX metadata pointer" },
        { "no section", Descriptor + 12, 0, 4, "section count" },
        { "more sections than fit", Descriptor + 12, 0x8000_0000, 4, "section count" },
        { "length of one section less", Descriptor + 4, 16 + (3 * 32), 4, "length of the TDX metadata" },
        { "memory smaller than data", FirstSection + 16, 0x5000, 8, "memory size of TDX section 0" },
        { "memory of no whole pages", FirstSection + 16, 0x6001, 8, "memory size of TDX section 0" },
        { "code without data", FirstSection + 4, 0, 4, "data size of TDX section 0" },
        { "variable store without data", FirstSection + 32 + 4, 0, 4, "data size of TDX section 1" },
        { "hand-off blocks with data", FirstSection + 96 + 4, 0x1000, 4, "data size of TDX section 3" },
        { "a type of td-shim", FirstSection + 24, 4, 4, "type of TDX section 0" },
        { "a type that nobody has", FirstSection + 24, 0xffff_ffff, 4, "type of TDX section 0" },
        { "data behind the image", FirstSection, 0x7000, 4, "data of TDX section 0" },
        { "data whose end wraps", FirstSection, 0xffff_f000, 4, "data of TDX section 0" },
        { "memory behind all addresses", FirstSection + 8, 0xffff_ffff_ffff_f000, 8, "address of TDX section 0" },
        { "memory whose size wraps", FirstSection + 16, 0xffff_ffff_ffff_f000, 8, "address of TDX section 0" },
    };

    [Theory]
    [MemberData(nameof(Good))]
    public void Parse_VectorImage_HasTheStatedSections(string id)
    {
        JsonElement vector = TdxVectors.Get("tdvf", id);
        var metadata = TdvfMetadata.Parse(FirmwareImage.Parse(TdxVectors.Image(vector)));
        Assert.Equal(vector.GetProperty("sections").EnumerateArray().Select(Read), metadata.Sections.Select(section => section with { Offset = 0 }));
        Assert.True(metadata.HasGuid);
    }

    [Fact]
    public void Parse_DebianImage_HasTheStatedSections()
    {
        JsonElement vector = TdxVectors.All("firmware").Single();
        var metadata = TdvfMetadata.Parse(FirmwareImage.Parse(TdxVectors.RequireFirmware(vector)));
        Assert.Equal(vector.GetProperty("sections").EnumerateArray().Select(Read), metadata.Sections.Select(section => section with { Offset = 0 }));
    }

    [Theory]
    [MemberData(nameof(Bad))]
    public void Parse_VectorImageThatLies_IsRefusedForTheStatedReason(string id)
    {
        JsonElement vector = TdxVectors.Get("tdvf", id);
        FirmwareImage image = FirmwareImage.Parse(TdxVectors.Image(vector));
        FirmwareFormatException refused = Assert.Throws<FirmwareFormatException>(() => TdvfMetadata.Parse(image));
        string reason = TdxVectors.Text(vector, "reason");
        Assert.Matches(
            reason switch { "length/count" => "length", "alignment" => "has to be a multiple", "raw size != 0" => "has to be 0", _ => reason },
            refused.Message);
    }

    [Theory]
    [MemberData(nameof(Lies))]
    public void Parse_ImageWithOneLie_IsRefusedAndTheFieldIsNamed(string lie, int offset, ulong value, int size, string field)
    {
        byte[] image = Basic();
        byte[] bytes = new byte[8];
        BinaryPrimitives.WriteUInt64LittleEndian(bytes, value);
        bytes.AsSpan(0, size).CopyTo(image.AsSpan(offset));
        FirmwareFormatException refused = Assert.Throws<FirmwareFormatException>(() => TdvfMetadata.Parse(FirmwareImage.Parse(image)));
        Assert.True(refused.Message.Contains(field, StringComparison.Ordinal), $"{lie}: {refused.Message}");
    }

    [Fact]
    public void Parse_ImageWithoutMetadata_IsRefused()
    {
        LaunchInputException refused = Assert.Throws<LaunchInputException>(() => TdvfMetadata.Parse(FirmwareImage.Parse(SampleFirmware.Create())));
        Assert.Contains("its footer lacks that entry", refused.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Parse_WithoutTheGuidInFront_IsAcceptedAsQemuDoes()
    {
        byte[] image = Basic();
        image[Descriptor - 1] ^= 1;
        Assert.False(TdvfMetadata.Parse(FirmwareImage.Parse(image)).HasGuid);
    }

    [Fact]
    public void Parse_CodeHalfOfASplitBuild_IsRefusedWithTheAdvice()
    {
        byte[] image = Basic();
        FirmwareFormatException refused = Assert.Throws<FirmwareFormatException>(() => TdvfMetadata.Parse(FirmwareImage.Parse(image.AsMemory(0x2000))));
        Assert.Contains("code half of a split build", refused.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void ParseSplit_OfBothHalves_IsTheWholeImage()
    {
        byte[] image = Basic();
        FirmwareImage joined = FirmwareImage.ParseSplit(image.AsMemory(0, 0x2000), image.AsMemory(0x2000));
        Assert.Equal(image, joined.Bytes.ToArray());
        Assert.Equal(4, TdvfMetadata.Parse(joined).Sections.Count);
    }

    [Fact]
    public void Parse_ShimImage_IsFoundByTheOffsetNearTheEndAndOnlyByItsRules()
    {
        byte[] image = new byte[0x8000];
        Basic().AsSpan(Descriptor, 16 + (4 * 32)).CopyTo(image.AsSpan(Descriptor));
        BinaryPrimitives.WriteUInt32LittleEndian(image.AsSpan(image.Length - 0x20), Descriptor);
        BinaryPrimitives.WriteUInt32LittleEndian(image.AsSpan(FirstSection + (2 * 32) + 24), (uint)TdvfSectionType.PERM_MEM);
        var parsed = FirmwareImage.Parse(image);
        Assert.Equal(TdvfSectionType.PERM_MEM, TdvfMetadata.Parse(parsed, TdvfRules.TdShim).Sections[2].Type);
        Assert.Throws<LaunchInputException>(() => TdvfMetadata.Parse(parsed));
    }

    private static byte[] Basic() => TdxVectors.Image(TdxVectors.Get("tdvf", "tdvf-basic"));

    private static TdvfSection Read(JsonElement section) => new(
        section.GetProperty("data_offset").GetUInt32(), section.GetProperty("raw_size").GetUInt32(), TdxVectors.Number(section, "gpa"), TdxVectors.Number(section, "mem_size"),
        (TdvfSectionType)section.GetProperty("type").GetUInt32(), (TdvfAttributes)section.GetProperty("attributes").GetUInt32(), 0);
}
