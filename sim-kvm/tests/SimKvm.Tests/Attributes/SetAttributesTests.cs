using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Tests.Support;
using SimKvm.Userspace;
using SimMachine.Addressing;
using Xunit;

namespace SimKvm.Tests;

/// <summary>KVM_SET_MEMORY_ATTRIBUTES: the checks in order (kvm-guest-memory.md 6.1) and the effect (6.2).</summary>
public sealed class SetAttributesTests : KvmTest
{
    private static readonly CheckTable<SetCall> Table = new(
        new Check<SetCall>("1 copy-in", Errno.EFAULT, UserArg.CopyInFaulted, call => call.CutShort = true),
        new Check<SetCall>("2 flags", Errno.EINVAL, MemoryAttributes.FlagsAreReserved, call => call.Args.flags |= 1),
        new Check<SetCall>("2 flags, high", Errno.EINVAL, MemoryAttributes.FlagsAreReserved, call => call.Args.flags |= 1UL << 63),
        new Check<SetCall>("3 unsupported", Errno.EINVAL, MemoryAttributes.Unsupported, call => call.Args.attributes |= 1),
        new Check<SetCall>("3 unsupported, high", Errno.EINVAL, MemoryAttributes.Unsupported, call => call.Args.attributes |= 1UL << 63),
        new Check<SetCall>("4 size 0", Errno.EINVAL, MemoryAttributes.BadRange, call => call.Args.size = 0) { Tags = "size" },
        new Check<SetCall>("4 wraps", Errno.EINVAL, MemoryAttributes.BadRange, call => call.Args.address |= 0xffff_ffff_ffff_0000) { Tags = "size" },
        new Check<SetCall>("5 address alignment", Errno.EINVAL, MemoryAttributes.Unaligned, call => call.Args.address |= 0x10),
        new Check<SetCall>("5 size alignment", Errno.EINVAL, MemoryAttributes.Unaligned, call => call.Args.size |= 0x10) { Tags = "size" });

    public static TheoryData<string, string> Singles => Table.Singles();

    public static TheoryData<string, string, string> Pairs => Table.Pairs();

    public static TheoryData<string, VmType> TypesWithoutPrivateMemory =>
        ProfilesAndTypes(VmType.KVM_X86_DEFAULT_VM, VmType.KVM_X86_SEV_VM, VmType.KVM_X86_SEV_ES_VM);

    public static TheoryData<string, VmType> TypesWithPrivateMemory => ProfilesAndTypes(VmType.KVM_X86_SW_PROTECTED_VM, VmType.KVM_X86_SNP_VM);

    [Theory]
    [MemberData(nameof(Singles))]
    public void Set_OneCheckViolated_IsRefusedAndChangesNothing(string profile, string check)
    {
        TestHost host = Boot(profile);
        var call = new SetCall(host);
        Table[check].Violate(call);
        AssertRefusedUnchanged(host, call.Issue, Table[check].Errno, Table[check].Rule);
    }

    [Theory]
    [MemberData(nameof(Pairs))]
    public void Set_TwoChecksViolated_AnswersTheFirst(string profile, string first, string second)
    {
        TestHost host = Boot(profile);
        var call = new SetCall(host);
        Table[second].Violate(call);
        Table[first].Violate(call);
        AssertRefusedUnchanged(host, call.Issue, Table[first].Errno, Table[first].Rule);
    }

    [Theory]
    [MemberData(nameof(TypesWithPrivateMemory))]
    public void Private_IsKeptByGfn(string profile, VmType type)
    {
        TestVm vm = Boot(profile).Vmm.CreateVm(type);
        vm.SetPrivate(0x10000, 4);
        vm.SetShared(0x11000, 1);
        Assert.Equal([(0x10UL, 0x11UL), (0x12UL, 0x14UL)], vm.Describe().Attributes.Select(run => (run.Start, run.End)));
    }

    [Theory]
    [MemberData(nameof(TypesWithoutPrivateMemory))]
    public void Private_WithoutPrivateMemory_IsEinvalButZeroIsFine(string profile, VmType type)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(type);
        AssertRefusedUnchanged(host, () => vm.TrySetAttributes(0, 0x1000, 8), Errno.EINVAL, MemoryAttributes.Unsupported);
        AssertOk(vm.TrySetAttributes(0, 0x1000, 0));
        Assert.Empty(vm.Describe().Attributes);
    }

    [Theory]
    [InlineData(0xffff_ffff_ffff_0000, 0xf000, true)]
    [InlineData(0xffff_ffff_ffff_0000, 0x10000, false)]
    [InlineData(0, 0xffff_ffff_ffff_f000, true)]
    [InlineData(0x1000, 0xffff_ffff_ffff_f000, false)]
    public void LastPageOfAll_CannotBeNamed(ulong address, ulong size, bool fits)
    {
        TestVm vm = Boot().Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
        CallReport report = vm.TrySetAttributes(address, size, TestVm.Private);
        Assert.Equal(fits ? Errno.OK : Errno.EINVAL, report.Errno);
        Assert.Equal(fits ? size >> 12 : 0UL, vm.Describe().Attributes.Aggregate(0UL, (sum, run) => sum + run.Count));
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void WithoutASlot_NothingIsInvalidated(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
        vm.AddSlot(0, 0x100000, 16);
        ulong step = host.Machine.Journal.Steps + 1;
        vm.SetPrivate(0x200000, 16);
        Assert.Equal(0UL, vm.Seq);
        Assert.DoesNotContain(host.Machine.Journal.Read(step), record => record.Label.Name == "lock kvm->mmu_lock");
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void EachChangeOfASlotsRange_AdvancesSeqOnce(string profile)
    {
        TestVm vm = Boot(profile).Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
        vm.AddSlot(0, 0x100000, 16);
        vm.AddSlot(1, 0x110000, 16);
        vm.SetPrivate(0x100000, 32);
        Assert.Equal(1UL, vm.Seq);
        vm.SetPrivate(0x100000, 32);
        Assert.Equal(1UL, vm.Seq);
        // One page differs: the whole range is a change.
        vm.SetShared(0x110000, 1);
        vm.SetPrivate(0x100000, 32);
        Assert.Equal(3UL, vm.Seq);
        Assert.Equal(0, vm.Kernel.Mmu.InProgress);
    }

    // Kvm-guest-memory.md 1.5, the row of set attributes: two slots overlap, a third does not.
    [Theory]
    [MemberData(nameof(Profiles))]
    public void Change_TakesItsStepsInTheKernelsOrder(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
        vm.AddSlot(0, 0x100000, 16);
        vm.AddSlot(1, 0x110000, 16);
        vm.AddSlot(2, 0x900000, 16);
        ulong step = host.Machine.Journal.Steps + 1;
        vm.SetPrivate(0x108000, 16);
        Assert.Equal(
            [
                "ioctl enter",
                "lock kvm->slots_lock",
                "lock kvm->mmu_lock", "mmu invalidate begin",
                "mmu invalidate range add 0x108-0x110", "mmu unmap 0x108-0x110",
                "mmu invalidate range add 0x110-0x118", "mmu unmap 0x110-0x118",
                "unlock kvm->mmu_lock",
                "attributes stored 0x108-0x118",
                "lock kvm->mmu_lock", "mmu invalidate end", "unlock kvm->mmu_lock",
                "unlock kvm->slots_lock",
                "ioctl exit",
            ],
            host.Machine.Journal.Read(step).Select(record => record.Label.Name is "mmu unmap" or "mmu invalidate range add" or "attributes stored"
                ? $"{record.Label} 0x{record.A:x}-0x{record.B:x}"
                : record.Label.Name));
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void Change_TouchesNoPage(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
        int gmem = vm.CreateGmem(16);
        vm.AddGmemSlot(0, 0x100000, 16, gmem);
        AssertOk(host.Vmm.Process.Fallocate(gmem, 1, 0, 8 * 4096));
        long frames = host.Machine.AllocatedPages;
        vm.SetPrivate(0x100000, 16);
        vm.SetShared(0x100000, 16);
        Assert.Equal(frames, host.Machine.AllocatedPages);
    }

    [Fact]
    public void OneTebibyte_IsSetAtOnceAndReadBack()
    {
        TestVm vm = Boot().Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
        vm.SetPrivate(0, 1UL << 28);
        vm.SetShared(0x7000, 1);
        Assert.Equal([(0UL, 7UL), (8UL, 1UL << 28)], vm.Describe().Attributes.Select(run => (run.Start, run.End)));
    }

    // in_progress and the range, as a fault sees them from inside the change: at the store, everything added is in the range.
    [Theory]
    [MemberData(nameof(Profiles))]
    public void DuringTheChange_InvalidationIsInProgress(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
        vm.AddSlot(0, 0x100000, 16);
        int inProgress = -1;
        bool privateBefore = true;
        var baton = new InterposingBaton("mmu invalidate end", 1, _ => inProgress = vm.Kernel.Mmu.InProgress);
        host.Machine.Baton = baton;
        vm.SetPrivate(0x100000, 16);
        host.Machine.Baton = new InterposingBaton("mmu unmap", 1, _ => privateBefore = vm.Kernel.Attributes.IsPrivate(new Gfn(0x100)));
        vm.SetShared(0x100000, 16);
        host.Machine.Baton = null;
        Assert.Equal(1, inProgress);
        Assert.True(privateBefore);
        Assert.Equal(0, vm.Kernel.Mmu.InProgress);
    }

    private sealed class SetCall
    {
        public SetCall(TestHost host)
        {
            Vm = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
            Vm.AddSlot(0, 0x100000, 64);
            Args = new kvm_memory_attributes { address = 0x100000, size = 0x20000, attributes = TestVm.Private };
        }

        public TestVm Vm { get; }

        public bool CutShort { get; set; }

        public kvm_memory_attributes Args;

        public CallReport Issue() => CutShort
            ? Vm.Vmm.IoctlCutShort(Vm.Fd, KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES, Args)
            : Vm.Vmm.Ioctl(Vm.Fd, KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES, ref Args);
    }
}
