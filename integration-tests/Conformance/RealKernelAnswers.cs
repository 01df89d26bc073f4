using System.Globalization;
using System.Text.Json;

namespace VmmService.IntegrationTests.Conformance;

/// <summary>One answer of the real kernel: a line of Vectors/real-kernel-6.18.jsonl.</summary>
/// <param name="Pre">What was there before, in words.</param>
/// <param name="Ret">The return value: a number, "fd", "ptr", "ok" or the name of a signal.</param>
/// <param name="Errno">Its name; null on success.</param>
/// <param name="More">What else was recorded, by name.</param>
public sealed record KernelAnswer(
    string Id, string Area, string Pre, string Call, JsonElement Args, string Ret, string? Errno, IReadOnlyDictionary<string, string> More)
{
    private static readonly string[] s_known = ["id", "area", "pre", "call", "args", "ret", "errno", "note"];

    /// <summary>All answers, in the order in which they were recorded.</summary>
    public static IReadOnlyList<KernelAnswer> All { get; } =
        [.. File.ReadLines(Path.Combine(AppContext.BaseDirectory, "Vectors", "real-kernel-6.18.jsonl")).Where(line => line.Length > 0).Select(Parse)];

    /// <summary>An argument as text; null where there is none of that name.</summary>
    public string? Text(string name) => Args.TryGetProperty(name, out JsonElement value) ? value.ToString() : null;

    /// <summary>An argument as a number, in 64 bits.</summary>
    public ulong Number(string name, ulong otherwise = 0) => Text(name) is { } text ? ToNumber(text) : otherwise;

    public bool Has(string name) => Args.TryGetProperty(name, out _);

    /// <summary>A number as the data writes it: decimal or 0x, negative ones wrapped, whatever is said behind a blank ignored.</summary>
    public static ulong ToNumber(string text)
    {
        text = text.Split(' ')[0];
        return text.StartsWith("0x", StringComparison.Ordinal) ? ulong.Parse(text.AsSpan(2), NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture)
            : text.StartsWith('-') ? (ulong)long.Parse(text, CultureInfo.InvariantCulture)
            : ulong.Parse(text, CultureInfo.InvariantCulture);
    }

    public override string ToString() => Id;

    private static KernelAnswer Parse(string line)
    {
        using JsonDocument document = JsonDocument.Parse(line);
        JsonElement root = document.RootElement.Clone();
        string Field(string name) => root.GetProperty(name).ToString();
        JsonElement errno = root.GetProperty("errno");
        return new KernelAnswer(
            Field("id"), Field("area"), Field("pre"), Field("call"), root.GetProperty("args"), Field("ret"),
            errno.ValueKind == JsonValueKind.Null ? null : errno.GetString(),
            root.EnumerateObject().Where(property => !s_known.Contains(property.Name))
                .ToDictionary(property => property.Name, property => property.Value.ToString(), StringComparer.Ordinal));
    }
}
