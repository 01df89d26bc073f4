namespace SimKvm.Userspace;

/// <summary>VM_RAND_READ and others that madvise sets.</summary>
[Flags]
internal enum VmaHints
{
    None = 0,
    RandRead = 1,
    SeqRead = 2,
    HugePage = 4,
    NoHugePage = 8,
    DontDump = 16,
}

/// <summary>One mapping of a process (vm_area_struct), without its addresses.</summary>
/// <param name="Prot">PROT_*</param>
/// <param name="File">What is mapped; null for private anonymous memory.</param>
/// <param name="FilePage">Page of the file at the mapping's start; for anonymous memory, of no meaning.</param>
/// <param name="Shared">MAP_SHARED: stores go to the file. Otherwise a page that is stored to is copied first.</param>
internal sealed record Vma(uint Prot, KernelFile? File, ulong FilePage, bool Shared)
{
    public const uint ProtRead = 1;
    public const uint ProtWrite = 2;
    public const uint ProtExec = 4;

    /// <summary>What a mapping keeps of prot; PROT_SEM is taken and forgotten.</summary>
    public const uint ProtAll = ProtRead | ProtWrite | ProtExec;

    /// <summary>mlock, MAP_LOCKED: pages may not be given up.</summary>
    public bool Locked { get; init; }

    /// <summary>MADV_DONTFORK: a child does not get the mapping.</summary>
    public bool DontFork { get; init; }

    /// <summary>MADV_WIPEONFORK: a child gets it empty.</summary>
    public bool WipeOnFork { get; init; }

    /// <summary>Advice that changes nothing but what the mapping is told to be, so that parts with other advice are other mappings.</summary>
    public VmaHints Hints { get; init; }

    /// <summary>VM_MAYEXEC: mprotect may make it executable.</summary>
    public bool MayExec { get; init; } = true;

    /// <summary>VM_MAYWRITE: mprotect may make it writable.</summary>
    public bool MayWrite { get; init; } = true;

    // x86 has no write-only pages.
    public bool Readable => Prot != 0;

    public bool Writable => (Prot & ProtWrite) != 0;

    /// <summary>Pages of its own: all of an anonymous mapping, and what a private mapping of a file copied.</summary>
    public bool IsAnonymous => File is null;

    /// <summary>The upper part when a mapping is cut. The caller adds the reference to the file that the second half has.</summary>
    public Vma Tail(ulong pages) => this with { FilePage = FilePage + pages };

    /// <summary>vma_merge: whether a neighbour that begins <paramref name="pages"/> further continues this mapping.</summary>
    public bool ContinuesInto(Vma next, ulong pages) => this with { FilePage = File is null ? next.FilePage : FilePage + pages } == next;
}
