using VmmService.IntegrationTests.Cli;
using VmmService.IntegrationTests.Scripts;
using VmmService.IntegrationTests.Support;
using Xunit;

namespace VmmService.IntegrationTests.Docs;

/// <summary>The page about scripts: its commands and its script are executed, its reference is that of the daemon.</summary>
public sealed class ScriptDocsTests(Daemon daemon) : IClassFixture<Daemon>
{
    private static string Folder => Path.Combine(Repository.Root, "client", "docs");

    public static TheoryData<string> Commands => [.. Blocks("").SelectMany(block => block).Where(line => line.StartsWith("vmm ", StringComparison.Ordinal))];

    [Theory]
    [MemberData(nameof(Commands))]
    public async Task Command_OfThePage_Works(string command)
    {
        string[] words = [.. command.Split(' ').Skip(1).Select(word => word.StartsWith("deploy/", StringComparison.Ordinal) ? Path.Combine(Repository.Root, word) : word)];
        VmmRun run = await VmmRun.Invoke(words);
        Assert.True(run is { ExitCode: 0, Error: "" }, run.Output + run.Error);
        Assert.NotEqual("", run.Output);
    }

    [Fact]
    public async Task Script_OfThePage_MeetsItsExpectations()
    {
        string yaml = string.Join('\n', Assert.Single(Blocks("yaml")));
        ScriptOutcome outcome = await ScriptOutcome.Run(daemon.Connection, yaml);
        Assert.Null(outcome.Error);
        Assert.Empty(outcome.Unmet);
        Assert.Equal("K72", outcome.Started!.Profile);
    }

    [Fact]
    public async Task Reference_IsWhatTheDaemonHas()
    {
        string path = Path.Combine(Folder, "script-steps.md");
        VmmRun run = await VmmRun.Invoke("run", "--help-steps");
        string page = $"# Steps of scripts\n\nGenerated from the daemon's table by `vmm run --help-steps`; [scripts.md](scripts.md) has the language.\n\n{run.Output}";
        if (Environment.GetEnvironmentVariable("VMM_WRITE_DOCS") is not null)
        {
            await File.WriteAllTextAsync(path, page);
        }
        Assert.Equal(page, await File.ReadAllTextAsync(path));
    }

    // Lines of the fenced blocks of a language; a block with a prompt shows output.
    private static IEnumerable<List<string>> Blocks(string language)
    {
        bool inside = false;
        List<string> block = [];
        string opened = "";
        foreach (string line in File.ReadAllLines(Path.Combine(Folder, "scripts.md")))
        {
            if (!line.StartsWith("```", StringComparison.Ordinal))
            {
                if (inside)
                {
                    block.Add(line);
                }
                continue;
            }
            inside = !inside;
            if (inside)
            {
                (opened, block) = (line["```".Length..], []);
            }
            else if (opened == language && !block[0].StartsWith("$ ", StringComparison.Ordinal))
            {
                yield return block;
            }
        }
    }
}
