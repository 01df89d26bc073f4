using VmmService.IntegrationTests.Support;
using Xunit;

namespace VmmService.IntegrationTests.Cli;

/// <summary>vmm digest explain as a person or a script sees it. What it can find is next door, in DigestSearchTests.</summary>
public sealed class DigestExplainCommandTests
{
    [Fact]
    public async Task Found_SaysWhatIsOtherThanAskedFor()
    {
        string digest = SnpVectors.Get("syn-063").ExpectedText("digest")!; // 8 of EPYC-Turin, features 0x21

        VmmRun run = await Explain(digest, "--kernel", TestInputs.RequireFile("k-small"), "--initrd", TestInputs.RequireFile("i-small"));

        Assert.Equal((0, ""), (run.ExitCode, run.Error));
        Assert.StartsWith($"Found           {digest}{Environment.NewLine}", run.Output, StringComparison.Ordinal);
        Assert.Contains("but for 3 things:", run.Output, StringComparison.Ordinal);
        Assert.Contains("  vCPUs: 8 (asked for: 1)", run.Output, StringComparison.Ordinal);
        Assert.Contains("  vCPU type: signature 0x00b00f00 (EPYC-Turin) (asked for: signature 0x00800f12 (EPYC, EPYC-IBPB))", run.Output, StringComparison.Ordinal);
        Assert.Contains("  guest features: 0x21 (SNPActive, DebugSwap) (asked for: 0x1 (SNPActive))", run.Output, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Json_HasTheSame()
    {
        VmmRun run = await Explain(SnpVectors.Get("syn-073").ExpectedText("digest")!, "--vcpus", "2", "--json"); // gce

        Assert.Equal((0, ""), (run.ExitCode, run.Error));
        Assert.True(run.Json.GetProperty("found").GetBoolean());
        Assert.Equal(2, run.Json.GetProperty("vcpus").GetInt32());
        Assert.Equal("VMM: qemu -> gce", string.Join(", ", run.Json.GetProperty("changes").EnumerateArray().Select(
            change => $"{change.GetProperty("knob").GetString()}: {change.GetProperty("asked").GetString()} -> {change.GetProperty("found").GetString()}")));
        Assert.Equal("gce", run.Json.GetProperty("settings").GetProperty("VMM").GetString());
        Assert.Contains("vCPU type", run.Json.GetProperty("indifferent").EnumerateArray().Select(each => each.GetString()));
    }

    [Fact]
    public async Task OtherFirmware_IsFoundAmongThoseGiven()
    {
        VmmRun run = await Explain(SnpVectors.Get("syn-067").ExpectedText("digest")!, "--firmware", TestInputs.RequireFile("synfw-nohash"));

        Assert.Equal(0, run.ExitCode);
        Assert.Matches("  firmware: .*synfw-nohash \\(asked for: .*synfw-hash\\)", run.Output);
    }

    [Theory]
    [InlineData("syn-077", "  mode: SEV (asked for: SEV-ES)")]
    [InlineData("debsev-033", "  mode: SEV (asked for: SEV-ES)")]
    [InlineData("debes-039", "  vCPUs: 2 (asked for: 1)")]
    [InlineData("debes-ec2-049", "  VMM: ec2 (asked for: qemu)")]
    public async Task LegacyDigest_IsExplainedToo(string id, string told)
    {
        SnpVector vector = SnpVectors.Get(id);

        VmmRun run = await VmmRun.Invoke("digest", "explain", "--target", vector.ExpectedText("digest")!, "--firmware", TestInputs.RequireFile(vector.Launch.Firmware));

        Assert.Equal((0, ""), (run.ExitCode, run.Error));
        Assert.Contains(told, run.Output, StringComparison.Ordinal);
    }

    [Fact]
    public async Task NotFound_SaysWhatWasTriedAndWhatToDo()
    {
        VmmRun run = await Explain(new string('a', 96), "--vcpus", "1-3,8", "--vcpu-types", "EPYC-Milan,0x00a20f12", "--vmm", "qemu,ec2", "--keep", "zero-pages,sections");
        VmmRun json = await Explain(new string('a', 96), "--vcpus", "1,2", "--json");

        Assert.Equal((1, ""), (run.ExitCode, run.Error));
        Assert.StartsWith("Not found       aaaa", run.Output, StringComparison.Ordinal);
        Assert.Contains($"  vCPUs: 1-3, 8{Environment.NewLine}", run.Output, StringComparison.Ordinal);
        Assert.Contains($"  vCPU type: signature 0x00a00f11 (EPYC-Milan); signature 0x00a20f12{Environment.NewLine}", run.Output, StringComparison.Ordinal);
        Assert.Contains($"  zero pages: as the VMM does{Environment.NewLine}", run.Output, StringComparison.Ordinal);
        Assert.Contains("give --kernel, --initrd and --append", run.Output, StringComparison.Ordinal);
        Assert.Equal(1, json.ExitCode);
        Assert.False(json.Json.GetProperty("found").GetBoolean());
        Assert.NotEqual(0, json.Json.GetProperty("advice").GetArrayLength());
    }

    [Fact]
    public async Task CutShort_SaysSo()
    {
        VmmRun run = await Explain(new string('a', 96), "--max-combinations", "500");

        Assert.Equal(1, run.ExitCode);
        Assert.Contains("raise --max-combinations", run.Output, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true, "--quiet")]
    [InlineData(true, "--json")]
    public async Task Progress_IsNotShownWhereNobodyWantsIt(bool errorIsTerminal, params string[] options)
    {
        VmmRun run = await VmmRun.Invoke(
            ["digest", "explain", "--target", new string('a', 96), "--firmware", TestInputs.RequireFile("synfw-hash"), "--vcpus", "1,2", .. options], errorIsTerminal);

        Assert.Equal((1, ""), (run.ExitCode, run.Error));
    }

    [Fact]
    public async Task Progress_IsShownToAPerson()
    {
        VmmRun run = await VmmRun.Invoke(["digest", "explain", "--target", new string('a', 96), "--firmware", TestInputs.RequireFile("synfw-hash")], errorIsTerminal: true);

        Assert.Equal(1, run.ExitCode);
        Assert.NotEqual("", run.Error);
        Assert.StartsWith("Not found", run.Output, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Cancelled_EndsWith130()
    {
        using var cancellation = new CancellationTokenSource();
        await cancellation.CancelAsync();

        VmmRun run = await VmmRun.Invoke(
            ["digest", "explain", "--target", new string('a', 96), "--firmware", TestInputs.RequireFile("synfw-hash")], errorIsTerminal: false, cancellation.Token);

        Assert.Equal((130, "", $"vmm: interrupted{Environment.NewLine}"), (run.ExitCode, run.Output, run.Error));
    }

    private static Task<VmmRun> Explain(string target, params string[] options) =>
        VmmRun.Invoke(["digest", "explain", "--target", target, "--firmware", TestInputs.RequireFile("synfw-hash"), .. options]);
}
