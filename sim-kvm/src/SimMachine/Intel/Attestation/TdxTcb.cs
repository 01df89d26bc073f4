namespace SimMachine.Intel.Attestation;

/// <summary>
/// TEE_TCB_SVN: security versions of what runs TDs. TDX modules of version 1.0 have ModuleMajor 0, those of 1.5 have 1.
/// </summary>
/// <param name="ModuleSvn">Security version of the TDX module, byte 0.</param>
/// <param name="ModuleMajor">Its major version, byte 1.</param>
/// <param name="SeamLoader">Security version of the last update of the SEAM loader, byte 2.</param>
public readonly record struct TeeTcbSvn(byte ModuleSvn, byte ModuleMajor, byte SeamLoader)
{
    /// <summary>Bytes in a report; those after the three are zeros.</summary>
    public const int Size = 16;

    public Bytes16 Encode()
    {
        Bytes16 bytes = default;
        bytes[0] = ModuleSvn;
        bytes[1] = ModuleMajor;
        bytes[2] = SeamLoader;
        return bytes;
    }
}

/// <summary>What a machine with TDX attests of itself: versions of module and platform. The defaults are a production module 1.5 that is up to date.</summary>
public sealed record TdxTcb
{
    public const int SgxComponentCount = 16;

    public TeeTcbSvn TeeTcbSvn { get; init; } = new(ModuleSvn: 5, ModuleMajor: 1, SeamLoader: 7);

    /// <summary>Security versions of the platform's <see cref="SgxComponentCount"/> SGX components: CPUSVN of reports, and what the PCK certificate has.</summary>
    public ReadOnlyMemory<byte> SgxComponents { get; init; } = new byte[] { 7, 7, 2, 2, 4, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0 };

    /// <summary>Security version of the provisioning certification enclave.</summary>
    public ushort PceSvn { get; init; } = 13;

    /// <summary>Key of the MAC on reports, <see cref="ReportMac.KeySize"/> bytes; null for one that comes from the machine's seed.</summary>
    public ReadOnlyMemory<byte>? ReportMacKey { get; init; }

    /// <summary>Says what is wrong with this configuration, or null.</summary>
    internal string? Problem()
    {
        if (SgxComponents.Length != SgxComponentCount)
        {
            return $"sgx_components has {SgxComponents.Length} security versions: a platform has {SgxComponentCount}";
        }
        return ReportMacKey is { Length: var length } && length != ReportMac.KeySize
            ? $"report_mac_key has {length} bytes: HMAC-SHA-256 here takes a key of {ReportMac.KeySize}"
            : null;
    }
}
