using System.Text.Json;
using System.Text.Json.Nodes;
using VmmService.Client;
using VmmService.Client.Launch;
using VmmService.Client.Launching;
using VmmService.IntegrationTests.Support;
using Xunit;

namespace VmmService.IntegrationTests.Cli;

/// <summary>vmm digest diff names the first record that differs and says what it means, in every way in which a launch can be given.</summary>
public sealed class DigestDiffCommandTests(Daemon daemon) : IClassFixture<Daemon>, IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("vmm-digest-test-").FullName;
    private int _files;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    // synfw-hash: records 0-63 firmware, 64-75 SNP_SEC_MEM, 76 secrets, 77 CPUID, 78 SVSM_CAA, 79-93 SNP_SEC_MEM, 94 kernel hashes, from 95 VMSAs.
    [Theory]
    [InlineData("--vcpus 2", "--vcpus 3", 97, "B has 3 vCPUs and A has 2 vCPUs", "VMSA of vCPU 2")]
    [InlineData("--vcpus 3", "--vcpus 1", 96, "A has 3 vCPUs and B has 1 vCPU", "VMSA of vCPU 1 is only in A")]
    [InlineData("--vcpus 2", "--vcpus 2 --vcpu-type EPYC-Milan", 95, "VMSA of vCPU 0", "rdx (offset 0x310) is 0x800f12 in A and 0xa00f11 in B", "CPU signature", "EPYC-Milan")]
    [InlineData("", "--guest-features 0x21", 95, "sev_features (offset 0x3b0) is 0x1 in A and 0x21 in B", "guest features", "DebugSwap")]
    [InlineData("", "--guest-features 0x8001", 95, "sev_features (offset 0x3b0) is 0x1 in A and 0x8001 in B", "SmtProtection")]
    [InlineData("", "--vmm ec2", 77, "The order differs", "the page of CPUID", "EC2 puts CPUID pages last")]
    [InlineData("", "--vmm gce", 64, "page of SNP_SEC_MEM at 0x800000 is ZERO in A and UNMEASURED in B", "two VMMs")]
    [InlineData("--kernel {k-small}", "", 94, "SNP_KERNEL_HASHES", "is NORMAL in A and ZERO in B", "A measures the hashes of a kernel, B measures none")]
    [InlineData("", "--kernel {k-small}", 94, "is ZERO in A and NORMAL in B", "B measures the hashes of a kernel, A measures none")]
    [InlineData("--kernel {k-small}", "--kernel {k-big}", 94, "page of kernel hashes", "the kernel (sha256 461fe32d", "aee4763d")]
    [InlineData("--kernel {k-small} --initrd {i-small}", "--kernel {k-small}", 94, "the initrd (sha256 27907f6b", "none in B")]
    [InlineData("--kernel {k-small} --append a", "--kernel {k-small} --append b", 94, "the command line ('a' in A, 'b' in B)")]
    [InlineData("", "--firmware {changed}", 32, "firmware images differ at offset 0x20000", "sha256")]
    [InlineData("", "--firmware {synfw-nohash}", 0, "firmware images have different sizes: A's begins at 0xfffc0000, B's at 0xfffe0000")]
    public async Task FirstDifference_IsNamedWithItsMeaning(string a, string b, int index, params string[] told)
    {
        VmmRun run = await VmmRun.Invoke("digest", "diff", Options(a), Options(b));
        VmmRun json = await VmmRun.Invoke("digest", "diff", Options(a), Options(b), "--json");

        Assert.Equal((1, ""), (run.ExitCode, run.Error));
        Assert.Contains($"First difference: record {index}{Environment.NewLine}", run.Output, StringComparison.Ordinal);
        Assert.Equal((1, index), (json.ExitCode, json.Json.GetProperty("firstIndex").GetInt32()));
        Assert.All(told, each => Assert.Contains(each, json.Json.GetProperty("meaning").GetString(), StringComparison.Ordinal));
        Assert.All(told, each => Assert.Contains(each, run.Output, StringComparison.Ordinal));
    }

    [Fact]
    public async Task AllDifferences_AreListedInOrder()
    {
        VmmRun run = await VmmRun.Invoke("digest", "diff", Options("--vcpus 2"), Options("--vcpus 1 --kernel {k-small} --firmware {changed} --vcpu-type EPYC-Genoa"), "--json");

        JsonElement[] differences = [.. run.Json.GetProperty("differences").EnumerateArray()];
        Assert.Equal(
            ["Content 32", "PageType 94", "Content 95", "OnlyInA 96"],
            differences.Select(each => $"{each.GetProperty("kind").GetString()} {each.GetProperty("indexA").GetInt32()}"));
    }

    [Fact]
    public async Task Moved_IsOneRecordAndNotAllBehindIt()
    {
        VmmRun run = await VmmRun.Invoke("digest", "diff", Options(""), Options("--vmm ec2"), "--json");

        JsonElement[] differences = [.. run.Json.GetProperty("differences").EnumerateArray()];
        Assert.Equal(["Order", "Content"], differences.Select(each => each.GetProperty("kind").GetString()));
        Assert.Equal((77, 94), (differences[0].GetProperty("indexA").GetInt32(), differences[0].GetProperty("indexB").GetInt32()));
        Assert.Contains("registers of qemu and of ec2", differences[1].GetProperty("meaning").GetString(), StringComparison.Ordinal);
    }

    [Fact]
    public async Task Same_EndsWith0()
    {
        VmmRun run = await VmmRun.Invoke("digest", "diff", Options("--vcpus 2"), Options("--vcpus 2 --vcpu-type EPYC-v1"));

        Assert.Equal((0, ""), (run.ExitCode, run.Error));
        Assert.Contains("The same: 97 records, none differs.", run.Output, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("--json", "the kernel (sha256 461fe32d")]
    [InlineData("--transcript", "usually the page of kernel hashes")]
    public async Task WhatALaunchPrinted_IsReadAgain(string form, string told)
    {
        string a = await FileOf((await VmmRun.Invoke([.. Words("launch snp --firmware {synfw-hash} --kernel {k-small}"), "--server", daemon.Address, form])).Output);
        string b = await FileOf((await VmmRun.Invoke([.. Words("launch snp --firmware {synfw-hash} --kernel {k-big}"), "--server", daemon.Address, form])).Output);

        VmmRun run = await VmmRun.Invoke("digest", "diff", a, b);
        VmmRun same = await VmmRun.Invoke("digest", "diff", a, Options("--kernel {k-small}"));

        Assert.Equal((1, ""), (run.ExitCode, run.Error));
        Assert.Contains($"First difference: record 94{Environment.NewLine}", run.Output, StringComparison.Ordinal);
        Assert.Contains(told, run.Output, StringComparison.Ordinal);
        Assert.Equal((0, ""), (same.ExitCode, same.Error));
    }

    [Fact]
    public async Task VmOfADaemon_IsReadOverGrpc()
    {
        var plan = SnpLaunchPlan.Create(FirmwareImage.Parse(TestInputs.Require("synfw-hash")), VmmFlavor.Qemu, null, 2, new(0x800f12));
        await using RemoteHost host = await daemon.Connection.CreateHostAsync();
        await using RemoteProcess process = await host.CreateProcessAsync();
        await using LaunchedSnpGuest guest = await SnpLauncher.LaunchAsync(process, plan);
        string vm = $"vm:{host.Id}/{process.Pid}/{guest.Vm.Fd}";

        VmmRun same = await VmmRun.Invoke("digest", "diff", vm, Options("--vcpus 2"), "--server", daemon.Address);
        VmmRun other = await VmmRun.Invoke("digest", "diff", vm, Options("--vcpus 2 --guest-features 0x21"), "--server", daemon.Address);
        VmmRun none = await VmmRun.Invoke("digest", "diff", $"vm:{host.Id}/{process.Pid}/999", Options(""), "--server", daemon.Address);

        Assert.Equal((0, ""), (same.ExitCode, same.Error));
        Assert.Contains("sev_features (offset 0x3b0) is 0x1 in A and 0x21 in B", other.Output, StringComparison.Ordinal);
        Assert.NotEqual(0, none.ExitCode);
        Assert.Equal("", none.Output);
    }

    [Fact]
    public async Task TranscriptThatContradictsItself_IsTold()
    {
        VmmRun computed = await VmmRun.Invoke([.. Words("digest compute --firmware {synfw-hash} --json")]);
        JsonNode report = JsonNode.Parse(computed.Output)!;
        report["transcript"]![70]!["digestAfter"] = new string('5', 96);

        VmmRun run = await VmmRun.Invoke("digest", "diff", await FileOf(computed.Output), await FileOf(report.ToJsonString()));

        Assert.Equal(1, run.ExitCode);
        Assert.Contains("B contradicts itself: the digest after record 70 does not follow", run.Output, StringComparison.Ordinal);
    }

    [Fact]
    public async Task UnknownVmsa_IsToldAsUnknown()
    {
        VmmRun computed = await VmmRun.Invoke([.. Words("digest compute --firmware {synfw-hash} --json")]);
        JsonNode report = JsonNode.Parse(computed.Output)!;
        report["transcript"]![95]!["contentHash"] = new string('5', 96);

        VmmRun run = await VmmRun.Invoke("digest", "diff", await FileOf(computed.Output), await FileOf(report.ToJsonString()));

        Assert.Contains("A's is a vCPU of qemu with signature 0x00800f12", run.Output, StringComparison.Ordinal);
        Assert.Contains("B's is none that the known", run.Output, StringComparison.Ordinal);
    }

    private string Options(string options) => string.Join(' ', Words($"{(options.Contains("--firmware", StringComparison.Ordinal) ? "" : "--firmware {synfw-hash} ")}{options}"));

    private IEnumerable<string> Words(string text) => text.Split(' ', StringSplitOptions.RemoveEmptyEntries).Select(word => word switch
    {
        "{changed}" => Changed(),
        ['{', .. string id, '}'] => TestInputs.RequireFile(id),
        _ => word,
    });

    // synfw-hash with one byte of its page 32 changed.
    private string Changed()
    {
        byte[] image = [.. TestInputs.Require("synfw-hash")];
        image[0x20123] ^= 1;
        string path = Path.Combine(_folder, "changed.fd");
        File.WriteAllBytes(path, image);
        return path;
    }

    private async Task<string> FileOf(string content)
    {
        string path = Path.Combine(_folder, $"{_files++}.txt");
        await File.WriteAllTextAsync(path, content);
        return path;
    }
}
