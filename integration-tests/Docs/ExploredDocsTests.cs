using System.Diagnostics;
using System.Globalization;
using System.Text;
using System.Text.Json;
using System.Text.RegularExpressions;
using VmmService.IntegrationTests.Cli;
using VmmService.IntegrationTests.Support;
using Xunit;

namespace VmmService.IntegrationTests.Docs;

/// <summary>
/// sim-kvm/docs/explored.md is what exploring the scenarios of the mails comes to. With VMM_WRITE_DOCS=1 the page is written instead. All of it is the same on any machine but the last
/// column, which is as it was when the page was written.
/// </summary>
public sealed partial class ExploredDocsTests
{
    private const string Head =
        """
        # Explored

        The designs that the mails argue about, explored: every order of the programs of a scenario that can be told apart. Written by `ExploredDocsTests`; the scenarios are in
        `integration-tests/Seeds/Scenarios`, their language in `client/docs/scenarios.md`. A row is seen again with `vmm explore FILE --replay STRING`. A profile with `+` is one with a
        behaviour of another: a design that never was, to show what the behaviour does. The time is that of the whole exploration with all that was asked to tell it, on the two virtual
        processors that the page was written on; no test looks at it.

        | mail | what runs at once | design | profile | schedules | finding | replay string | time |
        |---|---|---|---|---|---|---|---|

        """;

    private const string CostHead = "## What it costs";

    private readonly Cost _cost = new();

    private static string Page => Path.Combine(Repository.Root, "sim-kvm", "docs", "explored.md");

    [Fact]
    public async Task ExploredPage_SaysWhatExploringComesTo()
    {
        var text = new StringBuilder(Head.ReplaceLineEndings("\n"));
        foreach (string path in Directory.GetFiles(Path.Combine(Repository.Root, "integration-tests", "Seeds", "Scenarios"), "*.yaml").Order(StringComparer.Ordinal))
        {
            foreach (string profile in ProfilesOf(await File.ReadAllTextAsync(path)))
            {
                var watch = Stopwatch.StartNew();
                VmmRun run = await VmmRun.Invoke("explore", path, "--profile", profile, "--json");
                Assert.True(run.Error.Length == 0, run.Error);
                JsonElement result = run.Json.GetProperty("results")[0];
                _cost.Add(result, watch.Elapsed);
                Append(text, Path.GetFileName(path), result, watch.Elapsed);
            }
        }
        text.Append(CultureInfo.InvariantCulture, $"\n{CostHead}\n\n{_cost.Tell()}");
        if (Environment.GetEnvironmentVariable("VMM_WRITE_DOCS") == "1")
        {
            await File.WriteAllTextAsync(Page, text.ToString());
        }
        Assert.Equal(WithoutTimes(text.ToString()), WithoutTimes(await File.ReadAllTextAsync(Page)));
    }

    // What a scenario expects something of is what it is about.
    private static IEnumerable<string> ProfilesOf(string scenario) => ExpectedProfile().Matches(scenario[scenario.LastIndexOf("\nexpect:", StringComparison.Ordinal)..]).Select(match => match.Groups[1].Value);

    private static string WithoutTimes(string page) => TimeColumn().Replace(page[..page.IndexOf(CostHead, StringComparison.Ordinal)], "");

    [GeneratedRegex(@"^  (\S+): ", RegexOptions.Multiline)]
    private static partial Regex ExpectedProfile();

    [GeneratedRegex(@"[0-9.]+ s \|$", RegexOptions.Multiline)]
    private static partial Regex TimeColumn();

    private static void Append(StringBuilder text, string file, JsonElement result, TimeSpan time)
    {
        string title = result.GetProperty("title").GetString()!;
        string about = title[(title.IndexOf(':', StringComparison.Ordinal) + 1)..].Trim();
        string all = result.GetProperty("end").GetString() == "EXPLORE_END_EXHAUSTED" ? "" : ", not all";
        JsonElement[] findings = [.. result.GetProperty("findings").EnumerateArray()];
        foreach ((string kind, string schedule) in findings.Length == 0 ? [("none", "")] : findings.Select(each => ($"{each.GetProperty("kind").GetString()}, in {each.GetProperty("schedules")}", $"`{each.GetProperty("schedule").GetString()}`")))
        {
            text.Append(
                CultureInfo.InvariantCulture,
                $"| {file[..3]} | {about} (`{file}`) | {result.GetProperty("design").GetString()} | {result.GetProperty("profile").GetString()} | {result.GetProperty("schedules")}{all} | {kind} | {schedule} | {time.TotalSeconds:F2} s |\n");
        }
    }

    /// <summary>What all rows cost together, next to a peer of the same minute: numbers of one machine are worth little, their ratio more.</summary>
    private sealed class Cost
    {
        private const int HandOvers = 20_000;
        private long _schedules;
        private long _steps;
        private TimeSpan _time;

        public void Add(JsonElement result, TimeSpan time)
        {
            _schedules += result.GetProperty("schedules").GetInt64() + result.GetProperty("pruned").GetInt64();
            _steps += long.Parse(result.GetProperty("stretches").GetString()!, CultureInfo.InvariantCulture);
            _time += time;
        }

        public string Tell()
        {
            double step = _time.TotalNanoseconds / _steps, peer = HandOver();
            return string.Create(
                CultureInfo.InvariantCulture,
                $"""
                Measured when the page was written, on a debug build and next to other work: {_schedules} schedules of {_steps} steps in {_time.TotalSeconds:F1} s, which are {_schedules / _time.TotalSeconds:F0}
                schedules a second and {step / 1000:F1} us a step. Boot, setup, the reading of the scenario and what the daemon and the command line do are in it. In the same run two threads that only hand over
                to each other took {peer / 1000:F1} us for a switch: a step costs {step / peer:F1} times as much. `sim-kvm/bench` (`ExploreBench`) measures the parts on a release build: a step live, boot and setup, a schedule.

                """).ReplaceLineEndings("\n");
        }

        // Nanoseconds of one switch.
        private static double HandOver()
        {
            using SemaphoreSlim mine = new(0), its = new(0);
            var other = new Thread(() =>
            {
                for (int i = 0; i < HandOvers; i++)
                {
                    its.Wait();
                    mine.Release();
                }
            });
            other.Start();
            var watch = Stopwatch.StartNew();
            for (int i = 0; i < HandOvers; i++)
            {
                its.Release();
                mine.Wait();
            }
            other.Join();
            return watch.Elapsed.TotalNanoseconds / (2 * HandOvers);
        }
    }
}
