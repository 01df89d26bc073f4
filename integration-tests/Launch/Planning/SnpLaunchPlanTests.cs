using System.Buffers.Binary;
using VmmService.Client.Launch;
using VmmService.IntegrationTests.Support;
using Xunit;

namespace VmmService.IntegrationTests.Launch.Planning;

public sealed class SnpLaunchPlanTests
{
    // The reference's sentences, and the parts of ours that say the same.
    private static readonly Dictionary<string, string[]> s_reasons = new(StringComparer.Ordinal)
    {
        ["Kernel specified but OVMF metadata doesn't include SNP_KERNEL_HASHES section"] =
            ["kernel was specified but the SEV metadata of the firmware", "doesn't include an SNP_KERNEL_HASHES section"],
        ["Kernel specified but OVMF doesn't support kernel/initrd/cmdline measurement"] =
            ["kernel was specified but the firmware", "doesn't support kernel/initrd/cmdline measurement"],
    };

    public static TheoryData<string> DigestVectors => SnpVectors.Ids("snp-launch-digest");

    public static TheoryData<string> ErrorVectors => new(
        SnpVectors.All.Where(vector => vector.Kind.EndsWith("-launch-digest-error", StringComparison.Ordinal)).Select(vector => vector.Id));

    [Theory]
    [MemberData(nameof(DigestVectors))]
    public async Task Create_Vector_PlansWhatTheReferenceMeasures(string id)
    {
        SnpVector vector = SnpVectors.Get(id);
        (string afterFirmware, string afterRegions, string digest) = PlanReferee.Measure(await Plan(vector.Launch));
        Assert.Equal(vector.ExpectedText("after_firmware"), afterFirmware);
        Assert.Equal(vector.ExpectedText("after_metadata") ?? afterFirmware, afterRegions);
        Assert.Equal(vector.ExpectedText("digest"), digest);
    }

    // The legacy modes have no plan; there the firmware is asked for its hash area, which is where they fail too.
    [Theory]
    [MemberData(nameof(ErrorVectors))]
    public async Task Create_ErrorVector_IsRefusedForTheStatedReason(string id)
    {
        SnpVector vector = SnpVectors.Get(id);
        LaunchInputException error = vector.Launch.Mode == "snp"
            ? await Assert.ThrowsAsync<LaunchInputException>(() => Plan(vector.Launch))
            : Assert.Throws<LaunchInputException>(() => FirmwareImageTests.Parse(vector.Launch.Firmware).RequireKernelHashArea());

        Assert.All(s_reasons[vector.ExpectedText("error")!], reason => Assert.Contains(reason, error.Message, StringComparison.Ordinal));
        Assert.Contains(vector.Launch.Firmware, error.Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("qemu", "NORMAL firmware|ZERO SNP_SEC_MEM|ZERO SNP_SEC_MEM|SECRETS SNP_SECRETS|CPUID CPUID|ZERO SVSM_CAA|ZERO SNP_SEC_MEM|ZERO SNP_KERNEL_HASHES")]
    [InlineData("ec2", "NORMAL firmware|ZERO SNP_SEC_MEM|ZERO SNP_SEC_MEM|SECRETS SNP_SECRETS|ZERO SVSM_CAA|ZERO SNP_SEC_MEM|ZERO SNP_KERNEL_HASHES|CPUID CPUID")]
    [InlineData("gce", "NORMAL firmware|UNMEASURED SNP_SEC_MEM|UNMEASURED SNP_SEC_MEM|SECRETS SNP_SECRETS|CPUID CPUID|ZERO SVSM_CAA|UNMEASURED SNP_SEC_MEM|ZERO SNP_KERNEL_HASHES")]
    public void Create_EachFlavor_HasItsOrderAndPageTypes(string flavor, string order)
    {
        SnpLaunchPlan plan = SnpLaunchPlan.Create(FirmwareImageTests.Parse("synfw-hash"), VmmFlavor.Find(flavor), null, 1, default);
        Assert.Equal(order, string.Join('|', plan.Regions.Select(region => $"{region.PageType} {region.Label}")));
    }

    [Fact]
    public async Task Create_WithKernel_LaunchesTheHashPageFromContent()
    {
        KernelHashes kernel = await KernelHashesTests.Compute("k-small", null, null);
        SnpLaunchPlan plan = SnpLaunchPlan.Create(FirmwareImageTests.Parse("synfw-hash"), VmmFlavor.Qemu, kernel, 1, default);
        LaunchRegion region = plan.Regions[^1];
        Assert.Equal((SnpPageType.NORMAL, 0x810000UL, 0x1000UL, LaunchSource.KernelHashPage), (region.PageType, region.Gpa, region.Size, region.Source));
        Assert.Equal(kernel.BuildPage(0x810c00), region.Content.ToArray());
        Assert.All(plan.Regions, each => Assert.True(each.Content.IsEmpty || (ulong)each.Content.Length == each.Size));
    }

    [Fact]
    public void Create_SeveralVcpus_AreOneBspAndEqualAps()
    {
        SnpLaunchPlan plan = SnpLaunchPlan.Create(FirmwareImageTests.Parse("synfw-hash"), VmmFlavor.Qemu, null, 4, new(0xa00f11), 0x21);
        Assert.Equal(4, plan.Vcpus.Count);
        Assert.Equal(0xfff0UL, plan.Vcpus[0].Rip);
        Assert.All(plan.Vcpus.Skip(1), ap => Assert.Equal(VmmFlavor.Qemu.Ap(new(0xa00f11), 0x0080b004), ap));
        Assert.Equal(0x20UL, plan.VmsaFeatures);
        Assert.Equal(64UL + 9 + 3 + 1 + 1 + 1 + 15 + 1 + 4, plan.MeasuredSteps);
    }

    [Fact]
    public void Create_NoFooter_IsOneRegionAndOneVcpu()
    {
        FirmwareImage image = FirmwareImage.Parse(new byte[8192], "blank.fd");
        SnpLaunchPlan plan = SnpLaunchPlan.Create(image, VmmFlavor.Qemu, null, 1, default);
        Assert.Equal(0xffffe000UL, Assert.Single(plan.Regions).Gpa);

        var error = Assert.Throws<LaunchInputException>(() => SnpLaunchPlan.Create(image, VmmFlavor.Qemu, null, 2, default));
        Assert.Contains("blank.fd has no SEV-ES reset block (it has no footer table)", error.Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(0, 1ul, "The number of vCPUs (--vcpus) is 0 and a VM has 1 to 1024")]
    [InlineData(1025, 1ul, "The number of vCPUs (--vcpus) is 1025 and a VM has 1 to 1024")]
    [InlineData(int.MinValue, 1ul, "a VM has 1 to 1024")]
    [InlineData(1, 0x20ul, "are 0x20, without bit 0 (SNPActive), which is set in every SNP guest. Did you mean 0x21?")]
    public void Create_OptionOutOfRange_IsRefused(int vcpus, ulong guestFeatures, string message) => Assert.Contains(
        message,
        Assert.Throws<LaunchInputException>(() => SnpLaunchPlan.Create(FirmwareImageTests.Parse("synfw-hash"), VmmFlavor.Qemu, null, vcpus, default, guestFeatures)).Message,
        StringComparison.Ordinal);

    // Changes one word of synfw-hash, at an offset from the start of a section's 12 bytes or of the hash area's entry, and launches it with a kernel.
    [Theory]
    [InlineData("section 3", 8, 5u, "has type 0x5, and no VMM is known to launch such sections; known are SNP_SEC_MEM (0x1)")]
    [InlineData("section 2", 4, 0x1000u, null)]
    [InlineData("section 0", 8, 2u, "the SNP_SECRETS section at 0x800000 (offset 0x3fa10 in the image) has 0x9000 bytes, but firmware makes a single secrets page")]
    [InlineData("section 0", 8, 3u, "the CPUID section at 0x800000 (offset 0x3fa10 in the image) has 0x9000 bytes, but the CPUID table is a single page")]
    [InlineData("section 0", 8, 0x10u, "the SNP_KERNEL_HASHES section at 0x800000 (offset 0x3fa10 in the image) has 0x9000 bytes, but the table of kernel hashes")]
    [InlineData("section 6", 8, 1u, "It has SNP_SEC_MEM, SNP_SECRETS, CPUID, SVSM_CAA.")]
    [InlineData("hash area", 0, 0u, "it keeps no area for their hashes (the base in that entry of its footer is 0)")]
    [InlineData("hash area", 4, 175u, "at 0x810c00, has 175 bytes and the table of hashes needs 176")]
    [InlineData("hash area", 0, 0x820c00u, "at 0x820c00, is not in its SNP_KERNEL_HASHES section, 0x810000 to 0x811000")]
    [InlineData("hash area", 0, 0x810f80u, "does not end in that page")]
    public async Task Create_ImageThatCannotBeLaunched_IsRefused(string place, int offset, uint value, string? message)
    {
        FirmwareImage good = FirmwareImageTests.Parse("synfw-hash");
        int start = place == "hash area" ? good.Entries.Single(entry => entry.Guid == FirmwareGuids.KernelHashArea).Offset : good.SevSections[place[^1] - '0'].Offset;
        byte[] bytes = good.Bytes.ToArray();
        BinaryPrimitives.WriteUInt32LittleEndian(bytes.AsSpan(start + offset), value);
        FirmwareImage image = FirmwareImage.Parse(bytes, "odd.fd");
        KernelHashes kernel = await KernelHashesTests.Compute("empty", null, null);

        if (message is null)
            Assert.Equal(8, SnpLaunchPlan.Create(image, VmmFlavor.Qemu, kernel, 1, default).Regions.Count);
        else
            Assert.Contains(message, Assert.Throws<LaunchInputException>(() => SnpLaunchPlan.Create(image, VmmFlavor.Qemu, kernel, 1, default)).Message, StringComparison.Ordinal);
    }

    private static async Task<SnpLaunchPlan> Plan(SnpLaunchParams launch)
    {
        TestInputs.RequireAll(launch.Inputs);
        KernelHashes? kernel = launch.Kernel is null ? null : await KernelHashesTests.Compute(launch.Kernel, launch.Initrd, launch.Append);
        return SnpLaunchPlan.Create(
            FirmwareImageTests.Parse(launch.Firmware), VmmFlavor.Find(launch.VmmType), kernel, launch.Vcpus, new(launch.VcpuSig ?? 0), launch.GuestFeatures ?? 1);
    }
}
