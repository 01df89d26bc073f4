using System.Buffers.Binary;
using System.Security.Cryptography;
using System.Text;

namespace VmmService.Client.Attestation;

/// <summary>
/// The owner of a SEV or SEV-ES guest at its launch: makes a session that only one platform can open, checks what that platform measured, and seals a secret for the guest. The VMM in
/// between passes the bytes on (<see cref="SevLaunch"/>) and learns no key (SEV API, chapter 2; snp.md 4.5).
/// </summary>
public sealed class SevGuestOwner
{
    private const int KeySize = 16;
    private const byte SecretTag = 0x01;
    private const byte MeasurementTag = 0x04;

    private SevGuestOwner(uint policy, SevCertificate certificate, byte[] session, byte[] tek, byte[] tik)
    {
        Policy = policy;
        Certificate = certificate;
        Session = session;
        Tek = tek;
        Tik = tik;
    }

    /// <summary>The policy that the guest is launched with. The session binds it.</summary>
    public uint Policy { get; }

    /// <summary>The owner's Diffie-Hellman certificate, for KVM_SEV_LAUNCH_START.</summary>
    public SevCertificate Certificate { get; }

    /// <summary>The session, 128 bytes, for KVM_SEV_LAUNCH_START.</summary>
    public ReadOnlyMemory<byte> Session { get; }

    /// <summary>Transport encryption key, 16 bytes.</summary>
    public ReadOnlyMemory<byte> Tek { get; }

    /// <summary>Transport integrity key, 16 bytes.</summary>
    public ReadOnlyMemory<byte> Tik { get; }

    /// <summary>An owner with new keys, who trusts a platform.</summary>
    /// <param name="pdh">The platform's Diffie-Hellman certificate; verify its chain first (<see cref="SevPlatformChain.Problem"/>).</param>
    /// <param name="policy">The guest's policy.</param>
    public static SevGuestOwner Create(SevCertificate pdh, uint policy)
    {
        ArgumentNullException.ThrowIfNull(pdh);
        using var key = ECDiffieHellman.Create(ECCurve.NamedCurves.nistP384);
        using var platform = ECDiffieHellman.Create(pdh.Key);
        byte[] z = key.DeriveRawSecretAgreement(platform.PublicKey);
        byte[] tek = RandomNumberGenerator.GetBytes(KeySize), tik = RandomNumberGenerator.GetBytes(KeySize);
        byte[] session = Wrap(z, RandomNumberGenerator.GetBytes(KeySize), RandomNumberGenerator.GetBytes(KeySize), tek, tik, policy);
        return new SevGuestOwner(policy, SevCertificate.OfDiffieHellman(key), session, tek, tik);
    }

    /// <summary>Whether a measurement is that of a launch: made with the session's key, by this firmware, under this policy, of this digest.</summary>
    /// <param name="measure">MEASURE of KVM_SEV_LAUNCH_MEASURE, 32 bytes.</param>
    /// <param name="nonce">MNONCE, 16 bytes.</param>
    /// <param name="firmware">API major and minor version and build, as SEV_PLATFORM_STATUS has them.</param>
    /// <param name="launchDigest">The digest that the owner expects, 32 bytes.</param>
    public bool Accepts(ReadOnlySpan<byte> measure, ReadOnlySpan<byte> nonce, (byte Major, byte Minor, byte Build) firmware, ReadOnlySpan<byte> launchDigest) =>
        CryptographicOperations.FixedTimeEquals(measure, Measure(Tik.Span, firmware, Policy, launchDigest, nonce));

    /// <summary>Seals a secret for the guest that was measured.</summary>
    /// <param name="secret">A multiple of 16 bytes.</param>
    /// <param name="measure">MEASURE of the launch; the secret opens in no other.</param>
    /// <returns>Header (52 bytes) and body for KVM_SEV_LAUNCH_SECRET.</returns>
    public (byte[] Header, byte[] Body) SealSecret(ReadOnlySpan<byte> secret, ReadOnlySpan<byte> measure) =>
        SealSecret(Tek.Span, Tik.Span, RandomNumberGenerator.GetBytes(KeySize), secret, measure);

    internal static byte[] Wrap(byte[] z, byte[] nonce, byte[] iv, byte[] tek, byte[] tik, uint policy)
    {
        (byte[] kek, byte[] kik) = WrappingKeys(z, nonce);
        byte[] wrapped = Ctr(kek, iv, [.. tek, .. tik]);
        return [.. nonce, .. wrapped, .. iv, .. HMACSHA256.HashData(kik, wrapped), .. HMACSHA256.HashData(tik, Word(policy))];
    }

    internal static (byte[] Kek, byte[] Kik) WrappingKeys(byte[] z, byte[] nonce)
    {
        byte[] master = Derive(z, "sev-master-secret", nonce);
        return (Derive(master, "sev-kek", []), Derive(master, "sev-kik", []));
    }

    internal static byte[] Measure(ReadOnlySpan<byte> tik, (byte Major, byte Minor, byte Build) firmware, uint policy, ReadOnlySpan<byte> launchDigest, ReadOnlySpan<byte> nonce) =>
        HMACSHA256.HashData(tik, [MeasurementTag, firmware.Major, firmware.Minor, firmware.Build, .. Word(policy), .. launchDigest, .. nonce]);

    internal static (byte[] Header, byte[] Body) SealSecret(ReadOnlySpan<byte> tek, ReadOnlySpan<byte> tik, ReadOnlySpan<byte> iv, ReadOnlySpan<byte> secret, ReadOnlySpan<byte> measure)
    {
        if (secret.IsEmpty || secret.Length % KeySize != 0)
            throw new ArgumentException($"a secret has a multiple of {KeySize} bytes and not {secret.Length}; pad it", nameof(secret));

        byte[] body = Ctr(tek, iv, secret);
        byte[] flagsAndIv = [0, 0, 0, 0, .. iv];
        byte[] length = Word((uint)body.Length);
        return ([.. flagsAndIv, .. HMACSHA256.HashData(tik, [SecretTag, .. flagsAndIv, .. length, .. length, .. body, .. measure])], body);
    }

    // NIST SP 800-108 in counter mode with HMAC-SHA-256; one round gives more than 16 bytes.
    private static byte[] Derive(byte[] key, string label, byte[] context) =>
        HMACSHA256.HashData(key, (byte[])[.. Word(1), .. Encoding.ASCII.GetBytes(label), 0, .. context, .. Word(8 * KeySize)])[..KeySize];

    // AES-128 in counter mode, big-endian counter.
    private static byte[] Ctr(ReadOnlySpan<byte> key, ReadOnlySpan<byte> iv, ReadOnlySpan<byte> data)
    {
        using var aes = Aes.Create();
        aes.SetKey(key);
        byte[] result = data.ToArray();
        UInt128 counter = BinaryPrimitives.ReadUInt128BigEndian(iv);
        Span<byte> block = stackalloc byte[KeySize];
        for (int at = 0; at < result.Length; at += KeySize, counter++)
        {
            BinaryPrimitives.WriteUInt128BigEndian(block, counter);
            aes.EncryptEcb(block, block, PaddingMode.None);
            for (int i = at; i < Math.Min(at + KeySize, result.Length); i++)
                result[i] ^= block[i - at];
        }
        return result;
    }

    private static byte[] Word(uint value)
    {
        byte[] bytes = new byte[4];
        BinaryPrimitives.WriteUInt32LittleEndian(bytes, value);
        return bytes;
    }
}
