namespace Grpc.Core;

/// <summary>Hints about one written message.</summary>
[Flags]
public enum WriteFlags
{
    /// <summary>The message may be kept until more are there to send with it.</summary>
    BufferHint = 0x1,

    /// <summary>The message goes out uncompressed even where the call is compressed.</summary>
    NoCompress = 0x2,
}

/// <summary>How messages of a call or a stream are to be written.</summary>
public class WriteOptions
{
    /// <summary>No hints.</summary>
    public static readonly WriteOptions Default = new();

    public WriteOptions(WriteFlags flags = default) => Flags = flags;

    public WriteFlags Flags { get; }
}
