using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Tests.Support;
using SimKvm.Userspace;
using SimKvm.Vendors.Amd;
using SimMachine.Measurement;
using Xunit;

namespace SimKvm.Tests;

/// <summary>
/// The must-pass scenarios of kvm-guest-memory.md 15 that need no running guest, one test each, by number. T is a software-protected VM; where a launch is
/// needed it is an SNP VM.
/// </summary>
public sealed class MustPassScenariosTests : KvmTest
{
    private const VmType T = VmType.KVM_X86_SW_PROTECTED_VM;
    private const ulong TwoMib = 2UL << 20;

    [Theory]
    [MemberData(nameof(Profiles))]
    public void Scenario01_GmemOfSize0OrUnalignedOrUnknownFlags_IsEinval(string profile)
    {
        TestVm vm = Boot(profile).Vmm.CreateVm(T);
        AssertRefused(vm.TryCreateGmem(0), Errno.EINVAL, GuestMemfd.BadSize);
        AssertRefused(vm.TryCreateGmem(4097), Errno.EINVAL, GuestMemfd.BadSize);
        AssertRefused(vm.TryCreateGmem(4096, 4), Errno.EINVAL, GuestMemfd.UnknownFlags);
    }

    [Fact]
    public void Scenario02_InitShared_IsForVmsWithoutPrivateMemory()
    {
        TestHost host = Boot();
        AssertRefused(host.Vmm.CreateVm(T).TryCreateGmem(4096, 2), Errno.EINVAL, GuestMemfd.UnknownFlags);
        AssertOk(host.Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM).TryCreateGmem(4096, 2));
    }

    [Theory]
    [InlineData(K616, Errno.EINVAL)]
    [InlineData(K72, Errno.EEXIST)]
    public void Scenario03_OverlappingBindings_AreRefused(string profile, Errno errno)
    {
        TestVm vm = Boot(profile).Vmm.CreateVm(T);
        int gmem = vm.CreateGmem(1024);
        vm.AddGmemSlot(1, 0, 512, gmem);
        AssertRefused(vm.TrySetRegion2(2, KvmMem.GUEST_MEMFD, 1UL << 30, 512, 0, gmem, TwoMib / 2), errno, GuestMemfd.AlreadyBound);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void Scenario04_OverlappingGpa_ComesBeforeABadGmemFd(string profile)
    {
        TestVm vm = Boot(profile).Vmm.CreateVm(T);
        vm.AddGmemSlot(1, 0, 512, vm.CreateGmem(512));
        AssertRefused(vm.TrySetRegion2(2, KvmMem.GUEST_MEMFD, 0, 512, 0, 999), Errno.EEXIST, Memslots.Overlaps);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void Scenario05_GmemSlot_IsNeitherReadOnlyNorDirtyLogged(string profile)
    {
        TestVm vm = Boot(profile).Vmm.CreateVm(T);
        int gmem = vm.CreateGmem(512);
        AssertRefused(vm.TrySetRegion2(1, KvmMem.GUEST_MEMFD | KvmMem.READONLY, 0, 512, 0, gmem), Errno.EINVAL, Memslots.BadFlags);
        AssertRefused(vm.TrySetRegion2(1, KvmMem.GUEST_MEMFD | KvmMem.LOG_DIRTY_PAGES, 0, 512, 0, gmem), Errno.EINVAL, Memslots.BadFlags);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void Scenario06_GmemSlotAgain_IsEinval(string profile)
    {
        TestVm vm = Boot(profile).Vmm.CreateVm(T);
        int gmem = vm.CreateGmem(512);
        vm.AddGmemSlot(1, 0, 512, gmem);
        AssertRefused(vm.TrySetRegion2(1, KvmMem.GUEST_MEMFD, 0, 512, 0, gmem), Errno.EINVAL, Memslots.GmemSlotImmutable);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void Scenario07_DeleteWithTheGmemFlagAndAnyFd_Succeeds(string profile)
    {
        TestVm vm = Boot(profile).Vmm.CreateVm(T);
        vm.AddGmemSlot(1, 0, 512, vm.CreateGmem(512));
        AssertOk(vm.TrySetRegion2(1, KvmMem.GUEST_MEMFD, 0, 0, 0, -1));
        Assert.Empty(vm.Describe().Slots);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void Scenario08_AttributesWithoutSlots_LeaveSeqAlone(string profile)
    {
        TestVm vm = Boot(profile).Vmm.CreateVm(T);
        ulong seq = vm.Seq;
        vm.SetPrivate(0, 512);
        Assert.Equal(seq, vm.Seq);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void Scenario09_AttributesTwice_AreANoOpTheSecondTime(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(T);
        vm.AddGmemSlot(1, 0, 512, vm.CreateGmem(512));
        vm.SetPrivate(0, 512);
        ulong seq = vm.Seq;
        ulong step = host.Machine.Journal.Steps + 1;
        vm.SetPrivate(0, 512);
        Assert.Equal(seq, vm.Seq);
        Assert.Equal(
            ["ioctl enter", "lock kvm->slots_lock", "unlock kvm->slots_lock", "ioctl exit"],
            host.Machine.Journal.Read(step).Select(record => record.Label.Name));
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void Scenario10_BadAttributes_AreEinval(string profile)
    {
        TestVm vm = Boot(profile).Vmm.CreateVm(T);
        AssertRefused(vm.TrySetAttributes(0, 4096, 1), Errno.EINVAL, MemoryAttributes.Unsupported);
        AssertRefused(vm.TrySetAttributes(0, 0, 8), Errno.EINVAL, MemoryAttributes.BadRange);
        AssertRefused(vm.TrySetAttributes(1, 4096, 8), Errno.EINVAL, MemoryAttributes.Unaligned);
        AssertRefused(vm.TrySetAttributes(0, 4096, 8, flags: 1), Errno.EINVAL, MemoryAttributes.FlagsAreReserved);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void Scenario11_DefaultVm_HasNoPrivateAttribute(string profile)
    {
        TestVm vm = Boot(profile).Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM);
        AssertRefused(vm.TrySetAttributes(0, 4096, 8), Errno.EINVAL, MemoryAttributes.Unsupported);
        AssertOk(vm.TrySetAttributes(0, 4096, 0));
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void Scenario19_PunchHolePastTheEnd_Succeeds(string profile)
    {
        TestHost host = Boot(profile);
        int gmem = host.Vmm.CreateVm(T).CreateGmem(4);
        AssertOk(host.Vmm.Process.Fallocate(gmem, 3, 8 * 4096, 4096));
        AssertOk(host.Vmm.Process.Fallocate(gmem, 3, 2 * 4096, 1L << 40));
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void Scenario20_FallocateErrors(string profile)
    {
        TestHost host = Boot(profile);
        int gmem = host.Vmm.CreateVm(T).CreateGmem(4);
        AssertRefused(host.Vmm.Process.Fallocate(gmem, 0, 0, 4096), Errno.EOPNOTSUPP, GuestMemfd.UnsupportedMode);
        AssertRefused(host.Vmm.Process.Fallocate(gmem, 3, 1, 4096), Errno.EINVAL, GuestMemfd.UnalignedRange);
        AssertRefused(host.Vmm.Process.Fallocate(gmem, 1, 4 * 4096, 4096), Errno.EINVAL, GuestMemfd.BeyondSize);
    }

    [Fact]
    public void Scenario21_TouchOfAMappedGmem_IsSigbus_UnlessItStartsShared()
    {
        TestHost host = Boot();
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM);
        ulong dark = (ulong)host.Vmm.Process.Mmap(0, 4096, 3, Vmm.MapShared, vm.CreateGmem(1, 1), 0).Value;
        AssertRefused(host.Vmm.Process.Read(dark, new byte[1]), Errno.EFAULT, GuestMemfd.FaultNotShared);
        ulong shared = (ulong)host.Vmm.Process.Mmap(0, 4096, 3, Vmm.MapShared, vm.CreateGmem(1, 3), 0).Value;
        Assert.Equal(new byte[4096], host.Vmm.Load(shared, 4096));
    }

    [Theory]
    [InlineData(K616, "kvm.gmem.populate.prepared")]
    [InlineData(K72, "sev.snp.update.assigned")]
    public void Scenario23_PopulateTwice_IsRefusedByGenericCodeOrByTheVendor(string profile, string rule)
    {
        TestHost host = Boot(profile);
        TestVm vm = SnpVm(host);
        ulong source = host.Vmm.MapFilled(1);
        vm.Update(SnpPageType.NORMAL, 0, source, 1);
        CallReport second = vm.TryUpdate(SnpPageType.NORMAL, 0, source, 1).Report;
        Assert.Equal((Errno.EIO, rule, "EEXIST"), (second.Errno, second.Causes[0].Rule.Id, second.Causes[0].Code));
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void Scenario24_PopulateOfASharedGpa_IsEinvalInside(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = SnpVm(host);
        vm.SetShared(0, 1);
        CallReport report = vm.TryUpdate(SnpPageType.NORMAL, 0, host.Vmm.MapFilled(1), 1).Report;
        AssertRefused(report, Errno.EIO, GuestMemfd.GfnNotPrivate);
        Assert.Equal("EINVAL", report.Causes[0].Code);
        Assert.Same(SevBackend.PopulateFailed, report.Causes[^1].Rule);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void Scenario25_FallocateThenPopulate_IsFine(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SNP_VM);
        vm.Init2();
        int gmem = vm.AddPrivateMemory(0, 4);
        vm.Start();
        AssertOk(host.Vmm.Process.Fallocate(gmem, 1, 0, 4 * 4096));
        long frames = host.Machine.AllocatedPages;
        vm.Update(SnpPageType.ZERO, 0, 0, 4);
        Assert.Equal(frames, host.Machine.AllocatedPages);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void Scenario29_AnotherProcess_GetsEioFromTheVm_AndMayFallocate(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(T);
        int gmem = vm.CreateGmem(4);
        Vmm other = host.NewVmm();
        AssertRefused(other.Ioctl(host.Vmm.PassTo(other, vm.Fd), KvmIoctl.KVM_CHECK_EXTENSION, KvmCap.GUEST_MEMFD), Errno.EIO, Vm.NotYourVm);
        AssertOk(other.Process.Fallocate(host.Vmm.PassTo(other, gmem), 1, 0, 4 * 4096));
        Assert.Equal(4UL, host.Vmm.Gmem(gmem).Inode.CountPages());
    }

    private static TestVm SnpVm(TestHost host)
    {
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SNP_VM);
        vm.Init2();
        vm.AddPrivateMemory(0, 4);
        vm.Start();
        return vm;
    }
}
