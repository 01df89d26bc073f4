using BenchmarkDotNet.Attributes;
using VmmService.Client.Digest;
using VmmService.Client.Launch;

namespace SimKvm.Bench;

/// <summary>
/// A search for a digest through thousands of combinations, next to one launch digest computed from scratch: what the combinations have in common is hashed once, so the ratio is far below
/// their number.
/// </summary>
public class DigestSearchBench
{
    private readonly FirmwareImage _firmware = FirmwareImage.Parse(SampleFirmware.Create(), SampleFirmware.Name);
    private readonly byte[] _nobodys = new byte[Hash384.Size];
    private DigestQuestion _question = null!;

    [GlobalSetup]
    public void Setup() => _question = new DigestQuestion
    {
        Firmwares = [_firmware],
        Signatures = [.. CpuModel.All.Select(model => model.Signature).Distinct()],
        SevFeatures = SevFeatures.KnownSnp,
        Vcpus = [.. Enumerable.Range(1, 8)],
    };

    [Benchmark(Baseline = true, Description = "one launch digest from scratch")]
    public Hash384 One() => DigestTranscript.Measure(MeasuredLaunch.Of(SnpLaunchPlan.Create(_firmware, VmmFlavor.Qemu, null, 1, default)).Pages()).Digest;

    [Benchmark(Description = "a search through 10,000 combinations")]
    public ulong Search() => DigestSearch.Run(_nobodys, _question, maxCombinations: 10_000).Tried;
}
