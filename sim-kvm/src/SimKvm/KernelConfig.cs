namespace SimKvm;

/// <summary>
/// How the simulated kernel was built and which module parameters it got: what differs between two machines that run the same generation. The defaults are those of
/// a distribution that has everything switched on.
/// </summary>
public sealed record KernelConfig
{
    /// <summary>kvm.tdp_mmu with ept or npt: two-dimensional paging. Without it there are no private-memory VMs and no pre-faulting.</summary>
    public bool Tdp { get; init; } = true;

    /// <summary>CONFIG_KVM_SMM: a second address space of memory slots for system management mode.</summary>
    public bool Smm { get; init; } = true;

    /// <summary>CONFIG_KVM_SW_PROTECTED_VM: the VM type for development, whose private memory is private by agreement only.</summary>
    public bool SwProtectedVm { get; init; } = true;
}
