using System.Collections.Concurrent;
using SimKvm;
using SimKvm.Userspace;
using VmmService.Server.Wire;

namespace VmmService.Server.Sessions;

/// <summary>
/// The simulated hosts of this daemon, by id, and the life of their processes as clients see it: attached to a stream, or idle since. Nothing of a simulation is
/// here; a host does not know that it is served.
/// </summary>
public sealed class HostRegistry(VmmServerOptions options, TimeProvider time, ILogger<HostRegistry> logger) : IDisposable
{
    private readonly ConcurrentDictionary<string, ServedHost> _hosts = new();
    private readonly Lock _admission = new();
    private readonly AsyncLocal<CancellationToken> _caller = new();
    private int _lastId;

    internal VmmServerOptions Options => options;

    internal IEnumerable<ServedHost> All => _hosts.Values.OrderBy(host => host.Number);

    internal ServedHost Add(Func<SimHost> boot, bool deleteWhenEmpty)
    {
        lock (_admission)
        {
            if (_hosts.Count >= options.MaxHosts)
            {
                throw Refusals.OverQuota("hosts", $"the daemon has {_hosts.Count} hosts, its limit; delete one");
            }
            var served = new ServedHost(++_lastId, boot(), deleteWhenEmpty, options.MaxRecordedBytes);
            _hosts[served.Id] = served;
            Log.HostBooted(logger, served.Id, served.Sim.Profile.Id, served.Sim.Machine.Seed);
            return served;
        }
    }

    internal ServedHost? TryGet(string id) => _hosts.GetValueOrDefault(id);

    /// <summary>Lets go of a host that somebody else switches off.</summary>
    internal void Forget(ServedHost host) => _hosts.TryRemove(host.Id, out _);

    internal ServedHost Get(string id) => _hosts.TryGetValue(id, out ServedHost? host)
        ? host
        : throw (id.Length == 0
            ? Refusals.BadField("host", "the host id is missing; HostService.CreateHost gives one")
            : Refusals.NotFound("host", id, "create one with HostService.CreateHost"));

    internal void Remove(ServedHost host, string reason)
    {
        if (_hosts.TryRemove(host.Id, out _))
        {
            host.Sim.Dispose();
            Log.HostSwitchedOff(logger, host.Id, reason);
        }
    }

    internal int StartProcess(ServedHost host)
    {
        int pid = host.Run(sim =>
        {
            if (sim.Processes.Count >= options.MaxProcessesPerHost)
            {
                throw Refusals.OverQuota("processes", $"host {host.Id} has {sim.Processes.Count} processes, the limit; exit one");
            }
            return sim.StartProcess().Pid;
        });
        host.Sessions[pid] = new ProcessSession { LastUse = time.GetTimestamp() };
        Log.ProcessStarted(logger, host.Id, pid);
        return pid;
    }

    /// <summary>fork(2); the child counts as a process like any other.</summary>
    internal CallReport Fork(string hostId, uint pid)
    {
        CheckBacking();
        ServedHost host = Get(hostId);
        (CallReport report, Process? child) = RunOn(hostId, pid, process =>
        {
            if (process.Host.Processes.Count >= options.MaxProcessesPerHost)
            {
                throw Refusals.OverQuota("processes", $"host {host.Id} has {process.Host.Processes.Count} processes, the limit; exit one");
            }
            CallReport forked = process.Fork(out Process? made);
            return (forked, made);
        });
        if (child is not null)
        {
            host.Sessions[child.Pid] = new ProcessSession { LastUse = time.GetTimestamp(), Scratches = new(SessionOf(host, pid).Scratches) };
            Log.ProcessStarted(logger, host.Id, child.Pid);
        }
        return report;
    }

    /// <summary>Runs a call of a process, alone on its host.</summary>
    internal T RunOn<T>(string hostId, uint pid, Func<Process, T> body)
    {
        ServedHost host = Get(hostId);
        if (host.Sessions.TryGetValue((int)pid, out ProcessSession? session))
        {
            session.LastUse = time.GetTimestamp();
        }
        return host.Run(sim =>
        {
            Process process = Find(host, sim, pid);
            process.Caller = _caller.Value;
            try
            {
                return body(process);
            }
            finally
            {
                process.Caller = default;
            }
        });
    }

    /// <summary>Says who waits for the calls that this flow of control makes from here on: when the token is cancelled, they are interrupted as by a signal.</summary>
    internal void CalledBy(CancellationToken caller) => _caller.Value = caller;

    /// <summary>The scratch pages of a process. Call it from inside <see cref="RunOn{T}"/>.</summary>
    /// <param name="thread">Pages of its own for each thread of the process that runs at the same time as others; 0 where there is one.</param>
    internal Scratch ScratchOf(string hostId, Process process, int thread = 0)
    {
        ProcessSession session = SessionOf(Get(hostId), (uint)process.Pid);
        if (!session.Scratches.TryGetValue(thread, out ulong address))
        {
            const uint readWrite = 3, privateAnonymous = 0x22;
            CallReport mapped = process.Mmap(0, Scratch.Size, readWrite, privateAnonymous, -1, 0);
            if (!mapped.Succeeded)
            {
                throw Refusals.OverQuota("scratch", $"the process has no room for {Scratch.Size} bytes of scratch pages: {mapped.Errno}");
            }
            session.Scratches[thread] = address = (ulong)mapped.Value;
        }
        return new Scratch(process, address);
    }

    /// <summary>RESOURCE_EXHAUSTED when the pages of all hosts take as much real memory as they may.</summary>
    internal void CheckBacking()
    {
        ulong backed = (ulong)SimMachine.Machine.BackedBytesOfAllMachines;
        if (backed >= options.MaxBackedBytes)
        {
            throw Refusals.OverQuota("memory", $"the simulated hosts hold {backed} bytes, the daemon's limit is {options.MaxBackedBytes}; delete hosts or exit processes");
        }
    }

    /// <summary>Ties a process to a stream: it exits when the returned scope ends.</summary>
    internal AttachedProcess Attach(string hostId, uint pid)
    {
        ServedHost host = Get(hostId);
        host.Run(sim => Find(host, sim, pid));
        ProcessSession session = SessionOf(host, pid);
        Interlocked.Increment(ref session.Attachments);
        return new AttachedProcess(() => Exit(host, (int)pid, "its client went away"));
    }

    internal void Exit(string hostId, uint pid)
    {
        ServedHost host = Get(hostId);
        host.Run(sim => Find(host, sim, pid));
        Exit(host, (int)pid, "asked to");
    }

    /// <summary>Exits processes that nobody is attached to and nobody called for the idle limit.</summary>
    internal void ReapIdle()
    {
        TimeSpan limit = TimeSpan.FromSeconds(options.ProcessIdleSeconds);
        foreach (ServedHost host in All)
        {
            foreach ((int pid, ProcessSession session) in host.Sessions)
            {
                if (session.Attachments == 0 && time.GetElapsedTime(session.LastUse) >= limit)
                {
                    ExitIfThere(host, pid);
                }
            }
        }
    }

    /// <summary>Completes when the process has exited. For whoever must wait for what no call of theirs brings about.</summary>
    internal Task WhenGone(string hostId, int pid) =>
        Get(hostId).Sessions.TryGetValue(pid, out ProcessSession? session) ? session.Gone.Task : Task.CompletedTask;

    public void Dispose()
    {
        foreach (ServedHost host in All)
        {
            Remove(host, "the daemon stops");
        }
    }

    // The host may be deleted while it is being looked at.
    private void ExitIfThere(ServedHost host, int pid)
    {
        try
        {
            Exit(host, pid, "idle");
        }
        catch (Grpc.Core.RpcException gone) when (gone.StatusCode == Grpc.Core.StatusCode.NotFound)
        {
            // Then so is the process.
        }
    }

    private static ProcessSession SessionOf(ServedHost host, uint pid) => host.Sessions.TryGetValue((int)pid, out ProcessSession? session)
        ? session
        : throw Refusals.NotFound("process", $"{pid} on host {host.Id}", "it is exiting; create one with ProcessService.CreateProcess");

    private static Process Find(ServedHost host, SimHost sim, uint pid) => sim.FindProcess((int)pid)
        ?? throw (pid == 0
            ? Refusals.BadField("pid", "the process id is missing; ProcessService.CreateProcess gives one")
            : Refusals.NotFound("process", $"{pid} on host {host.Id}", "it never was or it has exited; create one with ProcessService.CreateProcess"));

    private void Exit(ServedHost host, int pid, string reason)
    {
        if (!host.Sessions.TryRemove(pid, out ProcessSession? session))
        {
            return;
        }
        if (!_hosts.ContainsKey(host.Id))
        {
            session.Gone.SetResult();
            return;
        }
        bool empty = host.Run(sim =>
        {
            sim.FindProcess(pid)?.Exit();
            return sim.Processes.Count == 0;
        });
        Log.ProcessExited(logger, host.Id, pid, reason);
        if (empty && host.DeleteWhenEmpty)
        {
            Remove(host, "its last process exited");
        }
        session.Gone.SetResult();
    }
}

/// <summary>A host with its id, and what the daemon knows of its processes.</summary>
internal sealed class ServedHost(int number, SimHost sim, bool deleteWhenEmpty, long maxRecordedBytes)
{
    public int Number { get; } = number;

    public string Id { get; } = $"h{number}";

    public SimHost Sim { get; } = sim;

    public bool DeleteWhenEmpty { get; } = deleteWhenEmpty;

    public CallRecording Recording { get; } = new(maxRecordedBytes);

    public ConcurrentDictionary<int, ProcessSession> Sessions { get; } = new();

    /// <summary>Runs something alone on the host; NOT_FOUND if it was switched off meanwhile.</summary>
    public T Run<T>(Func<SimHost, T> body)
    {
        try
        {
            return Sim.Run(body);
        }
        catch (ObjectDisposedException)
        {
            throw Refusals.NotFound("host", Id, "it was deleted; create another");
        }
    }

    /// <summary>Runs something alone on the host; false if it was switched off meanwhile.</summary>
    public bool TryRun(Action<SimHost> body)
    {
        try
        {
            return Sim.Run(sim =>
            {
                body(sim);
                return true;
            });
        }
        catch (ObjectDisposedException)
        {
            return false;
        }
    }
}

/// <summary>What the daemon keeps of a process besides the simulation.</summary>
internal sealed class ProcessSession
{
    /// <summary>Streams that the process is attached to.</summary>
    public int Attachments;

    /// <summary>Completes when the process has exited.</summary>
    public TaskCompletionSource Gone { get; } = new(TaskCreationOptions.RunContinuationsAsynchronously);

    /// <summary>Timestamp of the last call.</summary>
    public long LastUse { get; set; }

    /// <summary>Where the daemon puts structures that an ioctl points to, as a VMM would use its stacks: an address for each thread, from its first use on.</summary>
    public SortedDictionary<int, ulong> Scratches { get; init; } = [];
}

/// <summary>An attachment; disposing it exits the process.</summary>
internal sealed class AttachedProcess(Action exit) : IDisposable
{
    public void Dispose() => exit();
}
