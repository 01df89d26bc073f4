using System.Security.Cryptography;
using System.Text;
using VmmService.Client.Launch;
using Xunit;

namespace VmmService.IntegrationTests.Launch.Planning;

public sealed class SampleFirmwareTests
{
    [Fact]
    public void Create_IsTheSameEverywhere() => Assert.Equal(
        "9dbc2781002955bbb8f4fedb4a7659883ec517d27dd088dd6b17da7d0667093a", Convert.ToHexStringLower(SHA256.HashData(SampleFirmware.Create())));

    [Fact]
    public void Create_ParsesWithEveryPart()
    {
        FirmwareImage image = FirmwareImage.Parse(SampleFirmware.Create(), SampleFirmware.Name);
        Assert.True(image.HasFooter);
        Assert.Equal(0xffff0000UL, image.Gpa);
        Assert.Equal(0xffffffe0u, image.SevEsResetEip);
        Assert.Equal(new FirmwareArea(0x810c00, 0x400), image.KernelHashArea);
        Assert.Equal(new FirmwareArea(0x810000, 0xc00), image.SecretArea);
        Assert.Empty(image.UnknownEntries);
        Assert.Equal(
            [SevSectionType.SNP_SEC_MEM, SevSectionType.SNP_SECRETS, SevSectionType.CPUID, SevSectionType.SNP_KERNEL_HASHES], image.SevSections.Select(section => section.Type).Distinct());
    }

    [Fact]
    public async Task Create_LaunchesWithKernelAndVcpus()
    {
        KernelHashes kernel = await KernelHashes.ComputeAsync(Stream.Null);
        SnpLaunchPlan plan = SnpLaunchPlan.Create(FirmwareImage.Parse(SampleFirmware.Create()), VmmFlavor.Qemu, kernel, 4, CpuModel.Find("EPYC-v4").Signature);
        Assert.Equal(7, plan.Regions.Count);
    }

    // A short jump ends two bytes behind its start plus its signed operand.
    [Fact]
    public void Create_ResetVector_JumpsToAHaltLoop()
    {
        byte[] image = SampleFirmware.Create();
        int reset = image.Length - 0x10;
        Assert.Equal(0xeb, image[reset]);
        int target = reset + 2 + (sbyte)image[reset + 1];
        Assert.Equal([0xfa, 0xf4, 0xeb], image[target..(target + 3)]);
        Assert.Equal(target + 1, target + 4 + (sbyte)image[target + 3]);
        Assert.Equal(image.Length - 0x20, target);
    }

    [Fact]
    public void Create_Filler_TellsItsOwnOffset()
    {
        byte[] image = SampleFirmware.Create();
        Assert.Equal("VmmSvc 00000000\n", Encoding.ASCII.GetString(image, 0, 16));
        Assert.Equal("VmmSvc 00008ff0\n", Encoding.ASCII.GetString(image, 0x8ff0, 16));
    }

    [Fact]
    public void Create_WithTdxMetadata_PointsToItsDescriptor()
    {
        byte[] metadata = [.. new byte[16], .. "TDVF"u8, .. new byte[80]];
        FirmwareImage image = FirmwareImage.Parse(SampleFirmware.Create(metadata, tdxDescriptorOffset: 16));
        int descriptor = (int)(image.Size - image.TdxMetadataFromEnd!.Value);
        Assert.Equal("TDVF"u8.ToArray(), image.Bytes.Slice(descriptor, 4).ToArray());
        Assert.Equal(6, image.SevSections.Count);
    }

    [Fact]
    public void Create_TdxMetadataTooLong_IsRefused() =>
        Assert.Throws<ArgumentOutOfRangeException>(() => SampleFirmware.Create(new byte[SampleFirmware.MaxTdxMetadata + 1]));
}
