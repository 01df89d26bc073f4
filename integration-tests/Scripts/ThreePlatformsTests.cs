using VmmService.Client.Digest;
using VmmService.Client.Launch;
using VmmService.IntegrationTests.Cli;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Scripts;

/// <summary>deploy/examples/scripts/three-platforms.yaml: one firmware as SW_PROTECTED, SNP and TDX by one script.</summary>
public sealed class ThreePlatformsTests(Daemon daemon) : IClassFixture<Daemon>
{
    private static readonly string s_folder = Path.Combine(Repository.Root, "deploy", "examples", "scripts");
    private static readonly string s_firmware = Path.Combine(s_folder, "sample.fd");

    [Fact]
    public async Task TheFirmware_IsTheProjectsSampleImage() => Assert.Equal(SampleTdvf.Create(), await File.ReadAllBytesAsync(s_firmware));

    [Fact]
    public async Task Snp_HasTheDigestThatTheLaunchCommandAndTheComputationGive()
    {
        string digest = Fact(await Run("KVM_X86_SNP_VM"), "snp_launch_finish", "digest");

        VmmRun launched = await VmmRun.Invoke("launch", "snp", "--firmware", s_firmware, "--json", "--server", daemon.Address);
        VmmRun computed = await VmmRun.Invoke("digest", "compute", "--firmware", s_firmware);
        Assert.Equal(launched.Json.GetProperty("launchDigest").GetString(), digest);
        Assert.Contains(digest, computed.Output, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Tdx_HasTheMrtdThatTheLaunchCommandAndTheComputationGive()
    {
        string mrtd = Fact(await Run("KVM_X86_TDX_VM"), "tdx_finalize_vm", "mrtd");

        VmmRun launched = await VmmRun.Invoke("launch", "tdx", "--firmware", s_firmware, "--json", "--server", daemon.Address);
        Assert.Equal(launched.Json.GetProperty("mrtd").GetString(), mrtd);
        Assert.Equal(MrtdDigest.Measure(TdxLaunchPlan.Create(FirmwareImage.Parse(await File.ReadAllBytesAsync(s_firmware))).Regions).ToString(), mrtd);
    }

    [Fact]
    public async Task WhatThePlatformsHaveInCommon_IsDoneByTheSameLines()
    {
        HashSet<uint> software = Lines(await Run("KVM_X86_SW_PROTECTED_VM")), snp = Lines(await Run("KVM_X86_SNP_VM")), tdx = Lines(await Run("KVM_X86_TDX_VM"));
        string[] text = await File.ReadAllLinesAsync(Path.Combine(s_folder, "three-platforms.yaml"));

        // Without a vendor there are no steps but the common ones; with one, only such as have a condition come to them.
        Assert.Subset(snp, software);
        Assert.Subset(tdx, software);
        Assert.All(snp.Concat(tdx).Except(software), line => Assert.Contains("when: ", StepAt(text, line), StringComparison.Ordinal));
        Assert.All(software, line => Assert.DoesNotContain("when: ", StepAt(text, line), StringComparison.Ordinal));
    }

    private async Task<ScriptOutcome> Run(string vmType)
    {
        ScriptOutcome outcome = await ScriptOutcome.Run(
            daemon.Connection, await File.ReadAllTextAsync(Path.Combine(s_folder, "three-platforms.yaml")), new ScriptHeader { Variables = { ["vm_type"] = vmType } },
            ("sample.fd", await File.ReadAllBytesAsync(s_firmware)));
        Assert.True(outcome.Error is null, $"{outcome.Error?.Line}: {outcome.Error?.Problem}");
        Assert.Empty(outcome.Unmet);
        // It ran to its first exit.
        Assert.Equal("run", outcome.Steps[^1].Action);
        Assert.Equal(5u, outcome.Steps[^1].Run.ExitReason);
        return outcome;
    }

    private static string Fact(ScriptOutcome outcome, string action, string name) => outcome.Steps.Last(step => step.Action == action).Facts.Single(fact => fact.Name == name).Text;

    private static HashSet<uint> Lines(ScriptOutcome outcome) => [.. outcome.Steps.Select(step => step.Line)];

    // From the line of the action to that of the next.
    private static string StepAt(string[] lines, uint line) => string.Join('\n', lines.Skip((int)line - 1).Take(1).Concat(lines.Skip((int)line).TakeWhile(each => !each.StartsWith("  - ", StringComparison.Ordinal))));
}
