using System.Globalization;
using System.Text;
using System.Text.Json;
using VmmService.IntegrationTests.Cli;
using VmmService.IntegrationTests.Support;
using Xunit;

namespace VmmService.IntegrationTests.Docs;

/// <summary>sim-kvm/docs/explored.md is what exploring the scenarios of the mails comes to. With VMM_WRITE_DOCS=1 the page is written instead.</summary>
public sealed class ExploredDocsTests
{
    private const string Head =
        """
        # Explored

        The designs that the mails argue about, explored: every order of the programs of a scenario that can be told apart. Written by `ExploredDocsTests`; the scenarios are in
        `integration-tests/Seeds/Scenarios`, their language in `client/docs/scenarios.md`. A row is seen again with `vmm explore FILE --replay SCHEDULE`. What a row costs is the
        schedules at the speed that `sim-kvm/bench` measures.

        | mail | scenario | kernel | schedules | redundant | finding | schedule |
        |---|---|---|---|---|---|---|

        """;

    private static string Page => Path.Combine(Repository.Root, "sim-kvm", "docs", "explored.md");

    [Fact]
    public async Task ExploredPage_SaysWhatExploringComesTo()
    {
        var text = new StringBuilder(Head.ReplaceLineEndings("\n"));
        foreach (string path in Directory.GetFiles(Path.Combine(Repository.Root, "integration-tests", "Seeds", "Scenarios"), "*.yaml").Order(StringComparer.Ordinal))
        {
            VmmRun run = await VmmRun.Invoke("explore", path, "--json");
            Assert.True(run.Error.Length == 0, run.Error);
            foreach (JsonElement result in run.Json.GetProperty("results").EnumerateArray())
            {
                Append(text, Path.GetFileName(path), result);
            }
        }
        if (Environment.GetEnvironmentVariable("VMM_WRITE_DOCS") == "1")
        {
            await File.WriteAllTextAsync(Page, text.ToString());
        }
        Assert.Equal(text.ToString(), await File.ReadAllTextAsync(Page));
    }

    private static void Append(StringBuilder text, string file, JsonElement result)
    {
        string title = result.GetProperty("title").GetString()!;
        string about = title[(title.IndexOf(':', StringComparison.Ordinal) + 1)..].Trim();
        string all = result.GetProperty("end").GetString() == "EXPLORE_END_EXHAUSTED" ? "" : ", not all";
        JsonElement[] findings = [.. result.GetProperty("findings").EnumerateArray()];
        foreach ((string kind, string schedule) in findings.Length == 0 ? [("none", "")] : findings.Select(each => ($"{each.GetProperty("kind").GetString()}, in {each.GetProperty("schedules")}", $"`{each.GetProperty("schedule").GetString()}`")))
        {
            text.Append(
                CultureInfo.InvariantCulture,
                $"| {file[..3]} | {about} ({file}) | {result.GetProperty("profile").GetString()} | {result.GetProperty("schedules")}{all} | {result.GetProperty("pruned")} | {kind} | {schedule} |\n");
        }
    }
}
