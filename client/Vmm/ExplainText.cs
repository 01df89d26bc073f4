using VmmService.Client.Digest;
using VmmService.Client.Launch;

namespace VmmService.Vmm;

/// <summary>An explained digest for people: the answer first, then what makes it differ, or what to look at next.</summary>
internal static class ExplainText
{
    public static void Write(TextWriter output, string digest, DigestQuestion question, DigestSearchResult result)
    {
        if (result.Finding is { } finding)
            WriteFound(output, digest, finding, result);
        else
            WriteNotFound(output, digest, question, result);
    }

    /// <summary>What to look at when nothing fits, the likeliest first.</summary>
    public static IEnumerable<string> Advice(DigestQuestion question, DigestSearchResult result)
    {
        if (!result.Complete)
            yield return "The search was cut short: raise --max-combinations, or narrow the lists.";
        foreach (string reason in result.Impossible)
            yield return $"Some combinations cannot be launched: {reason}";
        yield return $"Every byte of the firmware counts: was it {string.Join(" or ", question.Firmwares.Select(image => image.Name))} that was booted, in this version? Give other builds with further --firmware.";
        if (question.Kernel is null)
        {
            yield return question.Firmwares.Any(image => image.SevSections.Any(section => section.Type == SevSectionType.SNP_KERNEL_HASHES))
                ? "This firmware measures a kernel that the VMM boots directly: if there was one, give --kernel, --initrd and --append."
                : "No kernel was given, and this firmware has no section for the hashes of one: with a firmware for direct boot (edk2's OvmfPkg/AmdSev) give both.";
        }
        else
        {
            yield return "Kernel and initrd count byte by byte, and so does the command line, in its order and spacing: compare with what the VMM was started with, or ask the guest's /proc/cmdline.";
        }

        if (question.VcpusTried.Max() < SnpLaunchPlan.MaxVcpus)
            yield return $"More than {question.VcpusTried.Max()} vCPUs: widen --vcpus. Another CPU: give its signature (CPUID 1 EAX) in --vcpu-types.";
        yield return "With the transcript of the launch, `vmm digest diff` names the page that differs. Policy, ID block, host data and report data are not part of the digest.";
    }

    private static void WriteFound(TextWriter output, string digest, DigestFinding finding, DigestSearchResult result)
    {
        output.WriteLine($"Found           {digest}");
        output.WriteLine();
        if (finding.Changes.Count == 0)
        {
            output.WriteLine("It is the digest of what was asked for.");
        }
        else
        {
            output.WriteLine(finding.Changes.Count == 1 ? "It is the digest of what was asked for but for one thing:" : $"It is the digest of what was asked for but for {finding.Changes.Count} things:");
            foreach (KnobChange change in finding.Changes)
                output.WriteLine($"  {change.Knob}: {change.Found} (asked for: {change.Asked})");
        }

        output.WriteLine();
        output.WriteLine("All of it");
        var table = new TextTable("  what", "is");
        table.Add($"  {DigestKnobs.Vcpus}", VcpusText(finding.Vcpus));
        foreach ((string knob, string choice) in finding.Settings)
            table.Add($"  {knob}", finding.Indifferent.Contains(knob) ? $"{choice}; makes no difference here" : choice);
        table.WriteTo(output);
        output.WriteLine();
        output.WriteLine($"{result.Tried} combinations tried, the fewest changes first.");
    }

    private static string VcpusText(int vcpus) => vcpus == 0 ? "none: the vCPUs are not part of this digest" : $"{vcpus}";

    private static void WriteNotFound(TextWriter output, string digest, DigestQuestion question, DigestSearchResult result)
    {
        output.WriteLine($"Not found       {digest}");
        output.WriteLine();
        output.WriteLine($"None of {result.Tried} combinations gives it{(result.Complete ? "" : "; there are more")}. Tried were:");
        output.WriteLine($"  {DigestKnobs.Vcpus}: {Ranges(question.VcpusTried)}");
        foreach (DigestKnob knob in result.Knobs)
            output.WriteLine($"  {knob.Name}: {string.Join("; ", knob.Choices.Select(choice => choice.Text))}");
        output.WriteLine();
        output.WriteLine("Try:");
        foreach (string advice in Advice(question, result))
            output.WriteLine($"  {advice}");
    }

    private static string Ranges(IReadOnlyList<int> values)
    {
        int[] sorted = [.. values.Order()];
        List<string> ranges = [];
        for (int first = 0, last; first < sorted.Length; first = last + 1)
        {
            last = first;
            while (last + 1 < sorted.Length && sorted[last + 1] == sorted[last] + 1)
                last++;
            ranges.Add(first == last ? $"{sorted[first]}" : $"{sorted[first]}-{sorted[last]}");
        }

        return string.Join(", ", ranges);
    }
}

/// <summary>The same as data; the property names are those of --json.</summary>
internal sealed record ExplainReport(
    string Target,
    bool Found,
    int? Vcpus,
    IReadOnlyList<KnobChange>? Changes,
    IReadOnlyDictionary<string, string>? Settings,
    IReadOnlyList<string>? Indifferent,
    ulong Tried,
    bool Complete,
    IReadOnlyList<ExplainReport.Searched> Knobs,
    IReadOnlyList<string>? Advice)
{
    public sealed record Searched(string Knob, IReadOnlyList<string> Choices);

    public static ExplainReport Of(string target, DigestQuestion question, DigestSearchResult result) => new(
        target,
        result.Finding is not null,
        result.Finding?.Vcpus,
        result.Finding?.Changes,
        result.Finding?.Settings.ToDictionary(each => each.Knob, each => each.Choice, StringComparer.Ordinal),
        result.Finding?.Indifferent,
        result.Tried,
        result.Complete,
        [new Searched(DigestKnobs.Vcpus, [.. question.VcpusTried.Select(each => $"{each}")]), .. result.Knobs.Select(knob => new Searched(knob.Name, [.. knob.Choices.Select(choice => choice.Text)]))],
        result.Finding is null ? [.. ExplainText.Advice(question, result)] : null);
}
