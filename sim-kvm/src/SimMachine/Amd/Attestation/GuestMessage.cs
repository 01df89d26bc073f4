using System.Buffers.Binary;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Security.Cryptography;

namespace SimMachine.Amd.Attestation;

/// <summary>Types of guest messages; a response has the number after its request's.</summary>
public enum GuestMessageType : byte
{
    CPUID_REQ = 1,
    CPUID_RSP = 2,
    KEY_REQ = 3,
    KEY_RSP = 4,
    REPORT_REQ = 5,
    REPORT_RSP = 6,
    EXPORT_REQ = 7,
    EXPORT_RSP = 8,
    IMPORT_REQ = 9,
    IMPORT_RSP = 10,
    ABSORB_REQ = 11,
    ABSORB_RSP = 12,
    VMRK_REQ = 13,
    VMRK_RSP = 14,
    TSC_INFO_REQ = 17,
    TSC_INFO_RSP = 18,
}

/// <summary>The head of a guest message (Linux struct snp_guest_msg_hdr). Everything from <see cref="algo"/> on is authenticated.</summary>
[StructLayout(LayoutKind.Explicit, Size = Size)]
public struct snp_guest_msg_hdr
{
    public const int Size = 0x60;

    [FieldOffset(0x00)] public Bytes32 authtag;
    [FieldOffset(0x20)] public ulong msg_seqno;
    [FieldOffset(0x28)] public ulong rsvd1;
    [FieldOffset(0x30)] public byte algo;
    [FieldOffset(0x31)] public byte hdr_version;
    [FieldOffset(0x32)] public ushort hdr_sz;
    [FieldOffset(0x34)] public byte msg_type;
    [FieldOffset(0x35)] public byte msg_version;
    [FieldOffset(0x36)] public ushort msg_sz;
    [FieldOffset(0x38)] public uint rsvd2;
    [FieldOffset(0x3C)] public byte msg_vmpck;
    [FieldOffset(0x3D)] public Reserved35 rsvd3;

    [InlineArray(35)]
    public struct Reserved35
    {
        private byte _first;
    }
}

/// <summary>
/// The envelope of messages between a guest and firmware: a page with a header and an AES-256-GCM ciphertext (snp.md 11.1). Both sides use it; what firmware
/// checks and answers is in <c>Psp.GuestMessages.cs</c>.
/// </summary>
public static class GuestMessage
{
    public const int PageSize = 4096;

    /// <summary>Bytes of the longest payload.</summary>
    public const int MaxPayload = PageSize - snp_guest_msg_hdr.Size;

    /// <summary>AES-256-GCM.</summary>
    public const byte Aes256Gcm = 1;

    public const byte HeaderVersion = 1;
    public const byte MessageVersion = 1;

    private const int TagSize = 16;
    private const int AuthenticatedOffset = 0x30;

    /// <summary>Seals a message into a page.</summary>
    /// <param name="page">4096 bytes; what they held is overwritten.</param>
    /// <param name="vmpck">The key, 32 bytes.</param>
    /// <param name="vmpckIndex">Its number, 0 to 3.</param>
    /// <param name="sequence">Never used before with this key.</param>
    /// <param name="type">What the payload is.</param>
    /// <param name="payload">At most <see cref="MaxPayload"/> bytes.</param>
    public static void Seal(
        Span<byte> page, ReadOnlySpan<byte> vmpck, byte vmpckIndex, ulong sequence, GuestMessageType type, ReadOnlySpan<byte> payload)
    {
        if (page.Length != PageSize || payload.Length > MaxPayload)
        {
            throw new ArgumentException($"a message is sealed into {PageSize} bytes and has at most {MaxPayload}");
        }
        page.Clear();
        MemoryMarshal.Write(page, new snp_guest_msg_hdr
        {
            msg_seqno = sequence,
            algo = Aes256Gcm,
            hdr_version = HeaderVersion,
            hdr_sz = snp_guest_msg_hdr.Size,
            msg_type = (byte)type,
            msg_version = MessageVersion,
            msg_sz = (ushort)payload.Length,
            msg_vmpck = vmpckIndex,
        });
        using var aes = new AesGcm(vmpck, TagSize);
        aes.Encrypt(Nonce(sequence), payload, page.Slice(snp_guest_msg_hdr.Size, payload.Length), page[..TagSize], Authenticated(page));
    }

    /// <summary>Opens a sealed message. Null where it is too long for a page, or was not sealed with this key as it stands.</summary>
    public static byte[]? Open(ReadOnlySpan<byte> page, ReadOnlySpan<byte> vmpck)
    {
        if (page.Length != PageSize)
        {
            throw new ArgumentException($"a message is a page of {PageSize} bytes", nameof(page));
        }
        var header = MemoryMarshal.Read<snp_guest_msg_hdr>(page);
        if (header.msg_sz > MaxPayload)
        {
            return null;
        }
        byte[] payload = new byte[header.msg_sz];
        using var aes = new AesGcm(vmpck, TagSize);
        try
        {
            aes.Decrypt(Nonce(header.msg_seqno), page.Slice(snp_guest_msg_hdr.Size, payload.Length), page[..TagSize], payload, Authenticated(page));
            return payload;
        }
        catch (AuthenticationTagMismatchException)
        {
            return null;
        }
    }

    private static ReadOnlySpan<byte> Authenticated(ReadOnlySpan<byte> page) => page[AuthenticatedOffset..snp_guest_msg_hdr.Size];

    // The sequence number, then four zero bytes.
    private static byte[] Nonce(ulong sequence)
    {
        byte[] nonce = new byte[12];
        BinaryPrimitives.WriteUInt64LittleEndian(nonce, sequence);
        return nonce;
    }
}
