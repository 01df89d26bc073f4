using System.Globalization;
using System.Text;

namespace SimMachine.Stepping;

/// <summary>
/// One thing that a kernel, an instruction or a firmware command checks. A rule is declared, once, in the type that enforces it.
/// </summary>
/// <remarks>Operand names carry their format: a trailing <c>#</c> asks for decimal (counts, slot ids); everything else is hexadecimal.</remarks>
public sealed class Rule
{
    /// <param name="id">Stable id, dotted, for example <c>kvm.gmem.populate.gfn-not-private</c>.</param>
    /// <param name="sentence">The rule in one sentence.</param>
    /// <param name="source">Kernel function (and generation where it matters), or manual and section.</param>
    /// <param name="advice">What the user could try.</param>
    /// <param name="operands">Names of the numbers that a refusal reports, in order.</param>
    public Rule(string id, string sentence, string source, string advice, params string[] operands)
    {
        Id = id;
        Sentence = sentence;
        Source = source;
        Advice = advice;
        Operands = operands;
    }

    public string Id { get; }
    public string Sentence { get; }
    public string Source { get; }
    public string Advice { get; }
    public IReadOnlyList<string> Operands { get; }

    public override string ToString() => Id;
}

/// <summary>A named number and how a person would write it.</summary>
public readonly record struct Operand(string Name, ulong Value, string Text)
{
    /// <summary>Formats a value by its declared name (see <see cref="Rule"/>).</summary>
    public static Operand Of(string declaredName, ulong value) => declaredName.EndsWith('#')
        ? new(declaredName[..^1], value, value.ToString(CultureInfo.InvariantCulture))
        : new(declaredName, value, "0x" + value.ToString("x", CultureInfo.InvariantCulture));
}

/// <summary>A check that refused: the rule, what it answered, the operands, and the step at which it did.</summary>
public sealed class Cause
{
    private readonly ulong[] _values;

    internal Cause(Rule rule, string code, ulong step, ReadOnlySpan<ulong> values)
    {
        if (values.Length != rule.Operands.Count)
        {
            throw new ArgumentException($"rule {rule.Id} declares {rule.Operands.Count} operands, {values.Length} were given");
        }
        Rule = rule;
        Code = code;
        Step = step;
        _values = values.ToArray();
    }

    public Rule Rule { get; }

    /// <summary>What this check answered: an errno name, or a firmware or instruction status with its number.</summary>
    public string Code { get; }

    /// <summary>Step of the journal.</summary>
    public ulong Step { get; }

    public IEnumerable<Operand> Operands
    {
        get
        {
            for (int i = 0; i < _values.Length; i++)
            {
                yield return Operand.Of(Rule.Operands[i], _values[i]);
            }
        }
    }

    /// <summary>The rule and its operands on one line, without the advice.</summary>
    public override string ToString()
    {
        var text = new StringBuilder();
        text.Append(Code).Append(": ").Append(Rule.Sentence);
        string separator = " (";
        foreach (Operand operand in Operands)
        {
            text.Append(separator).Append(operand.Name).Append(' ').Append(operand.Text);
            separator = ", ";
        }
        if (_values.Length > 0)
        {
            text.Append(')');
        }
        return text.ToString();
    }
}
