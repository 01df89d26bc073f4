namespace SimKvm.Tests.Tdx;

/// <summary>What a random VMM of a TD does.</summary>
internal enum TdxDo
{
    SplitIrqchip,
    Capabilities,
    InitVm,
    UnknownOnVm,
    CreateVcpu,
    SetCpuid,
    InitVcpu,
    InitMemRegion,
    FinalizeVm,
    GetCpuid,
    UnknownOnVcpu,
    BadPointerOnVcpu,
    SetAttribute,
    PunchHole,
    PreFault,
    GuestAccept,
    GuestRead,
}

/// <summary>How the CPUID list of KVM_TDX_INIT_VM is.</summary>
internal enum TdxCpuidList
{
    Width48,
    Width52,
    Empty,
    Width47,
    UnknownLeaf,
    Duplicate,
    Tsx,
}

/// <summary>Where the content of a region comes from.</summary>
internal enum TdxSource
{
    Mapped,
    MappedThenNot,
    Unmapped,
    Null,
    Unaligned,
}

/// <summary>One call, with arguments that may be wrong.</summary>
/// <param name="Vcpu">Which of the vCPUs, or the id of a new one.</param>
/// <param name="Page">Page of guest memory; those from 8 on have no slot.</param>
/// <param name="Count">Pages, or entries that there is room for.</param>
internal sealed record TdxOp(TdxDo Do)
{
    public int Vcpu { get; init; }

    public uint Flags { get; init; }

    public ulong HwError { get; init; }

    public bool BadData { get; init; }

    public int Page { get; init; }

    public ulong Count { get; init; }

    public bool IsOn { get; init; }

    public ulong Attributes { get; init; }

    public ulong Xfam { get; init; }

    public uint Padding { get; init; }

    public TdxCpuidList Cpuid { get; init; }

    public TdxSource Source { get; init; }

    /// <summary>The gpa has the shared bit, or is not aligned.</summary>
    public ulong GpaBits { get; init; }

    // How launches begin.
    private static readonly TdxDo[] Opening = [TdxDo.SplitIrqchip, TdxDo.InitVm, TdxDo.CreateVcpu, TdxDo.SetCpuid, TdxDo.InitVcpu, TdxDo.SetAttribute, TdxDo.SetAttribute];

    /// <summary>A call drawn so that launches come far, and every argument is wrong now and then.</summary>
    /// <param name="call">Its place among the calls.</param>
    /// <param name="vcpus">vCPUs that there are.</param>
    public static TdxOp Draw(Random dice, int call, int vcpus)
    {
        const int repeats = 3, building = 60;
        bool Rarely() => dice.Next(12) == 0;
        uint flags = Rarely() ? 2u : 0;
        ulong hwError = Rarely() ? 1u : 0;
        TdxDo what = dice.Next(100) switch
        {
            < 4 => TdxDo.SplitIrqchip,
            < 7 => TdxDo.Capabilities,
            < 14 => TdxDo.InitVm,
            < 15 => TdxDo.UnknownOnVm,
            < 23 => TdxDo.CreateVcpu,
            < 30 => TdxDo.SetCpuid,
            < 38 => TdxDo.InitVcpu,
            < 60 => TdxDo.InitMemRegion,
            < 61 => TdxDo.FinalizeVm,
            < 63 when call > building => TdxDo.FinalizeVm,
            < 65 => TdxDo.GetCpuid,
            < 66 => TdxDo.UnknownOnVcpu,
            < 68 => TdxDo.BadPointerOnVcpu,
            < 80 => TdxDo.SetAttribute,
            < 84 => TdxDo.PunchHole,
            < 89 => TdxDo.PreFault,
            < 97 => TdxDo.GuestAccept,
            _ => TdxDo.GuestRead,
        };
        if (call < Opening.Length * repeats && dice.Next(4) != 0)
        {
            what = Opening[call / repeats];
        }
        return new TdxOp(what)
        {
            Vcpu = what == TdxDo.CreateVcpu ? dice.Next(12) switch { < 10 and var id => id, 10 => 100, _ => 5000 } : dice.Next(Math.Max(vcpus, 1)),
            Flags = what == TdxDo.InitMemRegion ? flags | (uint)dice.Next(2) : flags,
            HwError = hwError,
            BadData = Rarely(),
            Page = dice.Next(10),
            Count = what is TdxDo.Capabilities or TdxDo.GetCpuid ? (dice.Next(3) == 0 ? (ulong)dice.Next(12) : 256) : (ulong)dice.Next(4),
            IsOn = dice.Next(4) != 0,
            Attributes = dice.Next(8) switch { 0 => 1, 1 => 1UL << 30, < 5 => 0, _ => 1UL << 28 },
            Xfam = dice.Next(8) switch { 0 => 0x100, 1 => 0, _ => 3 },
            Padding = Rarely() ? 1u : 0,
            Cpuid = dice.Next(3) == 0 ? (TdxCpuidList)dice.Next(7) : TdxCpuidList.Width48,
            Source = dice.Next(4) == 0 ? (TdxSource)dice.Next(5) : TdxSource.Mapped,
            GpaBits = dice.Next(15) switch { 0 => 1UL << 47, 1 => 0x800, _ => 0 },
        };
    }
}
