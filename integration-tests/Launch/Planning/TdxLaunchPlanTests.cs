using System.Buffers.Binary;
using System.Text.Json;
using VmmService.Client.Digest;
using VmmService.Client.Launch;
using VmmService.IntegrationTests.Support;
using Xunit;

namespace VmmService.IntegrationTests.Launch.Planning;

/// <summary>What a VMM adds to a TD, and the MRTD of it.</summary>
public sealed class TdxLaunchPlanTests
{
    private const int FirstSection = 0x7010;

    public static TheoryData<string> Images => TdxVectors.Ids("tdvf", vector => !vector.TryGetProperty("expect", out _));

    public static TheoryData<string> Published => TdxVectors.Ids("published_mrtd", vector => vector.TryGetProperty("firmware_sha256", out _));

    [Theory]
    [MemberData(nameof(Images))]
    public void Mrtd_OfVectorImage_IsTheStatedOneInBothOrders(string id)
    {
        JsonElement vector = TdxVectors.Get("tdvf", id);
        var plan = TdxLaunchPlan.Create(FirmwareImage.Parse(TdxVectors.Image(vector)));
        Assert.Equal(TdxVectors.Text(vector, "mrtd_per_page"), MrtdDigest.Measure(plan.Regions).ToString());
        Assert.Equal(TdxVectors.Text(vector, "mrtd_per_region"), MrtdDigest.Measure(plan.Regions, MrtdOrder.PerRegion).ToString());
    }

    [Fact]
    public void Mrtd_OfDebianFirmware_IsTheStatedOneInBothOrders()
    {
        JsonElement vector = TdxVectors.All("firmware").Single();
        byte[] image = TdxVectors.RequireFirmware(vector);
        var plan = TdxLaunchPlan.Create(FirmwareImage.Parse(image));
        Assert.Equal(TdxVectors.Text(vector, "mrtd_per_page"), MrtdDigest.Measure(plan.Regions).ToString());
        Assert.Equal(TdxVectors.Text(vector, "mrtd_per_region"), MrtdDigest.Measure(plan.Regions, MrtdOrder.PerRegion).ToString());

        TdxRegion cfv = plan.Regions.Single(region => region.Label == "CFV");
        Assert.Equal(vector.GetProperty("cfv_bytes").GetInt32(), cfv.Content.Length);
        Assert.Equal(TdxVectors.Text(vector, "cfv_sha384"), TdxVectors.Sha384(cfv.Content.Span));
    }

    [Theory]
    [MemberData(nameof(Published))]
    public void Mrtd_OfReleasedFirmware_IsThePublishedOne(string id)
    {
        JsonElement vector = TdxVectors.Get("published_mrtd", id);
        var plan = TdxLaunchPlan.Create(FirmwareImage.Parse(TdxVectors.RequireReleasedFirmware(vector)));
        MrtdOrder order = TdxVectors.Text(vector, "order") == "per_region" ? MrtdOrder.PerRegion : MrtdOrder.PerPage;
        Assert.Equal(TdxVectors.Text(vector, "mrtd"), MrtdDigest.Measure(plan.Regions, order).ToString());
    }

    [Fact]
    public void Create_OfBasicImage_TakesContentFromTheImageAndTheHobFromMemory()
    {
        byte[] image = Basic();
        var plan = TdxLaunchPlan.Create(FirmwareImage.Parse(image), memory: 4UL << 30);
        Assert.Equal(
            ["BFV 0xffffa000 6 True", "CFV 0xffff8000 2 False", "TEMP_MEM 0x810000 3 False", "TD_HOB 0x809000 2 False"],
            plan.Regions.Select(region => $"{region.Label} 0x{region.Gpa:x} {region.Pages} {region.Extend}"));
        Assert.Equal(image[0x2000..], plan.Regions[0].Content.ToArray());
        Assert.Equal(image[..0x2000], plan.Regions[1].Content.ToArray());
        Assert.True(plan.Regions[2].Content.IsEmpty);
        Assert.Equal(0x809000ul, plan.HobGpa);
        Assert.Equal(TdHob.Build(0x809000, TdHob.Q35Memory(4UL << 30), [new(0x810000, 0x3000), new(0x809000, 0x2000)]), plan.Hob.ToArray());
        Assert.Equal(plan.Hob.ToArray(), plan.Regions[3].Content.ToArray());
        Assert.Equal(13ul, plan.Pages);
    }

    [Fact]
    public void Mrtd_DoesNotDependOnMemorySizeUnlessTheHobIsExtended()
    {
        var firmware = FirmwareImage.Parse(Basic());
        Assert.Equal(MrtdAt(2, TdxFlavor.Qemu), MrtdAt(8, TdxFlavor.Qemu));
        Assert.NotEqual(MrtdAt(2, TdxFlavor.Gce), MrtdAt(8, TdxFlavor.Gce));

        Hash384 MrtdAt(ulong gib, TdxFlavor flavor) => MrtdDigest.Measure(TdxLaunchPlan.Create(firmware, gib << 30, flavor).Regions);
    }

    [Fact]
    public void Create_MemoryLongerThanData_GoesOnInTheImageOrIsZeroAsTheVmmHasIt()
    {
        var firmware = FirmwareImage.Parse(TdxVectors.Image(TdxVectors.Get("tdvf", "tdvf-order-and-tail")));
        TdxRegion qemu = TdxLaunchPlan.Create(firmware).Regions[1];
        TdxRegion shim = TdxLaunchPlan.Create(firmware, flavor: TdxFlavor.TdShim).Regions[1];
        Assert.Equal(firmware.Bytes.Slice(0x1000, 0x4000).ToArray(), qemu.Content.ToArray());
        Assert.Equal(0x3000, shim.Content.Length);
        byte[] page = new byte[4096];
        page[0] = 1;
        shim.ReadPage(3, page);
        Assert.Equal(new byte[4096], page);
    }

    [Fact]
    public void Create_SectionWithPageAug_IsAddedByQemuAndLeftToTheTdByShim()
    {
        byte[] image = Basic();
        BinaryPrimitives.WriteUInt32LittleEndian(image.AsSpan(FirstSection + 64 + 28), (uint)TdvfAttributes.PAGE_AUG);
        var firmware = FirmwareImage.Parse(image);
        Assert.Equal(4, TdxLaunchPlan.Create(firmware).Regions.Count);
        Assert.Equal(["BFV", "CFV", "TD_HOB"], TdxLaunchPlan.Create(firmware, flavor: TdxFlavor.TdShim).Regions.Select(region => region.Label));
    }

    [Theory]
    [InlineData("sections that overlap", FirstSection + 32 + 8, 0xffff9000ul, "overlap")]
    [InlineData("no hand-off blocks", FirstSection + 96 + 24, 3ul, "0 sections of type TD_HOB")]
    [InlineData("two hand-off blocks", FirstSection + 64 + 24, 2ul, "2 sections of type TD_HOB")]
    [InlineData("an empty section", FirstSection + 64 + 16, 0ul, "is empty")]
    [InlineData("memory that the image does not reach", FirstSection + 16, 0x7000ul, "are filled from offset 0x2000 of the image")]
    [InlineData("scratch memory outside of RAM", FirstSection + 64 + 8, 0xc0000000ul, "wants memory at 0xc0000000")]
    [InlineData("far too much scratch memory", FirstSection + 64 + 16, 0x60000000ul, "more than 0x40000000 bytes")]
    public void Create_ImageThatCannotBeLaunched_IsRefused(string what, int offset, ulong value, string message)
    {
        byte[] image = Basic();
        if (offset % 32 == (FirstSection + 24) % 32)
            BinaryPrimitives.WriteUInt32LittleEndian(image.AsSpan(offset), (uint)value);
        else
            BinaryPrimitives.WriteUInt64LittleEndian(image.AsSpan(offset), value);
        LaunchInputException refused = Assert.Throws<LaunchInputException>(() => TdxLaunchPlan.Create(FirmwareImage.Parse(image)));
        Assert.True(refused.Message.Contains(message, StringComparison.Ordinal), $"{what}: {refused.Message}");
    }

    [Theory]
    [InlineData(40, true)]
    [InlineData(41, false)]
    public void Create_HobThatDoesNotFitItsSection_IsRefused(int scratch, bool fits)
    {
        // Every section leaves a hole before itself. With TD_HOB, scratch + 1 sections make 2 * (scratch + 1) + 1 ranges of 48 bytes, beside 64 bytes of head and end.
        byte[] image = Basic();
        Span<byte> metadata = image.AsSpan(0x7000);
        Words(metadata[4..], [(uint)(16 + (32 * (scratch + 2))), 1, (uint)(scratch + 2)]);
        Words(metadata[16..], [0x2000, 0x6000, 0xffffa000, 0, 0x6000, 0, (uint)TdvfSectionType.BFV, 0]);
        Words(metadata[48..], [0, 0, 0x800000, 0, 0x1000, 0, (uint)TdvfSectionType.TD_HOB, 0]);
        for (int i = 0; i < scratch; i++)
            Words(metadata[(80 + (32 * i))..], [0, 0, 0x900000 + ((uint)i * 0x2000), 0, 0x1000, 0, (uint)TdvfSectionType.TEMP_MEM, 0]);

        var firmware = FirmwareImage.Parse(image);
        if (fits)
            Assert.Equal(64 + (48 * ((2 * (scratch + 1)) + 1)), TdxLaunchPlan.Create(firmware).Hob.Length);
        else
            Assert.Contains("the hand-off blocks for this guest need", Assert.Throws<LaunchInputException>(() => TdxLaunchPlan.Create(firmware)).Message, StringComparison.Ordinal);

        static void Words(Span<byte> at, uint[] words)
        {
            for (int i = 0; i < words.Length; i++)
                BinaryPrimitives.WriteUInt32LittleEndian(at[(4 * i)..], words[i]);
        }
    }

    private static byte[] Basic() => TdxVectors.Image(TdxVectors.Get("tdvf", "tdvf-basic"));
}
