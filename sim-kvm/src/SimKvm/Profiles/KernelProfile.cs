namespace SimKvm.Profiles;

/// <summary>
/// A kernel generation as data: behaviours named by what they do, each with its source. A generation is its parent <c>with</c> a delta
/// (<see cref="KernelProfiles"/>). Code asks for a behaviour, never for a version.
/// </summary>
public sealed record KernelProfile
{
    public required string Id { get; init; }

    public required string Title { get; init; }

    /// <summary>Never merged: a design that was only posted.</summary>
    public bool Proposed { get; init; }

    /// <summary>The profile this one differs from; null for the first.</summary>
    public KernelProfile? Parent { get; init; }

    // The VM and its capabilities.

    /// <summary>VM types that the kernel knows, as a mask; what a host supports is the part of it that its machine and configuration allow.</summary>
    [Source("kvm_is_vm_type_supported; 6.8, SEV types 6.10, SNP 6.11, TDX 6.16")]
    public required uint VmTypes { get; init; }

    /// <summary>VMs with protected state have no read-only slots, and say so in KVM_CAP_READONLY_MEM.</summary>
    [Source("kvm_arch_has_readonly_mem, 6.11")]
    public required bool ReadonlySlotsNeedPlainState { get; init; }

    /// <summary>hypercall.ret is 0 when KVM_EXIT_HYPERCALL is reported; before, it is what it was.</summary>
    [Source("____kvm_emulate_hypercall; about 6.14")]
    public required bool HypercallRetPreset { get; init; }

    /// <summary>fallocate takes one operation from a list; before, combinations are excluded one by one, some with EINVAL.</summary>
    [Source("vfs_fallocate: FALLOC_FL_MODE_MASK, 6.12; M618")]
    public required bool FallocateOneOperation { get; init; }

    /// <summary>FALLOC_FL_WRITE_ZEROES (0x80) is one of them.</summary>
    [Source("vfs_fallocate, 6.17; M618")]
    public required bool FallocateWriteZeroes { get; init; }

    // Designs before guest_memfd, and what was said about them (kvm-guest-memory.md 13, seed 004).

    /// <summary>Who says whether a guest page is private, and how.</summary>
    [Source("UPM v4/v5: the file; v7/v8: KVM_MEMORY_ENCRYPT_REG_REGION; v9/v10 and later: KVM_SET_MEMORY_ATTRIBUTES; seed 004 for the rest")]
    public required PrivateStateDesign PrivateState { get; init; }

    /// <summary>What user space may do with the content of a private file.</summary>
    [Source("UPM v3 to v8: nothing; seed 004 for the rest")]
    public required PrivateFileAccess PrivateFileAccess { get; init; }

    /// <summary>Bytes that KVM_SET_USER_MEMORY_REGION reads when KVM_MEM_PRIVATE is set; 0 where the flag is no flag of that ioctl.</summary>
    [Source("struct kvm_userspace_memory_region_ext: UPM v3 64 bytes, v7 to v10 160 bytes")]
    public required ulong ExtendedRegionBytes { get; init; }

    /// <summary>A VM of any type has private memory, not only one of a type that is for it.</summary>
    [Source("kvm_arch_private_memory_supported, selftest RFC 2022-04-08")]
    public required bool PrivateMemoryForEveryVm { get; init; }

    /// <summary>KVM_HC_MAP_GPA_RANGE with bit 8 of its attributes marks a range in KVM: accesses of that vCPU to it are private. The last mark of a vCPU counts.</summary>
    [Source("KVM_MARK_GPA_RANGE_ENC_ACCESS, selftest RFC 2022-04-08")]
    public required bool MapGpaRangeMarks { get; init; }

    /// <summary>An SNP launch update encrypts the guest's page where it is, as SEV's does; before the private file has the page, that is the page of user memory.</summary>
    [Source("seed 004")]
    public required bool LaunchUpdateInPlace { get; init; }

    // guest_memfd: creation, file, binding.

    /// <summary>A guest_memfd may have no size.</summary>
    [Source("kvm_gmem_create, RFC v11")]
    public required bool GuestMemfdSizeZero { get; init; }

    /// <summary>What holds private memory: guest_memfd, or one of the designs before it.</summary>
    [Source("UPM v3-v8 2021-12 to 2022-09; v9/v10 2022-10 to 2023; guest_memfd RFC v11 2023, merged in 6.8")]
    public required PrivateMemoryDesign PrivateMemory { get; init; }

    /// <summary>Bits of kvm_create_guest_memfd.flags that are known.</summary>
    [Source("kvm_gmem_create; flags MMAP and INIT_SHARED since 6.18")]
    public required ulong GuestMemfdFlags { get; init; }

    /// <summary>The part of them that a VM with private memory may use.</summary>
    [Source("kvm_arch_supports_gmem_init_shared, 6.18")]
    public required ulong GuestMemfdFlagsOfPrivateVm { get; init; }

    /// <summary>KVM_MEM_GUEST_MEMFD and KVM_CAP_GUEST_MEMFD are there on VMs without private memory too.</summary>
    [Source("check_memory_region_flags; kvm_vm_ioctl_check_extension_generic, 6.18")]
    public required bool GuestMemfdForEveryVm { get; init; }

    /// <summary>guest_memfd has a file system of its own; before, its inodes are anonymous ones.</summary>
    [Source("kvm_gmem_init_mount, 6.19; RFC v11")]
    public required bool GuestMemfdFileSystem { get; init; }

    /// <summary>mbind of a mapped guest_memfd sets a policy that page allocation follows.</summary>
    [Source("kvm_gmem_set_policy, 6.19")]
    public required bool GuestMemfdNumaPolicy { get; init; }

    /// <summary>A slot that is bound to a guest_memfd which is no descriptor of the caller.</summary>
    [Source("kvm_gmem_bind: fget; the 2023 RFC answers EINVAL")]
    public required Errno BindBadFd { get; init; }

    /// <summary>What binding a page that is bound already answers.</summary>
    [Source("kvm_gmem_bind, mainline f8479adb")]
    public required Errno BindOverlap { get; init; }

    /// <summary>kvm_gmem_bind adds offset and size as signed numbers, so a sum that wraps passes.</summary>
    [Source("kvm_gmem_bind; M618")]
    public required bool BindOffsetSigned { get; init; }

    /// <summary>Changing KVM_MEM_GUEST_MEMFD of an existing slot is refused.</summary>
    [Source("kvm_set_memory_region, 6.19 and stable 6.18.44; M618")]
    public required bool GuestMemfdToggleRefused { get; init; }

    /// <summary>A guest_memfd slot may be read-only.</summary>
    [Source("check_memory_region_flags, RFC v11")]
    public required bool ReadonlyGuestMemfdSlots { get; init; }

    /// <summary>A slot can be deleted safely while its guest_memfd is dying; before, the binding is left stale.</summary>
    [Source("kvm_gmem_unbind, 6.18")]
    public required bool UnbindOfDyingFile { get; init; }

    // guest_memfd: pages and hooks.

    /// <summary>When a new page is cleared.</summary>
    [Source("kvm_gmem_get_folio, kvm_gmem_prepare_folio (6.11); folio lookup in the in-place series")]
    public required GmemZeroing Zeroing { get; init; }

    /// <summary>When the architecture's hook runs that makes a page private.</summary>
    [Source("kvm_gmem_prepare_folio 6.11, __kvm_gmem_get_pfn 7.0, kvm_arch_gmem_make_private later")]
    public required GmemPrepareHook PrepareHook { get; init; }

    /// <summary>When the architecture's hook runs that makes a page the host's again.</summary>
    [Source("kvm_gmem_free_folio, 6.11; RFC v11 with SNP: kvm_gmem_punch_hole")]
    public required GmemFreeHook FreeHook { get; init; }

    /// <summary>A page that failed (memory failure) is unmapped from guests and stays, poisoned; before, the current task gets SIGBUS and nothing is unmapped.</summary>
    [Source("kvm_gmem_error_folio, 6.8")]
    public required bool MemoryFailureUnmaps { get; init; }

    /// <summary>Which stage-2 tables a punch hole cleans: all, those of private memory, or those that the file's kind says.</summary>
    [Source("kvm_gmem_invalidate_begin; private filter 6.16, by file 6.18")]
    public required GmemInvalidateFilter PunchHoleFilter { get; init; }

    /// <summary>Invalidation by a guest_memfd begins even if nothing is bound in the range, while it ends only if something is: in_progress stays raised.</summary>
    [Source("kvm_gmem_invalidate_begin, RFC v11")]
    public required bool InvalidateBeginsUnconditionally { get; init; }

    /// <summary>Design of kvm_gmem_populate.</summary>
    [Source("kvm_gmem_populate; posted 2024-04, merged 6.11, rework merged in 7.0")]
    public required PopulateDesign Populate { get; init; }

    /// <summary>kvm_gmem_populate refuses zero pages, with a warning.</summary>
    [Source("kvm_gmem_populate, 6.18")]
    public required bool PopulateRefusesNothing { get; init; }

    /// <summary>Populate's look-up runs the prepare hook as every other look-up does, so that the page is private before the callback fills it.</summary>
    [Source("seed 000: the question whether gmem could do with one vendor callback")]
    public required bool PopulatePrepares { get; init; }

    /// <summary>The source of a page that firmware may write to (SNP CPUID) is pinned writable.</summary>
    [Source("kvm_gmem_populate, f8479adb")]
    public required bool PopulatePinsWritable { get; init; }

    /// <summary>KVM_SET_MEMORY_ATTRIBUTES2 on the guest_memfd converts pages in place; its attributes, not the VM's, say what is private.</summary>
    [Source("guest_memfd: In-place conversion support, PATCH v8, 2026-06-18; not merged")]
    public required InPlaceConversion InPlaceConversion { get; init; }

    // Attributes.

    /// <summary>Setting attributes that are set already does nothing; before, the hooks run all the same.</summary>
    [Source("kvm_vm_set_mem_attributes, 6.8")]
    public required bool AttributesNoopShortcut { get; init; }

    /// <summary>Setting attributes changes the RMP in the same call, between begin and end; later kernels leave that to the fault path.</summary>
    [Source("kvm_arch_gmem_set_mem_attributes, SNP port of May 2023, seed 001")]
    public required bool AttributesSetHook { get; init; }

    /// <summary>What keeps that and a punch hole apart.</summary>
    [Source("seed 001: the alternatives that the mail names")]
    public required RmpUpdateLock RmpUpdateLock { get; init; }

    /// <summary>Huge pages that straddle an end of a changed range are added to the invalidation.</summary>
    [Source("kvm_arch_pre_set_memory_attributes, about 6.16")]
    public required bool AttributesInvalidateStraddlers { get; init; }

    /// <summary>Changing attributes unmaps only the side (shared or private) that goes; matters where the two have stage-2 tables of their own.</summary>
    [Source("kvm_arch_pre_set_memory_attributes: attr_filter, 6.16")]
    public required bool AttributesUnmapFilter { get; init; }

    /// <summary>Clearing attributes reserves no memory, so it cannot fail.</summary>
    [Source("kvm_vm_set_mem_attributes, newest described tree")]
    public required bool AttributesClearCannotFail { get; init; }

    // Faults and pre-faulting.

    /// <summary>Order of the checks in the guest page-fault path.</summary>
    [Source("kvm_faultin_pfn 6.8; kvm_mmu_faultin_pfn 7.0")]
    public required FaultOrder FaultOrder { get; init; }

    /// <summary>kvm_run.exit_reason of a memory fault.</summary>
    [Source("KVM_EXIT_MEMORY_FAULT: 38 in the 2023 RFC, 39 since 6.8")]
    public required uint MemoryFaultExit { get; init; }

    /// <summary>KVM_RUN fails with EFAULT when it reports a memory fault; before, it returns 0.</summary>
    [Source("kvm_mmu_prepare_memory_fault_exit, 6.8")]
    public required bool MemoryFaultFails { get; init; }

    /// <summary>KVM_MEMORY_EXIT_FLAG_PRIVATE.</summary>
    [Source("include/uapi/linux/kvm.h: 1 in UPM v4 to v8, 8 in v10 and later")]
    public required ulong MemoryFaultPrivateFlag { get; init; }

    /// <summary>What KVM_RUN answers for a private file that disagrees with the access, where it fails for that.</summary>
    [Source("kvm_faultin_pfn_private, UPM v4: -1, which is EPERM")]
    public required Errno MemoryFaultErrno { get; init; }

    /// <summary>How user space maps guest memory ahead of the guest.</summary>
    [Source("kvm_vcpu_pre_fault_memory, 6.11; KVM_MAP_MEMORY RFC 2024-03-01 and v2 2024-04-10")]
    public required PreFaultDesign PreFault { get; init; }

    /// <summary>Pre-faulting a VM that died while it went on answers EIO.</summary>
    [Source("kvm_tdp_page_prefault, 6.16")]
    public required bool PreFaultSeesDeadVm { get; init; }

    /// <summary>Mapping ahead is refused until the launch of an SNP guest or TD is finished; the postings of 2024 had no such test.</summary>
    [Source("kvm_arch_vcpu_pre_fault_memory: pre_fault_allowed, 6.11")]
    public required bool PreFaultNeedsLaunch { get; init; }

    /// <summary>Pre-faulting a slot that is being deleted or moved answers EAGAIN; before, it waits for the end of the change.</summary>
    [Source("kvm_mmu_faultin_pfn: prefetch and KVM_MEMSLOT_INVALID, about 6.18")]
    public required bool PreFaultInvalidSlotIsEagain { get; init; }

    // SEV-SNP.

    /// <summary>INIT2 of an SNP VM refuses version 1 of the GHCB protocol, which has no events for SNP.</summary>
    [Source("__sev_guest_init, 6.18")]
    public required bool SnpNeedsGhcbVersion2 { get; init; }

    /// <summary>SNP_LAUNCH_UPDATE refuses len 0.</summary>
    [Source("snp_launch_update, 7.0; before, it does nothing and succeeds")]
    public required bool SnpZeroLengthRefused { get; init; }

    /// <summary>SNP_LAUNCH_UPDATE refuses a source that is not page aligned.</summary>
    [Source("snp_launch_update, gmem populate rework, 7.0")]
    public required bool SnpSourceMustBeAligned { get; init; }

    /// <summary>What SNP_LAUNCH_UPDATE makes of a NULL source, for page types that need one.</summary>
    [Source("sev_gmem_post_populate; snp_launch_update, proposals of June 2026")]
    public required SnpNullSource SnpNullSource { get; init; }

    /// <summary>Guest policy bits that KVM accepts before it asks firmware.</summary>
    [Source("snp_launch_start: SNP_POLICY_MASK_VALID; policy bits attribute since 7.0")]
    public required ulong SnpPolicyMask { get; init; }

    /// <summary>KVM_X86_SNP_POLICY_BITS and KVM_X86_SEV_SNP_REQ_CERTS exist, and the command SNP_ENABLE_REQ_CERTS.</summary>
    [Source("sev_dev_get_attr; snp_enable_certs, 7.0")]
    public required bool SnpPolicyAndCertificateAttributes { get; init; }

    /// <summary>SNP_LAUNCH_FINISH excludes vCPU creation, locks all vCPUs and refuses one that is encrypted already.</summary>
    [Source("snp_launch_update_vmsa, cb923ee6a80f and neighbours, 2026")]
    public required bool SnpFinishLocksVcpus { get; init; }

    // TDX.

    /// <summary>KVM_MEMORY_ENCRYPT_OP is an ioctl of vCPU fds too.</summary>
    [Source("kvm_arch_vcpu_ioctl, 6.16")]
    public required bool VcpuMemoryEncryptOp { get; init; }

    /// <summary>KVM_CREATE_IRQCHIP of a TD is refused; before, it succeeds and vCPUs are refused.</summary>
    [Source("kvm_arch_vm_ioctl, 6.18")]
    public required bool TdxRefusesKernelIrqchip { get; init; }

    /// <summary>Commands of a TD exclude all vCPUs (kvm->lock, each vcpu->mutex, slots_lock); those of a vCPU that change the TD read their structure before its state is tested.</summary>
    [Source("tdx_acquire_vm_state_locks, TDX post-populate rework of October 2025, about 6.19")]
    public required bool TdxGuardsVmState { get; init; }

    /// <summary>Initial memory is added where it is mapped, in the Secure EPT operation; before, it is mapped first and added afterwards.</summary>
    [Source("tdx_sept_set_private_spte, kvm_tdp_mmu_map_private_pfn: TDX post-populate rework of October 2025, about 6.19")]
    public required bool TdxAddsWhileMapping { get; init; }

    /// <summary>A source address of 0 means that the page has its content already.</summary>
    [Source("tdx_gmem_post_populate, in-place conversion, PATCH v8 of 2026-06-18; not merged")]
    public required bool TdxAddsInPlace { get; init; }

    /// <summary>A region is measured when all of its pages are added; upstream measures each page where it is added. MRTD differs.</summary>
    [Source("KVM_MEMORY_MAPPING and KVM_TDX_EXTEND_MEMORY of TDX series before the merge, told as one command")]
    public required bool TdxExtendsRegionAtEnd { get; init; }

    /// <summary>What user space answers to MapGPA reaches the guest as RETRY or INVALID_OPERAND, and anything else fails KVM_RUN; before, every failure is INVALID_OPERAND.</summary>
    [Source("tdx_complete_vmcall_map_gpa, 3e2dec1ede0a, about 7.0")]
    public required bool TdxMapGpaTellsErrno { get; init; }

    /// <summary>An SNP guest that uses a GHCB which it did not register gets an answer; before, KVM_RUN fails.</summary>
    [Source("sev_handle_vmgexit, 1797e00bf802, 2026")]
    public required bool UnregisteredGhcbIsAnswered { get; init; }

    public override string ToString() => Id;
}
