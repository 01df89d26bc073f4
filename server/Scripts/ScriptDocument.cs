using Google.Protobuf;
using Google.Protobuf.Reflection;
using VmmService.V1;

namespace VmmService.Server.Scripts;

/// <summary>A whole script: what it runs on, its variables, its steps. Written as a map with <c>steps</c>, or as a bare list of steps.</summary>
internal sealed class ScriptDocument
{
    private static readonly string[] Keys = ["title", "profile", "seed", "machine", "kernel", "vars", "keep_going", "steps"];

    private ScriptDocument(ListNode steps) => Steps = steps;

    public ListNode Steps { get; }

    // As it was written; null for a bare list of steps.
    private MapNode? Map { get; init; }

    /// <summary>The host that it asks for. Its variables may be used in that.</summary>
    /// <exception cref="ScriptException">A setting of the host cannot be.</exception>
    public CreateHostRequest Boot(ScriptScope scope) => Map is not { } map ? new CreateHostRequest() : new CreateHostRequest
    {
        Profile = map.Find("profile") is { } profile ? ScriptText.Expand(profile.AsScalar(), scope.Variables) : "",
        Seed = map.Find("seed") is { } seed ? (ulong)scope.Number(seed, 0, ulong.MaxValue) : 0,
        Machine = map.Find("machine") is { } machine ? Fill(new MachineConfig(), MapOf("machine", machine), scope) : null,
        Kernel = map.Find("kernel") is { } kernel ? Fill(new KernelConfig(), MapOf("kernel", kernel), scope) : null,
    };

    /// <summary>In the order in which they were written: later ones may use earlier ones.</summary>
    public IReadOnlyList<KeyValuePair<ScalarNode, ScriptNode>> Variables { get; private init; } = [];

    public bool KeepGoing { get; private init; }

    /// <exception cref="ScriptException">It is no document.</exception>
    public static ScriptDocument Read(ScriptNode root)
    {
        if (root is ListNode list)
        {
            return new ScriptDocument(list);
        }
        MapNode map = root as MapNode ?? throw root.Problem($"a script is a map with `steps`, or a list of steps; this is {root.Kind}", "begin with `steps:`");
        foreach ((ScalarNode key, _) in map.Entries.Select(entry => (entry.Key, entry.Value)))
        {
            if (!Keys.Contains(key.Text))
            {
                throw key.Problem($"a script has no `{key.Text}`", Nearest.Advice(key.Text, Keys, $"it has {string.Join(", ", Keys)}"));
            }
        }
        var scope = new ScriptScope(0);
        ListNode steps = map.Find("steps") switch
        {
            ListNode some => some,
            null => throw map.Problem("the script has no `steps`", "add `steps:` and a list of steps"),
            { } other => throw other.Problem($"`steps` is {other.Kind}", "write a list, each step behind a `- `"),
        };
        return new ScriptDocument(steps)
        {
            Map = map,
            Variables = map.Find("vars") is { } variables ? MapOf("vars", variables).Entries : [],
            KeepGoing = map.Find("keep_going") is { } keepGoing && scope.Number(keepGoing, 0, 1) != 0,
        };
    }

    /// <exception cref="ScriptException">It is no map.</exception>
    public static MapNode MapOf(string name, ScriptNode node) => node as MapNode ?? throw node.Problem($"`{name}` is {node.Kind}", "write `name: value` pairs");

    // A value of an enum by its proto name, with or without the prefix that all values of the enum have.
    private static object Enumerator(EnumDescriptor type, ScriptNode value, ScriptScope scope)
    {
        string prefix = type.Values[0].Name[..^"UNSPECIFIED".Length];
        string[] names = [.. type.Values.Skip(1).Select(each => each.Name[prefix.Length..])];
        string text = value.AsScalar().Text;
        // What is more than a name says which by its number, as `$tdx ? PLATFORM_INTEL_TDX : PLATFORM_AMD`.
        Int128 number = text.Contains('$', StringComparison.Ordinal) ? scope.Number(value, 1, type.Values.Max(each => each.Number)) : -1;
        EnumValueDescriptor found = type.Values.FirstOrDefault(each => each.Number != 0 && (each.Name == text || each.Name[prefix.Length..] == text || each.Number == number))
            ?? throw value.Problem($"`{text}` is none of {string.Join(", ", names)}", Nearest.Advice(text, names, $"write {names[0]}"));
        return Enum.ToObject(type.ClrType, found.Number);
    }

    /// <summary>The fields of a message by their proto names.</summary>
    public static T Fill<T>(T message, MapNode map, ScriptScope scope)
        where T : IMessage
    {
        foreach ((ScalarNode key, ScriptNode value) in map.Entries.Select(entry => (entry.Key, entry.Value)))
        {
            FieldDescriptor field = message.Descriptor.FindFieldByName(key.Text) ?? throw key.Problem(
                $"there is no setting `{key.Text}`", Nearest.Advice(key.Text, Names(message), $"the settings are {string.Join(", ", Names(message))}"));
            field.Accessor.SetValue(message, field.FieldType switch
            {
                FieldType.Bool => scope.Number(value, 0, 1) != 0,
                FieldType.UInt32 => (uint)scope.Number(value, 0, uint.MaxValue),
                FieldType.UInt64 => (ulong)scope.Number(value, 0, ulong.MaxValue),
                FieldType.Enum => Enumerator(field.EnumType, value, scope),
                FieldType.Message when !field.IsRepeated => Fill((IMessage?)field.Accessor.GetValue(message) ?? (IMessage)Activator.CreateInstance(field.MessageType.ClrType)!, MapOf(key.Text, value), scope),
                _ => throw key.Problem($"`{key.Text}` cannot be set in a script", "create the host with HostService and name it in the header"),
            });
        }
        return message;
    }

    private static IEnumerable<string> Names(IMessage message) => message.Descriptor.Fields.InDeclarationOrder().Select(field => field.Name);
}
