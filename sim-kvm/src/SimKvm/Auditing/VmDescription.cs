using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Userspace;
using SimKvm.Vendors.Amd;
using SimMachine.Addressing;
using SimMachine.Amd;
using SimMachine.Amd.Legacy;

namespace SimKvm.Auditing;

/// <summary>The state of a VM as ranges, for people: what a kernel does not tell. Reading it is no call and changes nothing.</summary>
public sealed record VmDescription(
    VmType Type,
    bool Dead,
    ulong MmuInvalidateSeq,
    IReadOnlyList<SlotDescription> Slots,
    IReadOnlyList<PageRun<ulong>> Attributes,
    IReadOnlyList<VcpuDescription> Vcpus,
    SevDescription Sev,
    IReadOnlyList<RmpRun> Rmp)
{
    /// <summary>Stage 2: gfns, the first frame, level, permissions; runs of leaves that are alike and whose frames follow each other.</summary>
    public IReadOnlyList<Stage2Run> Stage2 { get; init; } = [];

    /// <summary>The guest_memfds of this VM that are open, those with a descriptor first.</summary>
    public IReadOnlyList<GuestMemfdDescription> GuestMemfds { get; init; } = [];

    /// <summary>mmu_invalidate_in_progress</summary>
    public int MmuInvalidateInProgress { get; init; }

    /// <summary>mmu_invalidate_range_start and _end as gfns, while an invalidation is in progress; else zeros.</summary>
    public (ulong Start, ulong End) MmuInvalidateRange { get; init; }

    /// <summary>users_count. Descriptors and mappings of <see cref="References"/> hold it.</summary>
    public int Users { get; init; }

    /// <summary>Descriptors, of any process, that keep the VM.</summary>
    public IReadOnlyList<VmReference> References { get; init; } = [];

    /// <summary>Describes the VM behind a VM fd; null where the fd is no VM fd.</summary>
    public static VmDescription? Of(Process process, int fd)
    {
        if (!process.Files.TryGet(fd, out KernelFile? file) || file is not VmFile { Vm: var vm })
        {
            return null;
        }
        var backend = vm.Backend as SevBackend;
        SnpGuestStatus? guest = backend?.SnpStatus;
        return new VmDescription(
            vm.Type,
            vm.Dead,
            vm.Mmu.Seq,
            [.. vm.Memslots.All.Select(SlotDescription.Of)],
            [.. vm.Attributes.Runs()],
            [.. vm.Vcpus.Select(vcpu => new VcpuDescription(vcpu.Id, vcpu.Index, vcpu.Arch.GuestStateProtected))],
            backend is null
                ? new SevDescription(false, 0, 0, 0, 0, false, null, null)
                : new SevDescription(backend.Summary.Active, backend.Summary.Asid, backend.Summary.VmsaFeatures, backend.Summary.GhcbVersion, backend.Summary.Policy, backend.Summary.CertsEnabled, guest, backend.LegacyStatus),
            backend?.Summary.Active == true ? RmpRun.Merge(vm.Host.Machine.Rmp.Owned(backend.Summary.Asid)) : [])
        {
            Stage2 = [.. vm.Mmu.Runs().Select(run => new Stage2Run(run.Gfns.Start.Value, run.Gfns.End.Value, run.First.Pfn.Value, run.First.Level, run.First.Writable, run.First.IsPrivate))],
            GuestMemfds = GuestMemfdDescription.Of(vm),
            MmuInvalidateInProgress = vm.Mmu.InProgress,
            MmuInvalidateRange = vm.Mmu.InProgress > 0 ? vm.Mmu.InvalidateRange : default,
            Users = vm.Users,
            References = VmReference.Of(vm),
        };
    }

    /// <summary>VM descriptors of all processes of a host, by pid and fd: where a person can begin to look.</summary>
    public static IEnumerable<VmReference> All(SimHost host) => VmReference.Of(host, file => file is VmFile);
}

/// <param name="BaseGfn">First gfn.</param>
/// <param name="Flags">KVM_MEM_* of the request.</param>
/// <param name="GmemBound">A guest_memfd is bound and open.</param>
/// <param name="GmemPgoff">Page offset in it.</param>
public sealed record SlotDescription(
    int AsId, int Id, ulong BaseGfn, ulong Npages, ulong UserspaceAddr, uint Flags, bool GmemBound, ulong GmemPgoff)
{
    internal static SlotDescription Of(Memslot slot) => new(
        slot.AsId, slot.Id, slot.BaseGfn, slot.Npages, slot.UserspaceAddr, slot.Flags & 0xffff, slot.GmemFile is not null, slot.GmemPgoff);
}

public sealed record VcpuDescription(ulong Id, int Index, bool GuestStateProtected);

/// <param name="Guest">What firmware has of an SNP guest; null before SNP_LAUNCH_START.</param>
/// <param name="Legacy">What firmware has of a SEV or SEV-ES guest; null before LAUNCH_START.</param>
public sealed record SevDescription(bool Active, uint Asid, ulong VmsaFeatures, uint GhcbVersion, ulong Policy, bool CertsEnabled, SnpGuestStatus? Guest, SevGuestStatus? Legacy);

/// <summary>Pages that the RMP assigns to a guest, contiguous in gpa and alike.</summary>
/// <param name="Gpa">First byte.</param>
/// <param name="Size">Bytes.</param>
public sealed record RmpRun(ulong Gpa, ulong Size, RmpPageState State, bool Vmsa)
{
    /// <summary>Sorts by gpa and joins neighbours. VMSAs share one gpa and are counted together.</summary>
    internal static IReadOnlyList<RmpRun> Merge(IEnumerable<(ulong Gpa, RmpPageState State, bool Vmsa)> pages)
    {
        var runs = new List<RmpRun>();
        foreach ((ulong gpa, RmpPageState state, bool vmsa) in pages.OrderBy(page => page.Gpa))
        {
            RmpRun? last = runs.Count > 0 ? runs[^1] : null;
            bool joins = last is not null && last.State == state && last.Vmsa == vmsa && (vmsa ? last.Gpa == gpa : last.Gpa + last.Size == gpa);
            if (joins)
            {
                runs[^1] = last! with { Size = last.Size + PageSize.Bytes };
            }
            else
            {
                runs.Add(new RmpRun(gpa, PageSize.Bytes, state, vmsa));
            }
        }
        return runs;
    }
}
