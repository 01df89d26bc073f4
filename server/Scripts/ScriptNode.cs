namespace VmmService.Server.Scripts;

/// <summary>A script as it was written: scalars, lists and maps, each with its place. Meaning is given by whoever reads a node, never by its look.</summary>
internal abstract record ScriptNode(ScriptPlace Place)
{
    /// <summary>What kind of node it is, for messages.</summary>
    public abstract string Kind { get; }

    public ScalarNode AsScalar() => this as ScalarNode ?? throw Problem($"a single value is wanted, this is {Kind}", "write a number, a name or a text");

    public ScriptException Problem(string problem, string advice) => new(Place, problem, advice);
}

/// <param name="Quoted">Written with quotes or as a block, so it is text and nothing else.</param>
internal sealed record ScalarNode(string Text, bool Quoted, ScriptPlace Place) : ScriptNode(Place)
{
    public override string Kind => Text.Length == 0 && !Quoted ? "nothing" : "a scalar";

    /// <summary>Nothing was written.</summary>
    public bool IsEmpty => Text.Length == 0 && !Quoted;
}

internal sealed record ListNode(IReadOnlyList<ScriptNode> Items, ScriptPlace Place) : ScriptNode(Place)
{
    public override string Kind => "a list";
}

/// <param name="Entries">In the order in which they were written; keys are unique.</param>
internal sealed record MapNode(IReadOnlyList<KeyValuePair<ScalarNode, ScriptNode>> Entries, ScriptPlace Place) : ScriptNode(Place)
{
    public override string Kind => "a map";

    public ScriptNode? Find(string key) => Entries.FirstOrDefault(entry => entry.Key.Text == key).Value;
}
