using System.Buffers;
using System.Globalization;
using System.Runtime.InteropServices;
using System.Text.Json;

namespace VmmService.Server.Verification.Intel;

/// <summary>An answer of Intel's provisioning certification service: an object with one object that is signed, as its text stands there, and the signature.</summary>
/// <param name="Content">The inner object.</param>
/// <param name="Signed">Its text.</param>
/// <param name="Signature">r and s.</param>
internal sealed record SignedJson(JsonElement Content, ReadOnlyMemory<byte> Signed, ReadOnlyMemory<byte> Signature)
{
    private const int SignatureSize = 64;

    // Two members of one name would be read differently by different readers.
    private static readonly JsonDocumentOptions s_strict = new() { AllowDuplicateProperties = false };

    /// <summary>Null for what is not of this form.</summary>
    /// <param name="json">Any bytes.</param>
    /// <param name="name">Of the inner object.</param>
    /// <param name="problem">What is wrong with it.</param>
    public static SignedJson? Read(ReadOnlyMemory<byte> json, string name, out string? problem)
    {
        try
        {
            using var document = JsonDocument.Parse(json, s_strict);
            JsonElement answer = document.RootElement.Clone();
            var fields = new JsonFields("");
            JsonElement content = fields.Object(answer, name);
            ReadOnlyMemory<byte> signature = fields.Hex(answer, "signature", SignatureSize);
            problem = fields.Problem;
            return problem is null ? new SignedJson(content, JsonMarshal.GetRawUtf8Value(content).ToArray(), signature) : null;
        }
        catch (Exception wrong) when (wrong is JsonException or InvalidOperationException)
        {
            problem = $"it is no JSON: {wrong.Message}";
            return null;
        }
    }
}

/// <summary>Takes members of JSON objects. The first that is missing or is something else stays as the problem, and what is taken after it is zeros or empty.</summary>
/// <param name="path">Of the outermost object, for the problem.</param>
internal sealed class JsonFields(string path)
{
    private const string TimeForm = "yyyy-MM-dd'T'HH:mm:ss.FFFFFFFK";
    private const DateTimeStyles Universal = DateTimeStyles.AssumeUniversal | DateTimeStyles.AdjustToUniversal;

    public string? Problem { get; private set; }

    public JsonElement Object(JsonElement from, string name) => Member(from, name, JsonValueKind.Object, "an object");

    /// <summary>Members of an array, all objects. An array that is not there has none.</summary>
    public IReadOnlyList<JsonElement> OptionalObjects(JsonElement from, string name) =>
        from.ValueKind == JsonValueKind.Object && !from.TryGetProperty(name, out _) ? [] : Objects(from, name);

    /// <summary>Members of an array, all objects.</summary>
    public IReadOnlyList<JsonElement> Objects(JsonElement from, string name)
    {
        JsonElement array = Member(from, name, JsonValueKind.Array, "an array");
        JsonElement[] items = Problem is null ? [.. array.EnumerateArray()] : [];
        return items.All(each => each.ValueKind == JsonValueKind.Object) ? items : Lacks<JsonElement[]>(name, "an array of objects") ?? [];
    }

    public string Text(JsonElement from, string name)
    {
        JsonElement text = Member(from, name, JsonValueKind.String, "a string");
        try
        {
            return Problem is null ? text.GetString()! : "";
        }
        catch (InvalidOperationException)
        {
            // Bytes or escapes that are no Unicode.
            return Lacks<string>(name, "a string") ?? "";
        }
    }

    /// <summary>Hexadecimal digits, of so many bytes.</summary>
    public byte[] Hex(JsonElement from, string name, int size)
    {
        byte[] bytes = new byte[size];
        string text = Text(from, name);
        bool fits = text.Length == 2 * size && Convert.FromHexString(text, bytes, out _, out _) == OperationStatus.Done;
        return fits || Problem is not null ? bytes : Lacks<byte[]>(name, $"{2 * size} hexadecimal digits") ?? bytes;
    }

    /// <summary>A number from 0 to 65535.</summary>
    public ushort Number(JsonElement from, string name)
    {
        JsonElement member = Member(from, name, JsonValueKind.Number, "a number");
        return Problem is not null ? (ushort)0 : member.TryGetUInt16(out ushort number) ? number : Lacks<ushort>(name, $"a number from 0 to {ushort.MaxValue}");
    }

    public DateTimeOffset Time(JsonElement from, string name)
    {
        string text = Text(from, name);
        return Problem is not null ? default
            : DateTimeOffset.TryParseExact(text, TimeForm, CultureInfo.InvariantCulture, Universal, out DateTimeOffset time) ? time
            : Lacks<DateTimeOffset>(name, "a time such as 2026-01-31T12:00:00Z");
    }

    /// <summary>Texts of an array that need not be there; what is no text is passed over.</summary>
    public IReadOnlyList<string> OptionalTexts(JsonElement from, string name)
    {
        if (Problem is not null || !from.TryGetProperty(name, out JsonElement array) || array.ValueKind != JsonValueKind.Array)
        {
            return [];
        }
        return [.. array.EnumerateArray().Where(each => each.ValueKind == JsonValueKind.String).Select(each => TextOf(each)).OfType<string>()];
    }

    public void Demand(bool holds, string problem)
    {
        if (!holds)
        {
            Problem ??= problem;
        }
    }

    private static string? TextOf(JsonElement text)
    {
        try
        {
            return text.GetString();
        }
        catch (InvalidOperationException)
        {
            return null;
        }
    }

    private JsonElement Member(JsonElement from, string name, JsonValueKind kind, string what)
    {
        if (Problem is null && from.ValueKind == JsonValueKind.Object && from.TryGetProperty(name, out JsonElement member) && member.ValueKind == kind)
        {
            return member;
        }
        return Lacks<JsonElement>(name, what);
    }

    private T? Lacks<T>(string name, string what)
    {
        Problem ??= $"its {(path.Length == 0 ? name : $"{path}.{name}")} is missing, or is not {what}";
        return default;
    }
}
