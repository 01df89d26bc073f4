using System.Numerics;
using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;
using VmmService.Client;
using VmmService.Client.Attestation;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Attestation;

/// <summary>The openssl command as a second, independent judge of a quote's chain and its signatures. Skipped where there is none.</summary>
public sealed class TdxOpensslTests(Daemon daemon) : IClassFixture<Daemon>, IDisposable
{
    private readonly Openssl _openssl = new();

    public void Dispose() => _openssl.Dispose();

    [Theory]
    [InlineData(QuoteFormat.V4)]
    [InlineData(QuoteFormat.V5Tdx15)]
    public async Task Chain_AndSignatures_AreGood(QuoteFormat format)
    {
        await Write(QuoteEvidenceKind.Sound, format);

        Assert.Equal("leaf.pem: OK", await Verify("-CAfile", "trusted.pem", "-untrusted", "intermediate.pem", "leaf.pem"));
        Assert.Equal("leaf.pem: OK", await Verify("-x509_strict", "-crl_check_all", "-CAfile", "trusted.pem", "-CRLfile", "crls.pem", "-untrusted", "intermediate.pem", "leaf.pem"));
        Assert.Equal("tcb-signing.pem: OK", await Verify("-CAfile", "trusted.pem", "tcb-signing.pem"));
        Assert.Equal("Verified OK", await _openssl.RunAsync("dgst", "-sha256", "-verify", "attestation.pub", "-signature", "quote.sig", "quote.bin"));
        Assert.Equal("Verified OK", await _openssl.RunAsync("dgst", "-sha256", "-verify", "leaf.pub", "-signature", "qe.sig", "qe.bin"));
    }

    [Theory]
    [InlineData(QuoteEvidenceKind.BrokenChain, "certificate signature failure")]
    [InlineData(QuoteEvidenceKind.UntrustedRoot, "self-signed certificate in certificate chain|unable to get local issuer certificate|certificate signature failure")]
    [InlineData(QuoteEvidenceKind.ExpiredCertificate, "certificate has expired")]
    [InlineData(QuoteEvidenceKind.RevokedPck, "certificate revoked")]
    [InlineData(QuoteEvidenceKind.RevokedPlatformCa, "certificate revoked")]
    public async Task Defects_OfTheChain_AreFound(QuoteEvidenceKind kind, string says)
    {
        await Write(kind, QuoteFormat.V4);
        Assert.Matches(says, await Verify("-crl_check_all", "-CAfile", "trusted.pem", "-CRLfile", "crls.pem", "-untrusted", "intermediate.pem", "leaf.pem"));
    }

    [Theory]
    [InlineData(QuoteEvidenceKind.AlteredBody, "attestation.pub", "quote")]
    [InlineData(QuoteEvidenceKind.AlteredQeReport, "leaf.pub", "qe")]
    public async Task Defects_OfSignatures_AreFound(QuoteEvidenceKind kind, string key, string signed)
    {
        await Write(kind, QuoteFormat.V4);
        Assert.Contains("Verification failure", await _openssl.RunAsync("dgst", "-sha256", "-verify", key, "-signature", signed + ".sig", signed + ".bin"), StringComparison.OrdinalIgnoreCase);
    }

    [Fact]
    public async Task EverySubject_SaysThatItIsSimulated()
    {
        await Write(QuoteEvidenceKind.Sound, QuoteFormat.V4);
        foreach (string file in (string[])["trusted.pem", "intermediate.pem", "leaf.pem", "tcb-signing.pem"])
        {
            string names = await _openssl.RunAsync("x509", "-in", file, "-noout", "-subject", "-issuer");
            Assert.Equal(2, names.Split('\n').Count(line => line.Contains("SIMULATED by VmmService, not Intel hardware", StringComparison.Ordinal)));
        }
    }

    private Task<string> Verify(params string[] arguments) => _openssl.RunAsync(["verify", "-attime", Openssl.Now, .. arguments]);

    private async Task Write(QuoteEvidenceKind kind, QuoteFormat format)
    {
        await using RemoteHost host = await QuotedTd.CreateHost(daemon.Connection);
        MakeQuoteEvidenceResponse evidence = await host.TdxAttestation.MakeEvidenceAsync(kind, (await QuotedTd.Report(host)).Bytes, format);
        var quote = TdxQuote.Parse(evidence.Quote.Memory);
        var chain = new X509Certificate2Collection();
        chain.ImportFromPem(quote.PckChainPem);
        byte[] point = quote.AttestationKey.ToArray();
        using var attestation = ECDsa.Create(new ECParameters { Curve = ECCurve.NamedCurves.nistP256, Q = new ECPoint { X = point[..32], Y = point[32..] } });
        (string Name, byte[] Bytes)[] files =
        [
            ("trusted.pem", Openssl.Pem("CERTIFICATE", evidence.Expected.Root.Span)),
            ("intermediate.pem", Openssl.Pem("CERTIFICATE", chain[1].RawData)),
            ("leaf.pem", Openssl.Pem("CERTIFICATE", chain[0].RawData)),
            ("tcb-signing.pem", Openssl.Pem("CERTIFICATE", evidence.TcbSigning.Span)),
            ("crls.pem", [.. Openssl.Pem("X509 CRL", evidence.PckCrl.Span), .. Openssl.Pem("X509 CRL", evidence.RootCrl.Span)]),
            ("leaf.pub", Openssl.Pem("PUBLIC KEY", chain[0].PublicKey.ExportSubjectPublicKeyInfo())),
            ("attestation.pub", Openssl.Pem("PUBLIC KEY", attestation.ExportSubjectPublicKeyInfo())),
            ("quote.bin", quote.Signed.ToArray()),
            ("quote.sig", Signature(quote.Signature)),
            ("qe.bin", quote.QeReport.ToArray()),
            ("qe.sig", Signature(quote.QeReportSignature)),
        ];
        foreach ((string name, byte[] bytes) in files)
            await _openssl.WriteAsync(name, bytes);
    }

    private static byte[] Signature(ReadOnlyMemory<byte> pair) => Openssl.Signature(
        new BigInteger(pair.Span[..32], isUnsigned: true, isBigEndian: true), new BigInteger(pair.Span[32..], isUnsigned: true, isBigEndian: true));
}
