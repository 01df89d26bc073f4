using SimKvm.Kvm.Historical;
using SimKvm.Tests.Support;
using SimKvm.Userspace;
using Xunit;

namespace SimKvm.Tests.Historical;

/// <summary>The private files of UPM: creation, the size that is set once, fallocate, and what user space may not do (kvm-guest-memory.md 13.1, 13.2).</summary>
public sealed class PrivateFileTests : KvmTest
{
    public static TheoryData<string> Designs => ["UPM22", "UPM22-v5", "RM22"];

    [Theory]
    [InlineData(HistoricalVm.Inaccessible | 2u)]
    [InlineData(HistoricalVm.Inaccessible | 4u)]
    [InlineData(HistoricalVm.Inaccessible | 0x10u)]
    public void MemfdCreate_InaccessibleWithSealingHugePagesOrUnknownFlags_IsEinval(uint flags)
    {
        TestHost host = Boot("UPM22");
        AssertRefusedUnchanged(host, () => host.Vmm.Process.MemfdCreate("x", flags), Errno.EINVAL, InaccessibleMemfd.UnknownFlags);
    }

    [Fact]
    public void MemfdCreate_NameOf250Bytes_IsEinval()
    {
        Process process = Boot("UPM22").Vmm.Process;
        AssertOk(process.MemfdCreate(new string('n', 249), HistoricalVm.Inaccessible));
        AssertRefused(process.MemfdCreate(new string('n', 250), HistoricalVm.Inaccessible), Errno.EINVAL, InaccessibleMemfd.NameTooLong);
    }

    [Theory]
    [InlineData(1u)]
    [InlineData(uint.MaxValue)]
    public void MemfdRestricted_KnowsNoFlags(uint flags)
    {
        TestHost host = Boot("RM22");
        AssertRefusedUnchanged(host, () => host.Vmm.Process.MemfdRestricted(flags), Errno.EINVAL, RestrictedMem.UnknownFlags);
    }

    [Theory]
    [InlineData(K72)]
    [InlineData("GM23")]
    [InlineData("UPM22")]
    public void MemfdRestricted_IsASystemCallOfItsSeriesOnly(string profile) =>
        AssertRefused(Boot(profile).Vmm.Process.MemfdRestricted(0), Errno.ENOSYS, Vfs.NoSuchSyscall);

    [Theory]
    [MemberData(nameof(Designs))]
    public void Size_IsSetOnce_AndAligned(string profile)
    {
        TestHost host = Boot(profile);
        Process process = host.Vmm.Process;
        int fd = Vmm.Must(profile == "RM22" ? process.MemfdRestricted(0) : process.MemfdCreate("x", HistoricalVm.Inaccessible));
        AssertRefused(process.Ftruncate(fd, 4097), Errno.EINVAL, BackingStoreFile.SizeUnaligned);
        AssertOk(process.Ftruncate(fd, 0));
        AssertOk(process.Ftruncate(fd, 8192));
        AssertOk(process.Fstat(fd, out FileStat stat));
        Assert.Equal(8192UL, stat.Size);
        foreach (long again in new long[] { 0, 4096, 8192, 16384, 1 })
        {
            AssertRefused(process.Ftruncate(fd, again), Errno.EPERM, BackingStoreFile.SizeIsSet);
        }
    }

    [Theory]
    [InlineData("UPM22")]
    [InlineData("UPM22-v5")]
    [InlineData("UPM22-sev")]
    [InlineData("UPM22-tdx")]
    public void InaccessibleMemfd_IsNeitherReadNorWrittenNorMapped_BeforeAndAfterItHasPages(string profile)
    {
        var vm = new HistoricalVm(Boot(profile));
        int fd = vm.CreatePrivateFile(2);
        for (int round = 0; round < 2; round++)
        {
            AssertRefused(vm.Process.ReadFile(fd, new byte[1], 0), Errno.EPERM, InaccessibleMemfd.Inaccessible);
            AssertRefused(vm.Process.WriteFile(fd, new byte[1], 0), Errno.EPERM, InaccessibleMemfd.Inaccessible);
            AssertRefused(vm.Process.Mmap(0, 4096, 3, Vmm.MapShared, fd, 0), Errno.EPERM, InaccessibleMemfd.Inaccessible);
            AssertOk(vm.Fallocate(fd, HistoricalVm.Allocate, 0, 2));
        }
    }

    [Fact]
    public void RestrictedMem_HasNoReadWriteOrMmap()
    {
        var vm = new HistoricalVm(Boot("RM22"));
        int fd = vm.CreatePrivateFile(2);
        AssertRefused(vm.Process.ReadFile(fd, new byte[1], 0), Errno.ESPIPE, Vfs.NotSeekable);
        AssertRefused(vm.Process.WriteFile(fd, new byte[1], 0), Errno.ESPIPE, Vfs.NotSeekable);
        AssertRefused(vm.Process.Mmap(0, 4096, 3, Vmm.MapShared, fd, 0), Errno.ENODEV, KernelFile.NoMmap);
    }

    [Theory]
    [MemberData(nameof(Designs))]
    public void Fallocate_MakesAndRemovesPages(string profile)
    {
        var vm = new HistoricalVm(Boot(profile));
        int fd = vm.CreatePrivateFile(8);
        AssertOk(vm.Fallocate(fd, HistoricalVm.Allocate, 2, 4));
        Assert.Equal(4UL * 8, Blocks(vm, fd));
        AssertOk(vm.Fallocate(fd, HistoricalVm.Hole, 3, 1));
        Assert.Equal(3UL * 8, Blocks(vm, fd));
        AssertOk(vm.Fallocate(fd, HistoricalVm.Hole, 0, 1 << 20));
        Assert.Equal(0UL, Blocks(vm, fd));
    }

    [Theory]
    [MemberData(nameof(Designs))]
    public void Fallocate_Errors(string profile)
    {
        var vm = new HistoricalVm(Boot(profile));
        int fd = vm.CreatePrivateFile(2);
        AssertRefused(vm.Process.Fallocate(fd, 0, 1, 4096), Errno.EINVAL, BackingStoreFile.RangeUnaligned);
        AssertRefused(vm.Process.Fallocate(fd, 3, 0, 4095), Errno.EINVAL, BackingStoreFile.RangeUnaligned);
        AssertRefused(vm.Process.Fallocate(fd, 0x10, 0, 4096), Errno.EOPNOTSUPP, BackingStoreFile.UnsupportedMode);
        AssertRefused(vm.Fallocate(fd, HistoricalVm.Allocate, 1, 2), Errno.EPERM, BackingStoreFile.SizeIsSet);
    }

    [Theory]
    [MemberData(nameof(Designs))]
    public void Fallocate_InterruptedBySignal_TakesBackWhatItMade(string profile)
    {
        var vm = new HistoricalVm(Boot(profile));
        int fd = vm.CreatePrivateFile(8);
        AssertOk(vm.Fallocate(fd, HistoricalVm.Allocate, 1, 1));
        vm.Process.RaiseSignal(5);
        AssertRefused(vm.Fallocate(fd, HistoricalVm.Allocate, 0, 8), Errno.EINTR, Kvm.GuestMemfd.Interrupted);
        Assert.Equal(1UL * 8, Blocks(vm, fd));
    }

    [Theory]
    [MemberData(nameof(Designs))]
    public void Slot_KeepsTheFile_AfterItsDescriptorIsClosed(string profile)
    {
        var vm = new HistoricalVm(Boot(profile));
        int fd = vm.CreatePrivateFile(4);
        AssertOk(vm.Fallocate(fd, HistoricalVm.Allocate, 0, 4));
        vm.AddPrivateSlot(0, 0, 4, fd);
        long frames = vm.Host.Machine.AllocatedPages;
        AssertOk(vm.Vmm.Close(fd));
        Assert.Equal(frames, vm.Host.Machine.AllocatedPages);
        vm.DeleteSlot(0);
        Assert.Equal(frames - 4, vm.Host.Machine.AllocatedPages);
    }

    private static ulong Blocks(HistoricalVm vm, int fd)
    {
        AssertOk(vm.Process.Fstat(fd, out FileStat stat));
        return stat.Blocks;
    }
}
