using System.Buffers.Binary;

namespace VmmService.Server.Verification.Intel;

/// <summary>
/// A TD quote of version 4 or 5, taken apart (Intel TDX DCAP quote format): header, body, signature data. Every length and type in it comes from outside and is checked against what is
/// there; what stands behind the signature data is no part of the quote.
/// </summary>
internal sealed class QuoteParts
{
    private const ushort EcdsaP256 = 2;
    private const uint TdxTee = 0x81;
    private const ushort QeReportCertification = 6;
    private const ushort PckChainCertification = 5;

    // With and without what TDX 1.5 adds.
    private const uint BodySizeOf10 = 584;
    private const uint BodySizeOf15 = 648;

    private static readonly byte[] s_intelQeVendor = Convert.FromHexString("939a7233f79c4ca9940a0db3957f0607");

    private QuoteParts(Reader reader)
    {
        ushort version = reader.U16("version");
        reader.Demand(version is 4 or 5, $"its version is {version}, not 4 or 5");
        reader.Expect("attestation key type", EcdsaP256, reader.U16("attestation key type"));
        reader.Expect("TEE type", TdxTee, reader.U32("TEE type"));
        reader.Take(4, "header");
        ReadOnlyMemory<byte> vendor = reader.Take(16, "QE vendor id");
        reader.Demand(vendor.Span.SequenceEqual(s_intelQeVendor), $"its QE vendor id is {Hex(vendor)}, not {Hex(s_intelQeVendor)}");
        reader.Take(20, "user data");
        Body = reader.Take(version == 5 ? DescribedBodySize(reader) : BodySizeOf10, "body");
        Signed = reader.Passed;

        ReadOnlyMemory<byte> signatureData = reader.Take(reader.U32("length of the signature data"), "signature data");
        reader.Enter(signatureData, "signature data");
        Signature = reader.Take(64, "signature");
        AttestationKey = reader.Take(64, "attestation key");
        reader.Expect("type of the certification data", QeReportCertification, reader.U16("type of the certification data"));
        reader.Expect("size of the certification data", (uint)reader.LeftBehind(sizeof(uint)), reader.U32("size of the certification data"));
        QeReport = reader.Take(384, "report of the quoting enclave");
        QeReportSignature = reader.Take(64, "signature of the quoting enclave's report");
        AuthenticationData = reader.Take(reader.U16("size of the authentication data"), "authentication data");
        reader.Expect("type of the inner certification data", PckChainCertification, reader.U16("type of the inner certification data"));
        reader.Expect("size of the inner certification data", (uint)reader.LeftBehind(sizeof(uint)), reader.U32("size of the inner certification data"));
        PckChain = reader.Take((uint)reader.LeftBehind(0), "PCK chain");
    }

    /// <summary>What is said of the TD and its module.</summary>
    public ReadOnlyMemory<byte> Body { get; }

    /// <summary>What the attestation key signs: everything in front of the signature data's length.</summary>
    public ReadOnlyMemory<byte> Signed { get; }

    /// <summary>r and s, 64 bytes, big-endian.</summary>
    public ReadOnlyMemory<byte> Signature { get; }

    /// <summary>x and y, 64 bytes, big-endian.</summary>
    public ReadOnlyMemory<byte> AttestationKey { get; }

    /// <summary>SGX REPORT body, 384 bytes.</summary>
    public ReadOnlyMemory<byte> QeReport { get; }

    /// <summary>r and s, by the PCK key.</summary>
    public ReadOnlyMemory<byte> QeReportSignature { get; }

    public ReadOnlyMemory<byte> AuthenticationData { get; }

    /// <summary>PEM.</summary>
    public ReadOnlyMemory<byte> PckChain { get; }

    public ReadOnlySpan<byte> TeeTcbSvn => Body.Span[..16];

    public ReadOnlySpan<byte> MrSignerSeam => Body.Span.Slice(64, 48);

    public ReadOnlySpan<byte> SeamAttributes => Body.Span.Slice(112, 8);

    public ulong TdAttributes => BinaryPrimitives.ReadUInt64LittleEndian(Body.Span[120..]);

    public ReadOnlySpan<byte> MrTd => Body.Span.Slice(136, 48);

    public ReadOnlySpan<byte> ReportData => Body.Span.Slice(520, 64);

    public ReadOnlySpan<byte> QeMiscSelect => QeReport.Span.Slice(16, 4);

    public ReadOnlySpan<byte> QeAttributes => QeReport.Span.Slice(48, 16);

    public ReadOnlySpan<byte> QeMrSigner => QeReport.Span.Slice(128, 32);

    public ushort QeIsvProdId => BinaryPrimitives.ReadUInt16LittleEndian(QeReport.Span[256..]);

    public ushort QeIsvSvn => BinaryPrimitives.ReadUInt16LittleEndian(QeReport.Span[258..]);

    public ReadOnlySpan<byte> QeReportData => QeReport.Span.Slice(320, 64);

    public ReadOnlySpan<byte> Rtmr(int index) => Body.Span.Slice(328 + (48 * index), 48);

    /// <summary>Null for what is no such quote.</summary>
    /// <param name="quote">Any bytes.</param>
    /// <param name="problem">What is wrong with the first part that is; null where nothing is.</param>
    public static QuoteParts? Read(ReadOnlyMemory<byte> quote, out string? problem)
    {
        var reader = new Reader(quote);
        var parts = new QuoteParts(reader);
        problem = reader.Problem;
        return problem is null ? parts : null;
    }

    // Version 5 says which body it has.
    private static uint DescribedBodySize(Reader reader)
    {
        ushort type = reader.U16("body type");
        reader.Demand(type is 2 or 3, $"its body type is {type}, not a TD's 2 or 3");
        uint size = type == 3 ? BodySizeOf15 : BodySizeOf10;
        reader.Expect("body size", size, reader.U32("body size"));
        return size;
    }

    private static string Hex(ReadOnlyMemory<byte> bytes) => Convert.ToHexStringLower(bytes.Span);

    /// <summary>Takes part after part. The first problem stays, and what is taken after it is empty.</summary>
    private sealed class Reader(ReadOnlyMemory<byte> quote)
    {
        private ReadOnlyMemory<byte> _within = quote;
        private string _name = "quote";
        private int _at;

        public string? Problem { get; private set; }

        public ReadOnlyMemory<byte> Passed => _within[.._at];

        public void Enter(ReadOnlyMemory<byte> part, string name) => (_within, _name, _at) = (part, name, 0);

        /// <summary>Bytes that there are behind the next ones.</summary>
        public int LeftBehind(int next) => Math.Max(_within.Length - _at - next, 0);

        public void Demand(bool holds, string problem)
        {
            if (!holds)
            {
                Problem ??= problem;
            }
        }

        public void Expect(string what, uint expected, uint found) => Demand(found == expected, $"its {what} is {found} (0x{found:x}), not {expected} (0x{expected:x})");

        public ReadOnlyMemory<byte> Take(uint size, string what)
        {
            Demand(size <= (uint)(_within.Length - _at), $"its {_name} ends in the {what}, which has {size} bytes from offset 0x{_at:x}: {_within.Length - _at} are there");
            if (Problem is not null)
            {
                return default;
            }
            _at += (int)size;
            return _within.Slice(_at - (int)size, (int)size);
        }

        public ushort U16(string what) => Take(sizeof(ushort), what) is { Length: sizeof(ushort) } bytes ? BinaryPrimitives.ReadUInt16LittleEndian(bytes.Span) : (ushort)0;

        public uint U32(string what) => Take(sizeof(uint), what) is { Length: sizeof(uint) } bytes ? BinaryPrimitives.ReadUInt32LittleEndian(bytes.Span) : 0;
    }
}
