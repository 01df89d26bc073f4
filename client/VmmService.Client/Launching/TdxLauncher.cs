using Google.Protobuf;
using VmmService.Client.Launch;
using VmmService.V1;

namespace VmmService.Client.Launching;

/// <summary>
/// Performs a TD's launch ioctl by ioctl the way QEMU does (tdx.md 6.5): VM, split irqchip, INIT_VM, vCPUs with their CPUID and INIT_VCPU, memory (user mapping, guest_memfd,
/// slot, private attribute), an INIT_MEM_REGION for each region of the plan in its order, FINALIZE_VM. What to launch is the plan's (<see cref="TdxLaunchPlan"/>, next door in
/// Launch); nothing is computed here that the simulated machine measures.
/// </summary>
public sealed class TdxLauncher
{
    private const uint GuestPhysicalBitsLeaf = 0x8000_0008;
    private const int GuestPhysicalBitsShift = 16;

    private readonly RemoteProcess _process;
    private readonly TdxLaunchPlan _plan;
    private readonly TdxLaunchOptions _options;
    private readonly LaunchSteps _steps;

    private TdxLauncher(RemoteProcess process, TdxLaunchPlan plan, TdxLaunchOptions options, IProgress<LaunchProgress>? progress)
    {
        _process = process;
        _plan = plan;
        _options = options;
        _steps = new LaunchSteps(2 * plan.Pages, progress);
    }

    /// <summary>Launches a TD in <paramref name="process"/>.</summary>
    /// <param name="process">The VMM process; its host's machine has to be an Intel one with TDX.</param>
    /// <param name="plan">What is added and measured.</param>
    /// <param name="options">Attributes, vCPUs; null for the defaults.</param>
    /// <param name="progress">Told of each step.</param>
    /// <param name="cancellation">Stops between two calls; what was opened is closed.</param>
    /// <exception cref="LaunchException">A step failed; the inner exception is the kernel's or the daemon's answer. What was opened is closed.</exception>
    public static async Task<LaunchedTd> LaunchAsync(
        RemoteProcess process,
        TdxLaunchPlan plan,
        TdxLaunchOptions? options = null,
        IProgress<LaunchProgress>? progress = null,
        CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(process);
        ArgumentNullException.ThrowIfNull(plan);
        var launcher = new TdxLauncher(process, plan, options ?? new TdxLaunchOptions(), progress);
        return await launcher._steps.RunAsync(() => launcher.RunAsync(cancellation));
    }

    private async Task<LaunchedTd> RunAsync(CancellationToken cancellation)
    {
        _steps.Begin("create a TD");
        Kvm kvm = _steps.Held.Hold(await _process.OpenKvmAsync(cancellation));
        Vm vm = _steps.Held.Hold(await kvm.CreateVmAsync(VmType.Tdx, cancellation));
        await vm.EnableSplitIrqchipAsync(cancellation: cancellation);

        _steps.Begin("initialise the TD");
        TdxLaunch launch = vm.TdxLaunch();
        await launch.InitVmAsync(InitVm(), cancellation: cancellation);

        List<Vcpu> vcpus = await CreateVcpusAsync(vm, launch, cancellation);
        List<GuestMemory> memory = await CreateMemoryAsync(vm, cancellation);
        foreach (TdxRegion region in _plan.Regions)
            await AddAsync(launch, vcpus[0], memory, region, cancellation);

        _steps.Begin("finalise the TD");
        string mrtd = await launch.FinalizeVmAsync(cancellation);
        return new LaunchedTd(_steps.Held)
        {
            Plan = _plan,
            Options = _options,
            Vm = vm,
            Vcpus = vcpus,
            Memory = memory,
            Mrtd = mrtd,
            Description = await launch.DescribeAsync(cancellation),
        };
    }

    private KvmTdxInitVm InitVm() => new()
    {
        Attributes = _options.Attributes,
        Xfam = _options.Xfam,
        Mrconfigid = ByteString.CopyFrom(_options.Mrconfigid.Span),
        Mrowner = ByteString.CopyFrom(_options.Mrowner.Span),
        Mrownerconfig = ByteString.CopyFrom(_options.Mrownerconfig.Span),
        Cpuid = { new KvmCpuidEntry2 { Function = GuestPhysicalBitsLeaf, Eax = _options.GuestPhysicalBits << GuestPhysicalBitsShift } },
    };

    private async Task<List<Vcpu>> CreateVcpusAsync(Vm vm, TdxLaunch launch, CancellationToken cancellation)
    {
        List<Vcpu> vcpus = [];
        while (vcpus.Count < _options.Vcpus)
        {
            _steps.Begin($"create and initialise vCPU {vcpus.Count}");
            Vcpu vcpu = _steps.Held.Hold(await vm.CreateVcpuAsync((ulong)vcpus.Count, cancellation));
            vcpus.Add(vcpu);
            // The vCPU's CPUID has to have x2APIC before KVM_TDX_INIT_VCPU; what the TD will see has it.
            await vcpu.SetCpuid2Async(await launch.GetCpuidAsync(vcpu, cancellation), cancellation);
            await launch.InitVcpuAsync(vcpu, _plan.HobGpa, cancellation: cancellation);
        }
        return vcpus;
    }

    private async Task<List<GuestMemory>> CreateMemoryAsync(Vm vm, CancellationToken cancellation)
    {
        List<GuestMemory> memory = [];
        foreach (GuestRange ram in _plan.Ram)
            await AddSlotAsync("RAM", ram.Start, ram.Size);

        await AddSlotAsync("firmware", _plan.Firmware.Gpa, _plan.Firmware.Size);
        memory.Sort((left, right) => left.Gpa.CompareTo(right.Gpa));
        return memory;

        async Task AddSlotAsync(string name, ulong gpa, ulong size)
        {
            _steps.Begin($"give the guest its {name}, 0x{gpa:x} to 0x{gpa + size:x}");
            memory.Add(_steps.Held.Hold(await GuestMemory.CreateAsync(vm, name, (uint)memory.Count, gpa, size, cancellation)));
        }
    }

    // The content goes into the user mapping; INIT_MEM_REGION copies it from there into private pages.
    private async Task AddAsync(TdxLaunch launch, Vcpu vcpu, List<GuestMemory> memory, TdxRegion region, CancellationToken cancellation)
    {
        GuestMemory slot = GuestMemory.Around(memory, $"{region.Label} section", region.Gpa, region.Size);
        ulong source = slot.UserAddressOf(region.Gpa);
        _steps.Begin($"load the {region.Label}");
        if (!region.Content.IsEmpty)
            await _process.UploadAsync(source, region.Content, cancellation: cancellation);
        _steps.Report(_steps.Done + region.Pages);

        _steps.Begin($"add the {region.Label}, 0x{region.Gpa:x} to 0x{region.End:x}");
        await launch.AddAsync(vcpu, new KvmTdxInitMemRegion { SourceAddr = source, Gpa = region.Gpa, NrPages = region.Pages }, region.Extend, cancellation);
        _steps.Report(_steps.Done + region.Pages);
    }
}
