using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Tests.Support;
using SimKvm.Userspace;
using Xunit;

namespace SimKvm.Tests.Faults;

/// <summary>
/// The guest page-fault path (kvm-guest-memory.md 8.2) and the protocol that makes a stale fault go round again (1.3): each place where a fault can be overtaken, and what backs
/// which access.
/// </summary>
public sealed class FaultPathTests : KvmTest
{
    private const VmType T = VmType.KVM_X86_SW_PROTECTED_VM;
    private const ulong Gpa = 0x20_0000;

    public static TheoryData<string> MergedProfiles => ["K68", "K611", K616, "K618", "K619", "K70", K72, "NEXTHOOK"];

    // Every step of a private fault, and where else a hole may be punched.
    public static TheoryData<string, string> PlacesOfAPunch
    {
        get
        {
            var data = new TheoryData<string, string>();
            foreach (string profile in new[] { "K68", "K611", K616, "K618", "K70", K72, "NEXTHOOK" })
            {
                foreach (string place in new[] { "fault attribute test", "gmem folio lookup", "fault page found", "lock kvm->mmu_lock" })
                {
                    data.Add(profile, place);
                }
            }
            return data;
        }
    }

    [Theory]
    [MemberData(nameof(PlacesOfAPunch))]
    public void HolePunchedUnderAFault_NeverLeavesAFreedPageMapped(string profile, string place)
    {
        TestGuest guest = Private(out int gmem, profile);
        GmemInode inode = guest.Vm.Vmm.Gmem(gmem).Inode;
        AssertOk(guest.Vm.Vmm.Process.Fallocate(gmem, 1, 0, 4096));
        inode.TryGet(0, out Folio before);
        InterposingBaton baton = guest.At(place, other => other.PunchHole(gmem, 0, 1));
        string[] steps = TestGuest.StepsOf(guest.Vm.Vmm.Host, () => guest.Write(Gpa, 1));

        Assert.True(baton.Acted);
        Assert.Contains("fault retry", steps);
        Assert.True(inode.TryGet(0, out Folio folio));
        Assert.Equal(folio.Pfn, guest.Leaf(Gpa)!.Value.Pfn);
        Assert.True(folio.Uptodate);
        Assert.Equal([1, 0, 0], guest.Read(Gpa, 3));
    }

    // 8.2 rows 10, 13 and 14: what is at the place of the first, the second and the third test decides how far the stale fault came.
    [Theory]
    [InlineData("fault attribute test", false, false)]
    [InlineData("gmem folio lookup", true, false)]
    [InlineData("lock kvm->mmu_lock", true, true)]
    public void StaleFault_IsNoticedAtTheNextOfThreeTests(string place, bool lookedUp, bool locked)
    {
        TestGuest guest = Private(out int gmem, K72);
        AssertOk(guest.Vm.Vmm.Process.Fallocate(gmem, 1, 0, 4096));
        // A neighbour, so that the page of the fault itself stays.
        AssertOk(guest.Vm.Vmm.Process.Fallocate(gmem, 1, 4096, 4096));
        guest.At(place, other => other.PunchHole(gmem, 1, 1));
        string[] steps = TestGuest.StepsOf(guest.Vm.Vmm.Host, () => guest.Read(Gpa));
        string[] first = [.. steps.Skip(Array.IndexOf(steps, "fault seq snapshot")).TakeWhile(step => step != "fault retry")];
        // Steps of the punch in between are its own.
        string[] own = [.. first.Where(step => step is "gmem folio lookup" or "fault page found")];
        Assert.Contains("fault retry", steps);
        Assert.Equal(lookedUp, own.Contains("gmem folio lookup"));
        Assert.Equal(locked, own.Contains("fault page found"));
    }

    [Fact]
    public void InvalidationInProgress_HoldsUpFaultsInItsRangeOnly()
    {
        TestGuest guest = Private(out int gmem, K72);
        AssertOk(guest.Vm.Vmm.Process.Fallocate(gmem, 1, 0, 4 * 4096));
        (Errno Inside, Errno Below, Errno Above) seen = default;
        // Between begin and end: pages 1 and 2 are in the range, 0 and 3 are not.
        guest.At("gmem truncate", other => seen = (PreFault(other, guest, 2), PreFault(other, guest, 0), PreFault(other, guest, 3)));
        AssertOk(guest.Vm.Vmm.Process.Fallocate(gmem, 3, 4096, 2 * 4096));
        Assert.Equal((Errno.EINTR, Errno.OK, Errno.OK), seen);
        Assert.Equal((true, false, false, true), (Mapped(guest, 0), Mapped(guest, 1), Mapped(guest, 2), Mapped(guest, 3)));
        guest.PreFault(Gpa, 4);
    }

    [Fact]
    public void RangeOfAnInvalidation_IsTheSmallestIntervalOverAllSlots_UntilNothingIsInProgress()
    {
        TestHost host = Boot();
        TestVm vm = host.Vmm.CreateVm(T);
        int gmem = vm.CreateGmem(8);
        // Pages 0-3 at gfn 0x200, pages 4-7 at gfn 0x210: a hole over both covers the gap between them too.
        vm.AddGmemSlot(0, Gpa, 4, gmem);
        vm.AddGmemSlot(1, Gpa + 0x1_0000, 4, gmem, 4 * 4096);
        vm.AddGmemSlot(2, Gpa + 0x8000, 1, vm.CreateGmem(1));
        vm.AddGmemSlot(3, Gpa + 0x10_0000, 1, vm.CreateGmem(1));
        vm.SetPrivate(Gpa, 512);
        var guest = new TestGuest(vm);
        (Errno Between, Errno Outside) seen = default;
        guest.At("gmem truncate", other => seen = (PreFault(other, guest, 8), PreFault(other, guest, 0x100)));
        AssertOk(host.Vmm.Process.Fallocate(gmem, 3, 2 * 4096, 4 * 4096));
        Assert.Equal((Errno.EINTR, Errno.OK), seen);
    }

    [Theory]
    [MemberData(nameof(MergedProfiles))]
    public void PunchHole_WhereNothingIsBound_LeavesSeqAlone(string profile)
    {
        TestGuest guest = Private(out int gmem, profile);
        int loose = guest.Vm.CreateGmem(4);
        ulong seq = guest.Vm.Seq;
        AssertOk(guest.Vm.Vmm.Process.Fallocate(loose, 3, 0, 4 * 4096));
        AssertOk(guest.Vm.Vmm.Process.Fallocate(gmem, 3, 8 * 4096, 4096));
        Assert.Equal((seq, 0), (guest.Vm.Seq, guest.Mmu.InProgress));
        AssertOk(guest.Vm.Vmm.Process.Fallocate(gmem, 3, 3 * 4096, 4096));
        Assert.Equal((seq + 1, 0), (guest.Vm.Seq, guest.Mmu.InProgress));
    }

    [Fact]
    public void Gm23_PunchHoleWhereNothingIsBound_NeverEnds_ButWithAnEmptyRangeNothingWaits()
    {
        TestGuest guest = Private(out _, "GM23");
        int loose = guest.Vm.CreateGmem(4);
        AssertOk(guest.Vm.Vmm.Process.Fallocate(loose, 3, 0, 4096));
        Assert.Equal(1, guest.Mmu.InProgress);
        guest.Write(Gpa, 1);
    }

    [Fact]
    public void Gm23_ImbalanceThenAChange_IsALivelockFinding_NotAHang()
    {
        TestGuest guest = Private(out int gmem, "GM23");
        guest.Vm.Vmm.Host.Expect("guest-livelock");
        AssertOk(guest.Vm.Vmm.Process.Fallocate(guest.Vm.CreateGmem(4), 3, 0, 4096));
        // From here on ranges grow and are never emptied.
        AssertOk(guest.Vm.Vmm.Process.Fallocate(gmem, 3, 0, 4096));
        Assert.Equal(1, guest.Mmu.InProgress);

        CallReport run = guest.Run(TestGuest.Fetch(Gpa));

        AssertRefused(run, Errno.EINTR, Vcpu.Livelock);
        Assert.Equal("guest-livelock", Assert.Single(run.Findings).Kind);
        Assert.Equal(10u, guest.ExitReason);
        // Outside the range life goes on.
        guest.Write(Gpa + 0x3000, 1);
    }

    [Fact]
    public void Gm23_StoreToAReadOnlyPrivateSlot_IsALivelockFinding_NotAHang()
    {
        TestHost host = Boot("GM23");
        host.Expect("guest-livelock");
        TestVm vm = host.Vmm.CreateVm(T);
        Vmm.Must(vm.TrySetRegion2(0, KvmMem.GUEST_MEMFD | KvmMem.READONLY, Gpa, 4, 0, vm.CreateGmem(4)));
        vm.SetPrivate(Gpa, 4);
        var guest = new TestGuest(vm);
        Assert.Equal([0], guest.Read(Gpa));
        AssertRefused(guest.Run(TestGuest.Store(Gpa, 1)), Errno.EINTR, Vcpu.Livelock);
    }

    [Theory]
    [MemberData(nameof(MergedProfiles))]
    public void SlotBeingDeleted_SendsTheGuestRoundUntilItIsGone(string profile)
    {
        TestHost host = Boot(profile);
        host.Expect("guest-livelock");
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM);
        vm.AddSlot(0, Gpa, 4, host.Vmm.MapFilled(4));
        var guest = new TestGuest(vm);
        guest.Load(TestGuest.Fetch(Gpa));
        Errno whileDeleted = Errno.OK;
        guest.At("memslot stage-2 zap", other =>
        {
            int nothing = 0;
            whileDeleted = other.TryIoctl(guest.Fd, KvmIoctl.KVM_RUN, ref nothing);
        });
        vm.DeleteSlot(0);
        Assert.Equal((0, false), (guest.Kernel.Guest.Pc, Mapped(guest, 0)));
        AssertOk(guest.Continue());
        Assert.Equal((uint)KvmExit.KVM_EXIT_MMIO, guest.ExitReason);
    }

    [Theory]
    [MemberData(nameof(MergedProfiles))]
    public void ReadOnlySlot_IsReadAsMemory_AndWrittenAsMmio(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM);
        ulong uaddr = host.Vmm.MapFilled(1, 5);
        vm.AddSlot(0, Gpa, 1, uaddr, KvmMem.READONLY);
        var guest = new TestGuest(vm);
        Assert.Equal([5, 5], guest.Read(Gpa, 2));
        AssertOk(guest.Run(TestGuest.Store(Gpa + 8, 1, 2), new GuestHalt()));
        Assert.Equal((6u, Gpa + 8, 2, 1), (guest.ExitReason, guest.RunU64(32), guest.RunBytes(48, 1)[0], guest.RunBytes(52, 1)[0]));
        AssertOk(guest.Continue());
        Assert.Equal(5u, guest.ExitReason);
        Assert.Equal([5, 5, 5], host.Vmm.Load(uaddr + 8, 3));
    }

    [Theory]
    [MemberData(nameof(MergedProfiles))]
    public void NoSlot_IsMmioShared_AndAMemoryFaultPrivate(string profile)
    {
        TestGuest guest = new(Boot(profile).Vmm.CreateVm(T));
        AssertOk(guest.Run(TestGuest.Fetch(Gpa, 4)));
        Assert.Equal((6u, Gpa), (guest.ExitReason, guest.RunU64(32)));
        guest.Vm.SetPrivate(Gpa, 1);
        AssertRefused(guest.Run(TestGuest.Fetch(Gpa + 0x234, 4)), Errno.EFAULT, Mmu.NoSlotForPrivate);
        Assert.Equal((39u, (8UL, Gpa, 4096UL)), (guest.ExitReason, guest.MemoryFault));
    }

    [Theory]
    [MemberData(nameof(MergedProfiles))]
    public void ClosedFile_IsAMemoryFault_ButItsSharedSideGoesOn(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(T);
        int gmem = vm.CreateGmem(4);
        vm.AddGmemSlot(0, Gpa, 4, gmem, uaddr: host.Vmm.MapFilled(4));
        vm.SetPrivate(Gpa, 2);
        var guest = new TestGuest(vm);
        guest.Write(Gpa, 9);
        AssertOk(host.Vmm.Close(gmem));
        AssertRefused(guest.Run(TestGuest.Fetch(Gpa)), Errno.EFAULT, GuestMemfd.FileGone);
        Assert.Equal((39u, (8UL, Gpa, 4096UL)), (guest.ExitReason, guest.MemoryFault));
        Assert.Equal([3], guest.Read(Gpa + 0x2000));
        vm.DeleteSlot(0);
    }

    [Theory]
    [MemberData(nameof(MergedProfiles))]
    public void PrivateAndShared_AreTwoPages_AndEachKeepsItsContent(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(T);
        vm.AddGmemSlot(0, Gpa, 4, vm.CreateGmem(4), uaddr: host.Vmm.MapFilled(4));
        var guest = new TestGuest(vm);
        Assert.Equal([1], guest.Read(Gpa));
        vm.SetPrivate(Gpa, 4);
        Assert.Equal([0], guest.Read(Gpa));
        guest.Write(Gpa, 0x55);
        vm.SetShared(Gpa, 4);
        Assert.Equal([1], guest.Read(Gpa));
        vm.SetPrivate(Gpa, 4);
        Assert.Equal([0x55], guest.Read(Gpa));
    }

    [Theory]
    [InlineData("K618", false)]
    [InlineData(K72, false)]
    [InlineData(K72, true)]
    public void SlotOfAMappableFile_BacksSharedAccessesToo(string profile, bool initShared)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM);
        int gmem = vm.CreateGmem(4, initShared ? 3UL : 1);
        ulong ignored = host.Vmm.MapFilled(4);
        vm.AddGmemSlot(0, Gpa, 4, gmem, uaddr: ignored);
        var guest = new TestGuest(vm);
        guest.Write(Gpa, 0x42);
        Assert.Equal([1], host.Vmm.Load(ignored, 1));
        Assert.Equal(1UL, host.Vmm.Gmem(gmem).Inode.CountPages());
        ulong mapped = (ulong)AssertOk(host.Vmm.Process.Mmap(0, 4096, 3, Vmm.MapShared, gmem, 0)).Value;
        CallReport load = host.Vmm.Process.Read(mapped, new byte[1]);
        Assert.Equal(initShared ? Errno.OK : Errno.EFAULT, load.Errno);
    }

    [Theory]
    [InlineData("K618", 0UL)]
    [InlineData(K72, 0UL)]
    [InlineData(K72, 2UL)]
    public void SlotOfAFileWithoutMmap_OnADefaultVm_NeverUsesIt(string profile, ulong flags)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM);
        int gmem = vm.CreateGmem(4, flags);
        ulong uaddr = host.Vmm.MapFilled(4);
        vm.AddGmemSlot(0, Gpa, 4, gmem, uaddr: uaddr);
        var guest = new TestGuest(vm);
        guest.Write(Gpa, 0x42);
        Assert.Equal([0x42], host.Vmm.Load(uaddr, 1));
        Assert.Equal(0UL, host.Vmm.Gmem(gmem).Inode.CountPages());
        vm.DeleteSlot(0);
        vm.AddGmemSlot(0, Gpa, 4, gmem, uaddr: 0);
        AssertRefused(guest.Run(TestGuest.Fetch(Gpa)), Errno.EFAULT, UserMemory.NotMapped);
        Assert.Equal(0u, guest.ExitReason);
    }

    [Fact]
    public void Gm23_MemoryFault_IsExit38AndSuccess_AndErrnosOfTheFileAreBare()
    {
        TestGuest guest = Private(out int gmem, "GM23");
        guest.Vm.AddSlot(1, Gpa + 0x10_0000, 1, guest.Vm.Vmm.MapFilled(1));
        guest.Vm.SetPrivate(Gpa + 0x10_0000, 1);
        CallReport run = AssertOk(guest.Run(TestGuest.Fetch(Gpa + 0x10_0000)));
        Assert.Equal((0L, 38u, (8UL, Gpa + 0x10_0000, 4096UL)), (run.Value, guest.ExitReason, guest.MemoryFault));
        AssertOk(guest.Vm.Vmm.Close(gmem));
        AssertRefused(guest.Run(TestGuest.Fetch(Gpa)), Errno.EFAULT, GuestMemfd.FileGone);
        Assert.Equal(0u, guest.ExitReason);
    }

    [Fact]
    public void MemoryFailure_UnmapsAndPoisons_ButIn2023KillsTheTaskInstead()
    {
        TestGuest guest = Private(out int gmem, K72);
        guest.Write(Gpa, 1);
        ulong seq = guest.Vm.Seq;
        GuestMemfd file = guest.Vm.Vmm.Gmem(gmem);
        Assert.False(file.ErrorFolio(TestHost.NewThread(guest.Vm.Vmm), 3));
        Assert.True(file.ErrorFolio(TestHost.NewThread(guest.Vm.Vmm), 0));
        Assert.Equal((seq + 1, false), (guest.Vm.Seq, Mapped(guest, 0)));
        AssertRefused(guest.Run(TestGuest.Fetch(Gpa)), Errno.EHWPOISON, GuestMemfd.Poisoned);
        Assert.Equal((39u, 8UL), (guest.ExitReason, guest.MemoryFault.Flags));

        TestGuest old = Private(out int oldGmem, "GM23");
        old.Write(Gpa, 1);
        KTask task = TestHost.NewThread(old.Vm.Vmm);
        Assert.True(old.Vm.Vmm.Gmem(oldGmem).ErrorFolio(task, 0));
        Assert.Equal((true, true), (task.SignalPending, Mapped(old, 0)));
        AssertOk(old.Vm.TryDeleteSlot(0));
        old.Vm.AddGmemSlot(0, Gpa, 4, oldGmem);
        Assert.Equal([1], old.Read(Gpa));
    }

    private static Errno PreFault(KTask thread, TestGuest guest, ulong page)
    {
        var range = new kvm_pre_fault_memory { gpa = Gpa + (page << 12), size = 4096 };
        return thread.TryIoctl(guest.Fd, KvmIoctl.KVM_PRE_FAULT_MEMORY, ref range);
    }

    private static bool Mapped(TestGuest guest, ulong page) => guest.Leaf(Gpa + (page << 12)) is not null;

    private TestGuest Private(out int gmem, string profile)
    {
        TestVm vm = Boot(profile).Vmm.CreateVm(T);
        gmem = vm.CreateGmem(4);
        vm.AddGmemSlot(0, Gpa, 4, gmem);
        vm.SetPrivate(Gpa, 4);
        return new TestGuest(vm);
    }
}
