using System.Text.Json;
using VmmService.Vmm;

namespace VmmService.IntegrationTests.Cli;

/// <summary>One run of the vmm command inside the test process, with what it wrote.</summary>
internal sealed record VmmRun(int ExitCode, string Output, string Error)
{
    public JsonElement Json => JsonDocument.Parse(Output).RootElement;

    public static Task<VmmRun> Invoke(params string[] args) => Invoke(args, errorIsTerminal: false);

    public static async Task<VmmRun> Invoke(string[] args, bool errorIsTerminal, CancellationToken cancellation = default)
    {
        var output = new StringWriter();
        var error = new StringWriter();
        int exitCode = await VmmCommand.RunAsync(args, new VmmConsole(output, TextWriter.Synchronized(error), errorIsTerminal), cancellation);
        return new VmmRun(exitCode, output.ToString(), error.ToString());
    }
}
