using System.Security.Cryptography;
using System.Text.Json;
using VmmService.IntegrationTests.Support;
using Xunit;

namespace VmmService.IntegrationTests.Cli;

/// <summary>vmm report verify: of what vmm report writes, of silicon's, and of files that are something else.</summary>
public sealed class ReportVerifyCommandTests(Daemon daemon) : IClassFixture<Daemon>, IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("vmm-verify-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Theory]
    [InlineData("Genoa", "")]
    [InlineData("Turin", "CSP")]
    public async Task WhatReportWrites_IsAccepted_InThisProcess(string product, string csp)
    {
        (string report, string certs) = await Report("--product", product, "--vlek-csp-id", csp, "--report-version", "5", "--report-data", "c0ffee", "--vmpl", "1");

        VmmRun run = await VmmRun.Invoke("report", "verify", report, "--certs", certs, "--report-data", "c0ffee", "--vmpl", "1", "--min-tcb", "3.0.8.115");

        Assert.Equal((0, ""), (run.ExitCode, run.Error));
        Assert.StartsWith($"Note: the trusted root is {Path.Combine(certs, "ark.pem")}, which came with the evidence; --ark names one", run.Output, StringComparison.Ordinal);
        string[] lines = run.Output.Split('\n', StringSplitOptions.RemoveEmptyEntries);
        Assert.Equal(["ACCEPTED", "Simulated platform: this evidence says nothing about real hardware."], lines[^2..]);
        Assert.DoesNotContain("FAIL", run.Output, StringComparison.Ordinal);
        // What was not asked for is said: the measurement, and the chip that a VLEK does not name.
        Assert.Equal(csp.Length > 0 ? 2 : 1, lines.Count(line => line.StartsWith("--    ", StringComparison.Ordinal)));
    }

    [Fact]
    public async Task AReportThatIsNotTheExpectedOne_IsRefusedWithExitCode1_AndSaysWhichCheck()
    {
        (string report, string certs) = await Report();
        byte[] altered = await File.ReadAllBytesAsync(report);
        altered[0x90] ^= 1;
        string ones = new('1', 96);
        (string[] Arguments, string Check, string Found)[] cases =
        [
            ([Write("altered.bin", altered)], "report.signature", "did not sign"),
            ([report, "--measurement", ones], "report.measurement", $"and not {ones}"),
            ([report, "--report-data", "01"], "report.report-data", "and not 0100"),
            ([report, "--vmpl", "2"], "report.vmpl", "it is 0 and not 2"),
            ([report, "--min-tcb", "3.0.9.115"], "report.min-tcb", "SNP 8"),
            ([report, "--at", "1999-01-01"], "chain.dates", "1999-01-01"),
        ];
        foreach ((string[] arguments, string check, string found) in cases)
        {
            string[] all = ["report", "verify", .. arguments, "--certs", certs, "--ark", Path.Combine(certs, "ark.pem"), "--server", daemon.Address];

            VmmRun run = await VmmRun.Invoke(all), json = await VmmRun.Invoke([.. all, "--json"]);

            Assert.Equal((1, "", 1, ""), (run.ExitCode, run.Error, json.ExitCode, json.Error));
            Assert.Contains($"REFUSED: {check}", run.Output, StringComparison.Ordinal);
            JsonElement failed = json.Json.GetProperty("checks").EnumerateArray().First(each => each.GetProperty("result").GetString() == "failed");
            Assert.Equal(("refused", check), (json.Json.GetProperty("verdict").GetString(), failed.GetProperty("id").GetString()));
            Assert.Contains(found, failed.GetProperty("found").GetString(), StringComparison.Ordinal);
        }
    }

    // The papers of a real processor, in DER, as its owner would have them from AMD's service.
    [Fact]
    public async Task AReportOfSilicon_IsAccepted_AndNotCalledSimulated()
    {
        SnpVector vector = SnpVectors.Get("report-milan-v2");
        string Bytes(string name, string file) => Write(file, vector.Params.GetProperty(name).GetBytesFromBase64());
        string report = Bytes("report_base64", "report.bin"), vcek = Bytes("vcek_der_base64", "vcek.der");
        string ask = Bytes("ask_der_base64", "ask.der"), ark = Bytes("ark_der_base64", "ark.der");

        VmmRun byFolder = await VmmRun.Invoke("report", "verify", report, "--certs", _folder, "--at", "2024-01-01", "--server", daemon.Address);
        VmmRun byFile = await VmmRun.Invoke("report", "verify", report, "--ark", ark, "--ask", ask, "--vcek", vcek, "--at", "2024-01-01T00:00:00+02:00", "--server", daemon.Address);

        Assert.Equal((0, "", 0, ""), (byFolder.ExitCode, byFolder.Error, byFile.ExitCode, byFile.Error));
        Assert.DoesNotContain("Simulated", byFolder.Output + byFile.Output, StringComparison.Ordinal);
        Assert.EndsWith("ACCEPTED\n", byFile.Output, StringComparison.Ordinal);
    }

    [Fact]
    public async Task WithoutCertificates_ItIsIncomplete_AndNotExitCode0()
    {
        (string report, string certs) = await Report();

        VmmRun alone = await VmmRun.Invoke("report", "verify", report, "--server", daemon.Address);
        VmmRun noRoot = await VmmRun.Invoke("report", "verify", report, "--vcek", Path.Combine(certs, "vcek.pem"), "--ask", Path.Combine(certs, "ask.pem"), "--server", daemon.Address);

        Assert.Equal((1, "", 1, ""), (alone.ExitCode, alone.Error, noRoot.ExitCode, noRoot.Error));
        Assert.Contains("give it (--vcek)", alone.Output, StringComparison.Ordinal);
        Assert.Contains("INCOMPLETE", noRoot.Output, StringComparison.Ordinal);
        Assert.Contains("ok    report.signature", noRoot.Output, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("report verify", "Required argument")]
    [InlineData("report verify {folder}/none", "REPORT", "cannot be read")]
    [InlineData("report verify /dev/zero", "more than 1 MiB")]
    [InlineData("report verify {r} --certs {folder}/none", "--certs", "no such folder")]
    [InlineData("report verify {r} --ark {crl}", "--ark", "X509 CRL")]
    [InlineData("report verify {r} --crl {folder}", "--crl", "cannot be read")]
    [InlineData("report verify {r} --measurement 12", "--measurement 12", "96")]
    [InlineData("report verify {r} --report-data xy", "--report-data xy")]
    [InlineData("report verify {r} --min-tcb 3.0.8", "--min-tcb 3.0.8", "3.0.8.115")]
    [InlineData("report verify {r} --min-tcb 3.0.8.256", "--min-tcb")]
    [InlineData("report verify {r} --vmpl x", "--vmpl x")]
    [InlineData("report verify {r} --at today", "--at today", "2026-01-31")]
    public async Task WhatCannotBe_IsAUsageError(string command, params string[] says)
    {
        string report = Write("report.bin", new byte[0x4A0]), crl = Path.Combine(_folder, "list.pem");
        await File.WriteAllTextAsync(crl, PemEncoding.WriteString("X509 CRL", [0x30, 0]));
        (string Place, string Path)[] places = [("{folder}", _folder), ("{r}", report), ("{crl}", crl)];
        string[] arguments = [.. command.Split(' ').Select(word => places.Aggregate(word, (text, each) => text.Replace(each.Place, each.Path, StringComparison.Ordinal)))];

        VmmRun run = await VmmRun.Invoke(arguments);

        Assert.Equal((2, ""), (run.ExitCode, run.Output));
        Assert.All(says, text => Assert.Contains(text, run.Error, StringComparison.Ordinal));
    }

    private async Task<(string Report, string Certs)> Report(params string[] options)
    {
        string report = Path.Combine(_folder, "written.bin"), certs = Path.Combine(_folder, "certs");
        VmmRun run = await VmmRun.Invoke(["report", "--firmware", TestInputs.RequireFile("synfw-nohash"), "--server", daemon.Address, "--raw", report, "--certs", certs, .. options]);
        Assert.Equal((0, ""), (run.ExitCode, run.Error));
        return (report, certs);
    }

    private string Write(string name, byte[] bytes)
    {
        string path = Path.Combine(_folder, name);
        File.WriteAllBytes(path, bytes);
        return path;
    }
}
