using System.Text.Json;
using System.Text.Json.Nodes;
using VmmService.Client.Attestation;

namespace VmmService.Vmm;

/// <summary>A TD quote for people, and as JSON: every field under the name that the specification gives it, in its order.</summary>
internal static class QuoteText
{
    private static readonly JsonSerializerOptions s_json = new() { WriteIndented = true };

    public static void Write(TextWriter output, TdxQuote quote)
    {
        output.WriteLine(quote.IsSimulated ? "Simulated platform: this quote says nothing about real hardware." : "The certificates do not say that the platform is simulated.");
        output.WriteLine();
        foreach ((string name, object? value, string? meaning) in Fields(quote))
        {
            if (value is not null)
                output.WriteLine($"{name,-20}{value}{(meaning is null ? "" : $"  ({meaning})")}");
        }
    }

    public static string ToJson(TdxQuote quote)
    {
        var json = new JsonObject();
        foreach ((string name, object? value, _) in Fields(quote))
        {
            if (value is not null)
                json.Add(name, JsonSerializer.SerializeToNode(value));
        }

        return json.ToJsonString(s_json);
    }

    private static IEnumerable<(string Name, object? Value, string? Meaning)> Fields(TdxQuote quote)
    {
        yield return ("VERSION", quote.Version, quote.Version == 5 ? $"body type {quote.BodyType}" : null);
        yield return ("QE_VENDOR_ID", Hex(quote.QeVendorId), null);
        yield return ("USER_DATA", Hex(quote.UserData), null);
        yield return ("TEE_TCB_SVN", Hex(quote.TeeTcbSvn), null);
        yield return ("MRSEAM", Hex(quote.Mrseam), null);
        yield return ("MRSIGNERSEAM", Hex(quote.Mrsignerseam), null);
        yield return ("SEAMATTRIBUTES", Numbers.Hex(quote.SeamAttributes), null);
        yield return ("TDATTRIBUTES", Numbers.Hex(quote.TdAttributes), quote.DebugAllowed ? "debugging allowed" : null);
        yield return ("XFAM", Numbers.Hex(quote.Xfam), null);
        yield return ("MRTD", Hex(quote.Mrtd), null);
        yield return ("MRCONFIGID", Hex(quote.Mrconfigid), null);
        yield return ("MROWNER", Hex(quote.Mrowner), null);
        yield return ("MROWNERCONFIG", Hex(quote.Mrownerconfig), null);
        for (int i = 0; i < TdEventLog.Registers; i++)
            yield return ($"RTMR{i}", Hex(quote.Rtmr(i)), null);
        yield return ("REPORTDATA", Hex(quote.ReportData), null);
        yield return ("TEE_TCB_SVN2", quote.TeeTcbSvn2 is { } svn2 ? Hex(svn2) : null, null);
        yield return ("MRSERVICETD", quote.Mrservicetd is { } servtd ? Hex(servtd) : null, null);
        yield return ("SIGNATURE", Hex(quote.Signature), "ECDSA P-256 with SHA-256, by the attestation key");
        yield return ("ATTESTATION_KEY", Hex(quote.AttestationKey), quote.IsKeyBound ? "bound by the quoting enclave's report" : "not bound by the quoting enclave's report");
        yield return ("QE_MRSIGNER", Hex(quote.QeMrsigner), null);
        yield return ("QE_ISVPRODID", quote.QeIsvProdId, null);
        yield return ("QE_ISVSVN", quote.QeIsvSvn, null);
        yield return ("QE_REPORT_SIGNATURE", Hex(quote.QeReportSignature), "by the PCK key");
    }

    private static string Hex(ReadOnlyMemory<byte> bytes) => Convert.ToHexStringLower(bytes.Span);
}
