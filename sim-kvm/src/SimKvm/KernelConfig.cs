using SimMachine;
using SimMachine.Addressing;

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

    /// <summary>nr_hugepages for 2 MiB: huge pages that MAP_HUGETLB and MFD_HUGETLB can use.</summary>
    public ulong Hugepages2M { get; init; }

    /// <summary>nr_hugepages for 1 GiB.</summary>
    public ulong Hugepages1G { get; init; }

    /// <summary>What cannot be on such a machine, in a sentence; null if nothing.</summary>
    public string? Problem(MachineConfig machine)
    {
        ulong pages = machine.MemoryBytes >> PageSize.Shift;
        ulong per2M = PageLevel.Page2M.PagesPerLevel();
        ulong per1G = PageLevel.Page1G.PagesPerLevel();
        return Hugepages2M > pages / per2M || Hugepages1G > pages / per1G || (Hugepages2M * per2M) + (Hugepages1G * per1G) > pages
            ? "hugepages_2m and hugepages_1g do not fit into the machine's memory_bytes"
            : null;
    }
}
