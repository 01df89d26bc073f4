using VmmService.V1;

namespace VmmService.Client.Launch;

/// <summary>A run of pages that is launched in one go.</summary>
/// <param name="Name">What it is, for people.</param>
/// <param name="Gpa">Guest physical address, bytes.</param>
/// <param name="Size">Bytes, whole pages.</param>
/// <param name="Content">What is put there before; empty for zeros, and for the CPUID page, whose content depends on the host.</param>
public sealed record SnpRegion(string Name, SnpPageType PageType, ulong Gpa, ulong Size, ReadOnlyMemory<byte> Content);

/// <summary>
/// What a VMM of a certain flavour does to launch a firmware image as an SNP guest: the regions in order, and the registers of each vCPU. Everything that the
/// launch digest depends on is in here; nothing is launched yet.
/// </summary>
public sealed class SnpLaunchPlan
{
    private const ulong SnpActive = 1;

    private SnpLaunchPlan(FirmwareImage image, VmmFlavor flavor, ulong guestFeatures, IReadOnlyList<SnpRegion> regions, IReadOnlyList<VcpuResetState> vcpus)
    {
        Image = image;
        Flavor = flavor;
        GuestFeatures = guestFeatures;
        Regions = regions;
        Vcpus = vcpus;
    }

    /// <summary>KVM_MAX_VCPUS.</summary>
    public const int MaxVcpus = 1024;

    public FirmwareImage Image { get; }

    public VmmFlavor Flavor { get; }

    /// <summary>SEV_FEATURES of the guest, with bit 0 (SNPActive).</summary>
    public ulong GuestFeatures { get; }

    /// <summary>What INIT2 is given: the features without bit 0, which KVM sets itself.</summary>
    public ulong VmsaFeatures => GuestFeatures & ~SnpActive;

    /// <summary>The firmware's own region, the first.</summary>
    public SnpRegion Firmware => Regions[0];

    /// <summary>In the order of launch.</summary>
    public IReadOnlyList<SnpRegion> Regions { get; }

    /// <summary>In the order of creation, the first starts the guest.</summary>
    public IReadOnlyList<VcpuResetState> Vcpus { get; }

    /// <summary>Plans a launch.</summary>
    /// <param name="hashes">Kernel, initrd and command line of a direct boot; null for none.</param>
    /// <param name="vcpus">Number of vCPUs.</param>
    /// <param name="signature">CPUID 1 EAX of the vCPU type; only QEMU measures it.</param>
    /// <param name="guestFeatures">SEV_FEATURES; bit 0 must be set.</param>
    /// <exception cref="LaunchPlanException">The pieces do not go together.</exception>
    public static SnpLaunchPlan Create(FirmwareImage image, VmmFlavor flavor, KernelHashes? hashes, int vcpus, uint signature, ulong guestFeatures)
    {
        ArgumentNullException.ThrowIfNull(image);
        ArgumentNullException.ThrowIfNull(flavor);
        if (vcpus is < 1 or > MaxVcpus)
        {
            throw new LaunchPlanException($"{vcpus} vCPUs cannot be launched; a VM has between 1 and {MaxVcpus}.");
        }
        if ((guestFeatures & SnpActive) == 0)
        {
            throw new LaunchPlanException($"Guest features 0x{guestFeatures:x} lack bit 0 (SNPActive), which KVM sets for every SNP guest; use for example 0x1, or 0x21 with DebugSwap.");
        }
        bool takesHashes = image.HashArea is not null && image.Sections.Any(section => section.Type == SevSectionType.KernelHashes);
        if (hashes is not null && !takesHashes)
        {
            throw new LaunchPlanException(
                "Kernel specified but OVMF metadata doesn't include SNP_KERNEL_HASHES section: this firmware cannot check a kernel's hash. Use a firmware built for measured direct boot (edk2's AmdSevX64), or launch without a kernel.");
        }
        if (vcpus > 1 && image.ResetEip is null)
        {
            throw new LaunchPlanException(
                $"The firmware has no SEV-ES reset block, so nobody knows where vCPUs after the first would start; launch with 1 vCPU instead of {vcpus}, or use a firmware with SEV support.");
        }

        List<SnpRegion> regions = [new("firmware", SnpPageType.Normal, image.LoadGpa, (ulong)image.Size, image.Bytes)];
        bool Deferred(SevSection section) => flavor.CpuidLast && section.Type == SevSectionType.Cpuid;
        regions.AddRange(image.Sections.Where(section => !Deferred(section)).Select(section => Region(section, image, flavor, hashes)));
        regions.AddRange(image.Sections.Where(Deferred).Select(section => Region(section, image, flavor, hashes)));

        VcpuResetState[] states = new VcpuResetState[vcpus];
        states[0] = flavor.Bsp(signature);
        for (int i = 1; i < vcpus; i++)
        {
            states[i] = flavor.Ap(signature, image.ResetEip!.Value);
        }
        return new SnpLaunchPlan(image, flavor, guestFeatures, regions, states);
    }

    private static SnpRegion Region(SevSection section, FirmwareImage image, VmmFlavor flavor, KernelHashes? hashes)
    {
        (string name, SnpPageType type) = section.Type switch
        {
            SevSectionType.SecMem => ("firmware memory", flavor.SecMemType),
            SevSectionType.Secrets => ("secrets page", SnpPageType.Secrets),
            SevSectionType.Cpuid => ("CPUID page", SnpPageType.Cpuid),
            SevSectionType.SvsmCaa => ("SVSM calling area", SnpPageType.Zero),
            _ => ("kernel hashes", hashes is null ? SnpPageType.Zero : SnpPageType.Normal),
        };
        ReadOnlyMemory<byte> content = ReadOnlyMemory<byte>.Empty;
        if (section.Type == SevSectionType.KernelHashes && hashes is not null)
        {
            FirmwareArea area = image.HashArea!.Value;
            if (area.Base < section.Gpa || area.Base - section.Gpa >= section.Size)
            {
                throw new LaunchPlanException(
                    $"The firmware's kernel-hashes table at 0x{area.Base:x} is outside its section at 0x{section.Gpa:x} (size 0x{section.Size:x}). The image is damaged.");
            }
            byte[] pages = new byte[section.Size];
            hashes.Page(area).CopyTo(pages, (int)(area.Base - section.Gpa) & ~0xfff);
            content = pages;
        }
        return new SnpRegion(name, type, section.Gpa, section.Size, content);
    }
}

/// <summary>What was asked to be launched does not go together. The message is for the person who asked.</summary>
public sealed class LaunchPlanException(string message) : Exception(message);
