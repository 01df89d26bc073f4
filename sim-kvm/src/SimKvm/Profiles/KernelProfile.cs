namespace SimKvm.Profiles;

/// <summary>Where a behaviour is known from: a kernel function with its tree, a commit, or a mail.</summary>
[AttributeUsage(AttributeTargets.Property)]
internal sealed class SourceAttribute(string source) : Attribute
{
    public string Source { get; } = source;
}

/// <summary>How kvm_gmem_populate works (kvm-guest-memory.md 10).</summary>
public enum PopulateDesign
{
    /// <summary>6.11 to 6.19: the invalidate lock is held over the whole loop, the source is read inside it, and a page that is up to date is refused.</summary>
    WholeLoop,

    /// <summary>7.0 and later: the source page is pinned before the invalidate lock, which is taken for each page; no preparation tracking.</summary>
    PerPage,
}

/// <summary>
/// A kernel generation as data: behaviours named by what they do, each with its source. A generation is its parent <c>with</c> a delta
/// (<see cref="KernelProfiles"/>). Code asks for a behaviour, never for a version.
/// </summary>
public sealed record KernelProfile
{
    public required string Id { get; init; }

    public required string Title { get; init; }

    /// <summary>The profile this one differs from; null for the first.</summary>
    public KernelProfile? Parent { get; init; }

    /// <summary>Bits of kvm_create_guest_memfd.flags that are known.</summary>
    [Source("kvm_gmem_create; flags MMAP and INIT_SHARED since 6.18")]
    public required ulong GuestMemfdFlags { get; init; }

    /// <summary>KVM_MEM_GUEST_MEMFD and KVM_CAP_GUEST_MEMFD are there on VMs without private memory too.</summary>
    [Source("check_memory_region_flags; kvm_vm_ioctl_check_extension_generic, 6.18")]
    public required bool GuestMemfdForEveryVm { get; init; }

    /// <summary>What binding a page that is bound already answers.</summary>
    [Source("kvm_gmem_bind, mainline f8479adb")]
    public required Errno BindOverlap { get; init; }

    /// <summary>kvm_gmem_bind adds offset and size as signed numbers, so a sum that wraps passes.</summary>
    [Source("kvm_gmem_bind; M618")]
    public required bool BindOffsetSigned { get; init; }

    /// <summary>Changing KVM_MEM_GUEST_MEMFD of an existing slot is refused.</summary>
    [Source("kvm_set_memory_region, 6.19 and stable 6.18.44; M618")]
    public required bool GuestMemfdToggleRefused { get; init; }

    /// <summary>A slot can be deleted safely while its guest_memfd is dying; before, the binding is left stale.</summary>
    [Source("kvm_gmem_unbind, 6.18")]
    public required bool UnbindOfDyingFile { get; init; }

    /// <summary>Filter of a punch hole's stage-2 invalidation follows the file's kind (private, or shared for INIT_SHARED).</summary>
    [Source("kvm_gmem_invalidate_begin, 6.18")]
    public required bool PunchHoleFilterByFile { get; init; }

    /// <summary>Design of kvm_gmem_populate.</summary>
    [Source("kvm_gmem_populate; rework merged in 7.0")]
    public required PopulateDesign Populate { get; init; }

    /// <summary>The source of a page that firmware may write to (SNP CPUID) is pinned writable.</summary>
    [Source("kvm_gmem_populate, f8479adb")]
    public required bool PopulatePinsWritable { get; init; }

    /// <summary>SNP_LAUNCH_UPDATE refuses len 0.</summary>
    [Source("snp_launch_update, 7.0; before, it does nothing and succeeds")]
    public required bool SnpZeroLengthRefused { get; init; }

    /// <summary>SNP_LAUNCH_UPDATE refuses a source that is not page aligned.</summary>
    [Source("snp_launch_update, gmem populate rework, 7.0")]
    public required bool SnpSourceMustBeAligned { get; init; }

    /// <summary>Guest policy bits that KVM accepts before it asks firmware.</summary>
    [Source("snp_launch_start: SNP_POLICY_MASK_VALID; policy bits attribute since 7.0")]
    public required ulong SnpPolicyMask { get; init; }

    /// <summary>KVM_X86_SNP_POLICY_BITS and KVM_X86_SEV_SNP_REQ_CERTS exist, and the command SNP_ENABLE_REQ_CERTS.</summary>
    [Source("sev_dev_get_attr; snp_enable_certs, 7.0")]
    public required bool SnpPolicyAndCertificateAttributes { get; init; }

    /// <summary>SNP_LAUNCH_FINISH excludes vCPU creation, locks all vCPUs and refuses one that is encrypted already.</summary>
    [Source("snp_launch_update_vmsa, cb923ee6a80f and neighbours, 2026")]
    public required bool SnpFinishLocksVcpus { get; init; }

    public override string ToString() => Id;
}
