using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Tests.Support;
using SimMachine.Addressing;
using SimMachine.Stepping;
using Xunit;

namespace SimKvm.Tests.Faults;

/// <summary>
/// The ordered events of kvm-guest-memory.md 1.5, one test an operation, on the default profile. Populate is here, the other operations that need no guest have a test of
/// their steps beside their own tests; what is bound and mapped makes the events in brackets happen.
/// </summary>
public sealed class EventOrderTests : KvmTest
{
    private const VmType T = VmType.KVM_X86_SW_PROTECTED_VM;
    private const ulong Gpa = 0x20_0000;

    [Fact]
    public void Allocate()
    {
        TestGuest guest = Private(out int gmem);
        AssertSteps(
            """
            lock invalidate_lock
            gmem allocate
            gmem folio lookup
            gmem folio lookup
            unlock invalidate_lock
            """,
            guest, () => AssertOk(guest.Vm.Vmm.Process.Fallocate(gmem, 1, 0, 2 * 4096)));
    }

    [Fact]
    public void PunchHole()
    {
        TestGuest guest = Private(out int gmem);
        guest.PreFault(Gpa, 2);
        AssertSteps(
            """
            lock invalidate_lock
            lock kvm->mmu_lock
            mmu invalidate begin
            mmu invalidate range add
            mmu unmap
            mmu flush remote tlbs
            unlock kvm->mmu_lock
            gmem truncate
            lock folio lock
            gmem free hook
            unlock folio lock
            lock folio lock
            gmem free hook
            unlock folio lock
            lock kvm->mmu_lock
            mmu invalidate end
            unlock kvm->mmu_lock
            unlock invalidate_lock
            """,
            guest, () => AssertOk(guest.Vm.Vmm.Process.Fallocate(gmem, 3, 0, 2 * 4096)));
    }

    [Fact]
    public void PunchHole_OverTwoSlots_FlushesOnce_AndOnlyWhatWasMapped()
    {
        TestGuest guest = Private(out int gmem);
        guest.Vm.DeleteSlot(0);
        guest.Vm.AddGmemSlot(0, Gpa, 2, gmem);
        guest.Vm.AddGmemSlot(1, Gpa + 0x8000, 2, gmem, 2 * 4096);
        guest.Vm.SetPrivate(Gpa, 16);
        guest.PreFault(Gpa, 1);
        guest.PreFault(Gpa + 0x8000, 1);
        string[] steps = TestGuest.StepsOf(guest.Vm.Vmm.Host, () => AssertOk(guest.Vm.Vmm.Process.Fallocate(gmem, 3, 0, 4 * 4096)));
        Assert.Equal((2, 1), (steps.Count(step => step == "mmu unmap"), steps.Count(step => step == "mmu flush remote tlbs")));
        Assert.True(Array.LastIndexOf(steps, "mmu unmap") < Array.IndexOf(steps, "mmu flush remote tlbs"));
        // Nothing is mapped any more.
        steps = TestGuest.StepsOf(guest.Vm.Vmm.Host, () => AssertOk(guest.Vm.Vmm.Process.Fallocate(gmem, 3, 0, 4 * 4096)));
        Assert.Equal((2, 0), (steps.Count(step => step == "mmu unmap"), steps.Count(step => step == "mmu flush remote tlbs")));
    }

    [Fact]
    public void LastClose()
    {
        TestGuest guest = Private(out int gmem);
        guest.PreFault(Gpa, 1);
        AssertSteps(
            """
            lock kvm->slots_lock
            lock invalidate_lock
            lock kvm->mmu_lock
            mmu invalidate begin
            mmu invalidate range add
            mmu unmap
            mmu flush remote tlbs
            unlock kvm->mmu_lock
            lock kvm->mmu_lock
            mmu invalidate end
            unlock kvm->mmu_lock
            unlock invalidate_lock
            unlock kvm->slots_lock
            lock folio lock
            gmem free hook
            unlock folio lock
            """,
            guest, () => AssertOk(guest.Vm.Vmm.Close(gmem)));
    }

    [Fact]
    public void SetAttributes()
    {
        TestGuest guest = Private(out _);
        guest.PreFault(Gpa, 1);
        AssertSteps(
            """
            ioctl enter
            lock kvm->slots_lock
            lock kvm->mmu_lock
            mmu invalidate begin
            mmu invalidate range add
            mmu unmap
            mmu flush remote tlbs
            unlock kvm->mmu_lock
            attributes stored
            lock kvm->mmu_lock
            mmu invalidate end
            unlock kvm->mmu_lock
            unlock kvm->slots_lock
            ioctl exit
            """,
            guest, () => guest.Vm.SetShared(Gpa, 4));
    }

    [Fact]
    public void CreateGmemSlot()
    {
        TestGuest guest = Private(out _);
        int gmem = guest.Vm.CreateGmem(4);
        AssertSteps(
            """
            ioctl enter
            lock kvm->slots_lock
            lock invalidate_lock
            gmem bind
            unlock invalidate_lock
            lock kvm->slots_arch_lock
            memslots publish
            unlock kvm->slots_arch_lock
            lock kvm->srcu
            unlock kvm->srcu
            unlock kvm->slots_lock
            ioctl exit
            """,
            guest, () => guest.Vm.AddGmemSlot(1, Gpa + 0x10_0000, 4, gmem));
    }

    [Fact]
    public void DeleteGmemSlot()
    {
        TestGuest guest = Private(out _);
        guest.PreFault(Gpa, 1);
        AssertSteps(
            """
            ioctl enter
            lock kvm->slots_lock
            lock kvm->slots_arch_lock
            memslots publish
            unlock kvm->slots_arch_lock
            lock kvm->srcu
            unlock kvm->srcu
            lock kvm->mmu_lock
            memslot stage-2 zap
            mmu unmap
            mmu flush remote tlbs
            unlock kvm->mmu_lock
            lock kvm->slots_arch_lock
            memslots publish
            unlock kvm->slots_arch_lock
            lock kvm->srcu
            unlock kvm->srcu
            lock invalidate_lock
            gmem unbind
            unlock invalidate_lock
            unlock kvm->slots_lock
            ioctl exit
            """,
            guest, () => guest.Vm.DeleteSlot(0));
    }

    [Fact]
    public void PrivateFault()
    {
        TestGuest guest = Private(out _);
        guest.Load(TestGuest.Fetch(Gpa), new GuestHalt());
        AssertSteps(
            """
            ioctl enter
            lock vcpu->mutex
            vcpu enter
            guest step
            lock kvm->srcu
            fault seq snapshot
            fault attribute test
            gmem folio lookup
            lock folio lock
            gmem prepare hook
            unlock folio lock
            fault page found
            lock kvm->mmu_lock
            fault install
            unlock kvm->mmu_lock
            unlock kvm->srcu
            vcpu enter
            guest step
            vcpu enter
            guest step
            vcpu enter
            guest step
            vcpu exit
            unlock vcpu->mutex
            ioctl exit
            """,
            guest, () => AssertOk(guest.Continue()));
    }

    [Fact]
    public void Populate_EachPage()
    {
        TestGuest guest = Private(out _);
        ulong source = guest.Vm.Vmm.MapFilled(2);
        KTask task = TestHost.NewThread(guest.Vm.Vmm);
        var callback = new StepLabel("vendor callback");
        const string page =
            """

            lock mmap_lock
            unlock mmap_lock
            lock invalidate_lock
            gmem populate page
            gmem folio lookup
            lock folio lock
            unlock folio lock
            vendor callback
            unlock invalidate_lock
            """;
        AssertSteps(
            "lock kvm->slots_lock" + page + page + "\nunlock kvm->slots_lock",
            guest, () =>
            {
                using var slots = guest.Vm.Kernel.SlotsLock.Enter(task);
                SyscallResult done = GuestMemfd.Populate(task, guest.Vm.Kernel, new Gfn(Gpa >> 12), source, 2, false, (KTask current, Gfn _, Pfn _, in PopulateSource _) =>
                {
                    current.Step(callback);
                    return Errno.OK;
                });
                Assert.Equal(SyscallResult.Of(2), done);
            });
    }

    // Without an overlapping slot there is no begin, no end and no mmu_lock.
    [Fact]
    public void WithoutASlot_TheStepsInBracketsAreLeftOut()
    {
        TestGuest guest = Private(out _);
        int loose = guest.Vm.CreateGmem(2);
        AssertOk(guest.Vm.Vmm.Process.Fallocate(loose, 1, 0, 4096));
        AssertSteps(
            "lock invalidate_lock\ngmem truncate\nlock folio lock\ngmem free hook\nunlock folio lock\nunlock invalidate_lock",
            guest, () => AssertOk(guest.Vm.Vmm.Process.Fallocate(loose, 3, 0, 4096)));
        AssertSteps(
            "ioctl enter\nlock kvm->slots_lock\nattributes stored\nunlock kvm->slots_lock\nioctl exit",
            guest, () => guest.Vm.SetPrivate(1UL << 40, 16));
        AssertSteps(
            "lock kvm->slots_lock\nlock invalidate_lock\nunlock invalidate_lock\nunlock kvm->slots_lock",
            guest, () => AssertOk(guest.Vm.Vmm.Close(loose)));
    }

    private static void AssertSteps(string expected, TestGuest guest, Action body) =>
        Assert.Equal(expected.Split('\n', StringSplitOptions.TrimEntries), TestGuest.StepsOf(guest.Vm.Vmm.Host, body));

    private TestGuest Private(out int gmem)
    {
        TestVm vm = Boot().Vmm.CreateVm(T);
        gmem = vm.CreateGmem(4);
        vm.AddGmemSlot(0, Gpa, 4, gmem);
        vm.SetPrivate(Gpa, 4);
        return new TestGuest(vm);
    }
}
