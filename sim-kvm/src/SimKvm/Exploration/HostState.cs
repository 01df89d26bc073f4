using SimKvm.Kvm;
using SimMachine.Addressing;
using SimMachine.Amd;
using SimMachine.Intel;

namespace SimKvm.Exploration;

/// <summary>A host in the middle of a schedule: who holds and waits for what, and what attributes, pages, stage 2 and RMP say.</summary>
public sealed record HostState
{
    public required IReadOnlyList<ProgramState> Programs { get; init; }

    public required IReadOnlyList<VmState> Vms { get; init; }

    public required IReadOnlyList<FileState> Files { get; init; }

    /// <summary>Frames that the RMP assigns to somebody, in order.</summary>
    public required IReadOnlyList<RmpFrame> Rmp { get; init; }

    /// <summary>Frames that the TDX module has, in order.</summary>
    public required IReadOnlyList<TdxFrame> Pamt { get; init; }

    internal static HostState Of(SimHost host, Interleaving run) => new()
    {
        Programs = [.. Enumerable.Range(0, run.Programs).Select(program => new ProgramState(run.Position(program), run.Holds(program), run.WaitsFor(program)))],
        Vms = [.. QuiescentAudit.Vms(host).Select(VmState.Of)],
        Files = [.. host.Processes.SelectMany(process => process.Files.Open).Where(open => open.File is GuestMemfd).Select(open => FileState.Of(open.Fd, (GuestMemfd)open.File))],
        Rmp = [.. host.Machine.Rmp.Assigned()],
        Pamt = [.. host.Machine.Tdx.Frames().Take(VmState.MaxRuns)],
    };
}

/// <summary>Where a program is.</summary>
/// <param name="Position">Its call and the step that it stands at, in words.</param>
/// <param name="Holds">Locks, outermost first.</param>
/// <param name="WaitsFor">Empty where it can go on, or is done.</param>
public sealed record ProgramState(string Position, IReadOnlyList<string> Holds, string WaitsFor);

/// <summary>A VM's invalidations, attributes and stage 2.</summary>
/// <param name="InProgress">mmu_invalidate_in_progress.</param>
/// <param name="Seq">mmu_invalidate_seq.</param>
/// <param name="Attributes">Runs of gfns with attributes.</param>
/// <param name="Stage2">Runs of leaves; of a TD's private memory, KVM's mirror of them.</param>
/// <param name="Sept">Of a TD: what its Secure EPT has.</param>
public sealed record VmState(int InProgress, ulong Seq, IReadOnlyList<GfnValue> Attributes, IReadOnlyList<Stage2Run> Stage2, IReadOnlyList<SeptPage> Sept)
{
    internal const int MaxRuns = 256;

    internal static VmState Of(Vm vm) => new(
        vm.Mmu.InProgress, vm.Mmu.Seq, [.. vm.Attributes.Runs().Take(MaxRuns).Select(run => new GfnValue(run.Start, run.End, run.Value))],
        [.. vm.Mmu.Runs().Take(MaxRuns).Select(run => new Stage2Run(run.Gfns.Start.Value, run.Gfns.End.Value, run.First.Pfn.Value, run.First.IsPrivate, run.First.Writable))],
        [.. vm.Backend.SecureEptPages.Take(MaxRuns)]);
}

/// <summary>gfns from <paramref name="Start"/> to before <paramref name="End"/>.</summary>
public readonly record struct GfnValue(ulong Start, ulong End, ulong Attributes);

/// <summary>gfns that map to frames from <paramref name="Pfn"/> on.</summary>
public readonly record struct Stage2Run(ulong Start, ulong End, ulong Pfn, bool IsPrivate, bool Writable);

/// <summary>The pages of a guest_memfd.</summary>
public sealed record FileState(int Fd, IReadOnlyList<PageRunState> Pages)
{
    private const int MaxRuns = 256;

    internal static FileState Of(int fd, GuestMemfd file) => new(
        fd, [.. file.Inode.FolioRuns(0, PageTree<ulong>.Limit).Take(MaxRuns).Select(run => new PageRunState(run.Start, run.End, run.First.Pfn.Value, run.First.Uptodate))]);
}

/// <summary>Pages from <paramref name="Start"/> to before <paramref name="End"/>, in frames from <paramref name="Pfn"/> on.</summary>
public readonly record struct PageRunState(ulong Start, ulong End, ulong Pfn, bool Uptodate);
