using VmmService.Client.Launch;
using VmmService.V1;

namespace VmmService.Client.Launching;

/// <summary>
/// A launched SNP guest with all that its VMM holds open, and what was measured. Disposing closes the descriptors, innermost first, and with the last of them
/// the VM goes; process and host are the caller's.
/// </summary>
public sealed class LaunchedSnpGuest : IAsyncDisposable
{
    private readonly Stack<IAsyncDisposable> _held;

    internal LaunchedSnpGuest(Stack<IAsyncDisposable> held) => _held = held;

    /// <summary>What was to be launched.</summary>
    public required SnpLaunchPlan Plan { get; init; }

    public required SnpLaunchOptions Options { get; init; }

    public required Vm Vm { get; init; }

    public required IReadOnlyList<Vcpu> Vcpus { get; init; }

    /// <summary>The slots, by guest physical address.</summary>
    public required IReadOnlyList<GuestMemory> Memory { get; init; }

    /// <summary>The launch digest, 96 lower-case hexadecimal digits.</summary>
    public required string LaunchDigest { get; init; }

    /// <summary>Every measured step, in order.</summary>
    public required IReadOnlyList<TranscriptRecord> Transcript { get; init; }

    /// <summary>The state of the VM after the launch.</summary>
    public required DescribeVmResponse Description { get; init; }

    public async ValueTask DisposeAsync()
    {
        while (_held.TryPop(out IAsyncDisposable? next))
            await next.DisposeAsync();
    }
}
