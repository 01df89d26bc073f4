using System.Numerics;
using System.Security.Cryptography.X509Certificates;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Attestation;

/// <summary>The openssl command as a second, independent judge of chains and signatures. Skipped where there is none.</summary>
public sealed class OpensslTests(Daemon daemon) : IClassFixture<Daemon>, IDisposable
{
    private const string Now = Openssl.Now;

    private readonly Openssl _openssl = new();

    public void Dispose() => _openssl.Dispose();

    [Theory]
    [InlineData(EpycProduct.Milan, "")]
    [InlineData(EpycProduct.Genoa, "CSP")]
    [InlineData(EpycProduct.Turin, "")]
    public async Task Chain_AndSignature_AreGood(EpycProduct product, string csp)
    {
        var machine = new MachineConfig { Product = product, Attestation = new AttestationConfig { VlekCspId = csp } };
        await using AttestedGuest guest = await AttestedGuest.Launch(daemon.Stubs, machine);
        await Write(await guest.Evidence(EvidenceKind.Sound));

        Assert.Equal("leaf.pem: OK", await _openssl.RunAsync("verify", "-attime", Now, "-CAfile", "trusted.pem", "-untrusted", "intermediate.pem", "leaf.pem"));
        Assert.Equal("intermediate.pem: OK", await _openssl.RunAsync("verify", "-attime", Now, "-x509_strict", "-crl_check", "-CAfile", "trusted.pem", "-CRLfile", "crl.pem", "intermediate.pem"));
        Assert.Equal("Verified OK", await _openssl.RunAsync("dgst", "-sha384", "-verify", "leaf.pub", "-signature", "report.sig", "report.bin"));
    }

    [Theory]
    [InlineData(EvidenceKind.BrokenChain, "certificate signature failure", "verify", "-attime", Now, "-CAfile", "trusted.pem", "-untrusted", "intermediate.pem", "leaf.pem")]
    [InlineData(EvidenceKind.UntrustedRoot, "unable to get local issuer certificate", "verify", "-attime", Now, "-CAfile", "trusted.pem", "-untrusted", "intermediate.pem", "leaf.pem")]
    [InlineData(EvidenceKind.ExpiredCertificate, "certificate has expired", "verify", "-attime", Now, "-CAfile", "trusted.pem", "-untrusted", "intermediate.pem", "leaf.pem")]
    [InlineData(EvidenceKind.Revoked, "certificate revoked", "verify", "-attime", Now, "-crl_check", "-CAfile", "trusted.pem", "-CRLfile", "crl.pem", "intermediate.pem")]
    [InlineData(EvidenceKind.AlteredReport, "Verification failure", "dgst", "-sha384", "-verify", "leaf.pub", "-signature", "report.sig", "report.bin")]
    public async Task Defects_OfChainAndSignature_AreFound(EvidenceKind kind, string says, params string[] command)
    {
        await using AttestedGuest guest = await AttestedGuest.Launch(daemon.Stubs);
        await Write(await guest.Evidence(kind));

        Assert.Contains(says, await _openssl.RunAsync(command), StringComparison.OrdinalIgnoreCase);
    }

    private async Task Write(MakeEvidenceResponse evidence)
    {
        byte[] report = evidence.Report.ToByteArray();
        using X509Certificate2 leaf = X509CertificateLoader.LoadCertificate(evidence.Endorsement.ToByteArray());
        (string Name, byte[] Bytes)[] files =
        [
            ("trusted.pem", Openssl.Pem("CERTIFICATE", evidence.Expected.Ark.Span)),
            ("intermediate.pem", Openssl.Pem("CERTIFICATE", evidence.Intermediate.Span)),
            ("leaf.pem", Openssl.Pem("CERTIFICATE", evidence.Endorsement.Span)),
            ("crl.pem", Openssl.Pem("X509 CRL", evidence.Crl.Span)),
            ("leaf.pub", Openssl.Pem("PUBLIC KEY", leaf.PublicKey.ExportSubjectPublicKeyInfo())),
            ("report.bin", report[..0x2A0]),
            ("report.sig", DerSignature(report)),
        ];
        foreach ((string name, byte[] bytes) in files)
            await _openssl.WriteAsync(name, bytes);
    }

    private static byte[] DerSignature(byte[] report) =>
        Openssl.Signature(new BigInteger(report.AsSpan(0x2A0, 72), isUnsigned: true), new BigInteger(report.AsSpan(0x2A0 + 72, 72), isUnsigned: true));
}
