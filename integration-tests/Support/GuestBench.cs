using Google.Protobuf;
using VmmService.Client;
using VmmService.V1;

namespace VmmService.IntegrationTests.Support;

/// <summary>
/// A host with one process, one VM and one vCPU: what a scenario of guest memory needs. Names without Try must succeed; those with Try give the reply, errno or not.
/// </summary>
public sealed class GuestBench : IAsyncDisposable
{
    public const ulong Page = KernelNumbers.PAGE_SIZE;

    private SnpLaunch? _launch;

    private GuestBench(RemoteHost host, RemoteProcess process, Client.Kvm kvm, Client.Vm vm, Client.Vcpu? vcpu)
    {
        Host = host;
        Process = process;
        Kvm = kvm;
        Vm = vm;
        Vcpu = vcpu!;
    }

    public RemoteHost Host { get; }

    public RemoteProcess Process { get; }

    public Client.Kvm Kvm { get; }

    public Client.Vm Vm { get; }

    /// <summary>Not there on an SNP VM: its vCPUs come after INIT2.</summary>
    public Client.Vcpu Vcpu { get; }

    public SnpLaunch Launch => _launch ?? throw new InvalidOperationException("the VM is no SNP VM");

    public static async Task<GuestBench> CreateAsync(Daemon daemon, VmType type = VmType.SwProtected, string profile = "K72")
    {
        RemoteHost host = await daemon.Connection.CreateHostAsync(profile);
        RemoteProcess process = await host.CreateProcessAsync();
        Client.Kvm kvm = await process.OpenKvmAsync();
        Client.Vm vm = await kvm.CreateVmAsync(type);
        return new GuestBench(host, process, kvm, vm, type == VmType.Snp ? null : await vm.CreateVcpuAsync(0));
    }

    /// <summary>An SNP VM between LAUNCH_START and LAUNCH_FINISH, with private memory at gpa 0 in slot 0.</summary>
    public static async Task<GuestBench> StartSnpAsync(Daemon daemon, ulong pages, string profile = "K72")
    {
        GuestBench bench = await CreateAsync(daemon, VmType.Snp, profile);
        bench._launch = bench.Vm.SnpLaunch(await bench.Process.OpenSevAsync());
        await bench._launch.Init2Async();
        bench.Memfd = await bench.AddGmemSlot(0, 0, pages);
        await bench.SetPrivate(0, pages);
        await bench._launch.StartAsync();
        return bench;
    }

    /// <summary>The guest_memfd of <see cref="StartSnpAsync"/>.</summary>
    public Client.GuestMemfd Memfd { get; private set; } = null!;

    /// <summary>A slot of ordinary memory; gives its user address.</summary>
    public async Task<ulong> AddSlot(uint slot, ulong gpa, ulong pages, uint flags = 0)
    {
        ulong uaddr = await Process.MmapAsync(pages * Page);
        await Vm.SetUserMemoryRegion2Async(Region(slot, flags, gpa, pages, uaddr));
        return uaddr;
    }

    /// <summary>A slot with a guest_memfd of its own.</summary>
    public async Task<Client.GuestMemfd> AddGmemSlot(uint slot, ulong gpa, ulong pages, ulong uaddr = 0, ulong flags = 0)
    {
        Client.GuestMemfd memfd = await Vm.CreateGuestMemfdAsync(pages * Page, flags);
        await Vm.SetUserMemoryRegion2Async(Region(slot, KernelNumbers.KVM_MEM_GUEST_MEMFD, gpa, pages, uaddr, memfd.Fd));
        return memfd;
    }

    public async Task<Outcome> TrySetRegion(KvmUserspaceMemoryRegion2 region) => (await Vm.SetUserMemoryRegion2Async(region).Reply).Outcome;

    public static KvmUserspaceMemoryRegion2 Region(uint slot, uint flags, ulong gpa, ulong pages, ulong uaddr = 0, int memfd = -1, ulong offset = 0) => new()
    {
        Slot = slot,
        Flags = flags,
        GuestPhysAddr = gpa,
        MemorySize = pages * Page,
        UserspaceAddr = uaddr,
        GuestMemfd = unchecked((uint)memfd),
        GuestMemfdOffset = offset,
    };

    public async Task<Outcome> TryCreateMemfd(ulong size, ulong flags = 0) => (await Vm.CreateGuestMemfdAsync(size, flags).Reply).Outcome;

    public async Task SetPrivate(ulong gpa, ulong pages) => await Vm.SetMemoryAttributesAsync(gpa, pages * Page, KernelNumbers.KVM_MEMORY_ATTRIBUTE_PRIVATE);

    public async Task SetShared(ulong gpa, ulong pages) => await Vm.SetMemoryAttributesAsync(gpa, pages * Page, 0);

    public async Task<Outcome> TrySetAttributes(ulong address, ulong size, ulong attributes, ulong flags = 0) =>
        (await Vm.SetMemoryAttributesAsync(new KvmMemoryAttributes { Address = address, Size = size, Attributes = attributes, Flags = flags }).Reply).Outcome;

    /// <summary>mmu_invalidate_seq</summary>
    public async Task<ulong> Seq() => (await Vm.DescribeAsync()).MmuInvalidateSeq;

    public async Task<ulong> AllocatedPages() => (await Host.GetStateAsync()).AllocatedPages;

    /// <summary>Loads a program and runs the vCPU once.</summary>
    public async Task<RunResponse> Run(params GuestStep[] program)
    {
        await Vcpu.LoadProgramAsync(program);
        return await Continue();
    }

    /// <summary>Runs the vCPU on.</summary>
    public Task<RunResponse> Continue(RunPageUpdate? update = null) => Vcpu.RunAsync(update).Reply;

    /// <summary>What the guest loads from a gpa, in a program of its own that must run to its end.</summary>
    public async Task<byte[]> GuestRead(ulong gpa, ulong length)
    {
        RunResponse run = await Run(Guest.Read(gpa, length), Guest.Halt());
        return run is { Outcome.Errno: 0, Run.ExitReason: KernelNumbers.KVM_EXIT_HLT }
            ? run.Results[0].Data.ToByteArray()
            : throw new InvalidOperationException($"the guest's read ended with {run.Outcome.ErrnoName} {run.Run}");
    }

    /// <summary>The guest stores; must run to its end.</summary>
    public async Task GuestWrite(ulong gpa, params byte[] data)
    {
        RunResponse run = await Run(Guest.Write(gpa, data), Guest.Halt());
        if (run is not { Outcome.Errno: 0, Run.ExitReason: KernelNumbers.KVM_EXIT_HLT })
            throw new InvalidOperationException($"the guest's write ended with {run.Outcome.ErrnoName} {run.Run}");
    }

    /// <summary>KVM_PRE_FAULT_MEMORY with every field.</summary>
    public async Task<PreFaultMemoryResponse> PreFault(ulong gpa, ulong size, ulong flags = 0) =>
        await Process.Connection.Stubs.Vcpu.PreFaultMemoryAsync(new PreFaultMemoryRequest
        {
            Host = Host.Id,
            Pid = Process.Pid,
            Fd = Vcpu.Fd,
            Range = new KvmPreFaultMemory { Gpa = gpa, Size = size, Flags = flags },
        });

    /// <summary>SNP_LAUNCH_UPDATE, once.</summary>
    public Task<SnpLaunchUpdateResponse> Populate(ulong gfn, ulong pages, ReadOnlyMemory<byte> content, SnpPageType type = SnpPageType.Normal) => Launch.UpdateOnceAsync(
        new KvmSevSnpLaunchUpdate { GfnStart = gfn, Len = pages * Page, Type = type }, new Content { Inline = UnsafeByteOperations.UnsafeWrap(content) }).Reply;

    /// <summary>Pages full of the bytes first, first + 1, ...</summary>
    public static byte[] Filled(int pages, byte first = 1)
    {
        byte[] bytes = new byte[pages * (int)Page];
        for (int i = 0; i < pages; i++)
            bytes.AsSpan(i * (int)Page, (int)Page).Fill((byte)(first + i));
        return bytes;
    }

    public async ValueTask DisposeAsync()
    {
        await Process.DisposeAsync();
        await Host.DisposeAsync();
    }
}
