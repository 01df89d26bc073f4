using Grpc.Core;
using SimKvm.Userspace;
using VmmService.Server.Sessions;
using VmmService.V1;

namespace VmmService.Server.Scripts;

/// <summary>
/// A script under way: its host, its processes, its variables. Each step is one turn on the host, as an RPC is, so others who use the host are served in between. Disposing it
/// exits the processes, and switches the host off if it was booted for the script.
/// </summary>
internal sealed class ScriptRun : IDisposable
{
    // Words beside the action of a step.
    private static readonly string[] Modifiers = ["as", "expect", "name", "in", "when"];

    private readonly ServedHost _host;
    private readonly bool _ownsHost;
    private readonly SortedDictionary<uint, AttachedProcess> _processes;
    private readonly bool _keepGoing;
    private readonly Func<ScriptStepReply, Task> _reply;
    private ulong _executed;

    public ScriptRun(HostRegistry hosts, ServedHost host, bool ownsHost, ScriptScope scope, bool keepGoing, Func<ScriptStepReply, Task> reply)
    {
        Hosts = hosts;
        _host = host;
        _ownsHost = ownsHost;
        Scope = scope;
        _keepGoing = keepGoing;
        _reply = reply;
        _processes = [];
        Pid = FirstPid = StartProcess();
    }

    private ScriptRun(ScriptRun parent, int thread, uint pid, ScriptScope scope, Func<ScriptStepReply, Task> reply)
    {
        Hosts = parent.Hosts;
        _host = parent._host;
        _processes = parent._processes;
        _keepGoing = true;
        _reply = reply;
        Scope = scope;
        Thread = thread;
        Pid = FirstPid = pid;
    }

    /// <summary>Steps that come after those of another run, on the same processes.</summary>
    public ScriptRun(ScriptRun before, ScriptScope scope, Func<ScriptStepReply, Task> reply)
        : this(before, 0, before.FirstPid, scope, reply)
    {
    }

    /// <summary>Steps of one thread of a process that run at the same time as others: they go on whatever calls answer, and are expected only what they say.</summary>
    /// <param name="thread">From 1.</param>
    /// <param name="pid">The process.</param>
    public ScriptRun ForThread(int thread, uint pid, ScriptScope scope, Func<ScriptStepReply, Task> reply) => new(this, thread, pid, scope, reply);

    /// <summary>Number of the thread that the steps are of; 0 where there is one.</summary>
    public int Thread { get; }

    public HostRegistry Hosts { get; }

    public string HostId => _host.Id;

    public ScriptScope Scope { get; }

    /// <summary>The process that steps run in unless they say otherwise.</summary>
    public uint FirstPid { get; }

    /// <summary>The process of the step under way.</summary>
    public uint Pid { get; private set; }

    public ScriptSummary Summary { get; } = new();

    /// <summary>Runs something on the step's process, alone on its host.</summary>
    public T On<T>(Func<Process, T> body) => Hosts.RunOn(HostId, Pid, body);

    /// <summary>The process is one of the script's.</summary>
    public bool HasProcess(uint pid) => _processes.ContainsKey(pid);

    public uint StartProcess()
    {
        uint pid = (uint)Hosts.StartProcess(_host);
        _processes.Add(pid, Hosts.Attach(HostId, pid));
        return pid;
    }

    /// <summary>Forks the step's process; the child is one of the script's.</summary>
    public StepResult Fork()
    {
        CallReport report = Hosts.Fork(HostId, Pid);
        if (report.Succeeded)
        {
            _processes.Add((uint)report.Value, Hosts.Attach(HostId, (uint)report.Value));
        }
        return StepResult.Of(report);
    }

    /// <summary>Ends the step's process.</summary>
    public string ExitProcess()
    {
        Hosts.Exit(HostId, Pid);
        return $"process {Pid} exited";
    }

    /// <summary>Executes a step, or a list of steps.</summary>
    /// <returns>False when the script is at its end because an expectation was not met.</returns>
    /// <exception cref="ScriptException">A step cannot be executed as it stands.</exception>
    public async Task<bool> ExecuteAsync(ScriptNode steps, CancellationToken cancellation)
    {
        IEnumerable<ScriptNode> list = steps is ListNode several ? several.Items : [steps];
        foreach (ScriptNode step in list)
        {
            cancellation.ThrowIfCancellationRequested();
            // A thread goes with its process, whoever made it exit.
            if (Thread != 0 && !_host.Sessions.ContainsKey((int)FirstPid))
            {
                return false;
            }
            if (!await ExecuteOneAsync(step, cancellation))
            {
                return false;
            }
        }
        return true;
    }

    public void Dispose()
    {
        foreach (AttachedProcess process in _processes.Values)
        {
            process.Dispose();
        }
        if (_ownsHost)
        {
            Hosts.Remove(_host, "its script ended");
        }
    }

    private async Task<bool> ExecuteOneAsync(ScriptNode node, CancellationToken cancellation)
    {
        MapNode step = node as MapNode ?? throw node.Problem($"a step is an action with its fields, this is {node.Kind}", "write `- action: {field: value}`, or `- action: value`");
        (ScalarNode key, ScriptNode value, StepAction action) = ActionOf(step);
        Count(key);
        if (step.Find("when") is { } condition && Scope.Number(condition, Int128.MinValue, Int128.MaxValue) == 0)
        {
            return true;
        }
        var arguments = new StepArguments(action, key, value, Scope);
        StepResult result = Execute(step, action, arguments);
        if (!await FinishAsync(step, key, action, result))
        {
            return false;
        }
        if (action.Expand is not null)
        {
            foreach (ListNode steps in action.Expand(this, arguments))
            {
                // A round without steps counts as one, so that no script goes on for ever.
                Count(key);
                if (!await ExecuteAsync(steps, cancellation))
                {
                    return false;
                }
            }
        }
        return true;
    }

    private StepResult Execute(MapNode step, StepAction action, StepArguments arguments)
    {
        if (Thread != 0 && step.Find("in") is { } other)
        {
            throw other.Problem("a program is a thread of one process", "write `in` beside the program's steps, for all of them");
        }
        Pid = step.Find("in") is { } pid ? (uint)Scope.Number(pid, 1, int.MaxValue) : FirstPid;
        if (!_processes.ContainsKey(Pid))
        {
            throw step.Find("in")!.Problem($"process {Pid} is none of the script's", "start one with `process` and keep it with `as`");
        }
        try
        {
            return action.Body(this, arguments);
        }
        catch (RpcException refused) when (refused.StatusCode is StatusCode.InvalidArgument or StatusCode.NotFound)
        {
            // What the daemon says of a request it says of this step.
            throw arguments.Key.Problem($"`{action.Name}` cannot be done: {refused.Status.Detail}", "correct the step");
        }
    }

    private async Task<bool> FinishAsync(MapNode step, ScalarNode key, StepAction action, StepResult result)
    {
        IReadOnlyList<UnmetExpectation> unmet = Thread != 0 && action.IsCall && step.Find("expect") is null ? [] : Expectations.Check(action, key, step.Find("expect"), result, Scope);
        var reply = new ScriptStepReply
        {
            Number = ++Summary.Steps,
            Line = (uint)key.Place.Line,
            Action = action.Name,
            Name = step.Find("name") is { } name ? ScriptText.Expand(name.AsScalar(), Scope.Variables) : "",
            Text = result.Text,
            Outcome = result.Outcome,
            Run = result.Run,
            Pid = Pid,
        };
        if (step.Find("as") is { } kept)
        {
            reply.Variable = string.Join(", ", Keep(action, kept, result));
        }
        reply.Facts.AddRange(result.Facts.Select(ToMessage));
        reply.Unmet.AddRange(unmet);
        Summary.Unmet += (ulong)unmet.Count;
        await _reply(reply);
        return unmet.Count == 0 || _keepGoing;
    }

    // One variable for the result, or a map with one for each of the step's facts. What a call did not come to is not kept; that it did not is the expectations' matter.
    private IEnumerable<string> Keep(StepAction action, ScriptNode kept, StepResult result)
    {
        if (kept is not MapNode facts)
        {
            ScalarNode to = kept.AsScalar();
            Scope.Set(to, result.Kept);
            return [to.Text];
        }
        foreach ((ScalarNode fact, ScriptNode variable) in facts.Entries.Select(entry => (entry.Key, entry.Value)))
        {
            Expectations.Known(action, fact, "keep");
            if (result.Fact(fact.Text) is { } value)
            {
                Scope.Set(variable.AsScalar(), value);
            }
        }
        return facts.Entries.Select(entry => entry.Value.AsScalar().Text);
    }

    private static (ScalarNode Key, ScriptNode Value, StepAction Action) ActionOf(MapNode step)
    {
        KeyValuePair<ScalarNode, ScriptNode>[] actions = [.. step.Entries.Where(entry => !Modifiers.Contains(entry.Key.Text))];
        if (actions.Length == 0)
        {
            throw step.Problem("the step does nothing", $"name an action: {string.Join(", ", StepTable.All.Select(each => each.Name))}");
        }
        ScalarNode key = actions[0].Key;
        StepAction action = StepTable.Find(key.Text) ?? throw key.Problem(
            $"there is no step `{key.Text}`", Nearest.Advice(key.Text, StepTable.All.Select(each => each.Name), $"use one of {string.Join(", ", StepTable.All.Select(each => each.Name))}"));
        return actions.Length == 1
            ? (key, actions[0].Value, action)
            : throw actions[1].Key.Problem(
                $"the step is `{key.Text}` already, so `{actions[1].Key.Text}` does not belong to it",
                $"begin another step with `- `, or move it into the braces of `{key.Text}`; beside the action stand only {string.Join(", ", Modifiers)}");
    }

    private void Count(ScalarNode key)
    {
        if (++_executed > (ulong)Hosts.Options.MaxScriptSteps)
        {
            throw key.Problem($"the script executed {Hosts.Options.MaxScriptSteps} steps, the daemon's limit", "repeat less, or use larger ranges");
        }
    }

    private static ScriptFact ToMessage(KeyValuePair<string, ScriptValue> fact)
    {
        var message = new ScriptFact { Name = fact.Key };
        switch (fact.Value)
        {
            case NumberValue number when number.Number > long.MaxValue:
                message.Unsigned = (ulong)number.Number;
                break;
            case NumberValue number:
                message.Number = (long)number.Number;
                break;
            case BytesValue bytes:
                message.Data = Google.Protobuf.UnsafeByteOperations.UnsafeWrap(bytes.Bytes);
                break;
            default:
                message.Text = fact.Value.Show();
                break;
        }
        return message;
    }
}
