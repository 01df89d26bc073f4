using VmmService.Client.Launch;
using VmmService.V1;
using SnpPageType = VmmService.Client.Launch.SnpPageType;

namespace VmmService.Client.Launching;

/// <summary>
/// Performs an SNP launch ioctl by ioctl the way VMMs do: VM, INIT2, memory (user mapping, guest_memfd, slot, private attribute), content, vCPUs and their
/// registers, START, an UPDATE for each region of the plan in its order, FINISH. What to launch is the plan's (<see cref="SnpLaunchPlan"/>, next door in
/// Launch); nothing is computed here that the simulated machine measures.
/// </summary>
public sealed class SnpLauncher
{
    private const ulong LargePage = 2 << 20;

    // Where QEMU's q35 machine splits RAM around the hole below 4 GiB.
    private const ulong LowMemoryLimit = 0xb000_0000;
    private const ulong LowMemoryWithHigh = 0x8000_0000;
    private const ulong FourGiB = 1UL << 32;

    private const uint RamSlot = 0;
    private const uint HighRamSlot = 1;
    private const uint FirmwareSlot = 2;

    // So that a person sees progress, and a caller can stop, inside a region; the pages measured and their order are the same.
    private const ulong UpdateBytes = 256 * KernelNumbers.PAGE_SIZE;

    private readonly RemoteProcess _process;
    private readonly SnpLaunchPlan _plan;
    private readonly SnpLaunchOptions _options;
    private readonly LaunchSteps _steps;

    private SnpLauncher(RemoteProcess process, SnpLaunchPlan plan, SnpLaunchOptions options, IProgress<LaunchProgress>? progress)
    {
        _process = process;
        _plan = plan;
        _options = options;
        _steps = new LaunchSteps(plan.MeasuredSteps + plan.Regions.Aggregate(0UL, (sum, region) => sum + PagesOf(region.Content)), progress);
    }

    /// <summary>Launches a guest in <paramref name="process"/>.</summary>
    /// <param name="process">The VMM process; its host's machine has to have SNP.</param>
    /// <param name="plan">What is launched and measured.</param>
    /// <param name="options">Policy, RAM; null for the defaults.</param>
    /// <param name="progress">Told of each step.</param>
    /// <param name="cancellation">Stops between two calls; what was opened is closed.</param>
    /// <exception cref="LaunchException">A step failed; the inner exception is the kernel's or the daemon's answer. What was opened is closed.</exception>
    public static async Task<LaunchedSnpGuest> LaunchAsync(
        RemoteProcess process,
        SnpLaunchPlan plan,
        SnpLaunchOptions? options = null,
        IProgress<LaunchProgress>? progress = null,
        CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(process);
        ArgumentNullException.ThrowIfNull(plan);
        var launcher = new SnpLauncher(process, plan, options ?? new SnpLaunchOptions(), progress);
        return await launcher._steps.RunAsync(() => launcher.RunAsync(cancellation));
    }

    private async Task<LaunchedSnpGuest> RunAsync(CancellationToken cancellation)
    {
        _steps.Begin("open /dev/kvm and /dev/sev");
        Kvm kvm = _steps.Held.Hold(await _process.OpenKvmAsync(cancellation));
        SevDevice sev = _steps.Held.Hold(await _process.OpenSevAsync(cancellation));

        _steps.Begin("create an SNP VM");
        Vm vm = _steps.Held.Hold(await kvm.CreateVmAsync(VmType.Snp, cancellation));

        _steps.Begin("initialise SNP");
        SnpLaunch launch = vm.SnpLaunch(sev);
        await launch.Init2Async(_plan.VmsaFeatures, cancellation: cancellation);

        List<GuestMemory> memory = await CreateMemoryAsync(vm, cancellation);
        await LoadAsync(memory, cancellation);
        List<Vcpu> vcpus = await CreateVcpusAsync(kvm, vm, memory, cancellation);

        _steps.Begin("start the launch");
        await launch.StartAsync(_options.Policy, cancellation);

        foreach (LaunchRegion region in _plan.Regions)
            await UpdateAsync(launch, memory, region, cancellation);

        _steps.Begin("measure the vCPUs and finish the launch");
        string digest = await launch.FinishAsync(_options.Finish, cancellation);

        _steps.BeginLast("read the transcript");
        List<TranscriptRecord> transcript = [];
        await foreach (TranscriptRecord record in launch.Transcript(cancellation))
            transcript.Add(record);

        return new LaunchedSnpGuest(_steps.Held)
        {
            Plan = _plan,
            Options = _options,
            Vm = vm,
            Vcpus = vcpus,
            Memory = memory,
            LaunchDigest = digest,
            Transcript = transcript,
            Description = await vm.DescribeAsync(cancellation),
        };
    }

    // RAM from 0, with the part that does not fit below the hole from 4 GiB, and the firmware below 4 GiB.
    private async Task<List<GuestMemory>> CreateMemoryAsync(Vm vm, CancellationToken cancellation)
    {
        ulong ram = _options.MemoryBytes ?? RamForSections();
        ulong low = ram <= LowMemoryLimit || _options.MemoryBytes is null ? ram : LowMemoryWithHigh;
        List<GuestMemory> memory = [await AddMemoryAsync("RAM", RamSlot, 0, low)];
        if (low < ram)
            memory.Add(await AddMemoryAsync("RAM above 4 GiB", HighRamSlot, FourGiB, ram - low));

        memory.Add(await AddMemoryAsync(_plan.Svsm is null ? "firmware" : "firmware and SVSM", FirmwareSlot, _plan.ImagesGpa, FourGiB - _plan.ImagesGpa));
        memory.Sort((left, right) => left.Gpa.CompareTo(right.Gpa));
        foreach (LaunchRegion region in _plan.Regions)
            _ = MemoryOf(memory, region);
        return memory;

        async Task<GuestMemory> AddMemoryAsync(string name, uint slot, ulong gpa, ulong size)
        {
            _steps.Begin($"give the guest its {name}, 0x{gpa:x} to 0x{gpa + size:x}");
            return _steps.Held.Hold(await GuestMemory.CreateAsync(vm, name, slot, gpa, size, cancellation));
        }
    }

    private ulong RamForSections()
    {
        ulong end = _plan.Regions.Where(region => region.Gpa < _plan.ImagesGpa).Select(region => region.Gpa + region.Size).DefaultIfEmpty().Max();
        return Math.Min(Math.Max(LargePage, (end + LargePage - 1) / LargePage * LargePage), _plan.ImagesGpa);
    }

    // The content goes into the user mappings; LAUNCH_UPDATE copies it from there into private pages.
    private async Task LoadAsync(List<GuestMemory> memory, CancellationToken cancellation)
    {
        foreach (LaunchRegion region in _plan.Regions.Where(region => region.Content.Length > 0))
        {
            _steps.Begin($"load the {region.Label}");
            ulong before = _steps.Done;
            var sent = new Forward<long>(bytes => _steps.Report(before + ((ulong)bytes / KernelNumbers.PAGE_SIZE)));
            await _process.UploadAsync(MemoryOf(memory, region).UserAddressOf(region.Gpa), region.Content, sent, cancellation);
        }
    }

    private async Task<List<Vcpu>> CreateVcpusAsync(Kvm kvm, Vm vm, List<GuestMemory> memory, CancellationToken cancellation)
    {
        _steps.Begin("ask for the supported CPUID");
        IReadOnlyList<KvmCpuidEntry2> supported = await kvm.GetSupportedCpuidAsync(cancellation);

        List<Vcpu> vcpus = [];
        foreach (VcpuResetState state in _plan.Vcpus)
        {
            _steps.Begin($"create vCPU {vcpus.Count} and set its registers");
            Vcpu vcpu = _steps.Held.Hold(await vm.CreateVcpuAsync((ulong)vcpus.Count, cancellation));
            vcpus.Add(vcpu);
            await VcpuRegisters.ApplyAsync(vcpu, state, supported, cancellation);
        }

        // The page proposes to firmware what the vCPUs were given.
        foreach (LaunchRegion region in _plan.Regions.Where(region => region.Source == LaunchSource.CpuidPage))
        {
            _steps.Begin("write the CPUID page");
            byte[] page = CpuidPage.Build(
            [
                .. from entry in await vcpus[0].GetCpuid2Async(cancellation)
                   where (entry.Eax | entry.Ebx | entry.Ecx | entry.Edx) != 0
                   select SnpCpuidEntry.FromKvm(entry.Function, entry.Index, entry.Flags, entry.Eax, entry.Ebx, entry.Ecx, entry.Edx),
            ]);
            await _process.WriteAsync(MemoryOf(memory, region).UserAddressOf(region.Gpa), page, cancellation);
        }
        return vcpus;
    }

    private async Task UpdateAsync(SnpLaunch launch, List<GuestMemory> memory, LaunchRegion region, CancellationToken cancellation)
    {
        _steps.Begin($"measure the {region.Label}, 0x{region.Gpa:x} to 0x{region.End:x}");
        for (ulong offset = 0; offset < region.Size; offset += UpdateBytes)
        {
            var update = new KvmSevSnpLaunchUpdate
            {
                GfnStart = (region.Gpa + offset) / KernelNumbers.PAGE_SIZE,
                Uaddr = region.PageType == SnpPageType.ZERO ? 0 : MemoryOf(memory, region).UserAddressOf(region.Gpa) + offset,
                Len = Math.Min(UpdateBytes, region.Size - offset),
                // Both enums have the kernel's numbers.
                Type = (V1.SnpPageType)region.PageType,
            };
            await launch.UpdateAsync(update, cancellation: cancellation);
            _steps.Report(_steps.Done + (update.Len / KernelNumbers.PAGE_SIZE));
        }
    }

    private static GuestMemory MemoryOf(List<GuestMemory> memory, LaunchRegion region) => GuestMemory.Around(memory, region.Label, region.Gpa, region.Size);

    private static ulong PagesOf(ReadOnlyMemory<byte> content) => (ulong)content.Length / KernelNumbers.PAGE_SIZE;

    // Progress<T> would report from other threads and out of order.
    private sealed class Forward<T>(Action<T> report) : IProgress<T>
    {
        public void Report(T value) => report(value);
    }
}
