using System.CommandLine;
using System.Text.Json;
using VmmService.Client.Digest;

namespace VmmService.Vmm;

/// <summary>vmm digest diff: why two digests differ.</summary>
internal sealed class DigestDiffCommand
{
    // More lines than anyone reads; --json has all.
    private const int MostShown = 30;

    private readonly VmmConsole _console;
    private readonly Argument<string> _a = new("A") { Description = "One launch." };
    private readonly Argument<string> _b = new("B") { Description = "The other." };
    private readonly Option<string?> _server = new("--server") { Description = "Address of the daemon that has the VMs: http://HOST:PORT or unix:///PATH.", HelpName = "URI" };
    private readonly Option<bool> _json = InfoCommands.JsonOption("Print one JSON object.");

    private DigestDiffCommand(VmmConsole console) => _console = console;

    public static Command Create(VmmConsole console)
    {
        var it = new DigestDiffCommand(console);
        var command = new Command(
            "diff",
            $"""
            Put the measured pages of two SNP launches side by side, name the first that differs, and say what it means.

            {DigestSides.Help}

            Exit codes:
              0    they measure the same
              1    they differ
              2    the command line or an input file cannot be used
              3    the daemon could not be reached, or failed
              130  interrupted
            """)
        {
            it._a, it._b, it._server, it._json,
        };
        command.Add(DigestTdxDiffCommand.Create(console));
        command.SetAction(it.RunAsync);
        return command;
    }

    private async Task<int> RunAsync(ParseResult parsed, CancellationToken cancellation)
    {
        string? server = parsed.GetValue(_server);
        DigestSide a = await DigestSides.ReadAsync(parsed.GetRequiredValue(_a), server, cancellation);
        DigestSide b = await DigestSides.ReadAsync(parsed.GetRequiredValue(_b), server, cancellation);
        DigestDiff diff = DigestDiff.Compare(a, b);
        cancellation.ThrowIfCancellationRequested();
        if (parsed.GetValue(_json))
            await _console.Output.WriteLineAsync(JsonSerializer.Serialize(Report.Of(a, b, diff), DigestReport.Json));
        else
            Write(_console.Output, a, b, diff);
        return diff.FirstIndex is null && Warnings(a, b).Length == 0 ? ExitCode.Ok : ExitCode.Different;
    }

    private static void Write(TextWriter output, DigestSide a, DigestSide b, DigestDiff diff)
    {
        output.WriteLine($"A  {a.Transcript.Digest}  {a.Name}");
        output.WriteLine($"B  {b.Transcript.Digest}  {b.Name}");
        output.WriteLine();
        foreach (string warning in Warnings(a, b))
            output.WriteLine(warning);
        if (diff.FirstIndex is not { } first)
        {
            output.WriteLine($"The same: {a.Transcript.Steps.Count} records, none differs.");
            return;
        }

        output.WriteLine($"First difference: record {first}");
        output.WriteLine($"  A: {Record(a, first)}");
        output.WriteLine($"  B: {Record(b, first)}");
        output.WriteLine($"  {diff.FirstMeaning}");
        output.WriteLine();
        int records = diff.Differences.Sum(each => each.Pages);
        output.WriteLine($"All differences ({records} {(records == 1 ? "record" : "records")})");
        foreach (DigestDifference difference in diff.Differences.Take(MostShown))
            output.WriteLine($"  {Where(difference)}: {difference.Meaning}");
        if (diff.Differences.Count > MostShown)
            output.WriteLine($"  and {diff.Differences.Count - MostShown} more; --json has them");
    }

    // A transcript that was read may have been changed, or come from something that measures differently.
    private static string[] Warnings(DigestSide a, DigestSide b) =>
    [
        .. new[] { ("A", a), ("B", b) }
            .Select(each => (Name: each.Item1, Broken: each.Item2.Transcript.FirstBrokenStep()))
            .Where(each => each.Broken is not null)
            .Select(each => $"{each.Name} contradicts itself: the digest after record {each.Broken} does not follow from the record and the digest before. "
                + "The transcript was changed or cut, or what measured it is not an SNP launch."),
    ];

    private static string Record(DigestSide side, int index)
    {
        if (index >= side.Transcript.Steps.Count)
            return $"has ended after {side.Transcript.Steps.Count} records";
        MeasuredPage page = side.Transcript.Steps[index].Page;
        return $"{page.PageType} {Numbers.Hex(page.Gpa)} {page.Contents}";
    }

    private static string Where(DigestDifference difference) => (difference.IndexA, difference.IndexB) switch
    {
        ({ } a, { } b) when a == b => $"record {Range(a, difference.Pages)}",
        ({ } a, { } b) => $"record {Range(a, difference.Pages)} of A, {Range(b, difference.Pages)} of B",
        ({ } a, null) => $"record {Range(a, difference.Pages)} of A",
        (_, var b) => $"record {Range(b!.Value, difference.Pages)} of B",
    };

    private static string Range(int index, int pages) => pages == 1 ? $"{index}" : $"{index}-{index + pages - 1}";

    // The property names are those of --json.
    private sealed record Report(
        bool Same, SideEntry A, SideEntry B, int? FirstIndex, RecordEntry? FirstA, RecordEntry? FirstB, string? Meaning, IReadOnlyList<DifferenceEntry> Differences, IReadOnlyList<string> Warnings)
    {
        public static Report Of(DigestSide a, DigestSide b, DigestDiff diff) => new(
            diff.FirstIndex is null,
            SideEntry.Of(a),
            SideEntry.Of(b),
            diff.FirstIndex,
            RecordEntry.Of(a, diff.FirstIndex),
            RecordEntry.Of(b, diff.FirstIndex),
            diff.FirstMeaning,
            [.. diff.Differences.Select(each => new DifferenceEntry(each.Kind.ToString(), each.IndexA, each.IndexB, each.Pages, each.Meaning))],
            DigestDiffCommand.Warnings(a, b));
    }

    private sealed record SideEntry(string Name, string LaunchDigest, int Records)
    {
        public static SideEntry Of(DigestSide side) => new(side.Name, side.Transcript.Digest.ToString(), side.Transcript.Steps.Count);
    }

    private sealed record RecordEntry(string PageType, string Gpa, string ContentHash)
    {
        public static RecordEntry? Of(DigestSide side, int? index) => index < side.Transcript.Steps.Count
            ? new RecordEntry(
                side.Transcript.Steps[index.Value].Page.PageType.ToString(), Numbers.Hex(side.Transcript.Steps[index.Value].Page.Gpa), side.Transcript.Steps[index.Value].Page.Contents.ToString())
            : null;
    }

    private sealed record DifferenceEntry(string Kind, int? IndexA, int? IndexB, int Records, string Meaning);
}
