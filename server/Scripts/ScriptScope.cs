namespace VmmService.Server.Scripts;

/// <summary>What the values of a script are read against: variables, files, limits.</summary>
internal sealed class ScriptScope(int maxContent)
{
    private const int MaxVariables = 4096;

    private readonly SortedDictionary<string, ScriptValue> _variables = new(StringComparer.Ordinal);
    private readonly SortedDictionary<string, MemoryStream> _files = new(StringComparer.Ordinal);
    private long _fileBytes;

    /// <summary>Bytes that one content may have.</summary>
    public int MaxContent { get; } = maxContent;

    public IReadOnlyDictionary<string, ScriptValue> Variables => _variables;

    /// <summary>The same variables and files, from here on apart.</summary>
    public ScriptScope Fork()
    {
        var fork = new ScriptScope(MaxContent);
        fork.TakeOver(this);
        foreach ((string name, MemoryStream file) in _files)
        {
            fork._files[name] = file;
        }
        return fork;
    }

    /// <summary>Takes over the variables of another; where both have one, the other's wins.</summary>
    public void TakeOver(ScriptScope other)
    {
        foreach ((string name, ScriptValue value) in other._variables)
        {
            _variables[name] = value;
        }
    }

    public void Set(ScalarNode node, ScriptValue value)
    {
        string name = ScriptText.Name(node);
        if (_variables.Count >= MaxVariables && !_variables.ContainsKey(name))
        {
            throw node.Problem($"the script has {MaxVariables} variables, the limit", "use fewer");
        }
        _variables[name] = value;
    }

    /// <summary>Takes in a part of a file. False when all files together are longer than they may be.</summary>
    public bool AddFile(string name, ReadOnlySpan<byte> data)
    {
        _fileBytes += data.Length;
        if (_fileBytes > MaxContent)
        {
            return false;
        }
        if (!_files.TryGetValue(name, out MemoryStream? file))
        {
            _files[name] = file = new MemoryStream();
        }
        file.Write(data);
        return true;
    }

    public byte[] File(ScalarNode node)
    {
        string name = ScriptText.Expand(node, _variables);
        return _files.TryGetValue(name, out MemoryStream? file)
            ? file.ToArray()
            : throw node.Problem(
                $"no file `{name}` came with the script", _files.Count == 0 ? "send files before the steps that use them (`vmm run` does)" : $"these came: {string.Join(", ", _files.Keys)}");
    }

    /// <summary>A number within bounds.</summary>
    public Int128 Number(ScriptNode node, Int128 low, Int128 high)
    {
        Int128 value = ScriptExpression.Evaluate(node.AsScalar(), _variables);
        return value >= low && value <= high
            ? value
            : throw node.Problem($"{ScriptValue.Of(value).Show()} is out of range here", $"use {ScriptValue.Of(low).Show()} to {ScriptValue.Of(high).Show()}");
    }

    /// <summary>The value of a variable as it is written: an expression, a quoted text or a word, or a content.</summary>
    public ScriptValue Value(ScriptNode node) => node switch
    {
        ScalarNode { Quoted: true } text => ScriptValue.Of(ScriptText.Expand(text, _variables)),
        ScalarNode scalar when IsVariable(scalar, out ScriptValue? value) => value!,
        ScalarNode scalar when IsExpression(scalar) => ScriptValue.Of(ScriptExpression.Evaluate(scalar, _variables)),
        ScalarNode scalar => ScriptValue.Of(ScriptText.Expand(scalar, _variables)),
        _ => ScriptValue.Of(ScriptContent.Read(node, this)),
    };

    private bool IsVariable(ScalarNode node, out ScriptValue? value)
    {
        int at = 0;
        value = null;
        return node.Text.StartsWith('$') && ScriptText.VariableName(node.Text, ref at) is { } name && at == node.Text.Length && _variables.TryGetValue(name, out value);
    }

    private static bool IsExpression(ScalarNode node) =>
        node.Text is "true" or "false" || (node.Text.Length > 0 && (char.IsAsciiDigit(node.Text[0]) || "$(-~!".Contains(node.Text[0], StringComparison.Ordinal)))
        || ScriptConstants.TryGet(node.Text.Split(' ', 2)[0], out _);
}
