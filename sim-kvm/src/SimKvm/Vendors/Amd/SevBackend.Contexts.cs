using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Userspace;
using SimMachine.Stepping;

namespace SimKvm.Vendors.Amd;

// One guest of firmware, two VMs of one host: a mirror shares the other's key and ASID (KVM_CAP_VM_COPY_ENC_CONTEXT_FROM), or the guest moves over and leaves a dead VM behind
// (KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM). Under both VMs' kvm->lock; migration_in_progress keeps two VMs from taking each other's.
internal sealed partial class SevBackend
{
    public static readonly Rule ContextSourceFd = new(
        "sev.context.fd", "the descriptor is not that of a VM", "sev_vm_copy_enc_context_from, sev_vm_move_enc_context_from", "pass a VM's descriptor in args[0]", "fd#");

    public static readonly Rule ContextSameVm = new(
        "sev.context.same-vm", "the source is the VM itself", "sev_lock_two_vms", "pass the descriptor of another VM", "fd#");

    public static readonly Rule ContextBusy = new(
        "sev.context.busy", "one of the VMs is taking part in a migration", "sev_lock_two_vms", "wait until the other call has returned", "fd#");

    public static readonly Rule ContextState = new(
        "sev.context.state", "the VMs do not go together: the one is a SEV guest already, the other is none, is a mirror, is of another type, or the mirror has vCPUs",
        "sev_vm_copy_enc_context_from, sev_vm_move_enc_context_from", "use an initialised source, and a VM of the same type that had no INIT; a mirror gets its vCPUs afterwards",
        "vm_type#", "source_type#", "vcpus#");

    public static readonly Rule ContextOfSnp = new(
        "sev.context.snp", "an SNP guest's context is its page of firmware, which is not modelled to be shared or moved", "not-modelled.md", "use SEV or SEV-ES", "vm_type#");

    public static readonly Rule ContextVcpuBeingCreated = new(
        "sev.context.vcpu-creation", "a vCPU of one of the VMs is being created", "sev_check_source_vcpus", "finish creating vCPUs first", "created#", "source_created#");

    public static readonly Rule ContextVcpus = new(
        "sev.context.vcpus", "a SEV-ES guest moves to a VM with as many vCPUs, after they were measured", "sev_check_source_vcpus",
        "create the same number of vCPUs, and issue KVM_SEV_LAUNCH_UPDATE_VMSA first", "vcpus#", "source_vcpus#");

    public static readonly Rule MirrorCommand = new(
        "sev.mirror.command", "a mirror takes LAUNCH_UPDATE_VMSA, GUEST_STATUS, DBG_DECRYPT and DBG_ENCRYPT only", "sev_mem_enc_ioctl", "issue it on the VM that the context was copied from", "id#");

    public static readonly Rule MirrorRegion = new(
        "sev.mirror.region", "a mirror does not register memory", "sev_mem_enc_register_region, sev_mem_enc_unregister_region", "register it with the VM that the context was copied from", "uaddr");

    // enc_context_owner: the VM whose context this one shares. It stays alive for its mirrors.
    private Vm? _contextOwner;

    // mirror_vms
    private readonly List<SevBackend> _mirrors = [];
    private bool _migrationInProgress;

    private bool IsMirror => _contextOwner is not null;

    private static bool IsAllowedForMirror(SevCmdId id) => id is SevCmdId.KVM_SEV_LAUNCH_UPDATE_VMSA or SevCmdId.KVM_SEV_GUEST_STATUS
        or SevCmdId.KVM_SEV_DBG_DECRYPT or SevCmdId.KVM_SEV_DBG_ENCRYPT;

    /// <summary>sev_vm_copy_enc_context_from: this VM becomes a mirror of another.</summary>
    public override Errno CopyEncContextFrom(KTask current, int sourceFd) => WithTwoVms(current, sourceFd, source =>
    {
        if (IsSevGuest || !source.IsSevGuest || source.IsMirror || Vm.CreatedVcpus > 0)
        {
            return current.Fail(Errno.EINVAL, ContextState, (ulong)Vm.Type, (ulong)source.Vm.Type, (ulong)Vm.CreatedVcpus);
        }
        if (source.IsSnpGuest)
        {
            return current.Fail(Errno.EINVAL, ContextOfSnp, (ulong)source.Vm.Type);
        }
        current.Machine.Writing(this);
        source.Vm.Get();
        _contextOwner = source.Vm;
        source._mirrors.Add(this);
        (_active, _asid, _sevFd, _esActive, _needInit, _handle) = (true, source._asid, source._sevFd, source._esActive, false, source._handle);
        return Errno.OK;
    });

    /// <summary>sev_vm_move_enc_context_from: the guest of another VM is this one's from now on. The other is dead.</summary>
    public override Errno MoveEncContextFrom(KTask current, int sourceFd) => WithTwoVms(current, sourceFd, source =>
    {
        if (Vm.Type != source.Vm.Type || IsSevGuest || !source.IsSevGuest)
        {
            return current.Fail(Errno.EINVAL, ContextState, (ulong)Vm.Type, (ulong)source.Vm.Type, (ulong)Vm.CreatedVcpus);
        }
        if (source.IsSnpGuest)
        {
            return current.Fail(Errno.EINVAL, ContextOfSnp, (ulong)source.Vm.Type);
        }
        Errno errno = CheckSourceVcpus(current, source);
        if (errno == Errno.OK)
        {
            MigrateFrom(current, source);
            source.Vm.MarkDead();
        }
        return errno;
    });

    // sev_lock_two_vms
    private Errno WithTwoVms(KTask current, int sourceFd, Func<SevBackend, Errno> body)
    {
        if (!current.Process.Files.TryGet(sourceFd, out KernelFile? file) || file is not VmFile { Vm.Backend: SevBackend source })
        {
            return current.Fail(Errno.EBADF, ContextSourceFd, unchecked((uint)sourceFd));
        }
        if (source == this)
        {
            return current.Fail(Errno.EINVAL, ContextSameVm, (ulong)sourceFd);
        }
        current.Machine.Writing(this);
        current.Machine.Writing(source);
        if (_migrationInProgress || source._migrationInProgress)
        {
            return current.Fail(Errno.EBUSY, ContextBusy, (ulong)sourceFd);
        }
        _migrationInProgress = source._migrationInProgress = true;
        try
        {
            using var destinationLock = Vm.Lock.Enter(current);
            using var sourceLock = source.Vm.Lock.Enter(current);
            return body(source);
        }
        finally
        {
            _migrationInProgress = source._migrationInProgress = false;
        }
    }

    // sev_check_source_vcpus
    private Errno CheckSourceVcpus(KTask current, SevBackend source)
    {
        if (source.Vm.CreatedVcpus != source.Vm.Vcpus.Count || Vm.CreatedVcpus != Vm.Vcpus.Count)
        {
            return current.Fail(Errno.EBUSY, ContextVcpuBeingCreated, (ulong)Vm.CreatedVcpus, (ulong)source.Vm.CreatedVcpus);
        }
        bool fit = !source.IsEsGuest || (source.Vm.Vcpus.Count == Vm.Vcpus.Count && source.Vm.Vcpus.All(vcpu => vcpu.Arch.GuestStateProtected));
        return fit ? Errno.OK : current.Fail(Errno.EINVAL, ContextVcpus, (ulong)Vm.Vcpus.Count, (ulong)source.Vm.Vcpus.Count);
    }

    // sev_migrate_from. What it leaves out is left out: the descriptor of /dev/sev stays with the source, and a typed VM goes on waiting for its INIT2.
    private void MigrateFrom(KTask current, SevBackend source)
    {
        (_active, _asid, _handle, _contextOwner, _esActive, _vmsaFeatures) = (true, source._asid, source._handle, source._contextOwner, source._esActive, source._vmsaFeatures);
        (source._active, source._asid, source._handle, source._contextOwner, source._esActive) = (false, 0, 0, null, false);
        _regions.AddRange(source._regions);
        source._regions.Clear();

        // Mirrors of the source are mirrors of this VM now; if the source was one, this VM is in its place.
        foreach (SevBackend mirror in source._mirrors)
        {
            Vm.Get();
            source.Vm.Put(current);
            mirror._contextOwner = Vm;
        }
        _mirrors.AddRange(source._mirrors);
        source._mirrors.Clear();
        if (_contextOwner?.Backend is SevBackend owner)
        {
            owner._mirrors.Remove(source);
            owner._mirrors.Add(this);
        }
        for (int i = 0; _esActive && i < Vm.Vcpus.Count; i++)
        {
            TakeVmsa(current, Vm.Vcpus[i], source.Vm.Vcpus[i]);
        }
    }

    // The VMSA and the state of the GHCB protocol belong to the destination's vCPU now.
    private void TakeVmsa(KTask current, Vcpu vcpu, Vcpu source)
    {
        current.Machine.Writing(vcpu);
        current.Machine.Writing(source);
        VcpuFree(current, vcpu);
        (vcpu.Vmsa, source.Vmsa) = (source.Vmsa, default);
        (vcpu.SevEs, source.SevEs) = (source.SevEs, null);
        (vcpu.Arch.GuestStateProtected, source.Arch.GuestStateProtected) = (true, false);
    }

    // The end of a mirror (sev_vm_destroy).
    private void LeaveOwner(KTask current)
    {
        Vm owner = _contextOwner!;
        _contextOwner = null;
        ((SevBackend)owner.Backend)._mirrors.Remove(this);
        owner.Put(current);
    }
}
