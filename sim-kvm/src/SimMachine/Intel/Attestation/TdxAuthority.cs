using System.Formats.Asn1;
using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;
using System.Text;

namespace SimMachine.Intel.Attestation;

/// <summary>
/// The simulated counterpart of Intel's authorities for one machine: root, platform CA, the signer of TCB information, their certificates and revocation lists
/// (tdx.md 7.7, 7.8). Certificates have the form and the common names of the real ones, which verifiers insist on, so that those work once they are told to trust this root.
/// </summary>
/// <remarks>
/// None of it can pass for Intel's: every subject and issuer has organization = <see cref="Marker"/>, serial numbers begin with the letters SIM, and the root is
/// another key, which a verifier trusts only if it is told to. The lists' addresses are Intel's; asking there answers lists that these keys have not signed.
/// All of it is a function of the seed: whoever knows a machine's seed can have its collateral, and no machine has to be there.
/// </remarks>
public sealed class TdxAuthority
{
    /// <summary>Organization in every subject and issuer.</summary>
    public const string Marker = "SIMULATED by VmmService, not Intel hardware";

    /// <summary>When certificates and lists begin.</summary>
    public static readonly DateTimeOffset NotBefore = new(2024, 1, 1, 0, 0, 0, TimeSpan.Zero);

    /// <summary>When they end: a simulation must not stop working one day.</summary>
    public static readonly DateTimeOffset NotAfter = new(2049, 1, 1, 0, 0, 0, TimeSpan.Zero);

    private const string RootName = "Intel SGX Root CA";
    private const string PlatformCaName = "Intel SGX PCK Platform CA";
    private const string PckName = "Intel SGX PCK Certificate";
    private const string TcbSigningName = "Intel SGX TCB Signing";
    private const string RootCrlAddress = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der";
    private const string PckCrlAddress = "https://api.trustedservices.intel.com/sgx/certification/v4/pckcrl?ca=platform&encoding=der";

    private readonly Lazy<EcdsaP256Key> _rootKey;
    private readonly Lazy<EcdsaP256Key> _platformCaKey;
    private readonly Lazy<EcdsaP256Key> _tcbSigningKey;
    private readonly Lazy<EcdsaP256Key> _pckKey;
    private readonly Lazy<EcdsaP256Key> _attestationKey;
    private readonly Lazy<byte[]> _root;
    private readonly Lazy<byte[]> _platformCa;
    private readonly Lazy<byte[]> _tcbSigning;
    private readonly Lazy<byte[]> _rootCrl;
    private readonly Lazy<byte[]> _pckCrl;

    /// <param name="seed">All keys come from it.</param>
    public TdxAuthority(string seed)
    {
        Seed = seed;
        _rootKey = KeyOf("root");
        _platformCaKey = KeyOf("platform-ca");
        _tcbSigningKey = KeyOf("tcb-signing");
        _pckKey = KeyOf("pck");
        _attestationKey = KeyOf("attestation");
        _root = new(() => IssueRoot(RootKey));
        _platformCa = new(() => IssuePlatformCa(RootKey));
        _tcbSigning = new(() => IssueTcbSigning(RootKey));
        _rootCrl = new(() => IssueRootCrl(RootKey, revoked: null));
        _pckCrl = new(() => IssuePckCrl(revoked: null));

        Lazy<EcdsaP256Key> KeyOf(string name) => new(() => EcdsaP256Key.Named($"{seed}/{name}"));
    }

    public string Seed { get; }

    /// <summary>The root's certificate, DER.</summary>
    public ReadOnlyMemory<byte> Root => _root.Value;

    /// <summary>The certificate of the platform CA, which issues PCK certificates, DER.</summary>
    public ReadOnlyMemory<byte> PlatformCa => _platformCa.Value;

    /// <summary>The certificate of who signs TCB information and enclave identities, DER.</summary>
    public ReadOnlyMemory<byte> TcbSigning => _tcbSigning.Value;

    /// <summary>The root's revocation list, DER; nothing is revoked.</summary>
    public ReadOnlyMemory<byte> RootCrl => _rootCrl.Value;

    /// <summary>The platform CA's revocation list, DER; nothing is revoked.</summary>
    public ReadOnlyMemory<byte> PckCrl => _pckCrl.Value;

    /// <summary>FMSPC of the machine: the letters SIM, then three bytes of the seed's. That of silicon begins with zeros.</summary>
    public ReadOnlyMemory<byte> Fmspc => (byte[])[.. "SIM"u8, .. Derive("fmspc", 3)];

    /// <summary>The key that certifies enclaves' reports.</summary>
    public EcdsaP256Key PckKey => _pckKey.Value;

    /// <summary>The quoting enclave's key, which signs quotes.</summary>
    public EcdsaP256Key AttestationKey => _attestationKey.Value;

    internal EcdsaP256Key TcbSigningKey => _tcbSigningKey.Value;

    internal EcdsaP256Key RootKey => _rootKey.Value;

    /// <summary>The authority of a machine.</summary>
    /// <param name="seed">The machine's.</param>
    public static TdxAuthority Of(ulong seed) => new($"vmmservice/{seed}");

    /// <summary>The authority of a machine that nobody trusts, its names and addresses being the same.</summary>
    internal TdxAuthority Other() => new($"{Seed}/other");

    /// <summary>What the PCK certificate of a machine says of it.</summary>
    public PckPlatform Platform(TdxModuleConfig config) => new(Derive("ppid", 16), config.CpuSvn, config.PceSvn, Fmspc, Derive("platform-instance-id", 16));

    /// <summary>The PCK certificate of a platform, DER.</summary>
    public byte[] IssuePck(PckPlatform platform) => IssuePck(platform, NotBefore, NotAfter);

    internal byte[] IssuePck(PckPlatform platform, DateTimeOffset notBefore, DateTimeOffset notAfter)
    {
        CertificateRequest request = Request(PckName, PckKey, _platformCaKey.Value, PckCrlAddress, X509KeyUsageFlags.DigitalSignature | X509KeyUsageFlags.NonRepudiation, pathLength: null);
        request.CertificateExtensions.Add(platform.ToExtension());
        return Issue(request, PlatformCaName, _platformCaKey.Value, notBefore, notAfter, Serial("pck"));
    }

    /// <summary>The platform CA's certificate with another key's signature under it, which does not verify.</summary>
    internal byte[] IssuePlatformCaSignedByAnotherKey() => IssuePlatformCa(RootKey, signer: Other().RootKey);

    internal byte[] IssueRootCrlThatRevokesPlatformCa() => IssueRootCrl(RootKey, Serial("platform-ca"));

    internal byte[] IssuePckCrlThatRevokesPck() => IssuePckCrl(Serial("pck"));

    /// <summary>Bytes that depend on the seed and a name.</summary>
    internal byte[] Derive(string name, int count) => SHA256.HashData(Encoding.ASCII.GetBytes($"{Seed}/{name}"))[..count];

    private byte[] IssueRoot(EcdsaP256Key key) => Issue(
        Request(RootName, key, key, RootCrlAddress, X509KeyUsageFlags.KeyCertSign | X509KeyUsageFlags.CrlSign, pathLength: 1), RootName, key, NotBefore, NotAfter, Serial("root"));

    private byte[] IssuePlatformCa(EcdsaP256Key root, EcdsaP256Key? signer = null) => Issue(
        Request(PlatformCaName, _platformCaKey.Value, root, RootCrlAddress, X509KeyUsageFlags.KeyCertSign | X509KeyUsageFlags.CrlSign, pathLength: 0),
        RootName, signer ?? root, NotBefore, NotAfter, Serial("platform-ca"));

    private byte[] IssueTcbSigning(EcdsaP256Key root) => Issue(
        Request(TcbSigningName, TcbSigningKey, root, RootCrlAddress, X509KeyUsageFlags.DigitalSignature | X509KeyUsageFlags.NonRepudiation, pathLength: null),
        RootName, root, NotBefore, NotAfter, Serial("tcb-signing"));

    private static byte[] IssueRootCrl(EcdsaP256Key root, byte[]? revoked) => IssueCrl(RootName, root, revoked);

    private byte[] IssuePckCrl(byte[]? revoked) => IssueCrl(PlatformCaName, _platformCaKey.Value, revoked);

    private static byte[] IssueCrl(string issuer, EcdsaP256Key key, byte[]? revoked)
    {
        var builder = new CertificateRevocationListBuilder();
        if (revoked is not null)
        {
            builder.AddEntry(revoked, NotBefore.AddYears(1), X509RevocationReason.KeyCompromise);
        }
        return builder.Build(
            Name(issuer), key, crlNumber: revoked is null ? 1 : 2, NotAfter, HashAlgorithmName.SHA256, AuthorityKeyIdentifier(key), NotBefore);
    }

    // Verifiers count the extensions, and the real certificates have them in this order. A path length makes an authority.
    private static CertificateRequest Request(string name, EcdsaP256Key key, EcdsaP256Key issuer, string crl, X509KeyUsageFlags usage, int? pathLength) =>
        new(Name(name), key.PublicKey, HashAlgorithmName.SHA256)
        {
            CertificateExtensions =
            {
                AuthorityKeyIdentifier(issuer),
                CertificateRevocationListBuilder.BuildCrlDistributionPointExtension([crl]),
                new X509SubjectKeyIdentifierExtension(key.PublicKey, critical: false),
                new X509KeyUsageExtension(usage, critical: true),
                new X509BasicConstraintsExtension(pathLength is not null, pathLength is not null, pathLength ?? 0, critical: true),
            },
        };

    private static byte[] Issue(CertificateRequest request, string issuer, EcdsaP256Key key, DateTimeOffset notBefore, DateTimeOffset notAfter, byte[] serial)
    {
        using X509Certificate2 certificate = request.Create(Name(issuer), key, notBefore, notAfter, serial);
        return certificate.RawData;
    }

    private byte[] Serial(string name) => [.. "SIM"u8, .. Derive($"{name}/serial", 13)];

    private static X509AuthorityKeyIdentifierExtension AuthorityKeyIdentifier(EcdsaP256Key issuer) =>
        X509AuthorityKeyIdentifierExtension.CreateFromSubjectKeyIdentifier(new X509SubjectKeyIdentifierExtension(issuer.PublicKey, critical: false));

    private static X500DistinguishedName Name(string commonName)
    {
        const string commonNameOid = "2.5.4.3", country = "2.5.4.6", locality = "2.5.4.7", state = "2.5.4.8", organization = "2.5.4.10";
        (string Oid, string Value)[] attributes = [(commonNameOid, commonName), (organization, Marker), (locality, "Santa Clara"), (state, "CA"), (country, "US")];
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
