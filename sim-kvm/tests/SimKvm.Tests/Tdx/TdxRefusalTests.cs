using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Tests.Support;
using SimKvm.Userspace;
using SimKvm.Vendors.Intel;
using SimMachine.Intel;
using SimMachine.Stepping;
using Xunit;

namespace SimKvm.Tests.Tdx;

/// <summary>What KVM answers when a TD cannot get on for a reason of the host's: memory is out, the module is busy or does not measure, another caller is in between (tdx.md 2).</summary>
public sealed class TdxRefusalTests : KvmTest
{
    private const ulong Gpa = 0x10_0000;

    public static TheoryData<string> Generations => [K616, "K618", "K619", "K70", K72];

    // Each number of pages that is not enough: for the TDR and TDCS, and for the TDVPR and TDVPX.
    [Theory]
    [MemberData(nameof(Generations))]
    public void ControlPages_ThatCannotBeHad_AreEnomem_AndTheCommandCanBeRepeated(string profile)
    {
        TestHost host = Boot(profile, TestVm.IntelMachine());
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_TDX_VM).SplitIrqchip();
        // The page of the command's structure is not what there is no memory for.
        Assert.Equal(Errno.EINVAL, vm.TryTdx(vm.Fd, TdxCmdId.KVM_TDX_CAPABILITIES, 0UL, flags: 1).Report.Errno);
        long before = host.Machine.AllocatedPages;
        for (int pages = 0; pages < 1 + vm.TdxModule.Config.TdcsPages; pages++)
        {
            using (MemoryEndsAfter(host, pages))
            {
                AssertRefused(vm.TryTdxInitVm().Report, Errno.ENOMEM, TdxBackend.NoControlPage);
            }
            Assert.Equal(before, host.Machine.AllocatedPages);
        }
        vm.TdxInitVm();

        var guest = new TestGuest(vm);
        vm.SetTdCpuid(guest.Fd);
        before = host.Machine.AllocatedPages;
        for (int pages = 0; pages < vm.TdxModule.Config.TdvpsPages; pages++)
        {
            using (MemoryEndsAfter(host, pages))
            {
                AssertRefused(vm.TryTdxInitVcpu(guest.Fd), Errno.ENOMEM, TdxBackend.NoVcpuPages);
            }
            Assert.Equal(before, host.Machine.AllocatedPages);
        }
        AssertOk(vm.TryTdxInitVcpu(guest.Fd));
    }

    // The page itself, and then one page at a time for the three tables above it: those that were taken stay with the vCPU.
    [Theory]
    [MemberData(nameof(Generations))]
    public void TablesOfTheSecureEpt_ThatCannotBeHad_AreEnomem_AndThePageIsAddedLater(string profile)
    {
        TestVm vm = Built(profile, out TestGuest guest);
        TestHost host = vm.Vmm.Host;
        ulong source = vm.Vmm.MapFilled(1);
        for (int tables = 0; tables < 3; tables++)
        {
            using (MemoryEndsAfter(host, 1))
            {
                TdxReply<kvm_tdx_init_mem_region> reply = vm.TryTdxRegion(guest.Fd, source, Gpa, 1);
                AssertRefused(reply.Report, Errno.ENOMEM, TdxBackend.NoTablePage);
                Assert.Equal((Gpa, 1UL), (reply.Data.gpa, reply.Data.nr_pages));
            }
            host.Host.CheckInvariants();
        }
        vm.TdxRegion(guest.Fd, source, Gpa, 1);
        vm.TdxFinalize();
        host.Host.CheckInvariants();
        Assert.Equal(1, guest.Read(Gpa)[0]);
    }

    [Theory]
    [MemberData(nameof(Generations))]
    public void TablesOfTheSecureEpt_ThatCannotBeHad_AreEnomemOfKvmRunAndOfPreFault(string profile)
    {
        TestVm vm = Built(profile, out TestGuest guest);
        TestHost host = vm.Vmm.Host;
        vm.TdxFinalize();
        GuestStep accept = new GuestTdcall(new TdcallRegisters { Rax = (ulong)TdcallLeaf.TDG_MEM_PAGE_ACCEPT, Rcx = Gpa });
        guest.Load(accept, new GuestHalt());
        using (MemoryEndsAfter(host, 1))
        {
            AssertRefused(guest.Continue(), Errno.ENOMEM, TdxBackend.NoTablePage);
        }
        using (MemoryEndsAfter(host, 0))
        {
            AssertRefused(guest.TryPreFault(Gpa, 1), Errno.ENOMEM, TdxBackend.NoTablePage);
        }
        Assert.False(vm.Kernel.Dead);
        host.Host.CheckInvariants();

        // The guest stands before the step that faulted, and goes on from there.
        AssertOk(guest.Continue());
        Assert.Equal(0UL, guest.Results[0].Rax);
    }

    [Theory]
    [MemberData(nameof(Generations))]
    public void Finalize_OfABusyModule_IsEbusyWithItsStatus_AndCanBeRepeated(string profile)
    {
        TestVm vm = Built(profile, out _);
        TdxStatus busy = TdxStatus.OPERAND_BUSY.With(TdxOperand.OP_STATE);
        vm.TdxModule.Inject(SeamcallLeaf.TDH_MR_FINALIZE, busy);

        TdxReply<ulong> reply = vm.TryTdxFinalize();

        Assert.Equal((Errno.EBUSY, (ulong)busy, TdxBackend.FinalizeBusy), (reply.Report.Errno, reply.HwError, reply.Report.Causes[^1].Rule));
        Assert.False(vm.Kernel.Dead);
        vm.TdxFinalize();
    }

    // Since adding is part of mapping, KVM takes a page that cannot be measured for a bug; it told the caller before.
    [Theory]
    [MemberData(nameof(Generations))]
    public void PageThatIsNotMeasured_IsEio_AndTheEndOfTheVmOnlyWhereItIsABug(string profile)
    {
        TestVm vm = Built(profile, out TestGuest guest);
        bool isBug = vm.Vmm.Host.Profile.TdxAddsWhileMapping;
        if (isBug)
        {
            vm.Vmm.Host.Expect("vm-bugged");
        }
        ulong source = vm.Vmm.MapFilled(2);
        // The third chunk of the second page.
        vm.TdxModule.Inject(SeamcallLeaf.TDH_MR_EXTEND, TdxStatus.OPERAND_INVALID.With(TdxOperand.RCX), skip: 16 + 2);

        CallReport report = vm.TryTdxRegion(guest.Fd, source, Gpa, 2).Report;

        AssertRefused(report, Errno.EIO, TdxModule.Injected);
        Cause refusal = report.Causes.Single(cause => cause.Rule == TdxBackend.ExtendFailed);
        Assert.Equal(Gpa + 0x1000 + 0x200, refusal.Operands.First().Value);
        Assert.Equal(isBug, vm.Kernel.Dead);
    }

    // The state is looked at before the lock is taken, and again behind it.
    [Fact]
    public void Region_OfATdThatAnotherCallerFinalizedMeanwhile_IsEinval()
    {
        TestVm vm = Built(K616, out TestGuest guest);
        ulong source = vm.Vmm.MapFilled(1);
        guest.At("lock kvm->slots_lock", other => other.Ioctl(vm.Fd, KvmIoctl.KVM_MEMORY_ENCRYPT_OP, new kvm_tdx_cmd { id = (uint)TdxCmdId.KVM_TDX_FINALIZE_VM }));
        AssertRefused(vm.TryTdxRegion(guest.Fd, source, Gpa, 1).Report, Errno.EINVAL, TdxBackend.RegionAfterFinalize);
    }

    // A vCPU that is on its way counts, though it will be refused. Later generations look for that before they look at the command.
    [Theory]
    [InlineData(K616, "tdx.init-vm.vcpus")]
    [InlineData("K619", "tdx.op.vcpu-creation")]
    [InlineData(K72, "tdx.op.vcpu-creation")]
    public void InitVm_WhileAVcpuIsBeingCreated_IsEbusy(string profile, string rule)
    {
        TestVm vm = Boot(profile, TestVm.IntelMachine()).Vmm.CreateVm(VmType.KVM_X86_TDX_VM).SplitIrqchip();
        CallReport? between = null;
        vm.Vmm.Host.Machine.Baton = new InterposingBaton("lock kvm->lock", 2, _ => between = vm.TryTdxInitVm().Report);

        Assert.Equal(Errno.EIO, vm.TryCreateVcpu(0).Errno);

        Assert.Equal((Errno.EBUSY, rule), (between!.Errno, between.Causes[0].Rule.Id));
        vm.TdxInitVm();
    }

    // What KVM cannot offer it does not build: a module that insists on more than KVM can give leaves the host without TDs.
    [Theory]
    [InlineData("attributes")]
    [InlineData("xfam")]
    public void ModuleThatHasNothingInCommonWithKvm_LeavesTheHostWithoutTds(string what)
    {
        var tdx = new TdxModuleConfig();
        tdx = what == "xfam" ? tdx with { HostXcr0OrXss = 0 } : tdx with { AttributesFixed0 = 0 };
        AssertRefused(Boot(K72, TestVm.IntelMachine(tdx)).Vmm.TryCreateVm((ulong)VmType.KVM_X86_TDX_VM), Errno.EINVAL, KvmDevice.UnknownVmType);
    }

    // Both find the tables and the page missing. Whoever comes second finds them there, or tries again; the module is never asked for what it has.
    [Theory]
    [InlineData("seamcall")]
    [InlineData("seamcall holds its locks")]
    [InlineData("fault install")]
    public void TwoVcpusThatFaultOnOnePage_MapItOnce(string step)
    {
        for (int occurrence = 1; ; occurrence++)
        {
            TestVm vm = Built(K72, out TestGuest guest);
            TestGuest second = vm.AddTdVcpu(1);
            vm.TdxFinalize();
            InterposingBaton baton = guest.At(step, other =>
            {
                // In the midst of the other's SEAMCALL there is nothing but to try again, here until it gives up.
                var range = new kvm_pre_fault_memory { gpa = Gpa, size = 4096 };
                Assert.True(other.TryIoctl(second.Fd, KvmIoctl.KVM_PRE_FAULT_MEMORY, ref range) is Errno.OK or Errno.EINTR);
            }, occurrence);
            guest.PreFault(Gpa, 1);
            vm.Vmm.Host.Machine.Baton = null;
            if (!baton.Acted)
            {
                Assert.True(occurrence > 1);
                return;
            }
            Assert.False(vm.Kernel.Dead);
            second.PreFault(Gpa, 1);
            vm.Vmm.Host.Host.CheckInvariants();
        }
    }

    private TestVm Built(string profile, out TestGuest guest)
    {
        TestVm vm = Boot(profile, TestVm.IntelMachine()).Vmm.CreateVm(VmType.KVM_X86_TDX_VM).SplitIrqchip();
        vm.TdxInitVm();
        guest = vm.AddTdVcpu();
        vm.AddPrivateMemory(Gpa, 4);
        return vm;
    }

    private static MemoryEnd MemoryEndsAfter(TestHost host, int frames) => new(host, frames);

    /// <summary>While it lives, the machine hands out so many frames more.</summary>
    private sealed class MemoryEnd : IDisposable
    {
        private readonly TestHost _host;
        private readonly Func<bool>? _before;
        private int _left;

        public MemoryEnd(TestHost host, int frames)
        {
            (_host, _before, _left) = (host, host.Machine.MemoryIsOut, frames);
            host.Machine.MemoryIsOut = () => _left-- <= 0;
        }

        public void Dispose() => _host.Machine.MemoryIsOut = _before;
    }
}
