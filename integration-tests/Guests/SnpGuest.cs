using VmmService.Client;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;
using Kvm = VmmService.Client.Kvm;
using Vcpu = VmmService.Client.Vcpu;
using Vm = VmmService.Client.Vm;

namespace VmmService.IntegrationTests.Guests;

/// <summary>
/// A launched SNP guest and its VMM. Gpa 0 on: private memory, of which the first page was launched with content and the second is the secrets page; the rest nobody touched. The
/// same slot has user memory behind it for what becomes shared. From <see cref="Ghcb"/> on: memory that is always shared, with the pages that a guest needs to speak with its
/// hypervisor.
/// </summary>
internal sealed class SnpGuest : IAsyncDisposable
{
    public const ulong Page = KernelNumbers.PAGE_SIZE;
    public const ulong Secrets = Page;
    public const ulong Pages = 1024;
    public const ulong Ghcb = 0x4000_0000;
    public const ulong Request = Ghcb + Page;
    public const ulong Response = Ghcb + (2 * Page);
    public const ulong Certificates = Ghcb + (3 * Page);
    public const ulong SharedPages = 16;

    private SnpGuest(RemoteHost host, RemoteProcess process, Vm vm, IReadOnlyList<Vcpu> vcpus)
    {
        Host = host;
        Process = process;
        Vm = vm;
        Vcpus = vcpus;
    }

    public RemoteHost Host { get; }

    public RemoteProcess Process { get; }

    public Vm Vm { get; }

    public IReadOnlyList<Vcpu> Vcpus { get; }

    public Vcpu Vcpu => Vcpus[0];

    public GuestMemfd Memfd { get; private init; } = null!;

    /// <summary>User address behind gpa 0.</summary>
    public ulong Backing { get; private init; }

    /// <summary>User address behind <see cref="Ghcb"/>.</summary>
    public ulong Shared { get; private init; }

    public string LaunchDigest { get; private init; } = "";

    public SevDevice Sev { get; private init; } = null!;

    /// <summary>Launches one.</summary>
    /// <param name="hypercallExits">The VMM takes KVM_EXIT_HYPERCALL for KVM_HC_MAP_GPA_RANGE.</param>
    /// <param name="certificates">SNP_ENABLE_REQ_CERTS.</param>
    public static async Task<SnpGuest> LaunchAsync(Daemon daemon, string profile = "K72", bool hypercallExits = true, bool certificates = false, int vcpus = 1) =>
        await LaunchAsync(await daemon.Connection.CreateHostAsync(profile), hypercallExits, certificates, vcpus);

    /// <summary>Launches one on a host that goes with it.</summary>
    public static async Task<SnpGuest> LaunchAsync(RemoteHost host, bool hypercallExits = true, bool certificates = false, int vcpus = 1)
    {
        RemoteProcess process = await host.CreateProcessAsync();
        Kvm kvm = await process.OpenKvmAsync();
        SevDevice sev = await process.OpenSevAsync();
        Vm vm = await kvm.CreateVmAsync(VmType.Snp);
        SnpLaunch launch = vm.SnpLaunch(sev);
        await launch.Init2Async();
        if (hypercallExits)
            await vm.EnableCapAsync(new KvmEnableCap { Cap = (uint)KernelNumbers.KVM_CAP_EXIT_HYPERCALL, Args = { 1UL << (int)KernelNumbers.KVM_HC_MAP_GPA_RANGE } });
        if (certificates)
            await launch.EnableReqCertsAsync();

        ulong backing = await process.MmapAsync(Pages * Page), shared = await process.MmapAsync(SharedPages * Page);
        GuestMemfd memfd = await vm.CreateGuestMemfdAsync(Pages * Page);
        await vm.SetUserMemoryRegion2Async(GuestBench.Region(0, KernelNumbers.KVM_MEM_GUEST_MEMFD, 0, Pages, backing, memfd.Fd));
        await vm.SetUserMemoryRegion2Async(GuestBench.Region(1, 0, Ghcb, SharedPages, shared));
        await vm.SetMemoryAttributesAsync(0, Pages * Page, KernelNumbers.KVM_MEMORY_ATTRIBUTE_PRIVATE);
        List<Vcpu> created = [];
        for (int i = 0; i < vcpus; i++)
            created.Add(await vm.CreateVcpuAsync((ulong)i));

        await process.WriteAsync(backing, GuestBench.Filled(1, 0x5a));
        await launch.StartAsync();
        await launch.UpdateAsync(new KvmSevSnpLaunchUpdate { GfnStart = 0, Uaddr = backing, Len = Page, Type = SnpPageType.Normal });
        await launch.UpdateAsync(new KvmSevSnpLaunchUpdate { GfnStart = 1, Uaddr = backing, Len = Page, Type = SnpPageType.Secrets });
        string digest = await launch.FinishAsync();
        return new SnpGuest(host, process, vm, created) { Memfd = memfd, Backing = backing, Shared = shared, LaunchDigest = digest, Sev = sev };
    }

    public Task<RunResponse> Run(params GuestStep[] program) => Run(Vcpu, program);

    public async Task<RunResponse> Run(Vcpu vcpu, params GuestStep[] program)
    {
        await vcpu.LoadProgramAsync(program);
        return await Continue(vcpu: vcpu);
    }

    public Task<RunResponse> Continue(RunPageUpdate? update = null, Vcpu? vcpu = null) => (vcpu ?? Vcpu).RunAsync(update).Reply;

    /// <summary>Runs a program to its HLT; gives the results of its steps.</summary>
    public async Task<IReadOnlyList<GuestStepResult>> RunToHalt(params GuestStep[] program)
    {
        RunResponse run = await Run([.. program, Guest.Halt()]);
        Assert.Equal((0, "KVM_EXIT_HLT"), (run.Outcome.Errno, run.Run.ExitReasonName));
        return [.. run.Results.SkipLast(1)];
    }

    /// <summary>The result of the last step before the HLT that a run ended with.</summary>
    public static GuestStepResult Last(RunResponse run) =>
        run.Run.ExitReason == KernelNumbers.KVM_EXIT_HLT ? run.Results[^2] : throw new InvalidOperationException($"the run ended with {run.Outcome.ErrnoName} {run.Run}");

    /// <summary>As <see cref="RunToHalt"/>, with a VMM that does what page state changes ask for: the attribute, and for pages that become shared a hole in the guest_memfd.</summary>
    /// <param name="asked">Told each range: gpa, pages, private.</param>
    public async Task<IReadOnlyList<GuestStepResult>> RunWithFollowingVmm(Action<ulong, ulong, bool> asked, params GuestStep[] program)
    {
        List<GuestStepResult> results = [];
        RunResponse run = await Run([.. program, Guest.Halt()]);
        while (run is { Outcome.Errno: 0, Run.ExitReason: KernelNumbers.KVM_EXIT_HYPERCALL })
        {
            results.AddRange(run.Results);
            HypercallExit call = run.Run.Hypercall;
            Assert.Equal(KernelNumbers.KVM_HC_MAP_GPA_RANGE, call.Nr);
            bool isPrivate = (call.Args[2] & KernelNumbers.KVM_MAP_GPA_RANGE_ENCRYPTED) != 0;
            asked(call.Args[0], call.Args[1], isPrivate);
            await Convert(call.Args[0], call.Args[1], isPrivate);
            run = await Continue(new RunPageUpdate { HypercallRet = 0 });
        }
        Assert.Equal((0, "KVM_EXIT_HLT"), (run.Outcome.Errno, run.Run.ExitReasonName));
        return [.. results, .. run.Results.SkipLast(1)];
    }

    /// <summary>What a VMM does for KVM_HC_MAP_GPA_RANGE.</summary>
    public async Task Convert(ulong gpa, ulong pages, bool isPrivate)
    {
        await Vm.SetMemoryAttributesAsync(gpa, pages * Page, isPrivate ? KernelNumbers.KVM_MEMORY_ATTRIBUTE_PRIVATE : 0);
        if (!isPrivate)
            await Memfd.PunchHoleAsync((long)gpa, (long)(pages * Page));
    }

    /// <summary>Findings of the host, which a well-behaved VMM has none of.</summary>
    public Task<IReadOnlyList<Finding>> Findings() => Host.ListFindingsAsync();

    public async ValueTask DisposeAsync()
    {
        await Process.DisposeAsync();
        await Host.DisposeAsync();
    }
}
