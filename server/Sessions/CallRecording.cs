using Google.Protobuf;
using Google.Protobuf.Reflection;
using VmmService.V1;

namespace VmmService.Server.Sessions;

/// <summary>The calls that were made on a host, with what they were answered, in the order in which they were over. Bounded: what does not fit is counted.</summary>
internal sealed class CallRecording(long maxBytes)
{
    private readonly Lock _lock = new();
    private readonly List<RecordedCall> _calls = [];
    private long _bytes;
    private ulong _lost;

    public void Add(RecordedCall call)
    {
        lock (_lock)
        {
            _bytes += call.CalculateSize();
            // Once a call is missing, later ones would answer something else.
            if (_bytes > maxBytes || _lost > 0)
            {
                _lost++;
                return;
            }
            _calls.Add(call);
        }
    }

    /// <summary>A call that cannot be recorded was made.</summary>
    public void Miss()
    {
        lock (_lock)
        {
            _lost++;
        }
    }

    public (IReadOnlyList<RecordedCall> Calls, ulong Lost) Read()
    {
        lock (_lock)
        {
            return ([.. _calls], _lost);
        }
    }

    /// <summary>The host that a request is about: its field <c>host</c>, or that of a message in it; empty where it has none.</summary>
    public static string HostOf(IMessage message)
    {
        foreach (FieldDescriptor field in message.Descriptor.Fields.InDeclarationOrder())
        {
            if (field is { Name: "host", FieldType: FieldType.String, IsRepeated: false })
            {
                return (string)field.Accessor.GetValue(message);
            }
            if (field is { FieldType: FieldType.Message, IsRepeated: false, IsMap: false } && field.Accessor.GetValue(message) is IMessage inner && HostOf(inner) is { Length: > 0 } host)
            {
                return host;
            }
        }
        return "";
    }
}
