namespace VmmService.Vmm;

/// <summary>A computed digest for people, laid out as <see cref="LaunchText"/> does it.</summary>
internal static class DigestText
{
    public static void Write(TextWriter output, DigestReport report, string? firmware, bool everyStep)
    {
        output.WriteLine($"Launch digest   {report.LaunchDigest}");
        output.WriteLine();
        if (report.Firmware is { } image)
        {
            output.WriteLine($"Mode            {report.Mode}");
            output.WriteLine($"Firmware        {firmware}");
            output.WriteLine($"                {image.Size} bytes, sha256 {image.Sha256}");
        }

        LaunchText.WriteFile(output, "SVSM", report.Svsm);
        LaunchText.WriteFile(output, "Kernel", report.Kernel);
        LaunchText.WriteFile(output, "Initrd", report.Initrd);
        if (report.Append is not null)
            output.WriteLine($"Command line    {report.Append}");

        if (report.Parameters is { } parameters)
        {
            output.WriteLine($"VMM             {parameters.Vmm}");
            output.WriteLine($"vCPUs           {report.Vcpus}{LaunchText.VcpuKind(parameters.VcpuType, parameters.VcpuSignature)}");
            output.WriteLine($"Guest features  {parameters.GuestFeatures}");
        }

        if (report.Initial is not null)
            output.WriteLine($"Going on from   {report.Initial}");

        output.WriteLine();
        if (report.Parts is { } parts)
            WriteParts(output, parts);
        else if (report.Transcript is { } steps)
            LaunchText.WriteTranscript(output, steps, everyStep);
    }

    private static void WriteParts(TextWriter output, IReadOnlyList<DigestReport.PartEntry> parts)
    {
        output.WriteLine("Hashed, one after the other");
        var table = new TextTable("  what", "bytes", "sha256 of it alone");
        foreach (DigestReport.PartEntry part in parts)
            table.Add($"  {part.Name}", $"{part.Size}", part.Sha256);
        table.WriteTo(output);
    }
}
