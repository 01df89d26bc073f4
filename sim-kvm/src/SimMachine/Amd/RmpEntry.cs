using SimMachine.Addressing;

namespace SimMachine.Amd;

/// <summary>
/// What the RMP says of one 4 KiB host page, in the raw layout of Zen 3 and 4 (snp.md 5.1): bit 0 assigned, 1 page size (1 is 2 MiB), 2 immutable, 50:12 gpa,
/// 60:51 ASID, 61 VMSA, 62 validated. The permissions of the four VMPLs have positions of our own. Beside it stands the call that wrote it, for blame.
/// </summary>
/// <remarks>
/// States (SNP firmware ABI, chapter 5), as this simulator uses them. Who may write the content stands behind each.
/// <code>
/// state          assigned validated asid immutable gpa  vmsa
/// Hypervisor        0         0      0       0      -     -    the host
/// Firmware          1         0      0       1      0     0    firmware
/// Reclaim           1         0      0       0      -     -    nobody, until RMPUPDATE makes it Hypervisor
/// Context           1         0      0       1      0     1    firmware (a guest context)
/// Pre-Guest         1         0     >0       1     set    -    firmware (being launched)
/// Guest-Invalid     1         0     >0       0     set    -    nobody, until the guest validates
/// Guest-Valid       1         1     >0       0     set    -    the guest
/// </code>
/// </remarks>
internal readonly record struct RmpEntry
{
    private const ulong AssignedBit = 1UL << 0;
    private const ulong PageSizeBit = 1UL << 1;
    private const ulong ImmutableBit = 1UL << 2;
    private const ulong GpaMask = 0x0007_ffff_ffff_f000;
    private const int AsidShift = 51;
    private const ulong AsidMask = 0x3ffUL << AsidShift;
    private const ulong VmsaBit = 1UL << 61;
    private const ulong ValidatedBit = 1UL << 62;

    /// <summary>VMPL0 may do everything, the others nothing: what RMPUPDATE leaves.</summary>
    public const uint PermissionsAfterUpdate = 0x0000_000f;

    /// <summary>The low quadword as RMP memory holds it.</summary>
    public ulong Raw { get; private init; }

    /// <summary>Four bits for each VMPL, VMPL0 lowest: read, write, execute-user, execute-supervisor.</summary>
    public uint Permissions { get; init; }

    /// <summary>Low bits of the number of the call that wrote the entry.</summary>
    public uint WrittenByCall { get; init; }

    public bool Assigned { get => (Raw & AssignedBit) != 0; init => Raw = With(Raw, AssignedBit, value); }

    public bool Is2M { get => (Raw & PageSizeBit) != 0; init => Raw = With(Raw, PageSizeBit, value); }

    public bool Immutable { get => (Raw & ImmutableBit) != 0; init => Raw = With(Raw, ImmutableBit, value); }

    public bool Vmsa { get => (Raw & VmsaBit) != 0; init => Raw = With(Raw, VmsaBit, value); }

    public bool Validated { get => (Raw & ValidatedBit) != 0; init => Raw = With(Raw, ValidatedBit, value); }

    /// <summary>Guest physical address, page aligned.</summary>
    public ulong Gpa { get => Raw & GpaMask; init => Raw = (Raw & ~GpaMask) | (value & GpaMask); }

    public uint Asid { get => (uint)((Raw & AsidMask) >> AsidShift); init => Raw = (Raw & ~AsidMask) | ((ulong)value << AsidShift & AsidMask); }

    public PageLevel Level => Is2M ? PageLevel.Page2M : PageLevel.Page4K;

    public RmpPageState State => (Assigned, Asid, Immutable, Validated) switch
    {
        (false, _, _, _) => RmpPageState.Hypervisor,
        (true, 0, true, _) => Vmsa ? RmpPageState.Context : Gpa != 0 ? RmpPageState.Metadata : RmpPageState.Firmware,
        (true, 0, false, _) => RmpPageState.Reclaim,
        (true, _, true, false) => RmpPageState.PreGuest,
        (true, _, true, true) => RmpPageState.PreSwap,
        (true, _, false, false) => RmpPageState.GuestInvalid,
        (true, _, false, true) => RmpPageState.GuestValid,
    };

    private static ulong With(ulong raw, ulong bit, bool value) => value ? raw | bit : raw & ~bit;
}

/// <summary>State of a page as firmware names it (SNP firmware ABI, chapter 5).</summary>
public enum RmpPageState
{
    Hypervisor,
    Firmware,
    Reclaim,
    Context,
    Metadata,
    PreGuest,
    GuestInvalid,
    GuestValid,
    PreSwap,
}

/// <summary>
/// The form in which RMPUPDATE takes and RMPREAD gives an entry (16 bytes in memory: gpa, assigned, pagesize, immutable, reserved, asid).
/// </summary>
/// <param name="Gpa">Guest physical address in bytes, page aligned.</param>
/// <param name="Asid">Owner: 0 is firmware.</param>
public readonly record struct RmpState(bool Assigned, PageLevel Level, bool Immutable, uint Asid, ulong Gpa)
{
    /// <summary>A page of the host: what rmp_make_shared asks for.</summary>
    public static RmpState Shared(PageLevel level) => new(false, level, false, 0, 0);
}
