using System.Net;
using System.Net.Sockets;
using Grpc.Core;
using Grpc.Net.Client;
using Microsoft.AspNetCore.Builder;
using Microsoft.AspNetCore.Hosting;
using Microsoft.AspNetCore.Hosting.Server;
using Microsoft.AspNetCore.Hosting.Server.Features;
using Microsoft.AspNetCore.Server.Kestrel.Core;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.Logging;
using VmmService.Server.Health;
using VmmService.Server.Reflection;

namespace VmmService.IntegrationTests.Contracts;

/// <summary>
/// A real Kestrel on a Unix socket and on a loopback port, with the echo service, health and reflection. One for each test, so that none sees
/// another's state.
/// </summary>
internal sealed class ContractServer : IAsyncDisposable
{
    private readonly DirectoryInfo _directory;
    private readonly WebApplication _app;

    private ContractServer(DirectoryInfo directory, WebApplication app)
    {
        _directory = directory;
        _app = app;
    }

    internal EchoService.Signals Signals => _app.Services.GetRequiredService<EchoService.Signals>();

    internal HealthStatus Health => _app.Services.GetRequiredService<HealthStatus>();

    private string SocketPath => Path.Combine(_directory.FullName, "grpc.sock");

    internal static async Task<ContractServer> StartAsync()
    {
        var directory = Directory.CreateTempSubdirectory("contracts-");
        var builder = WebApplication.CreateSlimBuilder();
        builder.Logging.ClearProviders();
        builder.WebHost.ConfigureKestrel(kestrel =>
        {
            kestrel.Limits.MaxRequestBodySize = null;
            kestrel.ListenUnixSocket(Path.Combine(directory.FullName, "grpc.sock"), endpoint => endpoint.Protocols = HttpProtocols.Http2);
            kestrel.Listen(IPAddress.Loopback, 0, endpoint => endpoint.Protocols = HttpProtocols.Http2);
        });
        builder.Services.AddSingleton<EchoService.Signals>();
        builder.Services.AddSingleton(new HealthStatus(["contracts.Echo"]));
        builder.Services.AddSingleton(new ReflectionIndex(
            [Grpc.Health.V1.Health.Descriptor, Grpc.Reflection.V1.ServerReflection.Descriptor, Grpc.Reflection.V1Alpha.ServerReflection.Descriptor]));
        builder.Services.AddGrpc(grpc =>
        {
            grpc.MaxReceiveMessageSize = null;
            grpc.ResponseCompressionAlgorithm = "gzip";
            grpc.Interceptors.Add<EchoService.Marker>();
        });

        var app = builder.Build();
        app.MapGrpcService<EchoService>();
        app.MapGrpcService(Echo.Definition());
        app.MapGrpcService<HealthService>();
        app.MapGrpcService<ReflectionService>();
        app.MapGrpcService<ReflectionV1AlphaService>();
        await app.StartAsync();
        return new ContractServer(directory, app);
    }

    /// <summary>A channel to this server.</summary>
    /// <param name="transport">"unix" or "tcp".</param>
    /// <param name="credentials">Null: insecure.</param>
    /// <param name="wrap">Puts a handler of the test's own between gRPC and HTTP.</param>
    internal GrpcChannel Connect(string transport, ChannelCredentials? credentials = null, Func<HttpMessageHandler, HttpMessageHandler>? wrap = null)
    {
        var http = new SocketsHttpHandler();
        var address = "http://localhost";
        if (transport == "unix")
        {
            http.ConnectCallback = async (_, cancellationToken) =>
            {
                var socket = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
                await socket.ConnectAsync(new UnixDomainSocketEndPoint(SocketPath), cancellationToken);
                return new NetworkStream(socket, ownsSocket: true);
            };
        }
        else
        {
            var addresses = _app.Services.GetRequiredService<IServer>().Features.Get<IServerAddressesFeature>()!.Addresses;
            address = addresses.Single(candidate => candidate.StartsWith("http://127.0.0.1:", StringComparison.Ordinal));
        }

        return GrpcChannel.ForAddress(address, new GrpcChannelOptions
        {
            HttpHandler = wrap is null ? http : wrap(http),
            DisposeHttpClient = true,
            MaxReceiveMessageSize = null,
            Credentials = credentials ?? ChannelCredentials.Insecure,
            UnsafeUseInsecureChannelCallCredentials = true,
        });
    }

    public async ValueTask DisposeAsync()
    {
        await _app.DisposeAsync();
        _directory.Delete(recursive: true);
    }
}
