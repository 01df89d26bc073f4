using VmmService.IntegrationTests.Support;
using Xunit;

namespace VmmService.IntegrationTests.Cli;

/// <summary>What the command refuses: nothing on standard output, the reason and what to try on standard error, never a stack trace, and the exit code that --help promises.</summary>
public sealed class BadCommandLineTests(Daemon daemon) : IClassFixture<Daemon>, IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("vmm-cli-test-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Theory]
    [InlineData("", "vmm --help")]
    [InlineData("launch", "vmm launch --help")]
    [InlineData("lunch", "lunch")]
    [InlineData("launch snp --bogus", "--bogus", "vmm launch snp --help")]
    [InlineData("launch snp --vcpus 0", "--vcpus", "1 to 1024")]
    [InlineData("launch snp --vcpus 1025", "--vcpus", "1 to 1024")]
    [InlineData("launch snp --vcpus 0xffffffff", "--vcpus", "1 to 1024")]
    [InlineData("launch snp --vcpus two", "--vcpus two", "hexadecimal")]
    [InlineData("launch snp --vcpus -1", "--vcpus -1")]
    [InlineData("launch snp --vcpu-sig 0x1ffffffff", "--vcpu-sig 0x1ffffffff", "0xffffffff")]
    [InlineData("launch snp --policy 0x1ffffffffffffffff", "--policy", "0xffffffffffffffff")]
    [InlineData("launch snp --vcpu-type EPIC-Milan", "EPIC-Milan", "Did you mean 'EPYC-Milan'")]
    [InlineData("launch snp --vcpu-type EPYC --vcpu-sig 1", "--vcpu-type", "--vcpu-sig", "one of them")]
    [InlineData("launch snp --vmm xen", "xen", "qemu, ec2, gce")]
    [InlineData("launch snp --guest-features 0x20", "0x20", "0x21")]
    [InlineData("launch snp --initrd i", "--initrd", "--kernel")]
    [InlineData("launch snp --append a", "--append", "--kernel")]
    [InlineData("launch snp --json --transcript", "--transcript")]
    [InlineData("launch snp --server nonsense", "--server nonsense", "http://HOST:PORT")]
    [InlineData("launch snp --server ftp://host/", "--server ftp://host/", "unix:///PATH")]
    [InlineData("launch snp --profile K1", "K1", "K72")]
    [InlineData("launch snp --memory 4096 --firmware {synfw-hash}", "0x1000", "more memory")]
    [InlineData("launch snp --firmware {missing}", "missing", "does not exist")]
    [InlineData("launch snp --firmware {folder}", "directory")]
    [InlineData("launch snp --firmware {empty}", "0 bytes", "4096")]
    [InlineData("launch snp --firmware {odd}", "5000", "multiple of 4096")]
    [InlineData("launch snp --firmware {synfw-nohash} --kernel {k-small}", "SNP_KERNEL_HASHES", "--kernel")]
    [InlineData("launch snp --firmware {synfw-hash} --kernel {missing}", "missing", "does not exist")]
    [InlineData("serve --prot 1", "--prot")]
    [InlineData("serve --Vmm:Port", "--Vmm:Port", "value")]
    public async Task Unusable_IsRefusedWithExitCode2(string commandLine, params string[] told) =>
        AssertRefused(2, await VmmRun.Invoke(Arguments(commandLine)), told);

    [Theory]
    [InlineData("--policy 0x0", "EINVAL", "bit 17", "0x30000")]
    [InlineData("--policy 0x70000", "EINVAL", "0x70000")]
    [InlineData("--guest-features 0x8001", "EINVAL", "vmsa_features", "KVM_X86_SEV_VMSA_FEATURES")]
    [InlineData("--memory 5000", "EINVAL", "4096")]
    [InlineData("--memory 0", "EINVAL")]
    [InlineData("--memory 0x8000000000000000", "RAM")]
    public async Task WhatTheKernelRefuses_EndsWithExitCode1AndItsCause(string options, params string[] told)
    {
        VmmRun run = await VmmRun.Invoke(Arguments($"launch snp --firmware {{synfw-hash}} --server {daemon.Address} {options}"));

        AssertRefused(1, run, [.. told, "The launch failed at:", "Try:"]);
    }

    [Theory]
    [InlineData("launch snp --server http://127.0.0.1:1")]
    [InlineData("capabilities --server unix:///nowhere/vmm.sock")]
    [InlineData("profiles --server unix:///nowhere/vmm.sock")]
    public async Task NoDaemon_EndsWithExitCode3(string commandLine) =>
        AssertRefused(3, await VmmRun.Invoke(Arguments(commandLine)), "No daemon answers at", "vmm serve");

    private static void AssertRefused(int exitCode, VmmRun run, params string[] told)
    {
        Assert.Equal(exitCode, run.ExitCode);
        Assert.Equal("", run.Output);
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
            "{missing}" => Path.Combine(_folder, "missing.fd"),
            "{folder}" => _folder,
            "{empty}" => FileOf(0),
            "{odd}" => FileOf(5000),
            ['{', .. string id, '}'] => TestInputs.RequireFile(id),
            _ => word,
        }),
    ];

    private string FileOf(int bytes)
    {
        string path = Path.Combine(_folder, $"{bytes}.fd");
        File.WriteAllBytes(path, new byte[bytes]);
        return path;
    }
}
