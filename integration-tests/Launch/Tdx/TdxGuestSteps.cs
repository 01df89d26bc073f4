using System.Text.Json;
using VmmService.Client;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;
using static VmmService.IntegrationTests.Support.TdxScenarios;
using Vcpu = VmmService.Client.Vcpu;

namespace VmmService.IntegrationTests.Launch.Tdx;

/// <summary>The guest's steps of a scenario: TDCALLs and accesses, with the VMM answering exits.</summary>
internal static class TdxGuestSteps
{
    public static async Task Run(TdBench bench, JsonElement step, Checker checker)
    {
        string[] word = step.GetProperty("call").GetString()!.Split(' ');
        GuestStep action = word[1] switch
        {
            "MapGPA" => TdGuest.MapGpa(Number(step, "r12"), Number(step, "r13")),
            "GetQuote" => TdGuest.GetQuote(Number(step, "r12"), Number(step, "r13")),
            "TDG.MEM.PAGE.ACCEPT" => TdGuest.Accept(Number(word[3])),
            "read" => Guest.Read(Number(word[2]), 64),
            "private" => Guest.Read(Number(word[3]), 1, GuestAccess.Private),
            _ => throw new InvalidOperationException($"no guest step {word[1]}"),
        };
        Vcpu vcpu = bench.Vcpus[0];
        await vcpu.LoadProgramAsync([action, Guest.Halt()]);
        List<HypercallExit> exits = [];
        RunResponse run = await vcpu.RunAsync().Reply;
        while (run.Run.ExitCase == KvmRun.ExitOneofCase.Hypercall)
        {
            exits.Add(run.Run.Hypercall);
            ulong ret = Number(step.GetProperty("expect"), "hypercall.ret");
            run = await vcpu.RunAsync(new RunPageUpdate { HypercallRet = ret }).Reply;
        }
        checker.Look("hypercall.ret", _ => Assert.NotEmpty(exits));
        checker.Look("exits", expected => Assert.Equal(
            expected.EnumerateArray().Select(exit => $"{exit.GetProperty("nr")}: {string.Join(',', exit.GetProperty("args").EnumerateArray().Select(Number))}"),
            exits.Select(exit => $"{exit.Nr}: {string.Join(',', exit.Args.Take(3))}")));
        checker.Look("exit", _ => Assert.Empty(exits));
        checker.Errno(run.Outcome);
        checker.Equal("exit_reason", run.Run.ExitReason);
        CheckRecord(run.Run, checker);
        CheckResult(run, checker);
    }

    private static void CheckRecord(KvmRun run, Checker checker)
    {
        if (run.MemoryFault is { } fault)
        {
            checker.Equal("memory_fault.flags", fault.Flags);
            checker.Equal("memory_fault.gpa", fault.Gpa);
            checker.Equal("memory_fault.size", fault.Size);
        }
        if (run.Tdx is { } tdx)
        {
            checker.Equal("tdx.flags", tdx.Flags);
            checker.Equal("tdx.nr", tdx.Nr);
            checker.Equal("tdx.get_quote.ret", tdx.Ret);
            checker.Equal("tdx.get_quote.gpa", tdx.Gpa);
            checker.Equal("tdx.get_quote.size", tdx.Size);
        }
    }

    private static void CheckResult(RunResponse run, Checker checker)
    {
        if (run.Results is not [{ } result, ..])
        {
            return;
        }
        checker.Look("value", expected =>
        {
            Assert.Equal("all zero", expected.GetString());
            Assert.All(result.Data, each => Assert.Equal(0, each));
        });
        if (result.Registers is { } registers)
        {
            checker.Equal("rax", registers.Rax);
            checker.Equal("r10", registers.R10);
            checker.Equal("r11", registers.R11);
        }
    }
}
