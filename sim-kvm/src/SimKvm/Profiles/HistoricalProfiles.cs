namespace SimKvm.Profiles;

/// <summary>
/// The designs before guest_memfd, and what seed 004 proposed to make of them: each the posting that it came from with a delta (kvm-guest-memory.md 13). None was merged. All
/// keep what 6.8 has around private memory; VM types are told by today's numbers, SEV-SNP among them because ports of it were made on these series.
/// </summary>
internal static class HistoricalProfiles
{
    /// <summary>All of them, each after its parent.</summary>
    public static IReadOnlyList<KernelProfile> From(KernelProfile k68)
    {
        // v7/v8 is the base, because its flow is the one that later series kept.
        KernelProfile upm22 = k68 with
        {
            Id = "UPM22",
            Title = "UPM v7/v8, 2022: memfd with MFD_INACCESSIBLE, private regions registered with KVM",
            Proposed = true,
            Parent = k68,
            VmTypes = KernelProfiles.TypesOf611,
            PrivateMemory = PrivateMemoryDesign.InaccessibleMemfd,
            PrivateState = PrivateStateDesign.EncryptRegions,
            ExtendedRegionBytes = 160,
            BindBadFd = Errno.EINVAL,
            ReadonlyGuestMemfdSlots = true,
            FreeHook = GmemFreeHook.FreeFolio,
            LaunchUpdateInPlace = true,
            FaultOrder = FaultOrder.StateFirst,
            MemoryFaultExit = 38,
            MemoryFaultFails = false,
            MemoryFaultPrivateFlag = 1,
        };
        KernelProfile upm22v5 = upm22 with
        {
            Id = "UPM22-v5",
            Title = "UPM v4/v5, 2022: a page is private while it is in the file",
            Parent = upm22,
            PrivateState = PrivateStateDesign.FilePresence,
            ExtendedRegionBytes = 64,
            FaultOrder = FaultOrder.FileFirst,
            MemoryFaultExit = 36,
            MemoryFaultFails = true,
            MemoryFaultErrno = Errno.EPERM,
        };
        KernelProfile selftest = upm22v5 with
        {
            Id = "UPM22-selftest",
            Title = "UPM v5 with the selftest RFC of 2022-04-08: plain VMs whose guests mark ranges as private",
            Parent = upm22v5,
            PrivateMemoryForEveryVm = true,
            MapGpaRangeMarks = true,
        };
        KernelProfile shmLock = upm22 with
        {
            Id = "UPM22-shm_lock",
            Title = "UPM with the answer of seed 004: the file is accessible until it is locked",
            Parent = upm22,
            PrivateFileAccess = PrivateFileAccess.UntilLocked,
        };
        KernelProfile shareable = upm22 with
        {
            Id = "UPM22-shareable",
            Title = "UPM with the answer of seed 004: pread and pwrite of pages flagged shareable, until they are launched",
            Parent = upm22,
            PrivateFileAccess = PrivateFileAccess.ShareablePages,
        };
        KernelProfile pkvm = upm22 with
        {
            Id = "UPM22-pkvm",
            Title = "UPM as pKVM would use it (seed 004): the guest shares pages by hypercall, in place",
            Parent = upm22,
            PrivateState = PrivateStateDesign.GuestShares,
            PrivateFileAccess = PrivateFileAccess.SharedByGuest,
        };
        KernelProfile sev = upm22 with
        {
            Id = "UPM22-sev",
            Title = "UPM as SEV would use it (seed 004): a page is private, shared or invalid, and the access must agree",
            Parent = upm22,
            PrivateState = PrivateStateDesign.RegionsAndPresence,
        };
        KernelProfile tdx = upm22 with
        {
            Id = "UPM22-tdx",
            Title = "UPM as TDX would use it (seed 004): a gfn has two pages, and each access chooses",
            Parent = upm22,
            PrivateState = PrivateStateDesign.AccessBit,
            LaunchUpdateInPlace = false,
            VmTypes = k68.VmTypes,
        };
        KernelProfile rm22 = k68 with
        {
            Id = "RM22",
            Title = "UPM v10, 2022-12: memfd_restricted",
            Proposed = true,
            Parent = k68,
            PrivateMemory = PrivateMemoryDesign.RestrictedMem,
            ExtendedRegionBytes = 160,
            BindBadFd = Errno.EINVAL,
            ReadonlyGuestMemfdSlots = true,
            AttributesNoopShortcut = false,
            InvalidateBeginsUnconditionally = true,
            FaultOrder = FaultOrder.StateFirst,
            MemoryFaultExit = 38,
            MemoryFaultFails = false,
        };
        return [upm22, upm22v5, selftest, shmLock, shareable, pkvm, sev, tdx, rm22];
    }
}
