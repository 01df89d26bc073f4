using System.Runtime.InteropServices;
using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;
using System.Text.Json;
using SimMachine.Amd;
using SimMachine.Amd.Attestation;
using SimMachine.Tests.Measurement;
using VmmService.IntegrationTests.Attestation;
using Xunit;

namespace SimMachine.Tests.Attestation;

/// <summary>Layouts of attestation against the vectors, some of which are from real hardware: reports, TCB versions, certificate tables.</summary>
public sealed class LayoutTests
{
    public static TheoryData<string> Tcbs => new(SnpVectors.IdsOf("tcb-version"));

    public static TheoryData<string> Tables => new(SnpVectors.IdsOf("certificate-table"));

    // snp.md 11.2.
    public static TheoryData<string, int> Offsets => new()
    {
        { "VERSION", 0 }, { "GUEST_SVN", 4 }, { "POLICY", 8 }, { "FAMILY_ID", 0x10 }, { "IMAGE_ID", 0x20 }, { "VMPL", 0x30 }, { "SIGNATURE_ALGO", 0x34 },
        { "CURRENT_TCB", 0x38 }, { "PLATFORM_INFO", 0x40 }, { "KEY_INFO", 0x48 }, { "REPORT_DATA", 0x50 }, { "MEASUREMENT", 0x90 }, { "HOST_DATA", 0xC0 },
        { "ID_KEY_DIGEST", 0xE0 }, { "AUTHOR_KEY_DIGEST", 0x110 }, { "REPORT_ID", 0x140 }, { "REPORT_ID_MA", 0x160 }, { "REPORTED_TCB", 0x180 },
        { "CPUID_FAM_ID", 0x188 }, { "CPUID_MOD_ID", 0x189 }, { "CPUID_STEP", 0x18A }, { "CHIP_ID", 0x1A0 }, { "COMMITTED_TCB", 0x1E0 },
        { "CURRENT_BUILD", 0x1E8 }, { "CURRENT_MINOR", 0x1E9 }, { "CURRENT_MAJOR", 0x1EA }, { "COMMITTED_BUILD", 0x1EC }, { "COMMITTED_MINOR", 0x1ED },
        { "COMMITTED_MAJOR", 0x1EE }, { "LAUNCH_TCB", 0x1F0 }, { "LAUNCH_MIT_VECTOR", 0x1F8 }, { "CURRENT_MIT_VECTOR", 0x200 }, { "SIGNATURE", 0x2A0 },
    };

    [Theory]
    [MemberData(nameof(Offsets))]
    public void Report_FieldsAreWhereTheAbiHasThem(string field, int offset) =>
        Assert.Equal(offset, (int)Marshal.OffsetOf<AttestationReport>(field));

    [Fact]
    public void Structures_HaveTheirSizes()
    {
        Assert.Equal(0x4A0, Marshal.SizeOf<AttestationReport>());
        Assert.Equal(0x60, Marshal.SizeOf<snp_guest_msg_hdr>());
        Assert.Equal(0x3C, (int)Marshal.OffsetOf<snp_guest_msg_hdr>("msg_vmpck"));
    }

    [Fact]
    public void Report_OfRealHardware_IsReadAndWrittenBack()
    {
        JsonElement vector = SnpVectors.Get("report-milan-v2");
        byte[] bytes = vector.GetProperty("params").GetProperty("report_base64").GetBytesFromBase64();
        JsonElement fields = vector.GetProperty("expected").GetProperty("fields");

        AttestationReport report = AttestationReport.Read(bytes);

        Assert.Equal(bytes, report.ToArray());
        Assert.Equal(fields.GetProperty("version").GetUInt32(), report.VERSION);
        Assert.Equal(SnpVectors.Hex(fields.GetProperty("policy").GetString()!), report.POLICY);
        Assert.Equal(SnpVectors.Hex(fields.GetProperty("reported_tcb").GetString()!), report.REPORTED_TCB);
        Assert.Equal(SnpVectors.Hex(fields.GetProperty("platform_info").GetString()!), report.PLATFORM_INFO);
        Assert.Equal(fields.Bytes("report_data"), ((ReadOnlySpan<byte>)report.REPORT_DATA).ToArray());
        Assert.Equal(fields.Bytes("measurement"), ((ReadOnlySpan<byte>)report.MEASUREMENT).ToArray());
        Assert.Equal(fields.Bytes("report_id_ma"), ((ReadOnlySpan<byte>)report.REPORT_ID_MA).ToArray());
        Assert.Equal(fields.Bytes("chip_id"), ((ReadOnlySpan<byte>)report.CHIP_ID).ToArray());
        Assert.Equal(
            (fields.GetProperty("current_build").GetByte(), fields.GetProperty("current_minor").GetByte(), fields.GetProperty("committed_major").GetByte()),
            (report.CURRENT_BUILD, report.CURRENT_MINOR, report.COMMITTED_MAJOR));
    }

    // The verifier of these tests is right about real evidence, so what it says of simulated evidence counts.
    [Fact]
    public void Verifier_AcceptsRealHardwareAndNothingAltered()
    {
        JsonElement vector = SnpVectors.Get("report-milan-v2").GetProperty("params");
        byte[] Read(string name) => vector.GetProperty(name).GetBytesFromBase64();
        byte[] report = Read("report_base64");
        using X509Certificate2 vcek = X509CertificateLoader.LoadCertificate(Read("vcek_der_base64"));
        using X509Certificate2 ask = X509CertificateLoader.LoadCertificate(Read("ask_der_base64"));
        using X509Certificate2 ark = X509CertificateLoader.LoadCertificate(Read("ark_der_base64"));

        Assert.True(SnpVerifier.IsReportSigned(report, vcek));
        Assert.True(SnpVerifier.IsSignedBy(vcek.RawData, ask));
        Assert.True(SnpVerifier.IsSignedBy(ask.RawData, ark));
        Assert.True(SnpVerifier.IsSignedBy(ark.RawData, ark));
        Assert.False(SnpVerifier.IsSignedBy(vcek.RawData, ark));
        for (int bit = 0; bit < 8 * AttestationReport.SignedSize; bit += 331)
        {
            byte[] altered = [.. report];
            altered[bit / 8] ^= (byte)(1 << (bit % 8));
            Assert.False(SnpVerifier.IsReportSigned(altered, vcek));
        }
    }

    [Theory]
    [MemberData(nameof(Tcbs))]
    public void Tcb_EncodesAndDecodes(string id)
    {
        JsonElement vector = SnpVectors.Get(id), parameters = vector.GetProperty("params");
        EpycProduct product = parameters.GetProperty("family").GetString() == "Turin" ? EpycProduct.Turin : EpycProduct.Genoa;
        byte Part(string name) => parameters.TryGetProperty(name, out JsonElement part) ? part.GetByte() : (byte)0;
        var tcb = new TcbVersion(Part("bootloader"), Part("tee"), Part("snp"), Part("microcode"), Part("fmc"));

        ulong encoded = tcb.Encode(product);

        Assert.Equal(vector.GetProperty("expected").Bytes("bytes_hex"), BitConverter.GetBytes(encoded));
        Assert.Equal(SnpVectors.Hex(vector.GetProperty("expected").GetProperty("u64").GetString()!), encoded);
        Assert.Equal(tcb, TcbVersion.Decode(product, encoded));
        Assert.Equal(0UL, encoded & TcbVersion.ReservedBits(product));
    }

    [Theory]
    [InlineData(EpycProduct.Milan)]
    [InlineData(EpycProduct.Turin)]
    public void Tcb_PartsAndReservedBitsCoverAllBits(EpycProduct product)
    {
        var all = new TcbVersion(255, 255, 255, 255, (byte)(product == EpycProduct.Turin ? 255 : 0));

        Assert.Equal(ulong.MaxValue, all.Encode(product) ^ TcbVersion.ReservedBits(product));
    }

    [Theory]
    [InlineData(3, 0, 8, 115, true)]
    [InlineData(4, 0, 0, 0, false)]
    [InlineData(0, 1, 0, 0, false)]
    [InlineData(0, 0, 9, 0, false)]
    [InlineData(0, 0, 0, 116, false)]
    public void Tcb_IsWithinAnother_PartByPart(byte bootLoader, byte tee, byte snp, byte microcode, bool within) =>
        Assert.Equal(within, new TcbVersion(bootLoader, tee, snp, microcode).IsWithin(new TcbVersion(3, 0, 8, 115)));

    [Theory]
    [MemberData(nameof(Tables))]
    public void Table_IsBuiltAndParsed(string id)
    {
        JsonElement vector = SnpVectors.Get(id), source = SnpVectors.Get("report-milan-v2").GetProperty("params");
        byte[][] certificates = [.. new[] { "vcek_der_base64", "ask_der_base64", "ark_der_base64" }.Select(name => source.GetProperty(name).GetBytesFromBase64())];
        (Guid, ReadOnlyMemory<byte>)[] entries =
        [
            .. vector.GetProperty("params").GetProperty("entries").EnumerateArray().Select(entry => (
                Guid.Parse(entry.GetProperty("guid").GetString()!),
                (ReadOnlyMemory<byte>)certificates.Single(each => Convert.ToHexStringLower(SHA256.HashData(each)) == entry.GetProperty("der_sha256").GetString()))),
        ];
        JsonElement expected = vector.GetProperty("expected");

        byte[] table = CertificateTable.Build(entries);

        byte[] header = expected.Bytes("header_hex");
        Assert.Equal(header, table[..header.Length]);
        Assert.Equal(expected.GetProperty("total_len").GetInt32(), table.Length);
        Assert.Equal(expected.GetProperty("table_sha256").GetString(), Convert.ToHexStringLower(SHA256.HashData(table)));
        Assert.Equal(
            entries.Select(entry => (entry.Item1, Convert.ToHexString(entry.Item2.Span))),
            CertificateTable.Parse(table)!.Select(entry => (entry.Id, Convert.ToHexString(entry.Content.Span))));
    }

    [Theory]
    [InlineData("")] // no end
    [InlineData("63da758de6644564adc5f4b93be8accd3000000001000000")] // no end
    [InlineData("63da758de6644564adc5f4b93be8accd3000000001000000" + "000000000000000000000000000000000000000000000000")] // beyond the table
    [InlineData("63da758de6644564adc5f4b93be8accdffffffffffffffff" + "000000000000000000000000000000000000000000000000")] // sums that overflow
    public void Table_ThatCannotBe_IsNotParsed(string hex) => Assert.Null(CertificateTable.Parse(Convert.FromHexString(hex)));
}
