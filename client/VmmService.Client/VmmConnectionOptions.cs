namespace VmmService.Client;

/// <summary>How a <see cref="VmmConnection"/> talks to the daemon. The defaults suit uploads of firmware over loopback.</summary>
public sealed record VmmConnectionOptions
{
    /// <summary>Largest message in either direction, in bytes.</summary>
    public int MaxMessageBytes { get; init; } = 64 << 20;

    /// <summary>HTTP/2 receive window of a stream, in bytes; large windows help large transfers.</summary>
    public int Http2WindowBytes { get; init; } = 16 << 20;

    /// <summary>How long the first connection may take.</summary>
    public TimeSpan ConnectTimeout { get; init; } = TimeSpan.FromSeconds(10);
}
