using System.Buffers.Binary;
using System.Security.Cryptography;
using System.Text;

namespace VmmService.Client.Attestation;

/// <summary>
/// A TD quote of version 4 or 5, read where it lies: every property is a view of <see cref="Bytes"/>. Reading checks the structure only, that is every length and type; whether the
/// quote is genuine takes the chain, the signatures and a trusted root.
/// </summary>
/// <remarks>Header, body (with a descriptor in front in version 5), length of the signature data, signature data. What stands behind is ignored, as verifiers do.</remarks>
public sealed class TdxQuote
{
    private const int HeaderSize = 48;
    private const int DescriptorSize = 6;
    private const int BodySize10 = 584;
    private const int BodySize15 = 648;
    private const int SignatureSize = 64;
    private const int QeReportSize = 384;

    private const ushort EcdsaP256 = 2;
    private const uint TdxTee = 0x81;
    private const ushort QeReportCertification = 6;
    private const ushort PckChainCertification = 5;

    private readonly int _bodyOffset;
    private readonly int _bodySize;
    private readonly int _signatureData;
    private readonly int _authentication;
    private readonly int _authenticationSize;
    private readonly int _chain;
    private readonly int _chainSize;

    private TdxQuote(ReadOnlyMemory<byte> bytes)
    {
        Bytes = bytes;
        Need(0, HeaderSize, "header");
        if (Version is not (4 or 5))
            throw new FormatException($"quote version {Version} is not known; 4 and 5 are");
        Expect(EcdsaP256, U16(2), "attestation key type");
        Expect(TdxTee, U32(4), "TEE type");

        _bodyOffset = HeaderSize;
        _bodySize = BodySize10;
        if (Version == 5)
        {
            Need(HeaderSize, DescriptorSize, "body descriptor");
            _bodyOffset += DescriptorSize;
            _bodySize = BodyType switch
            {
                2 => BodySize10,
                3 => BodySize15,
                var other => throw new FormatException($"body type {other} is not a TD's; 2 and 3 are"),
            };
            Expect((uint)_bodySize, U32(HeaderSize + 2), "body size");
        }

        Need(_bodyOffset, _bodySize, "body");
        _signatureData = _bodyOffset + _bodySize + sizeof(uint);
        Need(_signatureData - sizeof(uint), sizeof(uint), "length of the signature data");
        int signatureSize = Length(U32(_signatureData - sizeof(uint)), _signatureData, "signature data");

        // Signature, key; then the certification of the key, which has to end where the signature data does.
        int certification = _signatureData + (2 * SignatureSize);
        int header = sizeof(ushort) + sizeof(uint);
        Need(certification, header, "certification data", signatureSize - (2 * SignatureSize));
        Expect(QeReportCertification, U16(certification), "type of the certification data");
        Expect((uint)(signatureSize - (2 * SignatureSize) - header), U32(certification + 2), "size of the certification data");

        int end = _signatureData + signatureSize;
        QeReportOffset = certification + header;
        int authenticationLength = QeReportOffset + QeReportSize + SignatureSize;
        Need(QeReportOffset, QeReportSize + SignatureSize + sizeof(ushort), "report of the quoting enclave", end - QeReportOffset);
        _authentication = authenticationLength + sizeof(ushort);
        _authenticationSize = U16(authenticationLength);
        Need(_authentication, _authenticationSize + header, "authentication data", end - _authentication);
        int inner = _authentication + _authenticationSize;
        Expect(PckChainCertification, U16(inner), "type of the inner certification data");
        _chain = inner + header;
        _chainSize = end - _chain;
        Expect((uint)_chainSize, U32(inner + 2), "size of the inner certification data");
        End = end;
    }

    /// <summary>The quote as it travels, with whatever stands behind it.</summary>
    public ReadOnlyMemory<byte> Bytes { get; }

    /// <summary>Bytes of the quote itself.</summary>
    public int End { get; }

    /// <summary>4 or 5.</summary>
    public ushort Version => U16(0);

    public ReadOnlyMemory<byte> QeVendorId => Bytes.Slice(12, 16);

    /// <summary>20 bytes; the first 16 are the quoting enclave's id on its platform.</summary>
    public ReadOnlyMemory<byte> UserData => Bytes.Slice(28, 20);

    /// <summary>2 for the body of TDX 1.0, 3 for that of 1.5.</summary>
    public ushort BodyType => Version == 4 ? (ushort)2 : U16(HeaderSize);

    /// <summary>What is said of the TD.</summary>
    public ReadOnlyMemory<byte> Body => Bytes.Slice(_bodyOffset, _bodySize);

    /// <summary>16 bytes.</summary>
    public ReadOnlyMemory<byte> TeeTcbSvn => Body[..16];

    /// <summary>Measurement of the TDX module, 48 bytes.</summary>
    public ReadOnlyMemory<byte> Mrseam => Body.Slice(16, 48);

    /// <summary>48 bytes; zeros for a production module.</summary>
    public ReadOnlyMemory<byte> Mrsignerseam => Body.Slice(64, 48);

    public ulong SeamAttributes => U64(_bodyOffset + 112);

    public ulong TdAttributes => U64(_bodyOffset + 120);

    /// <summary>The host may look into the TD.</summary>
    public bool DebugAllowed => (TdAttributes & 1) != 0;

    public ulong Xfam => U64(_bodyOffset + 128);

    /// <summary>48 bytes, as are the next three.</summary>
    public ReadOnlyMemory<byte> Mrtd => Body.Slice(136, 48);

    public ReadOnlyMemory<byte> Mrconfigid => Body.Slice(184, 48);

    public ReadOnlyMemory<byte> Mrowner => Body.Slice(232, 48);

    public ReadOnlyMemory<byte> Mrownerconfig => Body.Slice(280, 48);

    /// <summary>64 bytes that the guest chose.</summary>
    public ReadOnlyMemory<byte> ReportData => Body.Slice(520, 64);

    // A bare null would be an array's, and so an empty memory.

    /// <summary>16 bytes; null before body type 3.</summary>
    public ReadOnlyMemory<byte>? TeeTcbSvn2 => BodyType == 3 ? Body.Slice(584, 16) : default(ReadOnlyMemory<byte>?);

    /// <summary>48 bytes; null before body type 3.</summary>
    public ReadOnlyMemory<byte>? Mrservicetd => BodyType == 3 ? Body.Slice(600, 48) : default(ReadOnlyMemory<byte>?);

    /// <summary>What the attestation key signs.</summary>
    public ReadOnlyMemory<byte> Signed => Bytes[..(_bodyOffset + _bodySize)];

    /// <summary>r and s, 64 bytes, big-endian: by the attestation key.</summary>
    public ReadOnlyMemory<byte> Signature => Bytes.Slice(_signatureData, SignatureSize);

    /// <summary>x and y, 64 bytes, big-endian.</summary>
    public ReadOnlyMemory<byte> AttestationKey => Bytes.Slice(_signatureData + SignatureSize, SignatureSize);

    /// <summary>SGX REPORT body of the quoting enclave, 384 bytes.</summary>
    public ReadOnlyMemory<byte> QeReport => Bytes.Slice(QeReportOffset, QeReportSize);

    /// <summary>r and s, 64 bytes, big-endian: by the PCK key, over <see cref="QeReport"/>.</summary>
    public ReadOnlyMemory<byte> QeReportSignature => Bytes.Slice(QeReportOffset + QeReportSize, SignatureSize);

    /// <summary>MRENCLAVE of the quoting enclave, 32 bytes.</summary>
    public ReadOnlyMemory<byte> QeMrenclave => QeReport.Slice(64, 32);

    /// <summary>MRSIGNER of the quoting enclave, 32 bytes.</summary>
    public ReadOnlyMemory<byte> QeMrsigner => QeReport.Slice(128, 32);

    public ushort QeIsvProdId => U16(QeReportOffset + 256);

    public ushort QeIsvSvn => U16(QeReportOffset + 258);

    /// <summary>64 bytes: SHA-256 of attestation key and authentication data, then zeros.</summary>
    public ReadOnlyMemory<byte> QeReportData => QeReport.Slice(320, 64);

    public ReadOnlyMemory<byte> QeAuthenticationData => Bytes.Slice(_authentication, _authenticationSize);

    /// <summary>PEM: leaf, intermediate, root; a NUL may follow.</summary>
    public ReadOnlyMemory<byte> PckChain => Bytes.Slice(_chain, _chainSize);

    /// <summary>The chain as text, without the NUL.</summary>
    public string PckChainPem => Encoding.ASCII.GetString(PckChain.Span).TrimEnd('\0');

    /// <summary>Whether the quoting enclave's report names the key that signs.</summary>
    public bool IsKeyBound =>
        SHA256.HashData([.. AttestationKey.Span, .. QeAuthenticationData.Span]).AsSpan().SequenceEqual(QeReportData.Span[..32])
        && QeReportData.Span[32..].IndexOfAnyExcept((byte)0) < 0;

    /// <summary>The leaf certificate says that it is simulated.</summary>
    public bool IsSimulated
    {
        get
        {
            try
            {
                using var leaf = System.Security.Cryptography.X509Certificates.X509Certificate2.CreateFromPem(PckChainPem);
                return leaf.Subject.Contains("SIMULATED", StringComparison.Ordinal);
            }
            catch (CryptographicException)
            {
                return false;
            }
        }
    }

    private int QeReportOffset { get; }

    /// <summary>A runtime measurement register, 48 bytes.</summary>
    /// <param name="index">0 to 3.</param>
    public ReadOnlyMemory<byte> Rtmr(int index)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(index);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(index, 3);
        return Body.Slice(328 + (48 * index), 48);
    }

    /// <summary>Reads a quote.</summary>
    /// <exception cref="FormatException">It is not of a known version, or a length or type in it does not fit; the message says which.</exception>
    public static TdxQuote Parse(ReadOnlyMemory<byte> bytes) => new(bytes);

    // Lengths come from anyone: what is used is checked against what is there, in arithmetic that does not wrap.
    private void Need(int offset, int size, string what) => Need(offset, size, what, Bytes.Length - offset);

    private static void Need(int offset, int size, string what, int left)
    {
        if (left < size)
            throw new FormatException($"the quote ends in its {what}: {size} bytes are needed at offset 0x{offset:x}, and {Math.Max(left, 0)} are there");
    }

    private int Length(uint size, int offset, string what) => size <= (uint)(Bytes.Length - offset)
        ? (int)size
        : throw new FormatException($"the quote ends in its {what}: {size} bytes are stated at offset 0x{offset:x}, and {Bytes.Length - offset} are there");

    private static void Expect(uint expected, uint found, string what)
    {
        if (found != expected)
            throw new FormatException($"the {what} of the quote is 0x{found:x}, and has to be 0x{expected:x}");
    }

    private ushort U16(int offset) => BinaryPrimitives.ReadUInt16LittleEndian(Bytes.Span[offset..]);

    private uint U32(int offset) => BinaryPrimitives.ReadUInt32LittleEndian(Bytes.Span[offset..]);

    private ulong U64(int offset) => BinaryPrimitives.ReadUInt64LittleEndian(Bytes.Span[offset..]);
}
