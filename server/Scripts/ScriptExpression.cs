using System.Globalization;

namespace VmmService.Server.Scripts;

/// <summary>
/// Numbers as they are written in scripts: decimal, 0x hexadecimal, with KiB, MiB, GiB or TiB, names of the kernel's constants, $variables, and the operators of C with C's
/// precedence. Arithmetic is exact: what does not fit is refused, never wrapped.
/// </summary>
internal sealed class ScriptExpression
{
    private const int MaxLength = 1024;
    private const int MaxDepth = 64;

    // From the loosest to the tightest.
    private static readonly string[][] Operators =
    [
        ["||"], ["&&"], ["|"], ["^"], ["&"], ["==", "!="], ["<=", ">=", "<", ">"], ["<<", ">>"], ["+", "-"], ["*", "/", "%"],
    ];

    private readonly string _text;
    private readonly ScalarNode _node;
    private readonly IReadOnlyDictionary<string, ScriptValue> _variables;
    private int _at;
    private int _depth;

    private ScriptExpression(ScalarNode node, IReadOnlyDictionary<string, ScriptValue> variables)
    {
        _text = node.Text;
        _node = node;
        _variables = variables;
    }

    /// <summary>The number that a scalar stands for.</summary>
    /// <exception cref="ScriptException">It stands for none.</exception>
    public static Int128 Evaluate(ScalarNode node, IReadOnlyDictionary<string, ScriptValue> variables)
    {
        if (node.Text.Length > MaxLength)
        {
            throw node.Problem($"the expression has {node.Text.Length} characters, more than {MaxLength}", "use variables for its parts");
        }
        if (node.Text is "true" or "false")
        {
            return node.Text == "true" ? 1 : 0;
        }
        var expression = new ScriptExpression(node, variables);
        try
        {
            Int128 value = expression.Conditional();
            expression.Blanks();
            return expression._at == node.Text.Length ? value : throw expression.Unexpected();
        }
        catch (OverflowException)
        {
            throw node.Problem($"`{node.Text}` does not fit into 128 bits", "use smaller numbers");
        }
    }

    // Both sides of ?: are worked out; nothing here has effects.
    private Int128 Conditional()
    {
        Int128 condition = Binary(0);
        if (TryOperator(["?"]) is null)
        {
            return condition;
        }
        if (++_depth > MaxDepth)
        {
            throw _node.Problem($"`{_text}` is nested deeper than {MaxDepth}", "use variables for its parts");
        }
        Int128 first = Conditional();
        Int128 second = TryOperator([":"]) is null ? throw Unexpected() : Conditional();
        _depth--;
        return condition != 0 ? first : second;
    }

    private Int128 Binary(int level)
    {
        if (level == Operators.Length)
        {
            return Unary();
        }
        Int128 left = Binary(level + 1);
        while (TryOperator(Operators[level]) is { } symbol)
        {
            left = Apply(symbol, left, Binary(level + 1));
        }
        return left;
    }

    private Int128 Apply(string symbol, Int128 left, Int128 right) => symbol switch
    {
        "||" => left != 0 || right != 0 ? 1 : 0,
        "&&" => left != 0 && right != 0 ? 1 : 0,
        "|" => left | right,
        "^" => left ^ right,
        "&" => left & right,
        "==" => left == right ? 1 : 0,
        "!=" => left != right ? 1 : 0,
        "<=" => left <= right ? 1 : 0,
        ">=" => left >= right ? 1 : 0,
        "<" => left < right ? 1 : 0,
        ">" => left > right ? 1 : 0,
        "<<" => checked(left * ((Int128)1 << ShiftOf(right))),
        ">>" => left >> ShiftOf(right),
        "+" => checked(left + right),
        "-" => checked(left - right),
        "*" => checked(left * right),
        "/" or "%" when right == 0 => throw _node.Problem($"`{_text}` divides by zero", "check the variables in it"),
        "/" => left / right,
        _ => left % right,
    };

    private int ShiftOf(Int128 count) =>
        count >= 0 && count < 64 ? (int)count : throw _node.Problem($"`{_text}` shifts by {count}", "shift by 0 to 63");

    private Int128 Unary()
    {
        if (++_depth > MaxDepth)
        {
            throw _node.Problem($"`{_text}` is nested deeper than {MaxDepth}", "use variables for its parts");
        }
        Blanks();
        Int128 value;
        switch (Peek())
        {
            case '-':
                _at++;
                value = checked(-Unary());
                break;
            case '~':
                _at++;
                // Of a 64-bit number, as the kernel's masks are.
                value = ulong.MaxValue - (Unary() & ulong.MaxValue);
                break;
            case '!':
                _at++;
                value = Unary() == 0 ? 1 : 0;
                break;
            case '(':
                _at++;
                value = Conditional();
                Blanks();
                if (Peek() != ')')
                {
                    throw Unexpected();
                }
                _at++;
                break;
            case '$':
                value = Variable();
                break;
            default:
                value = char.IsAsciiDigit(Peek()) ? Number() : Constant();
                break;
        }
        _depth--;
        return value;
    }

    private Int128 Number()
    {
        string word = Word();
        Int128 unit = 1;
        foreach ((string suffix, int shift) in new[] { ("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40) })
        {
            if (word.EndsWith(suffix, StringComparison.Ordinal))
            {
                (word, unit) = (word[..^suffix.Length], (Int128)1 << shift);
            }
        }
        word = word.Replace("_", "", StringComparison.Ordinal);
        bool isHex = word.StartsWith("0x", StringComparison.OrdinalIgnoreCase);
        bool parsed = isHex
            ? UInt128.TryParse(word.AsSpan(2), NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out UInt128 number)
            : UInt128.TryParse(word, NumberStyles.None, CultureInfo.InvariantCulture, out number);
        if (!parsed)
        {
            throw _node.Problem($"`{word}` is not a number", "decimal, 0x hexadecimal, and the suffixes KiB, MiB, GiB and TiB are understood");
        }
        return checked((Int128)number * unit);
    }

    private Int128 Variable()
    {
        string name = ScriptText.VariableName(_text, ref _at) ?? throw Unexpected();
        return _variables.TryGetValue(name, out ScriptValue? value)
            ? value is NumberValue number ? number.Number : throw _node.Problem($"`${name}` is no number, it is `{value.Show()}`", "use a variable that holds a number")
            : throw ScriptText.UnknownVariable(_node, name, _variables);
    }

    private Int128 Constant()
    {
        string word = Word();
        if (word.Length == 0)
        {
            throw Unexpected();
        }
        return ScriptConstants.TryGet(word, out ulong value)
            ? value
            : throw _node.Problem($"`{word}` is neither a number nor a constant", Nearest.Advice(word, ScriptConstants.Names, "write a number, a $variable, or a constant's name in the kernel's spelling"));
    }

    private string Word()
    {
        int start = _at;
        while (_at < _text.Length && (char.IsAsciiLetterOrDigit(_text[_at]) || _text[_at] == '_'))
        {
            _at++;
        }
        return _text[start.._at];
    }

    private string? TryOperator(string[] symbols)
    {
        Blanks();
        foreach (string symbol in symbols)
        {
            if (string.CompareOrdinal(_text, _at, symbol, 0, symbol.Length) == 0 && !IsLonger(symbol))
            {
                _at += symbol.Length;
                return symbol;
            }
        }
        return null;
    }

    // `&` is not the beginning of `&&`, `<` not that of `<<`.
    private bool IsLonger(string symbol) =>
        symbol is "|" or "&" or "<" or ">" && _at + 1 < _text.Length && (_text[_at + 1] == symbol[0] || (symbol is "<" or ">" && _text[_at + 1] == '='));

    private char Peek() => _at < _text.Length ? _text[_at] : '\0';

    private void Blanks()
    {
        while (_at < _text.Length && _text[_at] == ' ')
        {
            _at++;
        }
    }

    private ScriptException Unexpected() => _node.Problem(
        _text.Length == 0 ? "a number is missing" : _at < _text.Length ? $"`{_text}` is not an expression: `{_text[_at]}` is not expected there" : $"`{_text}` ends too early",
        "write numbers, $variables, constants, parentheses and the operators of C");
}
