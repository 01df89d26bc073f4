namespace VmmService.Client.Launching;

/// <summary>A launched SEV or SEV-ES guest, and what its owner checks.</summary>
public sealed class LaunchedSevGuest : LaunchedGuest
{
    internal LaunchedSevGuest(HeldResources held)
        : base(held)
    {
    }

    public required SevLaunchPlan Plan { get; init; }

    /// <summary>GCTX.LD: 64 lower-case hexadecimal digits.</summary>
    public required string LaunchDigest { get; init; }

    /// <summary>What the guest's owner gets: HMAC-SHA-256 over firmware version, policy, digest and nonce, 32 bytes.</summary>
    public required ReadOnlyMemory<byte> Measure { get; init; }

    /// <summary>The nonce in it, 16 bytes.</summary>
    public required ReadOnlyMemory<byte> Nonce { get; init; }

    public required uint Policy { get; init; }

    /// <summary>Its owner accepted the measurement and sent a secret.</summary>
    public bool HasSecret { get; init; }

    /// <summary>Firmware's number of the guest.</summary>
    public required uint Handle { get; init; }
}
