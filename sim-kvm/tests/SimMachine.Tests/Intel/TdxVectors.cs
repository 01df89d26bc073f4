// The TDX test vectors beside the test assembly, and the bytes that they describe by formula.

using System.Globalization;
using System.Security.Cryptography;
using System.Text;
using System.Text.Json;

namespace SimMachine.Tests.Intel;

internal static class TdxVectors
{
    private static readonly JsonElement s_root =
        JsonDocument.Parse(File.ReadAllBytes(Path.Combine(AppContext.BaseDirectory, "Vectors", "tdx-vectors.json"))).RootElement;

    public static IEnumerable<string> IdsOf(string key) => s_root.GetProperty(key).EnumerateArray().Select(vector => vector.GetProperty("id").GetString()!);

    public static JsonElement Get(string key, string id) => s_root.GetProperty(key).EnumerateArray().Single(vector => vector.GetProperty("id").GetString() == id);

    public static ulong Hex(string text) => ulong.Parse(text.AsSpan(2), NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture);

    public static ulong Hex(this JsonElement element, string name) => Hex(element.GetProperty(name).GetString()!);

    public static byte[] Bytes(this JsonElement element, string name) => Convert.FromHexString(element.GetProperty(name).GetString()!);

    /// <summary>Content by formula (content_formulas of the file).</summary>
    public static byte[] Content(JsonElement formula, int length)
    {
        byte[] bytes = new byte[length];
        switch (formula.GetProperty("kind").GetString())
        {
            case "zero":
                break;
            case "fill":
                Array.Fill(bytes, (byte)formula.GetProperty("value").GetInt32());
                break;
            case "affine":
                int a = formula.GetProperty("a").GetInt32(), b = formula.GetProperty("b").GetInt32(), c = formula.GetProperty("c").GetInt32();
                for (int i = 0; i < length; i++)
                {
                    bytes[i] = (byte)((a * i) + (b * (i / 256)) + c);
                }
                break;
            case "sha256ctr":
                byte[] label = Encoding.ASCII.GetBytes(formula.GetProperty("label").GetString()!);
                for (int at = 0; at < length; at += SHA256.HashSizeInBytes)
                {
                    byte[] block = SHA256.HashData([.. label, .. BitConverter.GetBytes((ulong)(at / SHA256.HashSizeInBytes))]);
                    block.AsSpan(0, Math.Min(block.Length, length - at)).CopyTo(bytes.AsSpan(at));
                }
                break;
            case "hex":
                Convert.FromHexString(formula.GetProperty("hex").GetString()!).CopyTo(bytes, 0);
                break;
            case { } other:
                throw new InvalidOperationException($"no formula {other}");
        }
        return bytes;
    }
}
