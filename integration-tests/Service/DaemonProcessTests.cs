using System.Diagnostics;
using Grpc.Core;
using Grpc.Health.V1;
using VmmService.Client;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Service;

/// <summary>The daemon as a program of its own: how it is configured, and how it ends.</summary>
public sealed class DaemonProcessTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("vmm-daemon-").FullName;
    private Process? _daemon;

    [Fact]
    public async Task Sigterm_EndsAttachmentsAndExitsWithZero()
    {
        string socket = await Start(flags: socket => ["--unix", socket, "--port", "-1"]);
        await using VmmConnection connection = VmmConnection.Connect("unix://" + socket);
        string host = (await connection.Stubs.Hosts.CreateHostAsync(new CreateHostRequest())).Host.Host_;
        uint pid = (await connection.Stubs.Processes.CreateProcessAsync(new CreateProcessRequest { Host = host })).Pid;
        using AsyncServerStreamingCall<AttachProcessResponse> attachment = connection.Stubs.Processes.AttachProcess(new AttachProcessRequest { Host = host, Pid = pid });
        Assert.True(await attachment.ResponseStream.MoveNext(TestContext.Current.CancellationToken));

        using Process kill = Process.Start("kill", ["-TERM", _daemon!.Id.ToString(System.Globalization.CultureInfo.InvariantCulture)]);
        Assert.False(await attachment.ResponseStream.MoveNext(TestContext.Current.CancellationToken));
        await _daemon.WaitForExitAsync(TestContext.Current.CancellationToken);

        Assert.Equal(0, _daemon.ExitCode);
        Assert.False(File.Exists(socket));
    }

    [Fact]
    public async Task Environment_ConfiguresWhatFlagsDoNot()
    {
        string socket = await Start(
            flags: socket => ["--unix", socket],
            environment: new() { ["Vmm__Port"] = "-1", ["Vmm__MaxHosts"] = "1" });
        await using VmmConnection connection = VmmConnection.Connect("unix://" + socket);
        Assert.Equal(1u, (await connection.GetCapabilitiesAsync()).Limits.MaxHosts);
        await connection.Stubs.Hosts.CreateHostAsync(new CreateHostRequest());
        RpcException refused = await Assert.ThrowsAsync<RpcException>(async () => await connection.Stubs.Hosts.CreateHostAsync(new CreateHostRequest()));
        Assert.Equal(StatusCode.ResourceExhausted, refused.StatusCode);
    }

    [Fact]
    public async Task ConfigurationFile_IsReadFromTheWorkingDirectory()
    {
        await File.WriteAllTextAsync(Path.Combine(_folder, "vmmservice.json"), """{ "Vmm": { "Port": -1, "MaxProcessesPerHost": 3 } }""");
        string socket = await Start(flags: socket => ["--unix", socket]);
        await using VmmConnection connection = VmmConnection.Connect("unix://" + socket);
        Assert.Equal(3u, (await connection.GetCapabilitiesAsync()).Limits.MaxProcessesPerHost);
    }

    [Fact]
    public async Task Socket_IsForItsOwnerOnlyAndASecondDaemonIsTurnedAway()
    {
        string socket = await Start(flags: socket => ["--unix", socket, "--port", "-1"]);
        if (!OperatingSystem.IsWindows())
        {
            Assert.Equal(UnixFileMode.UserRead | UnixFileMode.UserWrite, File.GetUnixFileMode(socket));
        }
        using Process second = Launch(["--unix", socket, "--port", "-1"], []);
        string error = await second.StandardError.ReadToEndAsync(TestContext.Current.CancellationToken);
        await second.WaitForExitAsync(TestContext.Current.CancellationToken);
        Assert.NotEqual(0, second.ExitCode);
        Assert.Contains("another daemon listens", error, StringComparison.Ordinal);
    }

    public void Dispose()
    {
        if (_daemon is { HasExited: false })
        {
            _daemon.Kill(entireProcessTree: true);
            _daemon.WaitForExit();
        }
        _daemon?.Dispose();
        Directory.Delete(_folder, recursive: true);
    }

    // Starts the daemon and waits until its health service answers.
    private async Task<string> Start(Func<string, string[]> flags, Dictionary<string, string>? environment = null)
    {
        string socket = Path.Combine(_folder, "vmm.sock");
        _daemon = Launch(flags(socket), environment ?? []);
        // The daemon says on standard error when it listens; the first line is the signal.
        string? line;
        do
        {
            line = await _daemon.StandardError.ReadLineAsync(TestContext.Current.CancellationToken);
            Assert.True(line is not null, "the daemon ended before it listened");
        }
        while (!line!.Contains("Listening", StringComparison.Ordinal));
        await using VmmConnection connection = VmmConnection.Connect("unix://" + socket);
        HealthCheckResponse health = await connection.Stubs.Health.CheckAsync(new HealthCheckRequest());
        Assert.Equal(HealthCheckResponse.Types.ServingStatus.Serving, health.Status);
        _ = _daemon.StandardError.ReadToEndAsync(TestContext.Current.CancellationToken);
        return socket;
    }

    private Process Launch(string[] flags, Dictionary<string, string> environment)
    {
        var start = new ProcessStartInfo("dotnet", [Path.Combine(AppContext.BaseDirectory, "VmmService.Server.dll"), .. flags])
        {
            WorkingDirectory = _folder,
            RedirectStandardError = true,
        };
        foreach ((string name, string value) in environment)
        {
            start.Environment[name] = value;
        }
        return Process.Start(start)!;
    }
}
