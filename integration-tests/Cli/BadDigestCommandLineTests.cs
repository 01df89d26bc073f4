using VmmService.IntegrationTests.Support;
using Xunit;

namespace VmmService.IntegrationTests.Cli;

/// <summary>What the digest commands refuse, with exit code 2: nothing on standard output, the reason and what to try on standard error, never a stack trace.</summary>
public sealed class BadDigestCommandLineTests : IDisposable
{
    private const string Hash = "000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000";

    private readonly string _folder = Directory.CreateTempSubdirectory("vmm-digest-test-").FullName;
    private int _files;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Theory]
    [InlineData("digest", "vmm digest --help")]
    [InlineData("digest compute --mode tdx", "--mode tdx", "snp, snp:svsm, seves, sev")]
    [InlineData("digest compute --vcpus 0", "--vcpus", "1 to 1024")]
    [InlineData("digest compute --vcpus 1025 --mode seves", "--vcpus", "1 to 1024")]
    [InlineData("digest compute --vcpu-type EPIC", "EPIC", "Did you mean 'EPYC'")]
    [InlineData("digest compute --vcpu-type EPYC --vcpu-sig 1", "one of them")]
    [InlineData("digest compute --initrd i", "--initrd", "--kernel")]
    [InlineData("digest compute --append a", "--append", "--kernel")]
    [InlineData("digest compute --guest-features 0x20", "0x20", "0x21")]
    [InlineData("digest compute --svsm s", "--svsm", "--mode snp:svsm")]
    [InlineData("digest compute --mode snp:svsm --svsm {synsvsm}", "--vars-size")]
    [InlineData("digest compute --mode snp:svsm --svsm {synfw-hash} --vars-size 0 --firmware {synfw-hash}", "SVSM info", "--firmware")]
    [InlineData("digest compute --mode snp:svsm --svsm {synsvsm} --vars-size 5 --firmware {synfw-hash}", "--vars-size", "0x1000")]
    [InlineData("digest compute --mode snp:svsm --svsm {synsvsm} --vars-size 0xffff0000 --firmware {synfw-hash}", "--vars-size", "leave room")]
    [InlineData("digest compute --mode snp:svsm --svsm {synsvsm} --vars-size 0xfffa5000 --firmware {synfw-hash}", "reaches into the image")]
    [InlineData("digest compute --mode snp:svsm --svsm {synsvsm} --vars-size 0 --kernel {k-small}", "--kernel")]
    [InlineData("digest compute --firmware {missing}", "missing", "does not exist")]
    [InlineData("digest compute --mode seves --vcpus 2 --firmware {blank}", "no SEV-ES reset block")]
    [InlineData("digest compute --initial 00", "--initial", "--pages")]
    [InlineData("digest compute --pages {missing}", "missing", "cannot be read")]
    [InlineData("digest compute --pages x --vcpus 2", "--vcpus")]
    [InlineData("digest compute --json --transcript", "--transcript")]
    [InlineData("digest diff a", "vmm digest diff --help")]
    [InlineData("digest diff {missing} {missing}", "cannot be read")]
    [InlineData("digest diff vm:h/1 {missing}", "vm:HOST/PID/FD")]
    [InlineData("digest diff vm:h/1/2 {missing}", "--server")]
    [InlineData("digest diff --mode=sev {missing}", "no pages")]
    [InlineData("digest diff --bogus=1 {missing}", "--bogus=1")]
    [InlineData("digest explain", "--target")]
    [InlineData("digest explain --target 12", "96", "64", "MEASUREMENT")]
    [InlineData("digest explain --target {hash}0", "97 characters")]
    [InlineData("digest explain --target zz", "96")]
    [InlineData("digest explain --target {hash} --vcpus 0", "--vcpus 0", "1 to 1024")]
    [InlineData("digest explain --target {hash} --vcpus 8-1", "8-1")]
    [InlineData("digest explain --target {hash} --vcpus 1-1025", "1-1025")]
    [InlineData("digest explain --target {hash} --vcpus 1,,2", "--vcpus")]
    [InlineData("digest explain --target {hash} --vcpus 1-2-3", "1-2-3")]
    [InlineData("digest explain --target {hash} --vcpu-types EPYC,EPIC", "EPIC")]
    [InlineData("digest explain --target {hash} --vcpu-types 0x1ffffffff", "0x1ffffffff")]
    [InlineData("digest explain --target {hash} --guest-features one", "one")]
    [InlineData("digest explain --target {hash} --vmm xen", "xen", "qemu, ec2, gce")]
    [InlineData("digest explain --target {hash} --keep policy", "policy", "guest-features")]
    [InlineData("digest explain --target {hash} --max-combinations 0", "--max-combinations")]
    [InlineData("digest explain --target {hash} --append a", "--kernel")]
    [InlineData("digest explain --target {hash} --firmware {missing}", "does not exist")]
    public async Task Unusable_IsRefused(string commandLine, params string[] told) => AssertRefused(await VmmRun.Invoke(Arguments(commandLine)), told);

    // Files that are not transcripts, as digest diff reads them.
    [Theory]
    [InlineData("", "no measured page")]
    [InlineData("hello", "no measured page", "--transcript")]
    [InlineData("{", "not JSON at line 1")]
    [InlineData("[[[[[[[[[[[[[[[[[[[[", "not JSON")]
    [InlineData("{}", "no list named transcript")]
    [InlineData("""{"transcript": 1}""", "no list named transcript")]
    [InlineData("""{"parts": []}""", "SEV")]
    [InlineData("""[1]""", "entry 0", "object")]
    [InlineData("""[{"pageType": "DATA"}]""", "\"DATA\"", "NORMAL, VMSA")]
    [InlineData("""[{"pageType": "1"}]""", "pageType")]
    [InlineData("""[{"pageType": "ZERO"}]""", "gpa missing")]
    [InlineData("""[{"pageType": "ZERO", "gpa": 4096}]""", "gpa 4096", "string")]
    [InlineData("""[{"pageType": "ZERO", "gpa": "0x1001"}]""", "0x1001")]
    [InlineData("""[{"pageType": "ZERO", "gpa": "0x1ffffffffffffffff"}]""", "gpa")]
    [InlineData("""[{"pageType": "NORMAL", "gpa": "0x1000"}]""", "contentHash missing")]
    [InlineData("""[{"pageType": "NORMAL", "gpa": "0x1000", "contentHash": "12"}]""", "\"12\"", "96")]
    [InlineData("""[{"pageType": "ZERO", "gpa": "0x1000"}]""", "digestAfter missing", "digest compute --pages")]
    [InlineData("""{"initial": "5", "transcript": []}""", "'5'")]
    [InlineData("  1  ZERO  0x1000  " + Hash + "  " + Hash, "step 0")]
    public async Task NotATranscript_IsRefused(string content, params string[] told)
    {
        string path = Write(content);

        AssertRefused(await VmmRun.Invoke("digest", "diff", path, path), [path, .. told]);
    }

    [Theory]
    [InlineData("""[{"pageType": "ZERO", "gpa": "0x1000", "contentHash": "111111111111111111111111111111111111111111111111111111111111111111111111111111111111111111111111"}]""", "not measured")]
    [InlineData("""{"parts": []}""", "SEV")]
    public async Task PagesThatCannotBeMeasured_AreRefused(string content, params string[] told) =>
        AssertRefused(await VmmRun.Invoke("digest", "compute", "--pages", Write(content)), told);

    private static void AssertRefused(VmmRun run, string[] told)
    {
        Assert.Equal((2, ""), (run.ExitCode, run.Output));
        Assert.StartsWith("vmm: ", run.Error, StringComparison.Ordinal);
        Assert.DoesNotContain("   at ", run.Error, StringComparison.Ordinal);
        Assert.DoesNotContain("a bug of vmm", run.Error, StringComparison.Ordinal);
        Assert.All(told, each => Assert.Contains(each, run.Error, StringComparison.Ordinal));
    }

    // Words in braces are files, made when they are needed.
    private string[] Arguments(string commandLine) =>
    [
        .. commandLine.Split(' ', StringSplitOptions.RemoveEmptyEntries).Select(word => word switch
        {
            "{missing}" => Path.Combine(_folder, "missing"),
            "{blank}" => Blank(),
            "{hash}" => Hash,
            "{hash}0" => Hash + "0",
            ['{', .. string id, '}'] => TestInputs.RequireFile(id),
            _ => word,
        }),
    ];

    private string Write(string content)
    {
        string path = Path.Combine(_folder, $"{_files++}.txt");
        File.WriteAllText(path, content);
        return path;
    }

    private string Blank()
    {
        string path = Path.Combine(_folder, "blank.fd");
        File.WriteAllBytes(path, new byte[8192]);
        return path;
    }
}
