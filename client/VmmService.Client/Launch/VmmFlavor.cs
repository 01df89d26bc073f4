namespace VmmService.Client.Launch;

/// <summary>
/// A VMM as far as a measurement can tell it from others: which page types it gives to the sections of a firmware and in what order it launches them
/// (snp.md 8.2, 8.3), and the registers that its vCPUs start with (snp.md 7.3). It is data: another VMM is another value, made with <c>with</c>. What is launched
/// with it is <see cref="SnpLaunchPlan"/>'s.
/// </summary>
/// <remarks>
/// Two more are known and not here. krun starts at a Linux kernel, without a firmware. SVSM puts a second image below the firmware, takes the sections of that one,
/// and starts every vCPU flat in 32 bits.
/// </remarks>
public sealed record VmmFlavor
{
    /// <summary>The reset vector, where every x86 CPU starts.</summary>
    internal const uint BspEip = 0xfffffff0;

    public static VmmFlavor Qemu { get; } = new()
    {
        Name = "qemu",
        Summary = "QEMU: sections in table order, CPU signature in RDX",
    };

    public static VmmFlavor Ec2 { get; } = new()
    {
        Name = "ec2",
        Summary = "Amazon EC2: CPUID pages last, RDX 0x600, no x87 or SSE state",
        CpuidSectionsLast = true,
        BspCsAttrib = new(0x9a),
        SsAttrib = new(0x92),
        TrAttrib = new(0x83),
        Rdx = 0x600,
        Mxcsr = 0,
        Fcw = 0,
    };

    public static VmmFlavor Gce { get; } = new()
    {
        Name = "gce",
        Summary = "Google Compute Engine: SNP_SEC_MEM is unmeasured, RDX 0x600, a PAT of its own, no x87 or SSE state",
        SecMemPageType = SnpPageType.UNMEASURED,
        Rdx = 0x600,
        GPat = 0x00070106,
        Mxcsr = 0,
        Fcw = 0,
    };

    /// <summary>Every flavour that has a name.</summary>
    public static IReadOnlyList<VmmFlavor> All { get; } = [Qemu, Ec2, Gce];

    /// <summary>As on the command line.</summary>
    public required string Name { get; init; }

    /// <summary>What is special about it, for people.</summary>
    public required string Summary { get; init; }

    /// <summary>Page type of SNP_SEC_MEM sections.</summary>
    public SnpPageType SecMemPageType { get; init; } = SnpPageType.ZERO;

    /// <summary>Whether CPUID sections wait for all others.</summary>
    public bool CpuidSectionsLast { get; init; }

    public SegmentAttributes BspCsAttrib { get; init; } = new(0x9b);

    public SegmentAttributes ApCsAttrib { get; init; } = new(0x9b);

    public SegmentAttributes SsAttrib { get; init; } = new(0x93);

    public SegmentAttributes TrAttrib { get; init; } = new(0x8b);

    /// <summary>RDX of every vCPU; null for the CPU signature.</summary>
    public uint? Rdx { get; init; }

    /// <summary>MSR IA32_PAT.</summary>
    public ulong GPat { get; init; } = 0x0007040600070406;

    public uint Mxcsr { get; init; } = 0x1f80;

    /// <summary>x87 control word.</summary>
    public ushort Fcw { get; init; } = 0x37f;

    /// <summary>Whether the CPU signature is part of what it measures.</summary>
    public bool MeasuresSignature => Rdx is null;

    /// <summary>Finds a flavour by its name, in any case.</summary>
    /// <exception cref="LaunchInputException">There is none.</exception>
    public static VmmFlavor Find(string name)
    {
        ArgumentNullException.ThrowIfNull(name);
        return All.FirstOrDefault(flavor => string.Equals(flavor.Name, name, StringComparison.OrdinalIgnoreCase))
            ?? throw new LaunchInputException($"The VMM (--vmm) '{name}' is not known. {NameList.Hint(name, All.Select(flavor => flavor.Name))}");
    }

    /// <summary>The sections of a firmware in the order of launch.</summary>
    public IEnumerable<SevSection> Order(IEnumerable<SevSection> sections) =>
        CpuidSectionsLast ? sections.OrderBy(section => section.Type == SevSectionType.CPUID) : sections; // OrderBy keeps the order among equals.

    /// <summary>The vCPU that starts at the reset vector.</summary>
    public VcpuResetState Bsp(CpuSignature signature) => At(BspEip, BspCsAttrib, signature);

    /// <summary>A vCPU that starts where the firmware says.</summary>
    /// <param name="signature">The vCPU's CPU signature.</param>
    /// <param name="resetEip">The value of the SEV-ES reset block.</param>
    public VcpuResetState Ap(CpuSignature signature, uint resetEip) => At(resetEip, ApCsAttrib, signature);

    private VcpuResetState At(uint eip, SegmentAttributes csAttrib, CpuSignature signature)
    {
        var data = new SegmentState(0, new(0x93), 0xffff, 0);
        return new VcpuResetState
        {
            Es = data,
            Cs = new(0xf000, csAttrib, 0xffff, eip & 0xffff0000),
            Ss = data with { Attrib = SsAttrib },
            Ds = data,
            Fs = data,
            Gs = data,
            Ldtr = data with { Attrib = new(0x82) },
            Tr = data with { Attrib = TrAttrib },
            Gdtr = new(0xffff, 0),
            Idtr = new(0xffff, 0),
            Rip = eip & 0xffff,
            Rdx = Rdx ?? signature.Value,
            GPat = GPat,
            Mxcsr = Mxcsr,
            Fcw = Fcw,
        };
    }
}
