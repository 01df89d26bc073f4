using SimKvm.Kvm;

namespace SimKvm.Vendors.Amd.Guests;

/// <summary>What a guest finds in its GHCB behind VMGEXIT.</summary>
/// <param name="ExitInfo1">sw_exit_info_1: 0 understood, 1 raise the exception in <paramref name="ExitInfo2"/>, 2 malformed.</param>
/// <param name="ExitInfo2">sw_exit_info_2: the answer, or the reason.</param>
public sealed record GhcbReply(ulong ExitInfo1, ulong ExitInfo2, ulong Rax, ulong Rbx, ulong Rcx, ulong Rdx);

/// <summary>
/// One event by a GHCB, as a guest's #VC handler or driver raises it: fills the page in shared memory, puts its gpa into the GHCB MSR, VMGEXIT, reads the answer. An SNP guest has
/// to have registered the page. The step's data is the shared buffer afterwards, as much of it as was given.
/// </summary>
/// <param name="GhcbGpa">The page; must be mapped shared.</param>
/// <param name="ExitCode">sw_exit_code.</param>
/// <param name="ExitInfo1">sw_exit_info_1.</param>
/// <param name="ExitInfo2">sw_exit_info_2.</param>
public sealed record GuestGhcbCall(ulong GhcbGpa, ulong ExitCode, ulong ExitInfo1, ulong ExitInfo2) : GuestRoutine
{
    /// <summary>Bytes that a GHCB has for what does not fit its fields.</summary>
    public const int MaxBuffer = Ghcb.SharedBufferSize;

    public ulong? Rax { get; init; }

    public ulong? Rbx { get; init; }

    public ulong? Rcx { get; init; }

    public ulong? Rdx { get; init; }

    public ulong? Rsi { get; init; }

    public byte? Cpl { get; init; }

    public ulong? Xcr0 { get; init; }

    /// <summary>sw_scratch; null is the shared buffer where there is one, else the field is left out.</summary>
    public ulong? Scratch { get; init; }

    /// <summary>At most <see cref="MaxBuffer"/> bytes.</summary>
    public ReadOnlyMemory<byte> SharedBuffer { get; init; }

    /// <summary>ghcb_usage; 0 is the only one that KVM knows.</summary>
    public uint Usage { get; init; }

    internal override IEnumerable<GuestStep> Instructions(GuestRoutineState state)
    {
        yield return new GuestWrite(GhcbGpa, Fill().Page, GuestAccess.Shared);
        yield return new GuestVmgexit(GhcbGpa);
        state.Rax = state.Last.Rax;
        yield return new GuestRead(GhcbGpa, Ghcb.Size, GuestAccess.Shared);
        var ghcb = new Ghcb(GhcbGpa, state.Last.Data.ToArray());
        state.Ghcb = new GhcbReply(
            ghcb[Ghcb.ExitInfo1], ghcb[Ghcb.ExitInfo2], ghcb.IfValid(Ghcb.Rax), ghcb.IfValid(Ghcb.Rbx), ghcb.IfValid(Ghcb.Rcx), ghcb.IfValid(Ghcb.Rdx));
        state.Data = ghcb.Buffer(SharedBuffer.Length);
    }

    private Ghcb Fill()
    {
        const int newestProtocol = 2;
        var ghcb = new Ghcb();
        ghcb.Set(Ghcb.ExitCode, ExitCode);
        ghcb.Set(Ghcb.ExitInfo1, ExitInfo1);
        ghcb.Set(Ghcb.ExitInfo2, ExitInfo2);
        ghcb.SetProtocol(newestProtocol, Usage);
        ghcb.SetSharedBuffer(SharedBuffer.Span);
        foreach ((int field, ulong? value) in new[]
        {
            (Ghcb.Rax, Rax), (Ghcb.Rbx, Rbx), (Ghcb.Rcx, Rcx), (Ghcb.Rdx, Rdx), (Ghcb.Rsi, Rsi), (Ghcb.Xcr0, Xcr0),
            (Ghcb.Scratch, Scratch ?? (SharedBuffer.IsEmpty ? null : GhcbGpa + Ghcb.SharedBuffer)),
        })
        {
            if (value is { } given)
            {
                ghcb.Set(field, given);
            }
        }
        if (Cpl is { } cpl)
        {
            ghcb.SetCpl(cpl);
        }
        return ghcb;
    }
}
