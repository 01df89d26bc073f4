using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Tests.Support;
using SimKvm.Userspace;
using Xunit;

namespace SimKvm.Tests;

/// <summary>Mapping a guest_memfd into a process, and touching it: kvm-guest-memory.md 4.4.</summary>
public sealed class GuestMemfdMmapTests : KvmTest
{
    private const uint ReadWrite = Vmm.ProtRead | Vmm.ProtWrite;
    private const ulong Mappable = kvm_create_guest_memfd.GUEST_MEMFD_FLAG_MMAP;
    private const ulong MappableAndShared = Mappable | kvm_create_guest_memfd.GUEST_MEMFD_FLAG_INIT_SHARED;

    [Fact]
    public void Mmap_BeforeTheFlagExisted_IsEnodev()
    {
        TestHost host = Boot(K616);
        int gmem = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM).CreateGmem(4);
        AssertRefusedUnchanged(host, () => Map(host, gmem, 4, Vmm.MapShared), Errno.ENODEV, GuestMemfd.MmapNotEnabled);
    }

    [Theory]
    [InlineData(0, Vmm.MapShared)]
    [InlineData(0, Vmm.MapPrivate)]
    [InlineData(2, Vmm.MapShared)]
    public void Mmap_WithoutTheFlag_IsEnodev(ulong flags, uint type)
    {
        TestHost host = Boot();
        int gmem = host.Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM).CreateGmem(4, flags);
        AssertRefusedUnchanged(host, () => Map(host, gmem, 4, type), Errno.ENODEV, GuestMemfd.MmapNotEnabled);
    }

    [Fact]
    public void Mmap_Private_IsEinval()
    {
        TestHost host = Boot();
        int gmem = host.Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM).CreateGmem(4, MappableAndShared);
        AssertRefusedUnchanged(host, () => Map(host, gmem, 4, Vmm.MapPrivate), Errno.EINVAL, GuestMemfd.MmapNotShared);
    }

    // The file system is mounted no-exec, and the VFS looks at that before it asks the file.
    [Theory]
    [InlineData(0)]
    [InlineData(Mappable)]
    [InlineData(MappableAndShared)]
    public void Mmap_Executable_IsEperm(ulong flags)
    {
        TestHost host = Boot();
        int gmem = host.Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM).CreateGmem(4, flags);
        string before = host.Snapshot();
        CallReport report = host.Vmm.Process.Mmap(0, 4096, Vmm.ProtRead | Vmm.ProtExec, Vmm.MapShared, gmem, 0);
        Assert.Equal(Errno.EPERM, report.Errno);
        Assert.Equal(before, host.Snapshot());
    }

    [Fact]
    public void Mmap_SharedValidateWithUnknownBits_IsEopnotsupp()
    {
        TestHost host = Boot();
        int gmem = host.Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM).CreateGmem(4, MappableAndShared);
        Assert.Equal(Errno.EOPNOTSUPP, Map(host, gmem, 4, 3 | 0x8000_0000).Errno);
        AssertOk(Map(host, gmem, 4, 3));
    }

    [Fact]
    public void Mmap_LongerThanTheFile_Succeeds_AndFaultsBehindItsEnd()
    {
        TestHost host = Boot();
        int gmem = host.Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM).CreateGmem(2, MappableAndShared);
        ulong address = (ulong)AssertOk(Map(host, gmem, 4, Vmm.MapShared)).Value;
        Assert.Equal(new byte[8192], host.Vmm.Load(address, 8192));
        AssertRefused(host.Vmm.Process.Read(address + 8192, new byte[1]), Errno.EFAULT, GuestMemfd.FaultBeyondSize);
    }

    [Theory]
    [InlineData(VmType.KVM_X86_DEFAULT_VM)]
    [InlineData(VmType.KVM_X86_SW_PROTECTED_VM)]
    [InlineData(VmType.KVM_X86_SNP_VM)]
    public void Touch_OfPagesThatDoNotStartShared_IsSigbus(VmType type)
    {
        TestHost host = Boot();
        int gmem = host.Vmm.CreateVm(type).CreateGmem(2, Mappable);
        ulong address = (ulong)AssertOk(Map(host, gmem, 2, Vmm.MapShared)).Value;
        AssertRefusedUnchanged(host, () => host.Vmm.Process.Read(address, new byte[1]), Errno.EFAULT, GuestMemfd.FaultNotShared);
        AssertRefusedUnchanged(host, () => host.Vmm.Process.Write(address, new byte[1]), Errno.EFAULT, GuestMemfd.FaultNotShared);
    }

    [Fact]
    public void Touch_BehindTheEnd_ComesBeforeNotShared()
    {
        TestHost host = Boot();
        int gmem = host.Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM).CreateGmem(1, Mappable);
        ulong address = (ulong)AssertOk(Map(host, gmem, 2, Vmm.MapShared)).Value;
        AssertRefused(host.Vmm.Process.Read(address + 4096, new byte[1]), Errno.EFAULT, GuestMemfd.FaultBeyondSize);
    }

    [Fact]
    public void Touch_OfAnAllocatedPage_FindsZeros_AndMarksIt()
    {
        TestHost host = Boot();
        int gmem = host.Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM).CreateGmem(2, MappableAndShared);
        AssertOk(host.Vmm.Process.Fallocate(gmem, 1, 0, 4096));
        ulong address = (ulong)AssertOk(Map(host, gmem, 2, Vmm.MapShared)).Value;
        Assert.Equal(new byte[4096], host.Vmm.Load(address, 4096));
        Assert.True(host.Vmm.Gmem(gmem).Inode.TryGet(0, out Folio folio));
        Assert.True(folio.Uptodate);
        Assert.False(host.Vmm.Gmem(gmem).Inode.TryGet(1, out _));
    }

    [Fact]
    public void TwoMappings_SeeOnePage_AndAHoleEmptiesBoth()
    {
        TestHost host = Boot();
        int gmem = host.Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM).CreateGmem(2, MappableAndShared);
        ulong first = (ulong)Map(host, gmem, 2, Vmm.MapShared).Value;
        ulong second = (ulong)AssertOk(host.Vmm.Process.Mmap(0, 4096, ReadWrite, Vmm.MapShared, gmem, 4096)).Value;
        host.Vmm.Store(first + 4096, Vmm.Content(7));
        Assert.Equal(Vmm.Content(7), host.Vmm.Load(second, 4096));
        AssertOk(host.Vmm.Process.Fallocate(gmem, 3, 4096, 4096));
        Assert.Equal(new byte[4096], host.Vmm.Load(second, 4096));
        Assert.Equal(new byte[4096], host.Vmm.Load(first + 4096, 4096));
    }

    [Fact]
    public void IoctlArgument_InAMappedGuestMemfd_IsReadFromIt()
    {
        TestHost host = Boot();
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM);
        int gmem = vm.CreateGmem(2, MappableAndShared);
        ulong address = (ulong)Map(host, gmem, 2, Vmm.MapShared).Value;
        host.Vmm.Store(address, new kvm_create_guest_memfd { size = 0x3000 });
        int made = (int)AssertOk(host.Vmm.Ioctl(vm.Fd, KvmIoctl.KVM_CREATE_GUEST_MEMFD, address)).Value;
        AssertOk(host.Vmm.Process.Fstat(made, out FileStat stat));
        Assert.Equal(0x3000UL, stat.Size);
        int dark = vm.CreateGmem(2, Mappable);
        ulong unreadable = (ulong)Map(host, dark, 2, Vmm.MapShared).Value;
        AssertRefused(host.Vmm.Ioctl(vm.Fd, KvmIoctl.KVM_CREATE_GUEST_MEMFD, unreadable), Errno.EFAULT, GuestMemfd.FaultNotShared);
    }

    private static CallReport Map(TestHost host, int gmem, ulong pages, uint flags) =>
        host.Vmm.Process.Mmap(0, pages * Vmm.Page, ReadWrite, flags, gmem, 0);
}
