using System.Text.Json;
using VmmService.IntegrationTests.Cli;
using VmmService.IntegrationTests.Support;
using Xunit;

namespace VmmService.IntegrationTests.Seeds;

/// <summary>Every scenario of the mails comes to what it expects, in all orders that can be told apart, under each of its kernels.</summary>
public sealed class SeedScenarioTests
{
    private static string Seeds => Path.Combine(Repository.Root, "integration-tests", "Seeds");

    private static string Folder => Path.Combine(Seeds, "Scenarios");

    // Those of the mails, and one for each kind of finding that they do not show.
    public static TheoryData<string> Names =>
        [.. new[] { "Scenarios", "Findings" }.SelectMany(folder => Directory.GetFiles(Path.Combine(Seeds, folder), "*.yaml")).Select(path => Path.GetRelativePath(Seeds, path)).Order(StringComparer.Ordinal)];

    [Theory]
    [MemberData(nameof(Names))]
    public async Task Scenario_ComesToWhatItExpects_AndItsFindingsReplay(string name)
    {
        string path = Path.Combine(Seeds, name);
        VmmRun run = await VmmRun.Invoke("explore", path, "--json");
        Assert.True(run is { ExitCode: 0, Error: "" }, run.Output + run.Error);
        foreach (JsonElement result in run.Json.GetProperty("results").EnumerateArray())
        {
            Assert.Equal("EXPLORE_END_EXHAUSTED", result.GetProperty("end").GetString());
            Assert.NotEqual(0, result.GetProperty("expected").GetArrayLength());
            foreach (JsonElement finding in result.GetProperty("findings").EnumerateArray())
            {
                VmmRun replay = await VmmRun.Invoke("explore", path, "--replay", finding.GetProperty("schedule").GetString()!, "--json");
                Assert.True(replay.ExitCode == 0, replay.Error);
                Assert.Contains(
                    replay.Json.GetProperty("findings").EnumerateArray(), each => each.GetProperty("kind").GetString() == finding.GetProperty("kind").GetString());
                Assert.Equal(Lines(finding), Lines(replay.Json));
            }
        }
    }

    private static string[] Lines(JsonElement message) => [.. message.GetProperty("table").EnumerateArray().Select(line => line.GetString()!)];

    [Fact]
    public void EveryMail_HasScenarios() =>
        Assert.Equal(["000", "001", "002", "003", "004"], Directory.GetFiles(Folder, "*.yaml").Select(path => Path.GetFileName(path)[..3]).Distinct().Order(StringComparer.Ordinal));
}
