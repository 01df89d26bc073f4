using VmmService.Client;
using VmmService.Client.Launch;
using VmmService.Client.Launching;
using VmmService.IntegrationTests.Support;
using Xunit;

namespace VmmService.IntegrationTests.Launch;

/// <summary>
/// The launch digests of snp-vectors.json, each by driving the real launch over gRPC: firmware, sections, vCPUs. The daemon measures; nothing is computed beside
/// it.
/// </summary>
public sealed class SnpDigestVectorTests(Daemon daemon) : IClassFixture<Daemon>
{
    public static TheoryData<string> Digests => SnpVectors.Ids("snp-launch-digest");

    public static TheoryData<string> Errors => SnpVectors.Ids("snp-launch-digest-error");

    [Theory]
    [MemberData(nameof(Digests))]
    public async Task Launch_OverGrpc_GivesTheDigestBitForBit(string id)
    {
        SnpVector vector = SnpVectors.Get(id);
        SnpLaunchPlan plan = await PlanOf(vector);
        await using RemoteHost host = await daemon.Connection.CreateHostAsync();
        await using RemoteProcess process = await host.CreateProcessAsync();

        await using LaunchedSnpGuest guest = await SnpLauncher.LaunchAsync(process, plan);

        Assert.Equal(vector.ExpectedText("digest"), guest.LaunchDigest);
        string after(int records) => guest.Transcript[records - 1].DigestAfter;
        int firmwarePages = (int)plan.Firmware.Size / 4096;
        Assert.Equal(vector.ExpectedText("after_firmware"), after(firmwarePages));
        Assert.Equal(vector.ExpectedText("after_metadata"), after(guest.Transcript.Count - plan.Vcpus.Count));
        Assert.All(guest.Transcript.TakeLast(plan.Vcpus.Count), record => Assert.Equal((V1.SnpPageType.Vmsa, 0xffff_ffff_f000ul), (record.PageType, record.Gpa)));
    }

    [Theory]
    [MemberData(nameof(Errors))]
    public async Task Launch_OfWhatDoesNotGoTogether_IsRefusedWithTheStatedReason(string id)
    {
        SnpVector vector = SnpVectors.Get(id);
        LaunchInputException refused = await Assert.ThrowsAnyAsync<LaunchInputException>(() => PlanOf(vector));
        // The reference tool's sentence, in our words: a kernel was given, the metadata lacks the section.
        Assert.Equal("Kernel specified but OVMF metadata doesn't include SNP_KERNEL_HASHES section", vector.ExpectedText("error"));
        Assert.Matches("kernel was specified but .*doesn't include .*SNP_KERNEL_HASHES section", refused.Message);
    }

    private static async Task<SnpLaunchPlan> PlanOf(SnpVector vector)
    {
        SnpLaunchParams launch = vector.Launch;
        TestInputs.RequireAll(launch.Inputs);
        KernelHashes? kernel = launch.Kernel is null
            ? null
            : await KernelHashes.ComputeAsync(
                new MemoryStream(TestInputs.Require(launch.Kernel)),
                launch.Initrd is null ? null : new MemoryStream(TestInputs.Require(launch.Initrd)),
                launch.Append);
        return SnpLaunchPlan.Create(
            FirmwareImage.Parse(TestInputs.Require(launch.Firmware)), VmmFlavor.Find(launch.VmmType), kernel,
            launch.Vcpus, new CpuSignature(launch.VcpuSig ?? 0), launch.GuestFeatures ?? SnpLaunchPlan.SnpActive);
    }
}
