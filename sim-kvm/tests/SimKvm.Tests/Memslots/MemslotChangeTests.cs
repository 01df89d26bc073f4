using SimKvm.Abi;
using SimKvm.Auditing;
using SimKvm.Kvm;
using SimKvm.Tests.Support;
using SimKvm.Userspace;
using Xunit;

namespace SimKvm.Tests;

/// <summary>What may be done to a slot that exists: kvm-guest-memory.md 5.1 rows 12 to 17 and 20, 5.2, 5.3.</summary>
public sealed class MemslotChangeTests : KvmTest
{
    private const ulong Gpa = 0x100000;
    private const ulong Uaddr = 0x1000_0000;

    private static readonly CheckTable<ChangeCall> Table = new(
        new Check<ChangeCall>("13 gmem flag", Errno.EINVAL, Memslots.GmemSlotImmutable, call => call.Region.flags |= KvmMem.GUEST_MEMFD) { Tags = "readonly" },
        new Check<ChangeCall>("14 uaddr", Errno.EINVAL, Memslots.ChangeRefused, call => call.Region.userspace_addr += Vmm.Page),
        new Check<ChangeCall>("14 size", Errno.EINVAL, Memslots.ChangeRefused, call => call.Region.memory_size += Vmm.Page),
        new Check<ChangeCall>("14 read-only", Errno.EINVAL, Memslots.ChangeRefused, call => call.Region.flags |= KvmMem.READONLY) { Tags = "readonly" },
        new Check<ChangeCall>("17 overlap", Errno.EEXIST, Memslots.Overlaps, call => call.Region.guest_phys_addr |= 0x4000_0000) { Tags = "gpa" },
        new Check<ChangeCall>("20 maximum gpa", Errno.EINVAL, Memslots.BeyondMaxGfn, call => call.Region.guest_phys_addr |= 1UL << 48) { Tags = "gpa" });

    public static TheoryData<string, string> Singles => Table.Singles();

    public static TheoryData<string, string, string> Pairs => Table.Pairs();

    // What deleting checks on its way, though the deleted slot needs none of it.
    public static TheoryData<string, uint, uint, ulong, ulong, string> BadDeletes
    {
        get
        {
            var data = new TheoryData<string, uint, uint, ulong, ulong, string>();
            foreach (string profile in new[] { K616, K72 })
            {
                data.Add(profile, 1u, 8u, 0, 0, Memslots.BadFlags.Id);
                data.Add(profile, 1u, 0u, 0x10, 0, Memslots.GpaUnaligned.Id);
                data.Add(profile, 1u, 0u, 0, 0x10, Memslots.BadUserspaceAddr.Id);
                data.Add(profile, 1u, 0u, 0, 0xffff_8000_0000_0000, Memslots.BadUserspaceAddr.Id);
                data.Add(profile, 2u, 0u, 0, 0, Memslots.NothingToDelete.Id);
                data.Add(profile, 0x10001u, 0u, 0, 0, Memslots.NothingToDelete.Id);
                data.Add(profile, 0x20001u, 0u, 0, 0, Memslots.BadAddressSpace.Id);
                data.Add(profile, 32764u, 0u, 0, 0, Memslots.IdTooLarge.Id);
            }
            return data;
        }
    }

    [Theory]
    [MemberData(nameof(Singles))]
    public void Change_OneCheckViolated_IsRefusedAndChangesNothing(string profile, string check)
    {
        TestHost host = Boot(profile);
        var call = new ChangeCall(host);
        Table[check].Violate(call);
        AssertRefusedUnchanged(host, call.Issue, Table[check].Errno, Table[check].Rule);
    }

    [Theory]
    [MemberData(nameof(Pairs))]
    public void Change_TwoChecksViolated_AnswersTheFirst(string profile, string first, string second)
    {
        TestHost host = Boot(profile);
        var call = new ChangeCall(host);
        Table[second].Violate(call);
        Table[first].Violate(call);
        AssertRefusedUnchanged(host, call.Issue, Table[first].Errno, Table[first].Rule);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void SameAgain_OfAPlainSlot_IsNoChange(string profile)
    {
        TestHost host = Boot(profile);
        var call = new ChangeCall(host);
        string before = host.Snapshot();
        AssertOk(call.Issue());
        Assert.Equal(before, host.Snapshot());
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void DirtyLogging_CanBeToggled(string profile)
    {
        var call = new ChangeCall(Boot(profile));
        call.Region.flags = KvmMem.LOG_DIRTY_PAGES;
        AssertOk(call.Issue());
        Assert.Equal(KvmMem.LOG_DIRTY_PAGES, Slot(call.Vm, 1).Flags);
        call.Region.flags = 0;
        AssertOk(call.Issue());
        Assert.Equal(0u, Slot(call.Vm, 1).Flags);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void Move_ToAFreeGpa_FreesTheOldOne(string profile)
    {
        var call = new ChangeCall(Boot(profile));
        call.Region.guest_phys_addr = 0x800000;
        AssertOk(call.Issue());
        Assert.Equal(0x800UL, Slot(call.Vm, 1).BaseGfn);
        call.Vm.AddSlot(9, Gpa, 16);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void Move_OntoItsOwnOldPlace_IsNoOverlap(string profile)
    {
        var call = new ChangeCall(Boot(profile));
        call.Region.guest_phys_addr = Gpa + Vmm.Page;
        AssertOk(call.Issue());
        Assert.Equal((Gpa / Vmm.Page) + 1, Slot(call.Vm, 1).BaseGfn);
    }

    [Theory]
    [MemberData(nameof(BadDeletes))]
    public void Delete_WithBadArguments_IsEinvalAndDeletesNothing(string profile, uint slot, uint flags, ulong gpa, ulong uaddr, string rule)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM);
        vm.AddSlot(1, Gpa, 16, Uaddr);
        string before = host.Snapshot();
        CallReport report = vm.TrySetRegion2(slot, flags, gpa, 0, uaddr);
        Assert.Equal(Errno.EINVAL, report.Errno);
        Assert.Equal(rule, report.Causes[0].Rule.Id);
        Assert.Equal(before, host.Snapshot());
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void Delete_IgnoresGpaAndUserspaceAddress(string profile)
    {
        TestVm vm = Boot(profile).Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM);
        vm.AddSlot(1, Gpa, 16, Uaddr);
        AssertOk(vm.TrySetRegion2(1, KvmMem.LOG_DIRTY_PAGES, 0x7000_0000, 0, 0x5000_0000));
        Assert.Empty(vm.Describe().Slots);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void Delete_KeepsAttributesAndPages(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
        int gmem = vm.AddPrivateMemory(Gpa, 16, slot: 1);
        AssertOk(host.Vmm.Process.Fallocate(gmem, 1, 0, 16 * 4096));
        long frames = host.Machine.AllocatedPages;
        vm.DeleteSlot(1);
        Assert.Equal(frames, host.Machine.AllocatedPages);
        Assert.Equal((0x100UL, 0x110UL, TestVm.Private), vm.Describe().Attributes.Select(run => (run.Start, run.End, run.Value)).Single());
        // The pages are free to be bound anew.
        vm.AddGmemSlot(2, 0x900000, 16, gmem);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void GmemSlot_WithTheFlagAgain_IsRefusedWhateverElseIsWrong(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
        int gmem = vm.CreateGmem(16);
        vm.AddGmemSlot(1, Gpa, 8, gmem);
        AssertRefusedUnchanged(host, () => vm.TrySetRegion2(1, KvmMem.GUEST_MEMFD, Gpa, 8, 0, gmem), Errno.EINVAL, Memslots.GmemSlotImmutable);
        AssertRefusedUnchanged(host, () => vm.TrySetRegion2(1, KvmMem.GUEST_MEMFD, Gpa, 8, 0, -1), Errno.EINVAL, Memslots.GmemSlotImmutable);
        AssertRefusedUnchanged(host, () => vm.TrySetRegion2(1, KvmMem.GUEST_MEMFD, 0x900000, 4, 0, gmem, 8 * Vmm.Page), Errno.EINVAL, Memslots.GmemSlotImmutable);
    }

    [Fact]
    public void GmemSlot_WithoutTheFlag_IsRefusedSince618()
    {
        TestHost host = Boot();
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
        vm.AddGmemSlot(1, Gpa, 8, vm.CreateGmem(16));
        AssertRefusedUnchanged(host, () => vm.TrySetRegion2(1, 0, Gpa, 8), Errno.EINVAL, Memslots.ChangeRefused);
        AssertRefusedUnchanged(host, () => vm.TrySetRegion2(1, 0, 0x900000, 8), Errno.EINVAL, Memslots.ChangeRefused);
    }

    [Theory]
    [InlineData(Gpa)]
    [InlineData(0x900000)]
    public void GmemSlot_WithoutTheFlag_IsUnboundInOldKernels(ulong gpa)
    {
        TestVm vm = Boot(K616).Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
        int gmem = vm.CreateGmem(16);
        vm.AddGmemSlot(1, Gpa, 8, gmem);
        AssertOk(vm.TrySetRegion2(1, 0, gpa, 8));
        SlotDescription slot = Slot(vm, 1);
        Assert.False(slot.GmemBound);
        Assert.Equal((0u, gpa / Vmm.Page), (slot.Flags, slot.BaseGfn));
        vm.AddGmemSlot(2, 0x2000_0000, 8, gmem);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void FailedCreate_AfterBinding_UndoesTheBinding(string profile)
    {
        TestVm vm = Boot(profile).Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
        int gmem = vm.CreateGmem(16);
        AssertRefused(vm.TrySetRegion2(1, KvmMem.GUEST_MEMFD, 1UL << 48, 16, 0, gmem), Errno.EINVAL, Memslots.BeyondMaxGfn);
        Assert.Null(vm.Vmm.Gmem(gmem).BoundSlot(0));
        vm.AddGmemSlot(1, Gpa, 16, gmem);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void FailedMove_LeavesTheSlotUsable(string profile)
    {
        var call = new ChangeCall(Boot(profile));
        call.Region.guest_phys_addr = 1UL << 48;
        AssertRefused(call.Issue(), Errno.EINVAL, Memslots.BeyondMaxGfn);
        Assert.Equal(0u, call.Vm.Kernel.Memslots.Find(new SimMachine.Addressing.Gfn(Gpa / Vmm.Page))!.Flags);
    }

    private static SlotDescription Slot(TestVm vm, int id) => vm.Describe().Slots.Single(slot => slot.Id == id);

    /// <summary>Slot 1, plain, is set again as it is; a GiB of gpas is another slot's.</summary>
    private sealed class ChangeCall
    {
        public ChangeCall(TestHost host)
        {
            Vm = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
            Vm.AddSlot(1, Gpa, 16, Uaddr);
            Vm.AddSlot(2, 0x4000_0000, 1UL << 18);
            Region = new kvm_userspace_memory_region2
            {
                slot = 1,
                guest_phys_addr = Gpa,
                memory_size = 16 * Vmm.Page,
                userspace_addr = Uaddr,
            };
        }

        public TestVm Vm { get; }

        public kvm_userspace_memory_region2 Region;

        public CallReport Issue() => Vm.TrySetRegion2(ref Region);
    }
}
