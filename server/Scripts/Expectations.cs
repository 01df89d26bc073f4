using System.Globalization;
using VmmService.V1;

namespace VmmService.Server.Scripts;

/// <summary>What a step was expected to come to, against what it came to.</summary>
/// <remarks>
/// A call without an expectation is expected to succeed; so is one whose expectation names neither errno, rule nor exit. A guest's comparison is expected to find no
/// difference, and a check to hold, unless the expectation says otherwise.
/// </remarks>
internal static class Expectations
{
    private const string Anything = "any";
    private const string Nothing = "none";

    /// <exception cref="ScriptException">It names what the step does not have, or cannot be read.</exception>
    public static IReadOnlyList<UnmetExpectation> Check(StepAction action, ScriptNode place, ScriptNode? expect, StepResult result, ScriptScope scope)
    {
        var unmet = new List<UnmetExpectation>();
        var named = new SortedSet<string>(StringComparer.Ordinal);
        switch (expect)
        {
            case null:
                break;
            case ScalarNode { Text: Anything }:
                return [];
            case ScalarNode scalar when action.IsCall:
                Compare("errno", scalar, result, scope, unmet);
                named.Add("errno");
                break;
            case MapNode map:
                foreach ((ScalarNode key, ScriptNode value) in map.Entries.Select(entry => (entry.Key, entry.Value)))
                {
                    Known(action, key, "expect");
                    named.Add(key.Text);
                    Compare(key.Text, value, result, scope, unmet);
                }
                break;
            default:
                throw expect.Problem($"`expect` is {expect.Kind}", $"write an errno, {Anything}, or a map of what to expect: {string.Join(", ", Names(action))}");
        }
        if (action.IsCall && !named.Overlaps(["errno", "rule", "exit"]))
        {
            Require("errno", "OK", place, result, unmet);
        }
        if (!named.Contains("mismatch") && result.Fact("mismatch") is { } at)
        {
            unmet.Add(Unmet("mismatch", Nothing, at.Show(), place));
        }
        if (!named.Contains("holds") && result.Fact("holds") is NumberValue { Number: var holds } && holds == 0)
        {
            unmet.Add(Unmet("holds", "1", "0", place));
        }
        return unmet;
    }

    private static void Compare(string name, ScriptNode expected, StepResult result, ScriptScope scope, List<UnmetExpectation> unmet)
    {
        ScriptValue? fact = result.Fact(name);
        bool nothing = expected is ScalarNode { Quoted: false, Text: Nothing };
        if (expected is ScalarNode { Quoted: false, Text: Anything })
        {
            return;
        }
        if (fact is null && expected is MapNode map)
        {
            foreach ((ScalarNode key, ScriptNode value) in map.Entries.Select(entry => (entry.Key, entry.Value)))
            {
                Compare($"{name}.{key.Text}", value, result, scope, unmet);
            }
        }
        else if (fact is null && expected is ListNode list)
        {
            for (int i = 0; i < list.Items.Count; i++)
            {
                Compare(string.Create(CultureInfo.InvariantCulture, $"{name}.{i}"), list.Items[i], result, scope, unmet);
            }
        }
        else if (fact is null || nothing)
        {
            if (!(nothing && fact is null or TextsValue { Texts.Count: 0 } or TextValue { Text: Nothing }))
            {
                unmet.Add(Unmet(name, expected is ScalarNode scalar ? scalar.Text : expected.Kind, fact?.Show() ?? Nothing, expected));
            }
        }
        else
        {
            (bool met, string wanted, string actual) = Compare(name, fact, expected, scope);
            if (!met)
            {
                unmet.Add(Unmet(name, wanted, actual, expected));
            }
        }
    }

    private static (bool Met, string Wanted, string Actual) Compare(string name, ScriptValue fact, ScriptNode expected, ScriptScope scope)
    {
        switch (fact)
        {
            case NumberValue number:
                Int128 wanted = scope.Number(expected, Int128.MinValue, Int128.MaxValue);
                return (wanted == number.Number || AsUnsigned(wanted) == AsUnsigned(number.Number), ScriptValue.Of(wanted).Show(), number.Show());
            case BytesValue bytes:
                byte[] content = ScriptContent.Read(expected, scope);
                int same = bytes.Bytes.Span.CommonPrefixLength(content);
                bool equal = same == content.Length && same == bytes.Bytes.Length;
                return (equal, ScriptValue.Of(content).Show(), string.Create(CultureInfo.InvariantCulture, $"{bytes.Show()}, which differs from byte {same} on"));
            case TextsValue texts:
                string any = ScriptText.Expand(expected.AsScalar(), scope.Variables);
                return (texts.Texts.Contains(any), any, texts.Show());
            default:
                string text = Plain(name, ScriptText.Expand(expected.AsScalar(), scope.Variables)), actual = Plain(name, fact.Show());
                return (text == actual, text, actual);
        }
    }

    // Exit reasons without their prefix; success as 0 too.
    private static string Plain(string name, string text) => name switch
    {
        "exit.reason" when text.StartsWith(ExitFacts.ReasonPrefix, StringComparison.Ordinal) => text[ExitFacts.ReasonPrefix.Length..],
        "errno" when text is "0" or "ok" => "OK",
        _ => text,
    };

    /// <summary>Whether a step has such a fact.</summary>
    /// <param name="purpose">What for: "expect", "keep".</param>
    /// <exception cref="ScriptException">It has not.</exception>
    public static void Known(StepAction action, ScalarNode key, string purpose)
    {
        string[] names = [.. Names(action)];
        if (!names.Contains(key.Text))
        {
            throw key.Problem(
                $"`{action.Name}` has no `{key.Text}` to {purpose}", names.Length == 0 ? $"it has nothing to {purpose}" : Nearest.Advice(key.Text, names, $"it has {string.Join(", ", names)}"));
        }
    }

    private static IEnumerable<string> Names(StepAction action) => (action.IsCall ? StepTable.CallFacts : []).Concat(action.Facts).Select(fact => fact.Name);

    private static void Require(string name, string expected, ScriptNode place, StepResult result, List<UnmetExpectation> unmet)
    {
        string actual = result.Fact(name)?.Show() ?? Nothing;
        if (actual != expected)
        {
            unmet.Add(Unmet(name, expected, actual, place));
        }
    }

    // -1 and the largest number of 64 bits are the same in a register.
    private static ulong AsUnsigned(Int128 number) => unchecked((ulong)number);

    private static UnmetExpectation Unmet(string name, string expected, string actual, ScriptNode place) =>
        new() { Fact = name, Expected = expected, Actual = actual, Line = (uint)place.Place.Line };
}
