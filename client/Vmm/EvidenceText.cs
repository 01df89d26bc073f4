using System.Text.Json;
using System.Text.Json.Nodes;
using VmmService.V1;

namespace VmmService.Vmm;

/// <summary>What a verifier found, for people and as JSON: every check in the order in which it was made, then the verdict.</summary>
internal static class EvidenceText
{
    private const string Indent = "      ";

    private static readonly JsonSerializerOptions s_json = new() { WriteIndented = true };

    /// <summary>One line for each check, and beneath one that failed or was not made, why; then the verdict.</summary>
    public static void Write(TextWriter output, EvidenceFindings findings)
    {
        int width = findings.Checks.Max(check => (int?)check.Id.Length) ?? 0;
        foreach (EvidenceCheck check in findings.Checks)
        {
            output.WriteLine($"{Mark(check.Result),-6}{check.Id.PadRight(width)}  {check.Demand}");
            if (check.Found.Length != 0)
                output.WriteLine(Indent + check.Found);
        }

        output.WriteLine();
        output.WriteLine(Conclusion(findings));
        if (findings.Simulated)
            output.WriteLine("Simulated platform: this evidence says nothing about real hardware.");
    }

    /// <summary>One object: verdict (accepted, refused, incomplete), simulated, checks (each with result held, failed or not-made).</summary>
    public static string ToJson(EvidenceFindings findings) => new JsonObject
    {
        ["verdict"] = findings.Verdict switch { EvidenceVerdict.Accepted => "accepted", EvidenceVerdict.Refused => "refused", _ => "incomplete" },
        ["simulated"] = findings.Simulated,
        ["checks"] = new JsonArray([.. findings.Checks.Select(ToJson)]),
    }.ToJsonString(s_json);

    private static JsonNode ToJson(EvidenceCheck check)
    {
        var json = new JsonObject
        {
            ["id"] = check.Id,
            ["demand"] = check.Demand,
            ["result"] = check.Result switch { EvidenceCheckResult.Held => "held", EvidenceCheckResult.Failed => "failed", _ => "not-made" },
        };
        if (check.Found.Length != 0)
            json["found"] = check.Found;
        return json;
    }

    private static string Mark(EvidenceCheckResult result) => result switch { EvidenceCheckResult.Held => "ok", EvidenceCheckResult.Failed => "FAIL", _ => "--" };

    private static string Conclusion(EvidenceFindings findings)
    {
        IEnumerable<string> failed = findings.Checks.Where(check => check.Result == EvidenceCheckResult.Failed).Select(check => check.Id);
        return findings.Verdict switch
        {
            EvidenceVerdict.Accepted => "ACCEPTED",
            EvidenceVerdict.Refused => $"REFUSED: {string.Join(", ", failed)}",
            _ => "INCOMPLETE: nothing failed, and not everything could be checked that shows whose it is",
        };
    }
}
