using SimMachine.Addressing;
using SimMachine.Amd;

namespace SimMachine;

/// <summary>Whose silicon a machine is, as far as confidential guests go.</summary>
public enum Platform
{
    /// <summary>AMD: SEV to SEV-SNP.</summary>
    Amd,

    /// <summary>Arm, 64 bits, with the hypervisor of protected KVM at EL2.</summary>
    ArmPkvm,
}

/// <summary>Silicon and firmware of a simulated host, an AMD one unless it says otherwise. The defaults make a Milan-like machine (snp.md 1.1).</summary>
public sealed record MachineConfig
{
    /// <summary>Physical memory in bytes, a multiple of 4096. Memory that nobody wrote costs nothing.</summary>
    public ulong MemoryBytes { get; init; } = 4UL << 30;

    public Platform Platform { get; init; }

    public EpycProduct Product { get; init; } = EpycProduct.Milan;

    /// <summary>kvm_amd.sev</summary>
    public bool Sev { get; init; } = true;

    /// <summary>kvm_amd.sev_es</summary>
    public bool SevEs { get; init; } = true;

    /// <summary>kvm_amd.sev_snp</summary>
    public bool SevSnp { get; init; } = true;

    /// <summary>CPUID 0x8000001F ECX. SEV guests use [<see cref="MinSevAsid"/>, <see cref="MaxAsid"/>].</summary>
    public uint MaxAsid { get; init; } = 509;

    /// <summary>CPUID 0x8000001F EDX. SEV-ES and SNP guests use [1, MinSevAsid - 1].</summary>
    public uint MinSevAsid { get; init; } = 100;

    /// <summary>Bits that kvm_sev_init.vmsa_features may have; 0x20 is DebugSwap.</summary>
    public ulong SupportedVmsaFeatures { get; init; } = 0x20;

    /// <summary>SEV firmware version.</summary>
    public byte ApiMajor { get; init; } = 1;

    public byte ApiMinor { get; init; } = 55;

    public byte Build { get; init; } = 21;

    /// <summary>Simultaneous multithreading is on; a guest policy that forbids it is refused.</summary>
    public bool Smt { get; init; } = true;

    /// <summary>Says what is wrong with this configuration, or null.</summary>
    public string? Problem()
    {
        if (MemoryBytes == 0 || MemoryBytes % PageSize.Bytes != 0)
        {
            return $"memory_bytes is {MemoryBytes}: it must be a positive multiple of 4096";
        }
        if (MemoryBytes > 1UL << 48)
        {
            return $"memory_bytes is {MemoryBytes}: at most 2^48 (256 TiB) can be addressed";
        }
        if (MaxAsid > 1023)
        {
            return $"max_asid is {MaxAsid}: an RMP entry has room for 1023";
        }
        if (MinSevAsid == 0)
        {
            return "min_sev_asid is 0: ASID 0 is the host's";
        }
        return null;
    }
}
