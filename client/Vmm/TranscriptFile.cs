using System.Globalization;
using System.Text;
using System.Text.Json;
using System.Text.RegularExpressions;
using VmmService.Client.Digest;
using VmmService.Client.Launch;

namespace VmmService.Vmm;

/// <summary>
/// Reads measured pages that were written down: the JSON of vmm launch snp and vmm digest compute, the table that --transcript prints, or a bare JSON list. Files come from anyone; what
/// does not fit is told with its place.
/// </summary>
internal static partial class TranscriptFile
{
    // A guest's memory below 4 GiB page by page, in JSON, is some 300 MiB.
    private const int MaxBytes = 512 << 20;

    /// <summary>Reads a launch with all that is told of it.</summary>
    /// <param name="path">The file; - for standard input.</param>
    /// <param name="cancellation">Gives up reading.</param>
    /// <exception cref="UsageException">It cannot be read, or is something else.</exception>
    public static async Task<DigestSide> ReadAsync(string path, CancellationToken cancellation)
    {
        byte[] content = await ContentAsync(path, cancellation);
        if (!LooksLikeJson(content))
            return new DigestSide(path, ParseTable(path, Encoding.UTF8.GetString(content)), new LaunchFacts());

        using JsonDocument document = Parse(path, content);
        JsonElement root = document.RootElement;
        Hash384 initial = Initial(path, Text(root, "initial"));
        DigestStep[] steps = [.. Steps(path, root).Select((element, i) => new DigestStep(Page(path, element, i, strict: false), Digest(path, element, "digestAfter", i)))];
        return new DigestSide(path, new DigestTranscript(steps, initial), await FactsAsync(root, cancellation));
    }

    /// <summary>Reads pages and computes their chain; digests in the file are not looked at.</summary>
    /// <param name="path">The file; - for standard input.</param>
    /// <param name="initial">The digest to go on from; null for what the file says, or zeros.</param>
    /// <param name="cancellation">Gives up reading.</param>
    /// <exception cref="UsageException">It cannot be read, or is something else.</exception>
    public static async Task<DigestTranscript> MeasurePagesAsync(string path, string? initial, CancellationToken cancellation)
    {
        byte[] content = await ContentAsync(path, cancellation);
        if (!LooksLikeJson(content))
            return DigestTranscript.Measure(ParseTable(path, Encoding.UTF8.GetString(content)).Steps.Select(step => step.Page), Initial("--initial", initial));

        using JsonDocument document = Parse(path, content);
        return DigestTranscript.Measure(
            Steps(path, document.RootElement).Select((element, i) => Page(path, element, i, strict: true)),
            initial is null ? Initial(path, Text(document.RootElement, "initial")) : Initial("--initial", initial));
    }

    private static async Task<byte[]> ContentAsync(string path, CancellationToken cancellation)
    {
        try
        {
            await using Stream file = path == "-" ? Console.OpenStandardInput() : File.OpenRead(path);
            using var content = new MemoryStream();
            byte[] chunk = new byte[1 << 20];
            int read;
            while ((read = await file.ReadAsync(chunk, cancellation)) > 0)
            {
                content.Write(chunk, 0, read);
                if (content.Length > MaxBytes)
                    throw new UsageException($"{path}: more than {MaxBytes >> 20} MiB, which is more than any launch below 4 GiB takes to write down. Is it a transcript?");
            }

            return content.ToArray();
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            throw new UsageException($"{path}: cannot be read: {exception.Message} Give the output of `vmm launch snp --json` or `--transcript` as a file, or launch options in quotes.");
        }
    }

    private static bool LooksLikeJson(byte[] content)
    {
        byte first = content.FirstOrDefault(each => each is not ((byte)' ' or (byte)'\t' or (byte)'\r' or (byte)'\n'));
        return first is (byte)'{' or (byte)'[';
    }

    private static JsonDocument Parse(string path, byte[] content)
    {
        try
        {
            return JsonDocument.Parse(content, new JsonDocumentOptions { MaxDepth = 16 });
        }
        catch (JsonException exception)
        {
            throw new UsageException($"{path}: not JSON at line {exception.LineNumber + 1}, byte {exception.BytePositionInLine}: {exception.Message}");
        }
    }

    private static JsonElement.ArrayEnumerator Steps(string path, JsonElement root)
    {
        if (root.ValueKind == JsonValueKind.Array)
            return root.EnumerateArray();
        if (root.TryGetProperty("transcript", out JsonElement steps) && steps.ValueKind == JsonValueKind.Array)
            return steps.EnumerateArray();

        throw new UsageException(root.TryGetProperty("parts", out _)
            ? $"{path}: a digest of SEV or SEV-ES, which has no pages; only SNP digests have a transcript. Compare the SHA-256 of its parts by eye."
            : $"{path}: has no list named transcript. Give the output of `vmm launch snp --json` or of `vmm digest compute --json`.");
    }

    // strict: what a computation needs must be there and nothing else. A transcript that was read is taken as it is.
    private static MeasuredPage Page(string path, JsonElement element, int index, bool strict)
    {
        if (element.ValueKind != JsonValueKind.Object)
            throw Bad("is not an object");
        if (!TryPageType(Text(element, "pageType"), out MeasuredPageType type))
            throw Bad($"has the pageType {Shown(element, "pageType")}; known are {string.Join(", ", Enum.GetNames<MeasuredPageType>())}");
        if (Text(element, "gpa") is not { } gpaText || !Numbers.TryParse(gpaText, out ulong gpa) || gpa % FirmwareImage.PageSize != 0)
            throw Bad($"has the gpa {Shown(element, "gpa")}; it has to be a string with the address of a page, such as \"0xfffff000\"");

        string? hash = Text(element, "contentHash");
        bool measured = type is MeasuredPageType.NORMAL or MeasuredPageType.VMSA;
        if (hash is null && !measured)
            return new MeasuredPage(type, gpa, default);
        if (!Hash384.TryParse(hash, out Hash384 contents))
            throw Bad($"has the contentHash {Shown(element, "contentHash")}; it has to be the SHA-384 of the page, 96 hexadecimal digits");
        if (strict && !measured && contents != default)
            throw Bad($"has a contentHash, but of a page of type {type} the content is not measured; leave it out");

        return new MeasuredPage(type, gpa, contents);

        UsageException Bad(string what) => new($"{path}: entry {index} of the list {what}.");
    }

    private static Hash384 Digest(string path, JsonElement element, string name, int index) =>
        Hash384.TryParse(Text(element, name), out Hash384 digest)
            ? digest
            : throw new UsageException(
                $"{path}: entry {index} of the list has the {name} {Shown(element, name)}; it has to be 96 hexadecimal digits. `vmm digest compute --pages {path} --json` computes them.");

    private static Hash384 Initial(string where, string? text)
    {
        if (text is null)
            return default;
        return Hash384.TryParse(text, out Hash384 initial)
            ? initial
            : throw new UsageException($"{where}: the digest to go on from is '{Shorten(text)}'; it has to be 96 hexadecimal digits.");
    }

    private static DigestTranscript ParseTable(string path, string text)
    {
        List<DigestStep> steps = [];
        foreach (Match row in Row().Matches(text))
        {
            if (!TryPageType(row.Groups["type"].Value, out MeasuredPageType type)
                || !Numbers.TryParse(row.Groups["gpa"].Value, out ulong gpa)
                || !Hash384.TryParse(row.Groups["content"].Value, out Hash384 content)
                || !Hash384.TryParse(row.Groups["after"].Value, out Hash384 after)
                || row.Groups["index"].Value != steps.Count.ToString(CultureInfo.InvariantCulture))
            {
                throw new UsageException($"{path}: step {steps.Count} should stand at '{Shorten(row.Value.Trim())}'; the table is incomplete or was changed.");
            }

            steps.Add(new DigestStep(new MeasuredPage(type, gpa, content), after));
        }

        return steps.Count > 0
            ? new DigestTranscript(steps)
            : throw new UsageException($"{path}: no measured page in it. Give the output of `vmm launch snp --json` or `vmm launch snp --transcript`: without either of them only runs are printed.");
    }

    // What the other fields say. All of it is optional and serves the words only, so what does not fit is passed over.
    private static async Task<LaunchFacts> FactsAsync(JsonElement root, CancellationToken cancellation)
    {
        if (root.ValueKind != JsonValueKind.Object)
            return new LaunchFacts();

        string? firmwareSha = Text(root, "sha256", "firmware");
        return new LaunchFacts
        {
            FirmwareSha256 = firmwareSha,
            Firmware = await FirmwareAsync(Text(root, "path", "firmware"), firmwareSha, cancellation),
            KernelSha256 = Text(root, "sha256", "kernel"),
            InitrdSha256 = Text(root, "sha256", "initrd"),
            Append = Text(root, "append"),
            SevFeatures = Numbers.TryParse(Text(root, "guestFeatures", "parameters") ?? "", out ulong features) ? features : null,
            Signature = Numbers.TryParse(Text(root, "vcpuSignature", "parameters") ?? "", out uint signature) ? new CpuSignature(signature) : null,
            Regions = [.. Lists(root, "regions").Concat(Lists(root, "gpaMap").SelectMany(slot => Lists(slot, "measured"))).Select(Region).OfType<NamedRegion>()],
        };
    }

    private static NamedRegion? Region(JsonElement element) =>
        Numbers.TryParse(Text(element, "gpa") ?? "", out ulong gpa) && Text(element, "name") is { } name
            && element.TryGetProperty("size", out JsonElement size) && size.ValueKind == JsonValueKind.Number && size.TryGetUInt64(out ulong bytes)
            ? new NamedRegion(gpa, bytes, name)
            : null;

    // The image helps only if it is still the one that was measured.
    private static async Task<FirmwareImage?> FirmwareAsync(string? path, string? sha256, CancellationToken cancellation)
    {
        try
        {
            FirmwareImage image = path is null ? FirmwareImage.Parse(SampleFirmware.Create(), SampleFirmware.Name) : await FirmwareImage.LoadAsync(path, cancellation);
            return Sha256Hex.Of(image.Bytes.Span) == sha256 ? image : null;
        }
        catch (Exception exception) when (exception is LaunchInputException or ArgumentException)
        {
            return null;
        }
    }

    private static JsonElement.ArrayEnumerator Lists(JsonElement element, string name) =>
        element.ValueKind == JsonValueKind.Object && element.TryGetProperty(name, out JsonElement list) && list.ValueKind == JsonValueKind.Array ? list.EnumerateArray() : default;

    private static string? Text(JsonElement element, string name, string? of = null)
    {
        if (of is not null && (element.ValueKind != JsonValueKind.Object || !element.TryGetProperty(of, out element)))
            return null;
        return element.ValueKind == JsonValueKind.Object && element.TryGetProperty(name, out JsonElement value) && value.ValueKind == JsonValueKind.String ? value.GetString() : null;
    }

    private static string Shown(JsonElement element, string name) => element.TryGetProperty(name, out JsonElement value) ? Shorten(value.GetRawText()) : "missing";

    private static string Shorten(string text) => text.Length <= 100 ? text : text[..100] + "...";

    private static bool TryPageType(string? name, out MeasuredPageType type) =>
        Enum.TryParse(name, ignoreCase: true, out type) && Enum.IsDefined(type) && !char.IsAsciiDigit(name![0]);

    [GeneratedRegex(@"^ *(?<index>[0-9]+) +(?<type>[A-Z]+) +(?<gpa>0x[0-9a-f]+) +(?<content>[0-9a-f]{96}) +(?<after>[0-9a-f]{96}) *\r?$", RegexOptions.Multiline | RegexOptions.ExplicitCapture)]
    private static partial Regex Row();
}
