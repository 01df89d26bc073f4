using VmmService.Client.Launch;
using VmmService.V1;

namespace VmmService.Client.Launching;

/// <summary>A launched TD, and what the TDX module measured.</summary>
public sealed class LaunchedTd : LaunchedGuest
{
    internal LaunchedTd(HeldResources held)
        : base(held)
    {
    }

    /// <summary>What was to be launched.</summary>
    public required TdxLaunchPlan Plan { get; init; }

    public required TdxLaunchOptions Options { get; init; }

    /// <summary>The slots, by guest physical address.</summary>
    public required IReadOnlyList<GuestMemory> Memory { get; init; }

    /// <summary>MRTD as the TDX module measured it, 96 lower-case hexadecimal digits.</summary>
    public required string Mrtd { get; init; }

    /// <summary>What the TDX module has of the TD after the launch.</summary>
    public required DescribeTdResponse Description { get; init; }
}
