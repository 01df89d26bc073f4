using YamlDotNet.Core;
using YamlDotNet.Core.Events;

namespace VmmService.Server.Scripts;

/// <summary>
/// YAML to nodes, by the parser's events, so that every node knows its place. Anchors and tags are refused: a script says what it repeats with <c>repeat</c>, and nothing in
/// it can grow beyond what was written.
/// </summary>
internal sealed class ScriptReader
{
    private const int MaxDepth = 40;
    private const int MaxNodes = 200_000;

    private readonly Parser _parser;
    private readonly int _lineOffset;
    private int _nodes;

    private ScriptReader(string text, int firstLine)
    {
        _parser = new Parser(new Scanner(new StringReader(text), skipComments: true));
        _lineOffset = firstLine - 1;
    }

    /// <summary>Reads the one document of a text.</summary>
    /// <param name="text">YAML.</param>
    /// <param name="firstLine">Number of its first line.</param>
    /// <exception cref="ScriptException">It is not YAML, or uses what scripts do not.</exception>
    public static ScriptNode Read(string text, int firstLine = 1)
    {
        var reader = new ScriptReader(text, firstLine);
        try
        {
            reader._parser.Consume<StreamStart>();
            if (reader._parser.Accept<StreamEnd>(out _))
            {
                throw new ScriptException(new ScriptPlace(firstLine, 1), "the file is empty", "begin a script with `steps:` and a list of steps, a scenario with `programs:`");
            }
            reader._parser.Consume<DocumentStart>();
            ScriptNode root = reader.Node(0);
            reader._parser.Consume<DocumentEnd>();
            if (!reader._parser.Accept<StreamEnd>(out _))
            {
                throw reader.Problem(reader._parser.Current!.Start, "a second document begins here", "put each script into a file of its own");
            }
            return root;
        }
        catch (YamlException yaml)
        {
            throw reader.Problem(yaml.End, $"this is not YAML: {Reason(yaml)}", "check indentation, quotes and brackets near it; a value with `: ` or ` #` in it needs quotes");
        }
    }

    private ScriptNode Node(int depth)
    {
        ParsingEvent next = _parser.Current!;
        if (depth > MaxDepth || ++_nodes > MaxNodes)
        {
            throw Problem(next.Start, $"the script is nested deeper than {MaxDepth} or has more than {MaxNodes} parts", "use `repeat`, or split the script");
        }
        if (next is NodeEvent { Anchor.IsEmpty: false } or AnchorAlias)
        {
            throw Problem(next.Start, "anchors and aliases are no part of the language", "use `vars` for values and `repeat` for steps");
        }
        if (next is NodeEvent { Tag.IsEmpty: false })
        {
            throw Problem(next.Start, "tags are no part of the language", "write the value without `!`");
        }
        switch (next)
        {
            case Scalar scalar:
                _parser.MoveNext();
                bool quoted = scalar.Style is not (ScalarStyle.Plain or ScalarStyle.Any);
                return new ScalarNode(!quoted && scalar.Value is "~" or "null" ? "" : scalar.Value, quoted, Place(scalar.Start));
            case SequenceStart start:
                return List(start, depth);
            case MappingStart start:
                return Map(start, depth);
            default:
                throw Problem(next.Start, "a value is missing here", "write one, or remove the key");
        }
    }

    private ListNode List(SequenceStart start, int depth)
    {
        _parser.MoveNext();
        var items = new List<ScriptNode>();
        while (!_parser.TryConsume<SequenceEnd>(out _))
        {
            items.Add(Node(depth + 1));
        }
        return new ListNode(items, Place(start.Start));
    }

    private MapNode Map(MappingStart start, int depth)
    {
        _parser.MoveNext();
        var entries = new List<KeyValuePair<ScalarNode, ScriptNode>>();
        var keys = new HashSet<string>();
        while (!_parser.TryConsume<MappingEnd>(out _))
        {
            if (Node(depth + 1) is not ScalarNode key)
            {
                throw Problem(_parser.Current!.Start, "a key must be a word", "write `key: value`");
            }
            if (!keys.Add(key.Text))
            {
                throw key.Problem($"`{key.Text}` is there twice", "keep one of them");
            }
            entries.Add(new(key, Node(depth + 1)));
        }
        return new MapNode(entries, Place(start.Start));
    }

    private ScriptPlace Place(in Mark mark) => new((int)mark.Line + _lineOffset, (int)mark.Column);

    private ScriptException Problem(in Mark mark, string problem, string advice) => new(Place(mark), problem, advice);

    // The parser puts the place in front of its reason; it is told already.
    private static string Reason(YamlException yaml)
    {
        string message = yaml.InnerException?.Message ?? yaml.Message;
        int end = message.IndexOf("): ", StringComparison.Ordinal);
        return (end >= 0 ? message[(end + 3)..] : message).TrimEnd('.');
    }
}
