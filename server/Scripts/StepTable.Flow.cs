using System.Globalization;
using SimKvm.Auditing;

namespace VmmService.Server.Scripts;

// Looks that change nothing, and the flow of the script itself.
internal static partial class StepTable
{
    private static IEnumerable<StepAction> InspectSteps =>
    [
        new("explain_gpa", "everything about one guest page; no call", [Need("gpa", FieldKind.U64, "bytes"), Fd("vm", "VM")], ExplainGpa)
        {
            IsCall = false,
            Facts =
            [
                new("private", FieldKind.Bool, "by attribute, or in place"), new("slot", FieldKind.U64, "id; `none` without"), new("level", FieldKind.U64, "1 is 4 KiB, 2 is 2 MiB, 3 is 1 GiB, 0 is not mapped"),
                new("max_level", FieldKind.U64, "the level that its limits allow"), new("writable", FieldKind.Bool, "guest stores pass"), new("folio", FieldKind.Text, "none, absent, present, uptodate, poisoned"),
                new("rmp", FieldKind.Text, "state of the page in the RMP; `none` without"), new("mixed", FieldKind.Bool, "the 2 MiB around it mixes private and shared"),
            ],
        },
    ];

    private static IEnumerable<StepAction> FlowSteps =>
    [
        new(
            "process", "start another process of the script; the value is its pid, for `in: $name` on later steps", [],
            (run, _) =>
            {
                uint pid = run.StartProcess();
                return new StepResult { Text = string.Create(CultureInfo.InvariantCulture, $"process {pid}"), Kept = ScriptValue.Of(pid) }.Add("value", pid);
            })
        { IsCall = false, Facts = [new("value", FieldKind.U64, "pid")] },
        new(
            "inject_fault", "a fault strikes, once, at the n-th occurrence of a call, of a step, or of a look-up of a page",
            [
                May("call", FieldKind.Text, "beginning of a call's name in answers, as KVM_SET_MEMORY_ATTRIBUTES or fallocate", null), May("step", FieldKind.Text, "a step of the journal, as lock kvm->slots_lock", null),
                May("gpa", FieldKind.U64, "guest address, bytes", null), May("occurrence", FieldKind.U32, "from 1", "1"), May("errno", FieldKind.U32, "the call or the look-up fails with it, as ENOMEM", null),
                May("status", FieldKind.U32, "the next firmware command answers it", null),
                May("firmware_timeout", FieldKind.Bool, "the next firmware command is not answered, nor is any after it", "false"),
                May("module_status", FieldKind.U64, "the SEAMCALL under way, or the next one, answers it", null),
                May("no_memory", FieldKind.Bool, "the next page that is asked for is not there", "false"),
                May("signal", FieldKind.Bool, "a signal arrives", "false"),
            ],
            InjectFault)
        { IsCall = false },
        new("exit", "exit_group(2): the process ends, its descriptors close", [], (run, _) => StepResult.Done(run.ExitProcess())) { IsCall = false },
        new(
            "set", "set variables", [Need("variables", FieldKind.Map, "name: value")],
            (run, args) =>
            {
                foreach ((ScalarNode name, ScriptNode value) in args.Map("variables").Entries.Select(entry => (entry.Key, entry.Value)))
                {
                    args.Scope.Set(name, args.Scope.Value(value));
                }
                return StepResult.Done(string.Join(", ", args.Map("variables").Entries.Select(entry => $"{entry.Key.Text} = {args.Scope.Variables[entry.Key.Text].Show()}")));
            })
        { IsCall = false },
        new("echo", "say something", [Need("text", FieldKind.Text, "with $variables")], (run, args) => StepResult.Done(args.Text("text"))) { IsCall = false },
        new(
            "check", "a condition must hold: anything but 0", [Need("condition", FieldKind.U64, "an expression, as $a == $b + 1")],
            (run, args) => new StepResult { Text = args.Node("condition").AsScalar().Text }.Add("holds", args.Scope.Number(args.Node("condition"), Int128.MinValue, Int128.MaxValue) != 0 ? 1 : 0))
        { IsCall = false, Facts = [new("holds", FieldKind.Bool, "1 unless another is expected")] },
        new(
            "repeat", "execute steps several times; `for` counts from `from` by `step`",
            [
                Need("steps", FieldKind.Steps, "what to repeat"), Need("times", FieldKind.U64, "how often"), May("for", FieldKind.Name, "variable that counts", null),
                May("from", FieldKind.U64, "its first value"), May("step", FieldKind.U64, "what is added to it each time", "1"),
            ],
            (run, args) => StepResult.Done($"{args.U64("times")} times"))
        { IsCall = false, Expand = Repeat },
    ];

    private static StepResult InjectFault(ScriptRun run, StepArguments args)
    {
        var fault = new SimKvm.Faults.ScriptedFault
        {
            Call = args.Has("call") ? args.Text("call") : "",
            Step = args.Has("step") ? args.Text("step") : "",
            Gpa = args.Has("gpa") ? args.U64("gpa") : null,
            Occurrence = (int)Math.Min(args.U32("occurrence"), int.MaxValue),
            Errno = args.Has("errno") ? (SimKvm.Errno)args.U32("errno") : SimKvm.Errno.OK,
            FirmwareStatus = args.Has("status") ? args.U32("status") : 0,
            ModuleStatus = args.Has("module_status") ? args.U64("module_status") : 0,
            FirmwareTimeout = args.Flag("firmware_timeout"),
            NoMemory = args.Flag("no_memory"),
            Signal = args.Flag("signal"),
        };
        if (fault.Problem(run.On(process => process.Host.Machine.Config.Platform)) is { } problem)
        {
            throw args.Key.Problem(problem, "write inject_fault: {call: fallocate, occurrence: 2, errno: ENOMEM}");
        }
        if (!Enum.IsDefined(fault.Errno))
        {
            throw args.Node("errno").Problem($"{(int)fault.Errno} is no errno of the simulated kernel", "use a name, as ENOMEM");
        }
        return run.On(process => process.Host.Inject(fault))
            ? StepResult.Done(string.Create(CultureInfo.InvariantCulture, $"fault at {(fault.Call.Length > 0 ? fault.Call : fault.Step.Length > 0 ? $"'{fault.Step}'" : Hex(fault.Gpa!.Value))}, occurrence {fault.Occurrence}"))
            : throw args.Key.Problem("as many faults wait on the host as may", "let some strike first");
    }

    private static IEnumerable<ListNode> Repeat(ScriptRun run, StepArguments args)
    {
        ListNode steps = args.List("steps");
        ulong times = args.U64("times");
        Int128 value = args.U64("from"), step = args.I64("step");
        for (ulong i = 0; i < times; i++, value += step)
        {
            if (args.Has("for"))
            {
                args.Scope.Set(args.Node("for").AsScalar(), ScriptValue.Of(value));
            }
            yield return steps;
        }
    }

    private static StepResult ExplainGpa(ScriptRun run, StepArguments args)
    {
        int fd = args.Fd();
        ulong gpa = args.U64("gpa");
        GpaExplanation page = run.On(process => GpaExplanation.Of(process, fd, gpa)) ?? throw args.Key.Problem($"descriptor {fd} is no VM", "use the one that create_vm gave");
        StepResult result = StepResult.Done($"{Hex(page.Gpa)}: {string.Join("; ", page.Text)}")
            .Add("private", page.Run is { IsPrivate: true } ? 1 : 0)
            .Add("level", (int)(page.Run?.Level ?? 0))
            .Add("max_level", (int)page.Level)
            .Add("writable", page.Run is { Writable: true } ? 1 : 0)
            .Add("folio", (page.Run?.Folio ?? FolioState.None).ToString().ToLowerInvariant())
            .Add("mixed", page.Lpages.Any(lpage => lpage.Level == SimMachine.Addressing.PageLevel.Page2M && lpage.Mixed) ? 1 : 0);
        if (page.Run?.Slot is { } slot)
        {
            result.Add("slot", slot.Id);
        }
        if (page.Run?.Rmp is { } rmp)
        {
            result.Add("rmp", rmp.ToString().ToUpperInvariant());
        }
        return result;
    }
}
