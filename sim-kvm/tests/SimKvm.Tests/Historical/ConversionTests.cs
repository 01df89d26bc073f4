using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Kvm.Historical;
using SimKvm.Tests.Support;
using SimKvm.Userspace;
using Xunit;

namespace SimKvm.Tests.Historical;

/// <summary>Who says that a page is private, and what a guest sees of it: presence, registered regions, attributes (kvm-guest-memory.md 13.1, 13.2).</summary>
public sealed class ConversionTests : KvmTest
{
    private const ulong Pages = 4;
    private const byte SharedByte = 0x11;

    [Theory]
    [InlineData(GuestAccess.Private, 1UL)]
    [InlineData(GuestAccess.Shared, 0UL)]
    public void Presence_AccessThatDisagreesWithTheFile_IsMemoryErrorAndEperm(GuestAccess access, ulong flags)
    {
        HistoricalVm vm = Vm("UPM22-v5", out int fd);
        if (access == GuestAccess.Shared)
        {
            AssertOk(vm.Fallocate(fd, HistoricalVm.Allocate, 1, 1));
        }
        GuestExit exit = vm.Run(new GuestRead(0x1234, 4, access));
        AssertRefused(exit.Report, Errno.EPERM, Mmu.FileDisagrees);
        Assert.Equal((KvmExit.KVM_EXIT_MEMORY_ERROR, flags, 0x1000UL, 0x1000UL), (exit.Reason, exit.FaultFlags, exit.FaultGpa, exit.FaultSize));

        // User space converts, and the guest goes on.
        AssertOk(vm.Fallocate(fd, access == GuestAccess.Private ? HistoricalVm.Allocate : HistoricalVm.Hole, 1, 1));
        exit = vm.Resume();
        AssertOk(exit.Report);
        Assert.Equal(KvmExit.KVM_EXIT_HLT, exit.Reason);
    }

    [Fact]
    public void Presence_FallocateConvertsToPrivate_AHoleToShared()
    {
        HistoricalVm vm = Vm("UPM22-v5", out int fd);
        Assert.Equal(SharedByte, vm.Load(0, GuestAccess.Unmarked));
        AssertOk(vm.Fallocate(fd, HistoricalVm.Allocate, 0, 1));
        Assert.Equal(0, vm.Load(0, GuestAccess.Unmarked));
        vm.Store(0, 0x77, GuestAccess.Unmarked);
        AssertOk(vm.Fallocate(fd, HistoricalVm.Hole, 0, 1));
        Assert.Equal(SharedByte, vm.Load(0, GuestAccess.Unmarked));
        AssertOk(vm.Fallocate(fd, HistoricalVm.Allocate, 0, 1));
        Assert.Equal(0, vm.Load(0, GuestAccess.Unmarked));
    }

    [Theory]
    [InlineData("UPM22", GuestAccess.Private, 1UL)]
    [InlineData("UPM22", GuestAccess.Shared, 0UL)]
    [InlineData("RM22", GuestAccess.Private, 8UL)]
    [InlineData("RM22", GuestAccess.Shared, 0UL)]
    public void State_AccessThatDisagrees_IsMemoryFaultWithReturn0(string profile, GuestAccess access, ulong flags)
    {
        HistoricalVm vm = Vm(profile, out _);
        Convert(vm, 2, 1, isPrivate: access == GuestAccess.Shared);
        GuestExit exit = vm.Run(new GuestWrite(0x2ff8, new byte[4], access));
        AssertOk(exit.Report);
        Assert.Equal((38u, flags, 0x2000UL, 0x1000UL), ((uint)exit.Reason, exit.FaultFlags, exit.FaultGpa, exit.FaultSize));
        Convert(vm, 2, 1, isPrivate: access == GuestAccess.Private);
        Assert.Equal(KvmExit.KVM_EXIT_HLT, vm.Resume().Reason);
    }

    [Theory]
    [InlineData("UPM22")]
    [InlineData("RM22")]
    public void State_PrivateAndSharedContent_AreTwoPages_AndSurviveConversion(string profile)
    {
        HistoricalVm vm = Vm(profile, out int fd);
        Convert(vm, 0, Pages, isPrivate: true);
        vm.Store(0, 0x22, GuestAccess.Private);
        Convert(vm, 0, Pages, isPrivate: false);
        Assert.Equal(SharedByte, vm.Load(0, GuestAccess.Shared));
        Convert(vm, 0, Pages, isPrivate: true);
        Assert.Equal(0x22, vm.Load(0, GuestAccess.Private));

        // A hole frees the page; the state is KVM's and stays.
        AssertOk(vm.Fallocate(fd, HistoricalVm.Hole, 0, 1));
        Assert.Equal(0, vm.Load(0, GuestAccess.Private));
    }

    [Fact]
    public void V7_DoesNotAskSlotsWithoutPrivateFile_V10Does()
    {
        foreach ((string profile, KvmExit expected) in new[] { ("UPM22", KvmExit.KVM_EXIT_HLT), ("RM22", KvmExit.KVM_EXIT_MEMORY_FAULT_RFC) })
        {
            var vm = new HistoricalVm(Boot(profile));
            vm.TryAddPrivateSlot(0, 0, 4, -1, uaddr: vm.Vmm.Map(4), flags: 0, bytes: 32);
            Assert.Equal(expected, vm.Run(new GuestRead(0, 1, GuestAccess.Private)).Reason);
        }
    }

    // Access and attribute agree, and yet there is nothing to map. As with any memory fault of v10, KVM_RUN does not fail.
    [Fact]
    public void V10_PrivatePageOfASlotWithoutPrivateFile_IsAMemoryFault()
    {
        var vm = new HistoricalVm(Boot("RM22"));
        vm.TryAddPrivateSlot(0, 0, Pages, -1, uaddr: vm.Vmm.Map(Pages), flags: 0, bytes: 32);
        Convert(vm, 1, 1, isPrivate: true);
        GuestExit exit = vm.Run(new GuestRead(0x1000, 1, GuestAccess.Private));
        AssertOk(exit.Report);
        Assert.Equal((KvmExit.KVM_EXIT_MEMORY_FAULT_RFC, 8UL, 0x1000UL, 0x1000UL), (exit.Reason, exit.FaultFlags, exit.FaultGpa, exit.FaultSize));
    }

    [Theory]
    [InlineData("UPM22")]
    [InlineData("RM22")]
    public void PrivateAccessBehindTheEndOfTheFile_IsTriedForEver(string profile)
    {
        TestHost host = Boot(profile);
        host.Expect("guest-livelock");
        var vm = new HistoricalVm(host);
        vm.AddPrivateSlot(0, 0, Pages, vm.CreatePrivateFile(1), uaddr: vm.Vmm.Map(Pages));
        Convert(vm, 0, Pages, isPrivate: true);
        GuestExit exit = vm.Run(new GuestRead(0x1000, 1, GuestAccess.Private));
        AssertRefused(exit.Report, Errno.EINTR, BackingStoreFile.BehindTheEnd);
        Assert.Contains(exit.Report.Causes, cause => cause.Rule == Mmu.PrivateFileFailed);
    }

    [Fact]
    public void Region_BadArguments_AreEinval()
    {
        HistoricalVm vm = Vm("UPM22", out _);
        foreach ((ulong gpa, ulong size) in new[] { (0UL, 0UL), (1UL, 4096UL), (0UL, 4095UL), (ulong.MaxValue - 4095, 8192UL) })
        {
            AssertRefused(vm.TrySetRegion(gpa, size, isPrivate: true), Errno.EINVAL, PrivatePages.BadRegion);
            AssertRefused(vm.TrySetRegion(gpa, size, isPrivate: false), Errno.EINVAL, PrivatePages.BadRegion);
        }
    }

    [Fact]
    public void Region_OfAVmWithoutPrivateMemory_IsTheVendors()
    {
        var vm = new HistoricalVm(Boot("UPM22"), VmType.KVM_X86_DEFAULT_VM);
        Assert.Equal(Errno.ENOTTY, vm.TrySetRegion(0, 4096, isPrivate: true).Errno);
    }

    [Fact]
    public void V10Attributes_WriteBackThatNothingIsLeft()
    {
        HistoricalVm vm = Vm("RM22", out _);
        var args = new kvm_memory_attributes { address = 0x1000, size = 0x2000, attributes = 8 };
        AssertOk(vm.Vmm.Ioctl(vm.Vm.Fd, KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES_V10, ref args));
        Assert.Equal((0x3000UL, 0UL, 8UL), (args.address, args.size, args.attributes));
        byte[] supported = new byte[8];
        AssertOk(vm.Process.Ioctl(vm.Vm.Fd, KvmIoctl.KVM_GET_SUPPORTED_MEMORY_ATTRIBUTES, supported));
        Assert.Equal(8, supported[0]);
    }

    [Theory]
    [InlineData(0UL, 0UL, 8UL, 0UL)]
    [InlineData(1UL, 4096UL, 8UL, 0UL)]
    [InlineData(0UL, 4096UL, 1UL, 0UL)]
    [InlineData(0UL, 4096UL, 8UL, 1UL)]
    public void V10Attributes_BadArguments_AreEinvalAndNotWrittenBack(ulong address, ulong size, ulong attributes, ulong flags)
    {
        HistoricalVm vm = Vm("RM22", out _);
        var args = new kvm_memory_attributes { address = address, size = size, attributes = attributes, flags = flags };
        Assert.Equal(Errno.EINVAL, vm.Vmm.Ioctl(vm.Vm.Fd, KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES_V10, ref args).Errno);
        Assert.Equal((address, size), (args.address, args.size));
    }

    // The order of 13.2: every start before the hole, every end after it.
    [Fact]
    public void RestrictedMem_HolesAreBracketedByTheirNotifier()
    {
        HistoricalVm vm = Vm("RM22", out int fd);
        Convert(vm, 0, Pages, isPrivate: true);
        vm.Store(0, 1, GuestAccess.Private);
        ulong step = vm.Host.Machine.Journal.Steps + 1;
        ulong seq = vm.Vm.Seq;
        AssertOk(vm.Fallocate(fd, HistoricalVm.Hole, 0, 1));
        string[] order = [.. vm.Host.Machine.Journal.Read(step).Select(record => record.Label.Name).Where(name => !name.Contains("lock", StringComparison.Ordinal))];
        Assert.Equal(["mmu invalidate begin", "mmu invalidate range add", "mmu unmap", "mmu flush remote tlbs", "private file truncate", "mmu invalidate end"], order);
        Assert.Equal(seq + 1, vm.Vm.Seq);
    }

    // A hole that comes between the look-up of the page and its mapping makes the fault stale.
    [Theory]
    [InlineData("UPM22")]
    [InlineData("UPM22-v5")]
    [InlineData("RM22")]
    public void HoleDuringAFault_MakesTheGuestTryAgain(string profile)
    {
        HistoricalVm vm = Vm(profile, out int fd);
        if (profile == "UPM22-v5")
        {
            AssertOk(vm.Fallocate(fd, HistoricalVm.Allocate, 0, 1));
        }
        else
        {
            Convert(vm, 0, Pages, isPrivate: true);
        }
        KTask other = TestHost.NewThread(vm.Vmm);
        vm.Process.Files.TryGet(fd, out KernelFile? file);
        var baton = new InterposingBaton("fault page found", 1, _ => file!.Fallocate(other, HistoricalVm.Hole, 0, 4096));
        vm.Host.Machine.Baton = baton;
        GuestExit exit = vm.Run(new GuestRead(0, 1, GuestAccess.Private));
        vm.Host.Machine.Baton = null;
        Assert.True(baton.Acted);
        // With the state in KVM the guest gets a new page; with the state in the file the page is shared now.
        Assert.Equal(profile == "UPM22-v5" ? KvmExit.KVM_EXIT_MEMORY_ERROR : KvmExit.KVM_EXIT_HLT, exit.Reason);
    }

    private HistoricalVm Vm(string profile, out int fd)
    {
        var vm = new HistoricalVm(Boot(profile));
        fd = vm.CreatePrivateFile(Pages);
        vm.AddPrivateSlot(0, 0, Pages, fd, uaddr: vm.Vmm.MapFilled(Pages, SharedByte));
        return vm;
    }

    private static void Convert(HistoricalVm vm, ulong firstPage, ulong pages, bool isPrivate)
    {
        if (ProfileOf(vm.Host) != "RM22")
        {
            vm.SetRegion(firstPage * Vmm.Page, pages, isPrivate);
            return;
        }
        var args = new kvm_memory_attributes { address = firstPage * Vmm.Page, size = pages * Vmm.Page, attributes = isPrivate ? 8UL : 0 };
        AssertOk(vm.Vmm.Ioctl(vm.Vm.Fd, KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES_V10, ref args));
    }
}
