using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Tests.Support;
using SimMachine.Addressing;
using Xunit;

namespace SimKvm.Tests.Faults;

/// <summary>
/// At which level a gfn may be mapped (kvm-guest-memory.md 5.2, 6.3, 6.4, 8.4). Merged guest_memfd has folios of one page only, so what maps large is the guest_memfd of 2023 with
/// huge folios; lpage info is the same in all.
/// </summary>
public sealed class LevelTests : KvmTest
{
    private const VmType T = VmType.KVM_X86_SW_PROTECTED_VM;
    private const ulong TwoMib = 2UL << 20;
    private const ulong OneGib = 1UL << 30;

    // Slot gpa, pages, user address; gpa asked for; count at 2M and at 1G.
    public static TheoryData<ulong, ulong, ulong, ulong, uint, uint> Counts => new()
    {
        // Aligned on both sides.
        { OneGib, 1UL << 18, OneGib, OneGib, 0, 0 },
        { OneGib, 1UL << 18, 3 * OneGib, OneGib + 0x12_3000, 0, 0 },
        // Congruent modulo 2M only.
        { OneGib, 1UL << 18, OneGib + TwoMib, OneGib, 0, 1 },
        // Congruent modulo 4K only: all pages, in the middle too.
        { OneGib, 1UL << 18, OneGib + 0x1000, OneGib, 1, 1 },
        { OneGib, 1UL << 18, OneGib + 0x1000, OneGib + (7 * TwoMib), 1, 1 },
        // Head and tail that are not wholly inside; the middle is.
        { OneGib + 0x1000, 1024, OneGib + 0x1000, OneGib + 0x1000, 1, 1 },
        { OneGib + 0x1000, 1024, OneGib + 0x1000, OneGib + TwoMib, 0, 1 },
        { OneGib + 0x1000, 1024, OneGib + 0x1000, OneGib + (2 * TwoMib), 1, 1 },
        // Smaller than a huge page.
        { OneGib, 511, OneGib, OneGib, 1, 1 },
    };

    [Theory]
    [MemberData(nameof(Counts))]
    public void EdgesAndAlignment_ForbidALevel(ulong gpa, ulong pages, ulong uaddr, ulong at, uint count2M, uint count1G)
    {
        TestVm vm = Boot().Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM);
        vm.AddSlot(0, gpa, pages, uaddr);
        Assert.Equal((count2M, count1G), (Info(vm, at, PageLevel.Page2M).Count, Info(vm, at, PageLevel.Page1G).Count));
    }

    [Fact]
    public void Mixed_At1G_IsAllItsPages_AndWholeHugePagesInTheRangeAreClear()
    {
        TestVm vm = Boot().Vmm.CreateVm(T);
        vm.AddSlot(0, OneGib, 1UL << 18, OneGib);
        // Head and tail straddle, the middle page is wholly in the range.
        vm.SetPrivate(OneGib + TwoMib - 0x1000, 512 + 2);
        bool[] mixed = [.. Enumerable.Range(0, 4).Select(i => Info(vm, OneGib + ((ulong)i * TwoMib), PageLevel.Page2M).Mixed)];
        Assert.Equal([true, false, true, false], mixed);
        Assert.True(Info(vm, OneGib, PageLevel.Page1G).Mixed);
        vm.SetPrivate(OneGib, 1UL << 18);
        Assert.False(Info(vm, OneGib, PageLevel.Page1G).Mixed);
        Assert.False(Info(vm, OneGib, PageLevel.Page2M).Mixed);
        vm.SetShared(OneGib + OneGib - 0x1000, 1);
        Assert.True(Info(vm, OneGib, PageLevel.Page1G).Mixed);
    }

    [Fact]
    public void Mixed_IsAskedOfPagesWhollyInsideTheSlotOnly()
    {
        TestVm vm = Boot().Vmm.CreateVm(T);
        vm.AddSlot(0, OneGib + 0x1000, 511, OneGib + 0x1000);
        vm.SetPrivate(OneGib + 0x2000, 1);
        Assert.Equal(new LpageInfo(1, Mixed: false), Info(vm, OneGib + 0x2000, PageLevel.Page2M));
    }

    [Fact]
    public void SlotMadeAfterTheAttributes_KnowsThem()
    {
        TestVm vm = Boot().Vmm.CreateVm(T);
        vm.SetPrivate(OneGib + 0x5000, 1);
        vm.AddSlot(0, OneGib, 1024, OneGib);
        Assert.Equal((true, false), (Info(vm, OneGib, PageLevel.Page2M).Mixed, Info(vm, OneGib + TwoMib, PageLevel.Page2M).Mixed));
    }

    [Fact]
    public void Gm23_HugeFolio_IsMappedAt2M_AndUniformAgainAfterTheAttributesAre()
    {
        TestGuest guest = Huge(out _);
        guest.Write(OneGib + 0x3000, 1);
        Assert.Equal(PageLevel.Page2M, guest.Leaf(OneGib)!.Value.Level);

        // One shared page in it: mixed, so pages of 4K.
        guest.Vm.SetShared(OneGib + 0x5000, 1);
        Assert.Null(guest.Leaf(OneGib));
        Assert.Equal([1], guest.Read(OneGib + 0x3000));
        Assert.Equal(PageLevel.Page4K, guest.Leaf(OneGib + 0x3000)!.Value.Level);

        guest.Vm.SetPrivate(OneGib + 0x5000, 1);
        Assert.Equal([0], guest.Read(OneGib + 0x5000));
        Assert.Equal(PageLevel.Page2M, guest.Leaf(OneGib + 0x5000)!.Value.Level);
        Assert.Equal([1], guest.Read(OneGib + 0x3000));
    }

    [Fact]
    public void Gm23_HugeFolio_InASlotThatIsNotCongruent_IsMappedAt4K()
    {
        TestGuest guest = Huge(out _, uaddr: OneGib + 0x1000);
        guest.Write(OneGib + 0x3000, 1);
        Assert.Equal(PageLevel.Page4K, guest.Leaf(OneGib + 0x3000)!.Value.Level);
        Assert.Null(guest.Leaf(OneGib));
    }

    [Fact]
    public void Gm23_HoleInAHugeFolio_TakesTheLeafAwayWhole_AndKeepsTheOtherPages()
    {
        TestGuest guest = Huge(out int gmem);
        guest.Write(OneGib, 1);
        guest.Write(OneGib + 0x3000, 2);
        AssertOk(guest.Vm.Vmm.Process.Fallocate(gmem, 3, 0x3000, 4096));
        Assert.Null(guest.Leaf(OneGib + (TwoMib / 2)));
        Assert.Equal(511UL, guest.Vm.Vmm.Gmem(gmem).Inode.CountPages());
        Assert.Equal([1], guest.Read(OneGib));
        Assert.Equal([0], guest.Read(OneGib + 0x3000));
        Assert.Equal(PageLevel.Page4K, guest.Leaf(OneGib)!.Value.Level);
    }

    [Theory]
    [InlineData("K68")]
    [InlineData(K616)]
    [InlineData(K72)]
    public void MergedGuestMemfd_IsMappedAt4KAlways(string profile)
    {
        TestVm vm = Boot(profile).Vmm.CreateVm(T);
        vm.AddGmemSlot(0, OneGib, 512, vm.CreateGmem(512), uaddr: OneGib);
        vm.SetPrivate(OneGib, 512);
        var guest = new TestGuest(vm);
        guest.Write(OneGib, 1);
        Assert.Equal((PageLevel.Page4K, null), (guest.Leaf(OneGib)!.Value.Level, guest.Leaf(OneGib + 0x1000)));
    }

    // 6.3: no huge mapping may come into being around the ends of a changing range.
    [Theory]
    [InlineData("K611", 0, 0)]
    [InlineData(K616, 1, 1)]
    [InlineData(K72, 1, 1)]
    public void Straddlers_AreInvalidatedAtBothLevels_InNewerKernels(string profile, int at2M, int at1G)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(T);
        vm.AddSlot(0, OneGib, 1UL << 18, OneGib);
        (ulong, ulong)[] added = RangesOf(host, () => vm.SetPrivate(OneGib + 0x5000, 1));
        ulong gfn = OneGib >> 12;
        Assert.Contains((gfn + 5, gfn + 6), added);
        Assert.Equal((at2M, at1G), (added.Count(range => range == (gfn, gfn + 512)), added.Count(range => range == (gfn, gfn + (1 << 18)))));
    }

    [Fact]
    public void Straddlers_AreBothEnds_ButNotWhatIsMixedAlready_NorWhatLeavesTheSlot()
    {
        TestHost host = Boot();
        TestVm vm = host.Vmm.CreateVm(T);
        vm.AddSlot(0, OneGib, 2048, OneGib);
        ulong gfn = OneGib >> 12;
        Assert.Equal(
            [(gfn + 500, gfn + 1030), (gfn, gfn + 512), (gfn + 1024, gfn + 1536)],
            RangesOf(host, () => vm.SetPrivate(OneGib + (500UL << 12), 530)));
        // Now both are mixed; the 1G page was never inside the slot.
        Assert.Equal([(gfn + 500, gfn + 1030)], RangesOf(host, () => vm.SetShared(OneGib + (500UL << 12), 530)));
        Assert.Equal([(gfn + 512, gfn + 1024)], RangesOf(host, () => vm.SetPrivate(OneGib + TwoMib, 512)));
    }

    [Fact]
    public void FaultInTheStraddler_WaitsForTheChange_InNewerKernels()
    {
        foreach ((string profile, Errno errno) in new[] { (K616, Errno.EINTR), ("K611", Errno.OK) })
        {
            TestVm vm = Boot(profile).Vmm.CreateVm(T);
            vm.AddSlot(0, OneGib, 512, vm.Vmm.Map(512 * 2) + (TwoMib - 1) & ~(TwoMib - 1));
            var guest = new TestGuest(vm);
            Errno seen = Errno.EIO;
            guest.At("attributes stored", other =>
            {
                var range = new kvm_pre_fault_memory { gpa = OneGib, size = 4096 };
                seen = other.TryIoctl(guest.Fd, KvmIoctl.KVM_PRE_FAULT_MEMORY, ref range);
            });
            vm.SetPrivate(OneGib + 0x5000, 1);
            Assert.Equal(errno, seen);
        }
    }

    // An SNP guest's leaf is never larger than its RMP entry, which the launch makes 4K.
    [Fact]
    public void VendorLimit_OfAnSnpPage_IsItsRmpEntry()
    {
        TestVm vm = Boot().Vmm.CreateVm(VmType.KVM_X86_SNP_VM);
        vm.Init2();
        int gmem = vm.AddPrivateMemory(OneGib, 512);
        vm.Start();
        vm.Update(SimMachine.Measurement.SnpPageType.ZERO, OneGib, 0, 1);
        vm.Vmm.Gmem(gmem).Inode.TryGet(0, out Folio folio);
        Assert.Equal(PageLevel.Page4K, vm.Kernel.Backend.GmemMaxMappingLevel(folio.Pfn, isPrivate: true));
        Assert.Equal(PageLevel.Page1G, vm.Kernel.Backend.GmemMaxMappingLevel(folio.Pfn, isPrivate: false));
    }

    private static LpageInfo Info(TestVm vm, ulong gpa, PageLevel level)
    {
        var gfn = new Gfn(gpa >> 12);
        return vm.Kernel.Mmu.DisallowLpage(vm.Kernel.Memslots.Find(gfn) ?? vm.Kernel.Memslots.All.First(), gfn, level);
    }

    private static (ulong, ulong)[] RangesOf(TestHost host, Action body)
    {
        ulong step = host.Machine.Journal.Steps + 1;
        body();
        return [.. host.Machine.Journal.Read(step).Where(record => record.Label.Name == "mmu invalidate range add").Select(record => (record.A, record.B))];
    }

    private TestGuest Huge(out int gmem, ulong uaddr = OneGib)
    {
        TestVm vm = Boot("GM23").Vmm.CreateVm(T);
        gmem = vm.CreateGmem(512, kvm_create_guest_memfd.KVM_GUEST_MEMFD_ALLOW_HUGEPAGE);
        vm.AddGmemSlot(0, OneGib, 512, gmem, uaddr: uaddr);
        vm.SetPrivate(OneGib, 512);
        return new TestGuest(vm);
    }
}
