using Google.Protobuf;
using Google.Protobuf.Reflection;

namespace VmmService.IntegrationTests.Service.Fuzzing;

/// <summary>What is there to be named in a request, so that most requests get past the first look-up.</summary>
/// <param name="Fds">Descriptors that are open in the process, and some that are not.</param>
internal sealed record Targets(string Host, uint Pid, IReadOnlyList<int> Fds);

/// <summary>Fills messages of any type by their descriptors.</summary>
internal static class RandomMessage
{
    private const int MaxDepth = 6;

    public static IMessage Make(MessageDescriptor type, Dice dice, Targets targets, int depth = 0)
    {
        IMessage message = type.Parser.ParseFrom(ByteString.Empty);
        foreach (FieldDescriptor field in type.Fields.InDeclarationOrder())
        {
            bool skipped = depth > 0 ? dice.OneIn(4) : dice.OneIn(12);
            if (skipped || (field.RealContainingOneof is { } oneof && dice.Next(oneof.Fields.Count) > 0) || depth >= MaxDepth)
            {
                continue;
            }
            if (field.IsMap)
            {
                continue;
            }
            if (field.IsRepeated)
            {
                var list = (System.Collections.IList)field.Accessor.GetValue(message);
                for (int count = dice.Next(4); count > 0; count--)
                {
                    list.Add(Value(field, dice, targets, depth));
                }
            }
            else
            {
                field.Accessor.SetValue(message, Value(field, dice, targets, depth));
            }
        }
        return message;
    }

    private static object Value(FieldDescriptor field, Dice dice, Targets targets, int depth)
    {
        bool usual = !dice.OneIn(10);
        switch (field.Name)
        {
            case "host" when usual && field.FieldType == FieldType.String:
                return targets.Host;
            case "pid" when usual && field.FieldType == FieldType.UInt32:
                return targets.Pid;
            case "fd" or "sev_fd" or "vm_fd" or "vcpu_fd" when usual && field.FieldType == FieldType.Int32:
                return dice.Pick(targets.Fds);
            case "guest_memfd" when usual && field.FieldType == FieldType.UInt32:
                return unchecked((uint)dice.Pick(targets.Fds));
        }
        return field.FieldType switch
        {
            FieldType.Message => Make(field.MessageType, dice, targets, depth + 1),
            FieldType.Enum => usual ? dice.Pick([.. field.EnumType.Values]).Number : unchecked((int)dice.Number()),
            FieldType.Bool => dice.OneIn(2),
            FieldType.String => dice.Text(),
            FieldType.Bytes => dice.ByteString(),
            FieldType.Int32 or FieldType.SInt32 or FieldType.SFixed32 => unchecked((int)dice.Number()),
            FieldType.UInt32 or FieldType.Fixed32 => unchecked((uint)dice.Number()),
            FieldType.Int64 or FieldType.SInt64 or FieldType.SFixed64 => unchecked((long)dice.Number()),
            FieldType.UInt64 or FieldType.Fixed64 => dice.Number(),
            FieldType.Float => dice.Pick([0f, -1f, float.NaN, float.MaxValue]),
            FieldType.Double => dice.Pick([0d, -1d, double.NaN, double.MaxValue]),
            _ => throw new NotSupportedException($"{field.FullName} is of type {field.FieldType}"),
        };
    }
}
