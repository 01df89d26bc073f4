namespace SimKvm.Locking;

/// <summary>
/// A class of locks, as lockdep has them: all instances share one place in the order. Declared in <see cref="LockOrder"/> and nowhere else.
/// </summary>
public sealed class LockClass
{
    internal LockClass(int rank, string name, bool atomic, bool nestsInItself = false)
    {
        Rank = rank;
        Name = name;
        Atomic = atomic;
        NestsInItself = nestsInItself;
        AcquireStep = new SimMachine.Stepping.StepLabel("lock " + name);
        ReleaseStep = new SimMachine.Stepping.StepLabel("unlock " + name);
    }

    /// <summary>Place in <see cref="LockOrder.All"/>.</summary>
    public int Rank { get; }

    /// <summary>The kernel's name.</summary>
    public string Name { get; }

    /// <summary>A spinning lock: its holder may not sleep, so may not take a sleeping lock.</summary>
    public bool Atomic { get; }

    /// <summary>Two instances may be held at once in an order of their own (mutex_lock_nested).</summary>
    public bool NestsInItself { get; }

    internal SimMachine.Stepping.StepLabel AcquireStep { get; }

    internal SimMachine.Stepping.StepLabel ReleaseStep { get; }

    public override string ToString() => Name;
}

/// <summary>
/// Every lock of the simulated kernel, outermost first: the order of Documentation/virt/kvm/locking.rst as far as guest memory goes.
/// </summary>
/// <remarks>
/// <code>
/// kvm_lock
///   kvm->lock
///     vcpu->mutex
///       guest_req_mutex
///       snp_vmsa_mutex
///     kvm->slots_lock
///       kvm->slots_arch_lock
///       kvm->srcu          (readers: faults; the writer waits for them)
///       mmap_lock
///       invalidate_lock
///         gmem_rmp_mutex   (a proposal of 2023)
///         folio lock
///           sev_cmd_mutex
///         kvm->mmu_lock      (atomic)
/// </code>
/// Up to Linux 6.19 kvm_gmem_populate reads its source, and so may take mmap_lock, inside invalidate_lock. That inverts this list but closes no cycle there,
/// because no mmap_lock holder takes invalidate_lock in those kernels: <see cref="Lockdep"/> reports cycles that were really seen, as the kernel's does.
/// </remarks>
public static class LockOrder
{
    public static readonly LockClass KvmLock = new(0, "kvm_lock", atomic: false);
    // In itself: sev_lock_two_vms, which lets only one of two VMs begin.
    public static readonly LockClass Vm = new(1, "kvm->lock", atomic: false, nestsInItself: true);
    public static readonly LockClass Vcpu = new(2, "vcpu->mutex", atomic: false, nestsInItself: true);
    public static readonly LockClass GuestReq = new(3, "guest_req_mutex", atomic: false);
    public static readonly LockClass SnpVmsa = new(4, "snp_vmsa_mutex", atomic: false);
    public static readonly LockClass Slots = new(5, "kvm->slots_lock", atomic: false);
    public static readonly LockClass SlotsArch = new(6, "kvm->slots_arch_lock", atomic: false);
    public static readonly LockClass Srcu = new(7, "kvm->srcu", atomic: false);
    public static readonly LockClass Mmap = new(8, "mmap_lock", atomic: false);
    public static readonly LockClass Invalidate = new(9, "invalidate_lock", atomic: false);
    public static readonly LockClass GmemRmp = new(10, "gmem_rmp_mutex", atomic: false);
    public static readonly LockClass Folio = new(11, "folio lock", atomic: false);
    public static readonly LockClass SevCmd = new(12, "sev_cmd_mutex", atomic: false);
    public static readonly LockClass Mmu = new(13, "kvm->mmu_lock", atomic: true);

    public static IReadOnlyList<LockClass> All { get; } = [KvmLock, Vm, Vcpu, GuestReq, SnpVmsa, Slots, SlotsArch, Srcu, Mmap, Invalidate, GmemRmp, Folio, SevCmd, Mmu];
}
