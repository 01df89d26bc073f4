using SimKvm.Abi;
using SimKvm.Locking;
using SimKvm.Tests.Support;
using SimMachine.Measurement;
using SimMachine.Stepping;
using Xunit;

namespace SimKvm.Tests;

/// <summary>
/// The lock validator. That all flows of K72 keep to LockOrder is checked at the end of every test (TestHost.VerifyAndDispose); here are what it reports, and
/// the edges that tell the generations apart.
/// </summary>
public sealed class LockdepTests : KvmTest
{
    [Fact]
    public void LockOrder_HasItsRanksInOrder()
    {
        Assert.Equal(Enumerable.Range(0, LockOrder.All.Count), LockOrder.All.Select(lockClass => lockClass.Rank));
        Assert.Equal(LockOrder.All.Count, LockOrder.All.Select(lockClass => lockClass.Name).Distinct().Count());
        Assert.Equal([LockOrder.Mmu], LockOrder.All.Where(lockClass => lockClass.Atomic));
    }

    // Kvm-guest-memory.md 1.2 as pairs.
    [Theory]
    [InlineData("kvm->lock", "vcpu->mutex")]
    [InlineData("kvm->lock", "kvm->slots_lock")]
    [InlineData("kvm->slots_lock", "kvm->slots_arch_lock")]
    [InlineData("kvm->slots_lock", "invalidate_lock")]
    [InlineData("invalidate_lock", "folio lock")]
    [InlineData("invalidate_lock", "kvm->mmu_lock")]
    [InlineData("mmap_lock", "invalidate_lock")]
    [InlineData("mmap_lock", "folio lock")]
    public void LockOrder_IsThatOfTheSpecification(string outer, string inner)
    {
        Assert.True(Class(outer).Rank < Class(inner).Rank);
    }

    [Fact]
    public void Inversion_IsAFindingThatNamesTheOtherCall_Once()
    {
        TestHost host = Boot();
        host.Expect("lock-inversion");
        KTask current = TestHost.NewThread(host.Vmm);
        var slots = new SimLock(LockOrder.Slots);
        var invalidate = new SimLock(LockOrder.Invalidate);
        Nest(current, 41, slots, invalidate);
        Assert.Empty(host.Machine.Findings.All);
        Nest(current, 42, invalidate, slots);
        Nest(current, 43, invalidate, slots);
        Finding finding = Assert.Single(host.Machine.Findings.All);
        Assert.Equal("lock-inversion", finding.Kind);
        Assert.Contains("call 41", finding.Text, StringComparison.Ordinal);
        Assert.Equal(["holds invalidate_lock", "call 42 takes kvm->slots_lock"], finding.Blame);
    }

    [Fact]
    public void Inversion_OverThreeLocks_IsFound()
    {
        TestHost host = Boot();
        host.Expect("lock-inversion");
        KTask current = TestHost.NewThread(host.Vmm);
        var a = new SimLock(LockOrder.Slots);
        var b = new SimLock(LockOrder.Invalidate);
        var c = new SimLock(LockOrder.Folio);
        Nest(current, 1, a, b);
        Nest(current, 2, b, c);
        Assert.Empty(host.Machine.Findings.All);
        Nest(current, 3, c, a);
        Assert.Equal("lock-inversion", Assert.Single(host.Machine.Findings.All).Kind);
    }

    [Fact]
    public void OtherInstanceOfTheSameClass_CountsAsTheSame()
    {
        TestHost host = Boot();
        host.Expect("lock-inversion");
        KTask current = TestHost.NewThread(host.Vmm);
        Nest(current, 1, new SimLock(LockOrder.Slots), new SimLock(LockOrder.Invalidate));
        Nest(current, 2, new SimLock(LockOrder.Invalidate), new SimLock(LockOrder.Slots));
        Assert.Equal("lock-inversion", Assert.Single(host.Machine.Findings.All).Kind);
    }

    [Theory]
    [InlineData(false, false, true)]
    [InlineData(true, false, true)]
    [InlineData(false, true, true)]
    [InlineData(true, true, false)]
    public void Recursion_IsAFinding_UnlessBothRead(bool outerShared, bool innerShared, bool found)
    {
        TestHost host = Boot();
        host.Expect("lock-recursion");
        KTask current = TestHost.NewThread(host.Vmm);
        var invalidate = new SimLock(LockOrder.Invalidate);
        using (outerShared ? invalidate.EnterShared(current) : invalidate.Enter(current))
        using (innerShared ? invalidate.EnterShared(current) : invalidate.Enter(current))
        {
            Assert.Equal(2, current.Held.Count);
        }
        Assert.Equal(0, current.Held.Count);
        Assert.Equal(found ? ["lock-recursion"] : [], host.Machine.Findings.All.Select(finding => finding.Kind));
    }

    [Theory]
    [InlineData("kvm->slots_lock", true)]
    [InlineData("vcpu->mutex", false)]
    public void TwoInstancesOfOneClass_AreRecursion_UnlessTheClassNests(string name, bool found)
    {
        TestHost host = Boot();
        host.Expect("lock-recursion");
        Nest(TestHost.NewThread(host.Vmm), 1, new SimLock(Class(name)), new SimLock(Class(name)));
        Assert.Equal(found ? ["lock-recursion"] : [], host.Machine.Findings.All.Select(finding => finding.Kind));
    }

    [Fact]
    public void TwoFolios_AreOneClass()
    {
        TestHost host = Boot();
        host.Expect("lock-recursion");
        KTask current = TestHost.NewThread(host.Vmm);
        using (SimLock.EnterFolio(current, 1))
        using (SimLock.EnterFolio(current, 2))
        {
            Assert.Equal("lock-recursion", Assert.Single(host.Machine.Findings.All).Kind);
        }
    }

    [Fact]
    public void SleepingLockUnderASpinningOne_IsSleepInAtomic()
    {
        TestHost host = Boot();
        host.Expect("sleep-in-atomic");
        host.Expect("lock-inversion");
        Nest(TestHost.NewThread(host.Vmm), 1, new SimLock(LockOrder.Mmu), new SimLock(LockOrder.Slots));
        Assert.Equal("sleep-in-atomic", Assert.Single(host.Machine.Findings.All).Kind);
    }

    [Fact]
    public void RmpUpdateUnderMmuLock_IsSleepInAtomic()
    {
        TestHost host = Boot();
        host.Expect("sleep-in-atomic");
        KTask current = TestHost.NewThread(host.Vmm);
        Assert.True(host.Machine.TryAllocateFrame(out SimMachine.Addressing.Pfn pfn));
        var mmu = new SimLock(LockOrder.Mmu);
        using (mmu.Enter(current))
        {
            host.Host.KvmAmd.RmpMakeShared(current, pfn, SimMachine.Addressing.PageLevel.Page4K);
        }
        Finding finding = Assert.Single(host.Machine.Findings.All);
        Assert.Equal("sleep-in-atomic", finding.Kind);
        Assert.Contains("holds kvm->mmu_lock", finding.Blame);
        host.Machine.FreeFrame(current, pfn);
    }

    [Theory]
    [InlineData(K616, true)]
    [InlineData(K72, false)]
    public void Populate_TakesMmapLockInsideInvalidateLock_UpTo619(string profile, bool inside)
    {
        TestHost host = Boot(profile);
        Launch(host);
        (LockClass, LockClass)[] edges = [.. host.Host.Lockdep.Edges()];
        Assert.Equal(inside, edges.Contains((LockOrder.Invalidate, LockOrder.Mmap)));
        Assert.DoesNotContain((LockOrder.Mmap, LockOrder.Invalidate), edges);
        Assert.Empty(host.Machine.Findings.All);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void ALaunch_TeachesTheEdgesOfTheSpecification(string profile)
    {
        TestHost host = Boot(profile);
        Launch(host);
        (LockClass, LockClass)[] edges = [.. host.Host.Lockdep.Edges()];
        Assert.Contains((LockOrder.Vm, LockOrder.Slots), edges);
        Assert.Contains((LockOrder.Slots, LockOrder.SlotsArch), edges);
        Assert.Contains((LockOrder.Slots, LockOrder.Invalidate), edges);
        Assert.Contains((LockOrder.Invalidate, LockOrder.Folio), edges);
        Assert.Contains((LockOrder.Invalidate, LockOrder.SevCmd), edges);
        Assert.Contains((LockOrder.Invalidate, LockOrder.Mmu), edges);
        Assert.Contains((LockOrder.Slots, LockOrder.Mmu), edges);
        Assert.Equal(profile == K72, edges.Contains((LockOrder.Vm, LockOrder.Vcpu)));
        // Slots_arch_lock is dropped before anything waits.
        Assert.DoesNotContain(edges, edge => edge.Item1 == LockOrder.SlotsArch);
    }

    [Fact]
    public void AssertHeld_WithoutTheLock_IsOurBug()
    {
        TestHost host = Boot();
        var slots = new SimLock(LockOrder.Slots);
        Assert.Throws<InvalidOperationException>(() => slots.AssertHeld(TestHost.NewThread(host.Vmm)));
    }

    // A launch with everything in it, and the end of all its parts.
    private static void Launch(TestHost host)
    {
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SNP_VM);
        vm.Init2();
        int gmem = vm.AddPrivateMemory(0x100000, 8);
        int vcpu = vm.CreateVcpu(0);
        vm.Start();
        vm.Update(SnpPageType.NORMAL, 0x100000, host.Vmm.MapFilled(2), 2);
        vm.Update(SnpPageType.ZERO, 0x102000, 0, 2);
        vm.Finish();
        AssertOk(host.Vmm.Process.Fallocate(gmem, 3, 0, 4096));
        vm.DeleteSlot(0);
        vm.AddGmemSlot(1, 0x100000, 8, gmem);
        AssertOk(host.Vmm.Close(gmem));
        AssertOk(host.Vmm.Close(vm.Fd));
        AssertOk(host.Vmm.Close(vcpu));
    }

    private static void Nest(KTask current, ulong call, SimLock outer, SimLock inner)
    {
        current.BeginCall(call);
        using (outer.Enter(current))
        using (inner.Enter(current))
        {
        }
        current.EndCall();
    }

    private static LockClass Class(string name) => LockOrder.All.Single(lockClass => lockClass.Name == name);
}
