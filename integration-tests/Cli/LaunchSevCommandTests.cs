using System.Globalization;
using System.Text.Json;
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
        Assert.Contains("vCPUs           2, measured", run.Output, StringComparison.Ordinal);
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
