using System.Globalization;
using System.Reflection;

namespace SimKvm.Profiles;

/// <summary>The kernel generations that a host can run, each its parent with what changed.</summary>
public static class KernelProfiles
{
    // KVM_X86_DEFAULT_VM and SW_PROTECTED; with SEV, SEV-ES and SNP; with TDX.
    private const uint TypesOf68 = 0x03;
    internal const uint TypesOf611 = 0x1f;
    private const uint TypesOf616 = 0x3f;

    /// <summary>Linux 6.8: the first release with guest_memfd.</summary>
    public static KernelProfile K68 { get; } = new()
    {
        Id = "K68",
        Title = "Linux 6.8, the first with guest_memfd",
        VmTypes = TypesOf68,
        ReadonlySlotsNeedPlainState = false,
        HypercallRetPreset = false,
        FallocateOneOperation = false,
        FallocateWriteZeroes = false,
        PrivateState = PrivateStateDesign.Attributes,
        PrivateFileAccess = PrivateFileAccess.Never,
        ExtendedRegionBytes = 0,
        PrivateMemoryForEveryVm = false,
        MapGpaRangeMarks = false,
        LaunchUpdateInPlace = false,
        PrivateMemory = PrivateMemoryDesign.GuestMemfd,
        GuestMemfdSizeZero = false,
        GuestMemfdFlags = 0,
        GuestMemfdFlagsOfPrivateVm = 0,
        GuestMemfdForEveryVm = false,
        GuestMemfdFileSystem = false,
        GuestMemfdNumaPolicy = false,
        BindBadFd = Errno.EBADF,
        BindOverlap = Errno.EINVAL,
        BindOffsetSigned = true,
        GuestMemfdToggleRefused = false,
        ReadonlyGuestMemfdSlots = false,
        UnbindOfDyingFile = false,
        Zeroing = GmemZeroing.AtAllocation,
        PrepareHook = GmemPrepareHook.None,
        FreeHook = GmemFreeHook.None,
        MemoryFailureUnmaps = true,
        PunchHoleFilter = GmemInvalidateFilter.None,
        InvalidateBeginsUnconditionally = false,
        Populate = PopulateDesign.None,
        PopulateRefusesNothing = false,
        PopulatePrepares = false,
        PopulatePinsWritable = false,
        InPlaceConversion = InPlaceConversion.None,
        AttributesNoopShortcut = true,
        AttributesSetHook = false,
        RmpUpdateLock = RmpUpdateLock.None,
        AttributesInvalidateStraddlers = false,
        AttributesUnmapFilter = false,
        AttributesClearCannotFail = false,
        FaultOrder = FaultOrder.StaleTestFirst,
        MemoryFaultExit = 39,
        MemoryFaultFails = true,
        MemoryFaultPrivateFlag = 8,
        MemoryFaultErrno = Errno.EFAULT,
        PreFault = PreFaultDesign.None,
        PreFaultNeedsLaunch = false,
        PreFaultSeesDeadVm = false,
        PreFaultInvalidSlotIsEagain = false,
        SnpNeedsGhcbVersion2 = false,
        SnpZeroLengthRefused = false,
        SnpSourceMustBeAligned = false,
        SnpNullSource = SnpNullSource.RefusedPerPage,
        SnpPolicyMask = 0x1b_ffff,
        SnpPolicyAndCertificateAttributes = false,
        SnpFinishLocksVcpus = false,
        VcpuMemoryEncryptOp = false,
        TdxRefusesKernelIrqchip = false,
        TdxGuardsVmState = false,
        TdxAddsWhileMapping = false,
        TdxAddsInPlace = false,
        TdxExtendsRegionAtEnd = false,
        TdxMapGpaTellsErrno = false,
        UnregisteredGhcbIsAnswered = false,
    };

    /// <summary>The guest_memfd of 2023: kvm_gmem_solo and RFC v11/v12.</summary>
    public static KernelProfile GM23 { get; } = K68 with
    {
        Id = "GM23",
        Title = "guest_memfd RFC v11/v12, 2023",
        Proposed = true,
        Parent = K68,
        PrivateMemory = PrivateMemoryDesign.GuestMemfdRfc,
        GuestMemfdSizeZero = true,
        GuestMemfdFlags = 1,
        GuestMemfdFlagsOfPrivateVm = 1,
        GuestMemfdFileSystem = true,
        BindBadFd = Errno.EINVAL,
        ReadonlyGuestMemfdSlots = true,
        FreeHook = GmemFreeHook.BeforeTruncation,
        MemoryFailureUnmaps = false,
        InvalidateBeginsUnconditionally = true,
        AttributesNoopShortcut = false,
        MemoryFaultExit = 38,
        MemoryFaultFails = false,
    };

    /// <summary>
    /// SEV-SNP on kvm_gmem_solo, as seed 001 describes it. What the mail does not say of the launch is taken from 6.11: populate in one loop, which takes pages that nobody used
    /// yet, so they are cleared when they are first used; without a hook for faults, for the attribute has made the page private by then.
    /// </summary>
    public static KernelProfile GM23SNP { get; } = GM23 with
    {
        Id = "GM23SNP",
        Title = "guest_memfd of 2023 with the SNP port of May 2023 (seed 001)",
        Proposed = true,
        Parent = GM23,
        VmTypes = TypesOf611,
        AttributesSetHook = true,
        Zeroing = GmemZeroing.FirstUse,
        Populate = PopulateDesign.WholeLoop,
    };

    /// <summary>The first alternative of seed 001: slots_lock over the punch hole.</summary>
    public static KernelProfile GM23SNPSlotsLock { get; } = GM23SNP with
    {
        Id = "GM23SNP-slots_lock",
        Title = "GM23SNP with slots_lock held over a punch hole (seed 001)",
        Parent = GM23SNP,
        RmpUpdateLock = RmpUpdateLock.SlotsLock,
    };

    /// <summary>The second: a mutex for nothing else.</summary>
    public static KernelProfile GM23SNPMutex { get; } = GM23SNP with
    {
        Id = "GM23SNP-mutex",
        Title = "GM23SNP with a mutex over what changes the RMP (seed 001)",
        Parent = GM23SNP,
        RmpUpdateLock = RmpUpdateLock.Mutex,
    };

    /// <summary>What seed 001 rules out: RMP updates under mmu_lock.</summary>
    public static KernelProfile GM23SNPMmuLock { get; } = GM23SNP with
    {
        Id = "GM23SNP-mmu_lock",
        Title = "GM23SNP with RMP updates under mmu_lock (seed 001)",
        Parent = GM23SNP,
        RmpUpdateLock = RmpUpdateLock.MmuLock,
    };

    /// <summary>KVM_MAP_MEMORY as first posted.</summary>
    public static KernelProfile MAP24v1 { get; } = K68 with
    {
        Id = "MAP24v1",
        Title = "6.8 with the KVM_MAP_MEMORY RFC of 2024-03-01",
        Proposed = true,
        Parent = K68,
        PreFault = PreFaultDesign.MapMemoryV1,
    };

    /// <summary>KVM_MAP_MEMORY as posted the second time.</summary>
    public static KernelProfile MAP24v2 { get; } = K68 with
    {
        Id = "MAP24v2",
        Title = "6.8 with the KVM_MAP_MEMORY RFC v2 of 2024-04-10",
        Proposed = true,
        Parent = K68,
        PreFault = PreFaultDesign.MapMemoryV2,
    };

    /// <summary>kvm_gmem_populate as posted in April 2024, with the hooks of those months.</summary>
    public static KernelProfile POP24 { get; } = K68 with
    {
        Id = "POP24",
        Title = "6.8 with the kvm_gmem_populate posting of 2024-04-04",
        Proposed = true,
        Parent = K68,
        VmTypes = TypesOf611,
        PrepareHook = GmemPrepareHook.EveryLookup,
        FreeHook = GmemFreeHook.FreeFolio,
        Populate = PopulateDesign.CreateOnly,
    };

    /// <summary>The question of seed 000, taken by its word: one callback for every look-up, populate's too.</summary>
    public static KernelProfile POP24Prepare { get; } = POP24 with
    {
        Id = "POP24-prepare",
        Title = "POP24 whose populate prepares the page as every look-up does, then calls back (seed 000)",
        Parent = POP24,
        PopulatePrepares = true,
    };

    /// <summary>Linux 6.11.</summary>
    public static KernelProfile K611 { get; } = K68 with
    {
        Id = "K611",
        Title = "Linux 6.11: pre-faulting, populate, SEV-SNP",
        Parent = K68,
        VmTypes = TypesOf611,
        ReadonlySlotsNeedPlainState = true,
        Zeroing = GmemZeroing.FirstUse,
        PrepareHook = GmemPrepareHook.IfNotUptodate,
        FreeHook = GmemFreeHook.FreeFolio,
        Populate = PopulateDesign.WholeLoop,
        FaultOrder = FaultOrder.AttributeFirst,
        PreFault = PreFaultDesign.PreFaultMemory,
        PreFaultNeedsLaunch = true,
    };

    /// <summary>Linux 6.16.</summary>
    public static KernelProfile K616 { get; } = K611 with
    {
        Id = "K616",
        Title = "Linux 6.16: TDX",
        Parent = K611,
        VmTypes = TypesOf616,
        HypercallRetPreset = true,
        FallocateOneOperation = true,
        PunchHoleFilter = GmemInvalidateFilter.Private,
        AttributesInvalidateStraddlers = true,
        AttributesUnmapFilter = true,
        PreFaultSeesDeadVm = true,
        VcpuMemoryEncryptOp = true,
    };

    /// <summary>TDX as it was before the merge, as far as an MRTD tells it: pages are added by one ioctl and measured by another.</summary>
    public static KernelProfile TDX24 { get; } = K616 with
    {
        Id = "TDX24",
        Title = "6.16 with the order of measuring of TDX series before the merge",
        Proposed = true,
        Parent = K616,
        TdxExtendsRegionAtEnd = true,
    };

    /// <summary>Linux 6.18.</summary>
    public static KernelProfile K618 { get; } = K616 with
    {
        Id = "K618",
        Title = "Linux 6.18 (stable 6.18.44): mapping guest_memfd",
        Parent = K616,
        FallocateWriteZeroes = true,
        SnpNeedsGhcbVersion2 = true,
        GuestMemfdFlags = 3,
        GuestMemfdFlagsOfPrivateVm = 1,
        GuestMemfdForEveryVm = true,
        GuestMemfdToggleRefused = true,
        UnbindOfDyingFile = true,
        PunchHoleFilter = GmemInvalidateFilter.ByFile,
        PopulateRefusesNothing = true,
        PreFaultInvalidSlotIsEagain = true,
        TdxRefusesKernelIrqchip = true,
    };

    /// <summary>Linux 6.19.</summary>
    public static KernelProfile K619 { get; } = K618 with
    {
        Id = "K619",
        Title = "Linux 6.19: a file system for guest_memfd, NUMA policy",
        Parent = K618,
        GuestMemfdFileSystem = true,
        GuestMemfdNumaPolicy = true,
        TdxGuardsVmState = true,
        TdxAddsWhileMapping = true,
    };

    /// <summary>Linux 7.0.</summary>
    public static KernelProfile K70 { get; } = K619 with
    {
        Id = "K70",
        Title = "Linux 7.0: populate reworked",
        Parent = K619,
        PrepareHook = GmemPrepareHook.EveryGetPfn,
        Populate = PopulateDesign.PerPage,
        SnpZeroLengthRefused = true,
        SnpSourceMustBeAligned = true,
        SnpPolicyMask = 0x3fb_ffff,
        SnpPolicyAndCertificateAttributes = true,
        TdxMapGpaTellsErrno = true,
    };

    /// <summary>Mainline at f8479adb, after 7.1.</summary>
    public static KernelProfile K72 { get; } = K70 with
    {
        Id = "K72",
        Title = "Linux mainline after 7.1 (f8479adb)",
        Parent = K70,
        BindOverlap = Errno.EEXIST,
        BindOffsetSigned = false,
        PopulatePinsWritable = true,
        SnpFinishLocksVcpus = true,
        UnregisteredGhcbIsAnswered = true,
    };

    /// <summary>The proposal that a missing source is refused before anything is looked at.</summary>
    public static KernelProfile K72NullCheck { get; } = K72 with
    {
        Id = "K72-nullchk",
        Title = "mainline with an early check for a NULL source, proposed in June 2026",
        Proposed = true,
        Parent = K72,
        SnpNullSource = SnpNullSource.RefusedAtOnce,
    };

    /// <summary>The newest tree that is described: hooks renamed and fewer.</summary>
    public static KernelProfile NEXTHOOK { get; } = K72 with
    {
        Id = "NEXTHOOK",
        Title = "after f8479adb: hooks make_private, reclaim, invalidate_range",
        Parent = K72,
        PrepareHook = GmemPrepareHook.EveryGetPfnOfPrivateFile,
        AttributesClearCannotFail = true,
    };

    /// <summary>In-place conversion, PATCH v8.</summary>
    public static KernelProfile IP8 { get; } = K72 with
    {
        Id = "IP8",
        Title = "mainline with in-place conversion, PATCH v8 of 2026-06-18",
        Proposed = true,
        Parent = K72,
        GuestMemfdFlagsOfPrivateVm = 3,
        Zeroing = GmemZeroing.Lookup,
        PrepareHook = GmemPrepareHook.EveryGetPfnOfPrivateIndex,
        PunchHoleFilter = GmemInvalidateFilter.Both,
        InPlaceConversion = InPlaceConversion.V8,
        SnpNullSource = SnpNullSource.PageAsItIs,
        TdxAddsInPlace = true,
    };

    /// <summary>In-place conversion, the development tree after v8.</summary>
    public static KernelProfile IPDEV { get; } = IP8 with
    {
        Id = "IPDEV",
        Title = "development tree with in-place conversion",
        Proposed = true,
        Parent = IP8,
        InPlaceConversion = InPlaceConversion.Development,
        AttributesClearCannotFail = true,
    };

    public static KernelProfile Default => K72;

    /// <summary>All profiles: each after its parent, proposals after the generation that they were made for or changed.</summary>
    public static IReadOnlyList<KernelProfile> All { get; } =
    [
        K68, .. HistoricalProfiles.From(K68), GM23, GM23SNP, GM23SNPSlotsLock, GM23SNPMutex, GM23SNPMmuLock, MAP24v1, MAP24v2, POP24, POP24Prepare, K611, K616, TDX24, K618, K619, K70, K72, K72NullCheck, NEXTHOOK,
        IP8, IPDEV,
    ];

    /// <summary>The profile of that id, or null. An id as <see cref="Borrow"/> makes it, <c>IP8+K619.Populate</c>, is understood.</summary>
    public static KernelProfile? Find(string id)
    {
        int plus = id.LastIndexOf('+'), dot = id.LastIndexOf('.');
        if (plus < 0)
        {
            return All.FirstOrDefault(profile => profile.Id.Equals(id, StringComparison.OrdinalIgnoreCase));
        }
        return dot > plus && id.Length <= MaxId && Find(id[..plus]) is { } profile && Find(id[(plus + 1)..dot]) is { } from ? Borrow(profile, from, id[(dot + 1)..]) : null;
    }

    /// <summary>Names of behaviours, as <see cref="Borrow"/> takes them.</summary>
    public static IReadOnlyList<string> Behaviours { get; } =
        [.. typeof(KernelProfile).GetProperties().Where(property => property.GetCustomAttribute<SourceAttribute>() is not null).Select(property => property.Name)];

    // A few behaviours from elsewhere.
    private const int MaxId = 200;

    /// <summary>The behaviours in which two profiles differ.</summary>
    public static IEnumerable<BehaviourDelta> Differences(KernelProfile from, KernelProfile to)
    {
        foreach (PropertyInfo property in typeof(KernelProfile).GetProperties())
        {
            if (property.GetCustomAttribute<SourceAttribute>() is { } source)
            {
                object? before = property.GetValue(from);
                object? after = property.GetValue(to);
                if (!Equals(before, after))
                {
                    yield return new BehaviourDelta(property.Name, Show(before), Show(after), source.Source);
                }
            }
        }
    }

    /// <summary>A profile with one behaviour of another: a kernel that never was. Null where there is no behaviour of that name.</summary>
    public static KernelProfile? Borrow(KernelProfile profile, KernelProfile from, string behaviour)
    {
        if (typeof(KernelProfile).GetProperty(behaviour) is not { } property || property.GetCustomAttribute<SourceAttribute>() is null)
        {
            return null;
        }
        KernelProfile mixed = profile with { Id = $"{profile.Id}+{from.Id}.{behaviour}", Title = $"{profile.Title}, with {behaviour} of {from.Id}", Parent = profile };
        property.SetValue(mixed, property.GetValue(from));
        return mixed;
    }

    private static string Show(object? value) => value switch
    {
        ulong number => "0x" + number.ToString("x", CultureInfo.InvariantCulture),
        bool flag => flag ? "yes" : "no",
        _ => value?.ToString() ?? "",
    };
}

/// <summary>A behaviour in which two profiles differ, with where the newer one is known from.</summary>
public readonly record struct BehaviourDelta(string Name, string Before, string After, string Source);
