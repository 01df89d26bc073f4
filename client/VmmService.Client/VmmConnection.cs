using System.Net.Sockets;
using System.Runtime.CompilerServices;
using Grpc.Core;
using Grpc.Net.Client;
using VmmService.V1;

namespace VmmService.Client;

/// <summary>
/// A connection to a daemon: the first object of everything here. It makes hosts; <see cref="Stubs"/> are the generated clients for whoever wants the bare
/// messages. Every call of the library passes <see cref="Call{TReply}"/>, which is where gRPC failures become <see cref="VmmServiceException"/>.
/// </summary>
public sealed partial class VmmConnection : IAsyncDisposable
{
    private readonly GrpcChannel _channel;

    private VmmConnection(string address, GrpcChannel channel)
    {
        Address = address;
        _channel = channel;
        Stubs = new VmmStubs(channel.CreateCallInvoker());
    }

    /// <summary>The address as it was given.</summary>
    public string Address { get; }

    /// <summary>The generated clients on this connection. They throw RpcException and never an exception for an errno.</summary>
    public VmmStubs Stubs { get; }

    /// <summary>Makes a connection. Nothing is sent before the first call, so an address where nobody listens shows up there.</summary>
    /// <param name="address"><c>http://127.0.0.1:7788</c>, or <c>unix:///run/user/1000/vmmservice.sock</c>.</param>
    /// <param name="options">Limits; null for the defaults.</param>
    /// <exception cref="ArgumentException">The address is neither.</exception>
    public static VmmConnection Connect(string address, VmmConnectionOptions? options = null)
    {
        ArgumentException.ThrowIfNullOrEmpty(address);
        return Uri.TryCreate(address, UriKind.Absolute, out Uri? uri)
            ? Connect(uri, options)
            : throw new ArgumentException($"'{address}' is not an address: use http://HOST:PORT or unix:///PATH", nameof(address));
    }

    /// <inheritdoc cref="Connect(string, VmmConnectionOptions?)"/>
    public static VmmConnection Connect(Uri address, VmmConnectionOptions? options = null)
    {
        ArgumentNullException.ThrowIfNull(address);
        options ??= new VmmConnectionOptions();
        var handler = new SocketsHttpHandler
        {
            ConnectTimeout = options.ConnectTimeout,
            EnableMultipleHttp2Connections = true,
            InitialHttp2StreamWindowSize = options.Http2WindowBytes,
            PooledConnectionIdleTimeout = Timeout.InfiniteTimeSpan,
            UseProxy = false,
        };
        string target;
        switch (address.Scheme)
        {
            case "http" or "https":
                target = address.ToString();
                break;
            case "unix" when address.LocalPath.StartsWith('/') && address.LocalPath.Length > 1:
                var endPoint = new UnixDomainSocketEndPoint(address.LocalPath);
                handler.ConnectCallback = (_, cancellation) => ConnectUnixAsync(endPoint, cancellation);
                // The authority of requests; the path is known to the callback only.
                target = "http://localhost";
                break;
            default:
                handler.Dispose();
                throw new ArgumentException($"'{address}' is not an address: use http://HOST:PORT or unix:///PATH", nameof(address));
        }

        GrpcChannel channel = GrpcChannel.ForAddress(target, new GrpcChannelOptions
        {
            HttpHandler = handler,
            DisposeHttpClient = true,
            MaxReceiveMessageSize = options.MaxMessageBytes,
            MaxSendMessageSize = options.MaxMessageBytes,
            ThrowOperationCanceledOnCancellation = true,
        });
        return new VmmConnection(address.OriginalString, channel);
    }

    /// <summary>What the daemon is and can do.</summary>
    public Task<CapabilitiesResponse> GetCapabilitiesAsync(CancellationToken cancellation = default) =>
        Call(Stubs.Capabilities.CapabilitiesAsync(new CapabilitiesRequest(), cancellationToken: cancellation));

    /// <summary>The kernel generations that a host can run.</summary>
    public async Task<IReadOnlyList<Profile>> ListProfilesAsync(CancellationToken cancellation = default) =>
        (await Call(Stubs.Hosts.ListProfilesAsync(new ListProfilesRequest(), cancellationToken: cancellation))).Profiles;

    /// <summary>The hosts of the daemon, of all its clients.</summary>
    public async Task<IReadOnlyList<Host>> ListHostsAsync(CancellationToken cancellation = default) =>
        (await Call(Stubs.Hosts.ListHostsAsync(new ListHostsRequest(), cancellationToken: cancellation))).Hosts;

    /// <summary>The behaviours in which two kernel generations differ; <see cref="Behaviour.ParentValue"/> is that of <paramref name="from"/>.</summary>
    public async Task<IReadOnlyList<Behaviour>> CompareProfilesAsync(string from, string to, CancellationToken cancellation = default) =>
        (await Call(Stubs.Hosts.CompareProfilesAsync(new CompareProfilesRequest { From = from, To = to }, cancellationToken: cancellation))).Differences;

    /// <summary>The steps of the script language.</summary>
    public Task<ListStepsResponse> ListScriptStepsAsync(CancellationToken cancellation = default) =>
        Call(Stubs.Scripts.ListStepsAsync(new ListStepsRequest(), cancellationToken: cancellation));

    /// <summary>Starts a script: on a host that exists, or on one that is booted for it.</summary>
    /// <param name="header">Host, variables, whether to go on after unmet expectations.</param>
    /// <param name="cancellation">Ends the script.</param>
    public Task<RemoteScript> StartScriptAsync(ScriptHeader header, CancellationToken cancellation = default) => RemoteScript.StartAsync(this, header, cancellation);

    /// <summary>Explores a scenario under each of its profiles: a start, progress and the result of each.</summary>
    /// <exception cref="VmmServiceException">InvalidArgument, with a <see cref="ScriptError"/> among the details, where the scenario is wrong.</exception>
    public IAsyncEnumerable<ExploreResponse> ExploreAsync(ExploreRequest request, CancellationToken cancellation = default) =>
        Stream(() => Stubs.Explore.Explore(request, cancellationToken: cancellation), cancellation);

    /// <summary>Runs one schedule of a scenario again, step by step.</summary>
    public Task<ReplayScheduleResponse> ReplayScheduleAsync(ReplayScheduleRequest request, CancellationToken cancellation = default) =>
        Call(Stubs.Explore.ReplayScheduleAsync(request, cancellationToken: cancellation));

    /// <summary>The calls that were made on a host, after a header; <see cref="Recording.Read"/> reads one.</summary>
    public IAsyncEnumerable<GetRecordingResponse> GetRecordingAsync(string host, CancellationToken cancellation = default) =>
        Stream(() => Stubs.Records.GetRecording(new GetRecordingRequest { Host = host }, cancellationToken: cancellation), cancellation);

    /// <summary>Boots a kernel on a new machine. Disposing the host deletes it.</summary>
    /// <param name="profile">Kernel generation, for example K72; null for the daemon's default.</param>
    /// <param name="seed">Keys, report ids and nonces of the host come from it; the same seed and calls give the same replies.</param>
    /// <param name="machine">Silicon and firmware; null for the daemon's default, a Milan-like machine.</param>
    /// <param name="kernel">How the kernel was built and started; null for everything switched on.</param>
    /// <param name="deleteWhenEmpty">The host also goes away with its last process, so a client that crashes leaves nothing behind.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    /// <exception cref="VmmServiceException">Unknown profile, machine out of limits, too many hosts.</exception>
    public async Task<RemoteHost> CreateHostAsync(
        string? profile = null, ulong seed = 0, MachineConfig? machine = null, KernelConfig? kernel = null, bool deleteWhenEmpty = true, CancellationToken cancellation = default)
    {
        var request = new CreateHostRequest { Profile = profile ?? "", Seed = seed, Machine = machine, Kernel = kernel, DeleteWhenEmpty = deleteWhenEmpty };
        CreateHostResponse response = await Call(Stubs.Hosts.CreateHostAsync(request, cancellationToken: cancellation));
        return new RemoteHost(this, response.Host, owned: true);
    }

    /// <summary>A host that exists already. Disposing the object leaves the host alone.</summary>
    /// <exception cref="VmmServiceException">There is no such host.</exception>
    public async Task<RemoteHost> GetHostAsync(string host, CancellationToken cancellation = default)
    {
        GetHostResponse response = await Call(Stubs.Hosts.GetHostAsync(new GetHostRequest { Host = host }, cancellationToken: cancellation));
        return new RemoteHost(this, response.Host, owned: false);
    }

    public async ValueTask DisposeAsync()
    {
        await _channel.ShutdownAsync();
        _channel.Dispose();
    }

    internal async Task<TReply> Call<TReply>(AsyncUnaryCall<TReply> call)
    {
        using (call)
        {
            try
            {
                return await call.ResponseAsync;
            }
            catch (RpcException exception)
            {
                throw new VmmServiceException(exception, Address);
            }
        }
    }

    internal async IAsyncEnumerable<T> Stream<T>(Func<AsyncServerStreamingCall<T>> start, [EnumeratorCancellation] CancellationToken cancellation)
    {
        using AsyncServerStreamingCall<T> call = start();
        await foreach (T message in Read(call.ResponseStream, cancellation))
            yield return message;
    }

    internal async IAsyncEnumerable<T> Read<T>(IAsyncStreamReader<T> stream, [EnumeratorCancellation] CancellationToken cancellation)
    {
        while (true)
        {
            try
            {
                if (!await stream.MoveNext(cancellation))
                    yield break;
            }
            catch (RpcException exception)
            {
                throw new VmmServiceException(exception, Address);
            }

            yield return stream.Current;
        }
    }

    private static async ValueTask<Stream> ConnectUnixAsync(UnixDomainSocketEndPoint endPoint, CancellationToken cancellation)
    {
        // The socket's own word for this is "cannot assign requested address", which sends people looking in the wrong place.
        if (!File.Exists(endPoint.ToString()))
            throw new FileNotFoundException("there is no such socket");

        var socket = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        try
        {
            await socket.ConnectAsync(endPoint, cancellation);
            return new NetworkStream(socket, ownsSocket: true);
        }
        catch
        {
            socket.Dispose();
            throw;
        }
    }
}

/// <summary>The generated clients, one for each service.</summary>
public sealed class VmmStubs(CallInvoker invoker)
{
    /// <summary>What the clients call through, for calls that are made by name.</summary>
    public CallInvoker Invoker { get; } = invoker;

    public AttestationService.AttestationServiceClient Attestation { get; } = new(invoker);

    public CapabilitiesService.CapabilitiesServiceClient Capabilities { get; } = new(invoker);

    public HostService.HostServiceClient Hosts { get; } = new(invoker);

    public ProcessService.ProcessServiceClient Processes { get; } = new(invoker);

    public KvmService.KvmServiceClient Kvm { get; } = new(invoker);

    public VmService.VmServiceClient Vm { get; } = new(invoker);

    public VcpuService.VcpuServiceClient Vcpu { get; } = new(invoker);

    public FileService.FileServiceClient Files { get; } = new(invoker);

    public GuestMemfdService.GuestMemfdServiceClient GuestMemfd { get; } = new(invoker);

    public SevService.SevServiceClient Sev { get; } = new(invoker);

    public SevLegacyService.SevLegacyServiceClient SevLegacy { get; } = new(invoker);

    public PspService.PspServiceClient Psp { get; } = new(invoker);

    public SevPlatformService.SevPlatformServiceClient SevPlatform { get; } = new(invoker);

    public TdxService.TdxServiceClient Tdx { get; } = new(invoker);

    public TdxModuleService.TdxModuleServiceClient TdxModule { get; } = new(invoker);

    public TdxAttestationService.TdxAttestationServiceClient TdxAttestation { get; } = new(invoker);

    public InspectService.InspectServiceClient Inspect { get; } = new(invoker);

    public ExploreService.ExploreServiceClient Explore { get; } = new(invoker);

    public RecordService.RecordServiceClient Records { get; } = new(invoker);

    public ScriptService.ScriptServiceClient Scripts { get; } = new(invoker);

    /// <summary>The standard health service.</summary>
    public Grpc.Health.V1.Health.HealthClient Health { get; } = new(invoker);
}
