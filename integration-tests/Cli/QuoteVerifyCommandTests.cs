using System.Security.Cryptography;
using System.Text;
using System.Text.Json;
using VmmService.IntegrationTests.Support;
using Xunit;

namespace VmmService.IntegrationTests.Cli;

/// <summary>vmm quote verify: of what vmm quote writes, and of files that are something else.</summary>
public sealed class QuoteVerifyCommandTests(Daemon daemon) : IClassFixture<Daemon>, IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("vmm-verify-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Fact]
    public async Task WhatQuoteWrites_IsAccepted_InThisProcess()
    {
        (string quote, string collateral) = await Quote("5-1.5", "--report-data", "c0ffee");

        VmmRun run = await VmmRun.Invoke("quote", "verify", quote, "--collateral", collateral, "--report-data", "c0ffee");

        Assert.Equal((0, ""), (run.ExitCode, run.Error));
        Assert.StartsWith($"Note: the trusted root is {Path.Combine(collateral, "root.pem")}, which came with the evidence", run.Output, StringComparison.Ordinal);
        string[] lines = run.Output.Split('\n', StringSplitOptions.RemoveEmptyEntries);
        Assert.Equal(27, lines.Count(line => line.StartsWith("ok    ", StringComparison.Ordinal)));
        Assert.Equal(2, lines.Count(line => line.StartsWith("--    ", StringComparison.Ordinal)));
        Assert.DoesNotContain("FAIL", run.Output, StringComparison.Ordinal);
        Assert.Equal(["ACCEPTED", "Simulated platform: this evidence says nothing about real hardware."], lines[^2..]);
    }

    [Theory]
    [InlineData("wrongmrtd", "quote.mrtd")]
    [InlineData("debugtd", "quote.debug")]
    [InlineData("truncatedquote", "quote.structure")]
    [InlineData("revokedpck", "collateral.pck-revoked")]
    [InlineData("alteredtcbinfo", "collateral.tcb-info-signature")]
    public async Task EvidenceWithADefect_IsRefusedWithExitCode1(string kind, string check)
    {
        (string quote, string collateral) = await Quote("4");
        string mrtd = (await VmmRun.Invoke("quote", "--server", daemon.Address, "--json")).Json.GetProperty("MRTD").GetString()!;
        Assert.Equal(0, (await VmmRun.Invoke("quote", "--server", daemon.Address, "--evidence", kind, "--raw", quote, "--collateral", collateral)).ExitCode);
        string[] arguments = ["quote", "verify", quote, "--collateral", collateral, "--root", Path.Combine(collateral, "root.pem"), "--mrtd", mrtd, "--server", daemon.Address];

        VmmRun run = await VmmRun.Invoke(arguments), json = await VmmRun.Invoke([.. arguments, "--json"]);

        Assert.Equal((1, "", 1, ""), (run.ExitCode, run.Error, json.ExitCode, json.Error));
        string[] lines = run.Output.Split('\n');
        int line = Array.FindIndex(lines, each => each.StartsWith($"FAIL  {check} ", StringComparison.Ordinal));
        Assert.True(line >= 0, run.Output);
        Assert.StartsWith("      ", lines[line + 1], StringComparison.Ordinal);
        Assert.Contains($"REFUSED: {check}", lines);
        JsonElement[] failed = [.. json.Json.GetProperty("checks").EnumerateArray().Where(each => each.GetProperty("result").GetString() == "failed")];
        // Half a quote has no certificates that would say so.
        Assert.Equal(("refused", true, check), (json.Json.GetProperty("verdict").GetString(), json.Json.GetProperty("simulated").GetBoolean(), Assert.Single(failed).GetProperty("id").GetString()));
        Assert.Equal(lines[line + 1].Trim(), failed[0].GetProperty("found").GetString());
    }

    [Fact]
    public async Task WithoutCollateral_ItIsIncomplete_AndNotExitCode0()
    {
        (string quote, string collateral) = await Quote("4");

        VmmRun run = await VmmRun.Invoke("quote", "verify", quote, "--root", Path.Combine(collateral, "root.pem"), "--server", daemon.Address);
        VmmRun json = await VmmRun.Invoke("quote", "verify", quote, "--json", "--server", daemon.Address);

        Assert.Equal((1, ""), (run.ExitCode, run.Error));
        Assert.Contains("INCOMPLETE", run.Output, StringComparison.Ordinal);
        Assert.Contains("give it (--tcb-info)", run.Output, StringComparison.Ordinal);
        Assert.Equal((1, "incomplete"), (json.ExitCode, json.Json.GetProperty("verdict").GetString()));
        // A folder that has only some of it says what is missing.
        File.Delete(Path.Combine(collateral, "pck.crl"));
        Assert.Contains("give it (--pck-crl)", (await VmmRun.Invoke("quote", "verify", quote, "--collateral", collateral, "--server", daemon.Address)).Output, StringComparison.Ordinal);
    }

    // Every file by its own option, certificates in DER and lists in PEM.
    [Fact]
    public async Task Files_AreTakenInBothEncodings_AndByTheirOwnOptions()
    {
        (string quote, string collateral) = await Quote("4");
        string In(string name) => Path.Combine(collateral, name);
        string Der(string name) => Write(name + ".der", Convert.FromBase64String(PemOf(File.ReadAllText(In(name)))));
        string Pem(string name) => Write(name + ".pem", Encoding.ASCII.GetBytes("A list:\n" + PemEncoding.WriteString("X509 CRL", File.ReadAllBytes(In(name)))));

        VmmRun run = await VmmRun.Invoke(
            "quote", "verify", quote, "--root", Der("root.pem"), "--tcb-signing", Der("tcb-signing.pem"), "--root-crl", Pem("root.crl"), "--pck-crl", Pem("pck.crl"),
            "--tcb-info", In("tcb-info.json"), "--qe-identity", In("qe-identity.json"), "--at", "2030-06-01T12:00:00Z", "--server", daemon.Address);

        Assert.Equal((0, ""), (run.ExitCode, run.Error));
        Assert.StartsWith("ok ", run.Output, StringComparison.Ordinal);
    }

    [Fact]
    public async Task AnotherRoot_IsNotTheFolders()
    {
        (string quote, string collateral) = await Quote("4");
        string other = Path.Combine(_folder, "other");
        await VmmRun.Invoke("quote", "--server", daemon.Address, "--seed", "2", "--collateral", other);

        VmmRun run = await VmmRun.Invoke("quote", "verify", quote, "--collateral", collateral, "--root", Path.Combine(other, "root.pem"), "--json", "--server", daemon.Address);
        VmmRun noted = await VmmRun.Invoke("quote", "verify", quote, "--collateral", collateral, "--json", "--server", daemon.Address);

        Assert.Equal((1, ""), (run.ExitCode, run.Error));
        Assert.Equal("failed", run.Json.GetProperty("checks")[2].GetProperty("result").GetString());
        // Standard output is the object and nothing else.
        Assert.Equal((0, "accepted"), (noted.ExitCode, noted.Json.GetProperty("verdict").GetString()));
        Assert.Contains("which came with the evidence", noted.Error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task ExpectationsAndTime_AreCompared()
    {
        (string quote, string collateral) = await Quote("4");
        string ones = new('1', 96), zeros = new('0', 96);

        VmmRun rtmrs = await VmmRun.Invoke("quote", "verify", quote, "--collateral", collateral, "--rtmr", $"0={zeros}", "--rtmr", $"3={ones}", "--server", daemon.Address);
        VmmRun late = await VmmRun.Invoke("quote", "verify", quote, "--collateral", collateral, "--at", "2060-01-01", "--server", daemon.Address);

        Assert.Contains($"RTMR3 is {zeros}, not {ones}", rtmrs.Output, StringComparison.Ordinal);
        Assert.Contains("REFUSED: quote.rtmr", rtmrs.Output, StringComparison.Ordinal);
        Assert.DoesNotContain("RTMR0 is", rtmrs.Output, StringComparison.Ordinal);
        Assert.Contains("before 2060-01-01 00:00:00Z", late.Output, StringComparison.Ordinal);
        Assert.Equal((1, 1), (rtmrs.ExitCode, late.ExitCode));
    }

    [Fact]
    public async Task ADebugTd_IsAcceptedWithItsOption()
    {
        (string quote, string collateral) = await Quote("4", "--attributes", "1");
        Assert.Equal(1, (await VmmRun.Invoke("quote", "verify", quote, "--collateral", collateral, "--server", daemon.Address)).ExitCode);
        Assert.Equal(0, (await VmmRun.Invoke("quote", "verify", quote, "--collateral", collateral, "--allow-debug", "--server", daemon.Address)).ExitCode);
    }

    [Theory]
    [InlineData("quote verify", "Required argument")]
    [InlineData("quote verify {folder}/none", "QUOTE", "cannot be read")]
    [InlineData("quote verify {folder}", "QUOTE", "cannot be read")]
    [InlineData("quote verify /dev/zero", "more than 1 MiB")]
    [InlineData("quote verify {large}", "quote:", "65536")]
    [InlineData("quote verify {q} --collateral {folder}/none", "--collateral", "no such folder")]
    [InlineData("quote verify {q} --collateral {q}", "--collateral", "no such folder")]
    [InlineData("quote verify {q} --root {folder}/none", "--root", "cannot be read")]
    [InlineData("quote verify {q} --root {crl}", "--root", "it is PEM of \"X509 CRL\", not of \"CERTIFICATE\"")]
    [InlineData("quote verify {q} --tcb-info {folder}", "--tcb-info", "cannot be read")]
    [InlineData("quote verify {q} --mrtd 12", "--mrtd 12", "96 hexadecimal digits")]
    [InlineData("quote verify {q} --rtmr 12", "--rtmr 12", "N=HEX")]
    [InlineData("quote verify {q} --rtmr 4=00", "--rtmr 4=00", "from 0 to 3")]
    [InlineData("quote verify {q} --rtmr 1=00", "--rtmr 00", "96 hexadecimal digits")]
    [InlineData("quote verify {q} --rtmr 1={zeros} --rtmr 1={zeros}", "RTMR1 is given twice")]
    [InlineData("quote verify {q} --report-data xy", "--report-data xy")]
    [InlineData("quote verify {q} --at yesterday", "--at yesterday", "2026-01-31")]
    [InlineData("quote verify {q} --at 2026-13-01", "--at 2026-13-01")]
    [InlineData("quote verify {q} --server nonsense", "--server nonsense")]
    public async Task CommandLines_ThatCannotBe_AreExplained(string commandLine, params string[] says)
    {
        string[] arguments = [.. commandLine.Split(' ').Select(word => word.Replace("{folder}", _folder, StringComparison.Ordinal).Replace("{zeros}", new string('0', 96), StringComparison.Ordinal) switch
        {
            "{q}" => Write("q", [4]),
            "{large}" => Write("large", new byte[(64 << 10) + 1]),
            "{crl}" => Write("crl", Encoding.ASCII.GetBytes(PemEncoding.WriteString("X509 CRL", [1, 2, 3]))),
            var other => other,
        })];

        VmmRun run = await VmmRun.Invoke([.. arguments, .. arguments.Contains("--server") ? Array.Empty<string>() : ["--server", daemon.Address]]);

        Assert.Equal((2, ""), (run.ExitCode, run.Output));
        Assert.All(says, each => Assert.Contains(each, run.Error, StringComparison.Ordinal));
        Assert.DoesNotContain("   at ", run.Error, StringComparison.Ordinal);
    }

    // Files that are nothing are findings: nobody's mistake on the command line.
    [Fact]
    public async Task FilesOfAnything_AreRefusedByTheirChecks()
    {
        string rubbish = Write("rubbish", Encoding.ASCII.GetBytes(new string('{', 3000)));
        VmmRun run = await VmmRun.Invoke(
            "quote", "verify", rubbish, "--root", rubbish, "--tcb-signing", rubbish, "--root-crl", rubbish, "--pck-crl", rubbish, "--tcb-info", rubbish, "--qe-identity", rubbish,
            "--server", daemon.Address);
        Assert.Equal((1, ""), (run.ExitCode, run.Error));
        Assert.Contains("REFUSED: quote.structure, collateral.tcb-info-signature, collateral.qe-identity-signature", run.Output, StringComparison.Ordinal);
    }

    [Fact]
    public async Task NoDaemon_EndsWithExitCode3()
    {
        VmmRun run = await VmmRun.Invoke("quote", "verify", Write("q", [4]), "--server", "http://127.0.0.1:1");
        Assert.Equal((3, ""), (run.ExitCode, run.Output));
    }

    private static string PemOf(string text)
    {
        PemFields fields = PemEncoding.Find(text);
        return text[fields.Base64Data];
    }

    private async Task<(string Quote, string Collateral)> Quote(string format, params string[] options)
    {
        string quote = Path.Combine(_folder, "quote.bin"), collateral = Path.Combine(_folder, "collateral");
        VmmRun run = await VmmRun.Invoke(["quote", "--server", daemon.Address, "--format", format, "--raw", quote, "--collateral", collateral, .. options]);
        Assert.Equal((0, ""), (run.ExitCode, run.Error));
        return (quote, collateral);
    }

    private string Write(string name, byte[] bytes)
    {
        string path = Path.Combine(_folder, name);
        File.WriteAllBytes(path, bytes);
        return path;
    }
}
