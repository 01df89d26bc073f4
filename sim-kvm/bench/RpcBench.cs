using BenchmarkDotNet.Attributes;
using Grpc.Health.V1;
using Grpc.Net.Client;
using Microsoft.AspNetCore.Builder;
using SimKvm.Abi;
using VmmService.Server;
using VmmService.V1;

namespace SimKvm.Bench;

/// <summary>An ioctl as an RPC over a Unix socket, next to an RPC of the same server that does nothing (health check).</summary>
public class RpcBench
{
    private readonly string _folder = Directory.CreateTempSubdirectory("vmm-bench-").FullName;
    private WebApplication _server = null!;
    private GrpcChannel _channel = null!;
    private Health.HealthClient _health = null!;
    private KvmService.KvmServiceClient _kvm = null!;
    private CheckExtensionRequest _request = null!;

    [GlobalSetup]
    public async Task Setup()
    {
        string socket = Path.Combine(_folder, "vmm.sock");
        _server = VmmServer.Build([], options =>
        {
            options.UnixSocket = socket;
            options.Port = -1;
            options.Quiet = true;
        });
        await _server.StartAsync();
        _channel = VmmService.Client.VmmConnection.Connect("unix://" + socket).Channel;
        _health = new Health.HealthClient(_channel);
        _kvm = new KvmService.KvmServiceClient(_channel);
        string host = (await new HostService.HostServiceClient(_channel).CreateHostAsync(new CreateHostRequest())).Host.Host_;
        var processes = new ProcessService.ProcessServiceClient(_channel);
        uint pid = (await processes.CreateProcessAsync(new CreateProcessRequest { Host = host })).Pid;
        int fd = (int)(await processes.OpenAsync(new OpenRequest { Host = host, Pid = pid, Path = "/dev/kvm" })).Outcome.Value;
        _request = new CheckExtensionRequest { Host = host, Pid = pid, Fd = fd, Cap = KvmCap.VM_TYPES };
    }

    [GlobalCleanup]
    public async Task Cleanup()
    {
        _channel.Dispose();
        await _server.StopAsync();
        await _server.DisposeAsync();
        Directory.Delete(_folder, recursive: true);
    }

    [Benchmark(Baseline = true, Description = "grpc.health.v1 Check (an empty RPC)")]
    public async Task<HealthCheckResponse> EmptyRpc() => await _health.CheckAsync(new HealthCheckRequest());

    [Benchmark(Description = "KvmService.CheckExtension")]
    public async Task<CheckExtensionResponse> CheckExtension() => await _kvm.CheckExtensionAsync(_request);
}
