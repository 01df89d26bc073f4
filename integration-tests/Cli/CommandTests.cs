using System.Runtime.Versioning;
using System.Text.Json;
using VmmService.Client.Launch;
using VmmService.IntegrationTests.Support;
using VmmService.Vmm;
using Xunit;

namespace VmmService.IntegrationTests.Cli;

/// <summary>The rest of the command: help, version, what a daemon can do, the choice of a firmware, the daemon inside the process.</summary>
public sealed class CommandTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("vmm-cli-test-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Theory]
    [InlineData("--help")]
    [InlineData("launch", "snp", "--help")]
    public async Task Help_DocumentsExitCodes(params string[] arguments)
    {
        VmmRun run = await VmmRun.Invoke(arguments);

        Assert.Equal((0, ""), (run.ExitCode, run.Error));
        Assert.All(["  0 ", "  1 ", "  2 ", "  3 ", "  130 "], code => Assert.Contains(code, run.Output, StringComparison.Ordinal));
    }

    [Fact]
    public async Task Version_IsOneLine() => Assert.Matches(@"\Avmm \d+\.\d+\.\d+\S*\s*\z", (await VmmRun.Invoke("--version")).Output);

    [Fact]
    public async Task Profiles_ListsThemAndTheDefault()
    {
        VmmRun text = await VmmRun.Invoke("profiles");
        VmmRun json = await VmmRun.Invoke("profiles", "--json");

        Assert.Contains("K72 (default):", text.Output, StringComparison.Ordinal);
        Assert.Contains("K616:", text.Output, StringComparison.Ordinal);
        string?[] ids = [.. json.Json.GetProperty("profiles").EnumerateArray().Select(each => each.GetProperty("id").GetString())];
        Assert.Empty(new string?[] { "K611", "K616", "K618", "K72", "MAP24v2", "UPM22" }.Except(ids));
        Assert.Equal(ids.Length, ids.Distinct().Count());
    }

    [Fact]
    public async Task Capabilities_ListsIoctlsAndLimits()
    {
        VmmRun text = await VmmRun.Invoke("capabilities");
        VmmRun json = await VmmRun.Invoke("capabilities", "--json");

        Assert.Matches(@"(?m)^\s*KVM_SET_USER_MEMORY_REGION2 +0x40A0AE49 +VM", text.Output);
        Assert.Equal("K72", json.Json.GetProperty("defaultProfile").GetString());
        Assert.Equal(JsonValueKind.Object, json.Json.GetProperty("limits").ValueKind);
    }

    [Fact]
    public async Task Firmware_NothingInstalled_IsTheSample()
    {
        FirmwareChoice choice = await FirmwareChoice.MakeAsync(null, withKernel: false, [Path.Combine(_folder, "none.fd")], CancellationToken.None);

        Assert.Equal(FirmwareChoice.Sample, choice.Source);
        Assert.Null(choice.Path);
        Assert.NotEmpty(choice.Image.SevSections);
    }

    [Fact]
    public async Task Firmware_InstalledWithoutMetadataOrDamaged_IsPassedOver()
    {
        string damaged = Path.Combine(_folder, "damaged.fd");
        await File.WriteAllBytesAsync(damaged, new byte[5000]);
        string[] places = [damaged, TestInputs.RequireFile("synfw-nosnp"), TestInputs.RequireFile("synfw-nohash"), TestInputs.RequireFile("synfw-hash")];

        FirmwareChoice plain = await FirmwareChoice.MakeAsync(null, withKernel: false, places, CancellationToken.None);
        FirmwareChoice measuredBoot = await FirmwareChoice.MakeAsync(null, withKernel: true, places, CancellationToken.None);

        Assert.Equal((places[2], FirmwareChoice.Installed), (plain.Path, plain.Source));
        Assert.Equal(places[3], measuredBoot.Path);
    }

    [Fact]
    public async Task Firmware_AskedFor_IsTakenWhateverItIs()
    {
        string withoutMetadata = TestInputs.RequireFile("synfw-nosnp");

        FirmwareChoice choice = await FirmwareChoice.MakeAsync(withoutMetadata, withKernel: false, [TestInputs.RequireFile("synfw-hash")], CancellationToken.None);

        Assert.Equal((withoutMetadata, FirmwareChoice.Option), (choice.Path, choice.Source));
    }

    [Fact]
    [SupportedOSPlatform("linux")]
    public async Task EmbeddedDaemon_IsThisUsersAloneAndLeavesNothing()
    {
        string folder;
        await using (DaemonSession session = await DaemonSession.OpenAsync(null, CancellationToken.None))
        {
            folder = Path.GetDirectoryName(new Uri(session.Connection.Address).LocalPath)!;
            Assert.Equal(UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.UserExecute, File.GetUnixFileMode(folder));
            Assert.NotEmpty((await session.Connection.GetCapabilitiesAsync()).Profiles);
        }

        Assert.False(Directory.Exists(folder));
    }

    [Fact]
    public async Task Sample_LaunchesWithAKernel()
    {
        FirmwareImage sample = FirmwareImage.Parse(SampleFirmware.Create(), SampleFirmware.Name);
        string path = Path.Combine(_folder, "sample.fd");
        await File.WriteAllBytesAsync(path, sample.Bytes);

        VmmRun plain = await VmmRun.Invoke("launch", "snp", "--json", "--firmware", path);
        VmmRun withKernel = await VmmRun.Invoke("launch", "snp", "--json", "--firmware", path, "--kernel", TestInputs.RequireFile("k-small"), "--append", "ro");

        Assert.Equal((0, 0), (plain.ExitCode, withKernel.ExitCode));
        Assert.Equal("ro", withKernel.Json.GetProperty("append").GetString());
        Assert.NotEqual(plain.Json.GetProperty("launchDigest").GetString(), withKernel.Json.GetProperty("launchDigest").GetString());
    }
}
