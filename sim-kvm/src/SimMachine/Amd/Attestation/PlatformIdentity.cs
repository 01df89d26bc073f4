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
/// Nothing of it changes while the machine runs.
/// </summary>
public sealed class PlatformIdentity
{
    private readonly byte[] _chipId;
    private readonly Lazy<EndorsementKey> _vcek;
    private readonly Lazy<EndorsementKey?> _vlek;

    internal PlatformIdentity(MachineConfig config, Stepping.Entropy entropy)
    {
        Product = config.Product;
        ReportedTcb = config.ReportedTcb ?? config.CommittedTcb ?? config.CurrentTcb;
        _chipId = Attestation.ChipId.Derive(config.Product, entropy);
        _vcek = new(() => EndorsementKey.Vcek(Product, _chipId, ReportedTcb));
        _vlek = new(() => config.VlekCspId.Length == 0 ? null : EndorsementKey.Vlek(Product, config.VlekCspId, ReportedTcb));
    }

    public EpycProduct Product { get; }

    public TcbVersion ReportedTcb { get; }

    /// <summary>64 bytes.</summary>
    public ReadOnlyMemory<byte> ChipId => _chipId;

    public SimulatedAuthority Authority => SimulatedAuthority.Of(Product);

    public EndorsementKey Vcek => _vcek.Value;

    /// <summary>Null where none is loaded.</summary>
    public EndorsementKey? Vlek => _vlek.Value;

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
