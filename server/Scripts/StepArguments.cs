namespace VmmService.Server.Scripts;

/// <summary>The fields of one step as they were written, checked against the step's shape; values are worked out when they are asked for.</summary>
internal sealed class StepArguments
{
    private readonly ActionShape _shape;
    private readonly ScriptScope _scope;
    private readonly SortedDictionary<string, ScriptNode> _values = new(StringComparer.Ordinal);

    /// <param name="shape">What the step takes.</param>
    /// <param name="key">The word that names it.</param>
    /// <param name="value">What stands behind it.</param>
    /// <param name="scope">What values are read against.</param>
    /// <exception cref="ScriptException">A field is unknown or missing.</exception>
    public StepArguments(ActionShape shape, ScalarNode key, ScriptNode value, ScriptScope scope)
    {
        _shape = shape;
        _scope = scope;
        Key = key;
        Bind(value);
        foreach (StepField field in shape.Fields.Where(field => field.Required && !_values.ContainsKey(field.Name)))
        {
            throw key.Problem($"`{shape.Name}` has no `{field.Name}` ({field.Meaning})", $"write {shape.Name}: {{{field.Name}: ...}}");
        }
    }

    public ScalarNode Key { get; }

    public ScriptScope Scope => _scope;

    public bool Has(string field) => _values.ContainsKey(field);

    public ulong U64(string field) => unchecked((ulong)Number(field, long.MinValue, ulong.MaxValue));

    public long I64(string field) => (long)Number(field, long.MinValue, long.MaxValue);

    public uint U32(string field) => unchecked((uint)Number(field, int.MinValue, uint.MaxValue));

    public ushort U16(string field) => (ushort)Number(field, 0, ushort.MaxValue);

    public int Fd(string field = "fd") => (int)Number(field, int.MinValue, int.MaxValue);

    public bool Flag(string field) => Number(field, 0, 1) != 0;

    public string Text(string field) => ScriptText.Expand(Node(field).AsScalar(), _scope.Variables);

    public byte[] Content(string field) => ScriptContent.Read(Node(field), _scope);

    public ulong[] Numbers(string field) => Node(field) is ListNode list
        ? [.. list.Items.Select(item => unchecked((ulong)_scope.Number(item, long.MinValue, ulong.MaxValue)))]
        : throw Node(field).Problem($"`{field}` is {Node(field).Kind}", "write a list of numbers, [1, 2]");

    public ListNode List(string field) => Node(field) as ListNode ?? throw Node(field).Problem($"`{field}` is {Node(field).Kind}", "write a list, each entry behind a `- `");

    public MapNode Map(string field) => Node(field) as MapNode ?? throw Node(field).Problem($"`{field}` is {Node(field).Kind}", "write `name: value` pairs");

    /// <summary>The value of a field as it was written, or its default.</summary>
    public ScriptNode Node(string field) => _values.TryGetValue(field, out ScriptNode? value) ? value : Default(_shape.Fields.First(each => each.Name == field));

    private Int128 Number(string field, Int128 low, Int128 high)
    {
        ScriptNode node = Node(field);
        StepField shape = _shape.Fields.First(each => each.Name == field);
        return node is ScalarNode scalar && shape.Choices.TryGetValue(scalar.Text, out ulong choice) ? choice : _scope.Number(node, low, high);
    }

    private ScalarNode Default(StepField field)
    {
        string text = field.Default ?? throw Key.Problem($"`{_shape.Name}` needs `{field.Name}` ({field.Meaning}) here", $"add {field.Name}: ...");
        return !text.StartsWith('$') || _scope.Variables.ContainsKey(text[1..])
            ? new ScalarNode(text, false, Key.Place)
            : throw Key.Problem(
                $"`{_shape.Name}` has no `{field.Name}` ({field.Meaning}), and there is no variable `{text[1..]}` that would stand for it",
                $"keep the descriptor with `as: {text[1..]}`, or add {field.Name}: $name");
    }

    private void Bind(ScriptNode value)
    {
        bool whole = _shape.Fields is [{ Kind: FieldKind.Map }];
        if (value is not MapNode map || whole)
        {
            if (value is ScalarNode { IsEmpty: true })
            {
                return;
            }
            string first = _shape.Fields.Count > 0 ? _shape.Fields[0].Name : throw value.Problem($"`{_shape.Name}` takes nothing", $"write `{_shape.Name}:` alone");
            _values[first] = value;
            return;
        }
        foreach ((ScalarNode key, ScriptNode field) in map.Entries.Select(entry => (entry.Key, entry.Value)))
        {
            if (!_shape.Fields.Any(each => each.Name == key.Text))
            {
                string known = string.Join(", ", _shape.Fields.Select(each => each.Name));
                throw key.Problem(
                    $"`{_shape.Name}` has no field `{key.Text}`",
                    Nearest.Advice(key.Text, _shape.Fields.Select(each => each.Name), known.Length > 0 ? $"its fields are {known}" : "it has no fields"));
            }
            _values[key.Text] = field;
        }
    }
}
