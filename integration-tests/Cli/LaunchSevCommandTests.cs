using System.Globalization;
using System.Text.Json;
using System.Text.RegularExpressions;
using VmmService.IntegrationTests.Support;
using Xunit;

namespace VmmService.IntegrationTests.Cli;

/// <summary>vmm launch sev and vmm launch seves: what a launch in place measures, against the digests of the vectors.</summary>
public sealed class LaunchSevCommandTests(Daemon daemon) : IClassFixture<Daemon>
{
    public static TheoryData<string> Digests => new(
        SnpVectors.All.Where(vector => vector.Kind is "sev-launch-digest" or "seves-launch-digest").Select(vector => vector.Id));

    public static TheoryData<string> Errors => new(
        SnpVectors.All.Where(vector => vector.Kind is "sev-launch-digest-error" or "seves-launch-digest-error").Select(vector => vector.Id));

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

    [Theory]
    [MemberData(nameof(Errors))]
    public async Task Launch_OfWhatCannotBeMeasured_IsRefused(string id)
    {
        VmmRun run = await VmmRun.Invoke([.. ArgumentsOf(SnpVectors.Get(id)), "--server", daemon.Address]);

        Assert.Equal((2, ""), (run.ExitCode, run.Output));
        Assert.Contains("doesn't support kernel/initrd/cmdline measurement", run.Error, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("sev", "SEV", "0x1")]
    [InlineData("seves", "SEV_ES", "0x5")]
    public async Task Json_HasTheMeasurementThatTheOwnerChecks(string command, string type, string policy)
    {
        string[] arguments = ["launch", command, "--firmware", TestInputs.RequireFile("synfw-hash"), "--seed", "7", "--json"];
        VmmRun run = await VmmRun.Invoke(arguments);
        JsonElement report = run.Json;
        Assert.Equal((type, policy, 64, 32), (
            report.GetProperty("vmType").GetString(), report.GetProperty("policy").GetString(), report.GetProperty("measure").GetString()!.Length, report.GetProperty("nonce").GetString()!.Length));
        // Keys come from the seed, so another run measures the same and signs it the same.
        Assert.Equal(run.Output, (await VmmRun.Invoke(arguments)).Output);
    }

    [Fact]
    public async Task Text_BeginsWithTheDigest()
    {
        VmmRun run = await VmmRun.Invoke("launch", "seves", "--firmware", TestInputs.RequireFile("synfw-hash"), "--vcpus", "2", "--server", daemon.Address);
        Assert.Equal(0, run.ExitCode);
        Assert.StartsWith("Launch digest   ", run.Output, StringComparison.Ordinal);
        Assert.Contains("vCPUs           2 of type EPYC-v4 (signature 0x00800f12), measured", run.Output, StringComparison.Ordinal);
    }

    // The owner verifies the platform, makes a session, accepts the measurement and sends the secret; the digest is that of a launch without one.
    [Theory]
    [InlineData("sev")]
    [InlineData("seves")]
    public async Task Secret_IsSentToTheFirmwaresArea_ByAnOwnerWhoAcceptedTheMeasurement(string command)
    {
        string firmware = TestInputs.RequireFile("synfw-hash");
        VmmRun with = await VmmRun.Invoke("launch", command, "--firmware", firmware, "--secret", await FileOf(1000), "--quiet", "--json", "--server", daemon.Address);
        VmmRun without = await VmmRun.Invoke("launch", command, "--firmware", firmware, "--json", "--server", daemon.Address);
        Assert.Equal((0, ""), (with.ExitCode, with.Error));
        Assert.Equal("0x810000", with.Json.GetProperty("secret").GetProperty("gpa").GetString());
        Assert.False(without.Json.TryGetProperty("secret", out _));
        Assert.Equal(without.Json.GetProperty("launchDigest").GetString(), with.Json.GetProperty("launchDigest").GetString());
        Assert.NotEqual(without.Json.GetProperty("measure").GetString(), with.Json.GetProperty("measure").GetString());
    }

    [Theory]
    [InlineData("synfw-nohash", 16, "no area for one")]
    [InlineData("synfw-hash", 3073, "room for 3072")]
    public async Task Secret_ThatTheFirmwareHasNoPlaceFor_IsRefused(string firmware, int size, string says)
    {
        VmmRun run = await VmmRun.Invoke("launch", "sev", "--firmware", TestInputs.RequireFile(firmware), "--secret", await FileOf(size), "--server", daemon.Address);
        Assert.Equal((2, ""), (run.ExitCode, run.Output));
        Assert.Contains(says, run.Error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Json_HasTheKernelAndTheRegistersThatAreMeasured()
    {
        VmmRun run = await VmmRun.Invoke(
            "launch", "seves", "--firmware", TestInputs.RequireFile("synfw-hash"), "--kernel", TestInputs.RequireFile("k-small"), "--append", "a=1", "--vcpu-type", "EPYC-Milan", "--json", "--server", daemon.Address);
        JsonElement report = run.Json;
        Assert.Equal(
            ("a=1", "EPYC-Milan", "0x00a00f11", 4096UL),
            (report.GetProperty("append").GetString(), report.GetProperty("vcpuType").GetString(), report.GetProperty("vcpuSignature").GetString(), report.GetProperty("kernel").GetProperty("size").GetUInt64()));
    }

    // The same flag means the same, and stands in the same place, for every kind of guest.
    [Fact]
    public async Task Help_OfAllLaunches_HasTheSameFlagsInTheSameOrder()
    {
        string[] common = ["--json", "--quiet", "--firmware", "--vcpus", "--profile", "--seed", "--server"];
        string[] ofAmd = ["--json", "--quiet", "--firmware", "--kernel", "--initrd", "--append", "--vcpus", "--policy", "--profile", "--seed", "--server"];
        foreach ((string kind, string[] flags) in new[] { ("snp", ofAmd), ("sev", ofAmd), ("seves", ofAmd), ("tdx", common) })
        {
            VmmRun help = await VmmRun.Invoke("launch", kind, "--help");
            int[] places = [.. flags.Select(flag => Regex.Match(help.Output, $"^  {flag}[ ,]", RegexOptions.Multiline) is { Success: true } match ? match.Index : -1)];
            Assert.True(places.All(place => place >= 0) && places.SequenceEqual(places.Order()), $"{kind}: {string.Join(", ", flags.Zip(places))}");
        }
    }

    private static async Task<string> FileOf(int size)
    {
        string path = Path.Combine(Directory.CreateTempSubdirectory("vmmservice-secret-").FullName, "secret");
        await File.WriteAllBytesAsync(path, TestInputs.Sha256Counter("secret", size));
        return path;
    }

    [Fact]
    public async Task RegistersAreNoOptionsOfPlainSev()
    {
        VmmRun run = await VmmRun.Invoke("launch", "sev", "--vcpu-type", "EPYC");
        Assert.Equal(2, run.ExitCode);
    }

    private static IEnumerable<string> ArgumentsOf(SnpVector vector)
    {
        SnpLaunchParams launch = vector.Launch;
        TestInputs.RequireAll(launch.Inputs);
        bool es = launch.Mode == "seves";
        yield return "launch";
        yield return launch.Mode;
        foreach ((string option, string? value) in new[]
        {
            ("--firmware", TestInputs.RequireFile(launch.Firmware)),
            ("--vcpus", launch.Vcpus.ToString(CultureInfo.InvariantCulture)),
            ("--vcpu-type", es ? launch.VcpuType : null),
            ("--vcpu-sig", es && launch.VcpuType is null && launch.VcpuSig is { } signature ? $"0x{signature:x}" : null),
            ("--vmm", es ? launch.VmmType : null),
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
