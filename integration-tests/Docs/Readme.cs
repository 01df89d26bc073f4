using System.Diagnostics;
using VmmService.IntegrationTests.Support;

namespace VmmService.IntegrationTests.Docs;

/// <summary>The README, and the command that it is about, run from the folder that it stands in.</summary>
internal static class Readme
{
    public static string[] Lines { get; } = File.ReadAllLines(Path.Combine(Repository.Root, "README.md"));

    public static ProcessStartInfo Vmm(params IEnumerable<string> arguments) => new("dotnet", [Path.Combine(AppContext.BaseDirectory, "vmm.dll"), .. arguments])
    {
        WorkingDirectory = Repository.Root,
        RedirectStandardOutput = true,
        RedirectStandardError = true,
    };

    public static async Task<(int ExitCode, string Output, string Error)> RunAsync(params IEnumerable<string> arguments)
    {
        using Process process = Process.Start(Vmm(arguments))!;
        Task<string> error = process.StandardError.ReadToEndAsync();
        string output = await process.StandardOutput.ReadToEndAsync();
        await process.WaitForExitAsync();
        return (process.ExitCode, output, await error);
    }
}
