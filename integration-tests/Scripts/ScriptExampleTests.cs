using VmmService.IntegrationTests.Cli;
using VmmService.IntegrationTests.Support;
using Xunit;

namespace VmmService.IntegrationTests.Scripts;

/// <summary>Every script below deploy/examples/scripts does what it says.</summary>
public sealed class ScriptExampleTests
{
    private static string Folder => Path.Combine(Repository.Root, "deploy", "examples", "scripts");

    public static TheoryData<string> Names => [.. Directory.GetFiles(Folder, "*.yaml").Select(path => Path.GetFileName(path)).Order(StringComparer.Ordinal)];

    [Theory]
    [MemberData(nameof(Names))]
    public async Task Example_MeetsItsExpectations(string name)
    {
        VmmRun run = await VmmRun.Invoke("run", Path.Combine(Folder, name));
        Assert.True(run is { ExitCode: 0, Error: "" }, run.Output + run.Error);
        Assert.Contains(", 0 unmet expectations", run.Output, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Example_IsDeterministic()
    {
        string script = Path.Combine(Folder, "snp-launch.yaml");
        Assert.Equal((await VmmRun.Invoke("run", script, "--json")).Output, (await VmmRun.Invoke("run", script, "--json")).Output);
    }
}
