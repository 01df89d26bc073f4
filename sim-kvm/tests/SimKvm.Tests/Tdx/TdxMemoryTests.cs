using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Tests.Support;
using SimKvm.Userspace;
using SimKvm.Vendors.Intel;
using SimMachine.Intel;
using Xunit;

namespace SimKvm.Tests.Tdx;

/// <summary>Private memory of TDs over its life: added, faulted in, accepted, converted, punched out, and gone with the VM.</summary>
public sealed class TdxMemoryTests : KvmTest
{
    private const ulong Gpa = 0x10_0000;
    private const ulong SharedBit = 1UL << 47;

    public static TheoryData<string> Generations => ["K616", "K618", "K619", "K70", "K72", "NEXTHOOK"];

    [Theory]
    [MemberData(nameof(Generations))]
    public void Launch_RunAndClose_LeavesNothing(string profile)
    {
        (TestVm vm, TestGuest guest, int gmem) = Launched(profile, out byte[] content);

        Assert.Equal(content[..16], guest.Read(Gpa, 16));
        Assert.Equal(0UL, guest.Accept(Gpa + 0x1000));
        guest.Write(Gpa + 0x1000, 1, 2, 3);
        Assert.Equal([1, 2, 3], guest.Read(Gpa + 0x1000, 3));
        vm.Vmm.Host.Host.CheckInvariants();
        Vmm.Must(vm.Vmm.Close(gmem));
        vm.Vmm.Host.Host.CheckInvariants();
    }

    [Theory]
    [MemberData(nameof(Generations))]
    public void Convert_ToSharedAndBack_LosesTheContent(string profile)
    {
        (TestVm vm, TestGuest guest, _) = Launched(profile, out _);

        vm.SetShared(Gpa, 1);
        vm.SetPrivate(Gpa, 1);
        Assert.Equal(SeptState.FREE, vm.TdxModule.Look(vm.TdxBackend.Tdr, Gpa).State);
        Assert.Equal(0UL, guest.Accept(Gpa));

        Assert.Equal(new byte[16], guest.Read(Gpa, 16));
        vm.Vmm.Host.Host.CheckInvariants();
    }

    [Theory]
    [MemberData(nameof(Generations))]
    public void PendingPage_TouchedWithoutVe_KillsTheVm(string profile)
    {
        (TestVm vm, TestGuest guest, _) = Launched(profile, out _);
        guest.PreFault(Gpa + 0x1000, 1);

        AssertRefused(guest.Run(TestGuest.Fetch(Gpa + 0x1000)), Errno.EIO, TdxBackend.PendingAccess);
        AssertRefused(guest.Continue(), Errno.EIO, Vm.IsDead);
    }

    [Theory]
    [MemberData(nameof(Generations))]
    public void PendingPage_TouchedWithVe_IsTheGuestsBusiness(string profile)
    {
        (_, TestGuest guest, _) = Launched(profile, out _, attributes: 0);

        AssertOk(guest.Run(TestGuest.Fetch(Gpa + 0x1000), new GuestTdcall(new TdcallRegisters { Rax = (ulong)TdcallLeaf.TDG_VP_VEINFO_GET }), new GuestHalt()));

        GuestStepResult[] results = [.. guest.Results];
        Assert.Equal(new GuestException("#VE", 48, Gpa + 0x1000), results[0].Exception);
        Assert.Equal((0UL, 48UL, Gpa + 0x1000), (results[1].Rax, results[1].Registers!.Value.Rcx, results[1].Registers!.Value.R9));
    }

    [Fact]
    public void SharedBit_SelectsTheHostsMemory()
    {
        (TestVm vm, TestGuest guest, _) = Launched(K72, out _);
        ulong uaddr = vm.Vmm.Map(1);
        vm.AddSlot(1, 0x80_0000, 1, uaddr);

        guest.Write(0x80_0000 | SharedBit, 7, 8);

        Assert.Equal([7, 8], vm.Vmm.Load(uaddr, 2));
        AssertOk(guest.Run(new GuestRead(0x80_0000, 2, GuestAccess.Shared), new GuestHalt()));
        Assert.Equal([7, 8], guest.Results[0].Data.ToArray());
        CallReport private_ = guest.Run(TestGuest.Fetch(0x80_0000));
        Assert.Equal((Errno.EFAULT, (uint)KvmExit.KVM_EXIT_MEMORY_FAULT, (8UL, 0x80_0000UL, 4096UL)), (private_.Errno, guest.ExitReason, guest.MemoryFault));
    }

    [Theory]
    [MemberData(nameof(Generations))]
    public void FailedAdd_KillsTheVm_OnlyWhereItIsPartOfTheMapping(string profile)
    {
        TestVm vm = Built(profile, out TestGuest guest);
        ulong source = vm.Vmm.MapFilled(1);
        vm.TdxModule.Inject(SeamcallLeaf.TDH_MEM_PAGE_ADD, TdxStatus.OPERAND_INVALID.With(TdxOperand.R9));
        bool isPartOfIt = vm.Vmm.Host.Profile.TdxAddsWhileMapping;
        if (isPartOfIt)
        {
            vm.Vmm.Host.Expect("vm-bugged");
        }

        AssertRefused(vm.TryTdxRegion(guest.Fd, source, Gpa, 1).Report, Errno.EIO, TdxModule.Injected);

        Assert.Equal(isPartOfIt, vm.Kernel.Dead);
        if (!isPartOfIt)
        {
            // The mirror has a page that the module has not: nothing is final before a hole is punched there.
            vm.Vmm.Host.Host.CheckInvariants();
            AssertRefused(vm.TryTdxFinalize().Report, Errno.EINVAL, TdxBackend.PremappedLeft);
            vm.SetShared(Gpa, 1);
            vm.TdxFinalize();
        }
    }

    [Theory]
    [InlineData("K616", Errno.EBUSY)]
    [InlineData("K619", Errno.OK)]
    [InlineData("K72", Errno.OK)]
    public void BusyAdd_IsRetriedByTheKernel_OrByTheVmm(string profile, Errno expected)
    {
        TestVm vm = Built(profile, out TestGuest guest);
        ulong source = vm.Vmm.MapFilled(1);
        vm.TdxModule.Inject(SeamcallLeaf.TDH_MEM_PAGE_ADD, TdxStatus.OPERAND_BUSY.With(TdxOperand.RCX));

        CallReport report = vm.TryTdxRegion(guest.Fd, source, Gpa, 1).Report;
        Assert.Equal((expected, expected != Errno.OK), (report.Errno, report.Causes.Any(cause => cause.Rule == TdxBackend.PageAddFailed)));
        Assert.False(vm.Kernel.Dead);
    }

    [Theory]
    [InlineData(SeamcallLeaf.TDH_MEM_RANGE_BLOCK)]
    [InlineData(SeamcallLeaf.TDH_MEM_TRACK)]
    [InlineData(SeamcallLeaf.TDH_MEM_PAGE_REMOVE)]
    public void Unmap_BusyOnce_IsDoneAllTheSame(SeamcallLeaf leaf)
    {
        (TestVm vm, TestGuest guest, _) = Launched(K72, out _);
        vm.TdxModule.Inject(leaf, TdxStatus.OPERAND_BUSY.With(TdxOperand.SEPT_TREE));

        vm.SetShared(Gpa, 1);

        Assert.Equal(SeptState.FREE, vm.TdxModule.Look(vm.TdxBackend.Tdr, Gpa).State);
        Assert.False(guest.Vm.Kernel.Dead);
    }

    [Theory]
    [InlineData(SeamcallLeaf.TDH_MEM_RANGE_BLOCK)]
    [InlineData(SeamcallLeaf.TDH_MEM_TRACK)]
    [InlineData(SeamcallLeaf.TDH_MEM_PAGE_REMOVE)]
    public void Unmap_ThatFails_KillsTheVmAndLeaksThePage(SeamcallLeaf leaf)
    {
        (TestVm vm, _, _) = Launched(K72, out _);
        vm.Vmm.Host.Expect("vm-bugged");
        vm.TdxModule.Inject(leaf, TdxStatus.OPERAND_BUSY.With(TdxOperand.SEPT_TREE), times: 2);

        vm.SetShared(Gpa, 1);

        Assert.True(vm.Kernel.Dead);
        vm.Vmm.Process.Exit();
        Assert.True(vm.Vmm.Host.Machine.LeakedPages > 0);
    }

    [Fact]
    public void InitVm_WithoutEntropy_IsEagain_AndCanBeRepeated()
    {
        TestVm vm = Boot(K72, TestVm.IntelMachine()).Vmm.CreateVm(VmType.KVM_X86_TDX_VM).SplitIrqchip();
        vm.TdxModule.Inject(SeamcallLeaf.TDH_MNG_CREATE, TdxStatus.RND_NO_ENTROPY, times: TdxModule.EntropyRetries + 1);
        CallReport report = vm.TryTdxInitVm().Report;
        Assert.Equal((Errno.EAGAIN, TdxBackend.SeamcallFailed), (report.Errno, report.Causes[^1].Rule));

        // A few times the kernel helps itself.
        vm.TdxModule.Inject(SeamcallLeaf.TDH_MNG_ADDCX, TdxStatus.RND_NO_ENTROPY, times: TdxModule.EntropyRetries);
        vm.TdxInitVm();
        Assert.Equal(TdOpState.Initialized, vm.Td.OpState);
    }

    [Fact]
    public void InitVm_WithoutKeyIds_IsEnospc_UntilATdGoes()
    {
        TestHost host = Boot(K72, TestVm.IntelMachine(new TdxModuleConfig { GuestHkids = 1 }));
        TestVm first = host.Vmm.CreateVm(VmType.KVM_X86_TDX_VM), second = host.Vmm.CreateVm(VmType.KVM_X86_TDX_VM);
        first.TdxInitVm();
        AssertRefused(second.TryTdxInitVm().Report, Errno.ENOSPC, KvmIntel.NoHkid);

        Vmm.Must(host.Vmm.Close(first.Fd));
        host.Vms.Remove(first);

        second.TdxInitVm();
    }

    [Theory]
    [InlineData("K616", Errno.OK)]
    [InlineData("K618", Errno.ENOTTY)]
    public void KernelIrqchip_OfATd(string profile, Errno expected)
    {
        TestVm vm = Boot(profile, TestVm.IntelMachine()).Vmm.CreateVm(VmType.KVM_X86_TDX_VM);
        CallReport irqchip = vm.Vmm.Ioctl(vm.Fd, KvmIoctl.KVM_CREATE_IRQCHIP, 0);
        Assert.Equal(expected, irqchip.Errno);
        Assert.Equal(expected == Errno.OK ? [] : [Vm.NoKernelIrqchipForTd], irqchip.Causes.Select(cause => cause.Rule));
        vm.TdxInitVm();
        AssertRefused(vm.TryCreateVcpu(0), Errno.EINVAL, TdxBackend.NeedsSplitIrqchip);
    }

    [Fact]
    public void InPlace_NullSource_AddsWhatThePageHas()
    {
        TestVm vm = Boot("IP8", TestVm.IntelMachine()).Vmm.CreateVm(VmType.KVM_X86_TDX_VM).SplitIrqchip();
        vm.TdxInitVm();
        TestGuest guest = vm.AddTdVcpu();
        const ulong mapped = kvm_create_guest_memfd.GUEST_MEMFD_FLAG_MMAP, shared = kvm_create_guest_memfd.GUEST_MEMFD_FLAG_INIT_SHARED;
        int gmem = vm.CreateGmem(1, mapped | shared);
        vm.AddGmemSlot(0, Gpa, 1, gmem);
        ulong window = (ulong)vm.Vmm.Process.Mmap(0, 4096, Vmm.ProtRead | Vmm.ProtWrite, Vmm.MapShared, gmem, 0).Value;
        vm.Vmm.Store(window, new byte[] { 5, 6, 7 });
        Vmm.Must(vm.Vmm.Process.Munmap(window, 4096));
        var convert = new kvm_memory_attributes2 { offset = 0, size = 4096, attributes = TestVm.Private };
        Vmm.Must(vm.Vmm.Ioctl(gmem, KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES2, ref convert));

        vm.TdxRegion(guest.Fd, 0, Gpa, 1);
        vm.TdxFinalize();

        Assert.Equal([5, 6, 7], guest.Read(Gpa, 3));
    }

    private TestVm Built(string profile, out TestGuest guest, ulong attributes = TestVm.TdAttributes)
    {
        TestVm vm = Boot(profile, TestVm.IntelMachine()).Vmm.CreateVm(VmType.KVM_X86_TDX_VM).SplitIrqchip();
        vm.TdxInitVm(attributes);
        guest = vm.AddTdVcpu();
        vm.AddPrivateMemory(Gpa, 16);
        return vm;
    }

    private (TestVm Vm, TestGuest Guest, int Gmem) Launched(string profile, out byte[] content, ulong attributes = TestVm.TdAttributes)
    {
        TestVm vm = Boot(profile, TestVm.IntelMachine()).Vmm.CreateVm(VmType.KVM_X86_TDX_VM).SplitIrqchip();
        vm.TdxInitVm(attributes);
        TestGuest guest = vm.AddTdVcpu();
        int gmem = vm.AddPrivateMemory(Gpa, 16);
        ulong source = vm.Vmm.Map(1);
        content = [.. Enumerable.Range(0, 4096).Select(i => (byte)(i * 7))];
        vm.Vmm.Store(source, content);
        vm.TdxRegion(guest.Fd, source, Gpa, 1);
        vm.TdxFinalize();
        return (vm, guest, gmem);
    }
}
