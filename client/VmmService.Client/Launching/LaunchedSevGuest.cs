namespace VmmService.Client.Launching;

/// <summary>A launched SEV or SEV-ES guest with all that its VMM holds open. Disposing closes the descriptors, innermost first, and with the last of them the VM goes.</summary>
public sealed class LaunchedSevGuest : IAsyncDisposable
{
    private readonly Stack<IAsyncDisposable> _held;

    internal LaunchedSevGuest(Stack<IAsyncDisposable> held) => _held = held;

    public required SevLaunchPlan Plan { get; init; }

    public required Vm Vm { get; init; }

    public required IReadOnlyList<Vcpu> Vcpus { get; init; }

    /// <summary>GCTX.LD: 64 lower-case hexadecimal digits.</summary>
    public required string LaunchDigest { get; init; }

    /// <summary>What the guest's owner gets: HMAC-SHA-256 over firmware version, policy, digest and nonce, 32 bytes.</summary>
    public required ReadOnlyMemory<byte> Measure { get; init; }

    /// <summary>The nonce in it, 16 bytes.</summary>
    public required ReadOnlyMemory<byte> Nonce { get; init; }

    public required uint Policy { get; init; }

    /// <summary>Firmware's number of the guest.</summary>
    public required uint Handle { get; init; }

    public async ValueTask DisposeAsync()
    {
        while (_held.TryPop(out IAsyncDisposable? next))
            await next.DisposeAsync();
    }
}
