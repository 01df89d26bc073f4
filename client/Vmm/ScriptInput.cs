using System.CommandLine;
using VmmService.Client;
using VmmService.Server.Scripts;
using VmmService.V1;

namespace VmmService.Vmm;

/// <summary>A script as the command line gives it: the text, the files that it uses, and the variables that are set from outside.</summary>
internal sealed record ScriptInput(string Path, string Yaml, IReadOnlyList<(string Name, byte[] Data)> Files, IReadOnlyDictionary<string, string> Variables)
{
    public static Option<string[]> SetOption() => new("--set")
    {
        Description = "Set a variable of the script; may be given several times.",
        HelpName = "NAME=VALUE",
    };

    /// <summary>Reads the script, and every file that it uses, relative to where it is.</summary>
    /// <exception cref="UsageException">A file cannot be read, or a variable is not given as NAME=VALUE.</exception>
    public static async Task<ScriptInput> ReadAsync(string path, IReadOnlyList<string> settings, CancellationToken cancellation)
    {
        string yaml = System.Text.Encoding.UTF8.GetString(await ReadFileAsync(path, "the script", cancellation));
        string folder = System.IO.Path.GetDirectoryName(System.IO.Path.GetFullPath(path))!;
        List<(string, byte[])> files = [];
        foreach ((string name, int line) in ScriptFiles.UsedBy(yaml))
            files.Add((name, await ReadFileAsync(System.IO.Path.Combine(folder, name), $"{path}:{line}: the file {name}", cancellation)));

        SortedDictionary<string, string> variables = new(StringComparer.Ordinal);
        foreach (string setting in settings)
        {
            if (setting.Split('=', 2) is not [{ Length: > 0 } name, var value])
                throw new UsageException($"--set {setting}: not a variable; use --set NAME=VALUE");

            variables[name] = value;
        }
        return new ScriptInput(path, yaml, files, variables);
    }

    /// <summary>Starts the script and sends all of it. Its stream stays open.</summary>
    public async Task<RemoteScript> StartAsync(VmmConnection connection, ScriptHeader header, CancellationToken cancellation)
    {
        foreach ((string name, string value) in Variables)
            header.Variables[name] = value;

        RemoteScript script = await connection.StartScriptAsync(header, cancellation);
        foreach ((string name, byte[] data) in Files)
            await script.SendFileAsync(name, data);

        await script.SendDocumentAsync(Yaml);
        return script;
    }

    /// <summary>What to tell a person of a failure: where in the file, if the script is wrong.</summary>
    public Exception Explain(VmmServiceException failure) => failure.ScriptError is { } error
        ? new UsageException(error.Line == 0 ? $"--set: {error.Problem}. Try: {error.Advice}" : $"{Path}:{error.Line}:{error.Column}: {error.Problem}. Try: {error.Advice}")
        : failure;

    private static async Task<byte[]> ReadFileAsync(string path, string what, CancellationToken cancellation)
    {
        try
        {
            return path == "-" ? await ReadStandardInputAsync(cancellation) : await File.ReadAllBytesAsync(path, cancellation);
        }
        catch (Exception problem) when (problem is IOException or UnauthorizedAccessException)
        {
            throw new UsageException($"{what} cannot be read: {problem.Message}");
        }
    }

    private static async Task<byte[]> ReadStandardInputAsync(CancellationToken cancellation)
    {
        using var bytes = new MemoryStream();
        await using Stream input = Console.OpenStandardInput();
        await input.CopyToAsync(bytes, cancellation);
        return bytes.ToArray();
    }
}
