using SimKvm.Locking;
using SimMachine;
using SimMachine.Addressing;
using SimMachine.Amd;
using SimMachine.Stepping;

namespace SimKvm.Vendors.Amd;

/// <summary>
/// What the kvm_amd module and the ccp driver keep for a whole host: which SEV features are on, the ASID allocator, the way to firmware, and the helpers that
/// change a page's RMP entry (arch/x86/virt/svm/sev.c).
/// </summary>
internal sealed class KvmAmd(SimHost host)
{
    public static readonly Rule FirmwareRefused = new(
        "ccp.firmware-status", "firmware refused the command", "sev_do_cmd", "see the cause before this one; the status is in kvm_sev_cmd.error", "command", "status");

    public static readonly Rule BadSevFd = new(
        "ccp.sev-fd", "sev_fd is not an open /dev/sev", "sev_issue_cmd_external_user", "open /dev/sev and pass its descriptor", "sev_fd#");

    public static readonly Rule AsidsExhausted = new(
        "sev.asid.exhausted", "all ASIDs of this kind are in use", "sev_asid_new", "destroy a guest, or configure more ASIDs", "min_asid#", "max_asid#");

    public static readonly Rule NoAsids = new(
        "sev.asid.none", "the host has no ASIDs of this kind", "sev_asid_new", "configure min_sev_asid and max_asid so that the range is not empty", "min_asid#", "max_asid#");

    public static readonly Rule RmpChangeFailed = new(
        "sev.rmpupdate", "RMPUPDATE refused the change", "rmpupdate", "see the cause before this one", "pfn", "result#");

    public static readonly Rule FirmwareSilent = new(
        "ccp.firmware-timeout", "firmware did not answer in time; the driver gives it up", "sev_do_cmd", "reboot the host", "command");

    public static readonly Rule FirmwareDead = new(
        "ccp.firmware-dead", "firmware failed to answer an earlier command, so it is not asked any more", "sev_do_cmd: psp_dead", "reboot the host", "command");

    private readonly SimLock _sevCmdMutex = new(LockOrder.SevCmd);
    private readonly SortedSet<uint> _asids = [];
    private readonly SortedSet<uint> _reclaimAsids = [];
    private bool _pspDead;

    /// <summary>/dev/sev is there: the ccp driver has it, whatever KVM makes of it.</summary>
    public bool HasSevDevice => host.Machine.Config is { Platform: Platform.Amd, Sev: true };

    /// <summary>sev_enabled, after bring-up: SEV needs two-dimensional paging (sev_hardware_setup).</summary>
    public bool SevEnabled => HasSevDevice && host.Config.Tdp;

    public bool SevEsEnabled => SevEnabled && host.Machine.Config.SevEs;

    public bool SnpEnabled => SevEsEnabled && host.Machine.Config.SevSnp;

    public IEnumerable<object> SharedState => [_sevCmdMutex];

    /// <summary>sev_supported_vmsa_features: what user space may ask for.</summary>
    public ulong SupportedVmsaFeatures => SevEsEnabled ? host.Machine.Config.SupportedVmsaFeatures : 0;

    /// <summary>Guest policy bits that pass KVM: its own mask, and what firmware reports.</summary>
    public ulong SnpPolicyBits => host.Profile.SnpPolicyMask & host.Machine.Psp.SupportedPolicyBits;

    /// <summary>
    /// One firmware command through sev_fd (sev_issue_cmd): EBADF for a descriptor that is not /dev/sev, EIO with the status for any refusal.
    /// </summary>
    /// <param name="error">kvm_sev_cmd.error; written only when firmware was asked.</param>
    public Errno IssueCommand(KTask current, uint sevFd, PspCommand command, Func<SevStatus> run, ref uint error)
    {
        if (!current.Process.Files.TryGet((int)sevFd, out Userspace.KernelFile? file) || file is not SevDevice)
        {
            return current.Fail(Errno.EBADF, BadSevFd, sevFd);
        }
        return IssueCommand(current, command, run, ref error);
    }

    /// <summary>One firmware command by the kernel itself (sev_do_cmd).</summary>
    public Errno IssueCommand(KTask current, PspCommand command, Func<SevStatus> run, ref uint error)
    {
        using var mutex = _sevCmdMutex.Enter(current);
        if (_pspDead)
        {
            return current.Fail(Errno.EBUSY, FirmwareDead, (ulong)command);
        }
        if (host.Faults?.TakesAnswer() == true)
        {
            error = 0;
            _pspDead = true;
            return current.Fail(Errno.ETIMEDOUT, FirmwareSilent, (ulong)command);
        }
        SevStatus status = host.Faults?.TakesCommand(current, command) ?? run();
        error = (uint)status;
        return status == SevStatus.SUCCESS ? Errno.OK : current.Fail(Errno.EIO, FirmwareRefused, (ulong)command, (ulong)status);
    }

    /// <summary>
    /// sev_asid_new: the lowest ASID that is neither in use nor waiting for a flush. A range that is used up is flushed once, if a freed ASID is in it.
    /// </summary>
    public Errno AsidNew(KTask current, bool es, out uint asid)
    {
        uint min = es ? 1 : host.Machine.Config.MinSevAsid;
        uint max = es ? host.Machine.Config.MinSevAsid - 1 : host.Machine.Config.MaxAsid;
        asid = 0;
        if (min > max)
        {
            return current.Fail(Errno.ENOTTY, NoAsids, min, max);
        }
        if (!TryFind(min, max, out asid))
        {
            if (_reclaimAsids.GetViewBetween(min, max).Count > 0 && FlushAsids(current) == Errno.OK)
            {
                _asids.ExceptWith(_reclaimAsids);
                _reclaimAsids.Clear();
            }
            if (!TryFind(min, max, out asid))
            {
                return current.Fail(Errno.EBUSY, AsidsExhausted, min, max);
            }
        }
        _asids.Add(asid);
        return Errno.OK;
    }

    // sev_flush_asids. Where it fails nothing is recycled.
    private Errno FlushAsids(KTask current)
    {
        uint error = 0;
        Psp psp = host.Machine.Psp;
        return SnpEnabled
            ? IssueCommand(current, PspCommand.SNP_DF_FLUSH, () => psp.SnpDfFlush(current), ref error)
            : IssueCommand(current, PspCommand.DF_FLUSH, () => psp.DfFlush(current), ref error);
    }

    /// <summary>sev_asid_free: not usable before a flush.</summary>
    public void AsidFree(uint asid) => _reclaimAsids.Add(asid);

    /// <summary>rmp_make_private: EFAULT when RMPUPDATE refuses.</summary>
    public Errno RmpMakePrivate(KTask current, Pfn pfn, ulong gpa, PageLevel level, uint asid, bool immutable) =>
        RmpUpdate(current, pfn, new RmpState(true, level, immutable, asid, gpa));

    /// <summary>rmp_make_shared: EFAULT when RMPUPDATE refuses.</summary>
    public Errno RmpMakeShared(KTask current, Pfn pfn, PageLevel level) => RmpUpdate(current, pfn, RmpState.Shared(level));

    /// <summary>
    /// sev_gmem_invalidate, for a page that left a guest_memfd: it is made shared before anybody else can have it. Called with the folio locked, never under
    /// mmu_lock.
    /// </summary>
    public void GmemInvalidate(KTask current, Pfn pfn)
    {
        if (!SnpEnabled || !host.Machine.Rmp.TryRead(pfn, out RmpState state) || !state.Assigned)
        {
            return;
        }
        if (state.Level == PageLevel.Page2M)
        {
            host.Machine.Rmp.Psmash(current, new Pfn(pfn.Value & ~(PageLevel.Page2M.PagesPerLevel() - 1)));
        }
        RmpMakeShared(current, pfn, PageLevel.Page4K);
    }

    // Splitting the direct map of the frame may sleep, so this may not be called under mmu_lock (seed 001).
    private Errno RmpUpdate(KTask current, Pfn pfn, in RmpState state)
    {
        host.Lockdep.MightSleep(current, "an RMP update");
        RmpResult result = host.Machine.Rmp.Update(current, pfn, state);
        return result == RmpResult.OK ? Errno.OK : current.Fail(Errno.EFAULT, RmpChangeFailed, pfn.Value, (ulong)result);
    }

    private bool TryFind(uint min, uint max, out uint asid)
    {
        for (asid = min; asid <= max; asid++)
        {
            if (!_asids.Contains(asid))
            {
                return true;
            }
        }
        return false;
    }
}
