using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Tests.Support;
using SimKvm.Userspace;
using SimMachine.Amd;
using Xunit;

namespace SimKvm.Tests.Historical;

/// <summary>guest_memfd as it was in 2023 (kvm-guest-memory.md 13.3), and the race of seed 001 (11.2).</summary>
public sealed class GuestMemfdRfcTests : KvmTest
{
    private const ulong TwoMib = 2UL << 20;
    private const ulong AllowHugepage = 1;

    // Size, flags, and what kvm_gmem_create answers.
    [Theory]
    [InlineData(0UL, 0UL, Errno.OK)]
    [InlineData(4096UL, 0UL, Errno.OK)]
    [InlineData(TwoMib, AllowHugepage, Errno.OK)]
    [InlineData(0UL, AllowHugepage, Errno.OK)]
    [InlineData(4096UL, AllowHugepage, Errno.EINVAL)]
    [InlineData(TwoMib + 4096, AllowHugepage, Errno.EINVAL)]
    [InlineData(4095UL, 0UL, Errno.EINVAL)]
    [InlineData(1UL << 63, 0UL, Errno.EINVAL)]
    [InlineData(4096UL, 2UL, Errno.EINVAL)]
    public void Create_SizesAndFlags(ulong size, ulong flags, Errno errno) =>
        Assert.Equal(errno, Boot("GM23").Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM).TryCreateGmem(size, flags).Errno);

    [Theory]
    [InlineData(0UL, 512UL, Errno.OK)]
    [InlineData(TwoMib, 512UL, Errno.OK)]
    [InlineData(4096UL, 512UL, Errno.EINVAL)]
    [InlineData(0UL, 511UL, Errno.EINVAL)]
    public void Bind_OfAFileWithHugePages_IsAlignedTo2Mib(ulong offset, ulong pages, Errno errno)
    {
        TestVm vm = Boot("GM23").Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
        int gmem = vm.CreateGmem(1024, AllowHugepage);
        CallReport report = vm.TrySetRegion2(0, KvmMem.PRIVATE, 0, pages, 0, gmem, offset);
        Assert.Equal(errno, report.Errno);
        Assert.True(errno == Errno.OK || report.Causes[0].Rule == GuestMemfd.HugeUnaligned);
    }

    [Fact]
    public void Attributes_HaveTheNumbersOfTheirTime()
    {
        TestVm vm = Boot("GM23").Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
        byte[] supported = new byte[8];
        AssertOk(vm.Vmm.Process.Ioctl(vm.Fd, KvmIoctl.KVM_GET_SUPPORTED_MEMORY_ATTRIBUTES, supported));
        Assert.Equal(8, supported[0]);
        AssertOk(SetAttributes(vm, 0, 4096, 8));
        Assert.Equal(8UL, vm.Describe().Attributes.Single().Value);
        AssertRefused(SetAttributes(vm, 0, 0, 8), Errno.EINVAL, MemoryAttributes.BadRange);
    }

    [Fact]
    public void MemoryFault_IsExit38WithReturn0()
    {
        TestHost host = Boot("GM23");
        var vm = new HistoricalVm(host);
        vm.Vm.AddSlot(0, 0, 4, vm.Vmm.Map(4));
        AssertOk(SetAttributes(vm.Vm, 0, 4096, 8));
        GuestExit exit = vm.Run(new GuestRead(0, 1, GuestAccess.Unmarked));
        AssertOk(exit.Report);
        Assert.Equal((38u, 8UL, 0UL, 4096UL), ((uint)exit.Reason, exit.FaultFlags, exit.FaultGpa, exit.FaultSize));
    }

    [Fact]
    public void HoleWithoutBinding_RaisesInProgressForGood()
    {
        TestVm vm = Boot("GM23").Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
        AssertOk(vm.Vmm.Process.Fallocate(vm.CreateGmem(4), 3, 0, 4096));
        Assert.Equal(1, vm.Kernel.Mmu.InProgress);
    }

    // Seed 001: punch hole makes the page shared, the attribute ioctl makes it private again, the page is freed as private.
    [Fact]
    public void Seed001_AttributesBetweenTheFreeHookAndTheTruncation_FreeAPageThatIsPrivateInTheRmp()
    {
        TestHost host = Boot("GM23SNP");
        host.Expect("page-freed-while-private");
        TestVm vm = RunningSnpVm(host, out int gmem);
        AssertOk(SetAttributes(vm, 0, 4096, 8));
        Assert.True(IsPrivateInRmp(host, gmem));

        // CPU1 issues the ioctl while CPU0 is between its hook and its truncation.
        KTask other = TestHost.NewThread(host.Vmm);
        var args = new kvm_memory_attributes { address = 0, size = 4096, attributes = 8 };
        byte[] bytes = System.Runtime.InteropServices.MemoryMarshal.AsBytes(new Span<kvm_memory_attributes>(ref args)).ToArray();
        var baton = new InterposingBaton(
            "gmem truncate", 1, _ => Assert.Equal(Errno.OK, IoctlTable.Dispatch(other, vm.Fd, KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES_RFC, UserArg.FromBytes(bytes)).Errno));
        host.Machine.Baton = baton;
        CallReport report = host.Vmm.Process.Fallocate(gmem, 3, 0, 4096);
        host.Machine.Baton = null;

        Assert.True(baton.Acted);
        AssertOk(report);
        Assert.Equal("page-freed-while-private", Assert.Single(report.Findings).Kind);
    }

    [Fact]
    public void Seed001_WithoutTheOtherCpu_TheHoleIsClean()
    {
        TestHost host = Boot("GM23SNP");
        TestVm vm = RunningSnpVm(host, out int gmem);
        AssertOk(SetAttributes(vm, 0, 4096, 8));
        AssertOk(host.Vmm.Process.Fallocate(gmem, 3, 0, 4096));
        AssertOk(SetAttributes(vm, 0, 4096, 8));
        AssertOk(SetAttributes(vm, 0, 4096, 0));
        Assert.False(IsPrivateInRmp(host, gmem));
    }

    // How 6.11 excludes it: the same schedule changes nothing in the RMP.
    [Fact]
    public void Seed001_InMergedKernels_AttributesDoNotTouchTheRmp()
    {
        TestHost host = Boot("K611");
        TestVm vm = RunningSnpVm(host, out int gmem);
        vm.SetPrivate(0, 1);
        AssertOk(host.Vmm.Process.Fallocate(gmem, 1, 0, 4096));
        var baton = new InterposingBaton("gmem truncate", 1, _ =>
        {
            KTask other = TestHost.NewThread(host.Vmm);
            var args = new kvm_memory_attributes { address = 0, size = 4096, attributes = 8 };
            byte[] bytes = System.Runtime.InteropServices.MemoryMarshal.AsBytes(new Span<kvm_memory_attributes>(ref args)).ToArray();
            IoctlTable.Dispatch(other, vm.Fd, KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES, UserArg.FromBytes(bytes));
        });
        host.Machine.Baton = baton;
        CallReport report = host.Vmm.Process.Fallocate(gmem, 3, 0, 4096);
        host.Machine.Baton = null;
        Assert.True(baton.Acted);
        Assert.Empty(report.Findings);
    }

    private static TestVm RunningSnpVm(TestHost host, out int gmem)
    {
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SNP_VM);
        vm.Init2();
        gmem = vm.CreateGmem(4);
        vm.AddGmemSlot(0, 0, 4, gmem);
        vm.Start();
        vm.Finish();
        return vm;
    }

    private static bool IsPrivateInRmp(TestHost host, int gmem)
    {
        Assert.True(host.Vmm.Gmem(gmem).Inode.TryGet(0, out Folio folio));
        return host.Machine.Rmp.TryRead(folio.Pfn, out RmpState state) && state.Assigned;
    }

    private static CallReport SetAttributes(TestVm vm, ulong address, ulong size, ulong attributes)
    {
        var args = new kvm_memory_attributes { address = address, size = size, attributes = attributes };
        return vm.Vmm.Ioctl(vm.Fd, KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES_RFC, ref args);
    }
}
