using System.Globalization;
using System.Security.Cryptography;
using System.Text;
using System.Text.Json;
using Xunit;

namespace VmmService.IntegrationTests.Support;

/// <summary>Vectors/tdx-vectors.json: ioctl scenarios of TDs, and the bytes that it describes by formula.</summary>
public static class TdxScenarios
{
    // Generation of the file to the profiles that are of it.
    private static readonly (string Profile, string Generation)[] s_profiles = [("K616", "6.16"), ("K618", "6.16"), ("K619", "6.19"), ("K70", "7.0"), ("K72", "7.0")];

    private static readonly JsonElement s_root =
        JsonDocument.Parse(File.ReadAllBytes(Path.Combine(AppContext.BaseDirectory, "Vectors", "tdx-vectors.json"))).RootElement;

    /// <summary>Every scenario on every profile, as the rows of a theory.</summary>
    public static TheoryData<string, string> All
    {
        get
        {
            var data = new TheoryData<string, string>();
            foreach (JsonElement scenario in s_root.GetProperty("scenarios").EnumerateArray())
            {
                foreach ((string profile, _) in s_profiles)
                {
                    data.Add(scenario.GetProperty("id").GetString()!, profile);
                }
            }
            return data;
        }
    }

    /// <summary>Launches with their MRTD.</summary>
    public static IEnumerable<JsonElement> Mrtds => s_root.GetProperty("mrtd").EnumerateArray();

    public static JsonElement Get(string id) => s_root.GetProperty("scenarios").EnumerateArray().Single(scenario => scenario.GetProperty("id").GetString() == id);

    /// <summary>What a step expects on a profile.</summary>
    public static JsonElement Expected(JsonElement step, string profile)
    {
        JsonElement expect = step.GetProperty("expect");
        return expect.TryGetProperty(s_profiles.First(each => each.Profile == profile).Generation, out JsonElement own) ? own : expect;
    }

    /// <summary>A number, or a string with 0x.</summary>
    public static ulong Number(JsonElement element) => element.ValueKind == JsonValueKind.Number ? element.GetUInt64() : Number(element.GetString()!);

    public static ulong Number(string text) => text.StartsWith("0x", StringComparison.Ordinal)
        ? ulong.Parse(text.AsSpan(2), NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture)
        : ulong.Parse(text, CultureInfo.InvariantCulture);

    public static ulong Number(JsonElement step, string name, ulong byDefault = 0) => step.TryGetProperty(name, out JsonElement value) ? Number(value) : byDefault;

    /// <summary>Content by formula (content_formulas of the file).</summary>
    public static byte[] Content(JsonElement formula, int length) => formula.GetProperty("kind").GetString() switch
    {
        "zero" => new byte[length],
        "fill" => [.. Enumerable.Repeat((byte)Number(formula, "value"), length)],
        "affine" => Affine($"affine({formula.GetProperty("a")},{formula.GetProperty("b")},{formula.GetProperty("c")})", length),
        "sha256ctr" => Sha256Counter(formula.GetProperty("label").GetString()!, length),
        var other => throw new InvalidOperationException($"no formula {other}"),
    };

    /// <summary>"affine(a,b,c)": byte i is a*i + b*(i/256) + c.</summary>
    public static byte[] Affine(string formula, int length)
    {
        int[] abc = [.. formula["affine(".Length..^1].Split(',').Select(part => int.Parse(part, CultureInfo.InvariantCulture))];
        return [.. Enumerable.Range(0, length).Select(i => (byte)((abc[0] * i) + (abc[1] * (i / 256)) + abc[2]))];
    }

    private static byte[] Sha256Counter(string label, int length)
    {
        byte[] name = Encoding.ASCII.GetBytes(label), bytes = new byte[length];
        for (int at = 0; at < length; at += SHA256.HashSizeInBytes)
        {
            byte[] block = SHA256.HashData([.. name, .. BitConverter.GetBytes((ulong)(at / SHA256.HashSizeInBytes))]);
            block.AsSpan(0, Math.Min(block.Length, length - at)).CopyTo(bytes.AsSpan(at));
        }
        return bytes;
    }
}
