using System.Text.Json;
using VmmService.Client.Launch;
using VmmService.IntegrationTests.Support;
using Xunit;

namespace VmmService.IntegrationTests.Cli;

/// <summary>vmm launch tdx: the MRTD that the module measures is the one that is computed without a launch, in both orders of measuring.</summary>
public sealed class LaunchTdxCommandTests(Daemon daemon) : IClassFixture<Daemon>, IDisposable
{
    private readonly string _sample = WriteSample();

    public void Dispose() => File.Delete(_sample);

    [Theory]
    [InlineData("per-page", "K616")]
    [InlineData("per-page", "K619")]
    [InlineData("per-page", "K72")]
    [InlineData("per-region", "TDX24")]
    public async Task Launch_MeasuresWhatIsComputedForTheOrder(string order, string profile)
    {
        VmmRun run = await VmmRun.Invoke("launch", "tdx", "--firmware", _sample, "--order", order, "--profile", profile, "--json", "--server", daemon.Address);

        Assert.Equal("", run.Error);
        Assert.Equal(0, run.ExitCode);
        Assert.Equal(profile, run.Json.GetProperty("profile").GetString());
        Assert.Equal(run.Json.GetProperty("computedMrtd").GetString(), run.Json.GetProperty("mrtd").GetString());
    }

    [Fact]
    public async Task Json_IsOneObjectThatRetellsTheLaunch()
    {
        VmmRun run = await VmmRun.Invoke("launch", "tdx", "--firmware", _sample, "--vcpus", "2", "--seed", "0x7", "--json");

        JsonElement report = run.Json;
        Assert.Equal("TDX", report.GetProperty("vmType").GetString());
        Assert.Equal("K72", report.GetProperty("profile").GetString());
        Assert.Equal((2, 7, "0x809000", "per-page"), (
            report.GetProperty("vcpus").GetInt32(), report.GetProperty("seed").GetInt32(), report.GetProperty("hobGpa").GetString(), report.GetProperty("order").GetString()));
        // BFV: 8 pages, each added and extended by 16 chunks; the others are added only: 8 + 16 + 2 + 2 + 6.
        Assert.Equal((8 * 17) + 8 + 16 + 2 + 2 + 6, report.GetProperty("measuredCalls").GetInt32());
        Assert.Equal("0xffff8000..0xffffffff added and extended, 8 pages", report.GetProperty("measured")[0].GetString());
    }

    [Fact]
    public async Task Sample_LaunchesAsSnpAndAsTdx()
    {
        VmmRun snp = await VmmRun.Invoke("launch", "snp", "--firmware", _sample, "--json", "--server", daemon.Address);
        VmmRun tdx = await VmmRun.Invoke("launch", "tdx", "--firmware", _sample, "--json", "--server", daemon.Address);

        Assert.Equal((0, 0), (snp.ExitCode, tdx.ExitCode));
        Assert.NotEqual(snp.Json.GetProperty("launchDigest").GetString(), tdx.Json.GetProperty("mrtd").GetString());
    }

    [Fact]
    public async Task Orders_GiveDifferentMrtds_OfTheSameFirmware()
    {
        VmmRun page = await VmmRun.Invoke("launch", "tdx", "--firmware", _sample, "--json", "--server", daemon.Address);
        VmmRun region = await VmmRun.Invoke("launch", "tdx", "--firmware", _sample, "--order", "per-region", "--json", "--server", daemon.Address);

        Assert.NotEqual(page.Json.GetProperty("mrtd").GetString(), region.Json.GetProperty("mrtd").GetString());
    }

    [Fact]
    public async Task Transcript_HasEveryMeasuredCall()
    {
        VmmRun run = await VmmRun.Invoke("launch", "tdx", "--firmware", _sample, "--transcript", "--server", daemon.Address);

        string[] calls = [.. run.Output.Split('\n').Where(line => line.Contains("  PAGE.ADD", StringComparison.Ordinal) || line.Contains("  MR.EXTEND", StringComparison.Ordinal))];
        Assert.Equal((8 * 17) + 8 + 16 + 2 + 2 + 6, calls.Length);
        Assert.Equal("  0  PAGE.ADD   0xffff8000", calls[0]);
        Assert.StartsWith("  1  MR.EXTEND  0xffff8000  sha256 ", calls[1], StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(true, "--quiet")]
    [InlineData(true, "--json")]
    public async Task Progress_IsNotShown(bool errorIsTerminal, string option)
    {
        VmmRun run = await VmmRun.Invoke(["launch", "tdx", "--firmware", _sample, "--server", daemon.Address, option], errorIsTerminal);
        Assert.Equal((0, ""), (run.ExitCode, run.Error));
    }

    [Fact]
    public async Task OrderThatTheKernelDoesNotHave_IsTold()
    {
        VmmRun run = await VmmRun.Invoke("launch", "tdx", "--firmware", _sample, "--order", "per-region", "--profile", "K72", "--server", daemon.Address);

        Assert.Equal(0, run.ExitCode);
        Assert.Contains("profile K72 measures in another order", run.Output);
    }

    [Theory]
    [InlineData(1, "attributes has bits that are not offered", "--attributes", "0x1")]
    [InlineData(1, "xfam has bits that are not offered", "--xfam", "0x100")]
    [InlineData(1, "as many vCPUs as it may have", "--vcpus", "9")]
    [InlineData(1, "the VM type is not supported", "--profile", "K611")]
    [InlineData(2, "at least 1", "--vcpus", "0")]
    [InlineData(2, "not an order of measuring", "--order", "sideways")]
    public async Task WhatCannotBe_IsRefusedWithItsReason(int exitCode, string reason, params string[] options)
    {
        VmmRun run = await VmmRun.Invoke(["launch", "tdx", "--firmware", _sample, "--server", daemon.Address, .. options]);

        Assert.Equal(exitCode, run.ExitCode);
        Assert.Contains(reason, run.Error);
        Assert.Equal("", run.Output);
    }

    private static string WriteSample()
    {
        string path = Path.Combine(Path.GetTempPath(), $"vmm-tdvf-{Guid.NewGuid():n}.fd");
        File.WriteAllBytes(path, SampleTdvf.Create());
        return path;
    }
}
