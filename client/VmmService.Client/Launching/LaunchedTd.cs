using VmmService.Client.Launch;
using VmmService.V1;

namespace VmmService.Client.Launching;

/// <summary>
/// A launched TD with all that its VMM holds open. Disposing closes the descriptors, innermost first, and with the last of them the VM goes; process and host are the caller's.
/// </summary>
public sealed class LaunchedTd : IAsyncDisposable
{
    private readonly Stack<IAsyncDisposable> _held;

    internal LaunchedTd(Stack<IAsyncDisposable> held) => _held = held;

    /// <summary>What was to be launched.</summary>
    public required TdxLaunchPlan Plan { get; init; }

    public required TdxLaunchOptions Options { get; init; }

    public required Vm Vm { get; init; }

    public required IReadOnlyList<Vcpu> Vcpus { get; init; }

    /// <summary>The slots, by guest physical address.</summary>
    public required IReadOnlyList<GuestMemory> Memory { get; init; }

    /// <summary>MRTD as the TDX module measured it, 96 lower-case hexadecimal digits.</summary>
    public required string Mrtd { get; init; }

    /// <summary>What the TDX module has of the TD after the launch.</summary>
    public required DescribeTdResponse Description { get; init; }

    public async ValueTask DisposeAsync()
    {
        while (_held.TryPop(out IAsyncDisposable? next))
            await next.DisposeAsync();
    }
}
