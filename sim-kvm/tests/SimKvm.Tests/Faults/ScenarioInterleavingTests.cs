using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Tests.Support;
using SimKvm.Userspace;
using SimMachine.Addressing;
using Xunit;

namespace SimKvm.Tests.Faults;

/// <summary>
/// The must-pass scenarios of kvm-guest-memory.md 15 that need a second thread between two steps, a second process, or a look at the kernel's tables. The others are tested
/// through gRPC (integration-tests/Conformance).
/// </summary>
public sealed class ScenarioInterleavingTests : KvmTest
{
    private const VmType T = VmType.KVM_X86_SW_PROTECTED_VM;
    private const ulong Gpa = 0x20_0000;

    public static TheoryData<string> ProfilesWithAttributes => ["K68", "K611", K616, "K618", "K619", "K70", K72, "NEXTHOOK"];

    [Theory]
    [MemberData(nameof(ProfilesWithAttributes))]
    public void Scenario_13a_PrivateBeforeTheAttributeTest_IsAMemoryFaultOfASharedAccess(string profile)
    {
        (TestHost host, TestGuest guest, int gmem) = SharedPage(profile);
        InterposingBaton baton = guest.At("fault attribute test", other => other.SetPrivate(guest.Vm, Gpa, 1));

        CallReport run = guest.Run(TestGuest.Fetch(Gpa + 5), new GuestHalt());

        Assert.True(baton.Acted);
        AssertRefused(run, Errno.EFAULT, Mmu.AccessMismatch);
        Assert.Equal((39u, (0UL, Gpa, 4096UL)), (guest.ExitReason, guest.MemoryFault));
        AssertOk(guest.Continue());
        Assert.Equal((uint)KvmExit.KVM_EXIT_HLT, guest.ExitReason);
        Assert.Equal(host.Vmm.Gmem(gmem).Inode.TryGet(0, out Folio folio) ? folio.Pfn : default, guest.Leaf(Gpa)!.Value.Pfn);
    }

    [Theory]
    [MemberData(nameof(ProfilesWithAttributes))]
    public void Scenario_13b_PrivateAfterTheAttributeTest_RetriesAndMapsThePrivatePage(string profile)
    {
        foreach (string at in new[] { "fault page found", "lock kvm->mmu_lock" })
        {
            (TestHost host, TestGuest guest, int gmem) = SharedPage(profile);
            InterposingBaton baton = guest.At(at, other => other.SetPrivate(guest.Vm, Gpa, 1));

            CallReport run = guest.Run(TestGuest.Fetch(Gpa + 5), new GuestHalt());

            Assert.True(baton.Acted);
            AssertOk(run);
            Assert.Equal((uint)KvmExit.KVM_EXIT_HLT, guest.ExitReason);
            Assert.Equal([0], guest.Results[0].Data.ToArray());
            Assert.True(host.Vmm.Gmem(gmem).Inode.TryGet(0, out Folio folio));
            Assert.Equal((folio.Pfn, true), (guest.Leaf(Gpa)!.Value.Pfn, guest.Leaf(Gpa)!.Value.IsPrivate));
        }
    }

    [Theory]
    [MemberData(nameof(ProfilesWithAttributes))]
    public void Scenario_14_OnePrivatePageInAHugePage_MixesItUntilReverted(string profile)
    {
        TestVm vm = Boot(profile).Vmm.CreateVm(T);
        vm.AddSlot(0, Gpa, 512, uaddr: 0x4000_0000);
        Memslot slot = vm.Kernel.Memslots.Find(new Gfn(Gpa >> 12))!;
        LpageInfo Info() => vm.Kernel.Mmu.DisallowLpage(slot, slot.Range.Start, PageLevel.Page2M);

        Assert.Equal(new LpageInfo(0, Mixed: false), Info());
        vm.SetPrivate(Gpa + (7 * Vmm.Page), 1);
        Assert.Equal(new LpageInfo(0, Mixed: true), Info());
        vm.SetShared(Gpa + (7 * Vmm.Page), 1);
        Assert.Equal(new LpageInfo(0, Mixed: false), Info());
        vm.SetPrivate(Gpa, 512);
        Assert.Equal(new LpageInfo(0, Mixed: false), Info());
    }

    [Theory]
    [MemberData(nameof(ProfilesWithAttributes))]
    public void Scenario_29_AnotherProcess_GetsEioFromVmAndVcpu_AndMayFallocate(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(T);
        int gmem = vm.CreateGmem(4);
        int vcpu = vm.CreateVcpu(0);
        Vmm other = host.NewVmm();

        AssertRefused(other.Ioctl(host.Vmm.PassTo(other, vm.Fd), KvmIoctl.KVM_CHECK_EXTENSION, KvmCap.GUEST_MEMFD), Errno.EIO, Vm.NotYourVm);
        // The test of the process precedes everything else, also for numbers that nobody knows.
        AssertRefused(other.Ioctl(host.Vmm.PassTo(other, vm.Fd), 0x1234, 0), Errno.EIO, Vm.NotYourVm);
        AssertRefused(other.Ioctl(host.Vmm.PassTo(other, vcpu), KvmIoctl.KVM_RUN, 0), Errno.EIO, Vm.NotYourVm);
        AssertOk(other.Process.Fallocate(host.Vmm.PassTo(other, gmem), 1, 0, 4 * 4096));
        Assert.Equal(4UL, host.Vmm.Gmem(gmem).Inode.CountPages());
    }

    [Theory]
    [InlineData("K68", true)]
    [InlineData("K611", true)]
    [InlineData(K616, true)]
    [InlineData("K618", false)]
    [InlineData(K72, false)]
    public void Scenario_30_SlotDeletedWhileItsFileDies_LeavesAStaleBinding_UntilItWasFixed(string profile, bool stale)
    {
        TestHost host = Boot(profile);
        if (stale)
        {
            host.Expect("stale-binding");
        }
        TestVm vm = host.Vmm.CreateVm(T);
        int gmem = vm.CreateGmem(4);
        vm.AddGmemSlot(3, Gpa, 4, gmem);
        KTask other = TestHost.NewThread(host.Vmm);
        // The count of the file is 0; its release is about to take slots_lock.
        var baton = new InterposingBaton("lock kvm->slots_lock", 1, _ => other.DeleteSlot(vm, 3));
        host.Machine.Baton = baton;

        CallReport close = AssertOk(host.Vmm.Close(gmem));

        Assert.True(baton.Acted);
        Assert.Equal(stale ? ["stale-binding"] : [], close.Findings.Select(finding => finding.Kind));
        Assert.Empty(vm.Describe().Slots);
    }

    // A page with user memory behind its shared side and a guest_memfd behind its private one.
    private (TestHost Host, TestGuest Guest, int Gmem) SharedPage(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(T);
        int gmem = vm.CreateGmem(4);
        vm.AddGmemSlot(0, Gpa, 4, gmem, uaddr: host.Vmm.MapFilled(4));
        return (host, new TestGuest(vm), gmem);
    }
}
