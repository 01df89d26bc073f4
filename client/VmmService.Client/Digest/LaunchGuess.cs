using VmmService.Client.Launch;

namespace VmmService.Client.Digest;

/// <summary>In which order the sections of a firmware are launched.</summary>
public enum SectionOrder
{
    /// <summary>As the VMM is known to.</summary>
    Vmm,

    /// <summary>As in the firmware's table.</summary>
    Table,

    /// <summary>As in the table, CPUID pages after all others.</summary>
    CpuidLast,

    /// <summary>By ascending address.</summary>
    Address,
}

/// <summary>How memory that starts as zeros is launched.</summary>
public enum ZeroPages
{
    /// <summary>As the VMM is known to.</summary>
    Vmm,

    /// <summary>SNP_SEC_MEM as ZERO pages.</summary>
    Zero,

    /// <summary>SNP_SEC_MEM as UNMEASURED pages.</summary>
    Unmeasured,

    /// <summary>As NORMAL pages with zeros in them, so that their content is measured.</summary>
    Normal,
}

/// <summary>
/// A launch that a digest may be of, with more freedom than a VMM has: what <see cref="DigestSearch"/> varies. The number of vCPUs is not in it, because a search gets the digests of
/// all numbers in one walk.
/// </summary>
public sealed record LaunchGuess
{
    public required FirmwareImage Firmware { get; init; }

    public required VmmFlavor Flavor { get; init; }

    /// <summary>Hashes of a kernel; null if none is measured.</summary>
    public KernelHashes? Kernel { get; init; }

    public SectionOrder Order { get; init; }

    public ZeroPages Zero { get; init; }

    /// <summary>Whether a section is launched at all.</summary>
    public Func<SevSectionType, bool> Launches { get; init; } = _ => true;

    public required CpuSignature Signature { get; init; }

    public required ulong SevFeatures { get; init; }

    /// <summary>Whether vCPUs after the first start at the reset vector as it does, instead of where the firmware says.</summary>
    public bool ApsLikeBsp { get; init; }

    public ulong VmsaGpa { get; init; } = VmsaPage.KvmGpa;

    /// <summary>For a digest of 32 bytes: SEV-ES, which measures the vCPUs, or plain SEV.</summary>
    public bool EncryptedState { get; init; } = true;

    /// <summary>What an SNP launch measures before the vCPUs, in order.</summary>
    /// <exception cref="LaunchInputException">The firmware cannot be launched so.</exception>
    internal IEnumerable<LaunchRegion> Regions()
    {
        VmmFlavor flavor = Flavor with
        {
            CpuidSectionsLast = Order switch { SectionOrder.Vmm => Flavor.CpuidSectionsLast, SectionOrder.CpuidLast => true, _ => false },
            SecMemPageType = Zero switch { ZeroPages.Vmm => Flavor.SecMemPageType, ZeroPages.Unmeasured => SnpPageType.UNMEASURED, _ => SnpPageType.ZERO },
        };
        IEnumerable<LaunchRegion> sections = SnpLaunchPlan.PlanRegions(Firmware, flavor, Kernel)
            .Where(region => region.Source == LaunchSource.Firmware || !Enum.TryParse(region.Label, out SevSectionType type) || Launches(type))
            .Select(region => Zero == ZeroPages.Normal && region.PageType == SnpPageType.ZERO ? region with { PageType = SnpPageType.NORMAL } : region);
        // OrderBy keeps the order among equals: the firmware stays first.
        return Order == SectionOrder.Address ? sections.OrderBy(region => region.Source == LaunchSource.Firmware ? 0 : region.Gpa) : sections;
    }

    /// <summary>The first vCPU.</summary>
    internal VcpuResetState Bsp() => Flavor.Bsp(Signature);

    /// <summary>The other vCPUs; null if the firmware does not say where they start.</summary>
    internal VcpuResetState? Ap() => ApsLikeBsp ? Bsp() : Firmware.SevEsResetEip is { } eip ? Flavor.Ap(Signature, eip) : null;
}
