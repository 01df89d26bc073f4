using System.Buffers.Binary;
using VmmService.Client.Digest;
using VmmService.Client.Launch;
using VmmService.IntegrationTests.Support;
using Xunit;

namespace VmmService.IntegrationTests.Digest;

/// <summary>Firmware volumes are named where they are well-formed, and never where a header lies.</summary>
public sealed class FirmwareMapTests
{
    private const int Start = 0x2000;
    private const int VolumeSize = 0x3000;

    [Fact]
    public void Volume_IsNamedForEveryPageOfIt()
    {
        var map = new FirmwareMap(Image(_ => { }));

        Assert.Null(map.Describe(0x1000));
        Assert.Equal("the start of the firmware volume at 0x2000 (0x3000 bytes, FFS2)", map.Describe(0x2000));
        Assert.Equal("bytes from 0x2000 of the firmware volume at 0x2000 (0x3000 bytes, FFS2)", map.Describe(0x4000));
        Assert.Null(map.Describe(0x5000));
        Assert.Equal("the reset vector", map.Describe(0x7000));
    }

    [Theory]
    [InlineData(32, 0xffff_ffff_ffff_fff0ul)] // a size beyond the image
    [InlineData(32, 0ul)]
    [InlineData(32, 0x6001ul)]
    [InlineData(48, 0ul)] // a header of no length
    [InlineData(48, 0xfffful)]
    [InlineData(48, 57ul)]
    [InlineData(50, 0x1234ul)] // a wrong checksum
    public void HeaderThatLies_IsNoVolume(int offset, ulong value)
    {
        FirmwareImage image = Image(header =>
        {
            if (offset == 32)
                BinaryPrimitives.WriteUInt64LittleEndian(header[offset..], value);
            else
                BinaryPrimitives.WriteUInt16LittleEndian(header[offset..], (ushort)value);
        });

        Assert.Null(new FirmwareMap(image).Describe(Start));
    }

    [Fact]
    public void Ovmf_HasItsVolumesAndItsMetadata()
    {
        var map = new FirmwareMap(FirmwareImage.Parse(TestInputs.Require("deb-OVMF"), "OVMF.fd"));

        Assert.Contains("boot variables", map.Describe(0), StringComparison.Ordinal);
        Assert.Contains("FFS2", map.Describe(0x20000), StringComparison.Ordinal);
        Assert.Contains("the SEV metadata, the footer table (", map.Describe(0x1ff000), StringComparison.Ordinal);
        Assert.Contains("SEV-ES reset block", map.Describe(0x1ff000), StringComparison.Ordinal);
    }

    // Eight pages with a volume of three in them; the header is changed before or after it is sealed.
    private static FirmwareImage Image(SpanAction change)
    {
        byte[] bytes = new byte[0x8000];
        Span<byte> header = bytes.AsSpan(Start, 72);
        new Guid("8c8ce578-8a3d-4f1c-9935-896185c32dd3").TryWriteBytes(header[16..]);
        BinaryPrimitives.WriteUInt64LittleEndian(header[32..], VolumeSize);
        "_FVH"u8.CopyTo(header[40..]);
        BinaryPrimitives.WriteUInt16LittleEndian(header[48..], 72);
        ushort sum = 0;
        for (int i = 0; i < 72; i += 2)
            sum += BinaryPrimitives.ReadUInt16LittleEndian(header[i..]);
        BinaryPrimitives.WriteUInt16LittleEndian(header[50..], (ushort)-sum);
        change(header);
        return FirmwareImage.Parse(bytes, "volumes.fd");
    }

    private delegate void SpanAction(Span<byte> header);
}
