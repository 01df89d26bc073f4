using System.Buffers.Binary;
using System.Text.Json;
using VmmService.Client.Attestation;
using VmmService.Client.Digest;
using VmmService.Client.Launch;
using VmmService.IntegrationTests.Support;
using Xunit;

namespace VmmService.IntegrationTests.Cli;

/// <summary>vmm digest compute|diff|explain tdx and vmm quote.</summary>
public sealed class DigestTdxCommandTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("vmm-digest-tdx-").FullName;

    public static TheoryData<string> Images => TdxVectors.Ids("tdvf", vector => !vector.TryGetProperty("expect", out _));

    public static TheoryData<string> BadImages => TdxVectors.Ids("tdvf", vector => vector.TryGetProperty("expect", out _));

    /// <summary>What the launch really was, and the knob that has to be found.</summary>
    public static TheoryData<string, string, string> Surprises => new()
    {
        { "order", "order of measuring", "per region" },
        { "all extended", "VMM", "gce-old" },
        { "no store", "sections that are added", "all but the variable store" },
        { "by address", "order of sections", "by address" },
    };

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Theory]
    [MemberData(nameof(Images))]
    public async Task Compute_OfAVectorImage_GivesItsMrtdInBothOrders(string id)
    {
        JsonElement vector = TdxVectors.Get("tdvf", id);
        string file = Write("image.fd", TdxVectors.Image(vector));
        foreach ((string order, string expected) in ((string, string)[])[("per-page", "mrtd_per_page"), ("per-region", "mrtd_per_region")])
        {
            VmmRun run = await VmmRun.Invoke("digest", "compute", "tdx", "--firmware", file, "--order", order, "--json");
            Assert.Equal((0, ""), (run.ExitCode, run.Error));
            Assert.Equal(TdxVectors.Text(vector, expected), run.Json.GetProperty("mrtd").GetString());
        }
    }

    [Fact]
    public async Task Compute_OfBothHalves_GivesTheMrtdOfTheWhole()
    {
        JsonElement vector = TdxVectors.Get("tdvf", "tdvf-basic");
        byte[] image = TdxVectors.Image(vector);
        string code = Write("code.fd", image[0x2000..]), vars = Write("vars.fd", image[..0x2000]);

        VmmRun half = await VmmRun.Invoke("digest", "compute", "tdx", "--firmware", code);
        VmmRun whole = await VmmRun.Invoke("digest", "compute", "tdx", "--firmware", code, "--vars", vars);

        Assert.Equal(2, half.ExitCode);
        Assert.Contains("code half of a split build", half.Error, StringComparison.Ordinal);
        Assert.StartsWith($"MRTD            {TdxVectors.Text(vector, "mrtd_per_page")}", whole.Output, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Compute_TellsTheFirstEventsOfRtmr0()
    {
        // The guest of the vectors' real event log has 2 GiB; sections as in edk2's 4 MiB builds, which Debian's 2 MiB build shares.
        JsonElement firmware = TdxVectors.All("firmware").Single();
        string file = Write("debian.fd", TdxVectors.RequireFirmware(firmware));
        JsonElement hob = TdxVectors.Get("td_hob", "hob-2g-real");

        VmmRun run = await VmmRun.Invoke("digest", "compute", "tdx", "--firmware", file, "--memory", "2G", "--json");

        JsonElement[] events = [.. run.Json.GetProperty("firstEvents").EnumerateArray()];
        Assert.Equal(TdxVectors.Text(hob, "td_hob_digest"), events[0].GetProperty("digest").GetString());
        Assert.Equal(TdxVectors.Text(firmware, "cfv_sha384"), events[1].GetProperty("digest").GetString());
        Assert.Equal(TdxVectors.Text(firmware, "mrtd_per_page"), run.Json.GetProperty("mrtd").GetString());
    }

    [Theory]
    [MemberData(nameof(BadImages))]
    public async Task Compute_OfAnImageThatLies_IsRefused(string id)
    {
        string file = Write("image.fd", TdxVectors.Image(TdxVectors.Get("tdvf", id)));
        VmmRun run = await VmmRun.Invoke("digest", "compute", "tdx", "--firmware", file);
        Assert.Equal((2, ""), (run.ExitCode, run.Output));
        Assert.StartsWith($"vmm: {file}: the ", run.Error, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("digest compute tdx --firmware F --order page", "--order page")]
    [InlineData("digest compute tdx --firmware F --vmm xen", "'xen' is not known")]
    [InlineData("digest compute tdx --firmware F --memory 2X", "--memory 2X")]
    [InlineData("digest compute tdx --firmware F --memory 0", "--memory")]
    [InlineData("digest compute tdx --firmware F --memory 99999999T", "--memory")]
    [InlineData("digest compute tdx --vars F", "--vars belongs to the code half")]
    [InlineData("digest diff tdx --x --y", "--x")]
    [InlineData("digest explain tdx --firmware F --target 00", "--target")]
    [InlineData("digest explain tdx --firmware F", "--target")]
    [InlineData("quote --firmware F --format 3", "--format 3")]
    [InlineData("quote --firmware F --evidence bad", "--evidence bad")]
    [InlineData("quote --firmware F --report-data xy", "--report-data xy")]
    [InlineData("quote --tdreport F", "a TDREPORT has 1024 bytes")]
    [InlineData("quote --tdreport F --xfam 3", "leave --xfam out")]
    [InlineData("quote --host h1", "--server and --tdreport")]
    public async Task BadCommandLines_AreRefusedWithTheOptionsName(string line, string says)
    {
        string file = Write("image.fd", SampleTdvf.Create());
        VmmRun run = await VmmRun.Invoke([.. line.Split(' ').Select(word => word == "F" ? file : word)]);
        Assert.Equal(2, run.ExitCode);
        Assert.Contains(says, run.Error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Diff_OfTheSameLaunch_FindsNothing()
    {
        string file = Write("image.fd", SampleTdvf.Create());
        VmmRun run = await VmmRun.Invoke("digest", "diff", "tdx", $"--firmware {file}", $"--firmware {file} --memory 8G");
        Assert.Equal((0, ""), (run.ExitCode, run.Error));
        Assert.Contains("The same:", run.Output, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("--order per-region", "kernels of two generations")]
    [InlineData("--vmm gce-old", "only B extends 2 pages of TD_HOB")]
    [InlineData("code", "1 page of BFV differ in content, the first at 0xffff8000")]
    [InlineData("sections", "only A adds 16 pages of TEMP_MEM, from 0x810000")]
    public async Task Diff_OfTwoLaunches_NamesTheFirstDifferenceAndSaysWhatItMeans(string b, string meaning)
    {
        byte[] image = SampleTdvf.Create();
        string file = Write("a.fd", image);
        if (b == "code")
            image[0x8000] ^= 1;
        else if (b == "sections")
            BinaryPrimitives.WriteUInt64LittleEndian(image.AsSpan(TdvfMetadata.Parse(FirmwareImage.Parse(image)).Sections[2].Offset + 8), 0x820000);
        string other = b.StartsWith('-') ? $"--firmware {file} {b}" : $"--firmware {Write("b.fd", image)}";

        VmmRun run = await VmmRun.Invoke("digest", "diff", "tdx", $"--firmware {file}", other);

        Assert.Equal((1, ""), (run.ExitCode, run.Error));
        Assert.Contains("First difference: step ", run.Output, StringComparison.Ordinal);
        Assert.Contains(meaning, run.Output, StringComparison.Ordinal);
    }

    [Theory]
    [MemberData(nameof(Surprises))]
    public async Task Explain_OfALaunchWithOneSurprise_FindsIt(string surprise, string knob, string found)
    {
        string file = Write("image.fd", SampleTdvf.Create());
        IReadOnlyList<TdxRegion> regions = TdxLaunchPlan.Create(FirmwareImage.Parse(SampleTdvf.Create())).Regions;
        Hash384 mrtd = surprise switch
        {
            "order" => MrtdDigest.Measure(regions, MrtdOrder.PerRegion),
            "all extended" => MrtdDigest.Measure(regions.Select(region => region with { Extend = true })),
            "no store" => MrtdDigest.Measure(regions.Where(region => region.Label != "CFV")),
            _ => MrtdDigest.Measure(regions.OrderBy(region => region.Gpa)),
        };

        VmmRun run = await VmmRun.Invoke("digest", "explain", "tdx", "--firmware", file, "--target", mrtd.ToString(), "--json");

        Assert.Equal((0, ""), (run.ExitCode, run.Error));
        JsonElement change = Assert.Single(run.Json.GetProperty("changes").EnumerateArray());
        Assert.Equal((knob, found), (change.GetProperty("knob").GetString(), change.GetProperty("found").GetString()));
    }

    [Fact]
    public async Task Explain_OfTwoSurprises_FindsBoth()
    {
        string file = Write("image.fd", SampleTdvf.Create());
        var plan = TdxLaunchPlan.Create(FirmwareImage.Parse(SampleTdvf.Create()), 16UL << 30, TdxFlavor.Gce);

        VmmRun run = await VmmRun.Invoke("digest", "explain", "tdx", "--firmware", file, "--target", MrtdDigest.Measure(plan.Regions).ToString());

        Assert.Equal((0, ""), (run.ExitCode, run.Error));
        Assert.Contains("but for 2 things:", run.Output, StringComparison.Ordinal);
        Assert.Contains("memory: 16384 MiB (asked for: 2048 MiB)", run.Output, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Explain_OfTheCodeHalf_PutsAVariableStoreBeforeIt()
    {
        JsonElement firmware = TdxVectors.All("firmware").Single();
        string code = Write("OVMF_CODE.fd", TdxVectors.RequireFirmware(firmware)[0x20000..]);

        VmmRun run = await VmmRun.Invoke(
            "digest", "explain", "tdx", "--firmware", Write("sample.fd", SampleTdvf.Create()), "--or-firmware", code, "--target", TdxVectors.Text(firmware, "mrtd_per_region"));

        Assert.Equal((0, ""), (run.ExitCode, run.Error));
        Assert.Contains("the code half, behind a variable store of 128 KiB", run.Output, StringComparison.Ordinal);
        Assert.Contains("order of measuring: per region", run.Output, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Explain_OfSomethingElse_SaysWhatWasTried()
    {
        string file = Write("image.fd", SampleTdvf.Create());
        VmmRun run = await VmmRun.Invoke("digest", "explain", "tdx", "--firmware", file, "--target", new string('0', 96), "--max-combinations", "20");
        Assert.Equal(1, run.ExitCode);
        Assert.StartsWith("Not found", run.Output, StringComparison.Ordinal);
        Assert.Contains("None of 20 combinations gives it", run.Output, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Quote_OfAFirmware_HasItsMrtd()
    {
        string file = Write("image.fd", SampleTdvf.Create()), raw = Path.Combine(_folder, "quote.bin"), collateral = Path.Combine(_folder, "collateral");

        VmmRun digest = await VmmRun.Invoke("digest", "compute", "tdx", "--firmware", file, "--json");
        VmmRun run = await VmmRun.Invoke("quote", "--firmware", file, "--report-data", "c0ffee", "--format", "5-1.5", "--json", "--raw", raw, "--collateral", collateral);

        Assert.Equal((0, ""), (run.ExitCode, run.Error));
        Assert.Equal(digest.Json.GetProperty("mrtd").GetString(), run.Json.GetProperty("MRTD").GetString());
        Assert.StartsWith("c0ffee00", run.Json.GetProperty("REPORTDATA").GetString(), StringComparison.Ordinal);
        Assert.Equal(3, TdxQuote.Parse(await File.ReadAllBytesAsync(raw)).BodyType);
        Assert.Equal(
            ["pck.crl", "qe-identity.json", "root.crl", "root.pem", "tcb-info.json", "tcb-signing.pem"], Directory.EnumerateFiles(collateral).Select(Path.GetFileName).Order(StringComparer.Ordinal));
    }

    [Fact]
    public async Task Quote_WithADefect_SaysWhichAndStillPrintsIt()
    {
        string file = Write("image.fd", SampleTdvf.Create());
        VmmRun run = await VmmRun.Invoke("quote", "--firmware", file, "--evidence", "debugtd");
        Assert.Equal(0, run.ExitCode);
        Assert.Contains("a verifier must refuse this: ATTRIBUTES is 0x10000001", run.Error, StringComparison.Ordinal);
        Assert.StartsWith("Simulated platform", run.Output, StringComparison.Ordinal);
        Assert.Contains("(debugging allowed)", run.Output, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Quote_OfAReportOfAnotherHost_IsRefused()
    {
        string report = Write("report.bin", TdxVectors.Bytes(TdxVectors.Get("tdreport", "tdreport-synthetic-1"), "tdreport_hex"));
        VmmRun run = await VmmRun.Invoke("quote", "--tdreport", report);
        Assert.Equal((1, ""), (run.ExitCode, run.Output));
        Assert.Contains("does not quote this report: InvalidCpusvn", run.Error, StringComparison.Ordinal);
    }

    private string Write(string name, byte[] bytes)
    {
        string path = Path.Combine(_folder, name);
        File.WriteAllBytes(path, bytes);
        return path;
    }
}
