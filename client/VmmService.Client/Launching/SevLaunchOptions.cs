namespace VmmService.Client.Launching;

/// <summary>What a SEV or SEV-ES launch needs beside the plan.</summary>
public sealed record SevLaunchOptions
{
    /// <summary>Policy of KVM_SEV_LAUNCH_START; null for <see cref="SevLauncher.DefaultPolicy"/>.</summary>
    public uint? Policy { get; init; }

    /// <summary>
    /// A secret that the guest's owner sends into the firmware's secret area; empty for none. With one the guest is launched by an owner's session: the platform's certificates are
    /// verified before it, and the measurement behind it.
    /// </summary>
    public ReadOnlyMemory<byte> Secret { get; init; }
}
