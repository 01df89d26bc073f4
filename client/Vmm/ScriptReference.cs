using VmmService.V1;

namespace VmmService.Vmm;

/// <summary>The steps of the script language as a page in Markdown: what --help-steps prints, and what the reference in the documentation is made of.</summary>
internal static class ScriptReference
{
    public static void Write(TextWriter output, ListStepsResponse steps)
    {
        output.WriteLine("## Steps");
        foreach (ScriptAction action in steps.Actions)
            Write(output, action);

        output.WriteLine();
        output.WriteLine("## Steps of a guest program");
        foreach (ScriptAction action in steps.GuestSteps)
            Write(output, action);

        output.WriteLine();
        output.WriteLine("## Constants");
        output.WriteLine();
        foreach (ScriptConstant constant in steps.Constants)
            output.WriteLine($"- `{constant.Name}` = {(constant.Value > 255 ? Numbers.Hex(constant.Value) : constant.Value)}");
    }

    private static void Write(TextWriter output, ScriptAction action)
    {
        output.WriteLine();
        output.WriteLine($"### {action.Name}");
        output.WriteLine();
        output.WriteLine($"{action.Summary}.");
        if (action.Fields.Count > 0)
        {
            output.WriteLine();
            output.WriteLine("| field | takes | default | |");
            output.WriteLine("|---|---|---|---|");
            foreach (ScriptField field in action.Fields)
                output.WriteLine($"| `{field.Name}` | {Cell(field.Kind)} | {Default(field)} | {Cell(field.Meaning)} |");
        }
        if (action.Facts.Count > 0)
        {
            output.WriteLine();
            output.WriteLine("Can be expected:");
            output.WriteLine();
            foreach (ScriptField fact in action.Facts)
                output.WriteLine($"- `{fact.Name}`: {fact.Meaning}");
        }
    }

    private static string Default(ScriptField field) => field.Required ? "required" : field.Default.Length > 0 ? $"`{Cell(field.Default)}`" : "";

    private static string Cell(string text) => text.Replace("|", "\\|", StringComparison.Ordinal);
}
