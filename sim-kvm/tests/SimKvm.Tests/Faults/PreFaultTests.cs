using System.Buffers.Binary;
using System.Runtime.InteropServices;
using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Tests.Support;
using SimKvm.Userspace;
using SimMachine;
using SimMachine.Addressing;
using SimMachine.Stepping;
using Xunit;

namespace SimKvm.Tests.Faults;

/// <summary>KVM_PRE_FAULT_MEMORY (kvm-guest-memory.md 7): checks, partial progress, and a row for each outcome of the fault attempt.</summary>
public sealed class PreFaultTests : KvmTest
{
    private const VmType T = VmType.KVM_X86_SW_PROTECTED_VM;
    private const ulong Gpa = 0x20_0000;

    public static TheoryData<string> PreFaultProfiles => ["K611", K616, "K618", "K619", "K70", K72, "NEXTHOOK"];

    public static TheoryData<string> TdxProfiles => [K616, "K618", "K619", "K70", K72];

    public static TheoryData<string, Errno> InvalidSlot => new()
    {
        { "K611", Errno.EINTR }, { K616, Errno.EINTR }, { "K618", Errno.EAGAIN }, { "K619", Errno.EAGAIN }, { "K70", Errno.EAGAIN }, { K72, Errno.EAGAIN },
    };

    [Fact]
    public void Copies_FaultInAndOut()
    {
        TestGuest guest = Shared(out _);
        AssertRefused(guest.Vm.Vmm.IoctlCutShort(guest.Fd, KvmIoctl.KVM_PRE_FAULT_MEMORY, default(kvm_pre_fault_memory)), Errno.EFAULT, UserArg.CopyInFaulted);
        // The structure is copied back after errors too, so a page that can only be read hides them.
        byte[] range = new byte[64];
        BinaryPrimitives.WriteUInt64LittleEndian(range.AsSpan(16), 1);
        ulong readOnly = guest.Vm.Vmm.MapReadOnly(range);
        CallReport report = guest.Vm.Vmm.Ioctl(guest.Fd, KvmIoctl.KVM_PRE_FAULT_MEMORY, readOnly);
        Assert.Equal((Errno.EFAULT, Vcpu.PreFaultFlags), (report.Errno, report.Causes[0].Rule));
        Assert.Contains(report.Causes, cause => cause.Rule == UserArg.CopyOutFaulted);
    }

    [Theory]
    [InlineData(Gpa, 4096, 1, "flags")]
    [InlineData(Gpa + 1, 0, 1UL << 63, "flags")]
    [InlineData(Gpa + 1, 4096, 0, "range")]
    [InlineData(Gpa, 4095, 0, "range")]
    [InlineData(Gpa, 0, 0, "range")]
    [InlineData(0xffff_ffff_ffff_f000, 4096, 0, "range")]
    [InlineData(0x1000, 0xffff_ffff_ffff_f000, 0, "range")]
    public void BadArguments_AreEinval_AndEchoedWithThePadding(ulong gpa, ulong size, ulong flags, string rule)
    {
        TestGuest guest = Shared(out _);
        byte[] bytes = [.. Enumerable.Range(0, 64).Select(value => (byte)value)];
        MemoryMarshal.Write(bytes, gpa);
        MemoryMarshal.Write(bytes.AsSpan(8), size);
        MemoryMarshal.Write(bytes.AsSpan(16), flags);
        byte[] before = [.. bytes];
        CallReport report = guest.Vm.Vmm.Process.Ioctl(guest.Fd, KvmIoctl.KVM_PRE_FAULT_MEMORY, bytes);
        AssertRefused(report, Errno.EINVAL, rule == "flags" ? Vcpu.PreFaultFlags : Vcpu.PreFaultRange);
        Assert.Equal(before, bytes);
    }

    [Theory]
    [MemberData(nameof(PreFaultProfiles))]
    public void SharedPages_AreMappedForReading_AndNothingIsAllocated(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM);
        vm.AddSlot(0, Gpa, 4, host.Vmm.Map(4));
        var guest = new TestGuest(vm);
        long frames = host.Machine.AllocatedPages;

        guest.PreFault(Gpa, 4);

        Assert.Equal(frames, host.Machine.AllocatedPages);
        Assert.All(Enumerable.Range(0, 4), i => Assert.Equal((host.Host.ZeroPage, false), (guest.Leaf(Gpa + ((ulong)i << 12))!.Value.Pfn, guest.Leaf(Gpa + ((ulong)i << 12))!.Value.Writable)));
        // CoW is broken by the store, not by the pre-fault.
        guest.Write(Gpa, 5);
        Assert.Equal(frames + 1, host.Machine.AllocatedPages);
    }

    [Theory]
    [MemberData(nameof(PreFaultProfiles))]
    public void PrivatePages_AreMadeAndMapped_SoThatTheGuestTakesNoFault(string profile)
    {
        TestGuest guest = Private(out int gmem, profile);
        guest.PreFault(Gpa, 4);
        Assert.Equal(4UL, guest.Vm.Vmm.Gmem(gmem).Inode.CountPages());
        guest.PreFault(Gpa, 4);
        string[] steps = TestGuest.StepsOf(guest.Vm.Vmm.Host, () => guest.Write(Gpa, 1, 2));
        Assert.DoesNotContain("fault seq snapshot", steps);
    }

    [Theory]
    [MemberData(nameof(PreFaultProfiles))]
    public void PartialProgress_Is0WithTheRest_WhateverStopsIt(string profile)
    {
        foreach ((string stop, Errno errno) in new[] { ("no slot", Errno.ENOENT), ("signal", Errno.EINTR), ("bad hva", Errno.EFAULT) })
        {
            TestHost host = Boot(profile);
            TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM);
            ulong uaddr = host.Vmm.Map(3);
            vm.AddSlot(0, Gpa, stop == "no slot" ? 2UL : 3, uaddr);
            var guest = new TestGuest(vm);
            if (stop == "bad hva")
            {
                AssertOk(host.Vmm.Process.Munmap(uaddr + 0x2000, 0x1000));
            }
            var range = new kvm_pre_fault_memory { gpa = Gpa, size = 3 * 4096 };
            if (stop == "signal")
            {
                // One look for a signal by the loop and one by the fault, for each page.
                host.Vmm.Process.RaiseSignal(4);
            }

            AssertOk(guest.TryPreFault(ref range));
            Assert.Equal((Gpa + 0x2000, 0x1000UL), (range.gpa, range.size));

            if (stop == "signal")
            {
                host.Vmm.Process.RaiseSignal(0);
            }
            Assert.Equal(errno, guest.TryPreFault(ref range).Errno);
            Assert.Equal((Gpa + 0x2000, 0x1000UL), (range.gpa, range.size));
        }
    }

    [Theory]
    [MemberData(nameof(PreFaultProfiles))]
    public void NoSlot_IsEnoentShared_AndEfaultWithExitDataPrivate(string profile)
    {
        TestGuest guest = new(Boot(profile).Vmm.CreateVm(T));
        AssertRefused(guest.TryPreFault(Gpa, 1), Errno.ENOENT, Vcpu.PreFaultNoMemory);
        guest.Vm.SetPrivate(Gpa, 1);
        AssertRefused(guest.TryPreFault(Gpa, 1), Errno.EFAULT, Mmu.NoSlotForPrivate);
        Assert.Equal((39u, (8UL, Gpa, 4096UL)), (guest.ExitReason, guest.MemoryFault));
    }

    [Theory]
    [MemberData(nameof(PreFaultProfiles))]
    public void PrivateWithoutGuestMemfd_IsEfaultWithExitData(string profile)
    {
        TestGuest guest = Shared(out _, profile, T);
        guest.Vm.SetPrivate(Gpa, 4);
        AssertRefused(guest.TryPreFault(Gpa, 1), Errno.EFAULT, Mmu.NoGmem);
        Assert.Equal((39u, (8UL, Gpa, 4096UL)), (guest.ExitReason, guest.MemoryFault));
    }

    [Theory]
    [MemberData(nameof(PreFaultProfiles))]
    public void AttributeChangedByARace_IsEfaultWithExitData(string profile)
    {
        TestGuest guest = Private(out _, profile);
        guest.At("fault attribute test", other => other.SetAttributes(guest.Vm, Gpa, 1, 0));
        AssertRefused(guest.TryPreFault(Gpa, 1), Errno.EFAULT, Mmu.AccessMismatch);
        Assert.Equal((39u, (8UL, Gpa, 4096UL)), (guest.ExitReason, guest.MemoryFault));
    }

    [Theory]
    [MemberData(nameof(PreFaultProfiles))]
    public void ClosedFile_IsEfaultWithExitData(string profile)
    {
        TestGuest guest = Private(out int gmem, profile);
        AssertOk(guest.Vm.Vmm.Close(gmem));
        CallReport report = guest.TryPreFault(Gpa, 1);
        AssertRefused(report, Errno.EFAULT, GuestMemfd.FileGone);
        Assert.Equal(Mmu.PageNotGiven, report.Causes[^1].Rule);
        Assert.Equal((39u, (8UL, Gpa, 4096UL)), (guest.ExitReason, guest.MemoryFault));
    }

    [Theory]
    [MemberData(nameof(PreFaultProfiles))]
    public void PoisonedPage_IsEhwpoisonWithExitData_UntilAHoleIsPunched(string profile)
    {
        TestGuest guest = Private(out int gmem, profile);
        guest.PreFault(Gpa, 1);
        guest.Vm.Vmm.Gmem(gmem).ErrorFolio(TestHost.NewThread(guest.Vm.Vmm), 0);
        Assert.Null(guest.Leaf(Gpa));
        AssertRefused(guest.TryPreFault(Gpa, 1), Errno.EHWPOISON, GuestMemfd.Poisoned);
        Assert.Equal((39u, (8UL, Gpa, 4096UL)), (guest.ExitReason, guest.MemoryFault));
        AssertOk(guest.Vm.Vmm.Process.Fallocate(gmem, 3, 0, 4096));
        guest.PreFault(Gpa, 1);
    }

    [Theory]
    [MemberData(nameof(PreFaultProfiles))]
    public void FullMachine_IsEnomemWithExitData(string profile)
    {
        TestHost host = Boot(profile, new MachineConfig { MemoryBytes = 16 << 12 });
        TestVm vm = host.Vmm.CreateVm(T);
        vm.AddGmemSlot(0, Gpa, 64, vm.CreateGmem(64));
        vm.SetPrivate(Gpa, 64);
        var guest = new TestGuest(vm);
        var range = new kvm_pre_fault_memory { gpa = Gpa, size = 64 << 12 };
        AssertOk(guest.TryPreFault(ref range));
        Assert.InRange(range.size, 4096UL, 63UL << 12);
        AssertRefused(guest.TryPreFault(ref range), Errno.ENOMEM, GuestMemfd.NoMemory);
        Assert.Equal((39u, range.gpa), (guest.ExitReason, guest.MemoryFault.Gpa));
    }

    [Theory]
    [MemberData(nameof(PreFaultProfiles))]
    public void BindingOfAnotherSlot_IsEio(string profile)
    {
        TestGuest guest = Private(out int gmem, profile);
        TestVm vm = guest.Vm;
        // What no ioctl brings about: the slot says a page that the file has bound to nobody.
        Memslot slot = vm.Kernel.Memslots.Find(new Gfn(Gpa >> 12))!;
        Assert.Equal(4UL, vm.Vmm.Gmem(gmem).Inode.Pages);
        slot.GmemPgoff = 4;
        AssertRefused(guest.TryPreFault(Gpa, 1), Errno.EIO, GuestMemfd.BoundElsewhere);
        slot.GmemPgoff = 0;
    }

    [Theory]
    [MemberData(nameof(InvalidSlot))]
    public void SlotBeingDeleted_IsEagainSince618_AndWaitedForBefore(string profile, Errno errno)
    {
        TestGuest guest = Shared(out _, profile);
        SyscallResult seen = default;
        Rule? reason = null;
        guest.At("memslot stage-2 zap", other =>
        {
            other.BeginCall(900);
            var range = new kvm_pre_fault_memory { gpa = Gpa, size = 4096 };
            seen = other.TryIoctl(guest.Fd, KvmIoctl.KVM_PRE_FAULT_MEMORY, ref range);
            reason = other.Causes[0].Rule;
        });
        guest.Vm.DeleteSlot(0);
        Assert.Equal((errno, errno == Errno.EAGAIN ? Mmu.SlotIsChanging : Vcpu.Livelock), (seen.Errno, reason));
        AssertRefused(guest.TryPreFault(Gpa, 1), Errno.ENOENT, Vcpu.PreFaultNoMemory);
    }

    [Theory]
    [MemberData(nameof(PreFaultProfiles))]
    public void BadHostAddress_IsEfault_AndTheRunPageIsLeftAlone(string profile)
    {
        TestGuest guest = new(Boot(profile).Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM));
        guest.Vm.AddSlot(0, Gpa, 1, Vmm.Unmapped);
        CallReport report = guest.TryPreFault(Gpa, 1);
        AssertRefused(report, Errno.EFAULT, UserMemory.NotMapped);
        Assert.Equal(Mmu.HostPageFailed, report.Causes[^1].Rule);
        Assert.Equal(0u, guest.ExitReason);
    }

    [Fact]
    public void PoisonedHostPage_IsASigbus_SoEintr()
    {
        TestHost host = Boot();
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM);
        int gmem = vm.CreateGmem(1, 3);
        CallReport mapped = AssertOk(host.Vmm.Process.Mmap(0, 4096, 3, Vmm.MapShared, gmem, 0));
        AssertOk(host.Vmm.Process.Fallocate(gmem, 1, 0, 4096));
        host.Vmm.Gmem(gmem).ErrorFolio(TestHost.NewThread(host.Vmm), 0);
        vm.AddSlot(0, Gpa, 1, (ulong)mapped.Value);
        var guest = new TestGuest(vm);
        CallReport report = guest.TryPreFault(Gpa, 1);
        Assert.Equal(Errno.EINTR, report.Errno);
        Assert.Contains(report.Causes, cause => cause.Rule == GuestMemfd.Interrupted);
        Assert.Equal(0u, guest.ExitReason);
    }

    [Theory]
    [MemberData(nameof(PreFaultProfiles))]
    public void ReadOnlySlot_IsMapped(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM);
        vm.AddSlot(0, Gpa, 1, host.Vmm.MapFilled(1), KvmMem.READONLY);
        var guest = new TestGuest(vm);
        guest.PreFault(Gpa, 1);
        Assert.False(guest.Leaf(Gpa)!.Value.Writable);
    }

    [Theory]
    [MemberData(nameof(TdxProfiles))]
    public void SharedBitOfATd_IsEinval_AndStopsARangeThatReachesIt(string profile)
    {
        const ulong shared = 1UL << 47;
        TestVm vm = Boot(profile, TestVm.IntelMachine()).Vmm.CreateVm(VmType.KVM_X86_TDX_VM).SplitIrqchip();
        vm.TdxInitVm();
        TestGuest guest = vm.AddTdVcpu();
        vm.AddPrivateMemory(Gpa, 1);
        vm.AddSlot(1, shared - 0x1000, 1, vm.Vmm.Map(1));
        vm.TdxFinalize();
        AssertRefused(guest.TryPreFault(Gpa | shared, 1), Errno.EINVAL, Mmu.Alias);
        // The first page is done when the second is found to be an alias.
        var range = new kvm_pre_fault_memory { gpa = shared - 0x1000, size = 0x2000 };
        AssertOk(guest.TryPreFault(ref range));
        Assert.Equal((shared, 0x1000UL), (range.gpa, range.size));
        AssertRefused(guest.TryPreFault(ref range), Errno.EINVAL, Mmu.Alias);
    }

    [Fact]
    public void Snp_IsTooEarlyUntilTheLaunchIsFinished_ThenMakesPagesPrivate()
    {
        TestHost host = Boot();
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SNP_VM);
        vm.Init2();
        vm.AddPrivateMemory(Gpa, 4);
        var guest = new TestGuest(vm);
        AssertRefused(guest.TryPreFault(Gpa, 1), Errno.EOPNOTSUPP, Vcpu.PreFaultTooEarly);
        vm.Start();
        AssertRefused(guest.TryPreFault(Gpa, 1), Errno.EOPNOTSUPP, Vcpu.PreFaultTooEarly);
        vm.Finish();
        guest.PreFault(Gpa, 4);
        Assert.Equal(4, vm.Describe().Rmp.Where(run => !run.Vmsa).Sum(run => (long)(run.Size >> 12)));
    }

    [Theory]
    [InlineData(VmType.KVM_X86_DEFAULT_VM)]
    [InlineData(VmType.KVM_X86_SW_PROTECTED_VM)]
    [InlineData(VmType.KVM_X86_SEV_VM)]
    [InlineData(VmType.KVM_X86_SEV_ES_VM)]
    public void OtherTypes_MayPreFaultAtOnce(VmType type)
    {
        TestGuest guest = Shared(out _, K72, type);
        guest.PreFault(Gpa, 4);
        Assert.NotNull(guest.Leaf(Gpa));
    }

    [Fact]
    public void WithoutTwoDimensionalPaging_IsEopnotsupp_AndTheCapabilityIs0()
    {
        using var host = new SimHost(SimKvm.Profiles.KernelProfiles.K72, new MachineConfig(), 1) { Config = new KernelConfig { Tdp = false } };
        Process process = host.StartProcess();
        int kvm = (int)process.Open("/dev/kvm").Value;
        int vm = (int)process.Ioctl(kvm, KvmIoctl.KVM_CREATE_VM, 0).Value;
        int vcpu = (int)process.Ioctl(vm, KvmIoctl.KVM_CREATE_VCPU, 0).Value;
        byte[] range = new byte[64];
        BinaryPrimitives.WriteUInt64LittleEndian(range.AsSpan(8), 4096);
        // Before its first slot a VM is granted no pages for page tables, which is noticed first.
        AssertRefused(process.Ioctl(vcpu, KvmIoctl.KVM_PRE_FAULT_MEMORY, range), Errno.ENOSPC, Vcpu.NoShadowPages);
        byte[] region = new byte[32];
        BinaryPrimitives.WriteUInt64LittleEndian(region.AsSpan(16), 4096);
        AssertOk(process.Ioctl(vm, KvmIoctl.KVM_SET_USER_MEMORY_REGION, region));
        AssertRefused(process.Ioctl(vcpu, KvmIoctl.KVM_PRE_FAULT_MEMORY, range), Errno.EOPNOTSUPP, Vcpu.PreFaultNoTdp);
        Assert.Equal(0, process.Ioctl(kvm, KvmIoctl.KVM_CHECK_EXTENSION, KvmCap.PRE_FAULT_MEMORY).Value);
        Assert.Equal(0, process.Ioctl(vm, KvmIoctl.KVM_CHECK_EXTENSION, KvmCap.PRE_FAULT_MEMORY).Value);
        // Nor is there a VM type with private memory, of SEV or otherwise, and so no attribute.
        Assert.Equal(1, process.Ioctl(kvm, KvmIoctl.KVM_CHECK_EXTENSION, KvmCap.VM_TYPES).Value);
        AssertOk(process.Open("/dev/sev"));
        AssertRefused(process.Ioctl(vm, KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES, new byte[32]), Errno.ENOTTY, MemoryAttributes.NotBuilt);
    }

    private TestGuest Shared(out ulong uaddr, string profile = K72, VmType type = VmType.KVM_X86_DEFAULT_VM)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(type);
        uaddr = host.Vmm.MapFilled(4);
        vm.AddSlot(0, Gpa, 4, uaddr);
        return new TestGuest(vm);
    }

    private TestGuest Private(out int gmem, string profile)
    {
        TestVm vm = Boot(profile).Vmm.CreateVm(T);
        gmem = vm.CreateGmem(4);
        vm.AddGmemSlot(0, Gpa, 4, gmem);
        vm.SetPrivate(Gpa, 4);
        return new TestGuest(vm);
    }
}
