using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Kvm.Historical;
using SimKvm.Tests.Support;
using SimKvm.Userspace;
using SimKvm.Vendors.Amd;
using SimMachine.Amd;
using SimMachine.Measurement;
using Xunit;

namespace SimKvm.Tests.Historical;

/// <summary>
/// Seed 004: platforms differ in how an access says that it is private, and an SEV launch encrypts the payload where it lies, which an inaccessible file does not let happen.
/// </summary>
public sealed class Seed004Tests : KvmTest
{
    private const byte Payload = 0xb1;

    // fallocate after the launch: the payload was measured, and is not what the guest gets.
    [Fact]
    public void AllocatingAfterTheLaunch_ReplacesThePayload()
    {
        HistoricalVm vm = SnpVm("UPM22", out int fd, out ulong uaddr);
        vm.Vmm.Store(uaddr, Vmm.Content(Payload));
        Launch(vm);
        Assert.Equal(HashOf(Payload), Measured(vm, 0));

        vm.SetRegion(0, 1, isPrivate: true);
        AssertOk(vm.Fallocate(fd, HistoricalVm.Allocate, 0, 1));
        Memslot slot = vm.Vm.Kernel.Memslots.Find(default)!;
        Assert.True(slot.PrivateFile!.Inode!.TryGet(0, out Folio page));
        Assert.True(vm.Host.Machine.Rmp.TryRead(page.Pfn, out RmpState state));
        byte[] content = new byte[4096];
        vm.Host.Machine.HostRead(page.Pfn, 0, content);
        Assert.False(state.Assigned);
        Assert.Equal(new byte[4096], content);
    }

    // fallocate before the launch: nobody can put the payload there, and zeros are measured.
    [Fact]
    public void AllocatingBeforeTheLaunch_LeavesNoWayToWriteThePayload()
    {
        HistoricalVm vm = SnpVm("UPM22", out int fd, out ulong uaddr);
        vm.Vmm.Store(uaddr, Vmm.Content(Payload));
        AssertOk(vm.Fallocate(fd, HistoricalVm.Allocate, 0, 1));
        AssertRefused(vm.Process.WriteFile(fd, Vmm.Content(Payload), 0), Errno.EPERM, InaccessibleMemfd.Inaccessible);
        AssertRefused(vm.Process.Mmap(0, 4096, 3, Vmm.MapShared, fd, 0), Errno.EPERM, InaccessibleMemfd.Inaccessible);
        Launch(vm);
        Assert.Equal(HashOf(0), Measured(vm, 0));
    }

    // What has to be there for a page to be encrypted where it lies. Whatever it is, KVM answers EIO; the first cause says it.
    [Theory]
    [InlineData(0x2000UL, false)]
    [InlineData(0UL, true)]
    public void LaunchOfAPageThatIsNowhere_IsEio(ulong gpa, bool hasSlot)
    {
        HistoricalVm vm = SnpVm("UPM22", out _, out ulong uaddr);
        AssertOk(vm.Process.Munmap(uaddr, 2 * Vmm.Page));
        CallReport report = vm.Vm.TryUpdate(SnpPageType.NORMAL, gpa, 0, 1).Report;
        AssertRefused(report, Errno.EIO, hasSlot ? UserMemory.NotMapped : SevBackend.InPlaceNoSlot);
        Assert.Equal(hasSlot, report.Causes.Any(cause => cause.Rule == SevBackend.InPlaceNoPage));
        Assert.Equal(SevBackend.PopulateFailed, report.Causes[^1].Rule);
    }

    [Fact]
    public void ShmLock_PayloadIsWrittenBeforeTheLock_AndLaunchedInPlace()
    {
        HistoricalVm vm = SnpVm("UPM22-shm_lock", out int fd, out _);
        AssertOk(vm.Process.WriteFile(fd, Vmm.Content(Payload), 0));
        ulong mapping = (ulong)AssertOk(vm.Process.Mmap(0, 4096, 3, Vmm.MapShared, fd, 0)).Value;
        Assert.Equal(Vmm.Content(Payload), vm.Vmm.Load(mapping, 4096));
        AssertOk(vm.Process.MemfdShmLock(fd));
        Launch(vm);
        Assert.Equal(HashOf(Payload), Measured(vm, 0));

        AssertRefused(vm.Process.ReadFile(fd, new byte[1], 0), Errno.EPERM, InaccessibleMemfd.Locked);
        AssertRefused(vm.Process.WriteFile(fd, new byte[1], 0), Errno.EPERM, InaccessibleMemfd.Locked);
        AssertRefused(vm.Process.Mmap(0, 4096, 3, Vmm.MapShared, fd, 0), Errno.EPERM, InaccessibleMemfd.Locked);
        AssertRefused(vm.Process.Read(mapping, new byte[1]), Errno.EFAULT, InaccessibleMemfd.Locked);
        AssertOk(vm.Process.MemfdShmLock(fd));
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void ShmLock_MayComeBeforeOrAfterTheBinding(bool lockFirst)
    {
        var vm = new HistoricalVm(Boot("UPM22-shm_lock"));
        int fd = vm.CreatePrivateFile(1);
        AssertOk(vm.Process.WriteFile(fd, new byte[] { Payload }, 0));
        if (lockFirst)
        {
            AssertOk(vm.Process.MemfdShmLock(fd));
        }
        vm.AddPrivateSlot(0, 0, 1, fd);
        AssertOk(vm.Process.MemfdShmLock(fd));
        vm.SetRegion(0, 1, isPrivate: true);
        Assert.Equal(Payload, vm.Load(0, GuestAccess.Private));
    }

    [Fact]
    public void Shareable_PagesAreReadAndWritten_UntilTheyAreLaunched()
    {
        HistoricalVm vm = SnpVm("UPM22-shareable", out int fd, out _);
        AssertRefused(vm.Process.WriteFile(fd, Vmm.Content(Payload), 0), Errno.EPERM, InaccessibleMemfd.NotShareable);
        AssertOk(vm.Process.MemfdSetShareable(fd, 0, 2 * Vmm.Page, shareable: true));
        AssertRefused(vm.Process.Mmap(0, 4096, 3, Vmm.MapShared, fd, 0), Errno.EPERM, InaccessibleMemfd.Inaccessible);
        Assert.Equal(2 * 4096, AssertOk(vm.Process.WriteFile(fd, Enumerable.Repeat(Payload, 3 * 4096).ToArray(), 0)).Value);
        Launch(vm);
        Assert.Equal(HashOf(Payload), Measured(vm, 0));
        AssertRefused(vm.Process.ReadFile(fd, new byte[1], 0), Errno.EPERM, InaccessibleMemfd.NotShareable);
        AssertOk(vm.Process.ReadFile(fd, new byte[1], 4096));
    }

    [Theory]
    [InlineData("UPM22")]
    [InlineData("UPM22-shareable")]
    [InlineData("UPM22-pkvm")]
    public void ShmLock_IsAnOperationOfItsProfile(string profile)
    {
        var vm = new HistoricalVm(Boot(profile));
        AssertRefused(vm.Process.MemfdShmLock(vm.CreatePrivateFile(1)), Errno.EINVAL, InaccessibleMemfd.NoSuchOperation);
    }

    [Theory]
    [InlineData("UPM22", 0UL, 4096UL)]
    [InlineData("UPM22-shm_lock", 0UL, 4096UL)]
    [InlineData("UPM22-shareable", 1UL, 4096UL)]
    [InlineData("UPM22-shareable", 0UL, 0UL)]
    [InlineData("UPM22-shareable", 4096UL, 4096UL)]
    [InlineData("UPM22-shareable", ulong.MaxValue - 4095, 4096UL)]
    public void SetShareable_BadArguments_AreEinval(string profile, ulong offset, ulong len)
    {
        var vm = new HistoricalVm(Boot(profile));
        Assert.Equal(Errno.EINVAL, vm.Process.MemfdSetShareable(vm.CreatePrivateFile(1), offset, len, shareable: true).Errno);
    }

    // One state a page; the access must agree; private without a page is invalid.
    [Fact]
    public void Sev_PageIsPrivateSharedOrInvalid()
    {
        HistoricalVm vm = PlainVm("UPM22-sev", out int fd, out _);
        Assert.Equal(0x11, vm.Load(0, GuestAccess.Shared));
        Assert.Equal(38u, (uint)vm.Run(new GuestRead(0, 1, GuestAccess.Private)).Reason);

        vm.SetRegion(0, 1, isPrivate: true);
        foreach (GuestAccess access in new[] { GuestAccess.Private, GuestAccess.Shared })
        {
            GuestExit exit = vm.Run(new GuestRead(0, 1, access));
            Assert.Equal((38u, access == GuestAccess.Private ? 1UL : 0), ((uint)exit.Reason, exit.FaultFlags));
        }
        AssertOk(vm.Fallocate(fd, HistoricalVm.Allocate, 0, 1));
        Assert.Equal(0, vm.Load(0, GuestAccess.Private));
        Assert.Equal(38u, (uint)vm.Run(new GuestRead(0, 1, GuestAccess.Shared)).Reason);
        AssertOk(vm.Fallocate(fd, HistoricalVm.Hole, 0, 1));
        Assert.Equal(38u, (uint)vm.Run(new GuestRead(0, 1, GuestAccess.Private)).Reason);
    }

    // Two pages of one gfn, at the same time, without any conversion.
    [Fact]
    public void Tdx_AGfnHasTwoPages_AndEachAccessChooses()
    {
        HistoricalVm vm = PlainVm("UPM22-tdx", out _, out ulong uaddr);
        vm.Store(0, 0x22, GuestAccess.Private);
        vm.Store(0, 0x33, GuestAccess.Shared);
        Assert.Equal((0x22, 0x33), (vm.Load(0, GuestAccess.Private), vm.Load(0, GuestAccess.Shared)));
        Assert.Equal(0x33, vm.Vmm.Load(uaddr, 1)[0]);
    }

    // One page, private until the guest shares it, and the same page after.
    [Fact]
    public void Pkvm_TheGuestSharesInAdvance_AndThePageStays()
    {
        HistoricalVm vm = PlainVm("UPM22-pkvm", out int fd, out _);
        ulong mapping = (ulong)AssertOk(vm.Process.Mmap(0, 4096, 3, Vmm.MapShared, fd, 0)).Value;
        vm.Store(0, 0x44, GuestAccess.Unmarked);
        AssertRefused(vm.Process.Read(mapping, new byte[1]), Errno.EFAULT, InaccessibleMemfd.NotSharedByGuest);
        AssertRefused(vm.Process.ReadFile(fd, new byte[1], 0), Errno.EPERM, InaccessibleMemfd.NotSharedByGuest);
        Assert.Equal((38u, 0UL), vm.Run(new GuestRead(0, 1, GuestAccess.Shared)) is var fault ? ((uint)fault.Reason, fault.FaultFlags) : default);

        Assert.Equal(0UL, vm.Call(12, 0, 1, 0));
        Assert.Equal(0x44, vm.Vmm.Load(mapping, 1)[0]);
        Assert.Equal(0x44, vm.Load(0, GuestAccess.Shared));
        vm.Vmm.Store(mapping, new byte[] { 0x55 });
        Assert.Equal(0x55, vm.Load(0, GuestAccess.Unmarked));

        Assert.Equal(0UL, vm.Call(12, 0, 1, 0x10));
        AssertRefused(vm.Process.Write(mapping, new byte[1]), Errno.EFAULT, InaccessibleMemfd.NotSharedByGuest);
        Assert.Equal(0x55, vm.Load(0, GuestAccess.Private));
    }

    [Theory]
    [InlineData(1UL, 1UL)]
    [InlineData(0UL, 0UL)]
    [InlineData(0x1000UL, ulong.MaxValue)]
    public void Pkvm_BadHypercalls_AreKvmEinval(ulong gpa, ulong pages)
    {
        HistoricalVm vm = PlainVm("UPM22-pkvm", out _, out _);
        Assert.Equal(unchecked((ulong)-22L), vm.Call(12, gpa, pages, 0));
    }

    // The selftest RFC: a plain VM, whose guest marks a range, and user space that allocates and punches.
    [Fact]
    public void Selftest_APlainVmMarksItsPrivateRange_AndUserSpaceConverts()
    {
        var vm = new HistoricalVm(Boot("UPM22-selftest"), VmType.KVM_X86_DEFAULT_VM);
        int fd = vm.CreatePrivateFile(4);
        vm.AddPrivateSlot(0, 0, 4, fd, uaddr: vm.Vmm.MapFilled(4, 0x11));
        Assert.Equal(unchecked((ulong)-1000L), vm.Call(12, 0, 1, 0x100));
        AssertOk(vm.Vm.TryEnableCap(KvmCap.EXIT_HYPERCALL, 0, 1 << 12));

        Assert.Equal(0UL, vm.Call(12, 0x1000, 1, 0x100));
        Assert.Equal(0x11, vm.Load(0, GuestAccess.Unmarked));
        GuestExit exit = vm.Run(new GuestRead(0x1000, 1, GuestAccess.Unmarked));
        AssertRefused(exit.Report, Errno.EPERM, Mmu.FileDisagrees);
        Assert.Equal((KvmExit.KVM_EXIT_MEMORY_ERROR, 1UL), (exit.Reason, exit.FaultFlags));
        AssertOk(vm.Fallocate(fd, HistoricalVm.Allocate, 1, 1));
        Assert.Equal(0, vm.Load(0x1000, GuestAccess.Unmarked));

        // Without the mark bit the call is for user space, as ever.
        Assert.Equal(KvmExit.KVM_EXIT_HYPERCALL, vm.Run(new GuestHypercall(12, 0, 1, 0x10, 0, true, 0)).Reason);
        vm.Resume();

        // A mark replaces the one before; without pages it takes it back.
        Assert.Equal(0UL, vm.Call(12, 0, 0, 0x100));
        Assert.Equal((KvmExit.KVM_EXIT_MEMORY_ERROR, 0UL), vm.Run(new GuestRead(0x1000, 1, GuestAccess.Unmarked)) is var fault ? (fault.Reason, fault.FaultFlags) : default);
        Assert.Equal(unchecked((ulong)-22L), vm.Call(12, 1, 1, 0x100));
    }

    private HistoricalVm PlainVm(string profile, out int fd, out ulong uaddr)
    {
        var vm = new HistoricalVm(Boot(profile));
        fd = vm.CreatePrivateFile(4);
        uaddr = vm.Vmm.MapFilled(4, 0x11);
        vm.AddPrivateSlot(0, 0, 4, fd, uaddr: uaddr);
        return vm;
    }

    private HistoricalVm SnpVm(string profile, out int fd, out ulong uaddr)
    {
        var vm = new HistoricalVm(Boot(profile), VmType.KVM_X86_SNP_VM);
        vm.Vm.Init2();
        fd = vm.CreatePrivateFile(2);
        uaddr = vm.Vmm.Map(2);
        vm.AddPrivateSlot(0, 0, 2, fd, uaddr: uaddr);
        vm.Vm.Start();
        return vm;
    }

    private static void Launch(HistoricalVm vm) => vm.Vm.Update(SnpPageType.NORMAL, 0, 0, 1);

    private static string Measured(HistoricalVm vm, int index) =>
        Convert.ToHexStringLower(vm.Vm.Describe().Sev.Guest!.Transcript.Read(index, 1).Single().ContentHash.Span);

    private static string HashOf(byte content) => Convert.ToHexStringLower(System.Security.Cryptography.SHA384.HashData(Vmm.Content(content)));
}
