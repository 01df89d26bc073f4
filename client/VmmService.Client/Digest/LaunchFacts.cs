using VmmService.Client.Launch;

namespace VmmService.Client.Digest;

/// <summary>A range of guest memory with a name.</summary>
public readonly record struct NamedRegion(ulong Gpa, ulong Size, string Name)
{
    public bool Contains(ulong gpa) => gpa >= Gpa && gpa - Gpa < Size;
}

/// <summary>
/// What is known of a launch beside its measured pages: enough to say what a page is and why it may differ. All of it can be missing (null, or an empty list), and then less is said.
/// </summary>
public sealed record LaunchFacts
{
    /// <summary>The firmware image itself.</summary>
    public FirmwareImage? Firmware { get; init; }

    /// <summary>SHA-256 of the firmware image, lower-case hexadecimal.</summary>
    public string? FirmwareSha256 { get; init; }

    /// <summary>SHA-256 of the kernel, lower-case hexadecimal; null if none was measured, or nothing is known.</summary>
    public string? KernelSha256 { get; init; }

    public string? InitrdSha256 { get; init; }

    /// <summary>The kernel's command line.</summary>
    public string? Append { get; init; }

    /// <summary>SEV_FEATURES of the vCPUs.</summary>
    public ulong? SevFeatures { get; init; }

    /// <summary>Their CPU signature.</summary>
    public CpuSignature? Signature { get; init; }

    /// <summary>The measured ranges.</summary>
    public IReadOnlyList<NamedRegion> Regions { get; init; } = [];

    /// <summary>The range that a page is in; null if none has it.</summary>
    public NamedRegion? RegionAt(ulong gpa)
    {
        foreach (NamedRegion region in Regions)
        {
            if (region.Contains(gpa))
                return region;
        }

        return null;
    }
}

/// <summary>One of two launches that are compared.</summary>
/// <param name="Name">What to call it, for people.</param>
/// <param name="Transcript">What it measured.</param>
/// <param name="Facts">What else is known of it.</param>
public sealed record DigestSide(string Name, DigestTranscript Transcript, LaunchFacts Facts);
