namespace VmmService.Client.Launch;

/// <summary>A range of guest memory that is added to a TD before it runs: a KVM_TDX_INIT_MEM_REGION, repeated until it is done.</summary>
/// <param name="Gpa">Page aligned.</param>
/// <param name="Size">Bytes, whole pages and not zero.</param>
/// <param name="Extend">Whether its content is measured (KVM_TDX_MEASURE_MEMORY_REGION); that it was added always is.</param>
/// <param name="Label">What it is, for people.</param>
public sealed record TdxRegion(ulong Gpa, ulong Size, bool Extend, string Label)
{
    /// <summary>The bytes that it starts with, at most <see cref="Size"/>; the rest is zeros.</summary>
    public ReadOnlyMemory<byte> Content { get; init; }

    /// <summary>Pages of 4 KiB.</summary>
    public ulong Pages => Size / FirmwareImage.PageSize;

    public ulong End => Gpa + Size;

    /// <summary>The content of a page.</summary>
    /// <param name="index">From 0.</param>
    /// <param name="page">4096 bytes.</param>
    public void ReadPage(ulong index, Span<byte> page)
    {
        ulong offset = index * FirmwareImage.PageSize;
        ReadOnlySpan<byte> left = offset < (ulong)Content.Length ? Content.Span[(int)offset..] : [];
        left = left[..Math.Min(left.Length, page.Length)];
        left.CopyTo(page);
        page[left.Length..].Clear();
    }
}

/// <summary>
/// A VMM as far as an MRTD can tell it from others, beside the order of measuring, which is the kernel's (<see cref="Digest.MrtdOrder"/>). It is data: another VMM is
/// another value, made with <c>with</c>.
/// </summary>
public sealed record TdxFlavor
{
    public static TdxFlavor Qemu { get; } = new() { Name = "qemu", Summary = "QEMU: sections in table order, EXTENDMR as the image has it" };

    public static TdxFlavor Gce { get; } = new()
    {
        Name = "gce-old",
        Summary = "older hypervisors of Google Compute Engine: every section is extended",
        ExtendsAll = true,
    };

    public static TdxFlavor TdShim { get; } = new()
    {
        Name = "td-shim",
        Summary = "td-shim's calculator: all section types, PAGE_AUG sections are not added, memory behind the data is zeros",
        Rules = TdvfRules.TdShim,
        SkipsAugmented = true,
        ZeroTail = true,
    };

    /// <summary>Every flavour that has a name.</summary>
    public static IReadOnlyList<TdxFlavor> All { get; } = [Qemu, Gce, TdShim];

    /// <summary>As on the command line.</summary>
    public required string Name { get; init; }

    /// <summary>What is special about it, for people.</summary>
    public required string Summary { get; init; }

    /// <summary>Which images it accepts.</summary>
    public TdvfRules Rules { get; init; }

    /// <summary>Whether it extends every section, whatever its attributes.</summary>
    public bool ExtendsAll { get; init; }

    /// <summary>Whether it leaves sections with PAGE_AUG to the TD.</summary>
    public bool SkipsAugmented { get; init; }

    /// <summary>Whether memory behind a section's data is zeros; else it goes on with the bytes that follow in the image.</summary>
    public bool ZeroTail { get; init; }

    /// <summary>Finds a flavour by its name, in any case.</summary>
    /// <exception cref="LaunchInputException">There is none.</exception>
    public static TdxFlavor Find(string name)
    {
        ArgumentNullException.ThrowIfNull(name);
        return All.FirstOrDefault(flavor => string.Equals(flavor.Name, name, StringComparison.OrdinalIgnoreCase))
            ?? throw new LaunchInputException($"The VMM (--vmm) '{name}' is not known. {NameList.Hint(name, All.Select(flavor => flavor.Name))}");
    }
}

/// <summary>
/// What the launch of a TD consists of, in order: the regions that KVM_TDX_INIT_MEM_REGION adds, and where its vCPUs find the hand-off blocks (tdx.md 6.5). It is a
/// function of the firmware, the memory size and a VMM's habits; it asks nobody. Regions do not overlap.
/// </summary>
public sealed class TdxLaunchPlan
{
    /// <summary>Memory of a guest when nothing is said, 2 GiB.</summary>
    public const ulong DefaultMemory = 2UL << 30;

    /// <summary>Most bytes that a launch adds, 1 GiB: many times what any firmware wants, little enough to hash.</summary>
    public const ulong MaxAdded = 1UL << 30;

    /// <summary>Every x86 CPU starts here.</summary>
    public const ulong ResetVector = 0xffff_fff0;

    private TdxLaunchPlan(FirmwareImage firmware, TdvfMetadata metadata, TdxFlavor flavor, IReadOnlyList<GuestRange> ram, TdvfSection? hobSection)
    {
        Firmware = firmware;
        Metadata = metadata;
        Flavor = flavor;
        Ram = ram;
        if (hobSection is { } section)
        {
            HobGpa = section.MemoryAddress;
            Hob = TdHob.Build(HobGpa, ram, metadata.Sections.Where(IsScratch).Select(each => new GuestRange(each.MemoryAddress, each.MemoryDataSize)));
            if ((ulong)Hob.Length > section.MemoryDataSize)
                throw Unfit(section, $"has 0x{section.MemoryDataSize:x} bytes, and the hand-off blocks for this guest need 0x{Hob.Length:x}");
        }

        Regions = [.. metadata.Sections.Where(IsAdded).Select(Region)];
    }

    public FirmwareImage Firmware { get; }

    public TdvfMetadata Metadata { get; }

    public TdxFlavor Flavor { get; }

    /// <summary>Where the guest has memory, beside the firmware.</summary>
    public IReadOnlyList<GuestRange> Ram { get; }

    /// <summary>The hand-off blocks. They are the content of the TD_HOB region, too. Empty for an image of td-shim that wants none.</summary>
    public ReadOnlyMemory<byte> Hob { get; }

    /// <summary>Where they are; what KVM_TDX_INIT_VCPU takes for every vCPU, whose RCX and R8 it becomes.</summary>
    public ulong HobGpa { get; }

    /// <summary>In order of launch.</summary>
    public IReadOnlyList<TdxRegion> Regions { get; }

    /// <summary>Pages that the launch adds.</summary>
    public ulong Pages => Regions.Aggregate(0UL, (sum, region) => sum + region.Pages);

    /// <summary>Makes a plan.</summary>
    /// <param name="firmware">An image with TDX metadata.</param>
    /// <param name="memory">Bytes of guest memory, whole pages; it is laid out as QEMU's q35 does.</param>
    /// <param name="flavor">Which VMM is played; QEMU if null.</param>
    /// <exception cref="LaunchInputException">These do not go together, or the image is not as its footer claims.</exception>
    public static TdxLaunchPlan Create(FirmwareImage firmware, ulong memory = DefaultMemory, TdxFlavor? flavor = null)
    {
        ArgumentNullException.ThrowIfNull(firmware);
        if (memory == 0 || memory % FirmwareImage.PageSize != 0 || memory > 1UL << 46)
            throw new LaunchInputException($"The guest's memory (--memory) is {memory} bytes; it has to be a positive multiple of {FirmwareImage.PageSize}, and at most 64 TiB.");

        flavor ??= TdxFlavor.Qemu;
        var metadata = TdvfMetadata.Parse(firmware, flavor.Rules);
        TdvfSection[] hobs = [.. metadata.Sections.Where(section => section.Type == TdvfSectionType.TD_HOB)];
        if (hobs.Length > 1 || (hobs.Length == 0 && flavor.Rules == TdvfRules.Qemu))
        {
            throw new LaunchInputException(
                $"{firmware.Name}: the TDX metadata has {hobs.Length} sections of type TD_HOB, and the VMM hands the memory map over in exactly one. Use another build of the firmware.");
        }

        return new TdxLaunchPlan(firmware, metadata, flavor, TdHob.Q35Memory(memory), hobs.Length == 0 ? null : hobs[0]).Checked();
    }

    // What the hand-off blocks state as memory that needs no acceptance.
    private static bool IsScratch(TdvfSection section) => section.Type is TdvfSectionType.TD_HOB or TdvfSectionType.TEMP_MEM;

    // What does not take part in a launch: sections that describe, and those that a VMM leaves to the TD.
    private bool IsAdded(TdvfSection section) =>
        section.Type is not (TdvfSectionType.TD_INFO or TdvfSectionType.TD_PARAMS) && !(Flavor.SkipsAugmented && section.IsAugmented);

    private TdxRegion Region(TdvfSection section)
    {
        if (section.MemoryDataSize == 0)
            throw Unfit(section, "is empty, and the kernel adds at least a page");
        return new TdxRegion(section.MemoryAddress, section.MemoryDataSize, Flavor.ExtendsAll || section.IsExtended, section.Type.ToString())
        {
            Content = section.Type switch
            {
                TdvfSectionType.TD_HOB => Hob,
                _ when section.RawDataSize == 0 => default,
                _ => Firmware.Bytes.Slice((int)section.DataOffset, DataSize(section)),
            },
        };
    }

    private int DataSize(TdvfSection section)
    {
        if (Flavor.ZeroTail)
            return (int)section.RawDataSize;
        if (section.MemoryDataSize > Firmware.Size - section.DataOffset)
        {
            throw Unfit(
                section, $"has 0x{section.MemoryDataSize:x} bytes of memory that are filled from offset 0x{section.DataOffset:x} of the image on, and the image has only 0x{Firmware.Size:x} bytes");
        }

        return (int)section.MemoryDataSize;
    }

    private TdxLaunchPlan Checked()
    {
        ulong added = 0;
        foreach (TdxRegion region in Regions)
        {
            added += Math.Min(region.Size, MaxAdded + 1);
            if (added > MaxAdded)
                throw new LaunchInputException($"{Firmware.Name}: its TDX sections take more than 0x{MaxAdded:x} bytes of guest memory, which no firmware needs to start. Use another build of the firmware.");
        }

        TdxRegion[] byGpa = [.. Regions.OrderBy(region => region.Gpa)];
        for (int i = 1; i < byGpa.Length; i++)
        {
            if (byGpa[i].Gpa < byGpa[i - 1].End)
            {
                throw new LaunchInputException(
                    $"{Firmware.Name}: its TDX sections {byGpa[i - 1].Label} at 0x{byGpa[i - 1].Gpa:x} and {byGpa[i].Label} at 0x{byGpa[i].Gpa:x} overlap, and a page can be added once. "
                    + "Use another build of the firmware.");
            }
        }

        return this;
    }

    private LaunchInputException Unfit(TdvfSection section, string what) => new(
        $"{Firmware.Name}: the {section.Type} section at 0x{section.MemoryAddress:x} (offset 0x{section.Offset:x} in the image) {what}. Use another build of the firmware.");
}
