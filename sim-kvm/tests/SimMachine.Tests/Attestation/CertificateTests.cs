using System.Security.Cryptography.X509Certificates;
using System.Text;
using System.Text.Json;
using SimMachine.Amd;
using SimMachine.Amd.Attestation;
using SimMachine.Tests.Measurement;
using VmmService.IntegrationTests.Attestation;
using Xunit;

namespace SimMachine.Tests.Attestation;

/// <summary>Simulated certificates: the form of the real ones (snp.md 12), and the marks by which nobody takes them for real.</summary>
public sealed class CertificateTests
{
    private static readonly TcbVersion Tcb = new(3, 0, 8, 209, 0);
    private static readonly TcbVersion TurinTcb = new(1, 2, 3, 255, 7);

    public static TheoryData<EpycProduct, EndorsementKeyKind> Chains =>
        [.. from product in Enum.GetValues<EpycProduct>() from kind in Enum.GetValues<EndorsementKeyKind>() select (product, kind)];

    [Theory]
    [MemberData(nameof(Chains))]
    public void Chain_IsSignedFromTheRootDown(EpycProduct product, EndorsementKeyKind kind)
    {
        var authority = SimulatedAuthority.Of(product);
        using X509Certificate2 ark = X509CertificateLoader.LoadCertificate(authority.Ark.Span);
        using X509Certificate2 intermediate = X509CertificateLoader.LoadCertificate(authority.Intermediate(kind).Span);

        Assert.True(SnpVerifier.IsSignedBy(authority.Ark.ToArray(), ark));
        Assert.True(SnpVerifier.IsSignedBy(authority.Intermediate(kind).ToArray(), ark));
        Assert.True(SnpVerifier.IsSignedBy(authority.Crl.ToArray(), ark));
        Assert.True(SnpVerifier.IsSignedBy(Key(product, kind).Certificate.ToArray(), intermediate));
    }

    [Theory]
    [MemberData(nameof(Chains))]
    public void Chain_SatisfiesThePlatformsChainBuilder(EpycProduct product, EndorsementKeyKind kind)
    {
        var authority = SimulatedAuthority.Of(product);
        using X509Certificate2 ark = X509CertificateLoader.LoadCertificate(authority.Ark.Span);
        using X509Certificate2 intermediate = X509CertificateLoader.LoadCertificate(authority.Intermediate(kind).Span);
        using X509Certificate2 leaf = X509CertificateLoader.LoadCertificate(Key(product, kind).Certificate.Span);
        using var chain = new X509Chain
        {
            ChainPolicy =
            {
                TrustMode = X509ChainTrustMode.CustomRootTrust,
                CustomTrustStore = { ark },
                ExtraStore = { intermediate },
                RevocationMode = X509RevocationMode.NoCheck,
                VerificationTime = new DateTime(2030, 1, 1, 0, 0, 0, DateTimeKind.Utc),
            },
        };

        Assert.True(chain.Build(leaf), string.Join("; ", chain.ChainStatus.Select(status => status.StatusInformation)));
        Assert.Equal(3, chain.ChainElements.Count);
    }

    [Theory]
    [MemberData(nameof(Chains))]
    public void Names_AreSiliconsWithTheMarkBehind(EpycProduct product, EndorsementKeyKind kind)
    {
        const string checkedNames = "OU=Engineering, C=US, L=Santa Clara, S=CA, O=Advanced Micro Devices";
        var authority = SimulatedAuthority.Of(product);
        string vlek = kind == EndorsementKeyKind.Vlek ? "VLEK-" : "";
        (byte[] Der, string Subject, string Issuer)[] expected =
        [
            (authority.Ark.ToArray(), $"ARK-{product}", $"ARK-{product}"),
            (authority.Intermediate(kind).ToArray(), $"SEV-{vlek}{product}", $"ARK-{product}"),
            (Key(product, kind).Certificate.ToArray(), kind == EndorsementKeyKind.Vlek ? "SEV-VLEK" : "SEV-VCEK", $"SEV-{vlek}{product}"),
        ];

        foreach ((byte[] der, string subject, string issuer) in expected)
        {
            using X509Certificate2 certificate = X509CertificateLoader.LoadCertificate(der);
            Assert.Equal($"{checkedNames}, CN={subject}, Description=\"SIMULATED by VmmService, not AMD hardware\"", certificate.SubjectName.Decode(X500DistinguishedNameFlags.None));
            Assert.Equal($"{checkedNames}, CN={issuer}, Description=\"SIMULATED by VmmService, not AMD hardware\"", certificate.IssuerName.Decode(X500DistinguishedNameFlags.None));
        }
    }

    [Theory]
    [InlineData(EpycProduct.Milan)]
    [InlineData(EpycProduct.Turin)]
    public void Authorities_HaveTheExtensionsOfRealOnes(EpycProduct product)
    {
        using X509Certificate2 ark = X509CertificateLoader.LoadCertificate(SimulatedAuthority.Of(product).Ark.Span);
        using X509Certificate2 ask = X509CertificateLoader.LoadCertificate(SimulatedAuthority.Of(product).Intermediate(EndorsementKeyKind.Vcek).Span);

        Assert.StartsWith("53494D", ark.SerialNumber, StringComparison.Ordinal);
        Assert.StartsWith("53494D", ask.SerialNumber, StringComparison.Ordinal);
        Assert.Equal(X509KeyUsageFlags.KeyCertSign | X509KeyUsageFlags.CrlSign, ark.Extensions.OfType<X509KeyUsageExtension>().Single().KeyUsages);
        Assert.Equal(X509KeyUsageFlags.KeyCertSign, ask.Extensions.OfType<X509KeyUsageExtension>().Single().KeyUsages);
        Assert.Equal(
            ark.Extensions.OfType<X509SubjectKeyIdentifierExtension>().Single().SubjectKeyIdentifierBytes.ToArray(),
            ask.Extensions.OfType<X509AuthorityKeyIdentifierExtension>().Single().KeyIdentifier!.Value.ToArray());
        // Verifiers compare the address.
        byte[] points = ask.Extensions.Single(each => each.Oid!.Value == "2.5.29.31").RawData;
        Assert.Contains($"https://kdsintf.amd.com/vcek/v1/{product}/crl", Encoding.ASCII.GetString(points), StringComparison.Ordinal);
    }

    // The extensions of a real Turin certificate, in their order, with other values.
    [Fact]
    public void Vcek_OfTurin_HasTheExtensionsOfARealOne()
    {
        JsonElement expected = SnpVectors.Get("vcek-turin-ext").GetProperty("expected").GetProperty("extension_value_hex");
        byte[] hwid = expected.Bytes("1.3.6.1.4.1.3704.1.4");
        // The same TCB and chip id as the real one.
        var key = EndorsementKey.Vcek(EpycProduct.Turin, hwid, new TcbVersion(0, 0, 0, 9, 0));

        using X509Certificate2 vcek = X509CertificateLoader.LoadCertificate(key.Certificate.Span);

        Assert.Equal(
            expected.EnumerateObject().Select(each => $"{each.Name} {each.Value.GetString()}"),
            vcek.Extensions.Select(each => $"{each.Oid!.Value} {Convert.ToHexStringLower(each.RawData)}"));
        Assert.Equal("00", vcek.SerialNumber);
    }

    [Fact]
    public void Vcek_OfMilan_HasTheExtensionsOfARealOne()
    {
        using X509Certificate2 real = X509CertificateLoader.LoadCertificate(
            SnpVectors.Get("report-milan-v2").GetProperty("params").GetProperty("vcek_der_base64").GetBytesFromBase64());
        byte[] hwid = SnpVerifier.Extension(real, "4")!;

        using X509Certificate2 vcek = X509CertificateLoader.LoadCertificate(EndorsementKey.Vcek(EpycProduct.Milan, hwid, new TcbVersion(3, 0, 8, 115)).Certificate.Span);

        Assert.Equal(real.Extensions.Select(Text), vcek.Extensions.Select(Text));

        // The stepping is the simulated processor's.
        static string Text(X509Extension each) =>
            $"{each.Oid!.Value} {each.Critical} {Convert.ToHexString(each.RawData).Replace(Convert.ToHexString("Milan-B1"u8), Convert.ToHexString("Milan-B0"u8), StringComparison.Ordinal)}";
    }

    [Fact]
    public void PatchLevels_Above0x7F_TakeALeadingZero()
    {
        using X509Certificate2 vcek = X509CertificateLoader.LoadCertificate(Key(EpycProduct.Milan, EndorsementKeyKind.Vcek).Certificate.Span);

        Assert.Equal("020200D1", Convert.ToHexString(SnpVerifier.Extension(vcek, "3.8")!));
    }

    [Fact]
    public void Vlek_NamesItsProviderAndNoChip()
    {
        using X509Certificate2 vlek = X509CertificateLoader.LoadCertificate(Key(EpycProduct.Genoa, EndorsementKeyKind.Vlek).Certificate.Span);

        Assert.Equal("1603435350", Convert.ToHexString(SnpVerifier.Extension(vlek, "5")!));
        Assert.Equal("160547656E6F61", Convert.ToHexString(SnpVerifier.Extension(vlek, "2")!));
        Assert.Null(SnpVerifier.Extension(vlek, "4"));
    }

    [Fact]
    public void Key_IsAFunctionOfChipAndTcb()
    {
        byte[] chip = [.. Enumerable.Repeat((byte)7, 64)], other = [.. Enumerable.Repeat((byte)8, 64)];
        string Point(byte[] id, TcbVersion tcb, EpycProduct product = EpycProduct.Milan) =>
            Convert.ToHexString(EndorsementKey.Vcek(product, id, tcb).Certificate.Span);

        Assert.Equal(Point(chip, Tcb), Point([.. chip], Tcb));
        Assert.Equal(4, new[] { Point(chip, Tcb), Point(other, Tcb), Point(chip, Tcb with { Snp = 9 }), Point(chip, Tcb, EpycProduct.Genoa) }.Distinct().Count());
    }

    [Theory]
    [InlineData(EpycProduct.Milan, "SIMULATED-BY-VMMSERVICE:", 64)]
    [InlineData(EpycProduct.Genoa, "SIMULATED-BY-VMMSERVICE:", 64)]
    [InlineData(EpycProduct.Turin, "SIMU", 8)]
    public void ChipId_SaysThatItIsSimulated(EpycProduct product, string marker, int significant)
    {
        byte[] Id(ulong seed)
        {
            using var machine = new Machine(new MachineConfig { Product = product }, seed);
            return machine.Identity.ChipId.ToArray();
        }

        Assert.StartsWith(marker, Encoding.ASCII.GetString(Id(1)), StringComparison.Ordinal);
        Assert.All(Id(1)[significant..], each => Assert.Equal(0, each));
        Assert.Equal(Id(1), Id(1));
        Assert.NotEqual(Id(1), Id(2));
        Assert.True(ChipId.IsSimulated(product, Id(1)));
        Assert.True(ChipId.IsSimulated(product, Id(1).AsSpan(0, significant)));
    }

    [Theory]
    [InlineData(EpycProduct.Milan, "")]
    [InlineData(EpycProduct.Milan, "53494d55")]
    [InlineData(EpycProduct.Turin, "1e550a8ee5cf9f4d")]
    [InlineData(EpycProduct.Turin, "53494d5500")]
    [InlineData(EpycProduct.Turin, "53494d550000000000")]
    public void ChipIds_OfSiliconOrOfNoLength_AreNotSimulated(EpycProduct product, string hex) =>
        Assert.False(ChipId.IsSimulated(product, Convert.FromHexString(hex)));

    private static EndorsementKey Key(EpycProduct product, EndorsementKeyKind kind)
    {
        TcbVersion tcb = product == EpycProduct.Turin ? TurinTcb : Tcb;
        return kind == EndorsementKeyKind.Vlek ? EndorsementKey.Vlek(product, "CSP", tcb) : EndorsementKey.Vcek(product, [.. Enumerable.Repeat((byte)7, 64)], tcb);
    }
}
