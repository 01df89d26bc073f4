using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Userspace;
using SimMachine.Addressing;
using SimMachine.Amd;
using SimMachine.Stepping;

namespace SimKvm.Vendors.Amd;

/// <summary>
/// SEV, SEV-ES and SEV-SNP of one VM (struct kvm_sev_info and arch/x86/kvm/svm/sev.c): KVM_MEMORY_ENCRYPT_OP and its dispatch, INIT2, vCPU and VM teardown.
/// The SNP launch commands are in <c>SevBackend.SnpLaunch.cs</c>. Everything here is under kvm->lock unless said otherwise.
/// </summary>
/// <remarks>
/// Life: need_init (types SEV, SEV_ES, SNP) -> INIT2: active, with an ASID -> SNP_LAUNCH_START: a guest context -> updates -> FINISH.
/// </remarks>
internal sealed partial class SevBackend : VmBackend
{
    private const ulong SnpActiveFeature = 1;
    private const ushort MaxGhcbVersion = 2;
    private const uint FirstSnpCommand = 100;

    public static readonly Rule LegacyOnSnp = new(
        "sev.op.legacy-on-snp", "an SNP guest takes SNP commands only", "sev_mem_enc_ioctl", "use commands 100 and above", "id#");

    public static readonly Rule UnknownCommand = new(
        "sev.op.unknown", "the command is not known, or not modelled", "sev_mem_enc_ioctl", "see not-modelled.md for what is left out", "id#");

    public static readonly Rule SevEsDisabled = new(
        "sev.op.es-disabled", "SEV-ES is disabled on this host", "sev_mem_enc_ioctl", "boot the host with sev_es enabled", "id#");

    public static readonly Rule NoInitNeeded = new(
        "sev.init2.again", "the VM does not wait for INIT2: it had it, or is of a type without SEV", "sev_guest_init2",
        "create the VM with type SEV (2), SEV_ES (3) or SNP (4), and initialise it once", "vm_type#");

    public static readonly Rule InitAfterVcpu = new(
        "sev.init2.vcpus", "INIT2 must come before the first vCPU", "__sev_guest_init", "create vCPUs after INIT2", "vcpus#");

    public static readonly Rule InitFlags = new(
        "sev.init2.flags", "flags of INIT2 must be 0", "__sev_guest_init", "pass flags 0", "flags");

    public static readonly Rule InitFeatures = new(
        "sev.init2.vmsa-features", "vmsa_features has bits that this host does not support for the VM type", "__sev_guest_init",
        "read attribute KVM_X86_SEV_VMSA_FEATURES of /dev/kvm; SNPActive (bit 0) is KVM's to set, and plain SEV has none", "vmsa_features", "supported");

    public static readonly Rule InitGhcbVersion = new(
        "sev.init2.ghcb-version", "the GHCB version is not supported, or not 0 for a plain SEV VM", "__sev_guest_init",
        "use 0 (newest), 2, or 1 for SEV-ES; SNP takes 1 before 6.18 only", "ghcb_version#");

    public static readonly Rule NoVmsaPage = new(
        "sev.vcpu-create.no-memory", "the simulated machine has no free page for the vCPU's VMSA", "sev_vcpu_create", "give the host more memory_bytes", "vcpu#");

    private readonly SimHost _host;

    // need_init
    private bool _needInit;
    private bool _active;
    private bool _esActive;
    private ulong _vmsaFeatures;
    private ushort _ghcbVersion;
    private uint _asid;
    private uint _sevFd;
    private ulong _policy;

    // snp_context: the guest context page, or 0.
    private Pfn _snpContext;
    private bool _snpCertsEnabled;

    public SevBackend(Vm vm)
        : base(vm)
    {
        _host = vm.Host;
        _needInit = vm.Type is VmType.KVM_X86_SEV_VM or VmType.KVM_X86_SEV_ES_VM or VmType.KVM_X86_SNP_VM;
    }

    private bool IsSevGuest => _active;

    private bool IsEsGuest => _active && _esActive;

    private bool IsSnpGuest => IsEsGuest && (_vmsaFeatures & SnpActiveFeature) != 0;

    private KvmAmd Amd => _host.KvmAmd;

    private Psp Psp => _host.Machine.Psp;

    /// <summary>KVM_MEMORY_ENCRYPT_OP (sev_mem_enc_ioctl). The structure goes back to user space whatever the command answers.</summary>
    public override Errno MemEncIoctl(KTask current, UserArg arg)
    {
        if (!Amd.SevEnabled)
        {
            return current.Fail(Errno.ENOTTY, NoMemEncIoctl);
        }
        if (arg.Value == 0)
        {
            return Errno.OK;
        }
        Errno errno = arg.CopyIn(current, out kvm_sev_cmd cmd);
        if (errno != Errno.OK)
        {
            return errno;
        }

        using var vmLock = Vm.Lock.Enter(current);
        if (IsMirror && !IsAllowedForMirror((SevCmdId)cmd.id))
        {
            return current.Fail(Errno.EINVAL, MirrorCommand, cmd.id);
        }
        if (IsSnpGuest && cmd.id < FirstSnpCommand)
        {
            return current.Fail(Errno.EPERM, LegacyOnSnp, cmd.id);
        }
        switch ((SevCmdId)cmd.id)
        {
            case SevCmdId.KVM_SEV_ES_INIT when !Amd.SevEsEnabled:
                return current.Fail(Errno.ENOTTY, SevEsDisabled, cmd.id);
            case SevCmdId.KVM_SEV_INIT:
                errno = LegacyInit(current, ref cmd, es: false);
                break;
            case SevCmdId.KVM_SEV_ES_INIT:
                errno = LegacyInit(current, ref cmd, es: true);
                break;
            case SevCmdId.KVM_SEV_INIT2:
                errno = Init2(current, ref cmd);
                break;
            case SevCmdId.KVM_SEV_LAUNCH_START:
                errno = LaunchStart(current, ref cmd);
                break;
            case SevCmdId.KVM_SEV_LAUNCH_UPDATE_DATA:
                errno = LaunchUpdateData(current, ref cmd);
                break;
            case SevCmdId.KVM_SEV_LAUNCH_UPDATE_VMSA:
                errno = LaunchUpdateVmsa(current, ref cmd);
                break;
            case SevCmdId.KVM_SEV_LAUNCH_MEASURE:
                errno = LaunchMeasure(current, ref cmd);
                break;
            case SevCmdId.KVM_SEV_LAUNCH_SECRET:
                errno = LaunchSecret(current, ref cmd);
                break;
            case SevCmdId.KVM_SEV_LAUNCH_FINISH:
                errno = WithoutParameters(current, ref cmd, PspCommand.LAUNCH_FINISH, () => Psp.LaunchFinish(current, _handle));
                break;
            case SevCmdId.KVM_SEV_GUEST_STATUS:
                errno = GuestStatus(current, ref cmd);
                break;
            case SevCmdId.KVM_SEV_DBG_DECRYPT:
                errno = Debug(current, ref cmd, decrypt: true);
                break;
            case SevCmdId.KVM_SEV_DBG_ENCRYPT:
                errno = Debug(current, ref cmd, decrypt: false);
                break;
            case SevCmdId.KVM_SEV_GET_ATTESTATION_REPORT:
                errno = GetAttestationReport(current, ref cmd);
                break;
            case SevCmdId.KVM_SEV_SEND_START:
                errno = SendStart(current, ref cmd);
                break;
            case SevCmdId.KVM_SEV_SEND_UPDATE_DATA:
                errno = SendUpdateData(current, ref cmd);
                break;
            case SevCmdId.KVM_SEV_SEND_FINISH:
                errno = WithoutParameters(current, ref cmd, PspCommand.SEND_FINISH, () => Psp.SendFinish(current, _handle));
                break;
            case SevCmdId.KVM_SEV_SEND_CANCEL:
                errno = WithoutParameters(current, ref cmd, PspCommand.SEND_CANCEL, () => Psp.SendCancel(current, _handle));
                break;
            case SevCmdId.KVM_SEV_RECEIVE_START:
                errno = ReceiveStart(current, ref cmd);
                break;
            case SevCmdId.KVM_SEV_RECEIVE_UPDATE_DATA:
                errno = ReceiveUpdateData(current, ref cmd);
                break;
            case SevCmdId.KVM_SEV_RECEIVE_FINISH:
                errno = WithoutParameters(current, ref cmd, PspCommand.RECEIVE_FINISH, () => Psp.ReceiveFinish(current, _handle));
                break;
            case SevCmdId.KVM_SEV_SNP_LAUNCH_START:
                errno = SnpLaunchStart(current, ref cmd);
                break;
            case SevCmdId.KVM_SEV_SNP_LAUNCH_UPDATE:
                errno = SnpLaunchUpdate(current, ref cmd);
                break;
            case SevCmdId.KVM_SEV_SNP_LAUNCH_FINISH:
                errno = SnpLaunchFinish(current, ref cmd);
                break;
            case SevCmdId.KVM_SEV_SNP_ENABLE_REQ_CERTS when _host.Profile.SnpPolicyAndCertificateAttributes:
                errno = SnpEnableReqCerts(current);
                break;
            default:
                return current.Fail(Errno.EINVAL, UnknownCommand, cmd.id);
        }
        Errno copied = arg.CopyOut(current, cmd);
        return copied != Errno.OK ? copied : errno;
    }

    // sev_guest_init2, __sev_guest_init
    private Errno Init2(KTask current, ref kvm_sev_cmd cmd)
    {
        if (!_needInit)
        {
            return current.Fail(Errno.EINVAL, NoInitNeeded, (ulong)Vm.Type);
        }
        Errno errno = UserArg.FromValue(cmd.data).CopyIn(current, out kvm_sev_init data);
        if (errno != Errno.OK)
        {
            return errno;
        }
        errno = GuestInit(current, ref cmd, data, es: Vm.Type != VmType.KVM_X86_SEV_VM);
        if (errno == Errno.OK)
        {
            _needInit = false;
        }
        return errno;
    }

    // __sev_guest_init. On any failure behind the checks the VM is as it was, so it can be tried again.
    private Errno GuestInit(KTask current, ref kvm_sev_cmd cmd, in kvm_sev_init data, bool es)
    {
        if (Vm.CreatedVcpus > 0)
        {
            return current.Fail(Errno.EINVAL, InitAfterVcpu, (ulong)Vm.CreatedVcpus);
        }
        if (data.flags != 0)
        {
            return current.Fail(Errno.EINVAL, InitFlags, data.flags);
        }
        ulong supported = es ? Amd.SupportedVmsaFeatures : 0;
        if ((data.vmsa_features & ~supported) != 0)
        {
            return current.Fail(Errno.EINVAL, InitFeatures, data.vmsa_features, supported);
        }
        bool isTooOld = Vm.Type == VmType.KVM_X86_SNP_VM && data.ghcb_version == 1 && _host.Profile.SnpNeedsGhcbVersion2;
        if (data.ghcb_version > MaxGhcbVersion || (!es && data.ghcb_version != 0) || isTooOld)
        {
            return current.Fail(Errno.EINVAL, InitGhcbVersion, data.ghcb_version);
        }

        if (_active)
        {
            return current.Fail(Errno.EINVAL, NoInitNeeded, (ulong)Vm.Type);
        }

        current.Machine.Writing(this);
        _active = true;
        _esActive = es;
        _vmsaFeatures = data.vmsa_features | (Vm.Type == VmType.KVM_X86_SNP_VM ? SnpActiveFeature : 0);
        _ghcbVersion = es && data.ghcb_version == 0 ? MaxGhcbVersion : data.ghcb_version;
        Errno errno = Amd.AsidNew(current, es, out _asid);
        if (errno == Errno.OK)
        {
            // The status of sev_platform_init is handed on when it failed, and not otherwise.
            uint error = 0;
            errno = Amd.IssueCommand(current, PspCommand.SNP_INIT, () => Psp.SnpInit(current), ref error);
            if (errno != Errno.OK)
            {
                cmd.error = error;
                Amd.AsidFree(_asid);
            }
        }
        if (errno != Errno.OK)
        {
            _active = _esActive = false;
            _vmsaFeatures = 0;
            _asid = 0;
        }
        return errno;
    }

    /// <summary>sev_vcpu_create: an encrypted vCPU has its state in a page of its own.</summary>
    public override Errno VcpuCreate(KTask current, Vcpu vcpu)
    {
        if (IsEsGuest)
        {
            if (!_host.Machine.TryAllocateFrame(out Pfn vmsa))
            {
                return current.Fail(Errno.ENOMEM, NoVmsaPage, vcpu.Id);
            }
            vcpu.Vmsa = vmsa;
            vcpu.SevEs = new VcpuSevEsState { GhcbMsr = SevInfo };
        }
        return Errno.OK;
    }

    /// <summary>sev_free_vcpu: a page that was given to the guest is made shared first; if that fails it is never used again.</summary>
    public override void VcpuFree(KTask current, Vcpu vcpu)
    {
        if (vcpu.Vmsa.Value == 0)
        {
            return;
        }
        bool assigned = _host.Machine.Rmp.TryRead(vcpu.Vmsa, out RmpState state) && state.Assigned;
        if (assigned && Amd.RmpMakeShared(current, vcpu.Vmsa, PageLevel.Page4K) != Errno.OK)
        {
            _host.Machine.LeakFrame(vcpu.Vmsa);
        }
        else
        {
            _host.Machine.FreeFrame(current, vcpu.Vmsa);
        }
        vcpu.Vmsa = default;
    }

    /// <summary>sev_vm_destroy.</summary>
    public override void VmDestroy(KTask current)
    {
        ReleaseLaunchedUserPages(current);
        if (!IsSevGuest)
        {
            return;
        }
        if (IsMirror)
        {
            LeaveOwner(current);
            return;
        }
        DestroyLegacy(current);
        if (!SnpDecommission(current))
        {
            // As in the kernel: the ASID stays taken, because firmware may still have it.
            return;
        }
        Amd.AsidFree(_asid);
    }

    // VMSAs are all measured under one address.
    public override IEnumerable<ulong> MeasuredTwice => SnpStatus is not { } status
        ? []
        : status.Transcript.Read(0, status.Transcript.Count).Where(page => page.PageType != SimMachine.Measurement.SnpPageType.VMSA).GroupBy(page => page.Gpa)
            .Where(pages => pages.Count() > 1).Select(pages => pages.Key);

    public override ReadOnlyMemory<byte> Measurement => SnpStatus?.LaunchDigest;

    public override IEnumerable<Pfn> Frames => Vm.Vcpus.Select(vcpu => vcpu.Vmsa).Append(_snpContext).Where(pfn => pfn.Value != 0);

    /// <summary>
    /// kvm_arch_gmem_set_mem_attributes of the SNP port of May 2023 (seed 001): the ioctl makes each page of the range private or shared in the RMP, and allocates the pages
    /// that are not there. Until LAUNCH_FINISH it leaves them, for the launch makes its pages private itself (that detail is UNVERIFIED).
    /// </summary>
    public override Errno GmemSetMemAttributes(KTask current, Memslot slot, GfnRange range, ulong attributes)
    {
        if (!IsSnpGuest || !_launchFinished)
        {
            return Errno.OK;
        }
        bool isPrivate = (attributes & kvm_memory_attributes.PRIVATE) != 0;
        for (Gfn gfn = range.Start; gfn < range.End; gfn += 1)
        {
            Errno errno = GuestMemfd.GetPfn(current, Vm, slot, gfn, out Pfn pfn, out _);
            if (errno != Errno.OK)
            {
                return errno;
            }
            if (!isPrivate)
            {
                Amd.GmemInvalidate(current, pfn);
                continue;
            }
            _host.Machine.Rmp.TryRead(pfn, out RmpState state);
            errno = state.Assigned ? Errno.OK : Amd.RmpMakePrivate(current, pfn, gfn.ToGpa().Value, PageLevel.Page4K, _asid, immutable: false);
            if (errno != Errno.OK)
            {
                return errno;
            }
        }
        return Errno.OK;
    }

    /// <summary>For people: what firmware has of this VM, or null before SNP_LAUNCH_START.</summary>
    public SnpGuestStatus? SnpStatus => _snpContext.Value == 0 ? null : Psp.GuestStatus(_snpContext);

    public (bool Active, uint Asid, ulong VmsaFeatures, uint GhcbVersion, ulong Policy, bool CertsEnabled) Summary =>
        (_active, _asid, _vmsaFeatures, _ghcbVersion, _policy, _snpCertsEnabled);

    // copy_from_user of the command's structure
    private static Errno CopyParameters<T>(KTask current, in kvm_sev_cmd cmd, out T parameters)
        where T : unmanaged =>
        UserArg.FromValue(cmd.data).CopyIn(current, out parameters);

    private static unsafe ReadOnlySpan<byte> Bytes(byte* start, int length) => new(start, length);

    private static Errno CopyBlob(KTask current, ulong uaddr, Span<byte> destination) => UserArg.FromValue(uaddr).CopyIn(current, destination);
}
