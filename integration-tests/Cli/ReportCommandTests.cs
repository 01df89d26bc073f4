using System.Globalization;
using System.Security.Cryptography.X509Certificates;
using VmmService.Client.Attestation;
using VmmService.IntegrationTests.Attestation;
using VmmService.IntegrationTests.Support;
using Xunit;

namespace VmmService.IntegrationTests.Cli;

/// <summary>vmm report: what it prints and the files that verifiers take.</summary>
public sealed class ReportCommandTests(Daemon daemon) : IClassFixture<Daemon>, IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("vmm-report-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Fact]
    public async Task Report_OfALaunch_MeasuresWhatLaunchPrints()
    {
        string firmware = TestInputs.RequireFile("synfw-nohash");

        VmmRun launch = await VmmRun.Invoke("launch", "snp", "--firmware", firmware, "--json", "--server", daemon.Address);
        VmmRun report = await VmmRun.Invoke("report", "--firmware", firmware, "--json", "--server", daemon.Address, "--report-data", "c0ffee", "--report-version", "5");

        Assert.Equal((0, ""), (report.ExitCode, report.Error));
        Assert.Equal(launch.Json.GetProperty("launchDigest").GetString(), report.Json.GetProperty("MEASUREMENT").GetString());
        Assert.StartsWith("c0ffee00", report.Json.GetProperty("REPORT_DATA").GetString(), StringComparison.Ordinal);
        Assert.Equal(5, report.Json.GetProperty("VERSION").GetInt32());
    }

    [Fact]
    public async Task Text_SaysThatItIsSimulated()
    {
        VmmRun run = await VmmRun.Invoke("report", "--firmware", TestInputs.RequireFile("synfw-nohash"), "--server", daemon.Address, "--vmpl", "2");

        Assert.StartsWith("Simulated platform", run.Output, StringComparison.Ordinal);
        Assert.Contains("VMPL                2", run.Output, StringComparison.Ordinal);
        Assert.Contains("(boot loader 3, TEE 0, SNP 8, microcode 115)", run.Output, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("Milan", "", "ask", "vcek")]
    [InlineData("Turin", "CSP", "asvk", "vlek")]
    public async Task Files_AreWhatAVerifierTakes(string product, string csp, string intermediate, string endorsement)
    {
        string raw = Path.Combine(_folder, "report.bin"), certs = Path.Combine(_folder, "certs");

        VmmRun run = await VmmRun.Invoke(
            "report", "--firmware", TestInputs.RequireFile("synfw-nohash"), "--server", daemon.Address, "--raw", raw, "--certs", certs, "--product", product, "--vlek-csp-id", csp);

        Assert.Equal((0, ""), (run.ExitCode, run.Error));
        byte[] report = await File.ReadAllBytesAsync(raw);
        X509Certificate2 Load(string name) => X509CertificateLoader.LoadCertificateFromFile(Path.Combine(certs, name));
        using X509Certificate2 ark = Load("ark.pem"), middle = Load(intermediate + ".pem"), leaf = Load(endorsement + ".pem");
        Assert.True(SnpVerifier.IsReportSigned(report, leaf));
        Assert.True(SnpVerifier.IsSignedBy(leaf.RawData, middle) && SnpVerifier.IsSignedBy(middle.RawData, ark));
        Assert.True(SnpVerifier.IsSignedBy(await File.ReadAllBytesAsync(Path.Combine(certs, "crl.der")), ark));
        Assert.Equal(endorsement.ToUpperInvariant(), SnpReport.Parse(report).SigningKey);
    }

    [Fact]
    public async Task RunningGuest_IsReportedOnAndLeftRunning()
    {
        await using AttestedGuest guest = await AttestedGuest.Launch(daemon.Stubs);
        string[] arguments =
        [
            "report", "--json", "--server", daemon.Address, "--host", guest.Process.Host,
            "--pid", guest.Process.Pid.ToString(CultureInfo.InvariantCulture), "--fd", guest.Fd.ToString(CultureInfo.InvariantCulture),
        ];

        VmmRun first = await VmmRun.Invoke(arguments), second = await VmmRun.Invoke(arguments);

        Assert.Equal(guest.LaunchDigest, first.Json.GetProperty("MEASUREMENT").GetString());
        Assert.Equal(first.Output, second.Output);
    }

    [Theory]
    [InlineData(2, "report --host h1", "--pid, --fd and --server")]
    [InlineData(2, "report --pid 1", "--host")]
    [InlineData(2, "report --report-data xy", "--report-data xy")]
    [InlineData(2, "report --report-data 123", "--report-data 123")]
    [InlineData(2, "report --key ark", "vcek or vlek")]
    [InlineData(2, "report --product Rome", "Milan, Genoa, Turin")]
    [InlineData(2, "report --report-version 4", "report_version")]
    [InlineData(2, "report --initrd i", "--kernel")]
    [InlineData(2, "report --raw {folder}/none/report.bin", "cannot be written")]
    [InlineData(1, "report --key vlek", "no VLEK is loaded")]
    [InlineData(1, "report --vmpl 4", "at most 3")]
    public async Task CommandLines_ThatCannotBe_AreExplained(int exitCode, string commandLine, string says)
    {
        string[] arguments = commandLine.Replace("{folder}", _folder, StringComparison.Ordinal).Split(' ');

        VmmRun run = await VmmRun.Invoke([.. arguments, .. arguments.Contains("--host") ? Array.Empty<string>() : ["--server", daemon.Address]]);

        Assert.Equal((exitCode, ""), (run.ExitCode, run.Output));
        Assert.Contains(says, run.Error, StringComparison.Ordinal);
        Assert.DoesNotContain("   at ", run.Error, StringComparison.Ordinal);
    }
}
