using Grpc.Core;
using Microsoft.Extensions.Logging.Abstractions;
using SimKvm;
using SimKvm.Exploration;
using SimKvm.Profiles;
using VmmService.Server.Services;
using VmmService.Server.Sessions;
using VmmService.V1;

namespace VmmService.Server.Scripts.Scenarios;

/// <summary>
/// A scenario made of script steps, as the explorer wants it: each run's host is set up by the steps of `setup`, and each program's steps are executed by a thread of the
/// explorer's. The hosts are in a registry of their own, so no client of the daemon meets them.
/// </summary>
internal sealed class ScenarioExploration : IDisposable
{
    private readonly ScenarioDocument _document;
    private readonly HostRegistry _hosts;
    private ServedHost? _last;

    public ScenarioExploration(ScenarioDocument document, HostRegistry daemon, string profile)
    {
        _document = document;
        _hosts = new HostRegistry(daemon.Options, TimeProvider.System, NullLogger<HostRegistry>.Instance);
        CreateHostRequest boot = document.Boot.Clone();
        boot.Profile = profile;
        (KernelProfile kernelProfile, SimMachine.MachineConfig machine, SimKvm.KernelConfig kernel) = Configure(document, daemon, boot);
        Scenario = new Scenario
        {
            Title = document.Title,
            Profile = kernelProfile,
            Machine = machine,
            Kernel = kernel,
            Seed = boot.Seed,
            Serializable = document.Serializable,
            Prepare = Prepare,
        };
    }

    public Scenario Scenario { get; }

    /// <summary>What is wrong with the scenario, once a run met it; the exploration is of no use then.</summary>
    public ScriptException? Wrong { get; private set; }

    // What the daemon says of a machine it says of the place where the machine is written.
    private static (KernelProfile Profile, SimMachine.MachineConfig Machine, SimKvm.KernelConfig Kernel) Configure(ScenarioDocument document, HostRegistry daemon, CreateHostRequest boot)
    {
        try
        {
            return HostServiceImpl.Configure(daemon, boot);
        }
        catch (RpcException refused) when (document.Machine is not null && refused.StatusCode is StatusCode.InvalidArgument or StatusCode.ResourceExhausted)
        {
            throw document.Machine!.Problem($"there can be no such machine: {refused.Status.Detail}", "correct the setting, or leave it out");
        }
    }

    public void Dispose()
    {
        if (_last is not null)
        {
            _hosts.Forget(_last);
        }
        _hosts.Dispose();
    }

    // The explorer switches the host off, so all that is done with the one before is to forget it.
    private PreparedScenario Prepare(SimHost host)
    {
        if (_last is not null)
        {
            _hosts.Forget(_last);
        }
        _last = _hosts.Add(() => host, deleteWhenEmpty: false);
        var scope = new ScriptScope(_hosts.Options.MaxMessageBytes);
        foreach ((ScalarNode name, ScriptNode value) in _document.Variables.Select(entry => (entry.Key, entry.Value)))
        {
            scope.Set(name, scope.Value(value));
        }
        var setup = new ScriptRun(_hosts, _last, ownsHost: false, scope, keepGoing: false, MustBeMet);
        Execute(setup, _document.Setup);

        var unmet = new List<string>();
        Thread[] threads = [.. _document.Programs.Select((program, i) => Start(setup, program, i, unmet))];
        return new PreparedScenario([.. threads.Select(thread => thread.Program)]) { MustHold = () => MustHold(setup, threads, unmet) };
    }

    private Thread Start(ScriptRun setup, ScenarioProgram program, int index, List<string> unmet)
    {
        uint pid = program.In is { } process ? (uint)setup.Scope.Number(process, 1, int.MaxValue) : setup.FirstPid;
        if (!setup.HasProcess(pid))
        {
            throw program.In!.Problem($"process {pid} is none of the scenario's", "start one with `process` in `setup` and keep it with `as`");
        }
        ScriptScope scope = setup.Scope.Fork();
        ScriptRun run = setup.ForThread(index + 1, pid, scope, reply =>
        {
            unmet.AddRange(reply.Unmet.Select(each => $"{(char)('A' + index)}, line {each.Line}: {reply.Action} expected {each.Fact} = {each.Expected}, it is {each.Actual}"));
            return Task.CompletedTask;
        });
        if (scope.Variables.ContainsKey("sev"))
        {
            // Made before the programs run: no program's calls are to depend on whether another needed its own first.
            run.On(each => _hosts.ScratchOf(_last!.Id, each, run.Thread)).Store(0, new byte[1]);
        }
        return new Thread(scope, new ExploredProgram(program.Name, run.On(each => each), _ => Execute(run, program.Steps)));
    }

    // What the programs' steps expected, then the steps of `must_hold`, which see the programs' variables too.
    private List<string> MustHold(ScriptRun setup, Thread[] threads, List<string> unmet)
    {
        ScriptScope scope = setup.Scope.Fork();
        foreach (Thread thread in threads)
        {
            scope.TakeOver(thread.Scope);
        }
        var run = new ScriptRun(setup, scope, reply =>
        {
            unmet.AddRange(reply.Unmet.Select(each => $"line {each.Line}: {(reply.Name.Length > 0 ? reply.Name : reply.Action)}: expected {each.Fact} = {each.Expected}, it is {each.Actual}"));
            return Task.CompletedTask;
        });
        Execute(run, _document.MustHold);
        return unmet;
    }

    private void Execute(ScriptRun run, ListNode steps)
    {
        try
        {
            // Nothing in it waits for anything.
            run.ExecuteAsync(steps, CancellationToken.None).GetAwaiter().GetResult();
        }
        catch (ScriptException wrong)
        {
            Wrong ??= wrong;
            throw;
        }
    }

    // A scenario whose setup does not come to what it expects has nothing to explore.
    private static Task MustBeMet(ScriptStepReply reply) => reply.Unmet.Count == 0
        ? Task.CompletedTask
        : throw new ScriptException(
            new ScriptPlace((int)reply.Line, 1), $"the setup did not come about: expected {reply.Unmet[0].Fact} = {reply.Unmet[0].Expected}, it is {reply.Unmet[0].Actual} ({reply.Text})",
            "correct the step, or say what is to be expected of it");

    private sealed record Thread(ScriptScope Scope, ExploredProgram Program);
}
