using System.Globalization;
using System.Text.Json.Nodes;
using Google.Protobuf;
using VmmService.V1;

namespace VmmService.Vmm;

/// <summary>What a script answers, for people and for programs.</summary>
internal static class ScriptPrinter
{
    private static readonly JsonFormatter Formatter = new(JsonFormatter.Settings.Default.WithFormatDefaultValues(true));
    private static readonly System.Text.Json.JsonSerializerOptions Indented = new() { WriteIndented = true };

    public static void Write(TextWriter output, RunScriptResponse reply, bool verbose)
    {
        switch (reply.EventCase)
        {
            case RunScriptResponse.EventOneofCase.Started:
                output.WriteLine($"Host {reply.Started.Host}, profile {reply.Started.Profile}, seed {reply.Started.Seed}, process {reply.Started.Pid}");
                break;
            case RunScriptResponse.EventOneofCase.Step:
                Write(output, reply.Step, verbose);
                break;
            case RunScriptResponse.EventOneofCase.Summary:
                output.WriteLine($"{reply.Summary.Steps} steps, {reply.Summary.Unmet} unmet expectations");
                break;
        }
    }

    /// <summary>One object: where it ran, the steps, the summary.</summary>
    public static string Json(IEnumerable<RunScriptResponse> replies)
    {
        var steps = new JsonArray();
        var json = new JsonObject();
        foreach (RunScriptResponse reply in replies)
        {
            switch (reply.EventCase)
            {
                case RunScriptResponse.EventOneofCase.Started:
                    json["started"] = Node(reply.Started);
                    break;
                case RunScriptResponse.EventOneofCase.Step:
                    steps.Add(Node(reply.Step));
                    break;
                case RunScriptResponse.EventOneofCase.Summary:
                    json["summary"] = Node(reply.Summary);
                    break;
            }
        }
        json["steps"] = steps;
        return json.ToJsonString(Indented);
    }

    public static JsonNode Node(IMessage message) => JsonNode.Parse(Formatter.Format(message))!;

    public static string Show(JsonNode node) => node.ToJsonString(Indented);

    /// <summary>A fact as a person would write it.</summary>
    public static string Show(ScriptFact fact) => fact.ValueCase switch
    {
        ScriptFact.ValueOneofCase.Number => fact.Number > 0xffff ? Numbers.Hex((ulong)fact.Number) : fact.Number.ToString(CultureInfo.InvariantCulture),
        ScriptFact.ValueOneofCase.Unsigned => Numbers.Hex(fact.Unsigned),
        ScriptFact.ValueOneofCase.Data => fact.Data.Length <= 32 ? Convert.ToHexStringLower(fact.Data.Span) : $"{Convert.ToHexStringLower(fact.Data.Span[..32])}... ({fact.Data.Length} bytes)",
        _ => fact.Text,
    };

    private static void Write(TextWriter output, ScriptStepReply step, bool verbose)
    {
        string mark = step.Unmet.Count == 0 ? " " : "!";
        string name = step.Name.Length > 0 ? $" ({step.Name})" : "";
        string variable = step.Variable.Length > 0 ? $"  [${step.Variable.Replace(", ", ", $", StringComparison.Ordinal)}]" : "";
        output.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{mark}{step.Line,4}  {step.Action}{name}: {step.Text}{variable}"));
        if (verbose)
        {
            foreach (ScriptFact fact in step.Facts)
                output.WriteLine($"         {fact.Name} = {Show(fact)}");

            foreach (Cause cause in step.Outcome?.Causes ?? [])
                output.WriteLine($"         because {cause.Code}: {cause.Sentence} [{cause.Rule}; {cause.Source}]");
        }
        foreach (Finding finding in step.Outcome?.Findings ?? [])
            output.WriteLine($"         finding {finding.Kind}: {finding.Text}");

        foreach (UnmetExpectation unmet in step.Unmet)
            output.WriteLine($"         expected {unmet.Fact} = {unmet.Expected}, it is {unmet.Actual} (line {unmet.Line})");
    }
}
