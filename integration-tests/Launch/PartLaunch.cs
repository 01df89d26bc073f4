using Google.Protobuf;
using VmmService.Client;
using VmmService.Client.Launch;
using VmmService.Client.Launching;
using VmmService.IntegrationTests.Support;
using VmmService.V1;

namespace VmmService.IntegrationTests.Launch;

/// <summary>An initialised SNP VM that gets pages and vCPUs one by one, for launches that no VMM would make.</summary>
internal sealed class PartLaunch : IAsyncDisposable
{
    private const ulong Page = KernelNumbers.PAGE_SIZE;

    private readonly RemoteHost _host;
    private readonly RemoteProcess _process;
    private readonly Client.Kvm _kvm;
    private uint _slots;
    private ulong _vcpus;

    private PartLaunch(RemoteHost host, RemoteProcess process, Client.Kvm kvm, Client.Vm vm, SevDevice sev)
    {
        _host = host;
        _process = process;
        _kvm = kvm;
        Vm = vm;
        Sev = sev;
    }

    public Client.Vm Vm { get; }

    public SevDevice Sev { get; }

    public SnpLaunch Snp => Vm.SnpLaunch(Sev);

    public static async Task<PartLaunch> CreateAsync(Daemon daemon, ulong vmsaFeatures = 0, MachineConfig? machine = null)
    {
        machine ??= new MachineConfig();
        machine.SupportedVmsaFeatures = vmsaFeatures | 0x20;
        RemoteHost host = await daemon.Connection.CreateHostAsync(machine: machine);
        RemoteProcess process = await host.CreateProcessAsync();
        Client.Kvm kvm = await process.OpenKvmAsync();
        SevDevice sev = await process.OpenSevAsync();
        Client.Vm vm = await kvm.CreateVmAsync(VmType.Snp);
        await vm.SnpLaunch(sev).Init2Async(vmsaFeatures);
        return new PartLaunch(host, process, kvm, vm, sev);
    }

    /// <summary>Gives the guest a page of private memory.</summary>
    public async Task AddPageAsync(ulong gpa) =>
        _ = await GuestMemory.CreateAsync(Vm, $"page 0x{gpa:x}", _slots++, gpa, Page, CancellationToken.None);

    public async Task AddVcpuAsync(VcpuResetState state)
    {
        Client.Vcpu vcpu = await Vm.CreateVcpuAsync(_vcpus++);
        await VcpuRegisters.ApplyAsync(vcpu, state, await _kvm.GetSupportedCpuidAsync(), CancellationToken.None);
    }

    /// <summary>LAUNCH_UPDATE of one page.</summary>
    public async Task<SnpLaunchUpdateResponse> TryUpdateAsync(ulong gpa, V1.SnpPageType type, byte[] content) => await Vm.Process.Connection.Stubs.Sev.SnpLaunchUpdateAsync(
        new SnpLaunchUpdateRequest
        {
            Host = _host.Id,
            Pid = _process.Pid,
            Fd = Vm.Fd,
            SevFd = Sev.Fd,
            Update = new KvmSevSnpLaunchUpdate { GfnStart = gpa / Page, Len = Page, Type = type },
            Content = new Content { Inline = ByteString.CopyFrom(content) },
        });

    public async Task UpdateAsync(ulong gpa, V1.SnpPageType type, byte[] content)
    {
        SnpLaunchUpdateResponse response = await TryUpdateAsync(gpa, type, content);
        if (response.Outcome.Errno != 0)
            throw new InvalidOperationException($"page 0x{gpa:x} of type {type}: {response.Outcome.ErrnoName}, firmware {response.Sev.ErrorName}");
    }

    public async Task<IReadOnlyList<TranscriptRecord>> TranscriptAsync() => await Snp.Transcript().ToListAsync();

    public async ValueTask DisposeAsync()
    {
        await _process.DisposeAsync();
        await _host.DisposeAsync();
    }
}
