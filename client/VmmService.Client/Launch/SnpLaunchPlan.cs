using VmmService.Client.Digest;

namespace VmmService.Client.Launch;

/// <summary>
/// What an SNP launch consists of, in order: the regions of guest memory and the registers of the vCPUs. It is a function of the firmware and a few options,
/// asks nobody, and computes no digest: that is the simulated machine's, once the launcher next door (Launching) has carried the plan out. Regions do not overlap;
/// all are whole pages below 4 GiB.
/// </summary>
public sealed class SnpLaunchPlan
{
    /// <summary>Most vCPUs of a VM: the kernel's KVM_CAP_MAX_VCPUS as distributions build it.</summary>
    public const int MaxVcpus = 1024;

    /// <summary>SEV_FEATURES bit 0, SNPActive.</summary>
    public const ulong SnpActive = 1;

    private SnpLaunchPlan(
        FirmwareImage firmware, VmmFlavor flavor, CpuSignature signature, ulong guestFeatures, KernelHashes? kernel, LaunchRegion[] regions, VcpuResetState[] vcpus)
    {
        Firmware = firmware;
        Flavor = flavor;
        Signature = signature;
        GuestFeatures = guestFeatures;
        Kernel = kernel;
        Regions = regions;
        Vcpus = vcpus;
    }

    public FirmwareImage Firmware { get; }

    public VmmFlavor Flavor { get; }

    /// <summary>CPU signature of the vCPUs.</summary>
    public CpuSignature Signature { get; }

    /// <summary>SEV_FEATURES of every VMSA, with SNPActive.</summary>
    public ulong GuestFeatures { get; }

    /// <summary>What user space asks for in kvm_sev_init.vmsa_features: the kernel adds SNPActive itself and refuses it there.</summary>
    public ulong VmsaFeatures => GuestFeatures & ~SnpActive;

    /// <summary>The kernel that is booted directly; null for none.</summary>
    public KernelHashes? Kernel { get; }

    /// <summary>The SVSM below the firmware; null for none.</summary>
    public FirmwareImage? Svsm { get; private init; }

    /// <summary>From here to 4 GiB the images lie: the firmware, and below its variable store the SVSM where there is one.</summary>
    public ulong ImagesGpa { get; private init; }

    /// <summary>In order of launch.</summary>
    public IReadOnlyList<LaunchRegion> Regions { get; }

    /// <summary>By vCPU index; the first is the BSP. They are measured at the end, in this order.</summary>
    public IReadOnlyList<VcpuResetState> Vcpus { get; }

    /// <summary>Steps of the measurement: pages and vCPUs.</summary>
    public ulong MeasuredSteps => Regions.Aggregate((ulong)Vcpus.Count, (sum, region) => sum + region.Pages);

    /// <summary>Makes a plan.</summary>
    /// <param name="firmware">What is loaded below 4 GiB.</param>
    /// <param name="flavor">Which VMM is played.</param>
    /// <param name="kernel">Hashes of a kernel that is booted directly; null for none.</param>
    /// <param name="vcpus">How many, 1 to <see cref="MaxVcpus"/>.</param>
    /// <param name="signature">CPU signature of the vCPUs; some VMMs do not measure it (<see cref="VmmFlavor.MeasuresSignature"/>).</param>
    /// <param name="guestFeatures">SEV_FEATURES with bit 0 set. Whether the host has the others is for the kernel to say.</param>
    /// <exception cref="LaunchInputException">These do not go together.</exception>
    public static SnpLaunchPlan Create(
        FirmwareImage firmware, VmmFlavor flavor, KernelHashes? kernel, int vcpus, CpuSignature signature, ulong guestFeatures = SnpActive)
    {
        ArgumentNullException.ThrowIfNull(firmware);
        ArgumentNullException.ThrowIfNull(flavor);
        RequireSnpActive(guestFeatures);
        return new SnpLaunchPlan(
            firmware, flavor, signature, guestFeatures, kernel, [.. PlanRegions(firmware, flavor, kernel)], PlanVcpus(firmware, flavor, vcpus, signature))
        {
            ImagesGpa = firmware.Gpa,
        };
    }

    /// <summary>Makes a plan of a guest that an SVSM starts and stays below (<see cref="SvsmLaunch"/> says what is measured of it).</summary>
    /// <param name="firmware">The guest's firmware.</param>
    /// <param name="svsm">The SVSM image.</param>
    /// <param name="varsSize">Bytes of the variable store between the two, whole pages; it is not measured.</param>
    /// <param name="vcpus">How many, 1 to <see cref="MaxVcpus"/>.</param>
    /// <param name="signature">CPU signature of the vCPUs.</param>
    /// <param name="guestFeatures">SEV_FEATURES with bit 0 set.</param>
    /// <exception cref="LaunchInputException">These do not go together.</exception>
    public static SnpLaunchPlan CreateWithSvsm(
        FirmwareImage firmware, FirmwareImage svsm, ulong varsSize, int vcpus, CpuSignature signature, ulong guestFeatures = SnpActive)
    {
        RequireSnpActive(guestFeatures);
        var launch = SvsmLaunch.Create(firmware, svsm, varsSize, vcpus, signature, guestFeatures);
        return new SnpLaunchPlan(firmware, VmmFlavor.Qemu, signature, guestFeatures, kernel: null, [.. launch.Regions], [.. launch.Vcpus])
        {
            Svsm = svsm,
            ImagesGpa = firmware.Gpa - varsSize - svsm.Size,
        };
    }

    private static void RequireSnpActive(ulong guestFeatures)
    {
        if ((guestFeatures & SnpActive) == 0)
        {
            throw new LaunchInputException(
                $"The guest features (--guest-features) are 0x{guestFeatures:x}, without bit 0 (SNPActive), which is set in every SNP guest. Did you mean 0x{guestFeatures | SnpActive:x}?");
        }
    }

    /// <summary>The regions of a launch, the firmware first.</summary>
    internal static List<LaunchRegion> PlanRegions(FirmwareImage firmware, VmmFlavor flavor, KernelHashes? kernel)
    {
        if (kernel is not null && !firmware.SevSections.Any(section => section.Type == SevSectionType.SNP_KERNEL_HASHES))
        {
            throw new LaunchInputException(
                $"A kernel was specified but the SEV metadata of the firmware {firmware.Name} doesn't include an SNP_KERNEL_HASHES section (type 0x10), so the guest could not check the kernel. "
                + $"{Sections(firmware)} Use a firmware built for direct boot of measured kernels (edk2's OvmfPkg/AmdSev), or launch without --kernel.");
        }

        List<LaunchRegion> regions =
        [
            new(SnpPageType.NORMAL, firmware.Gpa, firmware.Size, LaunchSource.Firmware, "firmware") { Content = firmware.Bytes },
        ];
        foreach (SevSection section in flavor.Order(firmware.SevSections))
            regions.Add(PlanSection(firmware, flavor, kernel, section));

        return regions;
    }

    /// <summary>How a VMM launches a section of a firmware.</summary>
    internal static LaunchRegion PlanSection(FirmwareImage firmware, VmmFlavor flavor, KernelHashes? kernel, SevSection section)
    {
        switch (section.Type)
        {
            case SevSectionType.SNP_SEC_MEM:
                return Region(flavor.SecMemPageType);
            case SevSectionType.SVSM_CAA:
                return Region(SnpPageType.ZERO);
            case SevSectionType.SNP_SECRETS:
                RequireOnePage(firmware, section, "firmware makes a single secrets page");
                return Region(SnpPageType.SECRETS);
            case SevSectionType.CPUID:
                RequireOnePage(firmware, section, "the CPUID table is a single page");
                return Region(SnpPageType.CPUID, LaunchSource.CpuidPage);
            case SevSectionType.SNP_KERNEL_HASHES when kernel is null:
                return Region(SnpPageType.ZERO);
            case SevSectionType.SNP_KERNEL_HASHES:
                RequireOnePage(firmware, section, "the table of kernel hashes is launched as a single page");
                return Region(SnpPageType.NORMAL, LaunchSource.KernelHashPage) with { Content = kernel.BuildPage(HashTableIn(firmware, section)) };
            default:
                throw new LaunchInputException(
                    $"{firmware.Name}: the SEV section at 0x{section.Gpa:x} (offset 0x{section.Offset:x} in the image) has type 0x{(uint)section.Type:x}, and no VMM is known to launch such sections; known are "
                    + $"{string.Join(", ", Enum.GetValues<SevSectionType>().Select(type => $"{type} (0x{(uint)type:x})"))}. The image is damaged, or newer than VmmService: use another build.");
        }

        LaunchRegion Region(SnpPageType pageType, LaunchSource source = LaunchSource.None) => new(pageType, section.Gpa, section.Size, source, section.Type.ToString());
    }

    // The guest reads the table at the area that the footer names; a table measured elsewhere would never be found.
    private static uint HashTableIn(FirmwareImage firmware, SevSection section)
    {
        FirmwareArea area = firmware.RequireKernelHashArea();
        if (area.Base < section.Gpa || area.Base >= section.End)
        {
            throw new LaunchInputException(
                $"A kernel was specified but the kernel-hash area of the firmware {firmware.Name}, at 0x{area.Base:x}, is not in its SNP_KERNEL_HASHES section, 0x{section.Gpa:x} to 0x{section.End:x}, "
                + "so the guest would not find the measured table. The image contradicts itself: use another build, or launch without --kernel.");
        }

        return area.Base;
    }

    private static void RequireOnePage(FirmwareImage firmware, SevSection section, string why)
    {
        if (section.Size != FirmwareImage.PageSize)
        {
            throw new LaunchInputException(
                $"{firmware.Name}: the {section.Type} section at 0x{section.Gpa:x} (offset 0x{section.Offset:x} in the image) has 0x{section.Size:x} bytes, but {why} of 0x{FirmwareImage.PageSize:x}. "
                + "Use another build of the firmware.");
        }
    }

    /// <summary>The vCPUs as a VMM starts them: a BSP, and APs where the firmware says.</summary>
    internal static VcpuResetState[] PlanVcpus(FirmwareImage firmware, VmmFlavor flavor, int count, CpuSignature signature)
    {
        if (count is < 1 or > MaxVcpus)
            throw new LaunchInputException($"The number of vCPUs (--vcpus) is {count} and a VM has 1 to {MaxVcpus}.");

        var vcpus = new VcpuResetState[count];
        vcpus[0] = flavor.Bsp(signature);
        if (count == 1)
            return vcpus;

        if (firmware.SevEsResetEip is not { } resetEip)
        {
            throw new LaunchInputException(
                $"{count} vCPUs were asked for (--vcpus), but the firmware {firmware.Name} has no SEV-ES reset block ({(firmware.HasFooter ? "its footer lacks that entry" : "it has no footer table")}), "
                + "so it is not known where vCPUs other than the first start. Use --vcpus 1, or a firmware built for SEV-ES.");
        }

        Array.Fill(vcpus, flavor.Ap(signature, resetEip), 1, count - 1);
        return vcpus;
    }

    private static string Sections(FirmwareImage firmware) => firmware.SevSections.Count == 0
        ? $"It has {(firmware.HasFooter ? "no SEV metadata" : "no footer table and so no SEV metadata")} at all."
        : $"It has {string.Join(", ", firmware.SevSections.Select(section => section.Type).Distinct())}.";
}
