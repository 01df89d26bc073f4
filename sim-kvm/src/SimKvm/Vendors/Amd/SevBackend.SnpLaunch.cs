using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Profiles;
using SimMachine.Addressing;
using SimMachine.Amd;
using SimMachine.Measurement;
using SimMachine.Stepping;

namespace SimKvm.Vendors.Amd;

// KVM_SEV_SNP_LAUNCH_START, _UPDATE, _FINISH (snp.md 3). Checks in the kernel's order; every failure of a page inside LAUNCH_UPDATE reads EIO outside.
internal sealed partial class SevBackend
{
    /// <summary>The gpa under which KVM measures a VMSA.</summary>
    private const ulong InitialVmsaGpa = 0xffff_ffff_f000;

    private const int IdBlockSize = 96;
    private const int IdAuthSize = 4096;
    private const int HostDataSize = 32;

    public static readonly Rule NotAnSnpGuest = new(
        "sev.snp.not-a-guest", "the VM is not an initialised SNP guest", "snp_launch_start and the like", "create the VM with type SNP (4) and issue KVM_SEV_INIT2 first",
        "vm_type#");

    public static readonly Rule ContextExists = new(
        "sev.snp.start.again", "the launch was started already", "snp_launch_start", "start a launch once", "asid#");

    public static readonly Rule NoContext = new(
        "sev.snp.not-started", "the launch was not started", "snp_launch_update, snp_launch_finish", "issue KVM_SEV_SNP_LAUNCH_START first", "vm_type#");

    public static readonly Rule SnpFlags = new(
        "sev.snp.flags", "flags of this command must be 0", "snp_launch_start, snp_launch_update, snp_launch_finish", "pass flags 0", "flags");

    public static readonly Rule PolicyUnsupported = new(
        "sev.snp.start.policy-bits", "the policy has bits that KVM does not support", "snp_launch_start",
        "read attribute KVM_X86_SNP_POLICY_BITS of /dev/kvm; bit 18 (MIGRATE_MA) is never supported", "policy", "supported");

    public static readonly Rule PolicyReservedBit = new(
        "sev.snp.start.policy-bit-17", "policy bit 17 is reserved and must be 1", "snp_launch_start", "set it, for example policy 0x30000", "policy");

    public static readonly Rule ContextFailed = new(
        "sev.snp.start.context", "the guest context could not be created; KVM answers ENOTTY whatever the reason", "snp_launch_start",
        "see the cause before this one", "asid#");

    public static readonly Rule NoContextPage = new(
        "sev.snp.start.no-memory", "the simulated machine has no free page for the guest context", "snp_alloc_firmware_page", "give the host more memory_bytes");

    public static readonly Rule UpdateLengthZero = new(
        "sev.snp.update.len-zero", "len is 0", "snp_launch_update, 7.0", "give at least one page", "len");

    public static readonly Rule UpdateArguments = new(
        "sev.snp.update.arguments", "len is not a multiple of 4096, flags are not 0, or the page type is none that user space may use", "snp_launch_update",
        "use types NORMAL 1, ZERO 3, UNMEASURED 4, SECRETS 5, CPUID 6; firmware's type 2 (VMSA) is launched by LAUNCH_FINISH", "len", "flags", "type#");

    public static readonly Rule SourceNotAligned = new(
        "sev.snp.update.source-alignment", "uaddr is not page aligned", "snp_launch_update, 7.0", "align the source to 4096; before 7.0 any alignment is accepted", "uaddr");

    public static readonly Rule UpdateNoGmemSlot = new(
        "sev.snp.update.slot", "no slot has gfn_start, or the slot has no guest_memfd", "snp_launch_update",
        "create a slot with KVM_MEM_GUEST_MEMFD over the gpa", "gfn_start", "gpa");

    public static readonly Rule NullSource = new(
        "sev.snp.update.null-source", "a page of a type other than ZERO needs a source", "sev_gmem_post_populate",
        "pass a user address in uaddr; with in-place conversion (IP8) NULL stands for the page's own content", "gpa", "type#");

    public static readonly Rule AlreadyAssigned = new(
        "sev.snp.update.assigned", "the page is assigned in the RMP already: it was launched or used as private before", "sev_gmem_post_populate",
        "launch each page once; punch a hole into the guest_memfd to start over", "gpa", "gfn", "pfn", "owner_asid#", "owner_gpa");

    public static readonly Rule HostFaulted = new(
        "sev.snp.update.host-rmp-fault", "the host's copy into the page took an RMP fault", "sev_gmem_post_populate", "see the finding", "gpa", "pfn");

    public static readonly Rule PopulateFailed = new(
        "sev.snp.update.populate", "not even the first page could be launched; KVM answers EIO whatever the reason", "snp_launch_update",
        "see the cause before this one", "gfn_start", "gpa", "len", "error");

    public static readonly Rule VcpuBeingCreated = new(
        "sev.snp.finish.vcpu-creation", "a vCPU is being created", "snp_launch_update_vmsa, 2026", "finish creating vCPUs first", "created#", "online#");

    public static readonly Rule VcpuAlreadyEncrypted = new(
        "sev.snp.finish.encrypted", "the vCPU's state was measured and encrypted by an earlier LAUNCH_FINISH", "snp_launch_update_vmsa, 2026",
        "a LAUNCH_FINISH that failed after its vCPUs cannot be repeated; launch a new VM", "vcpu#");

    public static readonly Rule VcpuDebugged = new(
        "sev.snp.finish.debug", "the vCPU is being debugged, or has DR7 bits set", "sev_es_sync_vmsa",
        "switch KVM_SET_GUEST_DEBUG off and leave DR7 at 0x400", "vcpu#", "dr7", "guest_debug");

    public static readonly Rule NullBlob = new(
        "sev.blob.null", "the address of the block is 0", "psp_copy_user_blob", "pass the block's address, or id_block_en 0", "bytes#");

    public static readonly Rule CertsTooLate = new(
        "sev.snp.req-certs", "certificates must be enabled on an initialised SNP guest before its first vCPU", "snp_enable_certs",
        "issue it between INIT2 and KVM_CREATE_VCPU", "vcpus#");

    // snp_launch_start
    private unsafe Errno SnpLaunchStart(KTask current, ref kvm_sev_cmd cmd)
    {
        if (!IsSnpGuest)
        {
            return current.Fail(Errno.ENOTTY, NotAnSnpGuest, (ulong)Vm.Type);
        }
        Errno errno = CopyParameters(current, cmd, out kvm_sev_snp_launch_start start);
        if (errno != Errno.OK)
        {
            return errno;
        }
        if (_snpContext.Value != 0)
        {
            return current.Fail(Errno.EINVAL, ContextExists, _asid);
        }
        if (start.flags != 0)
        {
            return current.Fail(Errno.EINVAL, SnpFlags, start.flags);
        }
        if ((start.policy & ~Amd.SnpPolicyBits) != 0)
        {
            return current.Fail(Errno.EINVAL, PolicyUnsupported, start.policy, Amd.SnpPolicyBits);
        }
        if ((start.policy & Psp.PolicyBits.MustBeOne) == 0)
        {
            return current.Fail(Errno.EINVAL, PolicyReservedBit, start.policy);
        }

        _policy = start.policy;
        if (SnpContextCreate(current, ref cmd) != Errno.OK)
        {
            return current.Fail(Errno.ENOTTY, ContextFailed, _asid);
        }
        ulong policy = start.policy;
        byte[] gosvw = Bytes(start.gosvw, 16).ToArray();
        errno = Amd.IssueCommand(
            current, cmd.sev_fd, PspCommand.SNP_LAUNCH_START, () => Psp.SnpLaunchStart(current, _snpContext, policy, gosvw), ref cmd.error);
        if (errno == Errno.OK)
        {
            _sevFd = cmd.sev_fd;
            errno = Amd.IssueCommand(current, _sevFd, PspCommand.SNP_ACTIVATE, () => Psp.SnpActivate(current, _snpContext, _asid), ref cmd.error);
        }
        if (errno != Errno.OK)
        {
            SnpDecommission(current);
        }
        return errno;
    }

    // snp_context_create: a Firmware page, which firmware turns into the guest context.
    private Errno SnpContextCreate(KTask current, ref kvm_sev_cmd cmd)
    {
        if (!_host.Machine.TryAllocateFrame(out Pfn page))
        {
            return current.Fail(Errno.ENOMEM, NoContextPage);
        }
        Errno errno = Amd.RmpMakePrivate(current, page, 0, PageLevel.Page4K, 0, immutable: true);
        if (errno != Errno.OK)
        {
            _host.Machine.FreeFrame(current, page);
            return errno;
        }
        errno = Amd.IssueCommand(current, cmd.sev_fd, PspCommand.SNP_GCTX_CREATE, () => Psp.SnpGctxCreate(current, page), ref cmd.error);
        if (errno != Errno.OK)
        {
            FreeFirmwarePage(current, page);
            return errno;
        }
        current.Machine.Writing(this);
        _snpContext = page;
        return Errno.OK;
    }

    // snp_launch_update
    private Errno SnpLaunchUpdate(KTask current, ref kvm_sev_cmd cmd)
    {
        if (!IsSnpGuest)
        {
            return current.Fail(Errno.EINVAL, NotAnSnpGuest, (ulong)Vm.Type);
        }
        if (_snpContext.Value == 0)
        {
            return current.Fail(Errno.EINVAL, NoContext, (ulong)Vm.Type);
        }
        Errno errno = CopyParameters(current, cmd, out kvm_sev_snp_launch_update update);
        if (errno != Errno.OK)
        {
            return errno;
        }
        if (update.len == 0 && _host.Profile.SnpZeroLengthRefused)
        {
            return current.Fail(Errno.EINVAL, UpdateLengthZero, update.len);
        }
        var type = (SnpPageType)update.type;
        bool known = type is SnpPageType.NORMAL or SnpPageType.ZERO or SnpPageType.UNMEASURED or SnpPageType.SECRETS or SnpPageType.CPUID;
        if ((update.len & PageSize.OffsetMask) != 0 || update.flags != 0 || !known)
        {
            return current.Fail(Errno.EINVAL, UpdateArguments, update.len, update.flags, update.type);
        }
        if (_host.Profile.LaunchUpdateInPlace)
        {
            return SnpLaunchUpdateInPlace(current, ref cmd, update, type);
        }
        // A ZERO page has no source: uaddr is neither read nor checked nor advanced.
        ulong uaddr = type == SnpPageType.ZERO ? 0 : update.uaddr;
        if ((uaddr & PageSize.OffsetMask) != 0 && _host.Profile.SnpSourceMustBeAligned)
        {
            return current.Fail(Errno.EINVAL, SourceNotAligned, uaddr);
        }
        if (uaddr == 0 && type != SnpPageType.ZERO && _host.Profile.SnpNullSource == SnpNullSource.RefusedAtOnce)
        {
            return current.Fail(Errno.EINVAL, NullSource, update.gfn_start << PageSize.Shift, update.type);
        }

        using var slots = Vm.SlotsLock.Enter(current);
        var gfn = new Gfn(update.gfn_start);
        if (Vm.Memslots.Find(gfn) is not { HasGmem: true })
        {
            return current.Fail(Errno.EINVAL, UpdateNoGmemSlot, gfn.Value, gfn.Value << PageSize.Shift);
        }
        uint sevFd = cmd.sev_fd;
        uint firmwareError = 0;
        SyscallResult populated = GuestMemfd.Populate(
            current, Vm, gfn, uaddr, (long)(update.len >> PageSize.Shift), mayWriteBack: type == SnpPageType.CPUID,
            (KTask task, Gfn each, Pfn pfn, in PopulateSource source) => PostPopulate(task, each, pfn, source, type, sevFd, ref firmwareError));
        if (!populated.Succeeded)
        {
            cmd.error = firmwareError;
            return current.Fail(Errno.EIO, PopulateFailed, gfn.Value, gfn.Value << PageSize.Shift, update.len, firmwareError);
        }
        ulong bytes = (ulong)populated.Value << PageSize.Shift;
        update.gfn_start += (ulong)populated.Value;
        update.len -= bytes;
        update.uaddr += type == SnpPageType.ZERO ? 0 : bytes;
        return Userspace.UserArg.FromValue(cmd.data).CopyOut(current, update);
    }

    // sev_gmem_post_populate, one page.
    private Errno PostPopulate(KTask current, Gfn gfn, Pfn pfn, in PopulateSource source, SnpPageType type, uint sevFd, ref uint firmwareError)
    {
        ulong gpa = gfn.ToGpa().Value;
        if (type != SnpPageType.ZERO && !source.Exists && _host.Profile.SnpNullSource != SnpNullSource.PageAsItIs)
        {
            return current.Fail(Errno.EINVAL, NullSource, gpa, (ulong)type);
        }
        _host.Machine.Rmp.TryRead(pfn, out RmpState owner);
        if (owner.Assigned)
        {
            return current.Fail(Errno.EEXIST, AlreadyAssigned, gpa, gfn.Value, pfn.Value, owner.Asid, owner.Gpa);
        }
        Errno errno = source.Exists ? CopySource(current, gpa, pfn, source) : Errno.OK;
        if (errno != Errno.OK)
        {
            return errno;
        }
        errno = Amd.RmpMakePrivate(current, pfn, gpa, PageLevel.Page4K, _asid, immutable: true);
        if (errno != Errno.OK)
        {
            return errno;
        }
        errno = Amd.IssueCommand(
            current, sevFd, PspCommand.SNP_LAUNCH_UPDATE, () => Psp.SnpLaunchUpdate(current, _snpContext, pfn, PageLevel.Page4K, type), ref firmwareError);
        if (errno == Errno.OK)
        {
            return Errno.OK;
        }

        // Firmware refused: the page goes back, so that the same gpa can be tried again. A refused CPUID page holds the values that firmware would take, and the
        // caller gets to see them in its source.
        bool reclaimed = SnpPageReclaim(current, pfn);
        if (reclaimed && source.Exists && type == SnpPageType.CPUID && firmwareError == (uint)SevStatus.INVALID_PARAM)
        {
            CopyBack(current, pfn, source);
        }
        return errno;
    }

    private Errno CopySource(KTask current, ulong gpa, Pfn pfn, in PopulateSource source)
    {
        bool stored;
        if (source.Page is { } page)
        {
            stored = _host.Machine.HostCopy(current, page, pfn);
        }
        else
        {
            Span<byte> buffer = stackalloc byte[PageSize.Bytes];
            Errno errno = CopyBlob(current, source.Uaddr, buffer);
            if (errno != Errno.OK)
            {
                return errno;
            }
            stored = _host.Machine.HostWrite(current, pfn, 0, buffer);
        }
        return stored ? Errno.OK : current.Fail(Errno.EFAULT, HostFaulted, gpa, pfn.Value);
    }

    // Best effort: what cannot be stored is not stored, and the command's errno stands.
    private void CopyBack(KTask current, Pfn pfn, in PopulateSource source)
    {
        int causes = current.Causes.Count;
        if (source.Page is { } page)
        {
            _host.Machine.HostCopy(current, pfn, page);
        }
        else
        {
            Span<byte> buffer = stackalloc byte[PageSize.Bytes];
            _host.Machine.HostRead(pfn, 0, buffer);
            Userspace.UserArg.FromValue(source.Uaddr).CopyOut(current, buffer);
        }
        current.ForgetCausesAfter(causes);
    }

    // snp_launch_finish
    private unsafe Errno SnpLaunchFinish(KTask current, ref kvm_sev_cmd cmd)
    {
        if (!IsSnpGuest)
        {
            return current.Fail(Errno.ENOTTY, NotAnSnpGuest, (ulong)Vm.Type);
        }
        if (_snpContext.Value == 0)
        {
            return current.Fail(Errno.EINVAL, NoContext, (ulong)Vm.Type);
        }
        Errno errno = CopyParameters(current, cmd, out kvm_sev_snp_launch_finish finish);
        if (errno != Errno.OK)
        {
            return errno;
        }
        if (finish.flags != 0)
        {
            return current.Fail(Errno.EINVAL, SnpFlags, finish.flags);
        }
        // From here the digest moves: what fails below cannot be repeated.
        errno = SnpLaunchUpdateVmsas(current, ref cmd);
        if (errno != Errno.OK)
        {
            return errno;
        }

        byte[] idBlock = [];
        byte[] idAuth = [];
        if (finish.id_block_en != 0)
        {
            idBlock = new byte[IdBlockSize];
            idAuth = new byte[IdAuthSize];
            errno = CopyPspBlob(current, finish.id_block_uaddr, idBlock);
            if (errno == Errno.OK)
            {
                errno = CopyPspBlob(current, finish.id_auth_uaddr, idAuth);
            }
            if (errno != Errno.OK)
            {
                return errno;
            }
        }
        bool authKey = finish.id_block_en != 0 && finish.auth_key_en != 0;
        bool vcekDisabled = (finish.vcek_disabled & 1) != 0;
        byte[] hostData = Bytes(finish.host_data, HostDataSize).ToArray();
        errno = Amd.IssueCommand(
            current, _sevFd, PspCommand.SNP_LAUNCH_FINISH,
            () => Psp.SnpLaunchFinish(current, _snpContext, idBlock, idAuth, authKey, vcekDisabled, hostData), ref cmd.error);
        current.Machine.Writing(this);
        _launchFinished |= errno == Errno.OK;
        return errno;
    }

    // snp_launch_update_vmsa: every vCPU in creation order. One that fails leaves those before it encrypted and in the digest.
    private Errno SnpLaunchUpdateVmsas(KTask current, ref kvm_sev_cmd cmd)
    {
        if (!_host.Profile.SnpFinishLocksVcpus)
        {
            return MeasureVcpus(current, ref cmd);
        }
        if (Vm.CreatedVcpus != Vm.Vcpus.Count)
        {
            return current.Fail(Errno.EBUSY, VcpuBeingCreated, (ulong)Vm.CreatedVcpus, (ulong)Vm.Vcpus.Count);
        }
        return LockVcpusAndMeasure(current, ref cmd, 0);
    }

    // kvm_lock_all_vcpus: one scope for each vCPU, hence the recursion; there are at most 1024.
    private Errno LockVcpusAndMeasure(KTask current, ref kvm_sev_cmd cmd, int index)
    {
        if (index == Vm.Vcpus.Count)
        {
            return MeasureVcpus(current, ref cmd);
        }
        using var mutex = Vm.Vcpus[index].Mutex.Enter(current);
        return LockVcpusAndMeasure(current, ref cmd, index + 1);
    }

    private Errno MeasureVcpus(KTask current, ref kvm_sev_cmd cmd)
    {
        foreach (Vcpu vcpu in Vm.Vcpus)
        {
            Errno errno = MeasureVcpu(current, vcpu, ref cmd);
            if (errno != Errno.OK)
            {
                return errno;
            }
        }
        return Errno.OK;
    }

    private Errno MeasureVcpu(KTask current, Vcpu vcpu, ref kvm_sev_cmd cmd)
    {
        Errno errno = WriteVmsa(current, vcpu);
        if (errno != Errno.OK)
        {
            return errno;
        }
        errno = Amd.RmpMakePrivate(current, vcpu.Vmsa, InitialVmsaGpa, PageLevel.Page4K, _asid, immutable: true);
        if (errno != Errno.OK)
        {
            return errno;
        }
        errno = Amd.IssueCommand(
            current, cmd.sev_fd, PspCommand.SNP_LAUNCH_UPDATE,
            () => Psp.SnpLaunchUpdate(current, _snpContext, vcpu.Vmsa, PageLevel.Page4K, SnpPageType.VMSA), ref cmd.error);
        if (errno != Errno.OK)
        {
            SnpPageReclaim(current, vcpu.Vmsa);
            return errno;
        }
        current.Machine.Writing(vcpu);
        vcpu.Arch.GuestStateProtected = true;
        return Errno.OK;
    }

    // sev_es_sync_vmsa and the checks before it.
    private Errno WriteVmsa(KTask current, Vcpu vcpu)
    {
        if (_host.Profile.SnpFinishLocksVcpus && vcpu.Arch.GuestStateProtected)
        {
            return current.Fail(Errno.EINVAL, VcpuAlreadyEncrypted, vcpu.Id);
        }
        if (vcpu.Arch.GuestDebug != 0 || (vcpu.Arch.Dr7 & ~Vmsa.Dr7Fixed) != 0)
        {
            return current.Fail(Errno.EINVAL, VcpuDebugged, vcpu.Id, vcpu.Arch.Dr7, vcpu.Arch.GuestDebug);
        }
        Span<byte> page = stackalloc byte[PageSize.Bytes];
        Vmsa.Sync(page, vcpu.Arch, _vmsaFeatures, copyFpu: Vm.Type != VmType.KVM_X86_DEFAULT_VM);
        _host.Machine.HostWrite(current, vcpu.Vmsa, 0, page);
        return Errno.OK;
    }

    // snp_enable_certs
    private Errno SnpEnableReqCerts(KTask current)
    {
        if (Vm.CreatedVcpus > 0 || !IsSnpGuest)
        {
            return current.Fail(Errno.EINVAL, CertsTooLate, (ulong)Vm.CreatedVcpus);
        }
        _snpCertsEnabled = true;
        return Errno.OK;
    }

    // snp_page_reclaim: firmware gives the page up, then it is made shared. If that fails the page is lost to the host, and the VM is dead.
    private bool SnpPageReclaim(KTask current, Pfn pfn)
    {
        uint error = 0;
        bool reclaimed =
            Amd.IssueCommand(current, PspCommand.SNP_PAGE_RECLAIM, () => Psp.SnpPageReclaim(current, pfn, PageLevel.Page4K), ref error) == Errno.OK
            && Amd.RmpMakeShared(current, pfn, PageLevel.Page4K) == Errno.OK;
        if (!reclaimed)
        {
            Vm.Bug(current, $"frame 0x{pfn.Value:x} could not be reclaimed from firmware (status 0x{error:x}); it is leaked");
            _host.Machine.LeakFrame(pfn);
        }
        return reclaimed;
    }

    // snp_decommission_context
    private bool SnpDecommission(KTask current)
    {
        if (_snpContext.Value == 0)
        {
            return true;
        }
        uint error = 0;
        if (Amd.IssueCommand(current, PspCommand.SNP_DECOMMISSION, () => Psp.SnpDecommission(current, _snpContext), ref error) != Errno.OK)
        {
            return false;
        }
        FreeFirmwarePage(current, _snpContext);
        _snpContext = default;
        return true;
    }

    // snp_free_firmware_page
    private void FreeFirmwarePage(KTask current, Pfn page)
    {
        SnpPageReclaim(current, page);
        _host.Machine.FreeFrame(current, page);
    }

    // psp_copy_user_blob
    private static Errno CopyPspBlob(KTask current, ulong uaddr, Span<byte> destination) => uaddr == 0
        ? current.Fail(Errno.EINVAL, NullBlob, (ulong)destination.Length)
        : CopyBlob(current, uaddr, destination);
}
