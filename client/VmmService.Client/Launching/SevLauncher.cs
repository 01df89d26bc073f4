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
    /// <param name="cancellation">Stops between two calls; what was opened is closed.</param>
    /// <exception cref="KvmException">A call failed. What was opened is closed.</exception>
    public static async Task<LaunchedSevGuest> LaunchAsync(RemoteProcess process, SevLaunchPlan plan, uint? policy = null, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(process);
        ArgumentNullException.ThrowIfNull(plan);
        Stack<IAsyncDisposable> held = [];
        try
        {
            return await RunAsync(process, plan, policy ?? DefaultPolicy(plan.Es), held, cancellation);
        }
        catch
        {
            while (held.TryPop(out IAsyncDisposable? next))
                await next.DisposeAsync();
            throw;
        }
    }

    private static async Task<LaunchedSevGuest> RunAsync(
        RemoteProcess process, SevLaunchPlan plan, uint policy, Stack<IAsyncDisposable> held, CancellationToken cancellation)
    {
        Kvm kvm = Hold(await process.OpenKvmAsync(cancellation));
        SevDevice sev = Hold(await process.OpenSevAsync(cancellation));
        Vm vm = Hold(await kvm.CreateVmAsync(plan.Es ? VmType.SevEs : VmType.Sev, cancellation));
        await vm.SnpLaunch(sev).Init2Async(ghcbVersion: 0, cancellation: cancellation);

        // Firmware and table are written by the VMM, as into any guest's memory; then they are encrypted where they are.
        ulong ramSize = plan.Kernel is null ? LargePage : (plan.Firmware.RequireKernelHashArea().End + LargePage - 1) / LargePage * LargePage;
        ulong ram = await AddMemoryAsync(vm, RamSlot, 0, ramSize, cancellation);
        ulong firmware = await AddMemoryAsync(vm, FirmwareSlot, plan.Firmware.Gpa, plan.Firmware.Size, cancellation);
        await process.UploadAsync(firmware, plan.Firmware.Bytes, cancellation: cancellation);

        IReadOnlyList<KvmCpuidEntry2> supported = await kvm.GetSupportedCpuidAsync(cancellation);
        List<Vcpu> vcpus = [];
        foreach (VcpuResetState state in plan.Vcpus)
        {
            Vcpu vcpu = Hold(await vm.CreateVcpuAsync((ulong)vcpus.Count, cancellation));
            vcpus.Add(vcpu);
            await VcpuRegisters.ApplyAsync(vcpu, state, supported, cancellation);
        }

        SevLaunch launch = vm.SevLaunch(sev);
        await launch.StartAsync(policy, cancellation: cancellation);
        for (ulong offset = 0; offset < plan.Firmware.Size; offset += UpdateBytes)
            await launch.UpdateDataAsync(firmware + offset, (uint)Math.Min(UpdateBytes, plan.Firmware.Size - offset), cancellation);

        if (plan.Kernel is { } kernel)
        {
            byte[] table = kernel.BuildTable();
            ulong address = ram + plan.Firmware.RequireKernelHashArea().Base;
            await process.WriteAsync(address, table, cancellation);
            await launch.UpdateDataAsync(address, (uint)table.Length, cancellation);
        }
        if (plan.Es)
            await launch.UpdateVmsaAsync(cancellation);

        SevLaunchMeasureResponse measured = await launch.MeasureAsync(cancellation: cancellation);
        await launch.FinishAsync(cancellation);
        SevGuestStatusResponse status = await launch.GuestStatusAsync(cancellation);
        return new LaunchedSevGuest(held)
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

        T Hold<T>(T each)
            where T : IAsyncDisposable
        {
            held.Push(each);
            return each;
        }
    }

    private static async Task<ulong> AddMemoryAsync(Vm vm, uint slot, ulong gpa, ulong size, CancellationToken cancellation)
    {
        ulong user = await vm.Process.MmapAsync(size, cancellation);
        await vm.SetUserMemoryRegion2Async(new KvmUserspaceMemoryRegion2 { Slot = slot, GuestPhysAddr = gpa, MemorySize = size, UserspaceAddr = user }, cancellation);
        return user;
    }
}
