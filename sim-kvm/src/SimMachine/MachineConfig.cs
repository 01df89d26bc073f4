using SimMachine.Addressing;
using SimMachine.Amd;
using SimMachine.Amd.Attestation;
using SimMachine.Intel;

namespace SimMachine;

/// <summary>Whose silicon a machine is, as far as confidential guests go.</summary>
public enum Platform
{
    /// <summary>AMD: SEV to SEV-SNP.</summary>
    Amd,

    /// <summary>Arm, 64 bits, with the hypervisor of protected KVM at EL2.</summary>
    ArmPkvm,

    /// <summary>Intel, with the TDX module.</summary>
    IntelTdx,
}

/// <summary>Silicon and firmware of a simulated host, an AMD one unless it says otherwise. The defaults make a Milan-like machine (snp.md 1.1).</summary>
public sealed record MachineConfig
{
    /// <summary>Physical memory in bytes, a multiple of 4096. Memory that nobody wrote costs nothing.</summary>
    public ulong MemoryBytes { get; init; } = 4UL << 30;

    public Platform Platform { get; init; }

    /// <summary>The TDX module, on platform <see cref="Platform.IntelTdx"/>.</summary>
    public TdxModuleConfig Tdx { get; init; } = new();

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

    /// <summary>Version of attestation reports: 2, 3 or 5; 0 for the oldest that the product's firmware makes (3 on Turin, else 2).</summary>
    public uint ReportVersion { get; init; }

    /// <summary>CURRENT_TCB.</summary>
    public TcbVersion CurrentTcb { get; init; } = new(BootLoader: 3, Tee: 0, Snp: 8, Microcode: 115);

    /// <summary>COMMITTED_TCB, no part newer than the current one's; null for the same.</summary>
    public TcbVersion? CommittedTcb { get; init; }

    /// <summary>REPORTED_TCB, which the VCEK is bound to (SNP_CONFIG); no part newer than the committed one's; null for the same.</summary>
    public TcbVersion? ReportedTcb { get; init; }

    /// <summary>LAUNCH_TCB, no part newer than the current one's; null for the same.</summary>
    public TcbVersion? LaunchTcb { get; init; }

    /// <summary>LAUNCH_MIT_VECTOR and CURRENT_MIT_VECTOR of version 5.</summary>
    public ulong LaunchMitVector { get; init; }

    public ulong CurrentMitVector { get; init; }

    /// <summary>Reports have zeros for the chip id (SNP_CONFIG).</summary>
    public bool MaskChipId { get; init; }

    /// <summary>Reports are not signed (SNP_CONFIG).</summary>
    public bool MaskChipKey { get; init; }

    /// <summary>The cloud provider whose VLEK is loaded (SNP_VLEK_LOAD); empty for none.</summary>
    public string VlekCspId { get; init; } = "";

    /// <summary>Transparent SME is on. This and the next ones appear in PLATFORM_INFO only.</summary>
    public bool Tsme { get; init; }

    public bool Ecc { get; init; }

    public bool RaplDisabled { get; init; }

    public bool CiphertextHidingDram { get; init; }

    /// <summary>Guest policy bits of optional features that the SNP firmware reports: 21 to 25. A bit that it does not report cannot be asked for.</summary>
    public ulong FirmwarePolicyBits { get; init; }

    public bool AliasCheckComplete { get; init; }

    public bool Tio { get; init; }

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
        if ((FirmwarePolicyBits & ~Psp.OptionalPolicyBits) != 0)
        {
            return $"firmware_policy_bits is 0x{FirmwarePolicyBits:x}: only bits 21 to 25 (0x{Psp.OptionalPolicyBits:x}) are optional";
        }
        if (MinSevAsid == 0)
        {
            return "min_sev_asid is 0: ASID 0 is the host's";
        }
        return Tdx.Problem() ?? AttestationProblem();
    }

    private string? AttestationProblem()
    {
        const int maxCspId = 64;
        if (ReportVersion is not (0 or 2 or 3 or 5))
        {
            return $"report_version is {ReportVersion}: it must be 2, 3 or 5, or 0 for the product's own";
        }
        TcbVersion committed = CommittedTcb ?? CurrentTcb;
        if (!committed.IsWithin(CurrentTcb))
        {
            return $"committed_tcb is {committed}: no part may be newer than that of current_tcb, {CurrentTcb}";
        }
        if (ReportedTcb is { } reported && !reported.IsWithin(committed))
        {
            return $"reported_tcb is {reported}: no part may be newer than that of committed_tcb, {committed}";
        }
        if (LaunchTcb is { } launch && !launch.IsWithin(CurrentTcb))
        {
            return $"launch_tcb is {launch}: no part may be newer than that of current_tcb, {CurrentTcb}";
        }
        // The other versions are within this one.
        if (CurrentTcb.Fmc != 0 && !TcbVersion.HasFmc(Product))
        {
            return $"current_tcb.fmc is {CurrentTcb.Fmc}: {Product} has no FMC, leave it 0";
        }
        if (VlekCspId.Length > maxCspId || VlekCspId.Any(letter => letter is < ' ' or > '~'))
        {
            return $"vlek_csp_id has {VlekCspId.Length} characters: at most {maxCspId} printable ASCII ones go into a certificate";
        }
        return null;
    }
}
