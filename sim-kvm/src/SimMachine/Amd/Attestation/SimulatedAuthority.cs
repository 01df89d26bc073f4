using System.Formats.Asn1;
using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;

namespace SimMachine.Amd.Attestation;

/// <summary>Which endorsement key signs a report, and so which intermediate authority vouches for it.</summary>
public enum EndorsementKeyKind
{
    /// <summary>Versioned chip endorsement key, below the ASK.</summary>
    Vcek,

    /// <summary>Versioned loaded endorsement key, a cloud provider's, below the ASVK.</summary>
    Vlek,
}

/// <summary>
/// The simulated counterpart of AMD's authorities for one product: root (ARK), intermediates (ASK for VCEKs, ASVK for VLEKs), their certificates and
/// revocation list. Certificates have the form and the checked names of the real ones, so that public verifiers work once they are told to trust this root.
/// What sits below is an <see cref="EndorsementKey"/>.
/// </summary>
/// <remarks>
/// <para>
/// None of it can pass for AMD's: every subject and issuer carries the attribute description = <see cref="Marker"/>, serial numbers begin with the letters SIM,
/// and the root is another key, which a verifier trusts only if it is told to. The CRL's address is AMD's, because verifiers compare it; asking there answers a list that these
/// keys have not signed.
/// </para>
/// Keys, certificates and dates are constants of the simulator, the same for every host, daemon and day.
/// </remarks>
public sealed class SimulatedAuthority
{
    /// <summary>In every subject and issuer, as attribute description (2.5.4.13).</summary>
    public const string Marker = "SIMULATED by VmmService, not AMD hardware";

    /// <summary>When certificates and lists begin.</summary>
    public static readonly DateTimeOffset NotBefore = new(2024, 1, 1, 0, 0, 0, TimeSpan.Zero);

    /// <summary>When they end. Those of silicon last 25 and 7 years; a simulation must not stop working one day.</summary>
    public static readonly DateTimeOffset NotAfter = new(2049, 1, 1, 0, 0, 0, TimeSpan.Zero);

    // "SIM", then the number that silicon uses.
    private static readonly byte[] ArkSerial = [0x53, 0x49, 0x4D, 0x01, 0x00, 0x00];
    private static readonly byte[] AskSerial = [0x53, 0x49, 0x4D, 0x01, 0x00, 0x01];
    private static readonly byte[] AsvkSerial = [0x53, 0x49, 0x4D, 0x01, 0x00, 0x02];

    // How many steps the searches for the keys' primes take (see RsaPssKey): p and q of ARK, ASK and ASVK.
    internal static readonly IReadOnlyDictionary<EpycProduct, int[]> SearchSteps = new Dictionary<EpycProduct, int[]>
    {
        [EpycProduct.Milan] = [614, 506, 944, 523, 699, 1246],
        [EpycProduct.Genoa] = [1146, 122, 722, 411, 276, 896],
        [EpycProduct.Turin] = [24, 569, 261, 485, 595, 462],
    };

    private static readonly Lazy<SimulatedAuthority> Milan = new(() => new(EpycProduct.Milan));
    private static readonly Lazy<SimulatedAuthority> Genoa = new(() => new(EpycProduct.Genoa));
    private static readonly Lazy<SimulatedAuthority> Turin = new(() => new(EpycProduct.Turin));

    private readonly RsaPssKey _ark;
    private readonly RsaPssKey _ask;
    private readonly RsaPssKey _asvk;
    private readonly Lazy<byte[]> _arkCertificate;
    private readonly Lazy<byte[]> _askCertificate;
    private readonly Lazy<byte[]> _asvkCertificate;
    private readonly Lazy<byte[]> _crl;

    private SimulatedAuthority(EpycProduct product)
    {
        Product = product;
        int[] steps = SearchSteps[product];
        _ark = new RsaPssKey($"ARK/{product}", steps[0], steps[1]);
        _ask = new RsaPssKey($"ASK/{product}", steps[2], steps[3]);
        _asvk = new RsaPssKey($"ASVK/{product}", steps[4], steps[5]);
        _arkCertificate = new(() => IssueRoot(_ark));
        _askCertificate = new(() => IssueIntermediate(EndorsementKeyKind.Vcek, _ark));
        _asvkCertificate = new(() => IssueIntermediate(EndorsementKeyKind.Vlek, _ark));
        _crl = new(() => IssueCrl(_ark, revoked: null));
    }

    public EpycProduct Product { get; }

    /// <summary>The root's certificate, DER.</summary>
    public ReadOnlyMemory<byte> Ark => _arkCertificate.Value;

    /// <summary>The product's authority; its keys are put together when first asked for.</summary>
    public static SimulatedAuthority Of(EpycProduct product) => product switch
    {
        EpycProduct.Genoa => Genoa.Value,
        EpycProduct.Turin => Turin.Value,
        _ => Milan.Value,
    };

    /// <summary>The certificate of the ASK or ASVK, DER.</summary>
    public ReadOnlyMemory<byte> Intermediate(EndorsementKeyKind kind) =>
        (kind == EndorsementKeyKind.Vlek ? _asvkCertificate : _askCertificate).Value;

    /// <summary>The root's revocation list, DER; nothing is revoked.</summary>
    public ReadOnlyMemory<byte> Crl => _crl.Value;

    /// <summary>Issues the certificate of an endorsement key.</summary>
    internal byte[] IssueEndorsement(
        EndorsementKeyKind kind, EcdsaP384Key key, IEnumerable<X509Extension> extensions, DateTimeOffset notBefore, DateTimeOffset notAfter)
    {
        using ECDsa subject = key.CreatePublic();
        var request = new CertificateRequest(Name(kind == EndorsementKeyKind.Vlek ? "SEV-VLEK" : "SEV-VCEK"), new PublicKey(subject), HashAlgorithmName.SHA384);
        foreach (X509Extension extension in extensions)
        {
            request.CertificateExtensions.Add(extension);
        }
        // Serial number 0, as on silicon.
        return Issue(request, IntermediateName(kind), IntermediateKey(kind), notBefore, notAfter, [0]);
    }

    /// <summary>Signs a chip's key of SEV by the ASK, as whoever asks for it by the chip's id gets it.</summary>
    internal Legacy.SevCertificate Sign(Legacy.SevCertificate cek) => cek.SignedBy(Legacy.SevKeyUsage.ASK, _ask);

    /// <summary>Whether a chip's key of SEV was signed by the ASK.</summary>
    internal bool HasSigned(Legacy.SevCertificate cek)
    {
        using RSA ask = _ask.CreatePublic();
        return cek.IsSignedBy(Legacy.SevKeyUsage.ASK, ask);
    }

    /// <summary>A list in which the intermediate is revoked, for evidence that must be refused.</summary>
    internal byte[] IssueCrlThatRevokes(EndorsementKeyKind kind) => IssueCrl(_ark, kind);

    /// <summary>A root of the same name that nobody trusts, and what it issued: the intermediate and a list.</summary>
    internal (byte[] Ark, byte[] Intermediate, byte[] Crl) IssueByAnotherRoot(EndorsementKeyKind kind)
    {
        RsaPssKey other = OtherRoot;
        return (IssueRoot(other), IssueIntermediate(kind, other), IssueCrl(other, revoked: null));
    }

    /// <summary>The intermediate's certificate as this root would issue it, but for the signature, which is another key's.</summary>
    internal byte[] IssueSignedByAnotherKey(EndorsementKeyKind kind) => IssueIntermediate(kind, _ark, OtherRoot);

    // Another product's, which no certificate of this product is signed by.
    private RsaPssKey OtherRoot => Of(Product == EpycProduct.Milan ? EpycProduct.Genoa : EpycProduct.Milan)._ark;

    private RsaPssKey IntermediateKey(EndorsementKeyKind kind) => kind == EndorsementKeyKind.Vlek ? _asvk : _ask;

    private static byte[] IntermediateSerial(EndorsementKeyKind kind) => kind == EndorsementKeyKind.Vlek ? AsvkSerial : AskSerial;

    private X500DistinguishedName IntermediateName(EndorsementKeyKind kind) =>
        Name(kind == EndorsementKeyKind.Vlek ? $"SEV-VLEK-{Product}" : $"SEV-{Product}");

    private X500DistinguishedName RootName => Name($"ARK-{Product}");

    private byte[] IssueRoot(RsaPssKey key)
    {
        CertificateRequest request = Authority(RootName, key, pathLength: null, EndorsementKeyKind.Vcek, X509KeyUsageFlags.KeyCertSign | X509KeyUsageFlags.CrlSign);
        return Issue(request, RootName, key, NotBefore, NotAfter, ArkSerial);
    }

    private byte[] IssueIntermediate(EndorsementKeyKind kind, RsaPssKey issuer, RsaPssKey? signer = null)
    {
        CertificateRequest request = Authority(IntermediateName(kind), IntermediateKey(kind), pathLength: 0, kind, X509KeyUsageFlags.KeyCertSign);
        request.CertificateExtensions.Add(AuthorityKeyIdentifier(issuer));
        return Issue(request, RootName, signer ?? issuer, NotBefore, NotAfter, IntermediateSerial(kind));
    }

    private CertificateRequest Authority(X500DistinguishedName name, RsaPssKey key, int? pathLength, EndorsementKeyKind crl, X509KeyUsageFlags usage)
    {
        string service = crl == EndorsementKeyKind.Vlek ? "vlek" : "vcek";
        return new CertificateRequest(name, key.PublicKey, HashAlgorithmName.SHA384)
        {
            CertificateExtensions =
            {
                new X509KeyUsageExtension(usage, critical: true),
                new X509SubjectKeyIdentifierExtension(key.PublicKey, critical: false),
                new X509BasicConstraintsExtension(certificateAuthority: true, pathLength is not null, pathLength ?? 0, critical: true),
                CertificateRevocationListBuilder.BuildCrlDistributionPointExtension([$"https://kdsintf.amd.com/{service}/v1/{Product}/crl"]),
            },
        };
    }

    private byte[] IssueCrl(RsaPssKey root, EndorsementKeyKind? revoked)
    {
        var builder = new CertificateRevocationListBuilder();
        if (revoked is { } kind)
        {
            builder.AddEntry(IntermediateSerial(kind), NotBefore.AddYears(1), X509RevocationReason.KeyCompromise);
        }
        return builder.Build(
            RootName, root, crlNumber: revoked is null ? 1 : 2, NotAfter, HashAlgorithmName.SHA384, AuthorityKeyIdentifier(root), NotBefore);
    }

    private static X509AuthorityKeyIdentifierExtension AuthorityKeyIdentifier(RsaPssKey issuer) =>
        X509AuthorityKeyIdentifierExtension.CreateFromSubjectKeyIdentifier(new X509SubjectKeyIdentifierExtension(issuer.PublicKey, critical: false));

    private static byte[] Issue(
        CertificateRequest request, X500DistinguishedName issuer, RsaPssKey key, DateTimeOffset notBefore, DateTimeOffset notAfter, byte[] serial)
    {
        using X509Certificate2 certificate = request.Create(issuer, key, notBefore, notAfter, serial);
        return certificate.RawData;
    }

    // Verifiers compare the attributes of silicon one by one; the marker stands outside of them.
    private static X500DistinguishedName Name(string commonName)
    {
        const string commonNameOid = "2.5.4.3", country = "2.5.4.6", locality = "2.5.4.7", state = "2.5.4.8", organization = "2.5.4.10", unit = "2.5.4.11",
            description = "2.5.4.13";
        (string Oid, string Value)[] attributes =
        [
            (unit, "Engineering"), (country, "US"), (locality, "Santa Clara"), (state, "CA"), (organization, "Advanced Micro Devices"), (commonNameOid, commonName),
            (description, Marker),
        ];
        var writer = new AsnWriter(AsnEncodingRules.DER);
        using (writer.PushSequence())
        {
            foreach ((string oid, string value) in attributes)
            {
                using (writer.PushSetOf())
                using (writer.PushSequence())
                {
                    writer.WriteObjectIdentifier(oid);
                    writer.WriteCharacterString(oid == country ? UniversalTagNumber.PrintableString : UniversalTagNumber.UTF8String, value);
                }
            }
        }
        return new X500DistinguishedName(writer.Encode());
    }
}
