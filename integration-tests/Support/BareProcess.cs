using VmmService.Client;
using VmmService.V1;

namespace VmmService.IntegrationTests.Support;

/// <summary>A host with one process and /dev/kvm open, driven by bare messages: what a client in another language does.</summary>
public sealed class BareProcess : IAsyncDisposable
{
    private BareProcess(VmmStubs stubs, string host, uint pid, int kvm)
    {
        Stubs = stubs;
        Host = host;
        Pid = pid;
        Kvm = kvm;
    }

    public VmmStubs Stubs { get; }

    public string Host { get; }

    public uint Pid { get; }

    /// <summary>fd of /dev/kvm.</summary>
    public int Kvm { get; }

    public static async Task<BareProcess> Start(VmmStubs stubs, string profile = "K72", MachineConfig? machine = null)
    {
        string host = (await stubs.Hosts.CreateHostAsync(new CreateHostRequest { Profile = profile, Seed = 1, Machine = machine })).Host.Host_;
        uint pid = (await stubs.Processes.CreateProcessAsync(new CreateProcessRequest { Host = host })).Pid;
        var process = new BareProcess(stubs, host, pid, 3);
        Outcome opened = await process.Open("/dev/kvm");
        return new BareProcess(stubs, host, pid, (int)opened.Value);
    }

    public async Task<Outcome> Open(string path) => (await Stubs.Processes.OpenAsync(new OpenRequest { Host = Host, Pid = Pid, Path = path })).Outcome;

    public async Task<int> CreateVm(VmType type) =>
        (int)(await Stubs.Kvm.CreateVmAsync(new CreateVmRequest { Host = Host, Pid = Pid, Fd = Kvm, VmType = type })).Outcome.Value;

    public async Task<Outcome> SetRegion(int vm, KvmUserspaceMemoryRegion2 region) =>
        (await Stubs.Vm.SetUserMemoryRegion2Async(new SetUserMemoryRegion2Request { Host = Host, Pid = Pid, Fd = vm, Region = region })).Outcome;

    public async Task<Outcome> SetAttributes(int vm, ulong address, ulong size, ulong attributes) =>
        (await Stubs.Vm.SetMemoryAttributesAsync(new SetMemoryAttributesRequest
        {
            Host = Host,
            Pid = Pid,
            Fd = vm,
            Attributes = new KvmMemoryAttributes { Address = address, Size = size, Attributes = attributes },
        })).Outcome;

    public async Task<int> CreateGuestMemfd(int vm, ulong size) =>
        (int)(await Stubs.Vm.CreateGuestMemfdAsync(new CreateGuestMemfdRequest
        {
            Host = Host,
            Pid = Pid,
            Fd = vm,
            GuestMemfd = new KvmCreateGuestMemfd { Size = size },
        })).Outcome.Value;

    /// <summary>An SNP VM with 2 MiB of private memory at gpa 0 and its launch started.</summary>
    public async Task<SnpVm> StartSnpVm()
    {
        int sev = (int)(await Open("/dev/sev")).Value;
        int vm = await CreateVm(VmType.Snp);
        await Stubs.Sev.Init2Async(new Init2Request { Host = Host, Pid = Pid, Fd = vm, SevFd = sev, Init = new KvmSevInit() });
        int memfd = await CreateGuestMemfd(vm, 2 << 20);
        await SetRegion(vm, new KvmUserspaceMemoryRegion2 { Flags = 4, MemorySize = 2 << 20, GuestMemfd = (uint)memfd });
        await SetAttributes(vm, 0, 2 << 20, 8);
        await Stubs.Sev.SnpLaunchStartAsync(new SnpLaunchStartRequest
        {
            Host = Host,
            Pid = Pid,
            Fd = vm,
            SevFd = sev,
            Start = new KvmSevSnpLaunchStart { Policy = 0x30000 },
        });
        return new SnpVm(this, vm, sev, memfd);
    }

    public async ValueTask DisposeAsync() => await Stubs.Hosts.DeleteHostAsync(new DeleteHostRequest { Host = Host });
}

/// <summary>An SNP VM whose launch was started.</summary>
public sealed record SnpVm(BareProcess Process, int Fd, int SevFd, int Memfd)
{
    public async Task<SnpLaunchUpdateResponse> Update(ulong gfn, ulong len, SnpPageType type, Content? content = null, ulong uaddr = 0) =>
        await Process.Stubs.Sev.SnpLaunchUpdateAsync(new SnpLaunchUpdateRequest
        {
            Host = Process.Host,
            Pid = Process.Pid,
            Fd = Fd,
            SevFd = SevFd,
            Update = new KvmSevSnpLaunchUpdate { GfnStart = gfn, Len = len, Type = type, Uaddr = uaddr },
            Content = content,
        });

    public async Task<DescribeVmResponse> Describe() =>
        await Process.Stubs.Inspect.DescribeVmAsync(new DescribeVmRequest { Host = Process.Host, Pid = Process.Pid, Fd = Fd });

    public static Content Page(byte value, int pages = 1) =>
        new() { Pattern = new Pattern { Bytes = Google.Protobuf.ByteString.CopyFrom(value), Length = (ulong)pages * 4096 } };
}
