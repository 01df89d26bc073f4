using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Tests.Support;
using SimKvm.Userspace;
using SimKvm.Vendors.Arm;
using SimMachine;
using SimMachine.Addressing;
using SimMachine.Arm;
using Xunit;

namespace SimKvm.Tests.Historical;

/// <summary>Protected KVM on arm64: pages of user memory are the guest's once it touched them, and the guest says what it shares (seed 004).</summary>
public sealed class PkvmTests : KvmTest
{
    private const ulong Protected = 1UL << 31;

    [Theory]
    [InlineData(0UL, Errno.OK)]
    [InlineData(40UL, Errno.OK)]
    [InlineData(Protected, Errno.OK)]
    [InlineData(Protected | 48, Errno.OK)]
    [InlineData(31UL, Errno.EINVAL)]
    [InlineData(49UL, Errno.EINVAL)]
    [InlineData(0x100UL, Errno.EINVAL)]
    [InlineData(1UL << 32, Errno.EINVAL)]
    public void CreateVm_TypeIsAddressSizeAndProtection(ulong type, Errno errno)
    {
        CallReport report = BootArm().Vmm.TryCreateVm(type);
        Assert.Equal(errno, report.Errno);
        Assert.Equal(errno == Errno.OK ? [] : [KvmDevice.UnknownArmVmType], report.Causes.Select(cause => cause.Rule));
    }

    [Fact]
    public void CreateVm_ProtectedTypeOfArm_IsUnknownOnAmd() =>
        AssertRefused(Boot().Vmm.TryCreateVm(Protected), Errno.EINVAL, KvmDevice.UnknownVmType);

    [Fact]
    public void PageThatTheGuestTouched_IsNotTheHostsAnyMore()
    {
        HistoricalVm vm = ProtectedVm(out ulong uaddr);
        Assert.Equal(0x11, vm.Load(0, GuestAccess.Unmarked));
        vm.Store(0, 0x22, GuestAccess.Unmarked);
        AssertRefused(vm.Process.Read(uaddr, new byte[1]), Errno.EFAULT, UserMemory.OwnedByGuest);
        AssertRefused(vm.Process.Write(uaddr, new byte[1]), Errno.EFAULT, UserMemory.OwnedByGuest);
        AssertRefused(vm.Process.PinPages(uaddr, 4096, write: true), Errno.EFAULT, UserMemory.OwnedByGuest);
        AssertRefused(vm.Process.Ioctl(vm.Vm.Fd, KvmIoctl.KVM_SET_USER_MEMORY_REGION, uaddr), Errno.EFAULT, UserMemory.OwnedByGuest);

        // Its neighbour is the host's still, and the guest goes on using its own.
        Assert.Equal(0x12, vm.Vmm.Load(uaddr + 4096, 1)[0]);
        Assert.Equal(0x22, vm.Load(0, GuestAccess.Unmarked));
    }

    [Fact]
    public void Share_LetsTheHostIn_AndUnshareShutsItOut()
    {
        HistoricalVm vm = ProtectedVm(out ulong uaddr);
        vm.Store(0, 0x22, GuestAccess.Unmarked);
        Assert.Equal(0UL, vm.Call(PkvmBackend.MEM_SHARE, 0, 0, 0));
        Assert.Equal(0x22, vm.Vmm.Load(uaddr, 1)[0]);
        vm.Vmm.Store(uaddr, new byte[] { 0x33 });
        Assert.Equal(0x33, vm.Load(0, GuestAccess.Unmarked));
        Assert.Equal(0UL, vm.Call(PkvmBackend.MEM_UNSHARE, 0, 0, 0));
        AssertRefused(vm.Process.Read(uaddr, new byte[1]), Errno.EFAULT, UserMemory.OwnedByGuest);
        Assert.Equal(0x33, vm.Load(0, GuestAccess.Unmarked));
    }

    [Fact]
    public void Share_OfAPageNeverTouched_FaultsItInFirst()
    {
        HistoricalVm vm = ProtectedVm(out ulong uaddr);
        Assert.Equal(0UL, vm.Call(PkvmBackend.MEM_SHARE, 0x1000, 0, 0));
        Assert.Equal(0x12, vm.Vmm.Load(uaddr + 4096, 1)[0]);
        Assert.Equal(PageOwnership.SharedByGuest, StateOf(vm, 0x1000));
    }

    // Function, arguments, what the guest gets. Page 0 is touched and private, page 1 shared.
    [Theory]
    [InlineData(PkvmBackend.KVM_FEATURES, 0UL, 0UL, 0UL, 0b1_1101L)]
    [InlineData(PkvmBackend.HYP_MEMINFO, 0UL, 0UL, 0UL, 4096L)]
    [InlineData(PkvmBackend.HYP_MEMINFO, 0UL, 0UL, 1UL, -3L)]
    [InlineData(PkvmBackend.MEM_SHARE, 0x1000UL, 0UL, 0UL, -3L)]
    [InlineData(PkvmBackend.MEM_SHARE, 1UL, 0UL, 0UL, -3L)]
    [InlineData(PkvmBackend.MEM_SHARE, 0UL, 1UL, 0UL, -3L)]
    [InlineData(PkvmBackend.MEM_SHARE, 0x100000UL, 0UL, 0UL, -3L)]
    [InlineData(PkvmBackend.MEM_UNSHARE, 0UL, 0UL, 0UL, -3L)]
    [InlineData(PkvmBackend.MEM_UNSHARE, 0x2000UL, 0UL, 0UL, -3L)]
    [InlineData(PkvmBackend.MEM_UNSHARE, 0x1000UL, 0UL, 1UL, -3L)]
    [InlineData(12UL, 0UL, 1UL, 0UL, -1L)]
    public void Hypercalls_AnswerAsTheHypervisorDoes(ulong nr, ulong a0, ulong a1, ulong a2, long answer)
    {
        HistoricalVm vm = ProtectedVm(out _);
        vm.Load(0, GuestAccess.Unmarked);
        vm.Call(PkvmBackend.MEM_SHARE, 0x1000, 0, 0);
        Assert.Equal(unchecked((ulong)answer), vm.Call(nr, a0, a1, a2));
    }

    [Fact]
    public void TheSamePageForTwoGuests_IsRefusedByTheHypervisor()
    {
        HistoricalVm first = ProtectedVm(out ulong uaddr);
        first.Load(0, GuestAccess.Unmarked);
        CallReport report = first.Process.Ioctl(SecondVm(first, uaddr), KvmIoctl.KVM_RUN, 0);
        AssertRefused(report, Errno.EFAULT, UserMemory.OwnedByGuest);
        Assert.Equal(PkvmBackend.HostPageFailed, report.Causes[^1].Rule);
    }

    // What a guest shares its host can use, so the host finds the page; it is not the host's to give away all the same.
    [Fact]
    public void PageThatAnotherGuestShares_IsRefusedByTheHypervisor()
    {
        HistoricalVm first = ProtectedVm(out ulong uaddr);
        Assert.Equal(0UL, first.Call(PkvmBackend.MEM_SHARE, 0, 0, 0));
        int vcpu = SecondVm(first, uaddr);
        CallReport report = first.Process.Ioctl(vcpu, KvmIoctl.KVM_RUN, 0);
        AssertRefused(report, Errno.EPERM, El2.NotHostOwned);
        Assert.Equal(PkvmBackend.NotDonated, report.Causes[^1].Rule);
        Assert.Equal(PageOwnership.SharedByGuest, StateOf(first, 0));
    }

    // Both look for the guest's page and find none; the later one notices under mmu_lock that the page was given meanwhile, and uses it.
    [Fact]
    public void TwoVcpusThatTouchAPageForTheFirstTime_GetOnePage()
    {
        HistoricalVm vm = ProtectedVm(out _);
        int late = vm.Vcpu, early = vm.Vm.CreateVcpu(1);
        foreach (int vcpu in new[] { late, early })
        {
            vm.Process.LoadGuestProgram(vcpu, [new GuestRead(0, 1, GuestAccess.Unmarked), new GuestHalt()]);
        }
        KTask other = TestHost.NewThread(vm.Vmm);
        var baton = new InterposingBaton("lock kvm->mmu_lock", 1, _ => IoctlTable.Dispatch(other, early, KvmIoctl.KVM_RUN, UserArg.FromValue(0)));
        vm.Host.Machine.Baton = baton;
        AssertOk(vm.Process.Ioctl(late, KvmIoctl.KVM_RUN, 0));
        Assert.True(baton.Acted);
        foreach (int vcpu in new[] { late, early })
        {
            Assert.Equal(0x11, vm.Process.TakeGuestProgress(vcpu)!.Results[0].Data.Span[0]);
        }
        Assert.Equal(PageOwnership.GuestOwned, StateOf(vm, 0));
    }

    [Fact]
    public void SlotsAreFixedOnceTheVmRan_AndNeverReadOnlyOrLogged()
    {
        HistoricalVm vm = ProtectedVm(out _);
        AssertRefused(vm.Vm.TrySetRegion2(1, KvmMem.READONLY, 1 << 20, 1), Errno.EPERM, PkvmBackend.SlotFlags);
        AssertRefused(vm.Vm.TrySetRegion2(1, KvmMem.LOG_DIRTY_PAGES, 1 << 20, 1), Errno.EPERM, PkvmBackend.SlotFlags);
        vm.Vm.AddSlot(2, 2 << 20, 1);
        vm.Vm.DeleteSlot(2);
        vm.Load(0, GuestAccess.Unmarked);
        AssertRefused(vm.Vm.TryDeleteSlot(0), Errno.EPERM, PkvmBackend.SlotsAreFixed);
        vm.Vm.AddSlot(3, 3 << 20, 1);
    }

    [Fact]
    public void Teardown_WipesWhatWasPrivate_AndGivesAllPagesBack()
    {
        HistoricalVm vm = ProtectedVm(out ulong uaddr);
        vm.Store(0, 0x22, GuestAccess.Unmarked);
        vm.Store(0x1000, 0x33, GuestAccess.Unmarked);
        vm.Call(PkvmBackend.MEM_SHARE, 0x1000, 0, 0);
        AssertOk(vm.Vmm.Close(vm.Vcpu));
        AssertOk(vm.Vmm.Close(vm.Vm.Fd));
        Assert.Equal(new byte[4096], vm.Vmm.Load(uaddr, 4096));
        Assert.Equal(0x33, vm.Vmm.Load(uaddr + 4096, 1)[0]);
    }

    // The pin keeps a page that its process dropped; the guest does not notice.
    [Fact]
    public void MunmapOfADonatedPage_DoesNotTakeItFromTheGuest()
    {
        HistoricalVm vm = ProtectedVm(out ulong uaddr);
        vm.Store(0, 0x22, GuestAccess.Unmarked);
        AssertOk(vm.Process.Munmap(uaddr, 4 * Vmm.Page));
        Assert.Equal(0x22, vm.Load(0, GuestAccess.Unmarked));
        GuestExit exit = vm.Run(new GuestRead(0x1000, 1, GuestAccess.Unmarked));
        AssertRefused(exit.Report, Errno.EFAULT, UserMemory.NotMapped);
    }

    [Fact]
    public void PlainVm_LeavesItsPagesToTheHost()
    {
        var vm = new HistoricalVm(BootArm(), VmType.KVM_X86_DEFAULT_VM);
        ulong uaddr = vm.Vmm.MapFilled(1, 0x11);
        vm.Vm.AddSlot(0, 0, 1, uaddr);
        vm.Store(0, 0x22, GuestAccess.Unmarked);
        Assert.Equal(0x22, vm.Vmm.Load(uaddr, 1)[0]);
        Assert.Equal(unchecked((ulong)-1L), vm.Call(PkvmBackend.MEM_SHARE, 0, 0, 0));
    }

    [Theory]
    [InlineData(KvmIoctl.KVM_CREATE_GUEST_MEMFD)]
    [InlineData(KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES)]
    [InlineData(KvmIoctl.KVM_MEMORY_ENCRYPT_OP)]
    public void IoctlsOfX86_AreEinvalOnArm(uint request)
    {
        HistoricalVm vm = ProtectedVm(out _);
        AssertRefused(vm.Process.Ioctl(vm.Vm.Fd, request, 0), Errno.EINVAL, IoctlTable.NotOnArm);
    }

    [Fact]
    public void ArmHost_HasNoSev()
    {
        TestHost host = BootArm();
        AssertRefused(host.Vmm.Process.Open("/dev/sev"), Errno.ENOENT, Vfs.SevDisabled);
        Assert.Equal(0, host.Vmm.CheckExtension(KvmCap.VM_TYPES));
        Assert.Equal(0, host.Vmm.CheckExtension(KvmCap.MEMORY_ATTRIBUTES));
    }

    private TestHost BootArm() => Boot(K72, new MachineConfig { Platform = Platform.ArmPkvm, Sev = false });

    private HistoricalVm ProtectedVm(out ulong uaddr)
    {
        var vm = new HistoricalVm(BootArm(), VmType.KVM_VM_TYPE_ARM_PROTECTED);
        uaddr = vm.Vmm.MapFilled(4, 0x11);
        vm.Vm.AddSlot(0, 0, 4, uaddr);
        return vm;
    }

    // The vCPU of another protected VM over the same user memory, which loads from gpa 0.
    private static int SecondVm(HistoricalVm first, ulong uaddr)
    {
        TestVm second = first.Vmm.CreateVm(VmType.KVM_VM_TYPE_ARM_PROTECTED);
        second.AddSlot(0, 0, 4, uaddr);
        int vcpu = second.CreateVcpu(0);
        first.Process.LoadGuestProgram(vcpu, [new GuestRead(0, 1, GuestAccess.Unmarked)]);
        return vcpu;
    }

    private static PageOwnership StateOf(HistoricalVm vm, ulong gpa)
    {
        El2 el2 = vm.Host.Machine.El2;
        Assert.True(el2.TryGetGuestPage(1, new Gfn(gpa >> 12), out Pfn pfn));
        return el2.StateOf(pfn);
    }
}
