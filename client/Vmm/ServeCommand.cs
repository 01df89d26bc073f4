using System.CommandLine;
using VmmService.Server;

namespace VmmService.Vmm;

/// <summary>vmm serve: the daemon. Its options are the daemon's own and are handed on as they are.</summary>
internal static class ServeCommand
{
    public static Command Create()
    {
        var command = new Command(
            "serve",
            $"""
            Run the daemon until SIGINT or SIGTERM, which let running calls finish.

            Further arguments go to the daemon: --unix PATH (empty for none), --port N (default {VmmServerOptions.DefaultPort}, 0 for any, -1 for none), --address IP, --quiet true, and --Vmm:NAME VALUE for every setting of appsettings.json.
            """)
        {
            TreatUnmatchedTokensAsErrors = false,
        };
        command.SetAction(parsed => VmmServer.RunAsync([.. parsed.UnmatchedTokens]));
        return command;
    }
}
