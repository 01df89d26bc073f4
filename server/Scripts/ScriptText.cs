using System.Text;

namespace VmmService.Server.Scripts;

/// <summary>Variables in texts: <c>$name</c> and <c>${name}</c>; <c>$$</c> is a dollar sign.</summary>
internal static class ScriptText
{
    /// <summary>The text with its variables put in.</summary>
    /// <exception cref="ScriptException">There is no such variable.</exception>
    public static string Expand(ScalarNode node, IReadOnlyDictionary<string, ScriptValue> variables)
    {
        if (!node.Text.Contains('$', StringComparison.Ordinal))
        {
            return node.Text;
        }
        var text = new StringBuilder();
        for (int at = 0; at < node.Text.Length;)
        {
            if (node.Text[at] != '$')
            {
                text.Append(node.Text[at++]);
            }
            else if (at + 1 < node.Text.Length && node.Text[at + 1] == '$')
            {
                text.Append('$');
                at += 2;
            }
            else
            {
                string name = VariableName(node.Text, ref at) ?? throw node.Problem("a `$` stands without a name", "write $name, ${name}, or $$ for the sign itself");
                text.Append((variables.TryGetValue(name, out ScriptValue? value) ? value : throw UnknownVariable(node, name, variables)).Show());
            }
        }
        return text.ToString();
    }

    /// <summary>The name at a dollar sign, which is passed; null where there is none.</summary>
    public static string? VariableName(string text, ref int at)
    {
        bool braces = at + 1 < text.Length && text[at + 1] == '{';
        int start = at + (braces ? 2 : 1);
        int end = start;
        while (end < text.Length && (char.IsAsciiLetterOrDigit(text[end]) || text[end] == '_'))
        {
            end++;
        }
        if (end == start || (braces && (end == text.Length || text[end] != '}')))
        {
            return null;
        }
        at = braces ? end + 1 : end;
        return text[start..end];
    }

    /// <summary>A variable's name: letters, digits and underscores, a letter or underscore first.</summary>
    public static string Name(ScalarNode node)
    {
        bool valid = node.Text.Length is > 0 and <= 64 && !char.IsAsciiDigit(node.Text[0]) && node.Text.All(each => char.IsAsciiLetterOrDigit(each) || each == '_');
        return valid ? node.Text : throw node.Problem($"`{node.Text}` is not a name for a variable", "use up to 64 letters, digits and underscores, without `$`");
    }

    public static ScriptException UnknownVariable(ScalarNode node, string name, IReadOnlyDictionary<string, ScriptValue> variables) =>
        node.Problem($"there is no variable `{name}` yet", Nearest.Advice(name, variables.Keys, "set it with `vars`, `set`, or `as` on an earlier step"));
}

/// <summary>What somebody may have meant.</summary>
internal static class Nearest
{
    /// <summary>"did you mean `x`?" where a known name is close, else the advice.</summary>
    public static string Advice(string word, IEnumerable<string> known, string otherwise)
    {
        string? best = known.OrderBy(each => Distance(word, each)).ThenBy(each => each, StringComparer.Ordinal).FirstOrDefault();
        if (best is null || Distance(word, best) > (word.Length < 4 ? 1 : Math.Max(2, word.Length / 3)))
        {
            best = word.Length < 3 ? null : known.FirstOrDefault(each => each.StartsWith(word, StringComparison.OrdinalIgnoreCase));
        }
        return best is null ? otherwise : $"did you mean `{best}`?";
    }

    // Edits (Levenshtein), letters of either case alike.
    private static int Distance(string left, string right)
    {
        int[] row = [.. Enumerable.Range(0, right.Length + 1)];
        for (int i = 1; i <= left.Length; i++)
        {
            int diagonal = row[0];
            row[0] = i;
            for (int j = 1; j <= right.Length; j++)
            {
                int substitution = diagonal + (char.ToLowerInvariant(left[i - 1]) == char.ToLowerInvariant(right[j - 1]) ? 0 : 1);
                diagonal = row[j];
                row[j] = Math.Min(substitution, Math.Min(row[j], row[j - 1]) + 1);
            }
        }
        return row[^1];
    }
}
