using SimKvm.Abi;
using SimKvm.Kvm;
using SimMachine;
using SimMachine.Addressing;
using SimMachine.Amd;
using SimMachine.Stepping;

namespace SimKvm.Vendors.Amd;

// The guest running: which of its accesses are private, what the RMP lets pass, how pages become its own when it first touches them.
internal sealed partial class SevBackend
{
    private static readonly StepLabel RmpFaultStep = new("sev rmp fault");

    public static readonly Rule RunBeforeInit = new(
        "sev.run.need-init", "the VM waits for KVM_SEV_INIT2", "pre_sev_run", "initialise the VM first", "vm_type#");

    public static readonly Rule NoVmsa = new(
        "sev.run.no-vmsa", "the vCPU has no valid VMSA", "pre_sev_run",
        "create the vCPU after KVM_SEV_INIT2; after an AP destruction, or an AP creation whose page could not be had, let the guest create it anew", "vcpu#");

    public static readonly Rule PrepareFailed = new(
        "sev.gmem-prepare.make-private", "the page could not be made private in the RMP", "sev_gmem_prepare", "see the cause before this one", "gpa", "pfn");

    // SVM_EXIT_ERR
    private const ulong VmexitInvalid = ulong.MaxValue;

    // pre_fault_allowed
    private bool _launchFinished;

    /// <summary>SEV guests set the C-bit in their page tables; other guests have no such bit.</summary>
    public override bool AccessesAreMarked =>
        Vm.Type is VmType.KVM_X86_SEV_VM or VmType.KVM_X86_SEV_ES_VM or VmType.KVM_X86_SNP_VM || IsSevGuest || base.AccessesAreMarked;

    public override bool PreFaultAllowed => Vm.Type != VmType.KVM_X86_SNP_VM || _launchFinished;

    /// <summary>The C-bit says it on SNP. On SEV and SEV-ES it chooses the key only: their memory is shared in KVM's eyes.</summary>
    public override bool IsPrivateAccess(Gfn gfn, GuestAccess access) =>
        Vm.Type == VmType.KVM_X86_SNP_VM ? IsEncrypted(access) : base.IsPrivateAccess(gfn, access);

    public override uint GuestKey(GuestAccess access) => !IsSevGuest || !IsEncrypted(access) ? Machine.HostKey : _handle != 0 ? Psp.SevKeyOf(_handle) : _asid;

    /// <summary>pre_sev_run: EINVAL where the VM has not been initialised or the vCPU has no VMSA.</summary>
    public override Errno VcpuPreRun(KTask current, Vcpu vcpu)
    {
        if (_needInit)
        {
            return current.Fail(Errno.EINVAL, RunBeforeInit, (ulong)Vm.Type);
        }
        if (!IsEsGuest)
        {
            return Errno.OK;
        }
        if (vcpu.SevEs is not { } state)
        {
            return current.Fail(Errno.EINVAL, NoVmsa, vcpu.Id);
        }
        InitProtectedGuestState(current, vcpu);
        return state.HasGuestVmsa && state.GuestVmsa is null ? current.Fail(Errno.EINVAL, NoVmsa, vcpu.Id) : Errno.OK;
    }

    /// <summary>VMEXIT_INVALID: VMRUN finds no VMSA that is the guest's. The state was not measured yet, or the page that the guest named for it is none.</summary>
    public override ulong? EntryFailure(Vcpu vcpu)
    {
        if (!IsEsGuest)
        {
            return null;
        }
        bool usable = vcpu.SevEs!.HasGuestVmsa ? IsVmsaUsable(vcpu) : vcpu.Arch.GuestStateProtected;
        return usable ? null : VmexitInvalid;
    }

    public override GuestAccessOutcome CheckGuestAccess(Vcpu vcpu, ulong gpa, in Stage2Entry entry, GuestAccess access, bool write) => IsSnpGuest
        ? _host.Machine.Rmp.CheckGuestAccess(_asid, vcpu.Guest.Vmpl, gpa, entry.Pfn, entry.Level, IsEncrypted(access), write, out _)
        : GuestAccessOutcome.Allowed;

    public override GuestAccessOutcome RmpInstruction(KTask current, Vcpu vcpu, GuestStep step, in Stage2Entry entry, out ulong rax, out bool carry)
    {
        if (!IsSnpGuest)
        {
            return base.RmpInstruction(current, vcpu, step, entry, out rax, out carry);
        }
        GuestRmpResult result;
        GuestAccessOutcome outcome;
        carry = false;
        Rmp rmp = _host.Machine.Rmp;
        if (step is GuestPvalidate pvalidate)
        {
            outcome = rmp.Pvalidate(
                current, _asid, vcpu.Guest.Vmpl, pvalidate.Gpa, entry.Pfn, entry.Level, Level(pvalidate.Large), pvalidate.Validate, out result, out carry, out _);
        }
        else
        {
            var rmpadjust = (GuestRmpadjust)step;
            outcome = rmp.Rmpadjust(
                current, _asid, vcpu.Guest.Vmpl, rmpadjust.Gpa, entry.Pfn, entry.Level, Level(rmpadjust.Large), rmpadjust.TargetVmpl, rmpadjust.Permissions, rmpadjust.Vmsa,
                out result, out _);
        }
        rax = (ulong)result;
        return outcome;
    }

    /// <summary>sev_gmem_prepare: a page that is not assigned becomes Guest-Invalid; one that is assigned is taken as it is.</summary>
    public override Errno GmemPrepare(KTask current, Gfn gfn, Pfn pfn, int order)
    {
        if (!IsSnpGuest)
        {
            return Errno.OK;
        }
        ulong gpa = gfn.ToGpa().Value;
        // Every page has an entry: where the RMP does not cover all memory, SNP is not switched on (snp_rmptable_init).
        _host.Machine.Rmp.TryRead(pfn, out RmpState state);
        if (state.Assigned)
        {
            return Errno.OK;
        }
        PageLevel level = order >= Folio.HugeOrder && AllUnassigned(pfn, PageLevel.Page2M.PagesPerLevel()) ? PageLevel.Page2M : PageLevel.Page4K;
        return Amd.RmpMakePrivate(current, pfn, gpa, level, _asid, immutable: false) == Errno.OK
            ? Errno.OK
            : current.Fail(Errno.EINVAL, PrepareFailed, gpa, pfn.Value);
    }

    /// <summary>sev_gmem_max_mapping_level: a private page is never mapped larger than its RMP entry.</summary>
    public override PageLevel GmemMaxMappingLevel(Pfn pfn, bool isPrivate)
    {
        if (!IsSnpGuest || !isPrivate)
        {
            return PageLevel.Page1G;
        }
        return _host.Machine.Rmp.TryRead(pfn, out RmpState state) && state.Assigned ? state.Level : PageLevel.Page4K;
    }

    /// <summary>sev_handle_rmp_fault: an entry of 2 MiB is split and its leaf zapped; one of 4 KiB is taken for a fault that is over.</summary>
    public override void HandleRmpFault(KTask current, Gfn gfn, in Stage2Entry entry)
    {
        current.Step(RmpFaultStep, gfn.Value, entry.Pfn.Value);
        if (!IsSnpGuest || !_host.Machine.Rmp.TryRead(entry.Pfn, out RmpState state) || !state.Assigned || state.Level != PageLevel.Page2M)
        {
            return;
        }
        ulong pages = PageLevel.Page2M.PagesPerLevel();
        _host.Machine.Rmp.Psmash(current, new Pfn(entry.Pfn.Value & ~(pages - 1)));
        using var mmu = Vm.Mmu.Lock.Enter(current);
        Vm.Mmu.Unmap(current, PageLevel.Page2M.RangeAround(gfn));
    }

    public override void StuckAccess(KTask current, Gfn gfn, in Stage2Entry entry)
    {
        ulong gpa = gfn.ToGpa().Value;
        if (IsSnpGuest && _host.Machine.Rmp.TryRead(entry.Pfn, out RmpState state) && state.Assigned && (state.Asid != _asid || state.Gpa != gpa))
        {
            _host.Machine.Rmp.ReportWrongOwner(current, entry.Pfn, _asid, gpa);
        }
    }

    // An SNP or SEV guest maps its memory encrypted unless it says otherwise.
    private static bool IsEncrypted(GuestAccess access) => access != GuestAccess.Shared;

    private static PageLevel Level(bool large) => large ? PageLevel.Page2M : PageLevel.Page4K;

    private bool AllUnassigned(Pfn first, ulong count)
    {
        for (ulong i = 0; i < count; i++)
        {
            if (!_host.Machine.Rmp.TryRead(first + i, out RmpState state) || state.Assigned)
            {
                return false;
            }
        }
        return true;
    }
}
