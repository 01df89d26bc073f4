namespace SimKvm.Profiles;

/// <summary>Where a behaviour is known from: a kernel function with its tree, a commit, or a mail.</summary>
[AttributeUsage(AttributeTargets.Property)]
internal sealed class SourceAttribute(string source) : Attribute
{
    public string Source { get; } = source;
}

/// <summary>What private guest memory lives in (kvm-guest-memory.md 13).</summary>
public enum PrivateMemoryDesign
{
    /// <summary>A memfd made with MFD_INACCESSIBLE, 2021-12 to 2022-09.</summary>
    InaccessibleMemfd,

    /// <summary>memfd_restricted(2), 2022-10 to 2023.</summary>
    RestrictedMem,

    /// <summary>guest_memfd as posted in 2023: other numbers and structures, transparent huge pages.</summary>
    GuestMemfdRfc,

    /// <summary>guest_memfd as merged in 6.8.</summary>
    GuestMemfd,
}

/// <summary>How kvm_gmem_populate works (kvm-guest-memory.md 10).</summary>
public enum PopulateDesign
{
    /// <summary>There is none: no VM type needs initial private content.</summary>
    None,

    /// <summary>April 2024 posting: a page that is in the file is refused, a page whose callback fails is punched out again.</summary>
    CreateOnly,

    /// <summary>6.11 to 6.19: the invalidate lock is held over the whole loop, the source is read inside it, and a page that is up to date is refused.</summary>
    WholeLoop,

    /// <summary>7.0 and later: the source page is pinned before the invalidate lock, which is taken for each page; no preparation tracking.</summary>
    PerPage,
}

/// <summary>What becomes of an SNP launch update without a source, of a page that needs one.</summary>
public enum SnpNullSource
{
    /// <summary>Each page is refused, so the first one makes EIO of it.</summary>
    RefusedPerPage,

    /// <summary>EINVAL before anything is looked at.</summary>
    RefusedAtOnce,

    /// <summary>The page that is there has its content already.</summary>
    PageAsItIs,
}

/// <summary>When a new guest_memfd page is cleared.</summary>
public enum GmemZeroing
{
    /// <summary>When the page is made, also by fallocate.</summary>
    AtAllocation,

    /// <summary>When a guest or a mapping of the host first gets it.</summary>
    FirstUse,

    /// <summary>Whenever it is looked up for use, also by populate.</summary>
    Lookup,
}

/// <summary>When the architecture's hook runs that makes a page private.</summary>
public enum GmemPrepareHook
{
    None,

    /// <summary>On each lookup, also by fallocate, but not by populate (April 2024 posting).</summary>
    EveryLookup,

    /// <summary>When a guest gets a page that is not up to date.</summary>
    IfNotUptodate,

    /// <summary>Each time a guest gets a page.</summary>
    EveryGetPfn,

    /// <summary>Each time a guest gets a page of a file that was not made with INIT_SHARED.</summary>
    EveryGetPfnOfPrivateFile,

    /// <summary>Each time a guest gets a page whose index is private.</summary>
    EveryGetPfnOfPrivateIndex,
}

/// <summary>When the architecture's hook runs that makes a page the host's again.</summary>
public enum GmemFreeHook
{
    None,

    /// <summary>In punch hole and release, before the pages are truncated.</summary>
    BeforeTruncation,

    /// <summary>When a folio leaves the page cache, with its lock held.</summary>
    FreeFolio,
}

/// <summary>What keeps a punch hole and a change of attributes apart while either changes the RMP (seed 001).</summary>
public enum RmpUpdateLock
{
    /// <summary>Nothing: the punch hole holds invalidate_lock, the ioctl slots_lock.</summary>
    None,

    /// <summary>The punch hole takes slots_lock too: the quick solution of the mail.</summary>
    SlotsLock,

    /// <summary>Both hold a mutex that is there for nothing else, from begin to end: "would introducing a similar mutex be a reasonable approach".</summary>
    Mutex,

    /// <summary>Both change the RMP under mmu_lock, which the mail rules out.</summary>
    MmuLock,
}

/// <summary>Which stage-2 mappings an invalidation by a guest_memfd removes.</summary>
public enum GmemInvalidateFilter
{
    None,
    Private,

    /// <summary>Shared ones for a file made with INIT_SHARED, private ones otherwise.</summary>
    ByFile,
    Both,
}

/// <summary>Whether pages convert between private and shared where they are.</summary>
public enum InPlaceConversion
{
    None,

    /// <summary>PATCH v8.</summary>
    V8,

    /// <summary>The development tree after it: binding in two steps, stricter test for references.</summary>
    Development,
}

/// <summary>Order of the checks in the guest page-fault path.</summary>
public enum FaultOrder
{
    /// <summary>6.8: stale test, invalid slot, private against attribute, guest_memfd; a missing slot is looked at last.</summary>
    StaleTestFirst,

    /// <summary>Later: private against attribute, missing slot, invalid slot, stale test, then the page.</summary>
    AttributeFirst,

    /// <summary>UPM v4 and v5: the private file is asked first whether it has the page, which decides what the page is.</summary>
    FileFirst,

    /// <summary>UPM v7 to v10: the state that KVM keeps against the access, then the private file.</summary>
    StateFirst,
}

/// <summary>How user space maps guest memory ahead of the guest.</summary>
public enum PreFaultDesign
{
    None,

    /// <summary>KVM_MAP_MEMORY, RFC of 2024-03-01: page numbers, flags, EAGAIN for partial work.</summary>
    MapMemoryV1,

    /// <summary>KVM_MAP_MEMORY, RFC v2 of 2024-04-10: bytes, errors even after partial work.</summary>
    MapMemoryV2,

    /// <summary>KVM_PRE_FAULT_MEMORY, 6.11.</summary>
    PreFaultMemory,
}

/// <summary>Who says whether a guest page is private, and how (kvm-guest-memory.md 13; seed 004).</summary>
public enum PrivateStateDesign
{
    /// <summary>User space, by KVM_SET_MEMORY_ATTRIBUTES; with in-place conversion, by the guest_memfd's own attributes.</summary>
    Attributes,

    /// <summary>User space, by KVM_MEMORY_ENCRYPT_REG_REGION (private) and UNREG_REGION (shared) with guest addresses.</summary>
    EncryptRegions,

    /// <summary>The private file: a page is private if it is there. fallocate converts to private, a hole to shared.</summary>
    FilePresence,

    /// <summary>Both: a registered page that is in the file is private, one that is registered only is invalid, any other is shared (SEV in seed 004).</summary>
    RegionsAndPresence,

    /// <summary>The guest, by hypercall and before it accesses: a page is private until it is shared, and stays where it is (pKVM in seed 004).</summary>
    GuestShares,

    /// <summary>Nobody: each access chooses one of two pages that a gfn has (TDX in seed 004).</summary>
    AccessBit,
}

/// <summary>What user space may do with the content of a private file (seed 004).</summary>
public enum PrivateFileAccess
{
    /// <summary>Nothing, ever: MFD_INACCESSIBLE as posted.</summary>
    Never,

    /// <summary>Everything until a one-way lock, then nothing.</summary>
    UntilLocked,

    /// <summary>pread and pwrite of pages that are flagged shareable.</summary>
    ShareablePages,

    /// <summary>Everything on pages that the guest shares.</summary>
    SharedByGuest,
}
