using System.Security.Cryptography;
using System.Text.Json;
using VmmService.IntegrationTests.Support;
using Xunit;

namespace VmmService.IntegrationTests.Cli;

/// <summary>vmm digest compute against every digest of the vectors, with the very command line that the vector gives for the reference tool.</summary>
public sealed class DigestComputeCommandTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("vmm-digest-test-").FullName;
    private int _files;

    public static TheoryData<string> Digests => new(
        SnpVectors.All.Where(vector => vector.Kind.EndsWith("-launch-digest", StringComparison.Ordinal)).Select(vector => vector.Id));

    public static TheoryData<string> Errors => new(
        SnpVectors.All.Where(vector => vector.Kind.EndsWith("-launch-digest-error", StringComparison.Ordinal)).Select(vector => vector.Id));

    public static TheoryData<string> Chains => SnpVectors.Ids("page-info-chain");

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Theory]
    [MemberData(nameof(Digests))]
    public async Task Compute_WithTheReferencesCommandLine_GivesItsDigest(string id)
    {
        SnpVector vector = SnpVectors.Get(id);

        VmmRun run = await VmmRun.Invoke(["digest", "compute", .. vector.ToolCommandLine(), "--json"]);

        Assert.Equal((0, ""), (run.ExitCode, run.Error));
        Assert.Equal(vector.ExpectedText("digest"), run.Json.GetProperty("launchDigest").GetString());
        if (!run.Json.TryGetProperty("transcript", out JsonElement transcript))
            return;

        // Where a firmware, an SVSM and its sections end, the reference tells the digest too.
        string[] after = [.. transcript.EnumerateArray().Select(step => step.GetProperty("digestAfter").GetString()!)];
        Assert.All(
            new[] { "after_firmware", "after_svsm", "after_metadata" }.Select(vector.ExpectedText).OfType<string>(), expected => Assert.Contains(expected, after));
        Assert.Equal(vector.ExpectedText("digest"), after[^1]);
    }

    [Theory]
    [MemberData(nameof(Errors))]
    public async Task Compute_OfWhatTheReferenceRefuses_IsRefused(string id)
    {
        SnpVector vector = SnpVectors.Get(id);

        VmmRun run = await VmmRun.Invoke(["digest", "compute", .. vector.ToolCommandLine()]);

        Assert.Equal((2, ""), (run.ExitCode, run.Output));
        Assert.StartsWith("vmm: A kernel was specified but the ", run.Error, StringComparison.Ordinal);
        Assert.Contains(vector.Launch.Mode == "snp" ? "doesn't include an SNP_KERNEL_HASHES section" : "doesn't support kernel/initrd/cmdline measurement", run.Error, StringComparison.Ordinal);
    }

    [Theory]
    [MemberData(nameof(Chains))]
    public async Task Compute_OfPages_GivesEveryStepOfTheChain(string id)
    {
        SnpVector vector = SnpVectors.Get(id);
        string pages = await FileOf(JsonSerializer.Serialize(vector.Params.GetProperty("ops").EnumerateArray().Select((op, i) => PageOf(op, i)).ToArray()));

        VmmRun run = await VmmRun.Invoke("digest", "compute", "--pages", pages, "--initial", vector.Params.GetProperty("initial").GetString()!, "--json");

        Assert.Equal((0, ""), (run.ExitCode, run.Error));
        Assert.Equal(vector.ExpectedText("digest"), run.Json.GetProperty("launchDigest").GetString());
        if (vector.Expected.TryGetProperty("steps", out JsonElement steps))
        {
            Assert.Equal(
                steps.EnumerateArray().Select(step => step.GetString()),
                run.Json.GetProperty("transcript").EnumerateArray().Select(step => step.GetProperty("digestAfter").GetString()));
        }
    }

    [Theory]
    [InlineData("--json")]
    [InlineData("--transcript")]
    public async Task Compute_OfItsOwnOutput_GivesTheSameDigest(string form)
    {
        VmmRun first = await VmmRun.Invoke("digest", "compute", "--firmware", TestInputs.RequireFile("synfw-hash"), "--vcpus", "2", form);

        VmmRun again = await VmmRun.Invoke("digest", "compute", "--pages", await FileOf(first.Output), "--json");

        Assert.Equal((0, ""), (again.ExitCode, again.Error));
        Assert.Contains(again.Json.GetProperty("launchDigest").GetString()!, first.Output, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Compute_AndLaunch_MeasureTheSamePages()
    {
        string[] options =
        [
            "--firmware", TestInputs.RequireFile("synfw-hash"), "--kernel", TestInputs.RequireFile("k-small"), "--append", "a=1", "--vcpus", "3", "--vcpu-type", "EPYC-Genoa", "--vmm", "ec2", "--json",
        ];

        VmmRun computed = await VmmRun.Invoke(["digest", "compute", .. options]);
        VmmRun launched = await VmmRun.Invoke(["launch", "snp", .. options]);

        Assert.Equal((0, 0), (computed.ExitCode, launched.ExitCode));
        Assert.Equal(launched.Json.GetProperty("transcript").GetRawText(), computed.Json.GetProperty("transcript").GetRawText());
        Assert.All(["launchDigest", "firmware", "kernel", "append", "vcpus"], name => Assert.Equal(launched.Json.GetProperty(name).ToString(), computed.Json.GetProperty(name).ToString()));
    }

    [Fact]
    public async Task Text_BeginsWithTheDigestAndShowsRuns()
    {
        SnpVector vector = SnpVectors.Get("syn-067");

        VmmRun snp = await VmmRun.Invoke(["digest", "compute", .. vector.ToolCommandLine()]);
        VmmRun legacy = await VmmRun.Invoke("digest", "compute", "--mode", "seves", "--firmware", TestInputs.RequireFile("synfw-nosnp"), "--vcpus", "2");

        Assert.StartsWith($"Launch digest   {vector.ExpectedText("digest")}{Environment.NewLine}", snp.Output, StringComparison.Ordinal);
        Assert.Contains("  0-31   NORMAL   0xfffe0000 to 0x100000000", snp.Output, StringComparison.Ordinal);
        Assert.StartsWith($"Launch digest   {SnpVectors.Get("syn-081").ExpectedText("digest")}{Environment.NewLine}", legacy.Output, StringComparison.Ordinal);
        Assert.Contains("VMSA of vCPU 1  4096", legacy.Output, StringComparison.Ordinal);
    }

    private async Task<string> FileOf(string content)
    {
        string path = Path.Combine(_folder, $"{_files++}.txt");
        await File.WriteAllTextAsync(path, content);
        return path;
    }

    // The chain of gce-tcb-verifier describes its buffer in words: "LGTM" at both ends of three pages of zeros.
    private static Dictionary<string, string> PageOf(JsonElement op, int index)
    {
        var page = new Dictionary<string, string>
        {
            ["pageType"] = new[] { "", "NORMAL", "VMSA", "ZERO", "UNMEASURED", "SECRETS", "CPUID" }[op.GetProperty("type").GetInt32()],
            ["gpa"] = op.GetProperty("gpa").GetString()!,
        };
        if (op.TryGetProperty("contents_sha384", out JsonElement hash))
        {
            page["contentHash"] = hash.GetString()!;
        }
        else if (op.TryGetProperty("data", out _))
        {
            byte[] buffer = new byte[3 * 4096];
            "LGTMLGTMLGTMLGTM"u8.CopyTo(buffer);
            "LGTMLGTMLGTMLGTM"u8.CopyTo(buffer.AsSpan(^16..));
            page["contentHash"] = Convert.ToHexStringLower(SHA384.HashData(buffer.AsSpan(index * 4096, 4096)));
        }

        return page;
    }
}
