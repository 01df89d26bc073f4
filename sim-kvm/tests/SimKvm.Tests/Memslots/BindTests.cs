using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Tests.Support;
using SimMachine.Addressing;
using SimMachine.Measurement;
using Xunit;

namespace SimKvm.Tests;

/// <summary>Binding a guest_memfd to a slot, and undoing it: kvm-guest-memory.md 4.6. The order of its checks is in the table of slot creation.</summary>
public sealed class BindTests : KvmTest
{
    private const ulong Gpa = 0x100000;

    // Offset and size in pages of a second slot, where [4, 8) of 16 pages is bound: whether it is free.
    [Theory]
    [InlineData(0, 4, true)]
    [InlineData(8, 8, true)]
    [InlineData(0, 5, false)]
    [InlineData(7, 9, false)]
    [InlineData(5, 1, false)]
    [InlineData(4, 4, false)]
    [InlineData(0, 16, false)]
    public void Overlap_OfOnePage_IsRefused(ulong offset, ulong pages, bool free)
    {
        foreach ((string profile, Errno errno) in new[] { (K616, Errno.EINVAL), (K72, Errno.EEXIST) })
        {
            TestHost host = Boot(profile);
            TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
            int gmem = vm.CreateGmem(16);
            vm.AddGmemSlot(1, Gpa, 4, gmem, 4 * Vmm.Page);
            if (free)
            {
                vm.AddGmemSlot(2, 0x2000_0000, pages, gmem, offset * Vmm.Page);
            }
            else
            {
                AssertRefusedUnchanged(
                    host, () => vm.TrySetRegion2(2, KvmMem.GUEST_MEMFD, 0x2000_0000, pages, 0, gmem, offset * Vmm.Page), errno, GuestMemfd.AlreadyBound);
            }
        }
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void TwoFiles_MayBeBoundAtEqualOffsets(string profile)
    {
        TestVm vm = Boot(profile).Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
        vm.AddGmemSlot(1, Gpa, 16, vm.CreateGmem(16));
        vm.AddGmemSlot(2, 0x2000_0000, 16, vm.CreateGmem(16));
        Assert.All(vm.Describe().Slots, slot => Assert.True(slot.GmemBound));
    }

    // Offset and pages beyond 2^63: whether K616 takes them. The sum wraps to a negative number there, and that is less than the size.
    [Theory]
    [InlineData(0x7fff_ffff_ffff_f000, 1, true)]
    [InlineData(0x7fff_ffff_ffff_e000, 2, true)]
    [InlineData(0x7fff_ffff_ffff_e000, 1, false)]
    [InlineData(0x8000_0000_0000_0000, 1, false)]
    [InlineData(0xffff_ffff_ffff_e000, 1, false)]
    public void OffsetBelow2To63_WhoseSumWraps_IsTakenByOldKernelsOnly(ulong offset, ulong pages, bool takenByOld)
    {
        TestHost old = Boot(K616);
        TestVm vm = old.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
        int gmem = vm.CreateGmem(16);
        if (takenByOld)
        {
            vm.AddGmemSlot(1, Gpa, pages, gmem, offset);
            Assert.Equal(offset >> 12, vm.Describe().Slots.Single().GmemPgoff);
            vm.DeleteSlot(1);
        }
        else
        {
            AssertRefusedUnchanged(old, () => vm.TrySetRegion2(1, KvmMem.GUEST_MEMFD, Gpa, pages, 0, gmem, offset), Errno.EINVAL, GuestMemfd.BindRange);
        }

        TestHost now = Boot();
        vm = now.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
        gmem = vm.CreateGmem(16);
        AssertRefusedUnchanged(now, () => vm.TrySetRegion2(1, KvmMem.GUEST_MEMFD, Gpa, pages, 0, gmem, offset), Errno.EINVAL, GuestMemfd.BindRange);
    }

    [Fact]
    public void BindingBehindTheEnd_InOldKernels_IsGoneWithTheFile()
    {
        TestHost host = Boot(K616);
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SNP_VM);
        vm.Init2();
        vm.Start();
        int gmem = vm.CreateGmem(16);
        vm.AddGmemSlot(1, Gpa, 1, gmem, 0x7fff_ffff_ffff_f000);
        vm.SetPrivate(Gpa, 1);
        vm.Update(SnpPageType.ZERO, Gpa, 0, 1);
        ulong seq = vm.Seq;
        Assert.True(host.Vmm.Close(gmem).Succeeded);
        Assert.Equal(seq + 1, vm.Seq);
        Assert.False(vm.Describe().Slots.Single().GmemBound);
        // The audit that ends the test sees that the page, too, is gone.
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void LastClose_LeavesTheSlotWithoutBacking(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
        int gmem = vm.CreateGmem(16);
        vm.AddGmemSlot(1, Gpa, 16, gmem);
        AssertOk(host.Vmm.Close(gmem));

        Auditing.SlotDescription slot = vm.Describe().Slots.Single();
        Assert.Equal((false, KvmMem.GUEST_MEMFD), (slot.GmemBound, slot.Flags));
        AssertRefused(vm.TrySetRegion2(2, 0, Gpa, 1), Errno.EEXIST, Memslots.Overlaps);
        AssertRefused(vm.TrySetRegion2(1, KvmMem.GUEST_MEMFD, Gpa, 16, 0, vm.CreateGmem(16)), Errno.EINVAL, Memslots.GmemSlotImmutable);
        AssertOk(vm.TrySetRegion2(1, KvmMem.GUEST_MEMFD, 0, 0, 0, -1));
        Assert.Empty(vm.Describe().Slots);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void Delete_Unbinds(string profile)
    {
        TestVm vm = Boot(profile).Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
        int gmem = vm.CreateGmem(16);
        vm.AddGmemSlot(1, Gpa, 16, gmem);
        Assert.Equal(1, vm.Vmm.Gmem(gmem).BoundSlot(15)!.Id);
        vm.DeleteSlot(1);
        Assert.Null(vm.Vmm.Gmem(gmem).BoundSlot(15));
        vm.AddGmemSlot(2, 0x2000_0000, 16, gmem);
    }

    [Fact]
    public void BindingAMappableFile_MakesTheSlotGmemOnly_UnlessItOnlyStartsShared()
    {
        TestVm vm = Boot().Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM);
        for (uint flags = 0; flags < 4; flags++)
        {
            vm.AddGmemSlot(flags, Gpa + (flags * 0x100000), 16, vm.CreateGmem(16, flags));
            bool gmemOnly = (vm.Kernel.Memslots.Find(new Gfn((Gpa >> 12) + (flags * 0x100)))!.Flags & KvmMem.MEMSLOT_GMEM_ONLY) != 0;
            Assert.Equal((flags & kvm_create_guest_memfd.GUEST_MEMFD_FLAG_MMAP) != 0, gmemOnly);
        }
    }
}
