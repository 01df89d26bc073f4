using System.Net;
using System.Net.Sockets;
using Microsoft.AspNetCore.Server.Kestrel.Core;
using Serilog;
using VmmService.Server.Health;
using VmmService.Server.Kds;
using VmmService.Server.Reflection;
using VmmService.Server.Services;
using VmmService.Server.Sessions;
using VmmService.Server.Wire;
using VmmService.V1;

namespace VmmService.Server;

/// <summary>
/// Puts the daemon together: configuration, endpoints, services, shutdown. Used by the program itself, by <c>vmm serve</c>, and by clients that host the daemon
/// in their own process.
/// </summary>
public static class VmmServer
{
    private const int Http2Window = 16 << 20;

    private static readonly TimeSpan DrainLimit = TimeSpan.FromSeconds(25);

    private static readonly Dictionary<string, string> Flags = new()
    {
        ["--unix"] = "Vmm:UnixSocket",
        ["--port"] = "Vmm:Port",
        ["--address"] = "Vmm:Address",
        ["--kds-port"] = "Vmm:KdsPort",
        ["--quiet"] = "Vmm:Quiet",
    };

    /// <summary>Runs the daemon until it is told to stop (SIGTERM or SIGINT drain it).</summary>
    /// <returns>0, or 2 when the configuration or an endpoint cannot be used.</returns>
    public static async Task<int> RunAsync(string[] args)
    {
        try
        {
            await using WebApplication app = Build(args);
            await app.RunAsync();
            return 0;
        }
        catch (Exception problem) when (problem is ServerConfigurationException or IOException or FormatException)
        {
            await Console.Error.WriteLineAsync($"vmm serve: {problem.Message}");
            return 2;
        }
    }

    /// <summary>The daemon, built and not started.</summary>
    /// <param name="args">Flags; see <see cref="VmmServerOptions"/>.</param>
    /// <param name="configure">Last word on the options.</param>
    /// <exception cref="ServerConfigurationException">An option cannot be used.</exception>
    public static WebApplication Build(string[] args, Action<VmmServerOptions>? configure = null)
    {
        WebApplicationBuilder builder = WebApplication.CreateBuilder(new WebApplicationOptions { ContentRootPath = AppContext.BaseDirectory });
        builder.Configuration.AddJsonFile(Path.Combine(Environment.CurrentDirectory, "vmmservice.json"), optional: true);
        builder.Configuration.AddEnvironmentVariables();
        builder.Configuration.AddCommandLine(args, Flags);
        VmmServerOptions options = Options(builder.Configuration, configure);
        ConfigureLogging(builder, options);
        builder.WebHost.ConfigureKestrel(kestrel => ConfigureKestrel(kestrel, options));
        builder.Services.Configure<HostOptions>(host => host.ShutdownTimeout = DrainLimit);
        ConfigureServices(builder.Services, options);

        WebApplication app = builder.Build();
        MapServices(app);
        Announce(app, options);
        return app;
    }

    private static VmmServerOptions Options(ConfigurationManager configuration, Action<VmmServerOptions>? configure)
    {
        var options = new VmmServerOptions();
        try
        {
            configuration.GetSection(VmmServerOptions.Section).Bind(options);
        }
        catch (InvalidOperationException problem)
        {
            throw new ServerConfigurationException($"the configuration cannot be read: {problem.Message} {problem.InnerException?.Message}");
        }
        configure?.Invoke(options);
        if (options.Port is < -1 or > 65535)
        {
            throw new ServerConfigurationException($"port {options.Port} is not a TCP port; use 0 for any free one, -1 for none");
        }
        if (options.KdsPort is < -1 or > 65535)
        {
            throw new ServerConfigurationException($"kds-port {options.KdsPort} is not a TCP port; use 0 for any free one, -1 for none");
        }
        if (!IPAddress.TryParse(options.Address, out _))
        {
            throw new ServerConfigurationException($"'{options.Address}' is not an IP address; use 127.0.0.1, or 0.0.0.0 to be reachable from everywhere");
        }
        if (options.Port == -1 && options.UnixSocket.Length == 0)
        {
            throw new ServerConfigurationException("there is neither a Unix socket nor a TCP port to listen on; set --unix or --port");
        }
        PrepareSocket(options.UnixSocket);
        return options;
    }

    // A socket left by a daemon that died is removed; one that answers is not.
    private static void PrepareSocket(string path)
    {
        if (path.Length == 0)
        {
            return;
        }
        string directory = Path.GetDirectoryName(Path.GetFullPath(path))!;
        if (!Directory.Exists(directory) && !OperatingSystem.IsWindows())
        {
            Directory.CreateDirectory(directory, UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.UserExecute);
        }
        if (!File.Exists(path))
        {
            return;
        }
        using var probe = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        try
        {
            probe.Connect(new UnixDomainSocketEndPoint(path));
        }
        catch (SocketException)
        {
            File.Delete(path);
            return;
        }
        throw new ServerConfigurationException($"another daemon listens on {path}; stop it, or choose another socket with --unix");
    }

    private static void ConfigureLogging(WebApplicationBuilder builder, VmmServerOptions options)
    {
        var level = options.Quiet ? Serilog.Events.LogEventLevel.Error : Serilog.Events.LogEventLevel.Information;
        Serilog.Core.Logger logger = new LoggerConfiguration()
            .MinimumLevel.Is(level)
            .MinimumLevel.Override("Microsoft", options.Quiet ? level : Serilog.Events.LogEventLevel.Warning)
            .MinimumLevel.Override("Grpc", options.Quiet ? level : Serilog.Events.LogEventLevel.Warning)
            .WriteTo.Console(
                formatProvider: System.Globalization.CultureInfo.InvariantCulture, standardErrorFromLevel: Serilog.Events.LogEventLevel.Verbose)
            .ReadFrom.Configuration(builder.Configuration)
            .CreateLogger();
        builder.Logging.ClearProviders();
        builder.Logging.AddSerilog(logger, dispose: true);
    }

    private static void ConfigureKestrel(KestrelServerOptions kestrel, VmmServerOptions options)
    {
        kestrel.AddServerHeader = false;
        // Messages are bounded by gRPC's own limit; an upload is a stream of them and may be longer than Kestrel's limit of one body.
        kestrel.Limits.MaxRequestBodySize = null;
        kestrel.Limits.Http2.InitialStreamWindowSize = Http2Window;
        kestrel.Limits.Http2.InitialConnectionWindowSize = Http2Window;
        if (options.UnixSocket.Length > 0)
        {
            kestrel.ListenUnixSocket(options.UnixSocket, listen => listen.Protocols = HttpProtocols.Http2);
        }
        if (options.Port >= 0)
        {
            kestrel.Listen(IPAddress.Parse(options.Address), options.Port, listen => listen.Protocols = HttpProtocols.Http2);
        }
        if (options.KdsPort >= 0)
        {
            // Without TLS an endpoint speaks one version of HTTP, and verifiers speak the first.
            kestrel.Listen(IPAddress.Parse(options.Address), options.KdsPort, listen => listen.Protocols = HttpProtocols.Http1);
        }
    }

    private static void ConfigureServices(IServiceCollection services, VmmServerOptions options)
    {
        services.AddSingleton(options);
        services.AddSingleton(TimeProvider.System);
        services.AddSingleton<HostRegistry>();
        services.AddSingleton<ExplorationSlots>();
        services.AddHostedService<IdleReaper>();
        services.AddGrpc(grpc =>
        {
            grpc.MaxReceiveMessageSize = options.MaxMessageBytes;
            grpc.MaxSendMessageSize = options.MaxMessageBytes;
            grpc.Interceptors.Add<OutcomeInterceptor>();
            grpc.Interceptors.Add<RecordInterceptor>();
        });
        Google.Protobuf.Reflection.ServiceDescriptor[] served =
        [
            AttestationService.Descriptor, CapabilitiesService.Descriptor, ExploreService.Descriptor, FileService.Descriptor, GuestMemfdService.Descriptor, HostService.Descriptor,
            InspectService.Descriptor, KvmService.Descriptor, ProcessService.Descriptor, PspService.Descriptor, RecordService.Descriptor, ScriptService.Descriptor, SevLegacyService.Descriptor,
            SevPlatformService.Descriptor, SevService.Descriptor, TdxAttestationService.Descriptor, TdxModuleService.Descriptor, TdxService.Descriptor, VcpuService.Descriptor, V1.VmService.Descriptor,
            Grpc.Health.V1.Health.Descriptor,
            Grpc.Reflection.V1.ServerReflection.Descriptor, Grpc.Reflection.V1Alpha.ServerReflection.Descriptor,
        ];
        services.AddSingleton(new ReflectionIndex(served));
        services.AddSingleton(new HealthStatus([.. served.Select(service => service.FullName)]));
    }

    private static void MapServices(WebApplication app)
    {
        app.MapGrpcService<AttestationServiceImpl>();
        app.MapGrpcService<CapabilitiesServiceImpl>();
        app.MapGrpcService<ExploreServiceImpl>();
        app.MapGrpcService<FileServiceImpl>();
        app.MapGrpcService<GuestMemfdServiceImpl>();
        app.MapGrpcService<HostServiceImpl>();
        app.MapGrpcService<InspectServiceImpl>();
        app.MapGrpcService<KvmServiceImpl>();
        app.MapGrpcService<ProcessServiceImpl>();
        app.MapGrpcService<PspServiceImpl>();
        app.MapGrpcService<RecordServiceImpl>();
        app.MapGrpcService<ScriptServiceImpl>();
        app.MapGrpcService<SevLegacyServiceImpl>();
        app.MapGrpcService<SevPlatformServiceImpl>();
        app.MapGrpcService<SevServiceImpl>();
        app.MapGrpcService<TdxAttestationServiceImpl>();
        app.MapGrpcService<TdxModuleServiceImpl>();
        app.MapGrpcService<TdxServiceImpl>();
        app.MapGrpcService<VcpuServiceImpl>();
        app.MapGrpcService<VmServiceImpl>();
        app.MapGrpcService<HealthService>();
        app.MapGrpcService<ReflectionService>();
        app.MapGrpcService<ReflectionV1AlphaService>();
        KeyDistribution.Map(app);
        ProvisioningCertification.Map(app);
    }

    private static void Announce(WebApplication app, VmmServerOptions options)
    {
        Microsoft.Extensions.Logging.ILogger logger = app.Services.GetRequiredService<ILoggerFactory>().CreateLogger("VmmService");
        app.Lifetime.ApplicationStarted.Register(() =>
        {
            if (options.UnixSocket.Length > 0 && !OperatingSystem.IsWindows())
            {
                File.SetUnixFileMode(options.UnixSocket, UnixFileMode.UserRead | UnixFileMode.UserWrite);
            }
            foreach (string address in app.Urls)
            {
                Log.Listening(logger, address);
            }
            if ((options.Port >= 0 || options.KdsPort >= 0) && !IPAddress.IsLoopback(IPAddress.Parse(options.Address)))
            {
                Log.ListeningBeyondLoopback(logger, options.Address);
            }
        });
        app.Lifetime.ApplicationStopping.Register(() =>
        {
            app.Services.GetRequiredService<HealthStatus>().Shutdown();
            Log.Stopping(logger, app.Services.GetRequiredService<HostRegistry>().All.Count());
        });
    }
}

/// <summary>An option of the daemon cannot be used; the message says which, why, and what to do.</summary>
public sealed class ServerConfigurationException(string message) : Exception(message);
