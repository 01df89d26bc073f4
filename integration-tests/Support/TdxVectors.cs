using System.Globalization;
using System.Security.Cryptography;
using System.Text;
using System.Text.Json;
using Xunit;

namespace VmmService.IntegrationTests.Support;

/// <summary>
/// Vectors/tdx-vectors.json: one list of vectors for each key, each with an id. Content is described by formulas, which <see cref="Content"/> follows; an image is a formula with
/// patches (<see cref="Image"/>). The one real firmware is an installed Debian package's (<see cref="RequireFirmware"/>).
/// </summary>
public static class TdxVectors
{
    private static readonly JsonDocument s_document = JsonDocument.Parse(
        File.ReadAllBytes(Path.Combine(AppContext.BaseDirectory, "Vectors", "tdx-vectors.json")));

    /// <summary>The vectors of a key, in the order of the file.</summary>
    public static IEnumerable<JsonElement> All(string key) => s_document.RootElement.GetProperty(key).EnumerateArray();

    /// <summary>Every vector of the file, by its type: whatever is in a list and has an id.</summary>
    public static IEnumerable<(string Type, string Id)> Everything() =>
        from key in s_document.RootElement.EnumerateObject()
        where key.Value.ValueKind == JsonValueKind.Array
        from vector in key.Value.EnumerateArray()
        select (key.Name, Text(vector, "id"));

    /// <summary>Ids of the vectors of a key, as the rows of a theory.</summary>
    public static TheoryData<string> Ids(string key) => Ids(key, _ => true);

    public static TheoryData<string> Ids(string key, Func<JsonElement, bool> which) => new(All(key).Where(which).Select(vector => vector.GetProperty("id").GetString()!));

    public static JsonElement Get(string key, string id) => All(key).Single(vector => vector.GetProperty("id").GetString() == id);

    /// <summary>A number, or a string with 0x.</summary>
    public static ulong Number(JsonElement value) => value.ValueKind == JsonValueKind.Number
        ? value.GetUInt64()
        : ulong.Parse(value.GetString().AsSpan(2), NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture);

    public static ulong Number(JsonElement element, string name) => Number(element.GetProperty(name));

    public static string Text(JsonElement element, string name) => element.GetProperty(name).GetString()!;

    public static byte[] Bytes(JsonElement element, string name) => Convert.FromHexString(Text(element, name));

    /// <summary>Bytes of a content formula.</summary>
    public static byte[] Content(JsonElement formula, int size)
    {
        byte[] bytes = new byte[size];
        switch (Text(formula, "kind"))
        {
            case "zero":
                break;
            case "fill":
                bytes.AsSpan().Fill((byte)Number(formula, "value"));
                break;
            case "affine":
                ulong a = Number(formula, "a"), b = Number(formula, "b"), c = Number(formula, "c");
                for (int i = 0; i < size; i++)
                    bytes[i] = (byte)((a * (ulong)i) + (b * (ulong)(i / 256)) + c);
                break;
            case "sha256ctr":
                byte[] label = Encoding.ASCII.GetBytes(Text(formula, "label"));
                for (int at = 0, k = 0; at < size; at += 32, k++)
                {
                    byte[] block = SHA256.HashData([.. label, .. BitConverter.GetBytes((ulong)k)]);
                    block.AsSpan(0, Math.Min(32, size - at)).CopyTo(bytes.AsSpan(at));
                }

                break;
            case "hex":
                Bytes(formula, "hex").CopyTo(bytes, 0);
                break;
            case var kind:
                throw new InvalidDataException($"there is no formula {kind}");
        }

        return bytes;
    }

    /// <summary>An image as its vector says how to build it.</summary>
    public static byte[] Image(JsonElement vector)
    {
        JsonElement build = vector.GetProperty("build");
        byte[] image = Content(build.GetProperty("fill"), build.GetProperty("size").GetInt32());
        foreach (JsonElement patch in build.GetProperty("patches").EnumerateArray())
            Bytes(patch, "hex").CopyTo(image, (int)Number(patch, "offset"));
        Assert.Equal(Text(vector, "image_sha256"), Sha256(image));
        return image;
    }

    /// <summary>The file of a firmware vector; the calling test is skipped where it is not installed.</summary>
    public static byte[] RequireFirmware(JsonElement vector)
    {
        const string path = "/usr/share/ovmf/OVMF.fd";
        string obtain = Text(vector, "obtain");
        Assert.Contains(path[1..], obtain, StringComparison.Ordinal);
        Assert.SkipUnless(File.Exists(path), $"{path} is not there: {obtain}");
        byte[] image = File.ReadAllBytes(path);
        Assert.SkipUnless(Sha256(image) == Text(vector, "sha256"), $"{path} is another version: {obtain}");
        return image;
    }

    /// <summary>
    /// A firmware that only another project's release has: looked for by its SHA-256 in the folder that <see cref="TestInputs.FixturesVariable"/> names. The calling test is skipped
    /// where it is not.
    /// </summary>
    public static byte[] RequireReleasedFirmware(JsonElement vector)
    {
        string what = $"{Text(vector, "firmware")} (SHA-256 {Text(vector, "firmware_sha256")})";
        string? folder = Environment.GetEnvironmentVariable(TestInputs.FixturesVariable);
        Assert.SkipWhen(string.IsNullOrEmpty(folder), $"{what} is not installed anywhere, and {TestInputs.FixturesVariable} does not name a folder that has it");
        byte[]? image = Directory.EnumerateFiles(folder!, "*.fd", SearchOption.AllDirectories).Order(StringComparer.Ordinal).Select(File.ReadAllBytes)
            .FirstOrDefault(bytes => Sha256(bytes) == Text(vector, "firmware_sha256"));
        Assert.SkipWhen(image is null, $"no .fd file in {folder} is {what}");
        return image!;
    }

    public static string Sha256(ReadOnlySpan<byte> bytes) => Convert.ToHexStringLower(SHA256.HashData(bytes));

    public static string Sha384(ReadOnlySpan<byte> bytes) => Convert.ToHexStringLower(SHA384.HashData(bytes));
}
