using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Kvm.Historical;
using SimKvm.Tests.Support;
using SimKvm.Userspace;
using Xunit;

namespace SimKvm.Tests.Historical;

/// <summary>KVM_MEM_PRIVATE slots: the extended structure, binding, and the ioctls and capabilities around them that other kernels number otherwise.</summary>
public sealed class PrivateSlotTests : KvmTest
{
    public static TheoryData<string> Designs => ["UPM22", "UPM22-v5", "RM22"];

    [Theory]
    [InlineData("UPM22-v5", 64)]
    [InlineData("UPM22", 160)]
    [InlineData("RM22", 160)]
    public void ExtendedStructure_IsReadAsFarAsItsSeriesDefinesIt(string profile, int bytes)
    {
        var vm = new HistoricalVm(Boot(profile));
        int fd = vm.CreatePrivateFile(4);
        AssertRefused(vm.TryAddPrivateSlot(0, 0, 4, fd, bytes: bytes - 1), Errno.EFAULT, UserArg.CopyInFaulted);
        AssertOk(vm.TryAddPrivateSlot(0, 0, 4, fd, bytes: bytes));
    }

    [Theory]
    [MemberData(nameof(Designs))]
    public void PlainSlot_IsStill32Bytes(string profile)
    {
        var vm = new HistoricalVm(Boot(profile));
        AssertOk(vm.TryAddPrivateSlot(0, 0, 4, -1, flags: 0, bytes: 32));
    }

    [Theory]
    [InlineData("UPM22", VmType.KVM_X86_DEFAULT_VM, Errno.EINVAL)]
    [InlineData("RM22", VmType.KVM_X86_DEFAULT_VM, Errno.EINVAL)]
    [InlineData("UPM22-selftest", VmType.KVM_X86_DEFAULT_VM, Errno.OK)]
    [InlineData("UPM22", VmType.KVM_X86_SNP_VM, Errno.OK)]
    public void PrivateFlag_NeedsAVmWithPrivateMemory(string profile, VmType type, Errno errno)
    {
        var vm = new HistoricalVm(Boot(profile), type);
        CallReport report = vm.TryAddPrivateSlot(0, 0, 4, vm.CreatePrivateFile(4));
        Assert.Equal(errno, report.Errno);
        Assert.True(errno == Errno.OK || report.Causes[0].Rule == Memslots.BadFlags);
    }

    [Theory]
    [MemberData(nameof(Designs))]
    public void Bind_WrongDescriptor_IsEinval(string profile)
    {
        var vm = new HistoricalVm(Boot(profile));
        AssertRefused(vm.TryAddPrivateSlot(0, 0, 4, 999), Errno.EINVAL, FdTable.NotOpen);
        AssertRefused(vm.TryAddPrivateSlot(0, 0, 4, vm.Vm.Fd), Errno.EINVAL, BackingStoreFile.NotAPrivateFile);
        AssertRefused(vm.TryAddPrivateSlot(0, 0, 4, vm.CreatePrivateFile(4), offset: 1), Errno.EINVAL, Memslots.GmemOffset);
    }

    [Theory]
    [MemberData(nameof(Designs))]
    public void PrivateSlot_IsImmutable(string profile)
    {
        var vm = new HistoricalVm(Boot(profile));
        int fd = vm.CreatePrivateFile(4);
        vm.AddPrivateSlot(0, 0, 4, fd);
        AssertRefused(vm.TryAddPrivateSlot(0, 0, 4, fd), Errno.EINVAL, Memslots.GmemSlotImmutable);
    }

    [Fact]
    public void InaccessibleMemfd_MayBeBoundTwice()
    {
        var vm = new HistoricalVm(Boot("UPM22"));
        int fd = vm.CreatePrivateFile(4);
        vm.AddPrivateSlot(0, 0, 4, fd);
        vm.AddPrivateSlot(1, 1 << 20, 4, fd);
        vm.SetRegion(0, 4, isPrivate: true);
        vm.SetRegion(1 << 20, 4, isPrivate: true);
        vm.Store(0, 0x5a, GuestAccess.Private);
        Assert.Equal(0x5a, vm.Load(1 << 20, GuestAccess.Private));
    }

    [Theory]
    [InlineData(0UL, 4UL, Errno.EINVAL)]
    [InlineData(3UL, 4UL, Errno.EINVAL)]
    [InlineData(4UL, 4UL, Errno.EINVAL)]
    [InlineData(5UL, 3UL, Errno.OK)]
    public void RestrictedMem_IsBoundExclusively_AndThePageBehindToo(ulong page, ulong pages, Errno errno)
    {
        var vm = new HistoricalVm(Boot("RM22"));
        int fd = vm.CreatePrivateFile(16);
        vm.AddPrivateSlot(0, 0, 4, fd);
        CallReport report = vm.TryAddPrivateSlot(1, 1 << 20, pages, fd, page * Vmm.Page);
        Assert.Equal(errno, report.Errno);
        Assert.True(errno == Errno.OK || report.Causes[0].Rule == RestrictedMem.AlreadyBound);
        vm.DeleteSlot(0);
        AssertOk(vm.TryAddPrivateSlot(2, 2 << 20, 2, fd));
    }

    // Ioctl by profile: number, and whether it is known.
    [Theory]
    [InlineData("UPM22", KvmIoctl.KVM_SET_USER_MEMORY_REGION2, false)]
    [InlineData("UPM22", KvmIoctl.KVM_CREATE_GUEST_MEMFD, false)]
    [InlineData("UPM22", KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES, false)]
    [InlineData("UPM22", KvmIoctl.KVM_MEMORY_ENCRYPT_REG_REGION, true)]
    [InlineData("UPM22-sev", KvmIoctl.KVM_MEMORY_ENCRYPT_REG_REGION, true)]
    [InlineData("UPM22-v5", KvmIoctl.KVM_MEMORY_ENCRYPT_REG_REGION, false)]
    [InlineData("UPM22-pkvm", KvmIoctl.KVM_MEMORY_ENCRYPT_UNREG_REGION, false)]
    [InlineData("RM22", KvmIoctl.KVM_GET_SUPPORTED_MEMORY_ATTRIBUTES, true)]
    [InlineData("RM22", KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES_V10, true)]
    [InlineData("RM22", KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES_RFC, false)]
    [InlineData("GM23", KvmIoctl.KVM_GET_SUPPORTED_MEMORY_ATTRIBUTES, true)]
    [InlineData("GM23", KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES_RFC, true)]
    [InlineData("GM23", KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES_V10, false)]
    [InlineData("GM23", KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES, false)]
    [InlineData("GM23", KvmIoctl.KVM_CREATE_GUEST_MEMFD, true)]
    [InlineData(K72, KvmIoctl.KVM_GET_SUPPORTED_MEMORY_ATTRIBUTES, false)]
    [InlineData(K72, KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES_RFC, false)]
    [InlineData(K72, KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES, true)]
    public void Ioctl_IsKnownInItsSeriesOnly(string profile, uint request, bool known)
    {
        var vm = new HistoricalVm(Boot(profile));
        CallReport report = vm.Process.Ioctl(vm.Vm.Fd, request, new byte[256]);
        Assert.Equal(known, report.Errno != Errno.ENOTTY);
    }

    // Profile, capability, /dev/kvm, a VM of type SW_PROTECTED.
    [Theory]
    [InlineData("UPM22", KvmCap.PRIVATE_MEM, 1, 1)]
    [InlineData("UPM22", 225UL, 0, 0)]
    [InlineData("UPM22", KvmCap.MEMORY_ATTRIBUTES, 0, 0)]
    [InlineData("UPM22", KvmCap.GUEST_MEMFD, 0, 0)]
    [InlineData("RM22", KvmCap.PRIVATE_MEM, 0, 0)]
    [InlineData("RM22", KvmCap.MEMORY_ATTRIBUTES_V10, 1, 1)]
    [InlineData("RM22", KvmCap.VM_TYPES, 0, 0)]
    [InlineData("GM23", KvmCap.USER_MEMORY2_RFC, 1, 1)]
    [InlineData("GM23", KvmCap.MEMORY_ATTRIBUTES_RFC, 1, 1)]
    [InlineData("GM23", KvmCap.VM_TYPES_RFC, 3, 3)]
    [InlineData("GM23", KvmCap.MEMORY_ATTRIBUTES, 0, 0)]
    [InlineData("GM23", KvmCap.GUEST_MEMFD, 0, 0)]
    [InlineData("GM23", KvmCap.VM_TYPES, 0, 0)]
    [InlineData("GM23", KvmCap.GUEST_MEMFD_FLAGS, 0, 0)]
    [InlineData("GM23SNP", KvmCap.VM_TYPES_RFC, 0x1f, 0x1f)]
    [InlineData(K72, KvmCap.PRIVATE_MEM, 0, 0)]
    [InlineData(K72, KvmCap.USER_MEMORY2_RFC, 0, 0)]
    public void Capability_IsNumberedByItsSeries(string profile, ulong cap, long device, long vmAnswer)
    {
        var vm = new HistoricalVm(Boot(profile));
        Assert.Equal((device, vmAnswer), (vm.Vmm.CheckExtension(cap), vm.Vm.CheckExtension(cap)));
    }
}
