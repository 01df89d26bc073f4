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
        string[] commands = [.. CommandsOf(await File.ReadAllLinesAsync(Path.Combine(root, "README.md")))];
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
                    (int exitCode, string output) = await Run(command[RunVmm.Length..]);
                    Assert.True(exitCode == 0, $"{command}: exit code {exitCode}\n{output}");
                    string expected = command[RunVmm.Length..].Split(' ')[0] switch { "run" => " 0 unmet expectations", "quote" or "launch" when command.Contains("tdx", StringComparison.Ordinal) => "MRTD", "quote" => "MRTD", _ => "Launch digest" };
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

    private static ProcessStartInfo Vmm(string arguments) => new("dotnet", [Path.Combine(AppContext.BaseDirectory, "vmm.dll"), .. arguments.Split(' ')])
    {
        WorkingDirectory = Repository.Root,
        RedirectStandardOutput = true,
        RedirectStandardError = true,
    };

    private static async Task<(int ExitCode, string Output)> Run(string arguments)
    {
        using Process process = Process.Start(Vmm(arguments))!;
        Task<string> error = process.StandardError.ReadToEndAsync();
        string output = await process.StandardOutput.ReadToEndAsync();
        await process.WaitForExitAsync();
        return (process.ExitCode, output + await error);
    }

    private static async Task ServeAnswers(string arguments)
    {
        string folder = Directory.CreateTempSubdirectory("vmm-readme-").FullName;
        using Process process = Process.Start(Vmm($"{arguments} --unix {folder}/vmm.sock"))!;
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
