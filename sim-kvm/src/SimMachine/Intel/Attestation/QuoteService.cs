using System.Buffers.Binary;

namespace SimMachine.Intel.Attestation;

/// <summary>Status in the shared buffer of GetQuote (GHCI).</summary>
public enum GetQuoteStatus : ulong
{
    Success = 0,
    InFlight = 0xffff_ffff_ffff_ffff,
    Error = 0x8000_0000_0000_0000,
    ServiceUnavailable = 0x8000_0000_0000_0001,
}

/// <summary>What a VMM answers TDG.VP.VMCALL&lt;GetQuote&gt; with: R10 of the guest.</summary>
public enum GetQuoteAcceptance : ulong
{
    Success = 0,
    Retry = 1,
    InvalidOperand = 0x8000_0000_0000_0000,
    AlignError = 0x8000_0000_0000_0002,
}

/// <summary>
/// The way from a guest's request to a quote outside of the module: the shared buffer of GetQuote, and the messages of a quote generation service that VMMs send its content
/// to (tdx.md 7.3, 7.4). Stateless: the caller owns the buffer and decides when it answers.
/// </summary>
public static class QuoteService
{
    /// <summary>Bytes of the shared buffer before the data.</summary>
    public const int HeaderSize = 24;

    /// <summary>Largest shared buffer, as QEMU has it.</summary>
    public const int MaxBuffer = 128 << 10;

    /// <summary>Requests that a VMM keeps in flight, as QEMU does.</summary>
    public const int MaxInFlight = 16;

    private const ulong BufferVersion = 1;
    private const int StatusOffset = 8;
    private const int InLengthOffset = 16;
    private const int OutLengthOffset = 20;

    private const int PageSize = 4096;

    // A message: length of the rest, big-endian; then header and body.
    private const int LengthSize = 4;
    private const int MessageHeaderSize = 16;
    private const int RequestBodySize = 8;
    private const ushort Major = 1;
    private const ushort Minor = 1;
    private const uint Request = 0;
    private const uint Response = 1;

    // SGX_ERROR_INVALID_PARAMETER of the SDK, which quote services answer with.
    private const uint InvalidParameter = 2;

    /// <summary>What a VMM checks before it accepts a request (QEMU's order).</summary>
    /// <param name="gpa">R12, without the shared bit.</param>
    /// <param name="size">R13.</param>
    /// <param name="buffer">The shared buffer, <paramref name="size"/> bytes; not looked at where size or alignment are wrong.</param>
    /// <param name="inFlight">Requests of this VM that are not answered yet.</param>
    public static GetQuoteAcceptance Accept(ulong gpa, ulong size, ReadOnlySpan<byte> buffer, int inFlight = 0)
    {
        if (size == 0)
        {
            return GetQuoteAcceptance.InvalidOperand;
        }
        if (gpa % PageSize != 0 || size % PageSize != 0)
        {
            return GetQuoteAcceptance.AlignError;
        }
        if (size > MaxBuffer || (ulong)buffer.Length != size)
        {
            return GetQuoteAcceptance.InvalidOperand;
        }
        if (BinaryPrimitives.ReadUInt64LittleEndian(buffer) != BufferVersion || BinaryPrimitives.ReadUInt32LittleEndian(buffer[InLengthOffset..]) > size - HeaderSize)
        {
            return GetQuoteAcceptance.InvalidOperand;
        }
        return inFlight >= MaxInFlight ? GetQuoteAcceptance.Retry : GetQuoteAcceptance.Success;
    }

    /// <summary>Marks an accepted request as in flight, as the VMM does before it returns to the guest.</summary>
    public static void MarkInFlight(Span<byte> buffer) => Write(buffer, GetQuoteStatus.InFlight, 0);

    /// <summary>Answers an accepted request: quote and length, then the status.</summary>
    /// <param name="enclave">Of the machine; null where no quoting service runs.</param>
    /// <param name="buffer">The shared buffer.</param>
    /// <param name="format">Version of the quote.</param>
    /// <param name="verdict">What the quoting enclave says of the report; GENUINE where it was not asked.</param>
    public static GetQuoteStatus Answer(QuotingEnclave? enclave, Span<byte> buffer, QuoteFormat format, out TdReportVerdict verdict)
    {
        verdict = TdReportVerdict.GENUINE;
        if (enclave is null)
        {
            return Write(buffer, GetQuoteStatus.ServiceUnavailable, 0);
        }
        uint length = BinaryPrimitives.ReadUInt32LittleEndian(buffer[InLengthOffset..]);
        if (length != TdReport.Size)
        {
            return Write(buffer, GetQuoteStatus.Error, 0);
        }
        verdict = enclave.TryQuote(TdReport.Read(buffer.Slice(HeaderSize, TdReport.Size)), format, out byte[] quote);
        if (quote.Length == 0 || quote.Length > buffer.Length - HeaderSize)
        {
            return Write(buffer, GetQuoteStatus.Error, 0);
        }
        quote.CopyTo(buffer[HeaderSize..]);
        return Write(buffer, GetQuoteStatus.Success, quote.Length);
    }

    /// <summary>The request that a VMM sends to a quote generation service, with its length in front.</summary>
    public static byte[] RequestMessage(ReadOnlySpan<byte> report)
    {
        byte[] message = Message(Request, error: 0, RequestBodySize + report.Length);
        BinaryPrimitives.WriteInt32LittleEndian(message.AsSpan(LengthSize + MessageHeaderSize), report.Length);
        report.CopyTo(message.AsSpan(LengthSize + MessageHeaderSize + RequestBodySize));
        return message;
    }

    /// <summary>The service's answer to a message, with its length in front. Whatever is wrong with the request makes an answer with an error.</summary>
    public static byte[] AnswerMessage(QuotingEnclave enclave, ReadOnlySpan<byte> message, QuoteFormat format)
    {
        if (!TryReadRequest(message, out TdReport report) || enclave.TryQuote(in report, format, out byte[] quote) != TdReportVerdict.GENUINE)
        {
            return Message(Response, InvalidParameter, RequestBodySize);
        }
        byte[] answer = Message(Response, error: 0, RequestBodySize + quote.Length);
        BinaryPrimitives.WriteInt32LittleEndian(answer.AsSpan(LengthSize + MessageHeaderSize + 4), quote.Length);
        quote.CopyTo(answer.AsSpan(LengthSize + MessageHeaderSize + RequestBodySize));
        return answer;
    }

    private static bool TryReadRequest(ReadOnlySpan<byte> message, out TdReport report)
    {
        const int size = LengthSize + MessageHeaderSize + RequestBodySize + TdReport.Size;
        report = default;
        if (message.Length != size || BinaryPrimitives.ReadInt32BigEndian(message) != size - LengthSize)
        {
            return false;
        }
        ReadOnlySpan<byte> header = message[LengthSize..];
        ReadOnlySpan<byte> body = header[MessageHeaderSize..];
        bool isRequest = BinaryPrimitives.ReadUInt16LittleEndian(header) == Major
            && BinaryPrimitives.ReadUInt16LittleEndian(header[2..]) <= Minor
            && BinaryPrimitives.ReadUInt32LittleEndian(header[4..]) == Request
            && BinaryPrimitives.ReadInt32LittleEndian(header[8..]) == size - LengthSize
            && BinaryPrimitives.ReadUInt32LittleEndian(header[12..]) == 0
            && BinaryPrimitives.ReadInt32LittleEndian(body) == TdReport.Size
            && BinaryPrimitives.ReadUInt32LittleEndian(body[4..]) == 0;
        if (isRequest)
        {
            report = TdReport.Read(body[RequestBodySize..]);
        }
        return isRequest;
    }

    private static byte[] Message(uint type, uint error, int bodySize)
    {
        byte[] message = new byte[LengthSize + MessageHeaderSize + bodySize];
        BinaryPrimitives.WriteInt32BigEndian(message, MessageHeaderSize + bodySize);
        Span<byte> header = message.AsSpan(LengthSize);
        BinaryPrimitives.WriteUInt16LittleEndian(header, Major);
        BinaryPrimitives.WriteUInt16LittleEndian(header[2..], Minor);
        BinaryPrimitives.WriteUInt32LittleEndian(header[4..], type);
        BinaryPrimitives.WriteInt32LittleEndian(header[8..], MessageHeaderSize + bodySize);
        BinaryPrimitives.WriteUInt32LittleEndian(header[12..], error);
        return message;
    }

    private static GetQuoteStatus Write(Span<byte> buffer, GetQuoteStatus status, int outLength)
    {
        BinaryPrimitives.WriteInt32LittleEndian(buffer[OutLengthOffset..], outLength);
        BinaryPrimitives.WriteUInt64LittleEndian(buffer[StatusOffset..], (ulong)status);
        return status;
    }
}
