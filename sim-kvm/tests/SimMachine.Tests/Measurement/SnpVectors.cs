// The SNP test vectors beside the test assembly, and the input bytes that they describe by recipe.

using System.Buffers.Binary;
using System.Globalization;
using System.Security.Cryptography;
using System.Text;
using System.Text.Json;

namespace SimMachine.Tests.Measurement;

internal static class SnpVectors
{
    private static readonly JsonElement s_root =
        JsonDocument.Parse(File.ReadAllBytes(Path.Combine(AppContext.BaseDirectory, "Vectors", "snp-vectors.json"))).RootElement;

    public static IEnumerable<string> IdsOf(string kind) =>
        s_root.GetProperty("vectors").EnumerateArray().Where(vector => vector.GetProperty("kind").GetString() == kind)
            .Select(vector => vector.GetProperty("id").GetString()!);

    public static JsonElement Get(string id) =>
        s_root.GetProperty("vectors").EnumerateArray().Single(vector => vector.GetProperty("id").GetString() == id);

    /// <summary>An input of kind sha256-ctr: SHA-256 of the label and a counter, again and again.</summary>
    public static byte[] Input(string id)
    {
        JsonElement input = s_root.GetProperty("inputs").GetProperty(id);
        byte[] label = Encoding.ASCII.GetBytes(input.GetProperty("label").GetString()!);
        byte[] bytes = new byte[input.GetProperty("size").GetInt32()];
        for (int block = 0; block * SHA256.HashSizeInBytes < bytes.Length; block++)
        {
            byte[] counter = new byte[sizeof(int)];
            BinaryPrimitives.WriteInt32LittleEndian(counter, block);
            byte[] hash = SHA256.HashData([.. label, .. counter]);
            int at = block * SHA256.HashSizeInBytes;
            hash.AsSpan(0, Math.Min(hash.Length, bytes.Length - at)).CopyTo(bytes.AsSpan(at));
        }
        return bytes;
    }

    public static string? TextOr(this JsonElement element, string name) =>
        element.TryGetProperty(name, out JsonElement value) ? value.GetString() : null;

    public static byte[] Bytes(this JsonElement element, string name) => Convert.FromHexString(element.GetProperty(name).GetString()!);

    public static ulong Hex(string text) => ulong.Parse(text.AsSpan(2), NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture);
}
