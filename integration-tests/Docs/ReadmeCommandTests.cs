using System.Diagnostics;
using System.Globalization;
using VmmService.IntegrationTests.Support;
using Xunit;

namespace VmmService.IntegrationTests.Docs;

/// <summary>Every command of the README is run, as it stands but for the build that `dotnet run` would repeat. A command that nobody knows how to check fails.</summary>
public sealed class ReadmeCommandTests
{
    private const string RunVmm = "dotnet run --project client/Vmm -- ";

    [Fact]
    public async Task EveryCommandOfTheReadme_Works()
    {
        string root = Repository.Root;
        string[] commands = [.. CommandsOf(Readme.Lines)];
        Assert.Contains("dotnet test VmmService.sln", commands);
        foreach (string command in commands)
        {
            switch (command)
            {
                case "dotnet test VmmService.sln":
                case "dotnet run -c Release --project sim-kvm/bench -- --quick":
                    // These cannot run inside a test; CI runs them as they stand.
                    Assert.Contains(command, await File.ReadAllTextAsync(Path.Combine(root, ".ci", "run")), StringComparison.Ordinal);
                    break;
                case RunVmm + "serve --port 7788":
                    await ServeAnswers(command[RunVmm.Length..].Replace("7788", "0", StringComparison.Ordinal));
                    break;
                default:
                    Assert.StartsWith(RunVmm, command, StringComparison.Ordinal);
                    (int exitCode, string output, string error) = await Readme.RunAsync(command[RunVmm.Length..].Split(' '));
                    Assert.True(exitCode == 0, $"{command}: exit code {exitCode}\n{output}{error}");
                    string expected = command[RunVmm.Length..].Split(' ') switch
                    {
                        ["run", ..] => " 0 unmet expectations",
                        ["quote", ..] or [_, "tdx", ..] => "MRTD",
                        _ => "Launch digest",
                    };
                    Assert.Contains(expected, output, StringComparison.Ordinal);
                    break;
            }
        }
    }

    // Lines of fenced blocks that begin a command: one word of ours, no prompt (a block with a prompt shows output).
    private static IEnumerable<string> CommandsOf(IEnumerable<string> lines)
    {
        bool inside = false;
        foreach (string line in lines)
        {
            if (line.StartsWith("```", StringComparison.Ordinal))
            {
                inside = !inside;
            }
            else if (inside && line.StartsWith("dotnet ", StringComparison.Ordinal))
            {
                yield return line;
            }
        }
    }

    private static async Task ServeAnswers(string arguments)
    {
        string folder = Directory.CreateTempSubdirectory("vmm-readme-").FullName;
        using Process process = Process.Start(Readme.Vmm([.. arguments.Split(' '), "--unix", $"{folder}/vmm.sock"]))!;
        try
        {
            string? line;
            do
            {
                line = await process.StandardError.ReadLineAsync();
                Assert.True(line is not null, "the daemon ended before it listened");
            }
            while (!line!.Contains("http://127.0.0.1:", StringComparison.Ordinal));
            string address = line[line.IndexOf("http://", StringComparison.Ordinal)..].Trim();
            Assert.True(int.Parse(address[(address.LastIndexOf(':') + 1)..], CultureInfo.InvariantCulture) > 0);
            await using VmmService.Client.VmmConnection connection = VmmService.Client.VmmConnection.Connect(address);
            Assert.NotEmpty((await connection.GetCapabilitiesAsync()).Profiles);
        }
        finally
        {
            process.Kill(entireProcessTree: true);
            await process.WaitForExitAsync();
            Directory.Delete(folder, recursive: true);
        }
    }
}
