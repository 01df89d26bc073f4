using ServingStatus = Grpc.Health.V1.HealthCheckResponse.Types.ServingStatus;

namespace VmmService.Server.Health;

/// <summary>
/// What the server says of its own health: one state for each service, and one, under the empty name, for the server as a whole. The health service
/// next door reads it; whoever starts and stops the server writes it. One lock guards the states and the signal of change, so that a reader who holds
/// a
/// state also holds the signal of the very next change: none is missed, though a slow reader may see only the last of several.
/// </summary>
public sealed class HealthStatus
{
    /// <summary>The name of the server as a whole.</summary>
    public const string Server = "";

    private readonly Lock _lock = new();
    private readonly SortedDictionary<string, ServingStatus> _states = new(StringComparer.Ordinal);
    private TaskCompletionSource _changed = NewSignal();
    private bool _isShutDown;

    /// <param name="services">The full names of the services. They and the server begin as SERVING.</param>
    public HealthStatus(IEnumerable<string> services)
    {
        ArgumentNullException.ThrowIfNull(services);
        _states[Server] = ServingStatus.Serving;
        foreach (var service in services) _states[service] = ServingStatus.Serving;
    }

    /// <summary>Whether <see cref="Shutdown"/> was called: the states will not change again.</summary>
    public bool IsShutDown
    {
        get
        {
            lock (_lock) return _isShutDown;
        }
    }

    /// <summary>Sets the state of a service, which need not have been known before. Without effect after <see cref="Shutdown"/>.</summary>
    public void Set(string service, ServingStatus status)
    {
        ArgumentNullException.ThrowIfNull(service);
        lock (_lock)
        {
            if (_isShutDown || (_states.TryGetValue(service, out var old) && old == status)) return;
            _states[service] = status;
            Signal();
        }
    }

    /// <summary>
    /// Makes everything NOT_SERVING for good. Watchers are told and then let go, so that they do not hold up the end of the server.
    /// </summary>
    public void Shutdown()
    {
        lock (_lock)
        {
            if (_isShutDown) return;
            _isShutDown = true;
            foreach (var service in _states.Keys.ToArray()) _states[service] = ServingStatus.NotServing;
            Signal();
        }
    }

    /// <summary>The state of a service, or null if there is no such service.</summary>
    public ServingStatus? Get(string service) => Observe(service).Status;

    /// <summary>All states, in the order of the names.</summary>
    public IReadOnlyList<KeyValuePair<string, ServingStatus>> All()
    {
        lock (_lock) return [.. _states];
    }

    /// <summary>The state of a service now, whether it is the last, and a task that ends when any state changes after this look.</summary>
    internal (ServingStatus? Status, bool IsLast, Task Changed) Observe(string service)
    {
        lock (_lock) return (_states.TryGetValue(service, out var status) ? status : null, _isShutDown, _changed.Task);
    }

    private static TaskCompletionSource NewSignal() => new(TaskCreationOptions.RunContinuationsAsynchronously);

    private void Signal()
    {
        _changed.SetResult();
        _changed = NewSignal();
    }
}
