namespace VmmService.Vmm;

/// <summary>A launch report for people: the digest first, then what it is the digest of. Plain lines, so that it can be read, searched and kept.</summary>
internal static class LaunchText
{
    public static void Write(TextWriter output, LaunchReport report, string firmware, bool everyStep)
    {
        LaunchReport.ParameterEntry parameters = report.Parameters;
        output.WriteLine($"Launch digest   {report.LaunchDigest}");
        output.WriteLine();
        output.WriteLine($"Firmware        {firmware}");
        output.WriteLine($"                {report.Firmware.Size} bytes, sha256 {report.Firmware.Sha256}");
        WriteFile(output, "SVSM", report.Svsm);
        WriteFile(output, "Kernel", report.Kernel);
        WriteFile(output, "Initrd", report.Initrd);
        if (report.Append is not null)
            output.WriteLine($"Command line    {report.Append}");

        output.WriteLine($"VMM             {parameters.Vmm}");
        output.WriteLine($"vCPUs           {report.Vcpus}{VcpuKind(parameters.VcpuType, parameters.VcpuSignature)}");
        output.WriteLine($"Policy          {parameters.Policy}");
        output.WriteLine($"Guest features  {parameters.GuestFeatures}");
        output.WriteLine($"RAM             {Numbers.Size(parameters.MemoryBytes)}");
        output.WriteLine($"Kernel profile  {report.Profile}, seed {parameters.Seed}, daemon {report.Server}");

        output.WriteLine();
        output.WriteLine("Guest physical memory");
        WriteMemory(output, report);

        output.WriteLine();
        WriteTranscript(output, report.Transcript, everyStep);
    }

    /// <summary>The measured steps, or runs of alike ones.</summary>
    public static void WriteTranscript(TextWriter output, IReadOnlyList<LaunchReport.StepEntry> steps, bool everyStep)
    {
        output.WriteLine($"Measured, in order ({steps.Count} steps{(everyStep ? "" : "; --transcript shows each")})");
        if (everyStep)
            WriteSteps(output, steps);
        else
            WriteRuns(output, steps);
    }

    public static void WriteFile(TextWriter output, string what, LaunchReport.FileEntry? file)
    {
        if (file is null)
            return;

        output.WriteLine($"{what,-16}{file.Path}");
        output.WriteLine($"                {file.Size} bytes, sha256 {file.Sha256}");
    }

    /// <summary>What kind the vCPUs are, as far as it is measured.</summary>
    public static string VcpuKind(string? type, string? signature) => (type, signature) switch
    {
        (_, null) => "",
        (null, _) => $" with signature {signature}",
        _ => $" of type {type} (signature {signature})",
    };

    private static void WriteMemory(TextWriter output, LaunchReport report)
    {
        var table = new TextTable("  from", "to", "size", "what", "state");
        foreach (LaunchReport.SlotEntry slot in report.GpaMap)
        {
            table.Add(
                "  " + Address(slot.Gpa, 0), Address(slot.Gpa, slot.Size), Numbers.Size(slot.Size), $"{slot.Name} (slot {slot.Slot})",
                slot.Private ? "private" : "partly shared");
            foreach (LaunchReport.RegionEntry region in slot.Measured)
            {
                table.Add(
                    "    " + Address(region.Gpa, 0), Address(region.Gpa, region.Size), Numbers.Size(region.Size), $"  {region.Name}, {region.PageType}",
                    region.Validated ? "validated" : "not validated");
            }
        }
        table.WriteTo(output);
    }

    private static void WriteSteps(TextWriter output, IReadOnlyList<LaunchReport.StepEntry> steps)
    {
        var table = new TextTable("  step", "type", "gpa", "content hash", "digest after");
        foreach (LaunchReport.StepEntry step in steps)
            table.Add($"  {step.Index}", step.PageType, step.Gpa, step.ContentHash, step.DigestAfter);
        table.WriteTo(output);
    }

    // A run is steps of one type on pages that follow each other; every VMSA has the same gpa and stands alone.
    private static void WriteRuns(TextWriter output, IReadOnlyList<LaunchReport.StepEntry> steps)
    {
        var table = new TextTable("  steps", "type", "gpa", "digest after");
        for (int first = 0, last; first < steps.Count; first = last + 1)
        {
            last = first;
            while (last + 1 < steps.Count && Follows(steps[last], steps[last + 1]))
                last++;

            string range = first == last ? $"{steps[first].Index}" : $"{steps[first].Index}-{steps[last].Index}";
            string gpa = first == last ? steps[first].Gpa : $"{steps[first].Gpa} to {Address(steps[last].Gpa, PageBytes)}";
            table.Add($"  {range}", steps[first].PageType, gpa, steps[last].DigestAfter);
        }
        table.WriteTo(output);
    }

    private const ulong PageBytes = 4096;

    private static bool Follows(LaunchReport.StepEntry step, LaunchReport.StepEntry next) =>
        step.PageType == next.PageType && Address(step.Gpa, PageBytes) == next.Gpa;

    private static string Address(string gpa, ulong offset) =>
        Numbers.TryParse(gpa, out ulong value) ? Numbers.Hex(value + offset) : gpa;
}
