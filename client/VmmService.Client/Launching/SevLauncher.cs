using VmmService.Client.Launch;
using VmmService.V1;

namespace VmmService.Client.Launching;

/// <summary>
/// Performs a SEV or SEV-ES launch ioctl by ioctl: VM, INIT2, memory with its content, vCPUs and their registers, START, UPDATE_DATA for each part in place, UPDATE_VMSA, MEASURE,
/// FINISH. What to launch is the plan's (<see cref="SevLaunchPlan"/>).
/// </summary>
public static class SevLauncher
{
    private const ulong LargePage = 2 << 20;
    private const uint RamSlot = 0;
    private const uint FirmwareSlot = 1;
    private const uint NoDebug = 1;
    private const uint EncryptedState = 4;

    // KVM measures whole ranges; firmware takes 32 bits of length.
    private const uint UpdateBytes = 1 << 20;

    /// <summary>The policy of a launch where nothing else was asked for: no debugging, and with SEV-ES encrypted state.</summary>
    public static uint DefaultPolicy(bool es) => es ? NoDebug | EncryptedState : NoDebug;

    /// <summary>Launches a guest in <paramref name="process"/>.</summary>
    /// <param name="process">The VMM process; its host's machine has to have SEV.</param>
    /// <param name="plan">What is launched and measured.</param>
    /// <param name="policy">Policy of KVM_SEV_LAUNCH_START; null for the default.</param>
    /// <param name="progress">Told of each step.</param>
    /// <param name="cancellation">Stops between two calls; what was opened is closed.</param>
    /// <exception cref="LaunchException">A step failed; the inner exception is the kernel's or the daemon's answer. What was opened is closed.</exception>
    public static async Task<LaunchedSevGuest> LaunchAsync(
        RemoteProcess process, SevLaunchPlan plan, uint? policy = null, IProgress<LaunchProgress>? progress = null, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(process);
        ArgumentNullException.ThrowIfNull(plan);
        var steps = new LaunchSteps(plan.Firmware.Size / KernelNumbers.PAGE_SIZE, progress);
        return await steps.RunAsync(() => RunAsync(process, plan, policy ?? DefaultPolicy(plan.Es), steps, cancellation));
    }

    private static async Task<LaunchedSevGuest> RunAsync(
        RemoteProcess process, SevLaunchPlan plan, uint policy, LaunchSteps steps, CancellationToken cancellation)
    {
        steps.Begin("open /dev/kvm and /dev/sev");
        Kvm kvm = steps.Held.Hold(await process.OpenKvmAsync(cancellation));
        SevDevice sev = steps.Held.Hold(await process.OpenSevAsync(cancellation));

        steps.Begin("create and initialise the VM");
        Vm vm = steps.Held.Hold(await kvm.CreateVmAsync(plan.Es ? VmType.SevEs : VmType.Sev, cancellation));
        await vm.SnpLaunch(sev).Init2Async(ghcbVersion: 0, cancellation: cancellation);

        steps.Begin("give the guest its memory");
        // Firmware and table are written by the VMM, as into any guest's memory; then they are encrypted where they are.
        ulong ramSize = plan.Kernel is null ? LargePage : (plan.Firmware.RequireKernelHashArea().End + LargePage - 1) / LargePage * LargePage;
        ulong ram = await AddMemoryAsync(vm, RamSlot, 0, ramSize, cancellation);
        ulong firmware = await AddMemoryAsync(vm, FirmwareSlot, plan.Firmware.Gpa, plan.Firmware.Size, cancellation);
        await process.UploadAsync(firmware, plan.Firmware.Bytes, cancellation: cancellation);

        steps.Begin("create the vCPUs and set their registers");
        IReadOnlyList<KvmCpuidEntry2> supported = await kvm.GetSupportedCpuidAsync(cancellation);
        List<Vcpu> vcpus = [];
        foreach (VcpuResetState state in plan.Vcpus)
        {
            Vcpu vcpu = steps.Held.Hold(await vm.CreateVcpuAsync((ulong)vcpus.Count, cancellation));
            vcpus.Add(vcpu);
            await VcpuRegisters.ApplyAsync(vcpu, state, supported, cancellation);
        }

        steps.Begin("start the launch");
        SevLaunch launch = vm.SevLaunch(sev);
        await launch.StartAsync(policy, cancellation: cancellation);
        steps.Begin("encrypt and measure the firmware");
        for (ulong offset = 0; offset < plan.Firmware.Size; offset += UpdateBytes)
        {
            uint length = (uint)Math.Min(UpdateBytes, plan.Firmware.Size - offset);
            await launch.UpdateDataAsync(firmware + offset, length, cancellation);
            steps.Report(steps.Done + (length / KernelNumbers.PAGE_SIZE));
        }

        if (plan.Kernel is { } kernel)
        {
            steps.Begin("encrypt and measure the kernel hashes");
            byte[] table = kernel.BuildTable();
            ulong address = ram + plan.Firmware.RequireKernelHashArea().Base;
            await process.WriteAsync(address, table, cancellation);
            await launch.UpdateDataAsync(address, (uint)table.Length, cancellation);
        }
        if (plan.Es)
            await launch.UpdateVmsaAsync(cancellation);

        steps.BeginLast("measure the launch and finish it");
        SevLaunchMeasureResponse measured = await launch.MeasureAsync(cancellation: cancellation);
        await launch.FinishAsync(cancellation);
        SevGuestStatusResponse status = await launch.GuestStatusAsync(cancellation);
        return new LaunchedSevGuest(steps.Held)
        {
            Plan = plan,
            Vm = vm,
            Vcpus = vcpus,
            LaunchDigest = status.LaunchDigest,
            Measure = measured.Measure.Memory,
            Nonce = measured.Mnonce.Memory,
            Policy = status.Policy,
            Handle = status.Handle,
        };
    }

    private static async Task<ulong> AddMemoryAsync(Vm vm, uint slot, ulong gpa, ulong size, CancellationToken cancellation)
    {
        ulong user = await vm.Process.MmapAsync(size, cancellation);
        await vm.SetUserMemoryRegion2Async(new KvmUserspaceMemoryRegion2 { Slot = slot, GuestPhysAddr = gpa, MemorySize = size, UserspaceAddr = user }, cancellation);
        return user;
    }
}
