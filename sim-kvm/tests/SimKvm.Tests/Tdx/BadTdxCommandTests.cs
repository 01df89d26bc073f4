using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Tests.Support;
using SimKvm.Userspace;
using SimKvm.Vendors.Intel;
using SimMachine.Intel;
using SimMachine.Stepping;
using Xunit;

namespace SimKvm.Tests.Tdx;

/// <summary>Commands of KVM_MEMORY_ENCRYPT_OP on TDs that cannot be, or not now (tdx.md 2.3 to 2.11): errno, reason, and a TD that is as it was.</summary>
public sealed class BadTdxCommandTests : KvmTest
{
    private const ulong Gpa = 0x10_0000;
    private const uint AddressWidths = 0x8000_0008;
    private const ulong SharedBit = 1UL << 47;

    private static readonly BadCommand[] s_commands =
    [
        new("the VM fd: hw_error that is not 0", Stage.New, w => w.Vm.TryTdx(w.Vm.Fd, TdxCmdId.KVM_TDX_INIT_VM, 0UL, hwError: 1).Report, Errno.EINVAL, TdxBackend.HwErrorNotZero),
        new("the VM fd: a command of vCPUs", Stage.New, w => w.Vm.TryTdx(w.Vm.Fd, TdxCmdId.KVM_TDX_INIT_VCPU, 0UL).Report, Errno.EINVAL, TdxBackend.UnknownVmCommand),
        new("a vCPU fd: a command of the VM", Stage.Vcpu, w => w.Vm.TryTdx(w.Vcpu.Fd, TdxCmdId.KVM_TDX_CAPABILITIES, 0UL).Report, Errno.EINVAL, TdxBackend.UnknownVcpuCommand),
        new("a vCPU fd: after FINALIZE_VM", Stage.Final, w => w.Vm.TryTdx(w.Vcpu.Fd, TdxCmdId.KVM_TDX_GET_CPUID, 0UL).Report, Errno.EINVAL, TdxBackend.VcpuCommandState),
        new("CAPABILITIES: flags", Stage.New, w => w.Vm.TryTdx(w.Vm.Fd, TdxCmdId.KVM_TDX_CAPABILITIES, 0UL, flags: 1).Report, Errno.EINVAL, TdxBackend.CommandFlags),
        new("CAPABILITIES: one entry too few", Stage.New, w => w.Capabilities(-1), Errno.E2BIG, TdxBackend.TooFewEntries),

        new("INIT_VM: flags", Stage.New, w => w.Vm.TryTdxInitVm(flags: 1).Report, Errno.EINVAL, TdxBackend.CommandFlags),
        new("INIT_VM: again", Stage.Initialized, w => w.Vm.TryTdxInitVm().Report, Errno.EINVAL, TdxBackend.InitAgain),
        new("INIT_VM: 257 entries", Stage.New, w => w.InitVm(init => init with { cpuid = new kvm_cpuid2 { nent = 257 } }), Errno.E2BIG, TdxBackend.TooManyEntries),
        new("INIT_VM: cpuid.padding", Stage.New, w => w.InitVm(init => init with { cpuid = new kvm_cpuid2 { padding = 1 } }), Errno.EINVAL, TdxBackend.ReservedNotZero),
        new("INIT_VM: attributes that are not offered", Stage.New, w => w.Vm.TryTdxInitVm(attributes: TestVm.TdAttributes | 1).Report, Errno.EINVAL, TdxBackend.AttributesUnsupported),
        new("INIT_VM: an xfam that is not offered", Stage.New, w => w.Vm.TryTdxInitVm(xfam: 1UL << 40).Report, Errno.EINVAL, TdxBackend.XfamUnsupported),
        new("INIT_VM: no width of guest addresses", Stage.New, w => w.InitWith(new kvm_cpuid_entry2 { function = 1 }), Errno.EINVAL, TdxBackend.NoAddressWidth),
        new("INIT_VM: guest addresses of 50 bits", Stage.New, w => w.InitWith(new kvm_cpuid_entry2 { function = AddressWidths, eax = 50 << 16 }), Errno.EINVAL, TdxBackend.NoAddressWidth),
        new("INIT_VM: HLE", Stage.New, w => w.InitWith(Width, new kvm_cpuid_entry2 { function = 7, ebx = 1 << 4 }), Errno.EINVAL, TdxBackend.FeatureNotOffered),
        new("INIT_VM: a leaf that is not configurable", Stage.New, w => w.InitWith(Width, new kvm_cpuid_entry2 { function = 2 }), Errno.EINVAL, TdxBackend.EntriesDoNotMatch),

        new("a vCPU before INIT_VM", Stage.New, w => w.Vm.TryCreateVcpu(0), Errno.EIO, TdxBackend.VcpuOutOfTurn),
        new("a vCPU after FINALIZE_VM", Stage.Final, w => w.Vm.TryCreateVcpu(1), Errno.EIO, TdxBackend.VcpuOutOfTurn),
        new("INIT_VCPU: flags", Stage.Vcpu, w => w.Vm.TryTdxInitVcpu(w.Vcpu.Fd, flags: 1), Errno.EINVAL, TdxBackend.CommandFlags),
        new("INIT_VCPU: again", Stage.Ready, w => w.Vm.TryTdxInitVcpu(w.Vcpu.Fd), Errno.EINVAL, TdxBackend.VcpuInitAgain),
        new("GET_CPUID: no room", Stage.Vcpu, w => w.Vm.TryTdx(w.Vcpu.Fd, TdxCmdId.KVM_TDX_GET_CPUID, 0UL).Report, Errno.E2BIG, TdxBackend.TooFewCpuidEntries),

        new("INIT_MEM_REGION: a vCPU that is not initialised", Stage.Vcpu, w => w.Region(Gpa), Errno.EINVAL, TdxBackend.VcpuNotInitialised),
        new("INIT_MEM_REGION: flags", Stage.Ready, w => w.Vm.TryTdxRegion(w.Vcpu.Fd, w.Source, Gpa, 1, flags: 2).Report, Errno.EINVAL, TdxBackend.CommandFlags),
        new("INIT_MEM_REGION: nothing", Stage.Ready, w => w.Region(Gpa, pages: 0), Errno.EINVAL, TdxBackend.BadRegion),
        new("INIT_MEM_REGION: inside a page", Stage.Ready, w => w.Region(Gpa + 1), Errno.EINVAL, TdxBackend.BadRegion),
        new("INIT_MEM_REGION: a source inside a page", Stage.Ready, w => w.Vm.TryTdxRegion(w.Vcpu.Fd, w.Source + 8, Gpa, 1).Report, Errno.EINVAL, TdxBackend.BadRegion),
        new("INIT_MEM_REGION: the shared bit", Stage.Ready, w => w.Region(Gpa | SharedBit), Errno.EINVAL, TdxBackend.BadRegion),
        new("INIT_MEM_REGION: up to the shared bit and beyond", Stage.Ready, w => w.Region(SharedBit - 0x1000, pages: 2), Errno.EINVAL, TdxBackend.BadRegion),

        new("FINALIZE_VM: before INIT_VM", Stage.New, w => w.Vm.TryTdxFinalize().Report, Errno.EINVAL, TdxBackend.NotReadyToFinalize),
        new("FINALIZE_VM: again", Stage.Final, w => w.Vm.TryTdxFinalize().Report, Errno.EINVAL, TdxBackend.NotReadyToFinalize),
        new("KVM_RUN before FINALIZE_VM", Stage.Ready, w => w.Vcpu.Run(new GuestHalt()), Errno.EINVAL, TdxBackend.NotRunnable),
    ];

    public static TheoryData<string> Commands => [.. s_commands.Select(command => command.Name)];

    private static kvm_cpuid_entry2 Width => new() { function = AddressWidths, eax = 48 << 16 };

    [Theory]
    [MemberData(nameof(Commands))]
    public void BadCommand_IsRefused_AndTheTdIsAsItWas(string name)
    {
        BadCommand bad = s_commands.Single(command => command.Name == name);
        foreach (string profile in new[] { K616, "K619", K72 })
        {
            var world = new World(Boot(profile, TestVm.IntelMachine()), bad.At);
            string before = world.State();
            AssertRefused(bad.Call(world), bad.Errno, bad.Rule);
            Assert.Equal(before, world.State());
            Assert.False(world.Vm.Kernel.Dead);
        }
    }

    // KVM looks for HLE and RTM in entries of sub-leaf 0 only; one without the flag fits all slots of leaf 7 whatever its index, and the module is who refuses it.
    [Fact]
    public void InitVm_WithHleInAFlaglessEntryOfAnotherIndex_IsTheModulesToRefuse()
    {
        var world = new World(Boot(K72, TestVm.IntelMachine()), Stage.New);
        TdxReply<kvm_tdx_init_vm> reply = world.Vm.TryTdxInitVm(
            cpuid: [Width, new kvm_cpuid_entry2 { function = 7, index = 1, ebx = (1 << 4) | (1 << 11) }, new kvm_cpuid_entry2 { function = 2 }, new kvm_cpuid_entry2 { function = 3 }]);
        AssertRefused(reply.Report, Errno.EINVAL, TdxModule.BadTdParams);
        Assert.Equal((ulong)TdxStatus.OPERAND_INVALID.With(TdxOperand.CPUID_CONFIG), reply.HwError);
    }

    [Theory]
    [InlineData("K70")]
    [InlineData(K72)]
    public void Region_WithoutASource_IsEopnotsupp(string profile)
    {
        var world = new World(Boot(profile, TestVm.IntelMachine()), Stage.Ready);
        AssertRefused(world.Vm.TryTdxRegion(world.Vcpu.Fd, 0, Gpa, 1).Report, Errno.EOPNOTSUPP, TdxBackend.NullSource);
    }

    [Fact]
    public void CommandsOfTds_AreNotForOtherVms_NorTheModuleForOtherDescriptors()
    {
        TestHost host = Boot(K72, TestVm.IntelMachine());
        TestVm plain = host.Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM);
        AssertRefused(plain.TryTdx(plain.Fd, TdxCmdId.KVM_TDX_CAPABILITIES, 0UL).Report, Errno.ENOTTY, IntelBackend.NotATd);
        var registers = new TdcallRegisters();
        AssertRefused(host.Vmm.Process.Seamcall(plain.Fd, ref registers, 0), Errno.EINVAL, TdxModuleFile.NotTheModule);
    }

    [Fact]
    public void InitVcpu_WithoutX2apic_IsEinval()
    {
        TestVm vm = Boot(K72, TestVm.IntelMachine()).Vmm.CreateVm(VmType.KVM_X86_TDX_VM).SplitIrqchip();
        vm.TdxInitVm();
        var guest = new TestGuest(vm);
        vm.SetTdCpuid(guest.Fd, x2apic: false);
        CallReport report = vm.TryTdxInitVcpu(guest.Fd);
        Assert.Equal((Errno.EINVAL, TdxBackend.NeedsX2apic), (report.Errno, report.Causes[^1].Rule));
    }

    // A failure inside of a region: where it stopped is written back, and what was at fault comes first.
    [Theory]
    [InlineData(K616, false, "tdx.post-populate.source")]
    [InlineData(K72, false, "mm.not-mapped")]
    [InlineData(K616, true, "tdx.injected")]
    [InlineData(K72, true, "tdx.injected")]
    public void Region_ThatStops_TellsWhereAndWhy(string profile, bool injected, string rule)
    {
        var world = new World(Boot(profile, TestVm.IntelMachine()), Stage.Ready);
        if (injected)
        {
            world.Vm.TdxModule.Inject(SeamcallLeaf.TDH_MEM_PAGE_ADD, TdxStatus.OPERAND_INVALID.With(TdxOperand.R9), skip: 1);
            if (profile == K72)
            {
                world.Vm.Vmm.Host.Expect("vm-bugged");
            }
        }
        else
        {
            AssertOk(world.Vm.Vmm.Process.Munmap(world.Source + 0x1000, 0x1000));
        }
        TdxReply<kvm_tdx_init_mem_region> reply = world.Vm.TryTdxRegion(world.Vcpu.Fd, world.Source, Gpa, 3);
        Assert.Equal((Gpa + 0x1000, 2UL), (reply.Data.gpa, reply.Data.nr_pages));
        Assert.Equal((injected ? Errno.EIO : Errno.EFAULT, TdxBackend.PageStopped), (reply.Report.Errno, reply.Report.Causes[^1].Rule));
        Assert.Contains(reply.Report.Causes, cause => cause.Rule.Id == rule);
        if (injected)
        {
            Rule told = profile == K72 ? TdxBackend.SeptFailed : TdxBackend.PageAddFailed;
            Assert.Contains(reply.Report.Causes, cause => cause.Rule == told);
        }
    }

    private enum Stage
    {
        New,
        Initialized,
        Vcpu,
        Ready,
        Final,
    }

    private sealed record BadCommand(string Name, Stage At, Func<World, CallReport> Call, Errno Errno, Rule Rule);

    /// <summary>A TD as far as a command wants it, with four private pages and a source of two.</summary>
    private sealed class World
    {
        private readonly TestGuest? _vcpu;

        public World(TestHost host, Stage stage)
        {
            Vm = host.Vmm.CreateVm(VmType.KVM_X86_TDX_VM).SplitIrqchip();
            Source = host.Vmm.MapFilled(2);
            if (stage >= Stage.Initialized)
            {
                Vm.TdxInitVm();
                Vm.AddPrivateMemory(Gpa, 4);
            }
            if (stage >= Stage.Vcpu)
            {
                _vcpu = new TestGuest(Vm);
                Vm.SetTdCpuid(_vcpu.Fd);
            }
            if (stage >= Stage.Ready)
            {
                AssertOk(Vm.TryTdxInitVcpu(_vcpu!.Fd));
            }
            if (stage >= Stage.Final)
            {
                Vm.TdxFinalize();
            }
            // The page that commands stand in is there before anybody counts.
            Vm.TryTdx(Vm.Fd, TdxCmdId.KVM_TDX_CAPABILITIES, 0UL, flags: 1);
        }

        public TestVm Vm { get; }

        public TestGuest Vcpu => _vcpu!;

        public ulong Source { get; }

        public CallReport Region(ulong gpa, ulong pages = 1) => Vm.TryTdxRegion(Vcpu.Fd, Source, gpa, pages).Report;

        public CallReport InitWith(params kvm_cpuid_entry2[] entries) => Vm.TryTdxInitVm(cpuid: entries).Report;

        public CallReport InitVm(Func<kvm_tdx_init_vm, kvm_tdx_init_vm> change) =>
            Vm.TryTdx(Vm.Fd, TdxCmdId.KVM_TDX_INIT_VM, change(new kvm_tdx_init_vm { attributes = TestVm.TdAttributes, xfam = 3 })).Report;

        public CallReport Capabilities(int more) => Vm.TryTdx(
            Vm.Fd, TdxCmdId.KVM_TDX_CAPABILITIES, new kvm_tdx_capabilities { cpuid = new kvm_cpuid2 { nent = (uint)(Vm.TdxModule.Config.CpuidSlots.Count + more) } }).Report;

        public string State() =>
            $"{Vm.TdxBackend.State}, {Vm.Kernel.CreatedVcpus} vCPUs, {Vm.Vmm.Host.Machine.AllocatedPages} frames, {Vm.TdxModule.Describe(Vm.TdxBackend.Tdr)?.Pages} pages of the TD";
    }
}
