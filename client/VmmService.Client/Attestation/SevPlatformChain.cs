using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;

namespace VmmService.Client.Attestation;

/// <summary>
/// The certificates of a SEV platform, as SEV_PDH_CERT_EXPORT gives them: its Diffie-Hellman key (PDH), what endorses it (PEK), who owns the platform (OCA), and the chip (CEK),
/// whose certificate is signed by AMD's authority and not by firmware.
/// </summary>
/// <param name="Pdh">Signed by the PEK.</param>
/// <param name="Pek">Signed by OCA and CEK.</param>
/// <param name="Oca">Signed by itself.</param>
/// <param name="Cek">As firmware has it it is unsigned; <see cref="WithCek"/> puts in the signed one.</param>
public sealed record SevPlatformChain(SevCertificate Pdh, SevCertificate Pek, SevCertificate Oca, SevCertificate Cek)
{
    /// <summary>PEK, OCA and CEK as they travel: 6252 bytes.</summary>
    public ReadOnlyMemory<byte> CertChain => (byte[])[.. Pek.Bytes.Span, .. Oca.Bytes.Span, .. Cek.Bytes.Span];

    /// <summary>Reads what SEV_PDH_CERT_EXPORT gave.</summary>
    /// <param name="pdhCert">2084 bytes.</param>
    /// <param name="certChain">PEK, OCA and CEK, 6252 bytes.</param>
    /// <exception cref="FormatException">They are no such certificates.</exception>
    public static SevPlatformChain Parse(ReadOnlySpan<byte> pdhCert, ReadOnlySpan<byte> certChain)
    {
        const int size = SevCertificate.Size;
        if (certChain.Length != 3 * size)
            throw new FormatException($"a chain has {3 * size} bytes (PEK, OCA, CEK) and not {certChain.Length}");

        return new SevPlatformChain(
            SevCertificate.Parse(pdhCert), SevCertificate.Parse(certChain[..size]), SevCertificate.Parse(certChain.Slice(size, size)), SevCertificate.Parse(certChain[(2 * size)..]));
    }

    /// <summary>The chain with the signed certificate of the chip's key.</summary>
    public SevPlatformChain WithCek(SevCertificate cek) => this with { Cek = cek };

    /// <summary>What is wrong with the chain, from the top; null if it holds.</summary>
    /// <param name="ask">AMD's intermediate authority; whether to trust it is the caller's business.</param>
    public string? Problem(X509Certificate2 ask)
    {
        ArgumentNullException.ThrowIfNull(ask);
        using RSA authority = ask.GetRSAPublicKey() ?? throw new ArgumentException("the authority's key is no RSA key", nameof(ask));
        (string Problem, bool Holds)[] links =
        [
            ("the CEK's certificate is not signed by the authority", Cek.Usage == SevKeyUsage.CEK && Cek.IsSignedByAsk(authority)),
            ("the OCA's certificate is not signed by itself", Oca.Usage == SevKeyUsage.OCA && Oca.IsSignedBy(Oca)),
            ("the PEK's certificate is not signed by the CEK", Pek.Usage == SevKeyUsage.PEK && Pek.IsSignedBy(Cek)),
            ("the PEK's certificate is not signed by the OCA", Pek.IsSignedBy(Oca)),
            ("the PDH's certificate is not signed by the PEK", Pdh.Usage == SevKeyUsage.PDH && Pdh.IsSignedBy(Pek)),
        ];
        return links.FirstOrDefault(link => !link.Holds).Problem;
    }
}
