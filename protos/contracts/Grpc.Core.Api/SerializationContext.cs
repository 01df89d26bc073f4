using System.Buffers;

namespace Grpc.Core;

/// <summary>
/// Where a serializer puts a message. Either <see cref="Complete(byte[])"/> once, or the length, the buffer and <see cref="Complete()"/> in that
/// order.
/// </summary>
public abstract class SerializationContext
{
    /// <summary>Gives the whole message. The array belongs to gRPC from here on.</summary>
    public virtual void Complete(byte[] payload) => throw new NotSupportedException();

    public virtual IBufferWriter<byte> GetBufferWriter() => throw new NotSupportedException();

    /// <summary>Says how many bytes will be written, so that they need not be counted or moved afterwards.</summary>
    public virtual void SetPayloadLength(int payloadLength) => throw new NotSupportedException();

    public virtual void Complete() => throw new NotSupportedException();
}

/// <summary>
/// What a deserializer reads a message from, valid during that call only. The payload may be taken once, in either form.
/// </summary>
public abstract class DeserializationContext
{
    /// <summary>Bytes in the message.</summary>
    public abstract int PayloadLength { get; }

    /// <summary>A copy that the caller owns.</summary>
    public virtual byte[] PayloadAsNewBuffer() => throw new NotSupportedException();

    /// <summary>The bytes where they lie; gRPC takes them back when the deserializer returns.</summary>
    public virtual ReadOnlySequence<byte> PayloadAsReadOnlySequence() => throw new NotSupportedException();
}
