using System.Security.Cryptography;
using System.Text.Json;
using VmmService.Client.Attestation;
using VmmService.IntegrationTests.Support;
using Xunit;

namespace VmmService.IntegrationTests.Attestation;

/// <summary>The client library's report and guest messages against the vectors.</summary>
public sealed class ClientTypesTests
{
    public static TheoryData<string> Messages => SnpVectors.Ids("guest-message");

    [Fact]
    public void Report_OfRealHardware_IsRead()
    {
        SnpVector vector = SnpVectors.Get("report-milan-v2");
        JsonElement fields = vector.Expected.GetProperty("fields");

        var report = SnpReport.Parse(vector.Params.GetProperty("report_base64").GetBytesFromBase64());

        string Text(string name) => fields.GetProperty(name).GetString()!;
        (string, string)[] bytes =
        [
            (Text("report_data"), Hex(report.ReportData)), (Text("measurement"), Hex(report.Measurement)), (Text("host_data"), Hex(report.HostData)),
            (Text("id_key_digest"), Hex(report.IdKeyDigest)), (Text("author_key_digest"), Hex(report.AuthorKeyDigest)), (Text("report_id"), Hex(report.ReportId)),
            (Text("report_id_ma"), Hex(report.ReportIdMa)), (Text("chip_id"), Hex(report.ChipId)),
        ];
        Assert.All(bytes, each => Assert.Equal(each.Item1, each.Item2));
        (string, ulong)[] numbers =
        [
            (Text("policy"), report.Policy), (Text("current_tcb"), report.CurrentTcb), (Text("platform_info"), report.PlatformInfo), (Text("key_info"), report.KeyInfo),
            (Text("reported_tcb"), report.ReportedTcb), (Text("committed_tcb"), report.CommittedTcb), (Text("launch_tcb"), report.LaunchTcb),
        ];
        Assert.All(numbers, each => Assert.Equal(each.Item1, $"0x{each.Item2:x}"));
        Assert.Equal((2u, 0u, 0u, 1u, "VCEK", false), (report.Version, report.GuestSvn, report.Vmpl, report.SignatureAlgo, report.SigningKey, report.IsSimulated));
        Assert.Equal(((byte)1, (byte)52, (byte)4), report.CurrentFirmware);
        Assert.Equal((3u, 0u, 8u, 115u, 0u), Parts(report));
        Assert.Null(report.Cpuid);
        Assert.Null(report.LaunchMitVector);

        static string Hex(ReadOnlyMemory<byte> bytes) => Convert.ToHexStringLower(bytes.Span);
        static (uint, uint, uint, uint, uint) Parts(SnpReport report)
        {
            V1.TcbVersion tcb = report.DecodeTcb(report.ReportedTcb);
            return (tcb.BootLoader, tcb.Tee, tcb.Snp, tcb.Microcode, tcb.Fmc);
        }
    }

    [Theory]
    [InlineData(0x49F, 2)]
    [InlineData(0x4A1, 2)]
    [InlineData(0, 2)]
    [InlineData(0x4A0, 1)]
    [InlineData(0x4A0, 6)]
    public void Bytes_ThatAreNoReport_AreRefused(int size, byte version)
    {
        byte[] bytes = new byte[size];
        if (size > 0)
            bytes[0] = version;

        Assert.Throws<FormatException>(() => SnpReport.Parse(bytes));
    }

    [Theory]
    [MemberData(nameof(Messages))]
    public void Message_IsSealed(string id)
    {
        SnpVector vector = SnpVectors.Get(id);
        byte[] Bytes(JsonElement of, string name) => Convert.FromHexString(of.GetProperty(name).GetString()!);
        ulong sequence = vector.Params.GetProperty("msg_seqno").GetUInt64();
        var messages = new GuestMessages(Bytes(vector.Params, "vmpck_hex"), vector.Params.GetProperty("msg_vmpck").GetByte(), sequence - 1);

        byte[] page = messages.Seal(vector.Params.GetProperty("msg_type").GetByte(), Bytes(vector.Params, "plaintext_hex"));

        byte[] expected = [.. Bytes(vector.Expected, "header_hex"), .. Bytes(vector.Expected, "ciphertext_hex")];
        Assert.Equal([.. expected, .. new byte[4096 - expected.Length]], page);
    }

    // The two vectors are a request and its response.
    [Fact]
    public void Response_IsOpenedOnceAndCounted()
    {
        SnpVector request = SnpVectors.Get("msg-report-req"), response = SnpVectors.Get("msg-report-rsp");
        byte[] key = Convert.FromHexString(request.Params.GetProperty("vmpck_hex").GetString()!);
        byte[] page = new byte[4096];
        Convert.FromHexString(response.ExpectedText("header_hex")! + response.ExpectedText("ciphertext_hex")).CopyTo(page, 0);
        var messages = new GuestMessages(key);

        byte[] sealedPage = messages.SealReportRequest([.. Enumerable.Range(0, 64).Select(each => (byte)each)]);
        Assert.Equal(request.ExpectedText("header_hex"), Convert.ToHexStringLower(sealedPage.AsSpan(0, 0x60)));
        byte[] altered = [.. page];
        altered[0x70] ^= 1;
        Assert.ThrowsAny<CryptographicException>(() => messages.Open(altered, GuestMessages.ReportRequest));
        Assert.Throws<CryptographicException>(() => messages.Open(page, GuestMessages.KeyRequest));
        Assert.Throws<CryptographicException>(() => messages.Open(page.AsSpan(1), GuestMessages.ReportRequest));
        byte[] payload = messages.Open(page, GuestMessages.ReportRequest);

        Assert.Equal(response.Params.GetProperty("plaintext_hex").GetString(), Convert.ToHexStringLower(payload));
        Assert.Equal(2ul, messages.Count);
        Assert.Throws<CryptographicException>(() => messages.Open(page, GuestMessages.ReportRequest));
    }
}
