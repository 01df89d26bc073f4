using System.Buffers.Binary;
using System.Security.Cryptography;
using System.Text;

namespace SimMachine.Amd.Legacy;

/// <summary>
/// The cryptography between a guest owner and SEV firmware: session keys, the launch measurement, secret packets (SEV API, chapters 2 and 6; snp.md 4.5). All numbers
/// little-endian.
/// </summary>
public static class SevSession
{
    /// <summary>Bytes of a session blob.</summary>
    public const int BlobSize = 128;

    /// <summary>Bytes of a secret packet's header.</summary>
    public const int HeaderSize = 52;

    /// <summary>Bytes of a transport key (TEK, TIK) and of a nonce.</summary>
    public const int KeySize = 16;

    /// <summary>Bytes of a MAC or a measurement.</summary>
    public const int MacSize = 32;

    // The first byte of what is signed says what it is.
    private const byte SecretTag = 0x01;
    private const byte DataTag = 0x02;
    private const byte MeasurementTag = 0x04;

    // Offsets in the session blob.
    private const int WrappedKeysAt = 16;
    private const int WrapIvAt = 48;
    private const int WrapMacAt = 64;
    private const int PolicyMacAt = 96;

    // Offsets in the header of a secret packet.
    private const int PacketIvAt = 4;
    private const int PacketMacAt = 20;

    /// <summary>NIST SP 800-108 in counter mode with HMAC-SHA-256.</summary>
    /// <param name="key">The input key.</param>
    /// <param name="label">ASCII label.</param>
    /// <param name="context">May be empty.</param>
    /// <param name="length">Bytes wanted.</param>
    public static byte[] Kdf(ReadOnlySpan<byte> key, string label, ReadOnlySpan<byte> context, int length)
    {
        byte[] result = new byte[length];
        byte[] name = Encoding.ASCII.GetBytes(label);
        byte[] message = new byte[4 + name.Length + 1 + context.Length + 4];
        name.CopyTo(message, 4);
        context.CopyTo(message.AsSpan(4 + name.Length + 1));
        BinaryPrimitives.WriteUInt32LittleEndian(message.AsSpan(message.Length - 4), (uint)length * 8);
        Span<byte> block = stackalloc byte[MacSize];
        for (int done = 0, i = 1; done < length; done += MacSize, i++)
        {
            BinaryPrimitives.WriteUInt32LittleEndian(message, (uint)i);
            HMACSHA256.HashData(key, message, block);
            block[..Math.Min(MacSize, length - done)].CopyTo(result.AsSpan(done));
        }
        return result;
    }

    /// <summary>The keys that wrap a session.</summary>
    /// <param name="z">What both sides computed by Diffie-Hellman.</param>
    /// <param name="nonce">16 bytes, from the session blob.</param>
    public static SevWrappingKeys WrappingKeys(ReadOnlySpan<byte> z, ReadOnlySpan<byte> nonce)
    {
        byte[] master = Kdf(z, "sev-master-secret", nonce, KeySize);
        return new SevWrappingKeys(master, Kdf(master, "sev-kek", [], KeySize), Kdf(master, "sev-kik", [], KeySize));
    }

    /// <summary>Opens a session blob.</summary>
    /// <param name="z">The shared secret.</param>
    /// <param name="blob">128 bytes.</param>
    /// <param name="policy">The policy that the guest is launched with; the blob binds it.</param>
    public static OpenedSevSession Open(ReadOnlySpan<byte> z, ReadOnlySpan<byte> blob, uint policy)
    {
        SevWrappingKeys keys = WrappingKeys(z, blob[..KeySize]);
        ReadOnlySpan<byte> wrapped = blob.Slice(WrappedKeysAt, 2 * KeySize);
        byte[] wrapMac = HMACSHA256.HashData(keys.Kik, wrapped);
        if (!CryptographicOperations.FixedTimeEquals(wrapMac, blob.Slice(WrapMacAt, MacSize)))
        {
            return new OpenedSevSession(keys, wrapMac, [], [], []);
        }
        byte[] transport = wrapped.ToArray();
        Ctr(keys.Kek, blob.Slice(WrapIvAt, KeySize), transport);
        byte[] policyMac = HMACSHA256.HashData(transport.AsSpan(KeySize), PolicyBytes(policy));
        return CryptographicOperations.FixedTimeEquals(policyMac, blob.Slice(PolicyMacAt, MacSize))
            ? new OpenedSevSession(keys, wrapMac, policyMac, transport[..KeySize], transport[KeySize..])
            : new OpenedSevSession(keys, wrapMac, policyMac, [], []);
    }

    /// <summary>Makes a session blob: the other side of <see cref="Open"/>.</summary>
    /// <param name="nonce">16 bytes.</param>
    /// <param name="iv">16 bytes.</param>
    public static byte[] Wrap(ReadOnlySpan<byte> z, ReadOnlySpan<byte> nonce, ReadOnlySpan<byte> iv, ReadOnlySpan<byte> tek, ReadOnlySpan<byte> tik, uint policy)
    {
        SevWrappingKeys keys = WrappingKeys(z, nonce);
        byte[] wrapped = [.. tek, .. tik];
        Ctr(keys.Kek, iv, wrapped);
        return [.. nonce, .. wrapped, .. iv, .. HMACSHA256.HashData(keys.Kik, wrapped), .. HMACSHA256.HashData(tik, PolicyBytes(policy))];
    }

    /// <summary>MEASURE of LAUNCH_MEASURE.</summary>
    /// <param name="version">API major, API minor, build.</param>
    /// <param name="digest">Launch digest, 32 bytes.</param>
    /// <param name="nonce">MNONCE, 16 bytes.</param>
    public static byte[] Measure(ReadOnlySpan<byte> tik, (byte Major, byte Minor, byte Build) version, uint policy, ReadOnlySpan<byte> digest, ReadOnlySpan<byte> nonce) =>
        HMACSHA256.HashData(tik, [MeasurementTag, version.Major, version.Minor, version.Build, .. PolicyBytes(policy), .. digest, .. nonce]);

    /// <summary>Opens a secret packet. False where its MAC is wrong.</summary>
    /// <param name="header">52 bytes: flags, IV, MAC.</param>
    /// <param name="body">The encrypted secret.</param>
    /// <param name="guestLength">Bytes of guest memory that it goes to.</param>
    /// <param name="measure">What LAUNCH_MEASURE gave; the packet is bound to it.</param>
    public static bool TryOpenSecret(
        ReadOnlySpan<byte> tek, ReadOnlySpan<byte> tik, ReadOnlySpan<byte> header, ReadOnlySpan<byte> body, uint guestLength, ReadOnlySpan<byte> measure, out byte[] secret) =>
        TryOpen(SecretTag, tek, tik, header, body, guestLength, measure, out secret);

    /// <summary>The guest owner's side of <see cref="TryOpenSecret"/>.</summary>
    public static (byte[] Header, byte[] Body) SealSecret(
        ReadOnlySpan<byte> tek, ReadOnlySpan<byte> tik, ReadOnlySpan<byte> iv, ReadOnlySpan<byte> secret, ReadOnlySpan<byte> measure) =>
        Seal(SecretTag, tek, tik, iv, secret, measure);

    /// <summary>Opens a packet of SEND_UPDATE_DATA. False where its MAC is wrong.</summary>
    public static bool TryOpenData(ReadOnlySpan<byte> tek, ReadOnlySpan<byte> tik, ReadOnlySpan<byte> header, ReadOnlySpan<byte> body, uint guestLength, out byte[] data) =>
        TryOpen(DataTag, tek, tik, header, body, guestLength, [], out data);

    /// <summary>Makes a packet of SEND_UPDATE_DATA.</summary>
    public static (byte[] Header, byte[] Body) SealData(ReadOnlySpan<byte> tek, ReadOnlySpan<byte> tik, ReadOnlySpan<byte> iv, ReadOnlySpan<byte> data) =>
        Seal(DataTag, tek, tik, iv, data, []);

    private static bool TryOpen(
        byte tag, ReadOnlySpan<byte> tek, ReadOnlySpan<byte> tik, ReadOnlySpan<byte> header, ReadOnlySpan<byte> body, uint guestLength, ReadOnlySpan<byte> bound, out byte[] data)
    {
        data = [];
        byte[] mac = PacketMac(tag, tik, header[..PacketMacAt], body, guestLength, bound);
        if (!CryptographicOperations.FixedTimeEquals(mac, header.Slice(PacketMacAt, MacSize)))
        {
            return false;
        }
        data = body.ToArray();
        Ctr(tek, header.Slice(PacketIvAt, KeySize), data);
        return true;
    }

    private static (byte[] Header, byte[] Body) Seal(
        byte tag, ReadOnlySpan<byte> tek, ReadOnlySpan<byte> tik, ReadOnlySpan<byte> iv, ReadOnlySpan<byte> data, ReadOnlySpan<byte> bound)
    {
        byte[] body = data.ToArray();
        Ctr(tek, iv, body);
        byte[] header = new byte[HeaderSize];
        iv.CopyTo(header.AsSpan(PacketIvAt));
        PacketMac(tag, tik, header.AsSpan(0, PacketMacAt), body, (uint)body.Length, bound).CopyTo(header, PacketMacAt);
        return (header, body);
    }

    private static byte[] PacketMac(byte tag, ReadOnlySpan<byte> tik, ReadOnlySpan<byte> flagsAndIv, ReadOnlySpan<byte> body, uint guestLength, ReadOnlySpan<byte> bound)
    {
        Span<byte> lengths = stackalloc byte[8];
        BinaryPrimitives.WriteUInt32LittleEndian(lengths, guestLength);
        BinaryPrimitives.WriteUInt32LittleEndian(lengths[4..], (uint)body.Length);
        return HMACSHA256.HashData(tik, [tag, .. flagsAndIv, .. lengths, .. body, .. bound]);
    }

    // AES-128 in counter mode, big-endian counter: its own inverse.
    private static void Ctr(ReadOnlySpan<byte> key, ReadOnlySpan<byte> iv, Span<byte> data)
    {
        using var aes = Aes.Create();
        aes.SetKey(key);
        Span<byte> counter = stackalloc byte[KeySize];
        Span<byte> stream = stackalloc byte[KeySize];
        iv.CopyTo(counter);
        for (int at = 0; at < data.Length; at += KeySize)
        {
            aes.EncryptEcb(counter, stream, PaddingMode.None);
            for (int i = at; i < Math.Min(at + KeySize, data.Length); i++)
            {
                data[i] ^= stream[i - at];
            }
            for (int i = KeySize - 1; i >= 0 && ++counter[i] == 0; i--)
            {
            }
        }
    }

    private static byte[] PolicyBytes(uint policy)
    {
        byte[] bytes = new byte[4];
        BinaryPrimitives.WriteUInt32LittleEndian(bytes, policy);
        return bytes;
    }
}

/// <summary>Keys that wrap a session, 16 bytes each.</summary>
/// <param name="MasterSecret">What the others are derived from.</param>
/// <param name="Kek">Key encryption key: TEK and TIK are encrypted with it.</param>
/// <param name="Kik">Key integrity key, of WRAP_MAC.</param>
public sealed record SevWrappingKeys(byte[] MasterSecret, byte[] Kek, byte[] Kik);

/// <summary>What firmware finds in a session.</summary>
/// <param name="WrapMac">What WRAP_MAC has to be, 32 bytes.</param>
/// <param name="PolicyMac">What POLICY_MAC has to be, 32 bytes; empty where WRAP_MAC is another.</param>
/// <param name="Tek">Transport encryption key, 16 bytes; empty where a MAC is another.</param>
/// <param name="Tik">Transport integrity key, the same.</param>
public sealed record OpenedSevSession(SevWrappingKeys Keys, byte[] WrapMac, byte[] PolicyMac, byte[] Tek, byte[] Tik)
{
    /// <summary>Both MACs hold.</summary>
    public bool Holds => Tik.Length > 0;
}
