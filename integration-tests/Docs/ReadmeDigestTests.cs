using System.CommandLine.Parsing;
using VmmService.IntegrationTests.Cli;
using VmmService.IntegrationTests.Support;
using Xunit;

namespace VmmService.IntegrationTests.Docs;

/// <summary>The README's commands that are shown with their output: run, and every line that stands there is in what comes out, in that order.</summary>
public sealed class ReadmeDigestTests
{
    private const string Prompt = "$ vmm ";

    public static TheoryData<string> Commands => ["digest explain", "digest diff", "digest compute tdx", "digest diff tdx", "launch tdx"];

    [Theory]
    [MemberData(nameof(Commands))]
    public async Task ShownOutput_IsWhatComesOut(string command)
    {
        // The digests shown are those of Debian's OVMF, which is the first that is looked for on a machine.
        Assert.SkipUnless(TestInputs.RequireFile("deb-OVMF_CODE") == VmmService.Vmm.FirmwareChoice.UsualPlaces[0], "another OVMF than the README's is looked for first");
        string[] lines = await File.ReadAllLinesAsync(Path.Combine(Repository.Root, "README.md"));
        int start = Array.FindIndex(lines, line => line == Prompt + command || line.StartsWith($"{Prompt}{command} ", StringComparison.Ordinal));
        Assert.True(start > 0, $"the README does not show vmm {command}");

        VmmRun run = await VmmRun.Invoke([.. CommandLineParser.SplitCommandLine(lines[start]["$ vmm ".Length..])]);

        Assert.Equal("", run.Error);
        string[] output = run.Output.Split('\n');
        int at = 0;
        foreach (string shown in lines.Skip(start + 1).TakeWhile(line => !line.StartsWith("```", StringComparison.Ordinal)).Where(line => line != "..."))
        {
            at = Array.FindIndex(output, at, line => line.TrimEnd() == shown) + 1;
            Assert.True(at > 0, $"the README shows '{shown}', which does not come out:\n{run.Output}");
        }
    }
}
