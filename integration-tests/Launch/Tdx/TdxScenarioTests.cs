using System.Globalization;
using System.Text.Json;
using SimKvm.Abi;
using VmmService.Client;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;
using static VmmService.IntegrationTests.Support.TdxScenarios;
using Vcpu = VmmService.Client.Vcpu;

namespace VmmService.IntegrationTests.Launch.Tdx;

/// <summary>The ioctl scenarios of tdx-vectors.json on each kernel generation, over gRPC: errno, hw_error, what is written back, exits, MRTD.</summary>
public sealed class TdxScenarioTests(Daemon daemon) : IClassFixture<Daemon>
{
    public static TheoryData<string, string> Scenarios => All;

    [Theory]
    [MemberData(nameof(Scenarios))]
    public async Task Scenario_OverGrpc_GivesWhatTheKernelGives(string id, string profile)
    {
        JsonElement scenario = Get(id);
        await using TdBench bench = await TdBench.Start(daemon, profile, scenario.GetProperty("setup").EnumerateArray().Select(word => word.GetString()!));
        foreach (JsonElement step in scenario.GetProperty("steps").EnumerateArray())
        {
            var checker = new Checker(step, Expected(step, profile));
            await Run(bench, step, checker);
            checker.AllWasLookedAt();
        }
    }

    private static Task Run(TdBench bench, JsonElement step, Checker checker)
    {
        string call = step.GetProperty("call").GetString()!;
        return call.Split(' ')[0] switch
        {
            "KVM_TDX_CAPABILITIES" => Capabilities(bench, step, checker),
            "KVM_TDX_INIT_VM" => InitVm(bench, step, checker),
            "KVM_TDX_INIT_VCPU" when call.EndsWith("on the VM fd", StringComparison.Ordinal) => OnVmFd(bench, TdxCmdId.KVM_TDX_INIT_VCPU, checker),
            "KVM_TDX_INIT_VCPU" => InitVcpu(bench, step, checker),
            "KVM_TDX_INIT_MEM_REGION" => InitMemRegion(bench, step, checker),
            "KVM_TDX_FINALIZE_VM" => FinalizeVm(bench, step, checker),
            "KVM_TDX_GET_CPUID" => GetCpuid(bench, step, checker),
            "KVM_MEMORY_ENCRYPT_OP" => EncryptOp(bench, call, checker),
            "KVM_CREATE_VCPU" => CreateVcpu(bench, step, checker),
            "KVM_CHECK_EXTENSION" => CheckExtension(bench, checker),
            "KVM_SET_TSC_KHZ" => SetTscKhz(bench, call, checker),
            "KVM_RUN" => KvmRun(bench, checker),
            "KVM_PRE_FAULT_MEMORY" => PreFault(bench, step, checker),
            "id" => OnVmFd(bench, (TdxCmdId)Number(call.Split(' ')[1]), checker),
            "map" => MapPage(bench, call, checker),
            "guest" => TdxGuestSteps.Run(bench, step, checker),
            _ => throw new InvalidOperationException($"no call '{call}'"),
        };
    }

    private static async Task Capabilities(TdBench bench, JsonElement step, Checker checker)
    {
        uint flags = (uint)Number(step, "flags");
        if (step.TryGetProperty("data", out _))
        {
            checker.Errno((await TdBench.Command(bench.Vm, TdxCmdId.KVM_TDX_CAPABILITIES, flags)).Outcome);
            return;
        }
        if (step.TryGetProperty("hw_error", out _))
        {
            ulong room = await bench.Process.MmapAsync(4 * 4096);
            checker.Errno((await TdBench.Command(bench.Vm, TdxCmdId.KVM_TDX_CAPABILITIES, flags, room, Number(step, "hw_error"))).Outcome);
            return;
        }
        VmmStubs stubs = bench.Process.Connection.Stubs;
        TdxCapabilitiesResponse reply = await stubs.Tdx.TdxCapabilitiesAsync(new TdxCapabilitiesRequest
        {
            Host = bench.Host.Id,
            Pid = bench.Process.Pid,
            Fd = bench.Vm.Fd,
            Flags = flags,
            Nent = (uint)Number(step, "nent"),
        });
        checker.Errno(reply.Outcome);
        if (reply.Capabilities is { } capabilities)
        {
            checker.Equal("nent", (ulong)capabilities.Cpuid.Count);
            checker.Equal("supported_attrs", capabilities.SupportedAttrs);
            checker.Equal("supported_xfam", capabilities.SupportedXfam);
            checker.Equal("user_tdvmcallinfo_1_r11", capabilities.UserTdvmcallinfo1R11);
        }
    }

    private static async Task InitVm(TdBench bench, JsonElement step, Checker checker)
    {
        uint flags = (uint)Number(step, "flags");
        if (step.TryGetProperty("data", out _))
        {
            checker.Errno((await TdBench.Command(bench.Vm, TdxCmdId.KVM_TDX_INIT_VM, flags)).Outcome);
            return;
        }
        kvm_cpuid_entry2[]? cpuid = step.TryGetProperty("cpuid", out JsonElement entries) ? [.. entries.EnumerateArray().Select(Entry)] : null;
        (Outcome outcome, kvm_tdx_cmd cmd) = await bench.InitVm(
            Number(step, "attributes", 0x1000_0000), Number(step, "xfam", 3), cpuid, flags, step.TryGetProperty("nent", out JsonElement nent) ? nent.GetUInt32() : null,
            (uint)Number(step, "cpuid_padding"), step.TryGetProperty("reserved_nonzero", out _));
        checker.Errno(outcome);
        checker.Equal("hw_error", cmd.hw_error);
    }

    private static kvm_cpuid_entry2 Entry(JsonElement entry) => new()
    {
        function = (uint)Number(entry, "function"),
        index = (uint)Number(entry, "index"),
        flags = (uint)Number(entry, "flags"),
        eax = (uint)Number(entry, "eax"),
        ebx = (uint)Number(entry, "ebx"),
        ecx = (uint)Number(entry, "ecx"),
        edx = (uint)Number(entry, "edx"),
    };

    private static async Task InitVcpu(TdBench bench, JsonElement step, Checker checker) =>
        checker.Errno((await bench.Launch.InitVcpuAsync(Vcpu(bench, step), Number(step, "data"), (uint)Number(step, "flags")).Reply).Outcome);

    private static async Task InitMemRegion(TdBench bench, JsonElement step, Checker checker)
    {
        uint flags = (uint)Number(step, "flags");
        Vcpu vcpu = Vcpu(bench, step);
        if (step.TryGetProperty("data", out _))
        {
            checker.Errno((await TdBench.Command(vcpu, TdxCmdId.KVM_TDX_INIT_MEM_REGION, flags)).Outcome);
            return;
        }
        TdxInitMemRegionResponse reply = await bench.Process.Connection.Stubs.Tdx.TdxInitMemRegionAsync(new TdxInitMemRegionRequest
        {
            Host = bench.Host.Id,
            Pid = bench.Process.Pid,
            Fd = vcpu.Fd,
            Flags = flags,
            Region = new KvmTdxInitMemRegion { SourceAddr = bench.Address(step.GetProperty("source_addr").GetString()!), Gpa = Number(step, "gpa"), NrPages = Number(step, "nr_pages") },
        });
        checker.Errno(reply.Outcome);
        checker.Look("region", expected =>
        {
            JsonElement[] region = [.. expected.EnumerateArray()];
            Assert.Equal((bench.Address(region[0].GetString()!), Number(region[1]), Number(region[2])), (reply.Region.SourceAddr, reply.Region.Gpa, reply.Region.NrPages));
        });
    }

    private static async Task FinalizeVm(TdBench bench, JsonElement step, Checker checker)
    {
        TdxFinalizeVmResponse reply = await bench.Process.Connection.Stubs.Tdx.TdxFinalizeVmAsync(new TdxFinalizeVmRequest
        {
            Host = bench.Host.Id,
            Pid = bench.Process.Pid,
            Fd = bench.Vm.Fd,
            Flags = (uint)Number(step, "flags"),
            Data = Number(step, "data"),
        });
        checker.Errno(reply.Outcome);
        checker.Equal("hw_error", reply.Tdx.HwError);
        checker.Look("mrtd", expected => Assert.Equal(expected.GetString(), reply.Mrtd));
    }

    private static async Task GetCpuid(TdBench bench, JsonElement step, Checker checker) =>
        checker.Errno((await bench.Launch.GetCpuidAsync(Vcpu(bench, step)).Reply).Outcome);

    private static async Task OnVmFd(TdBench bench, TdxCmdId id, Checker checker) => checker.Errno((await TdBench.Command(bench.Vm, id, 0, 0)).Outcome);

    private static async Task EncryptOp(TdBench bench, string call, Checker checker)
    {
        RemoteFd fd = call.Contains("VM fd", StringComparison.Ordinal) ? bench.Vm : bench.Vcpus[0];
        checker.Errno((await TdBench.Command(fd, TdxCmdId.KVM_TDX_CAPABILITIES, 0)).Outcome);
    }

    private static async Task CreateVcpu(TdBench bench, JsonElement step, Checker checker) => checker.Errno((await bench.Vm.CreateVcpuAsync(Number(step, "id")).Reply).Outcome);

    private static async Task CheckExtension(TdBench bench, Checker checker)
    {
        CheckExtensionResponse reply = await bench.Vm.CheckExtensionAsync(KernelNumbers.KVM_CAP_MAX_VCPUS).Reply;
        checker.Errno(reply.Outcome);
        checker.Equal("value", (ulong)reply.Outcome.Value);
    }

    private static async Task SetTscKhz(TdBench bench, string call, Checker checker) =>
        checker.Errno((await bench.Vm.SetTscKhzAsync(Number(call.Split(' ')[1])).Reply).Outcome);

    private static async Task KvmRun(TdBench bench, Checker checker) => checker.Errno((await bench.Vcpus[0].RunAsync().Reply).Outcome);

    private static async Task PreFault(TdBench bench, JsonElement step, Checker checker)
    {
        ulong gpa = Number(step, "gpa");
        checker.Errno((await bench.Vcpus[0].PreFaultMemoryAsync(gpa, Number(step, "size")).Reply).Outcome);
        IReadOnlyList<SeptPage> pages = checker.Expects("sept_state") ? await bench.Launch.SeptPagesAsync(gpa) : [];
        checker.Look("sept_state", expected => Assert.Equal(expected.GetString(), pages.First(page => page.Gpa == gpa).State));
    }

    private static async Task MapPage(TdBench bench, string call, Checker checker)
    {
        string[] word = call.Split(' ');
        await bench.MapPage(word[4], int.Parse(word[2], CultureInfo.InvariantCulture));
        checker.Errno(new Outcome());
    }

    private static Vcpu Vcpu(TdBench bench, JsonElement step) => bench.Vcpus[(int)Number(step, "vcpu")];
}
