using VmmService.V1;

namespace VmmService.Client.Launch;

/// <summary>
/// In what VMMs differ when they launch the same firmware: the registers of a fresh vCPU, and type and order of the firmware's sections (snp.md 7.3, 8.2, 8.3).
/// </summary>
public sealed class VmmFlavor
{
    private const ulong CommonPat = 0x0007_0406_0007_0406;
    private const uint BspEip = 0xffff_fff0;

    /// <summary>QEMU, and whoever does as it does.</summary>
    public static readonly VmmFlavor Qemu = new("qemu") { Mxcsr = 0x1f80, Fcw = 0x37f, RdxIsSignature = true };

    /// <summary>The VMM of AWS EC2: KVM's own reset values, and CPUID pages last.</summary>
    public static readonly VmmFlavor Ec2 = new("ec2") { BspCsAttrib = 0x9a, SsAttrib = 0x92, TrAttrib = 0x83, CpuidLast = true };

    /// <summary>The VMM of Google Compute Engine: firmware memory is added unmeasured.</summary>
    public static readonly VmmFlavor Gce = new("gce") { Pat = 0x0007_0106, SecMemType = SnpPageType.Unmeasured };

    private VmmFlavor(string name) => Name = name;

    /// <summary>All flavours.</summary>
    public static IReadOnlyList<VmmFlavor> All { get; } = [Qemu, Ec2, Gce];

    public string Name { get; }

    /// <summary>RDX at reset is the CPU signature; otherwise KVM's 0x600 stays.</summary>
    public bool RdxIsSignature { get; private init; }

    /// <summary>Page type of SNP_SEC_MEM sections.</summary>
    public SnpPageType SecMemType { get; private init; } = SnpPageType.Zero;

    /// <summary>CPUID sections are launched after all others.</summary>
    public bool CpuidLast { get; private init; }

    private ushort BspCsAttrib { get; init; } = 0x9b;

    private ushort SsAttrib { get; init; } = 0x93;

    private ushort TrAttrib { get; init; } = 0x8b;

    private ulong Pat { get; init; } = CommonPat;

    private uint Mxcsr { get; init; }

    private ushort Fcw { get; init; }

    /// <summary>The flavour of a name, whatever its case.</summary>
    /// <exception cref="LaunchPlanException">There is none.</exception>
    public static VmmFlavor Find(string name) => All.FirstOrDefault(flavor => flavor.Name.Equals(name, StringComparison.OrdinalIgnoreCase))
        ?? throw new LaunchPlanException($"'{name}' is not a VMM whose launch is known; use one of {string.Join(", ", All)}.");

    /// <summary>Registers of the first vCPU, which starts at the reset vector.</summary>
    public VcpuResetState Bsp(uint signature) => State(BspCsAttrib, BspEip, signature);

    /// <summary>Registers of any other vCPU, which starts where the firmware's reset block says.</summary>
    public VcpuResetState Ap(uint signature, uint resetEip) => State(0x9b, resetEip, signature);

    public override string ToString() => Name;

    private VcpuResetState State(ushort csAttrib, uint eip, uint signature) => new()
    {
        Cs = new VmsaSegment(0xf000, csAttrib, 0xffff, eip & 0xffff_0000),
        Ss = new VmsaSegment(0, SsAttrib, 0xffff, 0),
        Tr = new VmsaSegment(0, TrAttrib, 0xffff, 0),
        Rip = eip & 0xffff,
        Rdx = RdxIsSignature ? signature : 0x600,
        Pat = Pat,
        Mxcsr = Mxcsr,
        Fcw = Fcw,
    };
}
