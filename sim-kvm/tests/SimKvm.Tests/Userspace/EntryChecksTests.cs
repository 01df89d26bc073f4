using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Tests.Support;
using SimKvm.Userspace;
using Xunit;

namespace SimKvm.Tests;

/// <summary>What every ioctl checks before it looks at its argument: descriptor, process, dead VM, number (kvm-guest-memory.md 2, 2.1).</summary>
public sealed class EntryChecksTests : KvmTest
{
    // A known number of each kind of argument, and one that nobody knows.
    public static TheoryData<uint> VmRequests =>
    [
        KvmIoctl.KVM_CHECK_EXTENSION, KvmIoctl.KVM_CREATE_VCPU, KvmIoctl.KVM_SET_USER_MEMORY_REGION2, KvmIoctl.KVM_MEMORY_ENCRYPT_OP,
        KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES, KvmIoctl.KVM_CREATE_GUEST_MEMFD, KvmIoctl.KVM_ENABLE_CAP, 0xDEADBEEF,
    ];

    public static TheoryData<string, FdKind, Errno> UnknownAnswers => new()
    {
        { K616, FdKind.Kvm, Errno.EINVAL },
        { K616, FdKind.Vm, Errno.ENOTTY },
        { K616, FdKind.Vcpu, Errno.EINVAL },
        { K616, FdKind.GuestMemfd, Errno.ENOTTY },
        { K616, FdKind.Sev, Errno.EINVAL },
        { K72, FdKind.Kvm, Errno.EINVAL },
        { K72, FdKind.Vm, Errno.ENOTTY },
        { K72, FdKind.Vcpu, Errno.EINVAL },
        { K72, FdKind.GuestMemfd, Errno.ENOTTY },
        { K72, FdKind.Sev, Errno.EINVAL },
    };

    [Theory]
    [MemberData(nameof(VmRequests))]
    public void VmIoctl_FromAnotherProcess_IsEioBeforeAnythingElse(uint request)
    {
        TestHost host = Boot();
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SNP_VM);
        Vmm other = host.NewVmm();
        int there = host.Vmm.PassTo(other, vm.Fd);
        AssertRefusedUnchanged(host, () => other.Ioctl(there, request, Vmm.Unmapped), Errno.EIO, Vm.NotYourVm);
    }

    [Theory]
    [MemberData(nameof(VmRequests))]
    public void VmIoctl_OnADeadVm_IsEioBeforeAnythingElse(uint request)
    {
        TestHost host = Boot();
        TestVm vm = Dead(host);
        AssertRefusedUnchanged(host, () => host.Vmm.Ioctl(vm.Fd, request, Vmm.Unmapped), Errno.EIO, Vm.IsDead);
    }

    [Fact]
    public void DeadVmOfAnotherProcess_IsAnotherProcesssFirst()
    {
        TestHost host = Boot();
        TestVm vm = Dead(host);
        Vmm other = host.NewVmm();
        AssertRefused(other.Ioctl(host.Vmm.PassTo(other, vm.Fd), KvmIoctl.KVM_CHECK_EXTENSION, 0), Errno.EIO, Vm.NotYourVm);
    }

    [Theory]
    [InlineData(KvmIoctl.KVM_GET_REGS)]
    [InlineData(0xAE80)]
    [InlineData(0xDEADBEEF)]
    [InlineData(0x5401)]
    public void VcpuIoctl_FromAnotherProcessOrOfADeadVm_IsEioBeforeItsNumber(uint request)
    {
        TestHost host = Boot();
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
        int vcpu = vm.CreateVcpu(0);
        Vmm other = host.NewVmm();
        int there = host.Vmm.PassTo(other, vcpu);
        AssertRefusedUnchanged(host, () => other.Ioctl(there, request, 0), Errno.EIO, Vm.NotYourVm);
        Kill(host, vm);
        AssertRefusedUnchanged(host, () => host.Vmm.Ioctl(vcpu, request, 0), Errno.EIO, Vm.IsDead);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void VcpuIoctl_OfAnotherType_IsEinval(string profile)
    {
        TestHost host = Boot(profile);
        int vcpu = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM).CreateVcpu(0);
        AssertRefusedUnchanged(host, () => host.Vmm.Ioctl(vcpu, 0x5401, 0), Errno.EINVAL, VcpuFile.NotAKvmIoctl);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void GuestMemfd_ServesAnyProcess_AndOutlivesADeadVm(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
        int gmem = vm.CreateGmem(4);
        Vmm other = host.NewVmm();
        int there = host.Vmm.PassTo(other, gmem);
        AssertOk(other.Process.Fallocate(there, 1, 0, 4096));
        Kill(host, vm);
        AssertOk(other.Process.Fallocate(there, 3, 0, 4096));
        AssertOk(host.Vmm.Process.Fallocate(gmem, 1, 0, 4096));
    }

    [Theory]
    [MemberData(nameof(UnknownAnswers))]
    public void UnknownNumber_AnswersAsTheKindOfFileDoes(string profile, FdKind kind, Errno errno)
    {
        TestHost host = Boot(profile);
        int fd = OpenOf(host, kind);
        AssertRefusedUnchanged(host, () => host.Vmm.Ioctl(fd, 0xAEFF, 0), errno, IoctlTable.Unknown);
    }

    // A number whose size or direction bits differ is another number; and each number is known on its own kind of file only.
    [Theory]
    [MemberData(nameof(Profiles))]
    public void NumberWithOtherSizeOrDirectionOrFile_IsUnknown(string profile)
    {
        TestHost host = Boot(profile);
        var fds = IoctlTable.All.Select(row => row.Fd).Append(FdKind.Sev).Distinct().ToDictionary(kind => kind, kind => OpenOf(host, kind));
        var errnos = new Dictionary<FdKind, Errno>
        {
            [FdKind.Kvm] = Errno.EINVAL,
            [FdKind.Vm] = Errno.ENOTTY,
            [FdKind.Vcpu] = Errno.EINVAL,
            [FdKind.GuestMemfd] = Errno.ENOTTY,
            [FdKind.Sev] = Errno.EINVAL,
        };
        foreach (IoctlRow row in IoctlTable.All)
        {
            foreach (uint request in new[] { row.Request ^ (1u << 16), row.Request ^ (1u << 29), row.Request ^ (1u << 30), row.Request ^ (1u << 31) })
            {
                AssertRefused(host.Vmm.Ioctl(fds[row.Fd], request, 0), errnos[row.Fd], IoctlTable.Unknown);
            }
            foreach (FdKind other in fds.Keys.Where(kind => IoctlTable.Find(kind, row.Request) is null))
            {
                // A vCPU looks at the type of a number first.
                bool foreign = other == FdKind.Vcpu && ((row.Request >> 8) & 0xff) != 0xae;
                AssertRefused(host.Vmm.Ioctl(fds[other], row.Request, 0), errnos[other], foreign ? VcpuFile.NotAKvmIoctl : IoctlTable.Unknown);
            }
        }
    }

    [Fact]
    public void UnknownNumbers_AreCounted_AndTheCountIsBounded()
    {
        TestHost host = Boot();
        int vm = host.Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM).Fd;
        for (uint request = 0; request < 3000; request++)
        {
            host.Vmm.Ioctl(vm, 0x1000_0000 + request, 0);
            host.Vmm.Ioctl(vm, 0x1000_0000, 0);
        }
        Assert.Equal(1024, host.Host.UnknownIoctls.Count());
        Assert.Equal((FdKind.Vm, 0x1000_0000u, 3001UL), host.Host.UnknownIoctls.First());
    }

    [Theory]
    [InlineData(0)]
    [InlineData(2)]
    [InlineData(-1)]
    [InlineData(int.MaxValue)]
    [InlineData(int.MinValue)]
    public void ClosedDescriptor_IsEbadfForEveryCall(int fd)
    {
        TestHost host = Boot();
        AssertRefusedUnchanged(host, () => host.Vmm.Ioctl(fd, KvmIoctl.KVM_CREATE_VM, 0), Errno.EBADF, FdTable.NotOpen);
        AssertRefusedUnchanged(host, () => host.Vmm.Close(fd), Errno.EBADF, FdTable.NotOpen);
        AssertRefusedUnchanged(host, () => host.Vmm.Process.Fallocate(fd, 1, 0, 4096), Errno.EBADF, FdTable.NotOpen);
        AssertRefusedUnchanged(host, () => host.Vmm.Process.Fstat(fd, out _), Errno.EBADF, FdTable.NotOpen);
        AssertRefusedUnchanged(host, () => host.Vmm.Process.Mmap(0, 4096, 3, Vmm.MapShared, fd, 0), Errno.EBADF, FdTable.NotOpen);
    }

    [Fact]
    public void ArgumentInUserMemory_FaultsWhereThePageEnds()
    {
        TestHost host = Boot();
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
        ulong page = host.Vmm.Map(1);
        host.Vmm.Store(page + 4096 - 32, new kvm_memory_attributes { size = 4096, attributes = 8 });
        AssertOk(host.Vmm.Ioctl(vm.Fd, KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES, page + 4096 - 32));
        AssertRefusedUnchanged(host, () => host.Vmm.Ioctl(vm.Fd, KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES, page + 4096 - 31), Errno.EFAULT, UserMemory.NotMapped);
        AssertRefusedUnchanged(host, () => host.Vmm.Ioctl(vm.Fd, KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES, 0), Errno.EFAULT, UserMemory.NotMapped);
        AssertRefusedUnchanged(host, () => host.Vmm.Ioctl(vm.Fd, KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES, ulong.MaxValue - 8), Errno.EFAULT, UserMemory.NotMapped);
    }

    [Fact]
    public void Report_NamesTheCallAndCountsIt()
    {
        TestHost host = Boot();
        ulong calls = host.Host.Calls;
        CallReport report = host.Vmm.TryCreateVm(0);
        Assert.Equal(calls + 1, report.Call);
        Assert.Equal("KVM_CREATE_VM on fd 3", report.What);
        Assert.Empty(report.Causes);
        Assert.Equal("ioctl 0xDEADBEEF on fd 3", host.Vmm.Ioctl(3, 0xDEADBEEF, 0).What);
    }

    [Fact]
    public void ExitedProcess_IsNoModelledFailure()
    {
        TestHost host = Boot();
        Vmm other = host.NewVmm();
        other.Process.Exit();
        other.Process.Exit();
        Assert.Throws<InvalidOperationException>(() => other.Close(3));
    }

    private static TestVm Dead(TestHost host)
    {
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SNP_VM);
        Kill(host, vm);
        return vm;
    }

    private static void Kill(TestHost host, TestVm vm)
    {
        host.Expect("vm-bugged");
        vm.Kernel.Bug(TestHost.NewThread(host.Vmm), "the test kills it");
    }

    private static int OpenOf(TestHost host, FdKind kind) => kind switch
    {
        FdKind.Kvm => host.Vmm.Kvm,
        FdKind.Sev => host.Vmm.Sev,
        FdKind.Vm => host.Vmm.CreateVm(VmType.KVM_X86_SNP_VM).Fd,
        FdKind.Vcpu => host.Vmm.CreateVm(VmType.KVM_X86_SNP_VM).CreateVcpu(0),
        _ => host.Vmm.CreateVm(VmType.KVM_X86_SNP_VM).CreateGmem(4),
    };
}
