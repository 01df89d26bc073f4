using System.Buffers.Binary;
using System.Globalization;

namespace VmmService.Server.Scripts;

/// <summary>Bytes in scripts: hex digits, text, numbers, patterns, and files that came with the script.</summary>
internal static class ScriptContent
{
    /// <summary>How it is written, for advice and for the reference.</summary>
    public const string Forms =
        "hex digits, or one of {text: T}, {hex: H}, {u8: N}, {u16: N}, {u32: N}, {u64: N}, {file: NAME}, {byte: N, length: L}, {bytes: [N, ...], length: L}, {pattern: HEX, length: L}";

    /// <param name="node">The content.</param>
    /// <param name="scope">Variables and files.</param>
    /// <exception cref="ScriptException">It is no content, or it is too long.</exception>
    public static byte[] Read(ScriptNode node, ScriptScope scope)
    {
        byte[] bytes = node switch
        {
            ScalarNode { Quoted: false, Text: ['$', ..] } scalar => Variable(scalar, scope),
            ScalarNode scalar => Hex(scalar),
            MapNode map => Map(map, scope),
            ListNode list => Numbers(list, scope),
            _ => throw node.Problem("this is no content", $"write {Forms}"),
        };
        return bytes.Length <= scope.MaxContent ? bytes : throw TooLong(node, bytes.Length, scope);
    }

    /// <summary>Pattern repeated over a length.</summary>
    public static byte[] Repeat(ReadOnlySpan<byte> pattern, int length)
    {
        byte[] bytes = new byte[length];
        for (int i = 0; i < length; i++)
        {
            bytes[i] = pattern[i % pattern.Length];
        }
        return bytes;
    }

    private static byte[] Variable(ScalarNode node, ScriptScope scope)
    {
        int at = 0;
        string? name = ScriptText.VariableName(node.Text, ref at);
        if (name is null || at != node.Text.Length)
        {
            throw node.Problem($"`{node.Text}` is no content", "write one variable that holds bytes, or a number as {u64: EXPRESSION}");
        }
        return scope.Variables.TryGetValue(name, out ScriptValue? value)
            ? value is BytesValue bytes ? bytes.Bytes.ToArray() : throw node.Problem($"`${name}` holds no bytes, it is `{value.Show()}`", "write a number as {u64: $" + name + "}, a text as {text: $" + name + "}")
            : throw ScriptText.UnknownVariable(node, name, scope.Variables);
    }

    private static byte[] Map(MapNode map, ScriptScope scope)
    {
        if (map.Entries.Count == 0)
        {
            throw map.Problem("the content is empty", $"write {Forms}");
        }
        (ScalarNode key, ScriptNode value) = (map.Entries[0].Key, map.Entries[0].Value);
        byte[] bytes = key.Text switch
        {
            "text" => System.Text.Encoding.UTF8.GetBytes(ScriptText.Expand(value.AsScalar(), scope.Variables)),
            "hex" or "pattern" => Hex(value.AsScalar()),
            "u8" or "byte" => [(byte)scope.Number(value, 0, byte.MaxValue)],
            "u16" => Little(scope.Number(value, 0, ushort.MaxValue), 2),
            "u32" => Little(scope.Number(value, int.MinValue, uint.MaxValue), 4),
            "u64" => Little(scope.Number(value, long.MinValue, ulong.MaxValue), 8),
            "bytes" => value is ListNode list ? Numbers(list, scope) : throw value.Problem($"`bytes` is {value.Kind}", "write a list of numbers, [0x12, 0x34]"),
            "file" => scope.File(value.AsScalar()),
            _ => throw key.Problem($"`{key.Text}` is no kind of content", $"write {Forms}"),
        };
        foreach ((ScalarNode other, ScriptNode length) in map.Entries.Skip(1).Select(entry => (entry.Key, entry.Value)))
        {
            if (other.Text != "length")
            {
                throw other.Problem($"`{other.Text}` does not belong to a content that begins with `{key.Text}`", $"write {Forms}");
            }
            if (bytes.Length == 0)
            {
                throw value.Problem("nothing can be repeated over a length", "give at least one byte");
            }
            Int128 wanted = scope.Number(length, 0, ulong.MaxValue);
            bytes = wanted <= scope.MaxContent ? Repeat(bytes, (int)wanted) : throw TooLong(length, (ulong)wanted, scope);
        }
        return bytes;
    }

    private static byte[] Numbers(ListNode list, ScriptScope scope) => [.. list.Items.Select(item => (byte)scope.Number(item, 0, byte.MaxValue))];

    private static byte[] Hex(ScalarNode node)
    {
        string digits = new([.. node.Text.Where(each => each is not (' ' or '\n' or '_'))]);
        try
        {
            return digits.Length > 0 || node.Quoted ? Convert.FromHexString(digits) : throw node.Problem("the content is missing", $"write {Forms}");
        }
        catch (FormatException)
        {
            throw node.Problem($"`{Shorten(node.Text)}` is not bytes in hex: an even number of hexadecimal digits, without 0x", $"write {Forms}");
        }
    }

    private static byte[] Little(Int128 number, int width)
    {
        byte[] bytes = new byte[16];
        BinaryPrimitives.WriteInt128LittleEndian(bytes, number);
        return bytes[..width];
    }

    private static string Shorten(string text) => text.Length <= 40 ? text : text[..40] + "...";

    private static ScriptException TooLong(ScriptNode node, Int128 length, ScriptScope scope) => node.Problem(
        string.Create(CultureInfo.InvariantCulture, $"the content has {length} bytes; one step takes at most {scope.MaxContent}"), "use `fill` for long patterns, or several steps");
}
