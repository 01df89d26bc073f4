using System.Buffers.Binary;
using System.Security.Cryptography;

namespace VmmService.Client.Attestation;

/// <summary>
/// The guest's end of its conversation with firmware, for guest programs that make requests through the GHCB: seals requests into pages, opens the responses,
/// and keeps the count. One object for each VMPCK that is used.
/// </summary>
/// <remarks>
/// A message is a header of 0x60 bytes and an AES-256-GCM ciphertext; the sequence number is the nonce. Firmware accepts one more than the last response had, so a request that
/// was lost must be sent again as it is, and never another one under the same number.
/// </remarks>
/// <param name="vmpck">The key, 32 bytes, from the guest's secrets page at 0x20 + 32 times its number.</param>
/// <param name="vmpckIndex">Its number, 0 to 3.</param>
/// <param name="count">The sequence number of the last response; 0 for a guest that asked nothing yet.</param>
public sealed class GuestMessages(ReadOnlyMemory<byte> vmpck, byte vmpckIndex = 0, ulong count = 0)
{
    /// <summary>Bytes of a message page.</summary>
    public const int PageSize = 4096;

    public const byte KeyRequest = 3;
    public const byte ReportRequest = 5;
    public const byte TscInfoRequest = 17;

    private const int HeaderSize = 0x60;
    private const int AuthenticatedOffset = 0x30;
    private const int SequenceOffset = 0x20;
    private const int TypeOffset = 0x34;
    private const int SizeOffset = 0x36;
    private const int TagSize = 16;

    /// <summary>The sequence number of the last response.</summary>
    public ulong Count { get; private set; } = count;

    /// <summary>Seals MSG_REPORT_REQ.</summary>
    /// <param name="reportData">64 bytes.</param>
    /// <param name="vmpl">At least the VMPCK's number.</param>
    /// <param name="keySelect">0 VLEK if loaded, 1 VCEK, 2 VLEK.</param>
    public byte[] SealReportRequest(ReadOnlySpan<byte> reportData, uint vmpl = 0, uint keySelect = 0)
    {
        byte[] payload = new byte[96];
        reportData.CopyTo(payload.AsSpan(0, 64));
        BinaryPrimitives.WriteUInt32LittleEndian(payload.AsSpan(0x40), vmpl);
        BinaryPrimitives.WriteUInt32LittleEndian(payload.AsSpan(0x44), keySelect);
        return Seal(ReportRequest, payload);
    }

    /// <summary>Seals a request into a page. The count goes up with the response, not before.</summary>
    /// <param name="type">Type of the message.</param>
    /// <param name="payload">At most 4000 bytes.</param>
    public byte[] Seal(byte type, ReadOnlySpan<byte> payload)
    {
        byte[] page = new byte[PageSize];
        BinaryPrimitives.WriteUInt64LittleEndian(page.AsSpan(SequenceOffset), Count + 1);
        page[AuthenticatedOffset] = 1; // AES-256-GCM
        page[0x31] = 1; // header version
        BinaryPrimitives.WriteUInt16LittleEndian(page.AsSpan(0x32), HeaderSize);
        page[TypeOffset] = type;
        page[0x35] = 1; // message version
        BinaryPrimitives.WriteUInt16LittleEndian(page.AsSpan(SizeOffset), (ushort)payload.Length);
        page[0x3C] = vmpckIndex;
        using var aes = new AesGcm(vmpck.Span, TagSize);
        aes.Encrypt(Nonce(Count + 1), payload, page.AsSpan(HeaderSize, payload.Length), page.AsSpan(0, TagSize), page.AsSpan(AuthenticatedOffset, HeaderSize - AuthenticatedOffset));
        return page;
    }

    /// <summary>Opens the response to the last request and counts it.</summary>
    /// <param name="page">4096 bytes.</param>
    /// <param name="requestType">Type of the request; a response has the next number.</param>
    /// <returns>The payload; its first four bytes are a status.</returns>
    /// <exception cref="CryptographicException">It is not firmware's answer to that request. A guest must then give the key up.</exception>
    public byte[] Open(ReadOnlySpan<byte> page, byte requestType)
    {
        ulong sequence = page.Length == PageSize ? BinaryPrimitives.ReadUInt64LittleEndian(page[SequenceOffset..]) : 0;
        int size = page.Length == PageSize ? BinaryPrimitives.ReadUInt16LittleEndian(page[SizeOffset..]) : int.MaxValue;
        if (size > PageSize - HeaderSize || sequence != Count + 2 || page[TypeOffset] != requestType + 1)
        {
            throw new CryptographicException("the page does not hold firmware's response to the last request");
        }
        byte[] payload = new byte[size];
        using var aes = new AesGcm(vmpck.Span, TagSize);
        aes.Decrypt(Nonce(sequence), page.Slice(HeaderSize, size), page[..TagSize], payload, page[AuthenticatedOffset..HeaderSize]);
        Count = sequence;
        return payload;
    }

    private static byte[] Nonce(ulong sequence)
    {
        byte[] nonce = new byte[12];
        BinaryPrimitives.WriteUInt64LittleEndian(nonce, sequence);
        return nonce;
    }
}
