using System.Diagnostics;
using VmmService.IntegrationTests.Support;
using Xunit;

namespace VmmService.IntegrationTests.Deploy;

/// <summary>The image is built and really run: the daemon in one container, the integration tests against it in another, as deploy/compose.yaml has it.</summary>
public sealed class ContainerTests : IDisposable
{
    // What containers need where limits cannot be raised and cgroups are not the service manager's; elsewhere it does no harm.
    private const string ContainersConf = """
        [containers]
        default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
        [engine]
        cgroup_manager = "cgroupfs"
        runtime = "runc"
        events_logger = "file"
        """;

    private readonly string _folder = Directory.CreateTempSubdirectory("vmm-container-").FullName;
    private int _commands;

    [Fact]
    public async Task Compose_TestsPassAgainstTheDaemonInItsContainer()
    {
        foreach (string tool in new[] { "podman", "runc", "podman-compose", "mmdebstrap", "bash" })
        {
            Assert.SkipWhen(OnPath(tool) is null, $"{tool} is not installed");
        }
        Assert.SkipUnless(Environment.IsPrivilegedProcess, "making a base image from packages needs root here");
        string compose = Path.Combine(Repository.Root, "deploy", "compose.yaml");

        (int made, string log) = await Run("bash", "deploy/base-image.sh");
        Assert.SkipWhen(made != 0, $"no base image can be made on this machine: {log}");
        (int built, log) = await Run("bash", "deploy/build-image.sh", "--tests");
        Assert.True(built == 0, log);
        try
        {
            (int tested, log) = await Run("podman-compose", "-f", compose, "up", "--abort-on-container-exit", "--exit-code-from", "tests");
            Assert.True(tested == 0, log);
            Assert.Contains("Errors: 0, Failed: 0,", log, StringComparison.Ordinal);
            Assert.DoesNotContain("Total: 0,", log, StringComparison.Ordinal);
        }
        finally
        {
            await Run("podman-compose", "-f", compose, "down");
        }
    }

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    private async Task<(int ExitCode, string Output)> Run(string program, params string[] arguments)
    {
        string conf = Path.Combine(_folder, "containers.conf");
        await File.WriteAllTextAsync(conf, ContainersConf);
        // Into a file: build servers and containers that outlive the command would keep a pipe open.
        string log = Path.Combine(_folder, $"{++_commands}.log");
        var start = new ProcessStartInfo("bash", ["-c", "exec \"$@\" >\"$0\" 2>&1 </dev/null", log, program, .. arguments]) { WorkingDirectory = Repository.Root };
        start.Environment.TryAdd("CONTAINERS_CONF", conf);
        start.Environment["BASE"] = "localhost/base:bookworm";
        // The outer build's settings are not for the inner one.
        foreach (string name in start.Environment.Keys.Where(name => name.StartsWith("MSBUILD", StringComparison.OrdinalIgnoreCase)).ToArray())
        {
            start.Environment.Remove(name);
        }
        using Process process = Process.Start(start)!;
        await process.WaitForExitAsync();
        return (process.ExitCode, await File.ReadAllTextAsync(log));
    }

    private static string? OnPath(string program) => (Environment.GetEnvironmentVariable("PATH") ?? "").Split(Path.PathSeparator)
        .Select(folder => Path.Combine(folder, program)).FirstOrDefault(File.Exists);
}
