using System.Globalization;
using System.Text.Json;
using VmmService.IntegrationTests.Support;
using Xunit;

namespace VmmService.IntegrationTests.Cli;

/// <summary>vmm launch snp as a person or a script sees it: what it prints, and where. What cannot be launched is next door, in BadCommandLineTests.</summary>
public sealed class LaunchSnpCommandTests(Daemon daemon) : IClassFixture<Daemon>
{
    public static TheoryData<string> Digests => SnpVectors.Ids("snp-launch-digest");

    [Theory]
    [MemberData(nameof(Digests))]
    public async Task Launch_OfEveryVector_PrintsItsDigest(string id)
    {
        SnpVector vector = SnpVectors.Get(id);

        VmmRun run = await VmmRun.Invoke([.. ArgumentsOf(vector), "--json", "--server", daemon.Address]);

        Assert.Equal("", run.Error);
        Assert.Equal(0, run.ExitCode);
        Assert.Equal(vector.ExpectedText("digest"), run.Json.GetProperty("launchDigest").GetString());
    }

    [Fact]
    public async Task Launch_WithAnSvsm_PrintsTheDigestOfTheVector()
    {
        SnpVector vector = SnpVectors.Get("syn-083");
        string[] arguments =
        [
            "launch", "snp", "--firmware", TestInputs.RequireFile("synfw-svsm-guest"), "--svsm", TestInputs.RequireFile("synsvsm"), "--vars-size", "65536", "--vcpu-type", "EPYC-v4", "--server", daemon.Address,
        ];
        VmmRun run = await VmmRun.Invoke([.. arguments, "--json"]);
        Assert.Equal((0, ""), (run.ExitCode, run.Error));
        Assert.Equal(vector.ExpectedText("digest"), run.Json.GetProperty("launchDigest").GetString());
        Assert.True(run.Json.TryGetProperty("svsm", out _));

        VmmRun alone = await VmmRun.Invoke("launch", "snp", "--svsm", TestInputs.RequireFile("synsvsm"));
        Assert.Equal((2, ""), (alone.ExitCode, alone.Output));
        Assert.Contains("--svsm and --vars-size belong together", alone.Error, StringComparison.Ordinal);
        VmmRun both = await VmmRun.Invoke([.. arguments, "--kernel", TestInputs.RequireFile("k-small")]);
        Assert.Contains("--kernel does not go with --svsm", both.Error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Json_IsOneObjectThatRetellsTheLaunch()
    {
        string firmware = TestInputs.RequireFile("synfw-hash");

        VmmRun run = await VmmRun.Invoke("launch", "snp", "--firmware", firmware, "--vcpus", "2", "--seed", "0x7", "--json");

        JsonElement report = run.Json;
        Assert.Equal("SNP", report.GetProperty("vmType").GetString());
        Assert.Equal("K72", report.GetProperty("profile").GetString());
        Assert.Equal("in-process", report.GetProperty("server").GetString());
        Assert.Equal(2, report.GetProperty("vcpus").GetInt32());
        Assert.Equal(firmware, report.GetProperty("firmware").GetProperty("path").GetString());
        Assert.Equal(262144, report.GetProperty("firmware").GetProperty("size").GetInt32());
        Assert.Equal(SnpVectors.Inputs["synfw-hash"].GetProperty("sha256").GetString(), report.GetProperty("firmware").GetProperty("sha256").GetString());
        Assert.Equal("option", report.GetProperty("firmware").GetProperty("source").GetString());
        Assert.Equal("0x30000", report.GetProperty("parameters").GetProperty("policy").GetString());
        Assert.Equal(7, report.GetProperty("parameters").GetProperty("seed").GetInt32());

        JsonElement[] steps = [.. report.GetProperty("transcript").EnumerateArray()];
        Assert.Equal(Enumerable.Range(0, steps.Length), steps.Select(step => step.GetProperty("index").GetInt32()));
        Assert.Equal("NORMAL 0xfffc0000", $"{steps[0].GetProperty("pageType")} {steps[0].GetProperty("gpa")}");
        Assert.All(steps.TakeLast(2), step => Assert.Equal("VMSA 0xfffffffff000", $"{step.GetProperty("pageType")} {step.GetProperty("gpa")}"));
        Assert.All(steps, step => Assert.Equal((96, 96), (step.GetProperty("contentHash").GetString()!.Length, step.GetProperty("digestAfter").GetString()!.Length)));
        Assert.Equal(report.GetProperty("launchDigest").GetString(), steps[^1].GetProperty("digestAfter").GetString());
    }

    [Fact]
    public async Task Json_GpaMapHasEveryRegionPrivateAndValidated()
    {
        VmmRun run = await VmmRun.Invoke("launch", "snp", "--firmware", TestInputs.RequireFile("synfw-hash"), "--json", "--server", daemon.Address);

        JsonElement[] slots = [.. run.Json.GetProperty("gpaMap").EnumerateArray()];
        Assert.Equal(["RAM", "firmware"], slots.Select(slot => slot.GetProperty("name").GetString()));
        Assert.All(slots, slot => Assert.True(slot.GetProperty("private").GetBoolean()));
        JsonElement[] regions = [.. slots.SelectMany(slot => slot.GetProperty("measured").EnumerateArray())];
        // Seven sections and the firmware.
        Assert.Equal(8, regions.Length);
        Assert.All(regions, region => Assert.True(region.GetProperty("validated").GetBoolean()));
    }

    [Fact]
    public async Task Launch_InProcessAndOnADaemon_MeasureTheSame()
    {
        string[] arguments = ["launch", "snp", "--firmware", TestInputs.RequireFile("synfw-hash"), "--seed", "5", "--json"];

        VmmRun embedded = await VmmRun.Invoke(arguments);
        VmmRun remote = await VmmRun.Invoke([.. arguments, "--server", daemon.Address]);

        Assert.Equal(embedded.Output, remote.Output.Replace(daemon.Address, "in-process", StringComparison.Ordinal));
    }

    [Fact]
    public async Task Launch_OnEitherKernel_MeasuresTheSame()
    {
        string[] arguments = ["launch", "snp", "--firmware", TestInputs.RequireFile("synfw-nohash"), "--json", "--server", daemon.Address];

        VmmRun k616 = await VmmRun.Invoke([.. arguments, "--profile", "K616"]);
        VmmRun k72 = await VmmRun.Invoke([.. arguments, "--profile", "K72"]);

        Assert.Equal("K616", k616.Json.GetProperty("profile").GetString());
        Assert.Equal(k72.Json.GetProperty("launchDigest").GetString(), k616.Json.GetProperty("launchDigest").GetString());
    }

    [Theory]
    [InlineData("0x2000000")] // 32 MiB, one slot
    [InlineData("4294967296")] // 4 GiB: the part above the hole is a slot of its own
    public async Task Memory_IsNotMeasured(string bytes)
    {
        string[] arguments = ["launch", "snp", "--firmware", TestInputs.RequireFile("synfw-hash"), "--json", "--server", daemon.Address];

        VmmRun plain = await VmmRun.Invoke(arguments);
        VmmRun larger = await VmmRun.Invoke([.. arguments, "--memory", bytes]);

        Assert.Equal("", larger.Error);
        Assert.Equal(plain.Json.GetProperty("launchDigest").GetString(), larger.Json.GetProperty("launchDigest").GetString());
        Assert.NotEqual(plain.Json.GetProperty("parameters").GetProperty("memoryBytes").GetUInt64(), larger.Json.GetProperty("parameters").GetProperty("memoryBytes").GetUInt64());
    }

    [Fact]
    public async Task Text_MergesRunsUnlessEveryStepIsAskedFor()
    {
        string[] arguments = ["launch", "snp", "--firmware", TestInputs.RequireFile("synfw-nohash"), "--server", daemon.Address];

        VmmRun merged = await VmmRun.Invoke(arguments);
        VmmRun full = await VmmRun.Invoke([.. arguments, "--transcript"]);

        string digest = SnpVectors.Get("syn-067").ExpectedText("digest")!;
        Assert.StartsWith($"Launch digest   {digest}{Environment.NewLine}", merged.Output, StringComparison.Ordinal);
        Assert.Contains("  0-31   NORMAL   0xfffe0000 to 0x100000000", merged.Output, StringComparison.Ordinal);
        Assert.Contains($"0xfffffffff000             {digest}", merged.Output, StringComparison.Ordinal);
        Assert.Contains("  31    NORMAL   0xfffff000", full.Output, StringComparison.Ordinal);
        // 32 pages of firmware, 9 + 3 + 1 + 1 + 17 of sections, one vCPU.
        const int steps = 64;
        Assert.Contains($"({steps} steps", full.Output, StringComparison.Ordinal);
        Assert.True(full.Output.Split('\n').Length > steps);
        Assert.True(merged.Output.Split('\n').Length < steps);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true, "--quiet")]
    [InlineData(true, "--json")]
    public async Task Progress_IsNotShownWhereNobodyWantsIt(bool errorIsTerminal, params string[] options)
    {
        string[] arguments = ["launch", "snp", "--firmware", TestInputs.RequireFile("synfw-hash"), "--server", daemon.Address, .. options];

        VmmRun run = await VmmRun.Invoke(arguments, errorIsTerminal);

        Assert.Equal((0, ""), (run.ExitCode, run.Error));
    }

    [Fact]
    public async Task WithoutFirmware_TheOutputSaysWhichOneWasUsed()
    {
        VmmRun run = await VmmRun.Invoke("launch", "snp", "--json", "--server", daemon.Address);

        Assert.Equal(0, run.ExitCode);
        JsonElement firmware = run.Json.GetProperty("firmware");
        Assert.Contains(firmware.GetProperty("source").GetString(), new[] { "installed", "sample" });
        Assert.Equal(firmware.GetProperty("source").GetString() == "installed", firmware.TryGetProperty("path", out _));
    }

    [Fact]
    public async Task Cancelled_EndsWith130AndPrintsNoResult()
    {
        using var cancellation = new CancellationTokenSource();
        await cancellation.CancelAsync();

        VmmRun run = await VmmRun.Invoke(
            ["launch", "snp", "--firmware", TestInputs.RequireFile("synfw-hash"), "--server", daemon.Address], errorIsTerminal: false, cancellation.Token);

        Assert.Equal((130, "", $"vmm: interrupted{Environment.NewLine}"), (run.ExitCode, run.Output, run.Error));
    }

    private static IEnumerable<string> ArgumentsOf(SnpVector vector)
    {
        SnpLaunchParams launch = vector.Launch;
        TestInputs.RequireAll(launch.Inputs);
        yield return "launch";
        yield return "snp";
        foreach ((string option, string? value) in new[]
        {
            ("--firmware", TestInputs.RequireFile(launch.Firmware)),
            ("--vcpus", launch.Vcpus.ToString(CultureInfo.InvariantCulture)),
            ("--vcpu-type", launch.VcpuType),
            ("--vcpu-sig", launch.VcpuType is null && launch.VcpuSig is { } signature ? $"0x{signature:x}" : null),
            ("--guest-features", $"0x{launch.GuestFeatures:x}"),
            ("--vmm", launch.VmmType),
            ("--kernel", launch.Kernel is null ? null : TestInputs.RequireFile(launch.Kernel)),
            ("--initrd", launch.Initrd is null ? null : TestInputs.RequireFile(launch.Initrd)),
            ("--append", launch.Append),
        })
        {
            if (value is not null)
            {
                yield return option;
                yield return value;
            }
        }
    }
}
