using Google.Protobuf;
using VmmService.Client;
using VmmService.V1;

namespace VmmService.IntegrationTests.Conformance.RealKvm;

/// <summary>A process on a simulated host, called over gRPC.</summary>
internal sealed partial class SimulatedKernel : IKernel
{
    private readonly VmmStubs _stubs;
    private readonly string _host;
    private readonly uint _pid;

    private SimulatedKernel(VmmStubs stubs, string host, uint pid)
    {
        _stubs = stubs;
        _host = host;
        _pid = pid;
    }

    /// <summary>Why the last call failed, for people.</summary>
    public string Why { get; private set; } = "";

    public static async Task<SimulatedKernel> Start(VmmStubs stubs, CreateHostRequest request)
    {
        string host = (await stubs.Hosts.CreateHostAsync(request)).Host.Host_;
        return new SimulatedKernel(stubs, host, (await stubs.Processes.CreateProcessAsync(new CreateProcessRequest { Host = host })).Pid);
    }

    public async Task<Answer> Open(string path) =>
        Of((await _stubs.Processes.OpenAsync(new OpenRequest { Host = _host, Pid = _pid, Path = path })).Outcome);

    public async Task<Answer> Close(int fd) => Of((await _stubs.Processes.CloseAsync(new CloseRequest { Host = _host, Pid = _pid, Fd = fd })).Outcome);

    public async Task<Answer> Ioctl(int fd, uint request, ulong argument) =>
        Of((await _stubs.Processes.RawIoctlAsync(new RawIoctlRequest { Host = _host, Pid = _pid, Fd = fd, Request = request, Arg = argument })).Outcome);

    public async Task<Answer> Ioctl(int fd, uint request, byte[] argument)
    {
        RawIoctlResponse response = await _stubs.Processes.RawIoctlAsync(
            new RawIoctlRequest { Host = _host, Pid = _pid, Fd = fd, Request = request, Data = ByteString.CopyFrom(argument) });
        response.Data.CopyTo(argument, 0);
        return Of(response.Outcome);
    }

    public async Task<Answer> Mmap(ulong length, uint prot, uint flags, int fd, ulong offset) =>
        Of((await _stubs.Processes.MmapAsync(
            new MmapRequest { Host = _host, Pid = _pid, Length = length, Prot = prot, Flags = flags, Fd = fd, Offset = offset })).Outcome);

    public async Task<Answer> Munmap(ulong address, ulong length) =>
        Of((await _stubs.Processes.MunmapAsync(new MunmapRequest { Host = _host, Pid = _pid, Addr = address, Length = length })).Outcome);

    public async Task<Answer> Fallocate(int fd, int mode, long offset, long length) =>
        Of((await _stubs.GuestMemfd.FallocateAsync(
            new FallocateRequest { Host = _host, Pid = _pid, Fd = fd, Mode = unchecked((uint)mode), Offset = offset, Len = length })).Outcome);

    public async Task<(Answer Answer, ulong Size, ulong Blocks, uint Mode)> Fstat(int fd)
    {
        FstatResponse response = await _stubs.GuestMemfd.FstatAsync(new FstatRequest { Host = _host, Pid = _pid, Fd = fd });
        return (Of(response.Outcome), response.StSize, response.StBlocks, response.StMode);
    }

    public async Task<(Answer Answer, byte[] Bytes)> Load(ulong address, int length)
    {
        ReadMemoryResponse response = await _stubs.Processes.ReadMemoryAsync(
            new ReadMemoryRequest { Host = _host, Pid = _pid, Addr = address, Length = (ulong)length });
        byte[] bytes = new byte[length];
        response.Data.CopyTo(bytes, 0);
        return (Of(response.Outcome), bytes);
    }

    public async Task<Answer> Store(ulong address, byte[] bytes) =>
        Of((await _stubs.Processes.WriteMemoryAsync(
            new WriteMemoryRequest { Host = _host, Pid = _pid, Addr = address, Content = new Content { Inline = ByteString.CopyFrom(bytes) } })).Outcome);

    public async ValueTask DisposeAsync() => await _stubs.Hosts.DeleteHostAsync(new DeleteHostRequest { Host = _host });

    private Answer Of(Outcome outcome)
    {
        Why = outcome.Text;
        return outcome.Errno != 0 ? new Answer(outcome.Errno, 0) : new Answer(0, outcome.Value);
    }
}
