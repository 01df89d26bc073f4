namespace VmmService.Client.Launching;

/// <summary>What a launch needs beside the plan: what goes to the kernel and is not measured by the plan's pages.</summary>
public sealed record SnpLaunchOptions
{
    /// <summary>Guest policy for SNP_LAUNCH_START: bit 17 must be set, bit 16 allows SMT. Not measured.</summary>
    public ulong Policy { get; init; } = 0x30000;

    /// <summary>Guest RAM in bytes, a multiple of the page size; null for what the firmware's sections need, rounded up to 2 MiB. Not measured.</summary>
    public ulong? MemoryBytes { get; init; }

    /// <summary>ID block, host data and the like for SNP_LAUNCH_FINISH; null for none.</summary>
    public V1.KvmSevSnpLaunchFinish? Finish { get; init; }
}
