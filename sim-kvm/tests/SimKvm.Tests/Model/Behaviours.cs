namespace SimKvm.Tests.Model;

/// <summary>How kvm_gmem_populate works in a generation, as far as the model tells apart (kvm-guest-memory.md 10.6).</summary>
internal enum PopulateForm
{
    Absent,

    /// <summary>6.11 to 6.17: a page that is up to date is refused; zero pages are none.</summary>
    WholeLoop,

    /// <summary>6.18 and 6.19: the same, but zero pages are an error.</summary>
    WholeLoopPositive,

    /// <summary>7.0 and later: the source is pinned first, and must be aligned.</summary>
    PerPage,
}

/// <summary>
/// What the model must know of a kernel generation: section 14 of kvm-guest-memory.md, typed in by hand and not read from the profiles, which are on trial.
/// </summary>
/// <param name="CreateFlags">Flags of KVM_CREATE_GUEST_MEMFD on a VM without private memory.</param>
/// <param name="CreateFlagsPrivate">The same on a VM with private memory.</param>
/// <param name="GmemForEveryVm">KVM_MEM_GUEST_MEMFD is valid on VMs without private memory.</param>
/// <param name="BindOverlap">Binding a page that is bound.</param>
/// <param name="BindSigned">The sum of offset and size of a binding may wrap to a negative number.</param>
/// <param name="ToggleRefused">A slot cannot lose KVM_MEM_GUEST_MEMFD.</param>
/// <param name="AllocatedIsUptodate">Pages are cleared when they are allocated.</param>
/// <param name="Populate">How initial content gets in.</param>
/// <param name="FallocateOneOperation">fallocate refuses combinations of operations with EOPNOTSUPP; before 6.12 some with EINVAL.</param>
/// <param name="NewestVmType">The largest VM type of an AMD host.</param>
internal sealed record Behaviours(
    ulong CreateFlags, ulong CreateFlagsPrivate, bool GmemForEveryVm, Errno BindOverlap, bool BindSigned, bool ToggleRefused,
    bool AllocatedIsUptodate, PopulateForm Populate, bool FallocateOneOperation, uint NewestVmType)
{
    private static readonly Behaviours s_k68 = new(0, 0, false, Errno.EINVAL, true, false, true, PopulateForm.Absent, false, 1);

    private static readonly Behaviours s_k611 = new(0, 0, false, Errno.EINVAL, true, false, false, PopulateForm.WholeLoop, false, 4);

    private static readonly Behaviours s_k618 = new(3, 1, true, Errno.EINVAL, true, true, false, PopulateForm.WholeLoopPositive, true, 4);

    private static readonly Behaviours s_k72 = new(3, 1, true, Errno.EEXIST, false, true, false, PopulateForm.PerPage, true, 4);

    private static readonly Dictionary<string, Behaviours> s_table = new()
    {
        ["K68"] = s_k68,
        ["MAP24v1"] = s_k68,
        ["MAP24v2"] = s_k68,
        ["K611"] = s_k611,
        ["K616"] = s_k611 with { FallocateOneOperation = true },
        ["K618"] = s_k618,
        ["K619"] = s_k618,
        ["K70"] = s_k618 with { Populate = PopulateForm.PerPage },
        ["K72"] = s_k72,
        ["K72-nullchk"] = s_k72,
        ["NEXTHOOK"] = s_k72,
    };

    /// <summary>The row of a profile, or null where the flows differ as a whole (historical designs, in-place conversion) and the model has nothing to say.</summary>
    public static Behaviours? Of(string profile) => s_table.GetValueOrDefault(profile);
}
