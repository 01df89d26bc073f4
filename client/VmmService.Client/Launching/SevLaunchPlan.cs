using VmmService.Client.Digest;
using VmmService.Client.Launch;

namespace VmmService.Client.Launching;

/// <summary>
/// What a launch of a SEV or SEV-ES guest puts into memory and measures, as QEMU does it: the firmware below 4 GiB, with a kernel that is booted directly the table of its hashes
/// where the firmware looks for it, and with SEV-ES the state of the vCPUs. Next door: <see cref="SnpLaunchPlan"/>.
/// </summary>
public sealed class SevLaunchPlan
{
    private SevLaunchPlan(bool es, FirmwareImage firmware, VmmFlavor flavor, CpuSignature signature, KernelHashes? kernel, IReadOnlyList<VcpuResetState> vcpus)
    {
        Es = es;
        Firmware = firmware;
        Flavor = flavor;
        Signature = signature;
        Kernel = kernel;
        Vcpus = vcpus;
    }

    /// <summary>The vCPUs' state is encrypted and measured.</summary>
    public bool Es { get; }

    public FirmwareImage Firmware { get; }

    public VmmFlavor Flavor { get; }

    public CpuSignature Signature { get; }

    public KernelHashes? Kernel { get; }

    public IReadOnlyList<VcpuResetState> Vcpus { get; }

    /// <summary>The digest that the launch should have, computed here.</summary>
    public byte[] ExpectedDigest() => (Es ? LegacyLaunch.SevEs(Firmware, Flavor, Kernel, Vcpus.Count, Signature) : LegacyLaunch.Sev(Firmware, Kernel)).Digest();

    /// <summary>Plans a launch.</summary>
    /// <param name="es">SEV-ES.</param>
    /// <param name="firmware">The image.</param>
    /// <param name="flavor">Whose registers the vCPUs start with.</param>
    /// <param name="kernel">Hashes of a kernel that is booted directly; null for none.</param>
    /// <param name="vcpus">How many, 1 to <see cref="SnpLaunchPlan.MaxVcpus"/>.</param>
    /// <param name="signature">CPU signature of the vCPUs.</param>
    /// <exception cref="LaunchInputException">These do not go together.</exception>
    public static SevLaunchPlan Create(bool es, FirmwareImage firmware, VmmFlavor flavor, KernelHashes? kernel, int vcpus, CpuSignature signature)
    {
        ArgumentNullException.ThrowIfNull(firmware);
        ArgumentNullException.ThrowIfNull(flavor);
        if (kernel is not null)
            firmware.RequireKernelHashArea();
        // Plain SEV measures no vCPU, so its APs may start wherever they like.
        IReadOnlyList<VcpuResetState> states = es
            ? SnpLaunchPlan.PlanVcpus(firmware, flavor, vcpus, signature)
            : [.. Enumerable.Repeat(SnpLaunchPlan.PlanVcpus(firmware, flavor, 1, signature)[0], vcpus)];
        return new SevLaunchPlan(es, firmware, flavor, signature, kernel, states);
    }

    /// <summary>What the launch measures, for who expects it.</summary>
    public LegacyLaunch Measured() => Es ? LegacyLaunch.SevEs(Firmware, Flavor, Kernel, Vcpus.Count, Signature) : LegacyLaunch.Sev(Firmware, Kernel);
}
