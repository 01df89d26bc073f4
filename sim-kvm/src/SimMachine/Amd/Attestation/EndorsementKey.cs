using System.Formats.Asn1;
using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;
using System.Text;

namespace SimMachine.Amd.Attestation;

/// <summary>
/// A simulated VCEK or VLEK: the key that signs reports, bound to a chip (or a cloud provider) and a TCB version. It is a function of exactly these, so whoever
/// knows a chip id can have its certificate: any daemon serves the chips of any other, as the real key distribution service does.
/// </summary>
public sealed class EndorsementKey
{
    /// <summary>OID arc of the extensions of endorsement certificates (57230).</summary>
    public const string ExtensionArc = "1.3.6.1.4.1.3704.1";

    private readonly byte[] _chipId;
    private readonly string _cspId;
    private readonly Lazy<byte[]> _certificate;

    private EndorsementKey(EndorsementKeyKind kind, EpycProduct product, byte[] chipId, string cspId, TcbVersion tcb)
    {
        Kind = kind;
        Product = product;
        Tcb = tcb;
        _chipId = chipId;
        _cspId = cspId;
        byte[] owner = kind == EndorsementKeyKind.Vlek ? Encoding.ASCII.GetBytes(cspId) : chipId;
        Key = EcdsaP384Key.FromBytes(HMACSHA512.HashData(Encoding.ASCII.GetBytes($"simulated {kind}/{product}/{tcb.Encode(product):x16}"), owner));
        _certificate = new(() => Certify(this, SimulatedAuthority.NotBefore, SimulatedAuthority.NotAfter));
    }

    public EndorsementKeyKind Kind { get; }

    public EpycProduct Product { get; }

    /// <summary>The TCB version that the key is bound to: REPORTED_TCB of the reports it signs.</summary>
    public TcbVersion Tcb { get; }

    /// <summary>The certificate, DER.</summary>
    public ReadOnlyMemory<byte> Certificate => _certificate.Value;

    internal EcdsaP384Key Key { get; }

    /// <summary>The key of a chip.</summary>
    /// <param name="product">Which product it is of.</param>
    /// <param name="chipId">Its hardware id, <see cref="Attestation.ChipId.SignificantBytes"/> bytes or more.</param>
    /// <param name="tcb">As reported.</param>
    public static EndorsementKey Vcek(EpycProduct product, ReadOnlySpan<byte> chipId, TcbVersion tcb) =>
        new(EndorsementKeyKind.Vcek, product, chipId[..ChipId.SignificantBytes(product)].ToArray(), "", tcb);

    /// <summary>The key of a cloud provider.</summary>
    /// <param name="product">Which product it is for.</param>
    /// <param name="cspId">The provider, ASCII.</param>
    /// <param name="tcb">As reported.</param>
    public static EndorsementKey Vlek(EpycProduct product, string cspId, TcbVersion tcb) => new(EndorsementKeyKind.Vlek, product, [], cspId, tcb);

    /// <summary>The key of the same chip or provider at another TCB version.</summary>
    internal EndorsementKey At(TcbVersion tcb) => new(Kind, Product, _chipId, _cspId, tcb);

    /// <summary>Signs a report as it is, in place.</summary>
    internal void Sign(ref AttestationReport report) => Key.SignInto(report.Digest(), report.SIGNATURE);

    /// <summary>A certificate of this key with something else than the truth in it, for evidence that must be refused.</summary>
    internal byte[] CertifyWith(ReadOnlyMemory<byte>? chipId = null, TcbVersion? tcb = null, DateTimeOffset? notAfter = null) => Certify(
        new EndorsementKey(Kind, Product, chipId?.ToArray() ?? _chipId, _cspId, tcb ?? Tcb),
        notAfter?.AddYears(-1) ?? SimulatedAuthority.NotBefore,
        notAfter ?? SimulatedAuthority.NotAfter);

    // Certifies this key as if it were the stated one.
    private byte[] Certify(EndorsementKey stated, DateTimeOffset notBefore, DateTimeOffset notAfter) =>
        SimulatedAuthority.Of(Product).IssueEndorsement(Kind, Key, stated.Extensions(), notBefore, notAfter);

    // snp.md 12.2, in the order of the real certificates. Turin has a form of its own: version 1, an FMC part, no .3.4.
    private IEnumerable<X509Extension> Extensions()
    {
        bool hasFmc = TcbVersion.HasFmc(Product);
        yield return Integer("1", (byte)(hasFmc ? 1 : 0));
        yield return Text("2", ProductName());
        if (hasFmc)
        {
            yield return Integer("3.9", Tcb.Fmc);
        }
        yield return Integer("3.1", Tcb.BootLoader);
        yield return Integer("3.2", Tcb.Tee);
        yield return hasFmc ? Integer("3.3", Tcb.Snp) : Integer("3.4", 0);
        yield return Integer("3.5", 0);
        yield return Integer("3.6", 0);
        yield return Integer("3.7", 0);
        if (!hasFmc)
        {
            yield return Integer("3.3", Tcb.Snp);
        }
        yield return Integer("3.8", Tcb.Microcode);
        if (Kind == EndorsementKeyKind.Vlek)
        {
            yield return Text("5", _cspId);
        }
        else
        {
            // Raw bytes: silicon's certificates have no OCTET STRING inside.
            yield return Extension("4", _chipId);
        }
    }

    // A VCEK's names the stepping, except on Turin.
    private string ProductName() => Kind == EndorsementKeyKind.Vlek || TcbVersion.HasFmc(Product)
        ? Product.ToString()
        : $"{Product}-B{PlatformCpuid.Signature(Product) & 0xF}";

    private static X509Extension Integer(string leaf, byte value)
    {
        var writer = new AsnWriter(AsnEncodingRules.DER);
        writer.WriteInteger(value);
        return Extension(leaf, writer.Encode());
    }

    private static X509Extension Text(string leaf, string value)
    {
        var writer = new AsnWriter(AsnEncodingRules.DER);
        writer.WriteCharacterString(UniversalTagNumber.IA5String, value);
        return Extension(leaf, writer.Encode());
    }

    private static X509Extension Extension(string leaf, byte[] value) => new($"{ExtensionArc}.{leaf}", value, critical: false);
}

/// <summary>
/// Hardware ids of simulated chips. They begin with a word that no id of silicon, which are random, begins with: nobody takes a simulated report for a real one,
/// and no key can be asked for a real chip.
/// </summary>
public static class ChipId
{
    /// <summary>Bytes of CHIP_ID in a report.</summary>
    public const int Size = 64;

    // Turin's ids are so short that the word has to be.
    private static ReadOnlySpan<byte> Marker => "SIMULATED-BY-VMMSERVICE:"u8;

    private static ReadOnlySpan<byte> ShortMarker => "SIMU"u8;

    /// <summary>Bytes that identify a chip: the first 8 on Turin, where the rest is zeros, all elsewhere.</summary>
    public static int SignificantBytes(EpycProduct product) => product == EpycProduct.Turin ? 8 : Size;

    /// <summary>True if the id begins as simulated ones do and, on Turin, ends with zeros.</summary>
    /// <param name="product">Which product the chip is of.</param>
    /// <param name="chipId">The significant bytes, or all 64.</param>
    public static bool IsSimulated(EpycProduct product, ReadOnlySpan<byte> chipId)
    {
        int significant = SignificantBytes(product);
        return (chipId.Length == significant || chipId.Length == Size)
            && chipId.StartsWith(product == EpycProduct.Turin ? ShortMarker : Marker)
            && chipId[significant..].IndexOfAnyExcept((byte)0) < 0;
    }

    internal static byte[] Derive(EpycProduct product, Stepping.Entropy entropy)
    {
        byte[] id = new byte[Size];
        ReadOnlySpan<byte> marker = product == EpycProduct.Turin ? ShortMarker : Marker;
        marker.CopyTo(id);
        entropy.Derive("chip-id", id.AsSpan(marker.Length, SignificantBytes(product) - marker.Length));
        return id;
    }
}
