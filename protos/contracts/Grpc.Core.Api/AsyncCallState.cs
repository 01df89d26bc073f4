namespace Grpc.Core;

/// <summary>
/// What the four kinds of call have in common: how to ask the transport for headers, status and trailers, and how to let go.
/// The functions come either with a state object they are called with, which saves the transport an object for each, or without one.
/// </summary>
internal readonly struct AsyncCallState
{
    private readonly Task<Metadata>? _responseHeaders;
    private readonly Func<object, Task<Metadata>>? _responseHeadersOf;
    private readonly Func<object, Status> _statusOf;
    private readonly Func<object, Metadata> _trailersOf;
    private readonly Action<object> _dispose;
    private readonly object _state;

    internal AsyncCallState(Task<Metadata> responseHeaders, Func<Status> status, Func<Metadata> trailers, Action dispose)
    {
        _responseHeaders = responseHeaders;
        _statusOf = static functions => ((Functions)functions).Status();
        _trailersOf = static functions => ((Functions)functions).Trailers();
        _dispose = static functions => ((Functions)functions).Dispose();
        _state = new Functions(status, trailers, dispose);
    }

    internal AsyncCallState(
        Func<object, Task<Metadata>> responseHeaders, Func<object, Status> status, Func<object, Metadata> trailers, Action<object> dispose, object state)
    {
        _responseHeadersOf = responseHeaders;
        _statusOf = status;
        _trailersOf = trailers;
        _dispose = dispose;
        _state = state;
    }

    internal Task<Metadata> ResponseHeadersAsync() => _responseHeaders ?? _responseHeadersOf!(_state);

    internal Status GetStatus() => _statusOf(_state);

    internal Metadata GetTrailers() => _trailersOf(_state);

    internal void Dispose() => _dispose(_state);

    private sealed record Functions(Func<Status> Status, Func<Metadata> Trailers, Action Dispose);
}
