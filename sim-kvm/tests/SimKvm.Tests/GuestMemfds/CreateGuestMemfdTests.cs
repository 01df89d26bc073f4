using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Tests.Support;
using SimKvm.Userspace;
using Xunit;

namespace SimKvm.Tests;

/// <summary>KVM_CREATE_GUEST_MEMFD: kvm-guest-memory.md 3.</summary>
public sealed class CreateGuestMemfdTests : KvmTest
{
    private static readonly CheckTable<CreateCall> Table = new(
        new Check<CreateCall>("1 copy-in", Errno.EFAULT, UserArg.CopyInFaulted, call => call.CutShort = true),
        new Check<CreateCall>("2 flags", Errno.EINVAL, GuestMemfd.UnknownFlags, call => call.Args.flags |= 4),
        new Check<CreateCall>("2 flags, high", Errno.EINVAL, GuestMemfd.UnknownFlags, call => call.Args.flags |= 1UL << 63),
        new Check<CreateCall>("3 size 0", Errno.EINVAL, GuestMemfd.BadSize, call => call.Args.size = 0) { Tags = "size" },
        new Check<CreateCall>("3 size negative", Errno.EINVAL, GuestMemfd.BadSize, call => call.Args.size |= 1UL << 63) { Tags = "size" },
        new Check<CreateCall>("3 size alignment", Errno.EINVAL, GuestMemfd.BadSize, call => call.Args.size |= 1) { Tags = "size" },
        new Check<CreateCall>("4 no descriptor", Errno.EMFILE, FdTable.TableFull, call => call.Vm.Vmm.ExhaustDescriptors()));

    public static TheoryData<string, string> Singles => Table.Singles();

    public static TheoryData<string, string, string> Pairs => Table.Pairs();

    [Theory]
    [MemberData(nameof(Singles))]
    public void Create_OneCheckViolated_IsRefusedAndChangesNothing(string profile, string check)
    {
        TestHost host = Boot(profile, fdLimit: 16);
        var call = new CreateCall(host);
        Table[check].Violate(call);
        AssertRefusedUnchanged(host, call.Issue, Table[check].Errno, Table[check].Rule);
    }

    [Theory]
    [MemberData(nameof(Pairs))]
    public void Create_TwoChecksViolated_AnswersTheFirst(string profile, string first, string second)
    {
        TestHost host = Boot(profile, fdLimit: 16);
        var call = new CreateCall(host);
        Table[second].Violate(call);
        Table[first].Violate(call);
        AssertRefusedUnchanged(host, call.Issue, Table[first].Errno, Table[first].Rule);
    }

    // VM type, flags, whether K72 takes them. K616 takes 0 only.
    [Theory]
    [InlineData(VmType.KVM_X86_DEFAULT_VM, 1, true)]
    [InlineData(VmType.KVM_X86_DEFAULT_VM, 2, true)]
    [InlineData(VmType.KVM_X86_DEFAULT_VM, 3, true)]
    [InlineData(VmType.KVM_X86_DEFAULT_VM, 4, false)]
    [InlineData(VmType.KVM_X86_SEV_VM, 3, true)]
    [InlineData(VmType.KVM_X86_SEV_ES_VM, 3, true)]
    [InlineData(VmType.KVM_X86_SW_PROTECTED_VM, 1, true)]
    [InlineData(VmType.KVM_X86_SW_PROTECTED_VM, 2, false)]
    [InlineData(VmType.KVM_X86_SW_PROTECTED_VM, 3, false)]
    [InlineData(VmType.KVM_X86_SNP_VM, 1, true)]
    [InlineData(VmType.KVM_X86_SNP_VM, 2, false)]
    public void Flags_AreJudgedByVmTypeAndProfile(VmType type, ulong flags, bool inK72)
    {
        TestVm vm = Boot().Vmm.CreateVm(type);
        Assert.Equal(inK72 ? Errno.OK : Errno.EINVAL, vm.TryCreateGmem(4096, flags).Errno);
        vm = Boot(K616).Vmm.CreateVm(type);
        AssertRefused(vm.TryCreateGmem(4096, flags), Errno.EINVAL, GuestMemfd.UnknownFlags);
        AssertOk(vm.TryCreateGmem(4096));
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void ReservedFields_AreNotLookedAt(string profile)
    {
        TestVm vm = Boot(profile).Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
        byte[] args = new byte[64];
        Array.Fill(args, (byte)0xff, 16, 48);
        BitConverter.TryWriteBytes(args, 4096UL);
        AssertOk(vm.Vmm.Process.Ioctl(vm.Fd, KvmIoctl.KVM_CREATE_GUEST_MEMFD, args));
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void LargestSize_IsTheSignBitLessAPage_AndCostsNothing(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
        long frames = host.Machine.AllocatedPages;
        int fd = Vmm.Must(vm.TryCreateGmem(0x7fff_ffff_ffff_f000));
        AssertOk(host.Vmm.Process.Fstat(fd, out FileStat stat));
        Assert.Equal((0x7fff_ffff_ffff_f000UL, 0x8180u, 0UL), (stat.Size, stat.Mode, stat.Blocks));
        Assert.Equal(frames, host.Machine.AllocatedPages);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void Descriptor_IsTheLowestFree(string profile)
    {
        TestVm vm = Boot(profile).Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
        int first = vm.CreateGmem(1);
        int second = vm.CreateGmem(1);
        Assert.Equal(first + 1, second);
        AssertOk(vm.Vmm.Close(first));
        Assert.Equal(first, vm.CreateGmem(1));
    }

    private sealed class CreateCall
    {
        public CreateCall(TestHost host)
        {
            Vm = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
            Args = new kvm_create_guest_memfd { size = 0x10000 };
        }

        public TestVm Vm { get; }

        public bool CutShort { get; set; }

        public kvm_create_guest_memfd Args;

        public CallReport Issue() => CutShort
            ? Vm.Vmm.IoctlCutShort(Vm.Fd, KvmIoctl.KVM_CREATE_GUEST_MEMFD, Args)
            : Vm.Vmm.Ioctl(Vm.Fd, KvmIoctl.KVM_CREATE_GUEST_MEMFD, ref Args);
    }
}
