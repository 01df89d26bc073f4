using System.Diagnostics.CodeAnalysis;

namespace SimMachine.Amd.Attestation;

/// <summary>KEY_SEL of a report request.</summary>
public enum KeySelection : uint
{
    /// <summary>The VLEK if one is loaded, else the VCEK.</summary>
    VLEK_IF_LOADED = 0,
    VCEK = 1,
    VLEK = 2,
}

/// <summary>
/// Who a machine is to a verifier: its chip, the TCB version that it reports, the keys that it signs with and the certificates that vouch for them.
/// The chip is for ever; what the operator of the platform decides (SNP_CONFIG, SNP_COMMIT, SNP_VLEK_LOAD) changes by firmware commands only.
/// </summary>
public sealed class PlatformIdentity
{
    private readonly byte[] _chipId;
    private Lazy<EndorsementKey> _vcek = null!;
    private Lazy<EndorsementKey?> _vlek = null!;

    internal PlatformIdentity(MachineConfig config, Stepping.Entropy entropy)
    {
        Product = config.Product;
        CurrentTcb = config.CurrentTcb;
        CommittedTcb = config.CommittedTcb ?? config.CurrentTcb;
        VlekCspId = config.VlekCspId;
        _chipId = Attestation.ChipId.Derive(config.Product, entropy);
        Configure(config.ReportedTcb ?? CommittedTcb, config.MaskChipId, config.MaskChipKey);
    }

    public EpycProduct Product { get; }

    /// <summary>Of the firmware that runs.</summary>
    public TcbVersion CurrentTcb { get; }

    /// <summary>The oldest version that the platform goes back to.</summary>
    public TcbVersion CommittedTcb { get; private set; }

    /// <summary>What reports name, and what the keys are bound to.</summary>
    public TcbVersion ReportedTcb { get; private set; }

    /// <summary>Reports have zeros for the chip id.</summary>
    public bool MaskChipId { get; private set; }

    /// <summary>Reports are not signed.</summary>
    public bool MaskChipKey { get; private set; }

    /// <summary>The provider whose VLEK is loaded; empty for none.</summary>
    public string VlekCspId { get; private set; }

    /// <summary>64 bytes.</summary>
    public ReadOnlyMemory<byte> ChipId => _chipId;

    public SimulatedAuthority Authority => SimulatedAuthority.Of(Product);

    public EndorsementKey Vcek => _vcek.Value;

    /// <summary>Null where none is loaded.</summary>
    public EndorsementKey? Vlek => _vlek.Value;

    /// <summary>SNP_COMMIT.</summary>
    internal void Commit() => CommittedTcb = CurrentTcb;

    /// <summary>SNP_CONFIG.</summary>
    internal void Configure(TcbVersion reported, bool maskChipId, bool maskChipKey)
    {
        (ReportedTcb, MaskChipId, MaskChipKey) = (reported, maskChipId, maskChipKey);
        _vcek = new(() => EndorsementKey.Vcek(Product, _chipId, reported));
        string cspId = VlekCspId;
        _vlek = new(() => cspId.Length == 0 ? null : EndorsementKey.Vlek(Product, cspId, reported));
    }

    /// <summary>SNP_VLEK_LOAD.</summary>
    internal void LoadVlek(string cspId)
    {
        VlekCspId = cspId;
        Configure(ReportedTcb, MaskChipId, MaskChipKey);
    }

    /// <summary>The key that a request selects (snp.md 11.3); false where it cannot be had.</summary>
    public bool TrySelect(KeySelection selection, bool vcekDisabled, [NotNullWhen(true)] out EndorsementKey? key)
    {
        key = selection switch
        {
            KeySelection.VCEK => Vcek,
            KeySelection.VLEK => Vlek,
            _ => Vlek ?? Vcek,
        };
        if (vcekDisabled && key == Vcek)
        {
            key = null;
        }
        return key is not null;
    }

    /// <summary>The table of certificates that a host of this machine gives its guests: endorsement key, intermediate, root.</summary>
    public byte[] CertificateTableOf(EndorsementKey key, bool withCrl = false)
    {
        List<(Guid, ReadOnlyMemory<byte>)> entries =
        [
            (key.Kind == EndorsementKeyKind.Vlek ? CertificateTable.Vlek : CertificateTable.Vcek, key.Certificate),
            (CertificateTable.Ask, Authority.Intermediate(key.Kind)),
            (CertificateTable.Ark, Authority.Ark),
        ];
        if (withCrl)
        {
            entries.Add((CertificateTable.Crl, Authority.Crl));
        }
        return CertificateTable.Build(entries);
    }
}
