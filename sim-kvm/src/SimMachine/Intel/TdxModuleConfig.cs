using System.Security.Cryptography;
using System.Text;
using SimMachine.Intel.Attestation;

namespace SimMachine.Intel;

/// <summary>A leaf of the guest's CPUID that a host may configure, with the bits that it may choose (TDX module ABI, CPUID_CONFIG).</summary>
/// <param name="HasSubleaf">The leaf has sub-leaves; <paramref name="Index"/> is 0 where not.</param>
public readonly record struct TdxCpuidSlot(uint Function, uint Index, bool HasSubleaf, uint Eax, uint Ebx, uint Ecx, uint Edx);

/// <summary>A TDX module and the platform that it is loaded on. Defaults are those of module 1.5.01 (tdx.md 1.1).</summary>
public sealed record TdxModuleConfig
{
    /// <summary>Bytes of a MRSEAM or MRSIGNERSEAM.</summary>
    public const int MeasurementSize = SHA384.HashSizeInBytes;

    /// <summary>Bytes of CPUSVN and of TEE_TCB_SVN.</summary>
    public const int SvnSize = 16;

    /// <summary>kvm_intel.tdx: the module is loaded and initialised at boot.</summary>
    public bool Enabled { get; init; } = true;

    /// <summary>ATTRIBUTES bits that may be 1.</summary>
    public ulong AttributesFixed0 { get; init; } = 0x8000_0000_7000_0001;

    /// <summary>ATTRIBUTES bits that must be 1.</summary>
    public ulong AttributesFixed1 { get; init; }

    /// <summary>XFAM bits that may be 1.</summary>
    public ulong XfamFixed0 { get; init; } = 0x6_dbe7;

    /// <summary>XFAM bits that must be 1.</summary>
    public ulong XfamFixed1 { get; init; } = 0x3;

    /// <summary>State components that the host's kernel supports, XCR0 and XSS together.</summary>
    public ulong HostXcr0OrXss { get; init; } = 0x6_02e7;

    /// <summary>Processors that are present. They cap the vCPUs of a TD.</summary>
    public int PresentCpus { get; init; } = 8;

    /// <summary>Packages: keys are configured, and caches flushed, on each.</summary>
    public int Packages { get; init; } = 1;

    /// <summary>KeyIDs for guests: TDs that may exist at once.</summary>
    public uint GuestHkids { get; init; } = 15;

    /// <summary>The first KeyID of a guest; those below are of TME-MK and of the module.</summary>
    public uint FirstGuestHkid { get; init; } = 33;

    /// <summary>The EPT may have five levels, which a GPA width of 52 bits needs.</summary>
    public bool FiveLevelEpt { get; init; } = true;

    /// <summary>The processor's TSC, kHz: what a new VM has.</summary>
    public uint TscKhz { get; init; } = 2_000_000;

    /// <summary>Control pages of a TD, without its TDR.</summary>
    public int TdcsPages { get; init; } = 6;

    /// <summary>The most that TDH.MNG.ADDCX takes.</summary>
    public int MaxTdcsPages { get; init; } = 9;

    /// <summary>Control pages of a vCPU, its TDVPR among them.</summary>
    public int TdvpsPages { get; init; } = 6;

    /// <summary>CPUID(1).EAX of the processor.</summary>
    public uint Fms { get; init; } = 0x000_806f8;

    /// <summary>The leaves that a host may configure, in the module's order.</summary>
    public IReadOnlyList<TdxCpuidSlot> CpuidSlots { get; init; } = Module15;

    /// <summary>16 bytes, in reports: the security versions of the platform's SGX components, as its PCK certificate has them.</summary>
    public ReadOnlyMemory<byte> CpuSvn { get; init; } = new byte[SvnSize] { 6, 6, 0x13, 0x15, 3, 0xff, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0 };

    /// <summary>Security version of the provisioning certification enclave, in the PCK certificate.</summary>
    public ushort PceSvn { get; init; } = 13;

    /// <summary>16 bytes, in reports: security version of the module, its major version, security version of what loads it.</summary>
    public ReadOnlyMemory<byte> TeeTcbSvn { get; init; } = new byte[SvnSize] { 5, 1, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 };

    /// <summary>48 bytes: the module's measurement. No real module has this one.</summary>
    public ReadOnlyMemory<byte> Mrseam { get; init; } = SHA384.HashData(Encoding.ASCII.GetBytes("simulated TDX module 1.5.01"));

    /// <summary>48 bytes; zeros for a module that Intel signed.</summary>
    public ReadOnlyMemory<byte> MrsignerSeam { get; init; } = new byte[MeasurementSize];

    /// <summary>ATTRIBUTES of the module, 0 for a production one.</summary>
    public ulong SeamAttributes { get; init; }

    /// <summary>32 bytes: the key of REPORTMACSTRUCTs; empty for one that follows from the host's seed.</summary>
    public ReadOnlyMemory<byte> ReportMacKey { get; init; }

    /// <summary>CPUID_CONFIG of module 1.5.01 (tdx.md 3.5).</summary>
    public static IReadOnlyList<TdxCpuidSlot> Module15 { get; } =
    [
        new(0x1, 0, false, 0x0fff3fff, 0x00ff0000, 0x31044d88, 0xb8440000),
        new(0x4, 0, true, 0xffffc3ff, 0xfffff000, 0xffffffff, 0xfffffffb),
        new(0x4, 1, true, 0xffffc3ff, 0xfffff000, 0xffffffff, 0xfffffffb),
        new(0x4, 2, true, 0xffffc3ff, 0xfffff000, 0xffffffff, 0xfffffffb),
        new(0x4, 3, true, 0xffffc3ff, 0xfffff000, 0xffffffff, 0x00000007),
        new(0x7, 0, true, 0, 0xdc2b9b18, 0x02417f65, 0x0005411c),
        new(0x7, 1, true, 0x00001d30, 0, 0, 0),
        new(0xa, 0, false, 0, 0, 0, 0),
        new(0x1c, 0, false, 0x000000ff, 0, 0, 0),
        new(0x80000008, 0, false, 0, 0x00000200, 0, 0),
        new(0x7, 2, true, 0, 0, 0, 0x00000028),
        new(0x23, 0, true, 0x0000000f, 0, 0, 0),
    ];

    /// <summary>Says what is wrong with this configuration, or null.</summary>
    public string? Problem()
    {
        const int maxPackages = 8;
        const int maxCpus = 1024;
        const uint maxHkids = 0x7fff;
        const int maxControlPages = 64;
        return this switch
        {
            { PresentCpus: < 1 or > maxCpus } => $"tdx.present_cpus is {PresentCpus}: 1 to {maxCpus}",
            { Packages: < 1 or > maxPackages } => $"tdx.packages is {Packages}: 1 to {maxPackages}",
            { GuestHkids: > maxHkids } or { FirstGuestHkid: 0 or > maxHkids } => $"tdx KeyIDs are [{FirstGuestHkid}, +{GuestHkids}): they start at 1 and are at most {maxHkids}",
            { TdcsPages: < 1 or > maxControlPages } or { TdvpsPages: < 1 or > maxControlPages } or { MaxTdcsPages: > maxControlPages } =>
                $"tdx.tdcs_pages, tdx.max_tdcs_pages and tdx.tdvps_pages are 1 to {maxControlPages}",
            _ when MaxTdcsPages < TdcsPages => $"tdx.max_tdcs_pages is {MaxTdcsPages}: at least tdcs_pages, {TdcsPages}",
            _ when CpuidSlots.Count > TdParams.MaxCpuidValues => $"the CPUID table has {CpuidSlots.Count} entries: TD_PARAMS has room for {TdParams.MaxCpuidValues}",
            _ when CpuidSlots.DistinctBy(slot => (slot.Function, slot.Index)).Count() != CpuidSlots.Count => "the CPUID table has a leaf twice",
            _ when CpuidSlots.Any(slot => (slot.Function & 0x7fff_ff80) != 0 || slot.Index > 0x7f) => "the CPUID table has a leaf or sub-leaf whose field id has no room: bits 30:7 of a leaf, and 31:7 of a sub-leaf, are 0",
            _ when CpuSvn.Length != SvnSize || TeeTcbSvn.Length != SvnSize => $"tdx.cpu_svn and tdx.tee_tcb_svn have {SvnSize} bytes",
            _ when Mrseam.Length != MeasurementSize || MrsignerSeam.Length != MeasurementSize => $"tdx.mrseam and tdx.mrsigner_seam have {MeasurementSize} bytes",
            _ when ReportMacKey.Length is not (0 or ReportMac.KeySize) => $"tdx.report_mac_key has {ReportMac.KeySize} bytes, or none",
            _ when (AttributesFixed1 & ~AttributesFixed0) != 0 || (XfamFixed1 & ~XfamFixed0) != 0 => "a bit that must be 1 may not be: tdx.attributes_fixed1 and tdx.xfam_fixed1 are within fixed0",
            _ => null,
        };
    }
}
