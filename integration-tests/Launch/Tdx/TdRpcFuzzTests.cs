using System.Globalization;
using Google.Protobuf;
using Google.Protobuf.Reflection;
using Grpc.Core;
using Microsoft.Extensions.DependencyInjection;
using VmmService.Client;
using VmmService.IntegrationTests.Service.Fuzzing;
using VmmService.IntegrationTests.Support;
using VmmService.Server.Sessions;
using VmmService.V1;
using Xunit;
using VmType = VmmService.V1.VmType;

namespace VmmService.IntegrationTests.Launch.Tdx;

/// <summary>Random requests about TDs, at each point of their building: no answer is our bug, the host hangs together afterwards, and nothing is left when its processes are gone.</summary>
public sealed class TdRpcFuzzTests(Daemon daemon) : IClassFixture<Daemon>
{
    private const int CallsOfARound = 250;

    private static readonly string[] s_services = ["TdxService", "TdxModuleService", "TdxAttestationService", "VmService", "VcpuService", "GuestMemfdService", "KvmService"];

    // How far the TD is built before anything random happens to it.
    private static readonly string[][] s_setups =
    [
        ["td_vm"],
        ["td_vm", "init_vm", "vcpu0"],
        ["td_vm", "init_vm_ve", "vcpu0", "init_vcpu0", "gmem 0x100000 8", "private 0x100000 8", "source S 4 affine(1,2,3)"],
        ["td_vm", "init_vm", "vcpu0", "init_vcpu0", "gmem 0x100000 8", "private 0x100000 8", "source S 4 affine(1,2,3)", "KVM_ENABLE_CAP KVM_CAP_EXIT_HYPERCALL 0x1000", "KVM_TDX_FINALIZE_VM"],
        ["td_vm", "init_vm_ve", "vcpu0", "init_vcpu0", "gmem 0x0 64", "private 0x0 64", "KVM_ENABLE_CAP KVM_CAP_EXIT_HYPERCALL 0x1000", "KVM_TDX_FINALIZE_VM"],
    ];

    /// <summary>VMM_FUZZ_COUNT raises the number of rounds.</summary>
    public static TheoryData<int> Seeds => [.. Enumerable.Range(1, int.Parse(Environment.GetEnvironmentVariable("VMM_FUZZ_COUNT") ?? "20", CultureInfo.InvariantCulture))];

    [Theory]
    [MemberData(nameof(Seeds))]
    public async Task AnyRequest_AboutATd_AnswersAndBreaksNothing(int seed)
    {
        Assert.SkipUnless(daemon.App is not null, "the host's records are looked at, so the daemon has to run in this process");
        var dice = new Dice(seed);
        string profile = dice.Pick(["K616", "K618", "K619", "K70", "K72", "TDX24"]);
        await using TdBench bench = await TdBench.Start(daemon, profile, dice.Pick(s_setups));
        await bench.Process.OpenTdxModuleAsync();
        MethodDescriptor[] methods = [.. AnyRpc.All.Where(method => s_services.Contains(method.Service.Name))];
        var rpc = new AnyRpc(daemon.Connection.Stubs.Invoker);
        var targets = new Targets(bench.Host.Id, bench.Process.Pid, [-1, .. Enumerable.Range(3, 8)]);
        for (int i = 0; i < CallsOfARound; i++)
        {
            MethodDescriptor method = dice.Pick(methods);
            IMessage? last = null;
            Status status = await rpc.Call(method, dice, () => last = Ours(method, RandomMessage.Make(method.InputType, dice, targets), bench));
            Assert.True(
                status.StatusCode is StatusCode.OK or StatusCode.InvalidArgument or StatusCode.NotFound or StatusCode.FailedPrecondition or StatusCode.ResourceExhausted,
                $"seed {seed}, call {i}: {method.FullName} {last}: {status}");
        }
        daemon.App.Services.GetRequiredService<HostRegistry>().Get(bench.Host.Id).Run(sim =>
        {
            sim.CheckInvariants();
            foreach (SimKvm.Userspace.Process process in sim.Processes.ToArray())
            {
                process.Exit();
            }
            sim.CheckInvariants();
            Assert.Equal(0, sim.LiveVms);
            Assert.InRange(sim.Machine.AllocatedPages, 0, 1);
            return true;
        });
    }

    // A VM of another type than a TD would tell nothing here.
    private static IMessage Ours(MethodDescriptor method, IMessage request, TdBench bench)
    {
        if (request is CreateVmRequest create)
        {
            create.VmType = VmType.Tdx;
        }
        if (request is SeamcallRequest { Registers: { } registers } && method.Name == "Seamcall")
        {
            registers.Rax &= 0x3f;
        }
        if (request is LoadGuestProgramRequest program)
        {
            program.Fd = bench.Vcpus.Count > 0 ? bench.Vcpus[0].Fd : program.Fd;
        }
        return request;
    }
}
