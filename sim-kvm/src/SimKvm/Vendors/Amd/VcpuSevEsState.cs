using SimMachine.Addressing;

namespace SimKvm.Vendors.Amd;

/// <summary>
/// What KVM keeps of a vCPU with encrypted state beside its VMSA (struct vcpu_sev_es_state): the GHCB protocol, and AP creation. The VMSA itself is <c>Vcpu.Vmsa</c>, or after an
/// AP creation a page of the guest's. Under vcpu->mutex, but for what AP creation by another vCPU changes: under snp_vmsa_mutex.
/// </summary>
internal sealed class VcpuSevEsState
{
    public Locking.SimLock SnpVmsaMutex { get; } = new(Locking.LockOrder.SnpVmsa);

    /// <summary>The GHCB MSR (control.ghcb_gpa): a request, its answer, or the gpa of the GHCB.</summary>
    public ulong GhcbMsr { get; set; }

    /// <summary>ghcb_registered_gpa; null until the guest registers one.</summary>
    public ulong? RegisteredGpa { get; set; }

    /// <summary>The GHCB of the exit under way; null where none is mapped.</summary>
    public Ghcb? Ghcb { get; set; }

    /// <summary>The scratch area of the exit under way (ghcb_sa).</summary>
    public ScratchArea? Scratch { get; set; }

    // The page state changes that user space was asked for: entries from psc_idx on.
    public int PscIndex { get; set; }

    public int PscInflight { get; set; }

    /// <summary>The vCPU takes a new VMSA, or none, when it is next reset (snp_ap_waiting_for_reset).</summary>
    public bool ApWaitingForReset { get; set; }

    /// <summary>The reset is due: AP creation asked for it (KVM_REQ_UPDATE_PROTECTED_GUEST_STATE).</summary>
    public bool UpdateRequested { get; set; }

    /// <summary>snp_vmsa_gpa; null is INVALID_PAGE.</summary>
    public ulong? VmsaGpa { get; set; }

    /// <summary>snp_has_guest_vmsa: since an AP creation the VMSA is a page of the guest's, or there is none.</summary>
    public bool HasGuestVmsa { get; set; }

    /// <summary>That page; null after an AP destruction, or where it could not be had.</summary>
    public Pfn? GuestVmsa { get; set; }
}

/// <summary>
/// The memory that a GHCB points to for what does not fit its fields (setup_vmgexit_scratch): inside the GHCB's own shared buffer, where KVM's changes are seen at once, or
/// elsewhere in shared memory, where KVM works on a copy and stores it back when the guest goes on.
/// </summary>
internal sealed class ScratchArea(ulong gpa, byte[] bytes, bool insideGhcb, bool sync)
{
    public ulong Gpa => gpa;

    public byte[] Bytes => bytes;

    public bool InsideGhcb => insideGhcb;

    /// <summary>The copy goes back to the guest.</summary>
    public bool Sync => sync;
}
