using System.Buffers.Binary;
using System.Runtime.InteropServices;
using System.Security.Cryptography;
using System.Text;

namespace SimMachine.Intel.Attestation;

/// <summary>Version of a quote, and of the body in it.</summary>
public enum QuoteFormat
{
    /// <summary>Version 4: the body of TDX 1.0.</summary>
    V4,

    /// <summary>Version 5, body type 2: the same body behind a descriptor.</summary>
    V5Tdx10,

    /// <summary>Version 5, body type 3: with TEE_TCB_SVN2 and MRSERVICETD.</summary>
    V5Tdx15,
}

/// <summary>
/// The parts of a quote; <see cref="Build"/> lays them out and signs (tdx.md 7.5, 7.6). Two keys sign: the attestation key what is said of the TD, the PCK key what is
/// said of the quoting enclave, whose report names the attestation key. Parts that do not belong together make a quote that a verifier must refuse.
/// </summary>
public sealed record TdQuote
{
    /// <summary>QE vendor id in the header: Intel's, which parsers insist on.</summary>
    public static readonly Guid VendorId = new("33729a93-9cf7-a94c-940a-0db3957f0607");

    private const ushort EcdsaP256 = 2;
    private const uint TdxTee = 0x81;
    private const ushort QeReportCertification = 6;
    private const ushort PckChainCertification = 5;
    private const int HeaderSize = 48;
    private const int DescriptorSize = 6;

    public required QuoteFormat Format { get; init; }

    /// <summary>Id of the quoting enclave on this platform, 16 bytes.</summary>
    public required ReadOnlyMemory<byte> QeId { get; init; }

    /// <summary>What is said of the TD: <see cref="BodyOf"/> of its report.</summary>
    public required ReadOnlyMemory<byte> Body { get; init; }

    public required EcdsaP256Key AttestationKey { get; init; }

    /// <summary>What the enclave says of itself.</summary>
    public required SgxReportBody QeReport { get; init; }

    public required ReadOnlyMemory<byte> AuthenticationData { get; init; }

    public required EcdsaP256Key PckKey { get; init; }

    /// <summary>Leaf, intermediate, root; DER.</summary>
    public required IReadOnlyList<ReadOnlyMemory<byte>> Chain { get; init; }

    /// <summary>Bytes that the attestation key signs.</summary>
    public static int SignedSize(QuoteFormat format) => HeaderSize + (format == QuoteFormat.V4 ? 0 : DescriptorSize) + BodySize(format);

    /// <summary>Bytes of a body.</summary>
    public static int BodySize(QuoteFormat format) => format == QuoteFormat.V5Tdx15 ? 648 : 584;

    /// <summary>The body of a quote over a report.</summary>
    public static byte[] BodyOf(in TdReport report, QuoteFormat format)
    {
        ref readonly TeeTcbInfo module = ref report.TEE_TCB_INFO;
        ref readonly TdInfo td = ref report.TDINFO;
        byte[] body = new byte[BodySize(format)];
        ((ReadOnlySpan<byte>)module.TEE_TCB_SVN).CopyTo(body);
        ((ReadOnlySpan<byte>)module.MRSEAM).CopyTo(body.AsSpan(16));
        ((ReadOnlySpan<byte>)module.MRSIGNERSEAM).CopyTo(body.AsSpan(64));
        BinaryPrimitives.WriteUInt64LittleEndian(body.AsSpan(112), module.ATTRIBUTES);
        // ATTRIBUTES to RTMR3 stand in TDINFO as they do here.
        const int tdSize = 400;
        MemoryMarshal.AsBytes(new ReadOnlySpan<TdInfo>(in td))[..tdSize].CopyTo(body.AsSpan(120));
        ((ReadOnlySpan<byte>)report.REPORTMACSTRUCT.REPORTDATA).CopyTo(body.AsSpan(120 + tdSize));
        if (format == QuoteFormat.V5Tdx15)
        {
            ((ReadOnlySpan<byte>)module.TEE_TCB_SVN2).CopyTo(body.AsSpan(584));
            ((ReadOnlySpan<byte>)td.SERVTD_HASH).CopyTo(body.AsSpan(600));
        }
        return body;
    }

    /// <summary>Signs and lays out.</summary>
    public byte[] Build()
    {
        byte[] signed = Signed();
        byte[] qeReport = QeReport.ToArray();
        byte[] pem = Encoding.ASCII.GetBytes(string.Concat(Chain.Select(each => PemEncoding.WriteString("CERTIFICATE", each.Span) + "\n")) + "\0");

        var certification = new Writer();
        certification.Bytes(qeReport).Bytes(PckKey.Sign(qeReport)).UInt16((ushort)AuthenticationData.Length).Bytes(AuthenticationData.Span);
        certification.UInt16(PckChainCertification).UInt32((uint)pem.Length).Bytes(pem);

        var signature = new Writer();
        signature.Bytes(AttestationKey.Sign(signed)).Bytes(AttestationKey.PublicBytes);
        signature.UInt16(QeReportCertification).UInt32((uint)certification.Length).Bytes(certification.ToArray());

        return new Writer().Bytes(signed).UInt32((uint)signature.Length).Bytes(signature.ToArray()).ToArray();
    }

    private byte[] Signed()
    {
        var writer = new Writer();
        writer.UInt16((ushort)(Format == QuoteFormat.V4 ? 4 : 5)).UInt16(EcdsaP256).UInt32(TdxTee).UInt32(0);
        writer.Bytes(VendorId.ToByteArray()).Bytes(QeId.Span).UInt32(0);
        if (Format != QuoteFormat.V4)
        {
            writer.UInt16((ushort)(Format == QuoteFormat.V5Tdx10 ? 2 : 3)).UInt32((uint)Body.Length);
        }
        return writer.Bytes(Body.Span).ToArray();
    }

    private sealed class Writer
    {
        private readonly List<byte> _bytes = [];

        public int Length => _bytes.Count;

        public Writer Bytes(ReadOnlySpan<byte> bytes)
        {
            _bytes.AddRange(bytes);
            return this;
        }

        public Writer UInt16(ushort value) => Bytes([(byte)value, (byte)(value >> 8)]);

        public Writer UInt32(uint value) => UInt16((ushort)value).UInt16((ushort)(value >> 16));

        public byte[] ToArray() => [.. _bytes];
    }
}
