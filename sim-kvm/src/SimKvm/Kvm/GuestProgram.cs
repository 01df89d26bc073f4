using SimMachine.Intel;

namespace SimKvm.Kvm;

/// <summary>How a guest access says whether it wants private or shared memory.</summary>
public enum GuestAccess
{
    /// <summary>It does not say: what the VM type makes of an access without more (encrypted on SNP, the attribute's choice on SW_PROTECTED).</summary>
    Unmarked,
    Private,
    Shared,
}

/// <summary>One thing that a guest does. A vCPU executes a list of them instead of machine code.</summary>
public abstract record GuestStep
{
    /// <summary>Largest access of one step, bytes.</summary>
    public const ulong MaxLength = 1UL << 30;
}

/// <summary>A step that touches guest memory.</summary>
/// <param name="Gpa">First byte; no alignment is asked for.</param>
/// <param name="Length">Bytes.</param>
/// <param name="Access">How the access is marked.</param>
public abstract record GuestMemoryStep(ulong Gpa, ulong Length, GuestAccess Access) : GuestStep;

/// <summary>Loads; the bytes are in the step's result.</summary>
public sealed record GuestRead(ulong Gpa, ulong Length, GuestAccess Access) : GuestMemoryStep(Gpa, Length, Access);

/// <summary>Stores bytes.</summary>
public sealed record GuestWrite(ulong Gpa, ReadOnlyMemory<byte> Data, GuestAccess Access) : GuestMemoryStep(Gpa, (ulong)Data.Length, Access);

/// <summary>Stores a pattern over and over.</summary>
/// <param name="Pattern">At least one byte; it starts anew at <paramref name="Gpa"/>, not at pages.</param>
public sealed record GuestFill(ulong Gpa, ulong Length, ReadOnlyMemory<byte> Pattern, GuestAccess Access) : GuestMemoryStep(Gpa, Length, Access);

/// <summary>Loads and compares with a pattern that is repeated over the length.</summary>
public sealed record GuestCompare(ulong Gpa, ulong Length, ReadOnlyMemory<byte> Pattern, GuestAccess Access) : GuestMemoryStep(Gpa, Length, Access);

/// <summary>VMCALL or VMMCALL: nr in RAX, arguments in RBX, RCX, RDX, RSI.</summary>
/// <param name="LongMode">False for a caller outside 64-bit mode, whose registers are cut to 32 bits.</param>
/// <param name="Cpl">Privilege level, 0 for the kernel.</param>
public sealed record GuestHypercall(ulong Nr, ulong A0, ulong A1, ulong A2, ulong A3, bool LongMode, int Cpl) : GuestStep;

/// <summary>PVALIDATE, of SNP guests: RAX and the carry flag are in the step's result.</summary>
/// <param name="Gpa">Of a private page; the guest's own tables map it one to one.</param>
/// <param name="Large">2 MiB.</param>
/// <param name="Validate">False gives the page up.</param>
public sealed record GuestPvalidate(ulong Gpa, bool Large, bool Validate) : GuestStep;

/// <summary>RMPADJUST, of SNP guests: RAX is in the step's result.</summary>
/// <param name="Gpa">Of a private page.</param>
/// <param name="Large">2 MiB.</param>
/// <param name="TargetVmpl">Whose rights, 1 to 3.</param>
/// <param name="Permissions">Bit 0 read, 1 write, 2 execute-user, 3 execute-supervisor.</param>
/// <param name="Vmsa">The page becomes a VMSA.</param>
public sealed record GuestRmpadjust(ulong Gpa, bool Large, int TargetVmpl, uint Permissions, bool Vmsa) : GuestStep;

/// <summary>TDCALL, of TDs: registers in; those after it are in the step's result.</summary>
/// <param name="Registers">RAX is the leaf.</param>
public sealed record GuestTdcall(TdcallRegisters Registers) : GuestStep;

/// <summary>OUT: stores 1, 2 or 4 bytes to a port.</summary>
public sealed record GuestOut(ushort Port, ReadOnlyMemory<byte> Data) : GuestStep;

/// <summary>IN: loads 1, 2 or 4 bytes from a port; they are in the step's result.</summary>
public sealed record GuestIn(ushort Port, int Size) : GuestStep;

/// <summary>Writes the GHCB MSR and executes VMGEXIT, of SEV-ES and SNP guests; the MSR's value afterwards is the step's RAX.</summary>
/// <param name="GhcbMsr">A request of the MSR protocol, or the gpa of the GHCB.</param>
public sealed record GuestVmgexit(ulong GhcbMsr) : GuestStep;

/// <summary>HLT.</summary>
public sealed record GuestHalt : GuestStep;

/// <summary>A triple fault.</summary>
public sealed record GuestShutdown : GuestStep;

/// <summary>Where a guest is in its program, and what KVM left in the run page.</summary>
/// <param name="Next">The next step; the program's length at its end.</param>
/// <param name="Length">Steps of the program.</param>
/// <param name="Results">Of the steps done since the last look.</param>
/// <param name="Run">The run page and the PIO page.</param>
public sealed record GuestProgress(int Next, int Length, IReadOnlyList<GuestStepResult> Results, ReadOnlyMemory<byte> Run)
{
    internal const int RunBytes = 2 * SimMachine.Addressing.PageSize.Bytes;
}

/// <summary>What a step brought, when it is done.</summary>
/// <param name="Step">Its place in the program, from 0.</param>
/// <param name="Data">Bytes that a read or an IN loaded.</param>
/// <param name="Rax">RAX after a hypercall.</param>
/// <param name="Carry">The carry flag after PVALIDATE: the page had that state already.</param>
/// <param name="MismatchAt">Offset of the first byte that a compare found to differ, or null.</param>
/// <param name="Exception">The exception that ended the step early, or null.</param>
public sealed record GuestStepResult(int Step, ReadOnlyMemory<byte> Data, ulong Rax, bool Carry, ulong? MismatchAt, GuestException? Exception)
{
    /// <summary>Registers after a TDCALL, else null.</summary>
    public TdcallRegisters? Registers { get; init; }

    /// <summary>Why the hypervisor or firmware did not do what the step asked for. The guest is told a number; these are the reasons behind it.</summary>
    public IReadOnlyList<SimMachine.Stepping.Cause> Causes { get; init; } = [];

    /// <summary>What the hypervisor left in the GHCB, after a step that used one.</summary>
    public Vendors.Amd.Guests.GhcbReply? Ghcb { get; init; }

    /// <summary>How a message to firmware went, after a step that sent one.</summary>
    public Vendors.Amd.Guests.GuestMessageResult? Message { get; init; }
}

/// <summary>An exception in the guest.</summary>
/// <param name="Name">For example #VC.</param>
/// <param name="Code">Its error or exit code, for example 0x404 for a page that is not validated.</param>
/// <param name="Gpa">Where.</param>
public sealed record GuestException(string Name, ulong Code, ulong Gpa);
