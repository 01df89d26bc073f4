using Microsoft.AspNetCore.Builder;
using VmmService.Client;
using VmmService.Server;
using Xunit;

namespace VmmService.IntegrationTests.Support;

/// <summary>
/// The daemon that a test class talks to over gRPC: one of its own on a private Unix socket, or the one that VMM_TEST_SERVER names (a container, say).
/// </summary>
public sealed class Daemon : IAsyncLifetime
{
    private string? _folder;
    private WebApplication? _app;

    /// <summary>Null where the daemon runs elsewhere.</summary>
    public WebApplication? App => _app;

    /// <summary>What VmmConnection.Connect takes.</summary>
    public string Address { get; private set; } = "";

    public VmmConnection Connection { get; private set; } = null!;

    public VmmStubs Stubs => Connection.Stubs;

    public async ValueTask InitializeAsync()
    {
        Address = Environment.GetEnvironmentVariable("VMM_TEST_SERVER") ?? await StartOwn();
        Connection = VmmConnection.Connect(Address);
    }

    public async ValueTask DisposeAsync()
    {
        await Connection.DisposeAsync();
        if (_app is not null)
        {
            await _app.StopAsync();
            await _app.DisposeAsync();
        }
        if (_folder is not null)
        {
            Directory.Delete(_folder, recursive: true);
        }
    }

    private async Task<string> StartOwn()
    {
        _folder = Directory.CreateTempSubdirectory("vmm-test-").FullName;
        string socket = Path.Combine(_folder, "vmm.sock");
        _app = VmmServer.Build([], options =>
        {
            options.UnixSocket = socket;
            options.Port = -1;
            options.Quiet = true;
        });
        await _app.StartAsync();
        return "unix://" + socket;
    }
}
