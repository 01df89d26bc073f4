using System.CommandLine;
using VmmService.Server;

namespace VmmService.Vmm;

/// <summary>vmm serve: the daemon. The daemon reads its configuration itself; here is checked only that every argument is one, so that a slip does not start it with defaults.</summary>
internal static class ServeCommand
{
    public static Command Create()
    {
        var unix = new Option<string?>("--unix") { Description = "Path of the Unix socket; \"\" for none.", HelpName = "PATH" };
        var port = new Option<string?>("--port") { Description = $"TCP port; 0 for any free one, -1 for none. [default: {VmmServerOptions.DefaultPort}]", HelpName = "N" };
        var address = new Option<string?>("--address")
        {
            Description = "Address of the TCP port. There is no authentication: beyond loopback everybody on that network has the daemon. [default: 127.0.0.1]",
            HelpName = "IP",
        };
        var kdsPort = new Option<string?>("--kds-port")
        {
            Description = "TCP port that serves simulated certificates over HTTP, on the paths of AMD's key distribution service and Intel's provisioning certification service; 0 for any free one, -1 for none. [default: -1]",
            HelpName = "N",
        };
        var quiet = new Option<bool>("--quiet") { Description = "Log errors only." };
        var command = new Command(
            "serve",
            """
            Run the daemon until SIGINT or SIGTERM, which let running calls finish.

            Every setting of appsettings.json can be given as --Vmm:NAME VALUE.
            """)
        {
            unix, port, address, kdsPort, quiet,
        };
        command.TreatUnmatchedTokensAsErrors = false;
        command.SetAction(async parsed =>
        {
            List<string> arguments = [];
            foreach (Option<string?> option in (Option<string?>[])[unix, port, address, kdsPort])
            {
                if (parsed.GetValue(option) is { } value)
                    arguments.AddRange([option.Name, value]);
            }

            if (parsed.GetValue(quiet))
                arguments.AddRange([quiet.Name, "true"]);

            arguments.AddRange(Settings(parsed.UnmatchedTokens));
            return await VmmServer.RunAsync([.. arguments]);
        });
        return command;
    }

    // "--Section:Name value" or "--Section:Name=value".
    private static IEnumerable<string> Settings(IReadOnlyList<string> tokens)
    {
        for (int i = 0; i < tokens.Count; i++)
        {
            string token = tokens[i];
            if (!token.StartsWith("--", StringComparison.Ordinal) || !token.Contains(':', StringComparison.Ordinal))
                throw new UsageException($"{token} is not an option of the daemon; `vmm serve --help` lists them, and a setting is given as --Vmm:NAME VALUE");

            if (token.Contains('=', StringComparison.Ordinal))
            {
                yield return token;
                continue;
            }

            if (++i == tokens.Count)
                throw new UsageException($"{token} needs a value");

            yield return token;
            yield return tokens[i];
        }
    }
}
