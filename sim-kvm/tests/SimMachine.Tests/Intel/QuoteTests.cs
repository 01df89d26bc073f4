// Quotes, keys and requests of the vectors, rebuilt from their inputs.

using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;
using System.Text;
using System.Text.Json;
using SimMachine.Intel.Attestation;
using Xunit;

namespace SimMachine.Tests.Intel;

public sealed class QuoteTests
{
    public static TheoryData<string> Reports => new(TdxVectors.IdsOf("tdreport"));

    public static TheoryData<string> Quotes => new(TdxVectors.IdsOf("simulated_quotes"));

    [Theory]
    [MemberData(nameof(Reports))]
    public void Body_OfAReport_IsTheVectors(string id)
    {
        JsonElement vector = TdxVectors.Get("tdreport", id);
        TdReport report = TdReport.Read(vector.Bytes("tdreport_hex"));
        Assert.Equal(vector.GetProperty("quote_body_v4").GetString(), Hex(TdQuote.BodyOf(report, QuoteFormat.V4)));
        if (vector.TryGetProperty("quote_body_v5_type3", out JsonElement body))
        {
            Assert.Equal(body.GetString(), Hex(TdQuote.BodyOf(report, QuoteFormat.V5Tdx15)));
        }
        Assert.Equal(vector.GetProperty("tee_tcb_info_hash").GetString(), Hex(report.TEE_TCB_INFO.Hash()));
        Assert.Equal(vector.GetProperty("tee_info_hash").GetString(), Hex(report.TDINFO.Hash()));
        Assert.Equal(vector.GetProperty("tdreport_hex").GetString(), Hex(report.ToArray()));
    }

    [Fact]
    public void Mac_OfTheSyntheticReport_IsGenuineWithItsKeyOnly()
    {
        JsonElement vector = TdxVectors.Get("tdreport", "tdreport-synthetic-1");
        TdReport report = TdReport.Read(vector.Bytes("tdreport_hex"));
        byte[] key = vector.Bytes("simulated_mac_key");
        byte[] cpuSvn = vector.GetProperty("inputs").Bytes("cpusvn");
        Assert.Equal(TdReportVerdict.GENUINE, new ReportMac(key, cpuSvn).Verify(in report));
        Assert.Equal(vector.GetProperty("mac").GetString(), Hex(new ReportMac(key, cpuSvn).Compute(report.REPORTMACSTRUCT)));
        key[0] ^= 1;
        Assert.Equal(TdReportVerdict.INVALID_REPORTMACSTRUCT, new ReportMac(key, cpuSvn).Verify(in report));
    }

    [Theory]
    [MemberData(nameof(Quotes))]
    public void Keys_OfASeed_AreThoseInTheVectorsQuote(string id)
    {
        JsonElement vector = TdxVectors.Get("simulated_quotes", id);
        byte[] quote = vector.Bytes("quote_hex");
        var authority = new TdxAuthority(vector.GetProperty("seed").GetString()!);
        int signature = vector.GetProperty("version").GetInt32() == 4 ? 636 : 706;
        Assert.Equal(authority.AttestationKey.PublicBytes, quote[(signature + 64)..(signature + 128)]);

        var chain = new X509Certificate2Collection();
        chain.ImportFromPem(Encoding.ASCII.GetString(quote[quote.AsSpan().IndexOf("-----BEGIN"u8)..]));
        Assert.Equal(authority.PckKey.PublicBytes, PointOf(chain[0].RawData));
        Assert.Equal(PointOf(authority.PlatformCa.Span), PointOf(chain[1].RawData));
        Assert.Equal(PointOf(authority.Root.Span), PointOf(chain[2].RawData));
    }

    [Fact]
    public void Request_OfAReport_IsTheVectors()
    {
        JsonElement vector = TdxVectors.Get("getquote", "getquote-request");
        byte[] report = TdxVectors.Get("tdreport", "tdreport-synthetic-1").Bytes("tdreport_hex");
        Assert.Equal(vector.GetProperty("tdreport_sha256").GetString(), Sha256(report));

        byte[] message = QuoteService.RequestMessage(report);
        byte[] prefix = vector.Bytes("qgs_message_prefix_hex");
        Assert.Equal(prefix, message[..prefix.Length]);
        Assert.Equal(vector.GetProperty("qgs_message_sha256").GetString(), Sha256(message));

        byte[] buffer = [.. vector.Bytes("request_header_hex"), .. report, .. new byte[vector.GetProperty("buffer_bytes").GetInt32() - 24 - report.Length]];
        Assert.Equal(vector.GetProperty("request_buffer_sha256").GetString(), Sha256(buffer));
        Assert.Equal(GetQuoteAcceptance.Success, QuoteService.Accept(0, (ulong)buffer.Length, buffer));
        QuoteService.MarkInFlight(buffer);
        Assert.Equal((ulong)GetQuoteStatus.InFlight, BitConverter.ToUInt64(buffer, 8));
    }

    [Fact]
    public void Signatures_VerifyByThePlatformsCryptography()
    {
        for (int i = 0; i < 20; i++)
        {
            var key = EcdsaP256Key.Named($"key {i}");
            byte[] message = Encoding.ASCII.GetBytes($"message {i}");
            byte[] signature = key.Sign(message);
            using ECDsa verifier = key.CreatePublic();
            Assert.True(verifier.VerifyData(message, signature, HashAlgorithmName.SHA256));
            Assert.Equal(signature, key.Sign(message));
            Assert.False(verifier.VerifyData(message.Append((byte)0).ToArray(), signature, HashAlgorithmName.SHA256));
        }
    }

    // RFC 6979, A.2.5: the message "sample" with SHA-256.
    [Fact]
    public void Nonce_IsThatOfRfc6979()
    {
        var key = EcdsaP256Key.FromScalar(Convert.FromHexString("C9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721"));
        Assert.Equal(
            "EFD48B2AACB6A8FD1140DD9CD45E81D69D2C877B56AAF991C34D0EA84EAF3716F7CB1C942D657C41D436C7A1B6E29F65F3E900DBB9AFF4064DC4AB2F843ACDA8",
            Convert.ToHexString(key.Sign("sample"u8)));
    }

    [Fact]
    public void OtherVersionsOfTheModule_ReportWithoutTheSecondTcb()
    {
        byte[] svn = [3, 0, 6, .. new byte[13]];
        using var machine = new Machine(new MachineConfig { Platform = Platform.IntelTdx, Tdx = new() { TeeTcbSvn = svn } }, seed: 1);
        TdReport report = machine.TdxIdentity.Report(new TdInfo(), new byte[64]);
        Assert.Equal(TeeTcbInfo.ValidOf10, report.TEE_TCB_INFO.VALID);
        Assert.Equal(new byte[16], ((ReadOnlySpan<byte>)report.TEE_TCB_INFO.TEE_TCB_SVN2).ToArray());
        Assert.Equal(QuoteFormat.V5Tdx10, QuotingEnclave.FormatOf(report));
        // It is older than what is up to date, so no sound evidence can be had.
        string? problem = QuoteEvidence.TryMake(machine.TdxIdentity.QuotingEnclave, report, QuoteFormat.V4, QuoteEvidenceKind.Sound, out _);
        Assert.Contains("OutOfDate", problem, StringComparison.Ordinal);
    }

    private static byte[] PointOf(ReadOnlySpan<byte> certificate)
    {
        using X509Certificate2 loaded = X509CertificateLoader.LoadCertificate(certificate);
        ECParameters key = loaded.GetECDsaPublicKey()!.ExportParameters(includePrivateParameters: false);
        return [.. key.Q.X!, .. key.Q.Y!];
    }

    private static string Hex(ReadOnlySpan<byte> bytes) => Convert.ToHexStringLower(bytes);

    private static string Sha256(ReadOnlySpan<byte> bytes) => Hex(SHA256.HashData(bytes));
}
