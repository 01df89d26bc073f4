using System.CommandLine.Parsing;
using VmmService.IntegrationTests.Support;
using Xunit;

namespace VmmService.IntegrationTests.Docs;

/// <summary>The README's commands that are shown with their output: run, and every line that stands there is in what comes out, in that order.</summary>
public sealed class ReadmeOutputTests
{
    private const string Prompt = "$ vmm ";

    public static TheoryData<string> Commands => [.. Readme.Lines.Where(line => line.StartsWith(Prompt, StringComparison.Ordinal)).Select(line => line[Prompt.Length..])];

    [Theory]
    [MemberData(nameof(Commands))]
    public async Task ShownOutput_IsWhatComesOut(string command)
    {
        // The digests shown are those of Debian's OVMF, which is the first that is looked for on a machine.
        Assert.SkipUnless(
            command.StartsWith("explore ", StringComparison.Ordinal) || TestInputs.RequireFile("deb-OVMF_CODE") == VmmService.Vmm.FirmwareChoice.UsualPlaces[0],
            "another OVMF than the README's is looked for first");

        (_, string output, string error) = await Readme.RunAsync(CommandLineParser.SplitCommandLine(command));

        Assert.Equal("", error);
        string[] lines = output.Split('\n');
        int at = 0;
        IEnumerable<string> shown = Readme.Lines.SkipWhile(line => line != Prompt + command).Skip(1).TakeWhile(line => !line.StartsWith("```", StringComparison.Ordinal));
        foreach (string each in shown.Where(line => line.Trim() != "..."))
        {
            at = Array.FindIndex(lines, at, line => line.TrimEnd() == each) + 1;
            Assert.True(at > 0, $"the README shows '{each}', which does not come out:\n{output}");
        }
    }
}
