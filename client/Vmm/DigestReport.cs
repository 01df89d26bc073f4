using System.Text.Encodings.Web;
using System.Text.Json;
using System.Text.Json.Serialization;
using VmmService.Client.Digest;

namespace VmmService.Vmm;

/// <summary>A computed digest as data: the property names are those of --json, and where vmm launch snp --json has the same thing it has the same name there.</summary>
internal sealed record DigestReport
{
    /// <summary>How every digest command writes JSON.</summary>
    internal static readonly JsonSerializerOptions Json = new()
    {
        PropertyNamingPolicy = JsonNamingPolicy.CamelCase,
        DefaultIgnoreCondition = JsonIgnoreCondition.WhenWritingNull,
        Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping,
        WriteIndented = true,
    };

    /// <summary>96 lower-case hexadecimal digits, 64 for SEV and SEV-ES.</summary>
    public required string LaunchDigest { get; init; }

    /// <summary>snp, snp:svsm, seves or sev; absent where pages were given and nothing is known of their origin.</summary>
    public string? Mode { get; init; }

    public LaunchReport.FirmwareEntry? Firmware { get; init; }

    public LaunchReport.FileEntry? Svsm { get; init; }

    public LaunchReport.FileEntry? Kernel { get; init; }

    public LaunchReport.FileEntry? Initrd { get; init; }

    public string? Append { get; init; }

    public int? Vcpus { get; init; }

    public ParameterEntry? Parameters { get; init; }

    /// <summary>The ranges that were measured, in order. Only SNP.</summary>
    public IReadOnlyList<RegionEntry>? Regions { get; init; }

    /// <summary>The digest before the first step, where it was not zeros.</summary>
    public string? Initial { get; init; }

    /// <summary>Every measured page, in order. Only SNP.</summary>
    public IReadOnlyList<LaunchReport.StepEntry>? Transcript { get; init; }

    /// <summary>What was hashed, in order. Only SEV and SEV-ES.</summary>
    public IReadOnlyList<PartEntry>? Parts { get; init; }

    /// <param name="Vmm">Whose way of launching.</param>
    /// <param name="VcpuType">CPU model, where one was named.</param>
    /// <param name="VcpuSignature">CPUID 1 EAX, where it is measured.</param>
    /// <param name="GuestFeatures">SEV_FEATURES of the VMSAs.</param>
    public sealed record ParameterEntry(string Vmm, string? VcpuType, string? VcpuSignature, string GuestFeatures);

    /// <param name="Gpa">First address.</param>
    /// <param name="Size">Bytes.</param>
    /// <param name="PageType">As given to SNP_LAUNCH_UPDATE.</param>
    /// <param name="Name">What it is.</param>
    public sealed record RegionEntry(string Gpa, ulong Size, string PageType, string Name);

    /// <param name="Name">What it is.</param>
    /// <param name="Size">Bytes.</param>
    /// <param name="Sha256">Of these bytes alone.</param>
    public sealed record PartEntry(string Name, int Size, string Sha256);

    public string ToJson() => JsonSerializer.Serialize(this, Json);

    /// <summary>The report of a launch that is described by files and options.</summary>
    public static DigestReport Of(DigestLaunch launch)
    {
        bool vcpusCount = launch.Mode != DigestMode.Sev;
        bool signatureCounts = vcpusCount && launch.Flavor.MeasuresSignature;
        var report = new DigestReport
        {
            LaunchDigest = "",
            Mode = launch.Mode,
            Firmware = new LaunchReport.FirmwareEntry(
                launch.Firmware.Path, launch.Firmware.Image.Size, Sha256Hex.Of(launch.Firmware.Image.Bytes.Span), launch.Firmware.Source),
            Svsm = launch.Svsm is { } svsm ? new LaunchReport.FileEntry(svsm.Name, svsm.Size, Sha256Hex.Of(svsm.Bytes.Span)) : null,
            Kernel = FileOf(launch.KernelPath, launch.Kernel?.Kernel),
            Initrd = FileOf(launch.InitrdPath, launch.Kernel?.Initrd),
            Append = launch.Append,
            Vcpus = vcpusCount ? launch.Vcpus : null,
            Parameters = vcpusCount
                ? new ParameterEntry(
                    launch.Flavor.Name, signatureCounts ? launch.Model?.Name : null, signatureCounts ? launch.Signature.ToString() : null, Numbers.Hex(launch.GuestFeatures))
                : null,
        };
        return launch.IsSnp ? report.With(launch.Measured()) : report.With(launch.Legacy());
    }

    /// <summary>The report of pages that were given as such.</summary>
    public static DigestReport Of(DigestTranscript transcript) => new()
    {
        LaunchDigest = transcript.Digest.ToString(),
        Initial = transcript.Initial == default ? null : transcript.Initial.ToString(),
        Transcript = Steps(transcript),
    };

    private DigestReport With(MeasuredLaunch measured)
    {
        DigestTranscript transcript = DigestTranscript.Measure(measured.Pages());
        return this with
        {
            LaunchDigest = transcript.Digest.ToString(),
            Regions = [.. measured.Regions.Select(region => new RegionEntry(Numbers.Hex(region.Gpa), region.Size, region.PageType.ToString(), region.Label))],
            Transcript = Steps(transcript),
        };
    }

    private DigestReport With(LegacyLaunch launch) => this with
    {
        LaunchDigest = Convert.ToHexStringLower(launch.Digest()),
        Parts = [.. launch.Parts.Select(part => new PartEntry(part.Name, part.Content.Length, Sha256Hex.Of(part.Content.Span)))],
    };

    private static List<LaunchReport.StepEntry> Steps(DigestTranscript transcript) =>
    [
        .. transcript.Steps.Select((step, i) => new LaunchReport.StepEntry(
            (ulong)i, step.Page.PageType.ToString(), Numbers.Hex(step.Page.Gpa), step.Page.Contents.ToString(), step.DigestAfter.ToString())),
    ];

    private static LaunchReport.FileEntry? FileOf(string? path, ReadOnlyMemory<byte>? sha256) =>
        path is null ? null : new LaunchReport.FileEntry(path, (ulong)new FileInfo(path).Length, Convert.ToHexStringLower(sha256!.Value.Span));
}
