using System.Security.Cryptography;
using SimMachine.Amd.Attestation;
using SimMachine.Amd.Legacy;
using SimMachine.Stepping;

namespace SimMachine.Amd;

// The platform's own keys and certificates as SEV has them (55766, chapter 5): who owns the platform (OCA), what endorses it (PEK, CEK), and the key that owners of guests make
// sessions for (PDH). Keys are functions of the machine's seed, the chip, and how often they were made anew.
public sealed partial class Psp
{
    /// <summary>Bytes of the chain that PDH_CERT_EXPORT gives: PEK, OCA, CEK.</summary>
    public const int CertificateChainSize = 3 * SevCertificate.Size;

    public static readonly Rule CertificateLength = new(
        "psp.platform.certificate-length", "a buffer is too small for its certificates; the sizes come back", "55766, PDH_CERT_EXPORT, PEK_CSR",
        "give 2084 bytes for one certificate, 6252 for the chain", "length#", "needed#");

    public static readonly Rule AlreadyOwned = new(
        "psp.platform.owned", "the platform has an owner already", "55766, PEK_CERT_IMPORT", "make it its own again with PEK_GEN or FACTORY_RESET, then sign a new request");

    public static readonly Rule ImportedCertificate = new(
        "psp.platform.imported-certificate", "the certificate is none of 2084 bytes, or is not the request that PEK_CSR gave, or not an OCA's", "55766, PEK_CERT_IMPORT",
        "sign what PEK_CSR gives, unchanged, with the OCA's key; give the OCA's own certificate too", "length#", "usage");

    public static readonly Rule ImportedSignature = new(
        "psp.platform.imported-signature", "the PEK's certificate is not signed by the OCA, or the OCA's not by itself", "55766, PEK_CERT_IMPORT",
        "sign the first 0x414 bytes by ECDSA P-384 with SHA-384, usage OCA (0x1001)");

    // How often the keys were made anew.
    private int _pekGeneration;
    private int _pdhGeneration;

    // The owner's certificates, where one owns the platform: its own, and the PEK's with its signature.
    private SevCertificate? _importedOca;
    private SevCertificate? _importedPek;

    /// <summary>Whether somebody owns the platform but itself.</summary>
    public bool IsExternallyOwned => _importedOca is not null;

    private (byte Major, byte Minor) Api => (_machine.Config.ApiMajor, _machine.Config.ApiMinor);

    private SevCertificate PekRequest => SevCertificate.Create(SevKeyUsage.PEK, SevCertificate.EcdsaSha384, Api, Pek().Point);

    /// <summary>PEK_CSR (0x06): the platform endorsement key for an owner to sign.</summary>
    /// <param name="length">In: bytes of the buffer. Out: bytes of the request.</param>
    public SevStatus PekCsr(SimThread thread, ref uint length, out byte[] request)
    {
        request = [];
        SevStatus status = WhenInitialised(thread, PspCommand.PEK_CSR);
        if (status != SevStatus.SUCCESS)
        {
            return status;
        }
        uint given = length;
        length = SevCertificate.Size;
        if (given < SevCertificate.Size)
        {
            return thread.Fail(SevStatus.INVALID_LEN, CertificateLength, given, SevCertificate.Size);
        }
        request = PekRequest.Bytes.ToArray();
        return SevStatus.SUCCESS;
    }

    /// <summary>PEK_CERT_IMPORT (0x07): the platform gets an owner, and with it a new Diffie-Hellman key.</summary>
    /// <param name="pek">What <see cref="PekCsr"/> gave, signed by the owner.</param>
    /// <param name="oca">The owner's certificate, signed by itself.</param>
    public SevStatus PekCertImport(SimThread thread, ReadOnlySpan<byte> pek, ReadOnlySpan<byte> oca)
    {
        SevStatus status = WithoutGuests(thread, PspCommand.PEK_CERT_IMPORT);
        if (status != SevStatus.SUCCESS)
        {
            return status;
        }
        if (IsExternallyOwned)
        {
            return thread.Fail(SevStatus.ALREADY_OWNED, AlreadyOwned);
        }
        if (pek.Length != SevCertificate.Size || oca.Length != SevCertificate.Size)
        {
            return thread.Fail(SevStatus.INVALID_LEN, ImportedCertificate, (ulong)(pek.Length != SevCertificate.Size ? pek.Length : oca.Length), 0);
        }
        if (!SevCertificate.TryRead(pek, out SevCertificate endorsement) || !endorsement.SaysTheSameAs(PekRequest))
        {
            return thread.Fail(SevStatus.INVALID_CERTIFICATE, ImportedCertificate, (ulong)pek.Length, (ulong)SevKeyUsage.PEK);
        }
        if (!SevCertificate.TryRead(oca, out SevCertificate owner) || owner.Usage != SevKeyUsage.OCA)
        {
            return thread.Fail(SevStatus.INVALID_CERTIFICATE, ImportedCertificate, (ulong)oca.Length, (ulong)SevKeyUsage.OCA);
        }
        if (!owner.IsSignedBy(SevKeyUsage.OCA, owner) || !endorsement.IsSignedBy(SevKeyUsage.OCA, owner))
        {
            return thread.Fail(SevStatus.BAD_SIGNATURE, ImportedSignature);
        }
        // The chip vouches for it as for its own; the owner's signature may stand in either place.
        (_importedOca, _importedPek) = (owner, endorsement);
        _pdhGeneration++;
        return SevStatus.SUCCESS;
    }

    /// <summary>PDH_CERT_EXPORT (0x08): the Diffie-Hellman key's certificate and those below it.</summary>
    /// <param name="pdhLength">In: bytes of the buffer. Out: bytes of the certificate.</param>
    /// <param name="chainLength">The same, of PEK, OCA and CEK.</param>
    public SevStatus PdhCertExport(SimThread thread, ref uint pdhLength, ref uint chainLength, out byte[] pdh, out byte[] chain)
    {
        pdh = chain = [];
        SevStatus status = WhenInitialised(thread, PspCommand.PDH_CERT_EXPORT);
        if (status != SevStatus.SUCCESS)
        {
            return status;
        }
        (uint pdhGiven, uint chainGiven) = (pdhLength, chainLength);
        (pdhLength, chainLength) = (SevCertificate.Size, CertificateChainSize);
        if (pdhGiven < SevCertificate.Size || chainGiven < CertificateChainSize)
        {
            return pdhGiven < SevCertificate.Size
                ? thread.Fail(SevStatus.INVALID_LEN, CertificateLength, pdhGiven, SevCertificate.Size)
                : thread.Fail(SevStatus.INVALID_LEN, CertificateLength, chainGiven, CertificateChainSize);
        }
        pdh = PdhCertificate.Bytes.ToArray();
        chain = [.. PekCertificate.Bytes, .. OcaCertificate.Bytes, .. CekRequest.Bytes];
        return SevStatus.SUCCESS;
    }

    /// <summary>
    /// The chip endorsement key's certificate with the signature of AMD's authority, here the simulated one. Firmware cannot sign it: owners of guests ask AMD for it by the chip's
    /// id, and put it in the place of the unsigned one at the end of the chain.
    /// </summary>
    public byte[] SignedCekCertificate() => _machine.Identity.Authority.Sign(CekRequest).Bytes.ToArray();

    private SevCertificate PdhCertificate => SevCertificate.Create(SevKeyUsage.PDH, SevCertificate.EcdhSha384, Api, PdhPoint).SignedBy(0, SevKeyUsage.PEK, Pek());

    private SevCertificate PekCertificate => (_importedPek ?? PekRequest.SignedBy(0, SevKeyUsage.OCA, Oca())).SignedBy(1, SevKeyUsage.CEK, Cek());

    private SevCertificate OcaCertificate =>
        _importedOca ?? SevCertificate.Create(SevKeyUsage.OCA, SevCertificate.EcdsaSha384, Api, Oca().Point).SignedBy(0, SevKeyUsage.OCA, Oca());

    private SevCertificate CekRequest => SevCertificate.Create(SevKeyUsage.CEK, SevCertificate.EcdsaSha384, (0, 0), Cek().Point);

    private ECPoint PdhPoint
    {
        get
        {
            using ECDiffieHellman key = PdhKey();
            return key.ExportParameters(includePrivateParameters: false).Q;
        }
    }

    private EcdsaP384Key Pek() => PlatformKey($"sev pek/{_pekGeneration}");

    private EcdsaP384Key Oca() => PlatformKey($"sev oca/{_pekGeneration}");

    private EcdsaP384Key Cek() => PlatformKey("sev cek");

    private EcdsaP384Key PlatformKey(string label)
    {
        byte[] bytes = new byte[64];
        _machine.Entropy.Derive(label, bytes);
        return EcdsaP384Key.FromBytes(bytes);
    }

    // PEK_GEN: the platform owns itself again, and the Diffie-Hellman key goes with the PEK.
    private void MakePlatformKeys()
    {
        _pekGeneration++;
        _pdhGeneration++;
        (_importedOca, _importedPek) = (null, null);
    }

    private SevStatus WhenInitialised(SimThread thread, PspCommand command)
    {
        thread.Step(CommandStep, (ulong)command);
        return _initialised ? SevStatus.SUCCESS : thread.Fail(SevStatus.INVALID_PLATFORM_STATE, PlatformNotInitialised, (ulong)command);
    }
}
