using System.Buffers.Binary;
using System.Formats.Asn1;
using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;
using System.Text;
using System.Text.Json;

namespace VmmService.IntegrationTests.Attestation;

/// <summary>Why a quote is refused, in the order of the checks.</summary>
public enum QuoteRefusal
{
    Structure,
    ChainForm,
    UntrustedRoot,
    IntermediateSignature,
    LeafSignature,
    CertificateExpired,
    AttestationKey,
    QuoteSignature,
    QeReportSignature,
    QeReportData,
    CrlSignature,
    CaRevoked,
    PckRevoked,
    TcbInfoSignature,
    TcbInfoExpired,
    Family,
    TcbOutOfDate,
    QeIdentity,
    Module,
    Mrtd,
    Rtmr,
    ReportData,
    Debug,
}

/// <summary>What goes beside a quote.</summary>
public sealed record QuoteCollateral(byte[] PckCrl, byte[] RootCrl, byte[] TcbInfo, byte[] QeIdentity, byte[] TcbSigning);

/// <summary>What a verifier demands of the TD.</summary>
public sealed record QuoteDemands(byte[] ReportData, byte[] Mrtd, byte[] Rtmrs, bool AllowDebug);

/// <summary>
/// A verifier of TD quotes, written from the published layouts with the platform's cryptography and nothing of the simulator. It makes every check and lists every reason, in order,
/// so that a test can ask for the first or for exactly one.
/// </summary>
public sealed class TdxVerifier
{
    private const string SgxExtension = "1.2.840.113741.1.13.1";

    private readonly List<QuoteRefusal> _refusals = [];
    private readonly DateTime _now;

    private TdxVerifier(DateTime now) => _now = now;

    /// <summary>Structure, chain and signatures.</summary>
    public static IReadOnlyList<QuoteRefusal> Verify(byte[] quote, byte[] trustedRoot, DateTime now)
    {
        var verifier = new TdxVerifier(now);
        verifier.Check(quote, trustedRoot, null, null);
        return verifier._refusals;
    }

    /// <summary>The same, and what takes collateral and demands.</summary>
    public static IReadOnlyList<QuoteRefusal> Verify(byte[] quote, byte[] trustedRoot, DateTime now, QuoteCollateral collateral, QuoteDemands demands)
    {
        var verifier = new TdxVerifier(now);
        verifier.Check(quote, trustedRoot, collateral, demands);
        return verifier._refusals;
    }

    private void Check(byte[] quote, byte[] trustedRoot, QuoteCollateral? collateral, QuoteDemands? demands)
    {
        Require(QuoteRefusal.Structure, Parts.TryRead(quote, out Parts parts));
        if (_refusals.Count > 0)
            return;

        X509Certificate2[] chain = ReadChain(parts.Chain);
        Require(QuoteRefusal.ChainForm, HasForm(chain));
        if (_refusals.Count > 0)
            return;

        (X509Certificate2 leaf, X509Certificate2 middle, X509Certificate2 root) = (chain[0], chain[1], chain[2]);
        Require(QuoteRefusal.UntrustedRoot, root.RawData.AsSpan().SequenceEqual(trustedRoot) && IsSignedBy(root.RawData, root));
        Require(QuoteRefusal.IntermediateSignature, IsSignedBy(middle.RawData, root));
        Require(QuoteRefusal.LeafSignature, IsSignedBy(leaf.RawData, middle));
        Require(QuoteRefusal.CertificateExpired, chain.All(each => each.NotBefore.ToUniversalTime() <= _now && _now < each.NotAfter.ToUniversalTime()));

        ECDsa? attestation = Key(parts.AttestationKey);
        Require(QuoteRefusal.AttestationKey, attestation is not null);
        Require(QuoteRefusal.QuoteSignature, attestation is not null && attestation.VerifyData(parts.Signed, parts.Signature, HashAlgorithmName.SHA256));
        Require(QuoteRefusal.QeReportSignature, leaf.GetECDsaPublicKey()!.VerifyData(parts.QeReport, parts.QeReportSignature, HashAlgorithmName.SHA256));
        byte[] binding = [.. SHA256.HashData([.. parts.AttestationKey, .. parts.Authentication]), .. new byte[32]];
        Require(QuoteRefusal.QeReportData, parts.QeReport.AsSpan(320, 64).SequenceEqual(binding));

        if (collateral is not null)
            Check(parts, leaf, middle, root, collateral);
        if (demands is not null)
            Check(parts.Body, demands);
    }

    private void Check(Parts parts, X509Certificate2 leaf, X509Certificate2 middle, X509Certificate2 root, QuoteCollateral collateral)
    {
        Require(QuoteRefusal.CrlSignature, IsSignedBy(collateral.RootCrl, root) && IsSignedBy(collateral.PckCrl, middle));
        Require(QuoteRefusal.CaRevoked, !RevokedSerials(collateral.RootCrl).Contains(middle.SerialNumber));
        Require(QuoteRefusal.PckRevoked, !RevokedSerials(collateral.PckCrl).Contains(leaf.SerialNumber));

        using X509Certificate2 signer = X509CertificateLoader.LoadCertificate(collateral.TcbSigning);
        bool signerHolds = IsSignedBy(signer.RawData, root) && signer.GetNameInfo(X509NameType.SimpleName, forIssuer: false) == "Intel SGX TCB Signing";
        using var tcb = JsonDocument.Parse(collateral.TcbInfo);
        using var qe = JsonDocument.Parse(collateral.QeIdentity);
        JsonElement tcbInfo = tcb.RootElement.GetProperty("tcbInfo");
        JsonElement identity = qe.RootElement.GetProperty("enclaveIdentity");
        Require(QuoteRefusal.TcbInfoSignature, signerHolds && IsSigned(tcb.RootElement, tcbInfo, signer));
        Require(QuoteRefusal.TcbInfoExpired, _now < tcbInfo.GetProperty("nextUpdate").GetDateTime().ToUniversalTime());
        Dictionary<string, byte[]> platform = SgxExtensionOf(leaf);
        Require(QuoteRefusal.Family, Hex(tcbInfo, "fmspc").AsSpan().SequenceEqual(platform["4"]) && Hex(tcbInfo, "pceId").AsSpan().SequenceEqual(platform["3"]));
        Require(QuoteRefusal.TcbOutOfDate, StatusOf(tcbInfo, platform, parts.Body) == "UpToDate");
        Require(QuoteRefusal.QeIdentity, signerHolds && IsSigned(qe.RootElement, identity, signer) && Matches(identity, parts.QeReport));
        JsonElement module = tcbInfo.GetProperty("tdxModule");
        Require(
            QuoteRefusal.Module,
            parts.Body.AsSpan(64, 48).SequenceEqual(Hex(module, "mrsigner")) && parts.Body.AsSpan(112, 8).SequenceEqual(Hex(module, "attributes")));
    }

    private void Check(byte[] body, QuoteDemands demands)
    {
        Require(QuoteRefusal.Mrtd, body.AsSpan(136, 48).SequenceEqual(demands.Mrtd));
        Require(QuoteRefusal.Rtmr, body.AsSpan(328, 192).SequenceEqual(demands.Rtmrs));
        Require(QuoteRefusal.ReportData, body.AsSpan(520, 64).SequenceEqual(demands.ReportData));
        Require(QuoteRefusal.Debug, demands.AllowDebug || (body[120] & 1) == 0);
    }

    // The first level that the platform reaches in every part; for modules from 1.5 on, components 0 and 1 are judged by the module's own levels.
    private static string StatusOf(JsonElement tcbInfo, Dictionary<string, byte[]> platform, byte[] body)
    {
        byte[] svns = [.. Enumerable.Range(1, 16).Select(i => platform[$"2.{i}"][^1])];
        int pceSvn = platform["2.17"].Aggregate(0, (sum, each) => (sum << 8) | each);
        int first = body[1] > 0 ? 2 : 0;
        string status = "Unknown";
        foreach (JsonElement level in tcbInfo.GetProperty("tcbLevels").EnumerateArray())
        {
            JsonElement tcb = level.GetProperty("tcb");
            if (Svns(tcb, "sgxtcbcomponents").Zip(svns).All(pair => pair.Second >= pair.First) && pceSvn >= tcb.GetProperty("pcesvn").GetInt32()
                && Svns(tcb, "tdxtcbcomponents").Zip(body[..16]).Skip(first).All(pair => pair.Second >= pair.First))
            {
                status = level.GetProperty("tcbStatus").GetString()!;
                break;
            }
        }

        return status == "UpToDate" && body[1] > 0 ? ModuleStatus(tcbInfo, body) : status;
    }

    private static string ModuleStatus(JsonElement tcbInfo, byte[] body)
    {
        JsonElement module = tcbInfo.GetProperty("tdxModuleIdentities").EnumerateArray().Single(each => each.GetProperty("id").GetString() == $"TDX_{body[1]:X2}");
        return module.GetProperty("tcbLevels").EnumerateArray().First(level => body[0] >= level.GetProperty("tcb").GetProperty("isvsvn").GetInt32()).GetProperty("tcbStatus").GetString()!;
    }

    private static IEnumerable<int> Svns(JsonElement tcb, string name) => tcb.GetProperty(name).EnumerateArray().Select(each => each.GetProperty("svn").GetInt32());

    private static bool Matches(JsonElement identity, byte[] report)
    {
        int isvSvn = BinaryPrimitives.ReadUInt16LittleEndian(report.AsSpan(258));
        return identity.GetProperty("id").GetString() == "TD_QE"
            && report.AsSpan(128, 32).SequenceEqual(Hex(identity, "mrsigner"))
            && BinaryPrimitives.ReadUInt16LittleEndian(report.AsSpan(256)) == identity.GetProperty("isvprodid").GetInt32()
            && Masked(report.AsSpan(48, 16), Hex(identity, "attributesMask")).SequenceEqual(Hex(identity, "attributes"))
            && Masked(report.AsSpan(16, 4), Hex(identity, "miscselectMask")).SequenceEqual(Hex(identity, "miscselect"))
            && identity.GetProperty("tcbLevels").EnumerateArray().First(level => isvSvn >= level.GetProperty("tcb").GetProperty("isvsvn").GetInt32())
                .GetProperty("tcbStatus").GetString() == "UpToDate";
    }

    private static byte[] Masked(ReadOnlySpan<byte> bytes, byte[] mask) => [.. bytes.ToArray().Zip(mask).Select(pair => (byte)(pair.First & pair.Second))];

    private static bool IsSigned(JsonElement answer, JsonElement content, X509Certificate2 signer) =>
        signer.GetECDsaPublicKey()!.VerifyData(Encoding.UTF8.GetBytes(content.GetRawText()), Hex(answer, "signature"), HashAlgorithmName.SHA256);

    private static byte[] Hex(JsonElement element, string name) => Convert.FromHexString(element.GetProperty(name).GetString()!);

    private static X509Certificate2[] ReadChain(byte[] pem)
    {
        // Nothing but one NUL may follow the last certificate.
        string text = Encoding.ASCII.GetString(pem);
        text = text.EndsWith('\0') ? text[..^1] : text;
        var certificates = new X509Certificate2Collection();
        try
        {
            certificates.ImportFromPem(text);
        }
        catch (CryptographicException)
        {
            return [];
        }

        const string end = "-----END CERTIFICATE-----";
        return text.EndsWith(end, StringComparison.Ordinal) || text.EndsWith(end + "\n", StringComparison.Ordinal) ? [.. certificates] : [];
    }

    private static bool HasForm(X509Certificate2[] chain)
    {
        string[] names = ["Intel SGX PCK Certificate", "Intel SGX PCK Platform CA", "Intel SGX Root CA"];
        if (chain.Length != names.Length)
            return false;

        (X509Certificate2 leaf, X509Certificate2 middle, X509Certificate2 root) = (chain[0], chain[1], chain[2]);
        return chain.Select(each => each.GetNameInfo(X509NameType.SimpleName, forIssuer: false)).SequenceEqual(names)
            && chain.All(each => each.Version == 3 && each.SignatureAlgorithm.Value == "1.2.840.10045.4.3.2" && each.GetECDsaPublicKey()?.KeySize == 256)
            && leaf.Issuer == middle.Subject && middle.Issuer == root.Subject && root.Issuer == root.Subject
            && leaf.Extensions.Select(each => each.Oid!.Value!).SequenceEqual(["2.5.29.35", "2.5.29.31", "2.5.29.14", "2.5.29.15", "2.5.29.19", SgxExtension])
            && Authority(root) is { CertificateAuthority: true, PathLengthConstraint: 1 } && Authority(middle) is { CertificateAuthority: true, PathLengthConstraint: 0 }
            && Authority(leaf) is { CertificateAuthority: false }
            && SgxExtensionOf(leaf).Keys.Count == 1 + 18 + 1 + 1 + 1 + 1 + 3;

        static X509BasicConstraintsExtension Authority(X509Certificate2 certificate) => certificate.Extensions.OfType<X509BasicConstraintsExtension>().Single();
    }

    /// <summary>The values below the SGX extension's OID, by the numbers behind it: octets of strings, integers, booleans.</summary>
    public static Dictionary<string, byte[]> SgxExtensionOf(X509Certificate2 leaf)
    {
        Dictionary<string, byte[]> values = [];
        Read(new AsnReader(leaf.Extensions.Single(each => each.Oid!.Value == SgxExtension).RawData, AsnEncodingRules.DER).ReadSequence());
        return values;

        void Read(AsnReader items)
        {
            while (items.HasData)
            {
                AsnReader item = items.ReadSequence();
                string name = item.ReadObjectIdentifier()[(SgxExtension.Length + 1)..];
                Asn1Tag tag = item.PeekTag();
                if (tag.HasSameClassAndValue(Asn1Tag.Sequence))
                    Read(item.ReadSequence());
                else if (tag.HasSameClassAndValue(Asn1Tag.PrimitiveOctetString))
                    values.Add(name, item.ReadOctetString());
                else
                    values.Add(name, item.ReadEncodedValue()[2..].ToArray());
                item.ThrowIfNotEmpty();
            }
        }
    }

    // Null for a point that is not on the curve.
    private static ECDsa? Key(byte[] pair)
    {
        try
        {
            return ECDsa.Create(new ECParameters { Curve = ECCurve.NamedCurves.nistP256, Q = new ECPoint { X = pair[..32], Y = pair[32..] } });
        }
        catch (CryptographicException)
        {
            return null;
        }
    }

    // A certificate and a list alike: what is signed, algorithm, signature.
    private static bool IsSignedBy(byte[] der, X509Certificate2 issuer)
    {
        AsnReader outer = new AsnReader(der, AsnEncodingRules.DER).ReadSequence();
        byte[] signed = outer.ReadEncodedValue().ToArray();
        // The algorithm stands once more outside of what is signed.
        if (signed.AsSpan().IndexOf(outer.ReadEncodedValue().Span) < 0)
            return false;
        byte[] signature = outer.ReadBitString(out _);
        return issuer.GetECDsaPublicKey()!.VerifyData(signed, signature, HashAlgorithmName.SHA256, DSASignatureFormat.Rfc3279DerSequence);
    }

    private static List<string> RevokedSerials(byte[] crl)
    {
        AsnReader list = new AsnReader(crl, AsnEncodingRules.DER).ReadSequence().ReadSequence();
        list.ReadInteger();
        list.ReadSequence();
        list.ReadSequence();
        list.ReadUtcTime();
        list.ReadUtcTime();
        List<string> serials = [];
        if (!list.HasData || !list.PeekTag().HasSameClassAndValue(Asn1Tag.Sequence))
            return serials;
        for (AsnReader entries = list.ReadSequence(); entries.HasData;)
            serials.Add(Convert.ToHexString(entries.ReadSequence().ReadIntegerBytes().Span));
        return serials;
    }

    private void Require(QuoteRefusal refusal, bool holds)
    {
        if (!holds)
            _refusals.Add(refusal);
    }

    private sealed record Parts(
        byte[] Signed, byte[] Body, byte[] Signature, byte[] AttestationKey, byte[] QeReport, byte[] QeReportSignature, byte[] Authentication, byte[] Chain)
    {
        public static bool TryRead(byte[] quote, out Parts parts)
        {
            parts = null!;
            try
            {
                parts = Read(quote);
                return true;
            }
            catch (Exception exception) when (exception is EndOfStreamException or InvalidDataException)
            {
                return false;
            }
        }

        private static Parts Read(byte[] quote)
        {
            var reader = new BinaryReader(new MemoryStream(quote));
            ushort version = reader.ReadUInt16();
            Demand(version is 4 or 5);
            Demand(reader.ReadUInt16() == 2);
            Demand(reader.ReadUInt32() == 0x81);
            reader.ReadUInt32();
            Demand(Take(16).AsSpan().SequenceEqual(Convert.FromHexString("939a7233f79c4ca9940a0db3957f0607")));
            Take(20);
            int bodySize = 584;
            if (version == 5)
            {
                ushort type = reader.ReadUInt16();
                Demand(type is 2 or 3);
                bodySize = type == 3 ? 648 : 584;
                Demand(reader.ReadUInt32() == bodySize);
            }

            byte[] body = Take(bodySize);
            byte[] signed = quote[..(int)reader.BaseStream.Position];
            long end = reader.ReadUInt32() + reader.BaseStream.Position;
            Demand(end <= quote.Length);
            byte[] signature = Take(64);
            byte[] key = Take(64);
            Demand(reader.ReadUInt16() == 6);
            Demand(reader.ReadUInt32() == end - reader.BaseStream.Position);
            byte[] qeReport = Take(384);
            byte[] qeSignature = Take(64);
            byte[] authentication = Take(reader.ReadUInt16());
            Demand(reader.ReadUInt16() == 5);
            uint size = reader.ReadUInt32();
            Demand(size == end - reader.BaseStream.Position);
            return new Parts(signed, body, signature, key, qeReport, qeSignature, authentication, Take((int)size));

            byte[] Take(int count) => reader.ReadBytes(count) is var bytes && bytes.Length == count ? bytes : throw new EndOfStreamException();

            static void Demand(bool holds)
            {
                if (!holds)
                    throw new InvalidDataException();
            }
        }
    }
}
