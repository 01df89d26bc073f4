using VmmService.Client.Launch;
using VmmService.V1;

namespace VmmService.Client.Launching;

/// <summary>A launched SNP guest, and what was measured.</summary>
public sealed class LaunchedSnpGuest : LaunchedGuest
{
    internal LaunchedSnpGuest(HeldResources held)
        : base(held)
    {
    }

    /// <summary>What was to be launched.</summary>
    public required SnpLaunchPlan Plan { get; init; }

    public required SnpLaunchOptions Options { get; init; }

    /// <summary>The slots, by guest physical address.</summary>
    public required IReadOnlyList<GuestMemory> Memory { get; init; }

    /// <summary>The launch digest, 96 lower-case hexadecimal digits.</summary>
    public required string LaunchDigest { get; init; }

    /// <summary>Every measured step, in order.</summary>
    public required IReadOnlyList<TranscriptRecord> Transcript { get; init; }

    /// <summary>The state of the VM after the launch.</summary>
    public required DescribeVmResponse Description { get; init; }
}
