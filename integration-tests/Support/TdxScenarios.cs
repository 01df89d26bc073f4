using System.Globalization;
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

    /// <summary>"affine(a,b,c)": byte i is a*i + b*(i/256) + c.</summary>
    public static byte[] Affine(string formula, int length)
    {
        int[] abc = [.. formula["affine(".Length..^1].Split(',').Select(part => int.Parse(part, CultureInfo.InvariantCulture))];
        return [.. Enumerable.Range(0, length).Select(i => (byte)((abc[0] * i) + (abc[1] * (i / 256)) + abc[2]))];
    }
}
