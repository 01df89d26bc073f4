using System.CommandLine;
using VmmService.Client;
using VmmService.V1;

namespace VmmService.Vmm;

/// <summary>
/// What map, watch and explain look at: a host of a daemon, or the host of a script that is executed first. Where there is only one host or one VM it need not be named.
/// </summary>
internal sealed class InspectTarget
{
    private readonly Option<string?> _server = InfoCommands.ServerOption();
    private readonly Option<string?> _host = new("--host") { Description = "Host to look at; not needed where there is only one.", HelpName = "ID" };
    private readonly Option<uint?> _pid = Numbers.Option<uint>("--pid", "Process whose VM is meant; not needed where there is only one VM.", "PID");
    private readonly Option<uint?> _fd = Numbers.Option<uint>("--fd", "Descriptor of the VM; not needed where there is only one.", "FD");
    private readonly Option<string?> _script = new("--script") { Description = "Execute this script first, and look at its host while its process lives.", HelpName = "FILE" };
    private readonly Option<string?> _profile = new("--profile") { Description = "Kernel generation for --script.", HelpName = "PROFILE" };
    private readonly Option<string[]> _set = ScriptInput.SetOption();

    /// <param name="command">Gets the options that say which host.</param>
    /// <param name="withVm">The command is about one VM.</param>
    public void AddTo(Command command, bool withVm)
    {
        foreach (Option option in (Option[])[_server, _host, _script, _profile, _set])
            command.Add(option);

        if (withVm)
        {
            command.Add(_pid);
            command.Add(_fd);
        }
    }

    /// <summary>Reaches the host and runs <paramref name="look"/> on it.</summary>
    public async Task<int> LookAsync(ParseResult parsed, Func<HostInspector, string, Task<int>> look, CancellationToken cancellation)
    {
        string? server = parsed.GetValue(_server), host = parsed.GetValue(_host), path = parsed.GetValue(_script);
        if (server is null && path is null)
            throw new UsageException($"{parsed.CommandResult.Command.Name} needs --server URI of a daemon to look into, or --script FILE to execute first");

        if (path is null && (parsed.GetValue(_profile) is not null || parsed.GetValue(_set) is { Length: > 0 }))
            throw new UsageException("--profile and --set are for --script; a host that runs already has its kernel");

        await using DaemonSession session = await DaemonSession.OpenAsync(server, cancellation);
        if (path is null)
        {
            string id = host ?? await OnlyHostAsync(session.Connection, cancellation);
            RemoteHost remote = await session.Connection.GetHostAsync(id, cancellation);
            return await look(remote.Inspect, id);
        }

        ScriptInput input = await ScriptInput.ReadAsync(path, parsed.GetValue(_set) ?? [], cancellation);
        var header = new ScriptHeader { Host = host ?? "", KeepGoing = true, Boot = new CreateHostRequest { Profile = parsed.GetValue(_profile) ?? "" } };
        try
        {
            await using RemoteScript script = await input.StartAsync(session.Connection, header, cancellation);
            string id = "";
            await foreach (RunScriptResponse reply in script.RepliesAsync(cancellation))
            {
                id = reply.Started?.Host ?? id;
                // The stream stays open, and with it the script's process, until the look is over.
                if (reply.Summary is not null)
                    break;
            }
            return await look((await session.Connection.GetHostAsync(id, cancellation)).Inspect, id);
        }
        catch (VmmServiceException failure)
        {
            throw input.Explain(failure);
        }
    }

    /// <summary>The VM that is meant.</summary>
    public async Task<FdReference> VmAsync(ParseResult parsed, HostInspector host, CancellationToken cancellation)
    {
        uint? pid = parsed.GetValue(_pid), fd = parsed.GetValue(_fd);
        IReadOnlyList<FdReference> all = await host.ListVmsAsync(cancellation);
        FdReference[] meant = [.. all.Where(vm => (pid is null || vm.Pid == pid) && (fd is null || vm.Fd == fd))];
        string known = all.Count == 0 ? "the host has no VM" : $"the host has {string.Join("; ", all.Select(vm => $"--pid {vm.Pid} --fd {vm.Fd}"))}";
        return meant.Length switch
        {
            1 => meant[0],
            0 => throw new UsageException($"there is no such VM: {known}"),
            _ => throw new UsageException($"which VM is not clear: {known}"),
        };
    }

    private static async Task<string> OnlyHostAsync(VmmConnection connection, CancellationToken cancellation)
    {
        IReadOnlyList<Host> hosts = await connection.ListHostsAsync(cancellation);
        return hosts.Count switch
        {
            1 => hosts[0].Host_,
            0 => throw new UsageException("the daemon has no host; create one, or give --script FILE"),
            _ => throw new UsageException($"the daemon has several hosts; choose with --host {string.Join(" | ", hosts.Select(host => $"{host.Host_} ({host.Profile}, {host.Calls} calls)"))}"),
        };
    }
}
