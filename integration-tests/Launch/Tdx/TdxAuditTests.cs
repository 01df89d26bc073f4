using SimKvm.Abi;
using VmmService.Client;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;
using Vcpu = VmmService.Client.Vcpu;
using VmType = VmmService.V1.VmType;

namespace VmmService.IntegrationTests.Launch.Tdx;

/// <summary>Rules of TDs that no vector has, over gRPC: irqchip and TSC, what a TD's descriptors refuse, conversions that are interrupted, entries that fail, module and platform.</summary>
public sealed class TdxAuditTests(Daemon daemon) : IClassFixture<Daemon>
{
    private const ulong SharedBit = 1UL << 47;
    private const ulong TwoMiB = 2 << 20;
    private const ulong Retry = 1;
    private const ulong InvalidOperand = 1UL << 63;

    private static readonly string[] s_runnable = ["td_vm", "init_vm", "vcpu0", "init_vcpu0", "KVM_TDX_FINALIZE_VM"];

    [Theory]
    [InlineData("K616", "")]
    [InlineData("K618", "ENOTTY")]
    [InlineData("K72", "ENOTTY")]
    public async Task CreateIrqchip_OfATd_IsRefusedFrom618OnAndMakesVcpusFailBefore(string profile, string errno)
    {
        await using TdBench bench = await TdBench.Start(daemon, profile, ["td_vm_no_irqchip"]);
        Assert.Equal(errno, (await bench.Vm.CreateIrqchipAsync().Reply).Outcome.ErrnoName);
        if (errno.Length > 0)
        {
            await bench.Vm.EnableSplitIrqchipAsync();
            // An irqchip that is there comes first.
            Assert.Equal("EEXIST", (await bench.Vm.CreateIrqchipAsync().Reply).Outcome.ErrnoName);
            return;
        }
        await bench.Do("init_vm");
        Assert.Equal("EINVAL", (await bench.Vm.CreateVcpuAsync(0).Reply).Outcome.ErrnoName);
    }

    [Fact]
    public async Task Irqchip_OfAnOrdinaryVm_IsMadeOnceAndBeforeVcpus()
    {
        await using RemoteHost host = await daemon.Connection.CreateHostAsync();
        await using RemoteProcess process = await host.CreateProcessAsync();
        await using Kvm kvm = await process.OpenKvmAsync();
        await using Vm vm = await kvm.CreateVmAsync(VmType.Default);
        await vm.CreateIrqchipAsync();
        Assert.Equal("EEXIST", (await vm.CreateIrqchipAsync().Reply).Outcome.ErrnoName);
        Assert.Equal("EEXIST", (await vm.EnableSplitIrqchipAsync().Reply).Outcome.ErrnoName);
        await using Vm late = await kvm.CreateVmAsync(VmType.Default);
        await late.CreateVcpuAsync(0);
        Assert.Equal("EINVAL", (await late.CreateIrqchipAsync().Reply).Outcome.ErrnoName);
        Assert.Equal("EINVAL", (await late.EnableSplitIrqchipAsync(25).Reply).Outcome.ErrnoName);
    }

    [Fact]
    public async Task TscKhz_IsTheVmsUntilAVcpuIsMade()
    {
        await using RemoteHost host = await daemon.Connection.CreateHostAsync();
        await using RemoteProcess process = await host.CreateProcessAsync();
        await using Vm vm = await (await process.OpenKvmAsync()).CreateVmAsync(VmType.Default);
        Assert.Equal(2_000_000, await vm.GetTscKhzAsync());
        await vm.SetTscKhzAsync(2_500_000);
        Vcpu first = await vm.CreateVcpuAsync(0);
        Assert.Equal(2_500_000, await first.GetTscKhzAsync());
        await first.SetTscKhzAsync(1_000_000);
        Assert.Equal((1_000_000, 2_500_000), (await first.GetTscKhzAsync(), await vm.GetTscKhzAsync()));
        await first.SetTscKhzAsync(0);
        Assert.Equal(2_000_000, await first.GetTscKhzAsync());
        Assert.Equal("EINVAL", (await first.SetTscKhzAsync(uint.MaxValue).Reply).Outcome.ErrnoName);
    }

    [Fact]
    public async Task TscKhz_OfATdsVcpu_IsRefused()
    {
        await using TdBench bench = await TdBench.Start(daemon, "", ["td_vm", "init_vm", "vcpu0"]);
        Assert.Equal("EINVAL", (await bench.Vcpus[0].SetTscKhzAsync(1_000_000).Reply).Outcome.ErrnoName);
        Assert.Equal(2_000_000, await bench.Vcpus[0].GetTscKhzAsync());
    }

    [Fact]
    public async Task StateOfATdsVcpu_IsNobodysToSeeOrSet()
    {
        await using TdBench bench = await TdBench.Start(daemon, "", ["td_vm", "init_vm", "vcpu0"]);
        Vcpu vcpu = bench.Vcpus[0];
        // GET/SET_REGS, SREGS, FPU, XSAVE, XCRS, DEBUGREGS, LAPIC, GUEST_DEBUG, SREGS2, XSAVE2.
        foreach (uint request in (uint[])
            [0x8090AE81, 0x4090AE82, 0x8138AE83, 0x4138AE84, 0x81A0AE8C, 0x41A0AE8D, 0x9000AEA4, 0x5000AEA5, 0x8188AEA6, 0x4188AEA7, 0x8080AEA1, 0x4080AEA2, 0x8400AE8E, 0x4400AE8F, 0x4048AE9B, 0x8140AECC, 0x4140AECD, 0x9000AECF])
        {
            Outcome outcome = (await vcpu.RawIoctlAsync(request, await bench.Process.MmapAsync(4096)).Reply).Outcome;
            Assert.True(outcome.ErrnoName == "EINVAL", $"0x{request:x}: {outcome.Text}");
        }
        Assert.Equal("ENOTTY", (await bench.Vm.RawIoctlAsync(KvmIoctl.KVM_MEMORY_ENCRYPT_REG_REGION, new byte[16]).Reply).Outcome.ErrnoName);
        Assert.Equal("ENOTTY", (await bench.Vm.RawIoctlAsync(KvmIoctl.KVM_MEMORY_ENCRYPT_UNREG_REGION, new byte[16]).Reply).Outcome.ErrnoName);
    }

    [Theory]
    [InlineData(74u, 0)]
    [InlineData(81u, 0)]
    [InlineData(235u, 1 << 5)]
    public async Task CapabilitiesOfATd_AreItsOwn(uint cap, long expected)
    {
        // KVM_CAP_SYNC_REGS, READONLY_MEM, and bit 5 of VM_TYPES.
        await using TdBench bench = await TdBench.Start(daemon, "", ["td_vm"]);
        long value = await bench.Vm.CheckExtensionAsync(cap);
        Assert.Equal(expected, expected == 0 ? value : value & expected);
    }

    [Fact]
    public async Task Msrs_OfATd_EndAtTheFirstThatIsNotEmulated()
    {
        await using TdBench bench = await TdBench.Start(daemon, "", ["td_vm", "init_vm", "vcpu0"]);
        // IA32_PAT is emulated; IA32_LSTAR is the module's; IA32_EFER can be read and not set.
        Assert.Equal(1, (await bench.Vcpus[0].SetMsrsAsync([new KvmMsrEntry { Index = 0x277, Data = 0x0007040600070406 }, new KvmMsrEntry { Index = 0xc0000082 }]).Reply).Outcome.Value);
        Assert.Equal(0, (await bench.Vcpus[0].SetMsrsAsync([new KvmMsrEntry { Index = 0xc0000080 }]).Reply).Outcome.Value);
    }

    [Theory]
    [InlineData("K616")]
    [InlineData("K72")]
    public async Task MapGpa_WithAnEventPendingBetweenChunks_IsToBeAskedAgainFromThere(string profile)
    {
        await using TdBench bench = await TdBench.Start(daemon, profile, s_runnable);
        await bench.Do("KVM_ENABLE_CAP KVM_CAP_EXIT_HYPERCALL 0x1000");
        Vcpu vcpu = bench.Vcpus[0];
        await vcpu.LoadProgramAsync([TdGuest.MapGpa(0x20_0000 | SharedBit, 3 * TwoMiB), TdGuest.MapGpa(0x40_0000 | SharedBit, 2 * TwoMiB), Guest.Halt()]);

        RunResponse first = await vcpu.RunAsync();
        Assert.Equal([0x20_0000, 512, 0], first.Run.Hypercall.Args.Take(3));
        await vcpu.NmiAsync();
        RunResponse second = await vcpu.RunAsync(new RunPageUpdate { HypercallRet = 0 });

        // The rest was not asked for: the guest has RETRY, and asks itself.
        TdcallRegisters registers = second.Results[0].Registers;
        Assert.Equal((Retry, 0x40_0000 | SharedBit), (registers.R10, registers.R11));
        Assert.Equal(0x40_0000ul, second.Run.Hypercall.Args[0]);
        RunResponse third = await vcpu.RunAsync(new RunPageUpdate { HypercallRet = 0 });
        Assert.Equal(0x60_0000ul, third.Run.Hypercall.Args[0]);
        RunResponse last = await vcpu.RunAsync(new RunPageUpdate { HypercallRet = 0 });
        Assert.Equal(0ul, last.Results[0].Registers.R10);
    }

    [Fact]
    public async Task MapGpa_WithAnEventPendingAtItsEnd_IsDone()
    {
        await using TdBench bench = await TdBench.Start(daemon, "", s_runnable);
        await bench.Do("KVM_ENABLE_CAP KVM_CAP_EXIT_HYPERCALL 0x1000");
        await bench.Vcpus[0].LoadProgramAsync([TdGuest.MapGpa(0x20_0000, TwoMiB), Guest.Halt()]);
        await bench.Vcpus[0].RunAsync();
        await bench.Vcpus[0].NmiAsync();
        Assert.Equal(0ul, (await bench.Vcpus[0].RunAsync(new RunPageUpdate { HypercallRet = 0 }).Reply).Results[0].Registers.R10);
    }

    // What user space answered to a conversion, and what becomes of it: the guest's R10, or the errno of KVM_RUN.
    [Theory]
    [InlineData("K616", 5ul, InvalidOperand, "")]
    [InlineData("K616", 11ul, InvalidOperand, "")]
    [InlineData("K72", 22ul, InvalidOperand, "")]
    [InlineData("K72", 11ul, Retry, "")]
    [InlineData("K72", 5ul, 0ul, "EINVAL")]
    [InlineData("K72", ulong.MaxValue, 0ul, "EINVAL")]
    public async Task MapGpa_ThatUserSpaceDoesNotDo_IsTheGuestsToHear_OrTheCallersMistake(string profile, ulong ret, ulong r10, string errno)
    {
        await using TdBench bench = await TdBench.Start(daemon, profile, s_runnable);
        await bench.Do("KVM_ENABLE_CAP KVM_CAP_EXIT_HYPERCALL 0x1000");
        await bench.Vcpus[0].LoadProgramAsync([TdGuest.MapGpa(0x20_0000 | SharedBit, TwoMiB), Guest.Halt()]);
        await bench.Vcpus[0].RunAsync();

        RunResponse run = await bench.Vcpus[0].RunAsync(new RunPageUpdate { HypercallRet = ret }).Reply;

        Assert.Equal((errno, errno.Length > 0 ? "tdx.map-gpa.answer" : ""), (run.Outcome.ErrnoName, run.Outcome.Causes.Count > 0 ? run.Outcome.Causes[0].Rule : ""));
        Assert.Equal((r10, errno.Length > 0 ? 0 : 0x20_0000 | SharedBit), (run.Results[0].Registers.R10, errno.Length > 0 ? 0 : run.Results[0].Registers.R11));
    }

    [Theory]
    [InlineData(0x4000_0001_0000_0000)]
    [InlineData(0x6000_0002_0000_0000)]
    [InlineData(0xE000_0007_0000_0000)]
    public async Task Entry_ThatTheModuleRefuses_IsAnInternalErrorWithTheStatus(ulong status)
    {
        await using TdBench bench = await TdBench.Start(daemon, "", s_runnable);
        await daemon.Stubs.Tdx.InjectSeamcallStatusAsync(new InjectSeamcallStatusRequest { Host = bench.Host.Id, Leaf = 0, Status = status });
        await bench.Vcpus[0].LoadProgramAsync([Guest.Halt()]);

        RunResponse run = await bench.Vcpus[0].RunAsync();

        // KVM_EXIT_INTERNAL_ERROR, UNEXPECTED_EXIT_REASON.
        Assert.Equal(17u, run.Run.ExitReason);
        Assert.Equal((4u, status, 0ul), (run.Run.InternalError.Suberror, run.Run.InternalError.Data[0], run.Run.InternalError.Data[1]));
    }

    [Theory]
    [InlineData(7ul)]
    [InlineData(29ul)]
    [InlineData(41ul)]
    public async Task Zapping_ThatTheModuleRefuses_IsTheEndOfTheVm(ulong leaf)
    {
        await using TdBench bench = await TdBench.Start(daemon, "", ["td_vm", "init_vm", "vcpu0", "init_vcpu0", "gmem 0x100000 1", "private 0x100000 1", "source S 1 affine(1,0,0)"]);
        await bench.Launch.AddAsync(bench.Vcpus[0], new KvmTdxInitMemRegion { SourceAddr = bench.Sources["S"].Address, Gpa = 0x10_0000, NrPages = 1 });
        await daemon.Stubs.Tdx.InjectSeamcallStatusAsync(new InjectSeamcallStatusRequest { Host = bench.Host.Id, Leaf = leaf, Status = 0xC000_0100_0000_0001 });

        await bench.Vm.SetMemoryAttributesAsync(0x10_0000, 4096, 0).Reply;

        Assert.Equal("EIO", (await bench.Vm.CheckExtensionAsync(1).Reply).Outcome.ErrnoName);
    }

    [Fact]
    public async Task AModule_OfTheFirstLine_ReportsWithoutTheSecondSvn()
    {
        await using RemoteHost host = await daemon.Connection.CreateHostAsync("", 1, new MachineConfig { Platform = V1.Platform.IntelTdx, Tdx = new TdxConfig { Module = TdxModuleVersion._10 } });
        Assert.Equal((TdxModuleVersion._10, 0), (host.Machine.Tdx.Module, host.Machine.Tdx.TeeTcbSvn[1]));
        VmmService.Client.Attestation.TdxReport report = await host.TdxAttestation.MakeReportAsync(new TdInfo());
        Assert.Equal(0x1fful, report.Valid);
        await using RemoteHost newer = await daemon.Connection.CreateHostAsync("", 1, new MachineConfig { Platform = V1.Platform.IntelTdx });
        Assert.Equal((TdxModuleVersion._15, 0x301fful), (newer.Machine.Tdx.Module, (await newer.TdxAttestation.MakeReportAsync(new TdInfo())).Valid));
    }

    [Fact]
    public async Task APlatform_IsWhatItsHostSays()
    {
        var tdx = new TdxConfig
        {
            TdcsPages = 4,
            MaxTdcsPages = 5,
            TdvpsPages = 3,
            FirstGuestHkid = 7,
            GuestHkids = 1,
            AttributesFixed0 = 0x1000_0000,
            CpuidConfig = { new TdxCpuidConfig { Function = 0x8000_0008 }, new TdxCpuidConfig { Function = 7, HasSubleaf = true, Ebx = 0xff } },
        };
        await using RemoteHost host = await daemon.Connection.CreateHostAsync("", 1, new MachineConfig { Platform = V1.Platform.IntelTdx, Tdx = tdx });
        await using RemoteProcess process = await host.CreateProcessAsync();
        await using Vm vm = await (await process.OpenKvmAsync()).CreateVmAsync(VmType.Tdx);
        KvmTdxCapabilities capabilities = await vm.TdxLaunch().CapabilitiesAsync();
        // HLE, bit 4, is not offered though the module would take it.
        Assert.Equal([(0x8000_0008u, 0u, 0xff_0000u), (7u, 0xefu, 0u)], capabilities.Cpuid.Select(leaf => (leaf.Function, leaf.Ebx, leaf.Eax)));
        await vm.EnableSplitIrqchipAsync();
        await vm.TdxLaunch().InitVmAsync(new KvmTdxInitVm { Xfam = 3, Cpuid = { new KvmCpuidEntry2 { Function = 0x8000_0008, Eax = 48 << 16 } } });
        Vcpu vcpu = await vm.CreateVcpuAsync(0);
        await vcpu.SetCpuid2Async(await vm.TdxLaunch().GetCpuidAsync(vcpu));
        await vm.TdxLaunch().InitVcpuAsync(vcpu, 0);
        DescribeTdResponse td = await vm.TdxLaunch().DescribeAsync();
        Assert.Equal((7u, 4ul + 3), (td.Hkid, td.Pages));
    }

    [Theory]
    [InlineData("tdcs_pages")]
    [InlineData("max_tdcs_pages")]
    [InlineData("cpuid_config twice")]
    [InlineData("cpuid_config index")]
    [InlineData("cpuid_config leaf")]
    [InlineData("module")]
    public async Task APlatform_ThatCannotBe_IsRefusedWithItsName(string what)
    {
        var leaf = new TdxCpuidConfig { Function = 0x8000_0008 };
        TdxConfig tdx = what switch
        {
            "tdcs_pages" => new TdxConfig { TdcsPages = uint.MaxValue },
            "max_tdcs_pages" => new TdxConfig { MaxTdcsPages = 5 },
            "cpuid_config twice" => new TdxConfig { CpuidConfig = { leaf, leaf } },
            "cpuid_config index" => new TdxConfig { CpuidConfig = { new TdxCpuidConfig { Function = 7, Index = 1 } } },
            "cpuid_config leaf" => new TdxConfig { CpuidConfig = { new TdxCpuidConfig { Function = 0x100 } } },
            _ => new TdxConfig { Module = (TdxModuleVersion)9 },
        };
        VmmServiceException refused = await Assert.ThrowsAsync<VmmServiceException>(() => daemon.Connection.CreateHostAsync("", 1, new MachineConfig { Platform = V1.Platform.IntelTdx, Tdx = tdx }));
        Assert.Equal(Grpc.Core.StatusCode.InvalidArgument, refused.StatusCode);
        Assert.Contains("machine", refused.Message, StringComparison.Ordinal);
    }
}
