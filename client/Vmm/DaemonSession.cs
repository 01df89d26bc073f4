using Microsoft.AspNetCore.Builder;
using VmmService.Client;
using VmmService.Server;

namespace VmmService.Vmm;

/// <summary>
/// The daemon a command works with: the one at --server, or one in this process on a Unix socket in a directory that only this user can enter. Both are
/// reached through the same client, so an embedded launch takes the same path as a remote one.
/// </summary>
internal sealed class DaemonSession : IAsyncDisposable
{
    private readonly WebApplication? _embedded;
    private readonly string? _directory;

    private DaemonSession(VmmConnection connection, WebApplication? embedded, string? directory)
    {
        Connection = connection;
        _embedded = embedded;
        _directory = directory;
    }

    public VmmConnection Connection { get; }

    /// <summary>The address given, or "in-process".</summary>
    public string Name => _embedded is null ? Connection.Address : "in-process";

    public static async Task<DaemonSession> OpenAsync(string? server, CancellationToken cancellation)
    {
        if (server is not null)
        {
            try
            {
                return new DaemonSession(VmmConnection.Connect(server), null, null);
            }
            catch (ArgumentException)
            {
                throw new UsageException($"--server {server}: not an address; use http://HOST:PORT or unix:///PATH, or leave --server out to run the daemon inside this process");
            }
        }

        // A Unix socket's path is short (108 bytes), so it goes below the temporary directory and not below a working directory. Mode 0700.
        string directory = Directory.CreateTempSubdirectory("vmm-").FullName;
        WebApplication? app = null;
        try
        {
            string socket = Path.Combine(directory, "daemon.sock");
            app = VmmServer.Build([], options =>
            {
                options.UnixSocket = socket;
                options.Port = -1;
                options.Quiet = true;
            });
            await app.StartAsync(cancellation);
            return new DaemonSession(VmmConnection.Connect($"unix://{socket}"), app, directory);
        }
        catch
        {
            if (app is not null)
                await app.DisposeAsync();

            Directory.Delete(directory, recursive: true);
            throw;
        }
    }

    public async ValueTask DisposeAsync()
    {
        await Connection.DisposeAsync();
        if (_embedded is not null)
        {
            await _embedded.StopAsync();
            await _embedded.DisposeAsync();
        }

        if (_directory is not null)
            Directory.Delete(_directory, recursive: true);
    }
}
