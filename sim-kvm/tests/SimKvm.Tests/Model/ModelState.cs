using SimKvm.Userspace;

namespace SimKvm.Tests.Model;

// The state of the model: what is there, page by page, and nothing derived. No counters: who is alive follows from who can be reached.

/// <summary>A process: descriptors, and what is mapped at each page of its memory.</summary>
internal sealed class ModelProcess
{
    public SortedDictionary<int, ModelFile> Files { get; } = [];

    public SortedDictionary<ulong, ModelMapping> Memory { get; } = [];

    public int LowestFreeFd => Enumerable.Range(3, Files.Count + 1).First(fd => !Files.ContainsKey(fd));
}

/// <summary>A page of a process's memory. Anonymous without a file; then <see cref="Bytes"/> is null until something is stored.</summary>
internal sealed class ModelMapping(uint prot, ModelFile? file, ulong filePage)
{
    public uint Prot { get; } = prot;

    public ModelFile? File { get; } = file;

    public ulong FilePage { get; } = filePage;

    public byte[]? Bytes { get; set; }
}

/// <summary>An open file, shared by the descriptors and pages that refer to it.</summary>
internal sealed class ModelFile(FdKind kind, ModelVm? vm = null)
{
    public FdKind Kind { get; } = kind;

    /// <summary>The VM that the file keeps alive; null for devices.</summary>
    public ModelVm? Vm { get; } = vm;

    // Of a guest_memfd.
    public ulong Size { get; init; }

    public ulong Flags { get; init; }

    public SortedDictionary<ulong, ModelPage> Pages { get; } = [];
}

/// <summary>A page of a guest_memfd.</summary>
internal sealed class ModelPage
{
    public bool Uptodate { get; set; }

    public byte[] Bytes { get; } = new byte[4096];
}

internal sealed class ModelVm(ModelProcess owner, uint type)
{
    public ModelProcess Owner { get; } = owner;

    public uint Type { get; } = type;

    public bool HasPrivateMem => Type is 1 or 4;

    public bool HasProtectedState => Type is 3 or 4;

    public List<ModelSlot> Slots { get; } = [];

    /// <summary>Gfns that are private.</summary>
    public SortedSet<ulong> Private { get; } = [];

    /// <summary>Ids of vCPUs, in creation order.</summary>
    public List<ulong> Vcpus { get; } = [];

    public ulong Seq { get; set; }

    /// <summary>A slot lies over user memory: what happens to that moves seq, too, and the model does not count it.</summary>
    public bool SeqMoves { get; set; }

    public ModelSlot? SlotOf(ulong gfn, int asId = 0) => Slots.Find(slot => slot.AsId == asId && slot.Has(gfn));
}

/// <summary>A memslot. <see cref="File"/> is null where there is no guest_memfd or where it is gone.</summary>
internal sealed class ModelSlot
{
    public required int AsId { get; init; }

    public required int Id { get; init; }

    public required ulong Gfn { get; init; }

    public required ulong Npages { get; init; }

    public required ulong Uaddr { get; init; }

    public required uint Flags { get; init; }

    public ModelFile? File { get; set; }

    public ulong Pgoff { get; init; }

    /// <summary>Bound to a file that can be mapped: shared accesses use it as well, and user memory is ignored.</summary>
    public bool IsGmemOnly { get; init; }

    public bool HasGmem => (Flags & 4) != 0;

    public bool Has(ulong gfn) => gfn >= Gfn && gfn - Gfn < Npages;

    public bool Overlaps(ulong gfn, ulong npages) => gfn < Gfn + Npages && Gfn < gfn + npages;

    public bool IsBoundIn(ModelFile file, ulong start, ulong end) => File == file && start < Pgoff + Npages && Pgoff < end;
}
