namespace VmmService.Client.Launching;

/// <summary>
/// A launched guest with all that its VMM holds open. Disposing closes the descriptors, innermost first, and with the last of them the VM goes; process and host are the caller's.
/// </summary>
public abstract class LaunchedGuest : IAsyncDisposable
{
    private readonly HeldResources _held;

    private protected LaunchedGuest(HeldResources held) => _held = held;

    public required Vm Vm { get; init; }

    public required IReadOnlyList<Vcpu> Vcpus { get; init; }

    public ValueTask DisposeAsync()
    {
        GC.SuppressFinalize(this);
        return _held.DisposeAsync();
    }
}
