using System.Security.Cryptography.X509Certificates;
using System.Text.Json;
using VmmService.Client.Attestation;
using VmmService.IntegrationTests.Support;
using Xunit;

namespace VmmService.IntegrationTests.Attestation;

/// <summary>Quotes and reports of the vectors, real ones among them: reading them, and that the verifier which judges ours judges them as others do.</summary>
public sealed class TdxQuoteVectorTests
{
    // A day on which all certificates of the vectors are valid.
    private static readonly DateTime s_now = new(2026, 6, 1, 0, 0, 0, DateTimeKind.Utc);

    public static TheoryData<string> Real => TdxVectors.Ids("quotes");

    public static TheoryData<string> Simulated => TdxVectors.Ids("simulated_quotes");

    public static TheoryData<string> Reports => TdxVectors.Ids("tdreport");

    public static TheoryData<string, string, int, int, string> Mutations
    {
        get
        {
            var rows = new TheoryData<string, string, int, int, string>();
            foreach (JsonElement vector in TdxVectors.All("simulated_quotes"))
            {
                foreach (JsonElement mutation in vector.GetProperty("mutations").EnumerateArray())
                {
                    rows.Add(
                        TdxVectors.Text(vector, "id"), TdxVectors.Text(mutation, "field"), mutation.GetProperty("offset").GetInt32(), mutation.GetProperty("xor").GetInt32(),
                        TdxVectors.Text(mutation, "expect"));
                }
            }

            return rows;
        }
    }

    [Theory]
    [MemberData(nameof(Real))]
    public void Parse_RealQuote_HasEveryStatedField(string id)
    {
        JsonElement vector = TdxVectors.Get("quotes", id);
        byte[] bytes = TdxVectors.Bytes(vector, "quote_hex");
        Assert.Equal(TdxVectors.Text(vector, "sha256"), TdxVectors.Sha256(bytes));
        var quote = TdxQuote.Parse(bytes);

        foreach (JsonProperty field in vector.GetProperty("fields").EnumerateObject())
        {
            object? found = FieldOf(quote, field.Name);
            Assert.Equal(field.Value.ValueKind == JsonValueKind.String ? field.Value.GetString() : field.Value.GetRawText(), found is bool flag ? (flag ? "true" : "false") : $"{found}");
        }

        Assert.False(quote.IsSimulated);
    }

    [Theory]
    [MemberData(nameof(Real))]
    public void Verify_RealQuote_AgainstItsOwnRoot_Holds(string id)
    {
        byte[] quote = TdxVectors.Bytes(TdxVectors.Get("quotes", id), "quote_hex");
        Assert.Empty(TdxVerifier.Verify(quote, RootOf(quote), s_now));
    }

    [Theory]
    [MemberData(nameof(Simulated))]
    public void Verify_SimulatedQuote_IsAcceptedWithItsRootOnly(string id)
    {
        JsonElement vector = TdxVectors.Get("simulated_quotes", id);
        byte[] quote = TdxVectors.Bytes(vector, "quote_hex");
        Assert.Empty(TdxVerifier.Verify(quote, Root(vector), s_now));

        byte[] real = RootOf(TdxVectors.Bytes(TdxVectors.All("quotes").First(), "quote_hex"));
        Assert.Equal([QuoteRefusal.UntrustedRoot], TdxVerifier.Verify(quote, real, s_now));
    }

    [Theory]
    [MemberData(nameof(Mutations))]
    public void Verify_MutatedQuote_IsRefusedForTheStatedReason(string id, string field, int offset, int xor, string expect)
    {
        JsonElement vector = TdxVectors.Get("simulated_quotes", id);
        byte[] quote = TdxVectors.Bytes(vector, "quote_hex");
        quote[offset] ^= (byte)xor;

        QuoteRefusal first = TdxVerifier.Verify(quote, Root(vector), s_now)[0];

        QuoteRefusal expected = RefusalOf(expect);
        Assert.Equal(expected, first);
        if (expected == QuoteRefusal.Structure)
            Assert.Throws<FormatException>(() => TdxQuote.Parse(quote));
        else
            Assert.Equal(expect != "qe_report_data" && field != "attestation_key", TdxQuote.Parse(quote).IsKeyBound);
    }

    [Fact]
    public void Parse_QuoteCutOffAnywhere_IsRefused()
    {
        byte[] quote = TdxVectors.Bytes(TdxVectors.All("simulated_quotes").First(), "quote_hex");
        int end = TdxQuote.Parse(quote).End;
        for (int length = 0; length < end; length++)
            Assert.Throws<FormatException>(() => TdxQuote.Parse(quote.AsMemory(0, length)));
    }

    [Theory]
    [MemberData(nameof(Reports))]
    public void Parse_Report_HashesAreOfItsParts(string id)
    {
        JsonElement vector = TdxVectors.Get("tdreport", id);
        byte[] bytes = TdxVectors.Bytes(vector, "tdreport_hex");
        var report = TdxReport.Parse(bytes);
        Assert.True(report.HashesMatch);
        Assert.Equal(TdxVectors.Text(vector, "tee_info_hash"), Convert.ToHexStringLower(bytes[80..128]));
        // The body of a quote is put together from the report's fields.
        string body = TdxVectors.Text(vector, "quote_body_v4");
        Assert.Equal(body[(2 * 136)..(2 * 184)], Hex(report.Mrtd));
        Assert.Equal(body[(2 * 328)..(2 * 520)], string.Concat(Enumerable.Range(0, 4).Select(i => Hex(report.Rtmr(i)))));
        Assert.Equal(body[(2 * 520)..], Hex(report.ReportData));
        Assert.Equal(body[..(2 * 112)], Hex(report.TeeTcbSvn) + Hex(report.Mrseam) + Hex(report.Mrsignerseam));

        bytes[600] ^= 1;
        Assert.False(TdxReport.Parse(bytes).HashesMatch);
    }

    /// <summary>What a category of the vectors is called here.</summary>
    internal static QuoteRefusal RefusalOf(string expect) => expect switch
    {
        "parse" => QuoteRefusal.Structure,
        "quote_signature" => QuoteRefusal.QuoteSignature,
        "attestation_key_not_on_curve" => QuoteRefusal.AttestationKey,
        "qe_report_signature" => QuoteRefusal.QeReportSignature,
        "qe_report_data" => QuoteRefusal.QeReportData,
        _ => throw new InvalidDataException($"the vectors have a category {expect} that nobody knows"),
    };

    /// <summary>The last certificate of a quote's own chain, DER.</summary>
    internal static byte[] RootOf(byte[] quote)
    {
        var chain = new X509Certificate2Collection();
        chain.ImportFromPem(TdxQuote.Parse(quote).PckChainPem);
        return chain[2].RawData;
    }

    internal static byte[] Root(JsonElement vector)
    {
        using var root = X509Certificate2.CreateFromPem(TdxVectors.Text(vector, "root_pem"));
        return root.RawData;
    }

    // By the names of the vectors.
    private static object? FieldOf(TdxQuote quote, string name) => name switch
    {
        "version" => quote.Version,
        "att_key_type" => quote.Bytes.Span[2],
        "tee_type" => quote.Bytes.Span[4],
        "qe_vendor_id" => Hex(quote.QeVendorId),
        "user_data" => Hex(quote.UserData),
        "body_type" => quote.BodyType,
        "body_size" => quote.Body.Length,
        "tee_tcb_svn" => Hex(quote.TeeTcbSvn),
        "mrseam" => Hex(quote.Mrseam),
        "mrsignerseam" => Hex(quote.Mrsignerseam),
        "seam_attributes" => Hex(BitConverter.GetBytes(quote.SeamAttributes)),
        "td_attributes" => Hex(BitConverter.GetBytes(quote.TdAttributes)),
        "xfam" => Hex(BitConverter.GetBytes(quote.Xfam)),
        "mrtd" => Hex(quote.Mrtd),
        "mrconfigid" => Hex(quote.Mrconfigid),
        "mrowner" => Hex(quote.Mrowner),
        "mrownerconfig" => Hex(quote.Mrownerconfig),
        "rtmr0" or "rtmr1" or "rtmr2" or "rtmr3" => Hex(quote.Rtmr(name[4] - '0')),
        "reportdata" => Hex(quote.ReportData),
        "tee_tcb_svn2" => Hex(quote.TeeTcbSvn2!.Value),
        "mrservicetd" => Hex(quote.Mrservicetd!.Value),
        "signed_message_length" => quote.Signed.Length,
        "signed_message_sha256" => TdxVectors.Sha256(quote.Signed.Span),
        "signature_data_length" => quote.End - quote.Signed.Length - 4,
        "trailing_bytes" => quote.Bytes.Length - quote.End,
        "quote_signature" => Hex(quote.Signature),
        "attestation_key" => Hex(quote.AttestationKey),
        "outer_cert_type" => 6,
        "outer_cert_size" => quote.End - quote.Signed.Length - 4 - 134,
        "qe_report_sha256" => TdxVectors.Sha256(quote.QeReport.Span),
        "qe_mrenclave" => Hex(quote.QeMrenclave),
        "qe_mrsigner" => Hex(quote.QeMrsigner),
        "qe_isvprodid" => quote.QeIsvProdId,
        "qe_isvsvn" => quote.QeIsvSvn,
        "qe_report_data" => Hex(quote.QeReportData),
        "qe_auth_data" => Hex(quote.QeAuthenticationData),
        "inner_cert_type" => 5,
        "inner_cert_size" => quote.PckChain.Length,
        "pem_certificates" => quote.PckChainPem.Split("-----BEGIN CERTIFICATE-----").Length - 1,
        "pem_nul_terminated" => quote.PckChain.Span[^1] == 0,
        "binding_ok" => quote.IsKeyBound,
        _ => throw new InvalidDataException($"the vectors have a field {name} that nobody reads"),
    };

    private static string Hex(ReadOnlyMemory<byte> bytes) => Convert.ToHexStringLower(bytes.Span);
}
