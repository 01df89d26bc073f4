using System.Diagnostics;
using System.Formats.Asn1;
using System.Numerics;
using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Attestation;

/// <summary>The openssl command as a second, independent judge of chains and signatures. Skipped where there is none.</summary>
public sealed class OpensslTests(Daemon daemon) : IClassFixture<Daemon>, IDisposable
{
    // Seconds since 1970 of a day on which everything but the expired is valid.
    private const string Now = "1906545600";

    private readonly string _folder = Directory.CreateTempSubdirectory("vmm-openssl-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Theory]
    [InlineData(EpycProduct.Milan, "")]
    [InlineData(EpycProduct.Genoa, "CSP")]
    [InlineData(EpycProduct.Turin, "")]
    public async Task Chain_AndSignature_AreGood(EpycProduct product, string csp)
    {
        var machine = new MachineConfig { Product = product, Attestation = new AttestationConfig { VlekCspId = csp } };
        await using AttestedGuest guest = await AttestedGuest.Launch(daemon.Stubs, machine);
        await Write(await guest.Evidence(EvidenceKind.Sound));

        Assert.Equal("leaf.pem: OK", await Run("verify", "-attime", Now, "-CAfile", "trusted.pem", "-untrusted", "intermediate.pem", "leaf.pem"));
        Assert.Equal("intermediate.pem: OK", await Run("verify", "-attime", Now, "-x509_strict", "-crl_check", "-CAfile", "trusted.pem", "-CRLfile", "crl.pem", "intermediate.pem"));
        Assert.Equal("Verified OK", await Run("dgst", "-sha384", "-verify", "leaf.pub", "-signature", "report.sig", "report.bin"));
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

        Assert.Contains(says, await Run(command), StringComparison.OrdinalIgnoreCase);
    }

    private async Task Write(MakeEvidenceResponse evidence)
    {
        byte[] report = evidence.Report.ToByteArray();
        using X509Certificate2 leaf = X509CertificateLoader.LoadCertificate(evidence.Endorsement.ToByteArray());
        (string Name, byte[] Bytes)[] files =
        [
            ("trusted.pem", Pem("CERTIFICATE", evidence.Expected.Ark.Span)),
            ("intermediate.pem", Pem("CERTIFICATE", evidence.Intermediate.Span)),
            ("leaf.pem", Pem("CERTIFICATE", evidence.Endorsement.Span)),
            ("crl.pem", Pem("X509 CRL", evidence.Crl.Span)),
            ("leaf.pub", Pem("PUBLIC KEY", leaf.PublicKey.ExportSubjectPublicKeyInfo())),
            ("report.bin", report[..0x2A0]),
            ("report.sig", DerSignature(report)),
        ];
        foreach ((string name, byte[] bytes) in files)
            await File.WriteAllBytesAsync(Path.Combine(_folder, name), bytes);
    }

    private static byte[] Pem(string label, ReadOnlySpan<byte> der) => System.Text.Encoding.ASCII.GetBytes(PemEncoding.WriteString(label, der) + "\n");

    private static byte[] DerSignature(byte[] report)
    {
        var writer = new AsnWriter(AsnEncodingRules.DER);
        using (writer.PushSequence())
        {
            writer.WriteInteger(new BigInteger(report.AsSpan(0x2A0, 72), isUnsigned: true));
            writer.WriteInteger(new BigInteger(report.AsSpan(0x2A0 + 72, 72), isUnsigned: true));
        }
        return writer.Encode();
    }

    // Both streams, as a person would see them.
    private async Task<string> Run(params string[] arguments)
    {
        var start = new ProcessStartInfo("openssl", arguments) { WorkingDirectory = _folder, RedirectStandardOutput = true, RedirectStandardError = true };
        Process? process = null;
        try
        {
            process = Process.Start(start);
        }
        catch (System.ComponentModel.Win32Exception)
        {
            Assert.Skip("openssl is not installed");
        }
        using (process)
        {
            Task<string> error = process!.StandardError.ReadToEndAsync();
            string output = await process.StandardOutput.ReadToEndAsync();
            await process.WaitForExitAsync();
            return (output + await error).Trim();
        }
    }
}
