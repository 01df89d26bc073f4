using System.Diagnostics;
using Microsoft.AspNetCore.Builder;
using VmmService.IntegrationTests.Support;
using VmmService.Server;
using Xunit;

namespace VmmService.IntegrationTests.Deploy;

/// <summary>The shell scripts of deploy/examples, run as they stand, with grpcurl or, where there is none, with buf in its place.</summary>
public sealed class GrpcurlExampleTests : IAsyncLifetime
{
    private readonly string _folder = Directory.CreateTempSubdirectory("vmm-grpcurl-").FullName;
    private WebApplication _daemon = null!;
    private string _server = "";

    public async ValueTask InitializeAsync()
    {
        _daemon = VmmServer.Build([], options =>
        {
            options.UnixSocket = "";
            options.Port = 0;
            options.Quiet = true;
        });
        await _daemon.StartAsync();
        _server = new Uri(_daemon.Urls.Single()).Authority;
    }

    public async ValueTask DisposeAsync()
    {
        await _daemon.StopAsync();
        await _daemon.DisposeAsync();
        Directory.Delete(_folder, recursive: true);
    }

    [Fact]
    public async Task SnpLaunch_ComesToTheDigestThatTheScriptStates()
    {
        (int exitCode, string output) = await RunExample("snp-launch.sh");
        Assert.True(exitCode == 0, output);
        Assert.EndsWith("OK", output.Trim(), StringComparison.Ordinal);
    }

    [Fact]
    public async Task SevOwner_ComparesTheMeasurement_AndSendsASecret()
    {
        (int exitCode, string output) = await RunExample("sev-owner.sh");
        Assert.True(exitCode == 0, output);
        string[] lines = output.Trim().Split('\n');
        Assert.Equal((3, "OK"), (lines.Length, lines[^1]));
        Assert.Equal(lines[0].Replace("measured", "expected", StringComparison.Ordinal), lines[1]);
    }

    [Fact]
    public async Task ExplainErrno_NamesTheRuleAndWhatToTry()
    {
        (int exitCode, string output) = await RunExample("explain-errno.sh");
        Assert.True(exitCode == 0, output);
        Assert.Contains("kvm.gmem.populate.gfn-not-private", output, StringComparison.Ordinal);
        Assert.Contains("KVM_SET_MEMORY_ATTRIBUTES", output, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Grpcurl_List_ShowsTheServicesByReflection()
    {
        (int exitCode, string output) = await Run("grpcurl", "-plaintext", _server, "list");
        Assert.True(exitCode == 0, output);
        Assert.Contains("vmmservice.v1.SevService", output, StringComparison.Ordinal);
        Assert.Contains("grpc.health.v1.Health", output, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("lint")]
    [InlineData("format", "-d", "--exit-code")]
    public async Task Protos_AreAsBufWantsThem(params string[] arguments)
    {
        Assert.SkipWhen(OnPath("buf") is null, "buf is not installed");
        (int exitCode, string output) = await Run("buf", [.. arguments, Path.Combine(Repository.Root, "protos")]);
        Assert.True(exitCode == 0, output);
    }

    private Task<(int ExitCode, string Output)> RunExample(string script) =>
        Run("bash", Path.Combine(Repository.Root, "deploy", "examples", script));

    private async Task<(int ExitCode, string Output)> Run(string program, params string[] arguments)
    {
        string path = PathWithGrpcurl();
        string file = program == "grpcurl" && OnPath("grpcurl") is null ? Path.Combine(_folder, "grpcurl") : program;
        var start = new ProcessStartInfo(file, arguments) { RedirectStandardOutput = true, RedirectStandardError = true };
        start.Environment["PATH"] = path;
        start.Environment["VMM_SERVER"] = _server;
        using Process process = Process.Start(start)!;
        Task<string> error = process.StandardError.ReadToEndAsync();
        string output = await process.StandardOutput.ReadToEndAsync();
        await process.WaitForExitAsync();
        return (process.ExitCode, output + await error);
    }

    private string PathWithGrpcurl()
    {
        string path = Environment.GetEnvironmentVariable("PATH") ?? "";
        if (OnPath("grpcurl") is not null)
        {
            return path;
        }
        Assert.SkipWhen(OnPath("buf") is null || OnPath("bash") is null, "neither grpcurl nor buf (with bash) is installed");
        string wrapper = Path.Combine(_folder, "grpcurl");
        File.Copy(Path.Combine(Repository.Root, "integration-tests", "Deploy", "grpcurl-over-buf.sh"), wrapper, overwrite: true);
        return _folder + Path.PathSeparator + path;
    }

    private static string? OnPath(string program) => (Environment.GetEnvironmentVariable("PATH") ?? "").Split(Path.PathSeparator)
        .Select(folder => Path.Combine(folder, program)).FirstOrDefault(File.Exists);
}
