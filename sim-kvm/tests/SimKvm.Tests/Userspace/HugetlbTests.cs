using SimKvm.Abi;
using SimKvm.Tests.Support;
using SimKvm.Userspace;
using SimMachine.Addressing;
using Xunit;

namespace SimKvm.Tests;

/// <summary>Huge pages of the host: MAP_HUGETLB, MFD_HUGETLB, and the stage-2 leaves that guests get from them.</summary>
public sealed class HugetlbTests : KvmTest
{
    private const uint ReadWrite = Vmm.ProtRead | Vmm.ProtWrite;
    private const uint MapHugetlb = 0x4_0000, MapFixed = 0x10, MapNoReserve = 0x4000;
    private const uint Huge2M = 21u << 26, Huge1G = 30u << 26;
    private const uint Anonymous = Vmm.MapPrivate | Vmm.MapAnonymous | MapHugetlb;
    private const ulong TwoMib = 2UL << 20;
    private const ulong OneGib = 1UL << 30;

    // Size of the mapping and flags; the level that a guest's store maps.
    public static TheoryData<ulong, uint, PageLevel> Levels => new()
    {
        { OneGib, Anonymous | Huge1G, PageLevel.Page1G },
        { OneGib, Anonymous | Huge2M, PageLevel.Page2M },
        { OneGib, Anonymous, PageLevel.Page2M },
        { OneGib, Vmm.MapShared | Vmm.MapAnonymous | MapHugetlb | Huge1G, PageLevel.Page1G },
        { OneGib, Vmm.MapPrivate | Vmm.MapAnonymous, PageLevel.Page4K },
    };

    [Theory]
    [MemberData(nameof(Levels))]
    public void SlotOnHugePages_IsMappedByThem(ulong size, uint flags, PageLevel level)
    {
        TestVm vm = Host().Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM);
        ulong memory = Map(vm.Vmm, size, flags);
        // Without huge pages the address is not congruent, which 4K does not mind.
        vm.AddSlot(0, OneGib, size >> 12, memory);
        var guest = new TestGuest(vm);
        guest.Write(OneGib + 0x5123, 7);
        Assert.Equal(level, guest.Leaf(OneGib + 0x5000)!.Value.Level);
        Assert.Equal(7, vm.Vmm.Load(memory + 0x5123, 1)[0]);
        vm.Vmm.Process.Host.CheckInvariants();
    }

    [Fact]
    public void DirtyLog_SplitsAGigabyteIntoPages_AndItComesBackWithout()
    {
        TestVm vm = Host().Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM);
        ulong memory = Map(vm.Vmm, OneGib, Anonymous | Huge1G);
        vm.AddSlot(0, OneGib, OneGib >> 12, memory);
        var guest = new TestGuest(vm);
        guest.Write(OneGib, 1);
        vm.AddSlot(0, OneGib, OneGib >> 12, memory, KvmMem.LOG_DIRTY_PAGES);
        guest.Write(OneGib + 0x3000, 1);
        Assert.Equal((PageLevel.Page4K, true), (guest.Leaf(OneGib + 0x3000)!.Value.Level, guest.Leaf(OneGib + 0x3000)!.Value.Writable));
        Assert.False(guest.Leaf(OneGib + 0x4000)!.Value.Writable);
    }

    [Fact]
    public void PunchHoleInHugeMemfd_TakesTheLeafAway()
    {
        TestHost host = Host();
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM);
        int memfd = Vmm.Must(host.Vmm.Process.MemfdCreate("guest", 4 | Huge2M));
        AssertOk(host.Vmm.Process.Ftruncate(memfd, (long)(2 * TwoMib)));
        ulong memory = (ulong)AssertOk(host.Vmm.Process.Mmap(0, 2 * TwoMib, ReadWrite, Vmm.MapShared, memfd, 0)).Value;
        vm.AddSlot(0, TwoMib, 1024, memory);
        var guest = new TestGuest(vm);
        guest.Write(TwoMib, 1);
        guest.Write(2 * TwoMib, 2);
        AssertOk(host.Vmm.Process.Fallocate(memfd, 3, 0, (long)TwoMib));
        Assert.Null(guest.Leaf(TwoMib));
        Assert.Equal(PageLevel.Page2M, guest.Leaf(2 * TwoMib)!.Value.Level);
        Assert.Equal([0], guest.Read(TwoMib));
        Assert.Equal([2], guest.Read(2 * TwoMib));
    }

    [Fact]
    public void Mapping_ReservesItsPages_AndGivesThemBack()
    {
        TestHost host = Host(pages2M: 3);
        ulong two = Map(host.Vmm, 2 * TwoMib, Anonymous);
        AssertRefused(host.Vmm.Process.Mmap(0, 2 * TwoMib, ReadWrite, Anonymous, -1, 0), Errno.ENOMEM, HugetlbFile.NoPages);
        Map(host.Vmm, TwoMib, Anonymous);
        // Whoever reserved nothing finds nothing.
        ulong poor = Map(host.Vmm, TwoMib, Anonymous | MapNoReserve);
        CallReport store = host.Vmm.Process.Write(poor, new byte[1]);
        Assert.Equal(Signal.BusAdrErr(poor), store.Signal);
        host.Vmm.Store(two, new byte[] { 1 });
        AssertOk(host.Vmm.Process.Munmap(two, 2 * TwoMib));
        host.Vmm.Store(poor, new byte[] { 1 });
        HugetlbPool pool = host.Host.Hugetlb.Pool2M;
        Assert.Equal((3UL, 2UL, 1UL), (pool.Total, pool.Free, pool.Reserved));
    }

    // What is asked of a mapping of two pages of 2M.
    public static TheoryData<string, Errno> Cuts => new()
    {
        { "munmap 4096 of it", Errno.EINVAL },
        { "munmap a page of it", Errno.OK },
        { "mprotect 4096 of it", Errno.EINVAL },
        { "mprotect a page of it", Errno.OK },
        { "map over 4096 of it", Errno.EINVAL },
        { "dontneed in the middle of a page", Errno.EINVAL },
        { "free", Errno.EINVAL },
        { "grow", Errno.EINVAL },
        { "lock 4096 of it", Errno.OK },
    };

    [Theory]
    [MemberData(nameof(Cuts))]
    public void HugeMapping_IsCutBetweenItsPagesOnly(string what, Errno errno)
    {
        TestHost host = Host();
        Process process = host.Vmm.Process;
        ulong at = Map(host.Vmm, 2 * TwoMib, Anonymous);
        host.Vmm.Store(at + TwoMib, new byte[] { 9 });
        CallReport report = what switch
        {
            "munmap 4096 of it" => process.Munmap(at, 4096),
            "munmap a page of it" => process.Munmap(at, TwoMib),
            "mprotect 4096 of it" => process.Mprotect(at + 4096, 4096, Vmm.ProtRead),
            "mprotect a page of it" => process.Mprotect(at, TwoMib, Vmm.ProtRead),
            "map over 4096 of it" => process.Mmap(at + 4096, 4096, ReadWrite, Vmm.MapPrivate | Vmm.MapAnonymous | MapFixed, -1, 0),
            "dontneed in the middle of a page" => process.Madvise(at + 4096, TwoMib, 4),
            "free" => process.Madvise(at, TwoMib, 8),
            "grow" => process.Mremap(at, TwoMib, 2 * TwoMib + 1, 1, 0),
            _ => process.Mlock(at + 4096, 4096),
        };
        Assert.Equal(errno, report.Errno);
        Assert.Equal(9, host.Vmm.Load(at + TwoMib, 1)[0]);
        host.Host.CheckInvariants();
    }

    // Flags of mmap and a descriptor: 0 for none, 1 for a memfd of 4K, 2 for one of 2M.
    [Theory]
    [InlineData(Anonymous | (16u << 26), 0, 0ul, Errno.EINVAL)]
    [InlineData(Vmm.MapShared | MapHugetlb, 1, 0ul, Errno.EINVAL)]
    [InlineData(Vmm.MapShared | MapHugetlb, 2, 0ul, Errno.OK)]
    [InlineData(Vmm.MapShared, 2, 4096ul, Errno.EINVAL)]
    [InlineData(Vmm.MapPrivate, 2, 0ul, Errno.EINVAL)]
    public void Mmap_OfHugePages_WantsTheRightFileAndOffset(uint flags, int file, ulong offset, Errno errno)
    {
        TestHost host = Host();
        int fd = file == 0 ? -1 : Vmm.Must(host.Vmm.Process.MemfdCreate("m", file == 1 ? 0u : 4u));
        Assert.Equal(errno, host.Vmm.Process.Mmap(0, TwoMib, ReadWrite, flags, fd, offset).Errno);
    }

    [Theory]
    [InlineData(4u | (16u << 26), Errno.ENODEV)]
    [InlineData(Huge2M, Errno.EINVAL)]
    [InlineData(4u | 2 | Huge1G, Errno.OK)]
    public void MemfdCreate_OfHugePages_KnowsTwoSizes(uint flags, Errno errno) =>
        Assert.Equal(errno, Host().Vmm.Process.MemfdCreate("m", flags).Errno);

    [Fact]
    public void HugeMemfd_IsSizedInItsPages_ReadAndSealed_ButNotWritten()
    {
        TestHost host = Host();
        Process process = host.Vmm.Process;
        int fd = Vmm.Must(process.MemfdCreate("m", 4 | 2));
        AssertRefused(process.Ftruncate(fd, 4096), Errno.EINVAL, HugetlbFile.Unaligned);
        AssertOk(process.Ftruncate(fd, (long)TwoMib));
        AssertOk(process.Fallocate(fd, 0, 0, (long)TwoMib + 1));
        ulong memory = (ulong)AssertOk(process.Mmap(0, 2 * TwoMib, ReadWrite, Vmm.MapShared, fd, 0)).Value;
        host.Vmm.Store(memory + TwoMib, new byte[] { 3 });
        Assert.Equal((2 * TwoMib, (uint)TwoMib), (process.Fstat(fd, out FileStat stat).Succeeded ? stat.Size : 0, stat.BlockSize));
        AssertOk(process.Fcntl(fd, 1033, 2));
        AssertRefused(process.Ftruncate(fd, (long)TwoMib), Errno.EPERM, MemfdSeals.Sealed);
    }

    [Fact]
    public void PrivateHugePages_AreTheChildsOwnAfterFork()
    {
        TestHost host = Host();
        ulong at = Map(host.Vmm, TwoMib, Anonymous);
        host.Vmm.Store(at, new byte[] { 5 });
        AssertOk(host.Vmm.Process.Fork(out Process? child));
        AssertOk(child!.Write(at, new byte[] { 6 }));
        Assert.Equal(5, host.Vmm.Load(at, 1)[0]);
        host.Host.CheckInvariants();
        child.Exit();
    }

    [Fact]
    public void FailedHugePage_IsLostWhole()
    {
        TestHost host = Host();
        ulong at = Map(host.Vmm, TwoMib, Anonymous);
        host.Vmm.Store(at, new byte[] { 5 });
        // The failed frame stays out of use for ever, which the audit would take for a leak.
        host.Expect("memory failure");
        host.Vmm.Process.Madvise(at + 0x3000, 4096, 100);
        Assert.Equal(Signal.BusMceErrAr(at + 0x9000), host.Vmm.Process.Read(at + 0x9000, new byte[1]).Signal);
    }

    private TestHost Host(ulong pages2M = 600, ulong pages1G = 2) => Boot(kernel: new KernelConfig { Hugepages2M = pages2M, Hugepages1G = pages1G });

    private static ulong Map(Vmm vmm, ulong size, uint flags) => (ulong)AssertOk(vmm.Process.Mmap(0, size, ReadWrite, flags, -1, 0)).Value;
}
