using System.Globalization;
using System.Text.Json;
using Xunit;

namespace VmmService.IntegrationTests.Support;

/// <summary>
/// Vectors/snp-vectors.json as records. Kinds with many vectors have typed views (<see cref="SnpVector.Launch"/>); a kind with one or two is read from
/// <see cref="SnpVector.Params"/> and <see cref="SnpVector.Expected"/> where it is tested. The files that vectors speak of are <see cref="TestInputs"/>'s.
/// </summary>
public static class SnpVectors
{
    private static readonly JsonDocument s_document = JsonDocument.Parse(File.ReadAllBytes(Find("snp-vectors.json")));

    private static readonly Dictionary<string, SnpVector> s_vectors =
        s_document.RootElement.GetProperty("vectors").EnumerateArray().Select(SnpVector.Read).ToDictionary(vector => vector.Id, StringComparer.Ordinal);

    /// <summary>The recipes of all inputs, by id.</summary>
    public static IReadOnlyDictionary<string, JsonElement> Inputs { get; } =
        s_document.RootElement.GetProperty("inputs").EnumerateObject().ToDictionary(input => input.Name, input => input.Value, StringComparer.Ordinal);

    /// <summary>All vectors, in the order of the file.</summary>
    public static IEnumerable<SnpVector> All => s_document.RootElement.GetProperty("vectors").EnumerateArray().Select(vector => Get(vector.GetProperty("id").GetString()!));

    public static SnpVector Get(string id) => s_vectors[id];

    /// <summary>Ids of the vectors of a kind, as the rows of a theory.</summary>
    public static TheoryData<string> Ids(string kind) => new(All.Where(vector => vector.Kind == kind).Select(vector => vector.Id));

    // Beside the test assembly if the project copies it there, otherwise in the source tree above it.
    private static string Find(string name)
    {
        string relative = Path.Combine("Vectors", name);
        for (DirectoryInfo? folder = new(AppContext.BaseDirectory); folder is not null; folder = folder.Parent)
        {
            foreach (string candidate in new[] { Path.Combine(folder.FullName, relative), Path.Combine(folder.FullName, "integration-tests", relative) })
            {
                if (File.Exists(candidate))
                    return candidate;
            }
        }

        throw new FileNotFoundException($"{relative} is neither beside the tests ({AppContext.BaseDirectory}) nor in integration-tests of a folder above");
    }
}

/// <summary>One vector.</summary>
/// <param name="Kind">What to check; see section 14 of the SNP specification.</param>
/// <param name="Source">Who computed it.</param>
/// <param name="ToolArgs">Arguments of sev-snp-measure; undefined where the vector has none.</param>
public sealed record SnpVector(string Id, string Kind, string Source, JsonElement Params, JsonElement Expected, JsonElement ToolArgs)
{
    /// <summary>The parameters of a launch; for the kinds whose names end in launch-digest and launch-digest-error.</summary>
    public SnpLaunchParams Launch => SnpLaunchParams.Read(Params);

    /// <summary>A string of <see cref="Expected"/>; null if it is not there.</summary>
    public string? ExpectedText(string name) => Text(Expected, name);

    /// <summary>The reference tool's command line, with files for its {input-id}; the calling test is skipped if one of them cannot be had.</summary>
    public string[] ToolCommandLine() =>
        [.. ToolArgs.EnumerateArray().Select(each => each.GetString()!).Select(word => word is ['{', .. string id, '}'] ? TestInputs.RequireFile(id) : word)];

    public override string ToString() => Id;

    internal static SnpVector Read(JsonElement vector) => new(
        vector.GetProperty("id").GetString()!, vector.GetProperty("kind").GetString()!, vector.GetProperty("source").GetString()!, vector.GetProperty("params"), vector.GetProperty("expected"),
        vector.TryGetProperty("tool_args", out JsonElement arguments) ? arguments : default);

    internal static string? Text(JsonElement element, string name) =>
        element.TryGetProperty(name, out JsonElement value) && value.ValueKind == JsonValueKind.String ? value.GetString() : null;

    /// <summary>A number that is written as a string with 0x.</summary>
    internal static ulong Hex(string text) => ulong.Parse(text.AsSpan(2), NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture);
}

/// <summary>Parameters of a launch. Firmware, Kernel and Initrd are ids of inputs.</summary>
/// <param name="Mode">snp, seves, sev or snp:svsm.</param>
/// <param name="VcpuSig">Null where the VMM does not measure it.</param>
/// <param name="GuestFeatures">SEV_FEATURES; null for modes without.</param>
public sealed record SnpLaunchParams(
    string Mode, string Firmware, int Vcpus, string? VcpuType, uint? VcpuSig, ulong? GuestFeatures, string VmmType, string? Kernel, string? Initrd, string? Append)
{
    /// <summary>Inputs that the launch needs.</summary>
    public IEnumerable<string> Inputs => new[] { Firmware, Kernel, Initrd }.OfType<string>();

    internal static SnpLaunchParams Read(JsonElement element) => new(
        SnpVector.Text(element, "mode")!,
        SnpVector.Text(element, "firmware")!,
        element.TryGetProperty("vcpus", out JsonElement vcpus) ? vcpus.GetInt32() : 1,
        SnpVector.Text(element, "vcpu_type"),
        SnpVector.Text(element, "vcpu_sig") is { } sig ? (uint)SnpVector.Hex(sig) : null,
        SnpVector.Text(element, "guest_features") is { } features ? SnpVector.Hex(features) : null,
        SnpVector.Text(element, "vmm_type")!,
        SnpVector.Text(element, "kernel"),
        SnpVector.Text(element, "initrd"),
        SnpVector.Text(element, "append"));
}
