using VmmService.V1;
using GuestStepResult = SimKvm.Kvm.GuestStepResult;

namespace VmmService.Server.Scripts;

/// <summary>The exit record and the guest's results as facts that an expectation can name.</summary>
internal static class ExitFacts
{
    /// <summary>Exit reasons may be written without it.</summary>
    public const string ReasonPrefix = "KVM_EXIT_";

    public static void Add(StepResult result, KvmRun run)
    {
        result.Add("exit.reason", run.ExitReasonName.Length > 0 ? run.ExitReasonName : run.ExitReason.ToString(System.Globalization.CultureInfo.InvariantCulture));
        result.Text += $"; {result.Fact("exit.reason")!.Show()}";
        switch (run.ExitCase)
        {
            case KvmRun.ExitOneofCase.MemoryFault:
                Add(result, ("flags", run.MemoryFault.Flags), ("gpa", run.MemoryFault.Gpa), ("size", run.MemoryFault.Size));
                break;
            case KvmRun.ExitOneofCase.Hypercall:
                Add(result, ("nr", run.Hypercall.Nr), ("ret", run.Hypercall.Ret), ("flags", run.Hypercall.Flags));
                for (int i = 0; i < run.Hypercall.Args.Count; i++)
                {
                    result.Add($"exit.args.{i}", run.Hypercall.Args[i]);
                }
                result.Text += $" args {string.Join(", ", run.Hypercall.Args.Select(arg => ScriptValue.Of(arg).Show()))}";
                break;
            case KvmRun.ExitOneofCase.Tdx:
                Add(result, ("nr", run.Tdx.Nr), ("ret", run.Tdx.Ret), ("gpa", run.Tdx.Gpa), ("size", run.Tdx.Size));
                break;
            case KvmRun.ExitOneofCase.Io:
                Add(result, ("port", run.Io.Port), ("out", run.Io.Out ? 1UL : 0), ("size", run.Io.Size));
                result.Add("exit.data", run.Io.Data.Memory);
                break;
            case KvmRun.ExitOneofCase.SystemEvent:
                Add(result, ("type", run.SystemEvent.Type), ("data", run.SystemEvent.Data.FirstOrDefault()));
                break;
            case KvmRun.ExitOneofCase.SnpReqCerts:
                Add(result, ("gpa", run.SnpReqCerts.Gpa), ("npages", run.SnpReqCerts.Npages));
                break;
            case KvmRun.ExitOneofCase.Mmio:
                Add(result, ("phys_addr", run.Mmio.PhysAddr), ("is_write", run.Mmio.IsWrite ? 1UL : 0), ("len", run.Mmio.Len));
                result.Add("exit.data", run.Mmio.Data.Memory);
                break;
        }
    }

    public static void Add(StepResult result, GuestStepResult step)
    {
        result.Add($"results.{step.Step}.data", step.Data).Add($"results.{step.Step}.rax", step.Rax);
        if (step.MismatchAt is { } at)
        {
            result.Add($"results.{step.Step}.mismatch", at);
        }
        if (step.Registers is { } after)
        {
            (string Name, ulong Value)[] registers =
            [
                ("rcx", after.Rcx), ("rdx", after.Rdx), ("r8", after.R8), ("r9", after.R9), ("r10", after.R10), ("r11", after.R11), ("r12", after.R12), ("r13", after.R13), ("r14", after.R14), ("r15", after.R15),
            ];
            foreach ((string name, ulong value) in registers)
            {
                result.Add($"results.{step.Step}.{name}", value);
            }
        }
    }

    /// <summary>The last of each kind by a short name.</summary>
    public static void AddLast(StepResult result, IReadOnlyList<GuestStepResult> steps)
    {
        if (steps.LastOrDefault(step => step.Data.Length > 0) is { } load)
        {
            result.Add("data", load.Data);
            result.Kept = ScriptValue.Of(load.Data);
        }
        if (steps.Count > 0)
        {
            result.Add("rax", steps[^1].Rax);
        }
        if (steps.LastOrDefault(step => step.MismatchAt is not null)?.MismatchAt is { } at)
        {
            result.Add("mismatch", at);
        }
    }

    private static void Add(StepResult result, params (string Name, ulong Value)[] facts)
    {
        foreach ((string name, ulong value) in facts)
        {
            result.Add("exit." + name, value);
            result.Text += $" {name} {ScriptValue.Of(value).Show()}";
        }
    }
}
