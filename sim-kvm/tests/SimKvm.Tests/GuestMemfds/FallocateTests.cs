using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Tests.Support;
using SimKvm.Userspace;
using SimMachine;
using Xunit;

namespace SimKvm.Tests;

/// <summary>fallocate on a guest_memfd: the VFS's checks, the file's, allocation and punching (kvm-guest-memory.md 4.2, 4.3).</summary>
public sealed class FallocateTests : KvmTest
{
    private const uint Keep = Vfs.KeepSize;
    private const uint Punch = Vfs.KeepSize | Vfs.PunchHole;

    private static readonly CheckTable<FallocateCall> Table = new(
        new Check<FallocateCall>("fd", Errno.EBADF, FdTable.NotOpen, call => call.Fd = 999) { Tags = "fd" },
        new Check<FallocateCall>("vfs length 0", Errno.EINVAL, Vfs.BadRange, call => call.Len = 0) { Tags = "len" },
        new Check<FallocateCall>("vfs length negative", Errno.EINVAL, Vfs.BadRange, call => call.Len = long.MinValue) { Tags = "len" },
        new Check<FallocateCall>("vfs offset negative", Errno.EINVAL, Vfs.BadRange, call => call.Offset = -4096) { Tags = "offset" },
        new Check<FallocateCall>("vfs unknown mode", Errno.EOPNOTSUPP, Vfs.BadMode, call => call.Mode |= 0x100) { Tags = "mode" },
        new Check<FallocateCall>("vfs punch without keep", Errno.EOPNOTSUPP, Vfs.BadMode, call => call.Mode = Vfs.PunchHole) { Tags = "mode" },
        new Check<FallocateCall>("vfs no regular file", Errno.ENODEV, KernelFile.NoFallocate, call => call.Fd = call.Vm.Fd) { Tags = "fd" },
        new Check<FallocateCall>("vfs too big", Errno.EFBIG, Vfs.TooBig, call => call.Offset |= long.MaxValue & ~0xfff) { Tags = "offset fd" },
        new Check<FallocateCall>("1 keep size missing", Errno.EOPNOTSUPP, GuestMemfd.UnsupportedMode, call => call.Mode = 0) { Tags = "mode" },
        new Check<FallocateCall>("2 other mode", Errno.EOPNOTSUPP, GuestMemfd.UnsupportedMode, call => call.Mode |= 0x10) { Tags = "mode" },
        new Check<FallocateCall>("3 offset alignment", Errno.EINVAL, GuestMemfd.UnalignedRange, call => call.Offset |= 0x800),
        new Check<FallocateCall>("3 length alignment", Errno.EINVAL, GuestMemfd.UnalignedRange, call => call.Len |= 0x800) { Tags = "len" },
        new Check<FallocateCall>("allocate behind the end", Errno.EINVAL, GuestMemfd.BeyondSize, call => call.Offset |= 15 * 4096) { Tags = "offset" });

    public static TheoryData<string, string> Singles => Table.Singles();

    public static TheoryData<string, string, string> Pairs => Table.Pairs();

    [Theory]
    [MemberData(nameof(Singles))]
    public void Fallocate_OneCheckViolated_IsRefusedAndChangesNothing(string profile, string check)
    {
        TestHost host = Boot(profile);
        var call = new FallocateCall(host);
        Table[check].Violate(call);
        AssertRefusedUnchanged(host, call.Issue, Table[check].Errno, Table[check].Rule);
    }

    [Theory]
    [MemberData(nameof(Pairs))]
    public void Fallocate_TwoChecksViolated_AnswersTheFirst(string profile, string first, string second)
    {
        TestHost host = Boot(profile);
        var call = new FallocateCall(host);
        Table[second].Violate(call);
        Table[first].Violate(call);
        AssertRefusedUnchanged(host, call.Issue, Table[first].Errno, Table[first].Rule);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void Allocate_MakesWhatIsMissing_AndNothingElse(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
        int gmem = vm.AddPrivateMemory(0x100000, 16);
        ulong seq = vm.Seq;
        long frames = host.Machine.AllocatedPages;
        AssertOk(host.Vmm.Process.Fallocate(gmem, Keep, 4096, 2 * 4096));
        AssertOk(host.Vmm.Process.Fallocate(gmem, Keep, 0, 16 * 4096));
        Assert.Equal(frames + 16, host.Machine.AllocatedPages);
        Assert.Equal(seq, vm.Seq);
        for (ulong index = 0; index < 16; index++)
        {
            Assert.True(host.Vmm.Gmem(gmem).Inode.TryGet(index, out Folio folio));
            Assert.False(folio.Uptodate);
        }
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void Allocate_UpToTheEnd_Succeeds_AndOnePageMoreFails(string profile)
    {
        TestHost host = Boot(profile);
        int gmem = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM).CreateGmem(16);
        AssertOk(host.Vmm.Process.Fallocate(gmem, Keep, 15 * 4096, 4096));
        AssertRefusedUnchanged(host, () => host.Vmm.Process.Fallocate(gmem, Keep, 15 * 4096, 2 * 4096), Errno.EINVAL, GuestMemfd.BeyondSize);
        AssertRefusedUnchanged(host, () => host.Vmm.Process.Fallocate(gmem, Keep, 16 * 4096, 4096), Errno.EINVAL, GuestMemfd.BeyondSize);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void Allocate_WithASignalPending_IsEintrBeforeTheFirstPage(string profile)
    {
        TestHost host = Boot(profile);
        int gmem = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM).CreateGmem(16);
        host.Machine.Baton = InterposingBaton.Signal("gmem allocate", 1);
        AssertRefusedUnchanged(host, () => host.Vmm.Process.Fallocate(gmem, Keep, 0, 16 * 4096), Errno.EINTR, GuestMemfd.Interrupted);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void Allocate_OutOfMemory_KeepsWhatWasMade(string profile)
    {
        TestHost host = Boot(profile, new MachineConfig { MemoryBytes = 8 * 4096 });
        int gmem = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM).CreateGmem(16);
        AssertRefused(host.Vmm.Process.Fallocate(gmem, Keep, 0, 16 * 4096), Errno.ENOMEM, GuestMemfd.NoMemory);
        Assert.Equal(8, host.Machine.AllocatedPages);
        Assert.Equal(7UL, host.Vmm.Gmem(gmem).Inode.CountPages());
        AssertOk(host.Vmm.Process.Fallocate(gmem, Punch, 0, 16 * 4096));
        Assert.Equal(1, host.Machine.AllocatedPages);
    }

    [Theory]
    [InlineData(0, 16 * 4096)]
    [InlineData(16 * 4096, 4096)]
    [InlineData(0x7fff_ffff_ffff_0000, 0xf000)]
    public void PunchHole_WhereNothingIs_Succeeds(long offset, long len)
    {
        TestHost host = Boot();
        int gmem = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM).CreateGmem(16);
        string before = host.Snapshot();
        AssertOk(host.Vmm.Process.Fallocate(gmem, Punch, offset, len));
        Assert.Equal(before, host.Snapshot());
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void PunchHole_FreesThePagesOfItsRange_AndOnlyThose(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
        int gmem = vm.AddPrivateMemory(0x100000, 16);
        AssertOk(host.Vmm.Process.Fallocate(gmem, Keep, 0, 16 * 4096));
        long frames = host.Machine.AllocatedPages;
        AssertOk(host.Vmm.Process.Fallocate(gmem, Punch, 4 * 4096, 3 * 4096));
        Assert.Equal(frames - 3, host.Machine.AllocatedPages);
        Assert.True(host.Vmm.Gmem(gmem).Inode.TryGet(3, out _));
        Assert.False(host.Vmm.Gmem(gmem).Inode.TryGet(4, out _));
        Assert.True(host.Vmm.Gmem(gmem).Inode.TryGet(7, out _));
        // Attributes and the binding stay.
        Assert.Equal(16UL, vm.Describe().Attributes.Single().Count);
        Assert.True(vm.Describe().Slots.Single().GmemBound);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void PunchHole_AdvancesSeq_OnlyWhereASlotIsBound(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
        int gmem = vm.CreateGmem(16);
        vm.AddGmemSlot(0, 0x100000, 4, gmem, 4 * Vmm.Page);
        AssertOk(host.Vmm.Process.Fallocate(gmem, Punch, 0, 4 * 4096));
        AssertOk(host.Vmm.Process.Fallocate(gmem, Punch, 8 * 4096, 8 * 4096));
        Assert.Equal(0UL, vm.Seq);
        AssertOk(host.Vmm.Process.Fallocate(gmem, Punch, 7 * 4096, 4096));
        Assert.Equal(1UL, vm.Seq);
        AssertOk(host.Vmm.Process.Fallocate(gmem, Punch, 0, 16 * 4096));
        Assert.Equal(2UL, vm.Seq);
    }

    // Kvm-guest-memory.md 1.5, the row of punch hole, with the gfns of two slots that are bound crosswise.
    [Theory]
    [MemberData(nameof(Profiles))]
    public void PunchHole_TakesItsStepsInTheKernelsOrder(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
        int gmem = vm.CreateGmem(16);
        vm.AddGmemSlot(0, 0x900000, 8, gmem, 0);
        vm.AddGmemSlot(1, 0x100000, 8, gmem, 8 * Vmm.Page);
        AssertOk(host.Vmm.Process.Fallocate(gmem, Keep, 9 * 4096, 4096));
        ulong step = host.Machine.Journal.Steps + 1;
        AssertOk(host.Vmm.Process.Fallocate(gmem, Punch, 6 * 4096, 4 * 4096));
        Assert.Equal(
            [
                "lock invalidate_lock",
                "lock kvm->mmu_lock", "mmu invalidate begin",
                "mmu invalidate range add", "mmu unmap 0x906-0x908",
                "mmu invalidate range add", "mmu unmap 0x100-0x102",
                "unlock kvm->mmu_lock",
                "gmem truncate",
                "lock folio lock", "gmem free hook", "unlock folio lock",
                "lock kvm->mmu_lock", "mmu invalidate end", "unlock kvm->mmu_lock",
                "unlock invalidate_lock",
            ],
            host.Machine.Journal.Read(step).Select(record => record.Label.Name == "mmu unmap" ? $"mmu unmap 0x{record.A:x}-0x{record.B:x}" : record.Label.Name));
    }

    private sealed class FallocateCall
    {
        public FallocateCall(TestHost host)
        {
            Vm = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
            Fd = Vm.CreateGmem(16);
        }

        public TestVm Vm { get; }

        public int Fd { get; set; }

        public uint Mode { get; set; } = Keep;

        public long Offset { get; set; }

        public long Len { get; set; } = 2 * 4096;

        public CallReport Issue() => Vm.Vmm.Process.Fallocate(Fd, Mode, Offset, Len);
    }
}
