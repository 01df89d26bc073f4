using BenchmarkDotNet.Attributes;
using Grpc.Health.V1;
using Microsoft.AspNetCore.Builder;
using SimKvm.Abi;
using VmmService.Client;
using VmmService.Server;
using VmmService.V1;

namespace SimKvm.Bench;

/// <summary>An ioctl as an RPC over a Unix socket, next to an RPC of the same server that does nothing (health check).</summary>
public class RpcBench
{
    private readonly string _folder = Directory.CreateTempSubdirectory("vmm-bench-").FullName;
    private WebApplication _server = null!;
    private VmmConnection _connection = null!;
    private VmmStubs _stubs = null!;
    private CheckExtensionRequest _request = null!;

    // In-process runs do not wait for an asynchronous setup.
    [GlobalSetup]
    public void Setup() => SetupAsync().GetAwaiter().GetResult();

    [GlobalCleanup]
    public void Cleanup() => CleanupAsync().GetAwaiter().GetResult();

    [Benchmark(Baseline = true, Description = "an RPC that does nothing (grpc.health.v1 Check)")]
    public async Task<HealthCheckResponse> EmptyRpc() => await _stubs.Health.CheckAsync(new HealthCheckRequest());

    [Benchmark(Description = "KvmService.CheckExtension")]
    public async Task<CheckExtensionResponse> CheckExtension() => await _stubs.Kvm.CheckExtensionAsync(_request);

    private async Task SetupAsync()
    {
        string socket = Path.Combine(_folder, "vmm.sock");
        _server = VmmServer.Build([], options =>
        {
            options.UnixSocket = socket;
            options.Port = -1;
            options.Quiet = true;
        });
        await _server.StartAsync();
        _connection = VmmConnection.Connect("unix://" + socket);
        _stubs = _connection.Stubs;
        string host = (await _stubs.Hosts.CreateHostAsync(new CreateHostRequest())).Host.Host_;
        uint pid = (await _stubs.Processes.CreateProcessAsync(new CreateProcessRequest { Host = host })).Pid;
        int fd = (int)(await _stubs.Processes.OpenAsync(new OpenRequest { Host = host, Pid = pid, Path = "/dev/kvm" })).Outcome.Value;
        _request = new CheckExtensionRequest { Host = host, Pid = pid, Fd = fd, Cap = KvmCap.VM_TYPES };
    }

    private async Task CleanupAsync()
    {
        await _connection.DisposeAsync();
        await _server.StopAsync();
        await _server.DisposeAsync();
        Directory.Delete(_folder, recursive: true);
    }
}
