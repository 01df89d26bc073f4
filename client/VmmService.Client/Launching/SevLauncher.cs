using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;
using VmmService.Client.Attestation;
using VmmService.Client.Launch;
using VmmService.V1;

namespace VmmService.Client.Launching;

/// <summary>
/// Performs a SEV or SEV-ES launch ioctl by ioctl: VM, INIT2, memory with its content, vCPUs and their registers, START, UPDATE_DATA for each part in place, UPDATE_VMSA, MEASURE,
/// FINISH. What to launch is the plan's (<see cref="SevLaunchPlan"/>). With a secret the guest has an owner, who is <see cref="SevGuestOwner"/>: the launcher plays both sides, and
/// only passes on what would travel between them.
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
    /// <param name="options">Policy, secret; null for the defaults.</param>
    /// <param name="progress">Told of each step.</param>
    /// <param name="cancellation">Stops between two calls; what was opened is closed.</param>
    /// <exception cref="LaunchException">A step failed; the inner exception is the kernel's or the daemon's answer. What was opened is closed.</exception>
    /// <exception cref="LaunchInputException">There is a secret, and the firmware has no place for it.</exception>
    /// <exception cref="CryptographicException">The owner does not accept the platform or what it measured.</exception>
    public static async Task<LaunchedSevGuest> LaunchAsync(
        RemoteProcess process, SevLaunchPlan plan, SevLaunchOptions? options = null, IProgress<LaunchProgress>? progress = null, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(process);
        ArgumentNullException.ThrowIfNull(plan);
        options ??= new SevLaunchOptions();
        byte[] secret = Pad(options.Secret);
        if (secret.Length > 0 && (plan.Firmware.SecretArea is not { } area || area.Size < (uint)secret.Length))
        {
            throw new LaunchInputException(
                $"There is a secret of {options.Secret.Length} bytes and the firmware {plan.Firmware.Name} has {(plan.Firmware.SecretArea is { } small ? $"room for {small.Size}" : "no area for one")}. "
                + "Use a firmware with a launch secret area (edk2's OvmfPkg/AmdSev), or a shorter secret.");
        }
        var steps = new LaunchSteps(plan.Firmware.Size / KernelNumbers.PAGE_SIZE, progress);
        return await steps.RunAsync(() => RunAsync(process, plan, options.Policy ?? DefaultPolicy(plan.Es), secret, steps, cancellation));
    }

    private static async Task<LaunchedSevGuest> RunAsync(
        RemoteProcess process, SevLaunchPlan plan, uint policy, byte[] secret, LaunchSteps steps, CancellationToken cancellation)
    {
        steps.Begin("open /dev/kvm and /dev/sev");
        Kvm kvm = steps.Held.Hold(await process.OpenKvmAsync(cancellation));
        SevDevice sev = steps.Held.Hold(await process.OpenSevAsync(cancellation));

        steps.Begin("create and initialise the VM");
        Vm vm = steps.Held.Hold(await kvm.CreateVmAsync(plan.Es ? VmType.SevEs : VmType.Sev, cancellation));
        await vm.SnpLaunch(sev).Init2Async(ghcbVersion: 0, cancellation: cancellation);

        steps.Begin("give the guest its memory");
        // Firmware and table are written by the VMM, as into any guest's memory; then they are encrypted where they are.
        ulong used = Math.Max(plan.Kernel is null ? 0 : plan.Firmware.RequireKernelHashArea().End, secret.Length == 0 ? 0 : plan.Firmware.SecretArea!.Value.End);
        ulong ramSize = Math.Max(LargePage, (used + LargePage - 1) / LargePage * LargePage);
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

        SevGuestOwner? owner = null;
        if (secret.Length > 0)
        {
            steps.Begin("verify the platform and make a session for it");
            owner = SevGuestOwner.Create((await TrustedChainAsync(process.Host, sev, cancellation)).Pdh, policy);
        }

        steps.Begin("start the launch");
        SevLaunch launch = vm.SevLaunch(sev);
        await launch.StartAsync(policy, dhCertificate: owner?.Certificate.Bytes ?? default, session: owner?.Session ?? default, cancellation: cancellation);
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
        if (owner is not null)
        {
            SevPlatformStatusResponse platform = await sev.PlatformStatusAsync(cancellation);
            if (!owner.Accepts(measured.Measure.Span, measured.Mnonce.Span, ((byte)platform.ApiMajor, (byte)platform.ApiMinor, (byte)platform.Build), plan.Measured().Digest()))
                throw new CryptographicException("the measurement is not that of the firmware, the kernel and the vCPUs that were to be launched");

            (byte[] header, byte[] body) = owner.SealSecret(secret, measured.Measure.Span);
            await launch.SecretAsync(header, body, ram + plan.Firmware.SecretArea!.Value.Base, cancellation);
        }
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
            HasSecret = secret.Length > 0,
        };
    }

    private static async Task<SevPlatformChain> TrustedChainAsync(RemoteHost host, SevDevice sev, CancellationToken cancellation)
    {
        GetSevCekResponse cek = await host.GetSevCekAsync(cancellation);
        using X509Certificate2 ask = X509CertificateLoader.LoadCertificate(cek.Ask.Span);
        SevPlatformChain chain = (await sev.ExportPdhAsync(cancellation)).WithCek(SevCertificate.Parse(cek.Cek.Span));
        return chain.Problem(ask) is { } problem ? throw new CryptographicException($"the platform is not to be trusted: {problem}") : chain;
    }

    // Firmware takes whole blocks of 16 bytes.
    private static byte[] Pad(ReadOnlyMemory<byte> secret)
    {
        byte[] padded = new byte[(secret.Length + 15) / 16 * 16];
        secret.CopyTo(padded);
        return padded;
    }

    private static async Task<ulong> AddMemoryAsync(Vm vm, uint slot, ulong gpa, ulong size, CancellationToken cancellation)
    {
        ulong user = await vm.Process.MmapAsync(size, cancellation);
        await vm.SetUserMemoryRegion2Async(new KvmUserspaceMemoryRegion2 { Slot = slot, GuestPhysAddr = gpa, MemorySize = size, UserspaceAddr = user }, cancellation);
        return user;
    }
}
