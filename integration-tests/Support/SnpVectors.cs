using System.Globalization;
using System.Text.Json;

namespace VmmService.IntegrationTests.Support;

/// <summary>A vector of snp-vectors.json.</summary>
public sealed record SnpVector(string Id, string Kind, JsonElement Params, JsonElement Expected)
{
    public string? Text(string parameter) => Params.TryGetProperty(parameter, out JsonElement value) ? value.GetString() : null;

    public int Int(string parameter, int otherwise) => Params.TryGetProperty(parameter, out JsonElement value) ? value.GetInt32() : otherwise;

    public ulong? Hex(string parameter) => Text(parameter) is { } text ? ulong.Parse(text.AsSpan(2), NumberStyles.HexNumber, CultureInfo.InvariantCulture) : null;

    public string ExpectedText(string property) => Expected.GetProperty(property).GetString()!;
}

/// <summary>The vectors of Vectors/snp-vectors.json; their origin is in the README beside the file.</summary>
public static class SnpVectors
{
    private static readonly Lazy<JsonDocument> Document =
        new(() => JsonDocument.Parse(File.ReadAllBytes(Path.Combine(AppContext.BaseDirectory, "Vectors", "snp-vectors.json"))));

    public static JsonElement Inputs => Document.Value.RootElement.GetProperty("inputs");

    public static IEnumerable<SnpVector> OfKind(params string[] kinds) => Document.Value.RootElement.GetProperty("vectors").EnumerateArray()
        .Select(vector => new SnpVector(
            vector.GetProperty("id").GetString()!, vector.GetProperty("kind").GetString()!, vector.GetProperty("params"), vector.GetProperty("expected")))
        .Where(vector => kinds.Contains(vector.Kind));

    public static SnpVector Find(string id) => Document.Value.RootElement.GetProperty("vectors").EnumerateArray()
        .Where(vector => vector.GetProperty("id").GetString() == id)
        .Select(vector => new SnpVector(id, vector.GetProperty("kind").GetString()!, vector.GetProperty("params"), vector.GetProperty("expected")))
        .Single();
}
