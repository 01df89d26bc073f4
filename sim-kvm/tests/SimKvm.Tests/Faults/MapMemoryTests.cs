using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Tests.Support;
using SimKvm.Userspace;
using Xunit;

namespace SimKvm.Tests.Faults;

/// <summary>The two forms of KVM_MAP_MEMORY that were posted before KVM_PRE_FAULT_MEMORY (kvm-guest-memory.md 7.6), and which kernel knows which number.</summary>
public sealed class MapMemoryTests : KvmTest
{
    private const ulong Gpa = 0x20_0000;
    private const ulong Gfn = Gpa >> 12;
    private const string V1 = "MAP24v1";
    private const string V2 = "MAP24v2";

    [Theory]
    [InlineData("K68", 0u)]
    [InlineData("GM23", 0u)]
    [InlineData("POP24", 0u)]
    [InlineData(V1, KvmIoctl.KVM_MAP_MEMORY_V1)]
    [InlineData(V2, KvmIoctl.KVM_MAP_MEMORY_V2)]
    [InlineData("K611", KvmIoctl.KVM_PRE_FAULT_MEMORY)]
    [InlineData(K72, KvmIoctl.KVM_PRE_FAULT_MEMORY)]
    public void EachKernel_KnowsOneNumberAtMost(string profile, uint known)
    {
        TestGuest guest = Plain(profile, 4);
        foreach (uint number in new[] { KvmIoctl.KVM_MAP_MEMORY_V1, KvmIoctl.KVM_MAP_MEMORY_V2, KvmIoctl.KVM_PRE_FAULT_MEMORY })
        {
            CallReport report = guest.Vm.Vmm.Process.Ioctl(guest.Fd, number, new byte[64]);
            // All zeros: no page is asked for.
            AssertRefused(report, Errno.EINVAL, number == known ? Vcpu.PreFaultRange : IoctlTable.Unknown);
        }
    }

    [Theory]
    [InlineData(Gfn, 1, 16, 0, "kvm.pre-fault.flags")]
    [InlineData(Gfn, 1, 8, 0, "kvm.map-memory.private")]
    [InlineData(Gfn, 1, 0, 0x1001, "kvm.pre-fault.range")]
    [InlineData(Gfn, 0, 0, 0, "kvm.pre-fault.range")]
    [InlineData(Gfn, ulong.MaxValue, 0, 0, "kvm.pre-fault.range")]
    [InlineData(1UL << 52, 1, 0, 0, "kvm.pre-fault.range")]
    public void V1_BadArguments_AreEinval_AndEchoed(ulong gfn, ulong pages, ulong flags, ulong source, string rule)
    {
        TestGuest guest = Plain(V1, 4);
        var mapping = new kvm_map_memory_v1 { base_gfn = gfn, nr_pages = pages, flags = flags, source = source };
        kvm_map_memory_v1 before = mapping;
        CallReport report = guest.Vm.Vmm.Ioctl(guest.Fd, KvmIoctl.KVM_MAP_MEMORY_V1, ref mapping);
        Assert.Equal((Errno.EINVAL, rule), (report.Errno, report.Causes[0].Rule.Id));
        Assert.Equal(before, mapping);
    }

    [Fact]
    public void V1_PagesLeftAfterProgress_AreEagain_WhateverStoppedIt()
    {
        foreach (bool bySignal in new[] { false, true })
        {
            TestGuest guest = Plain(V1, bySignal ? 3UL : 2);
            var mapping = new kvm_map_memory_v1 { base_gfn = Gfn, nr_pages = 3 };
            if (bySignal)
            {
                guest.Vm.Vmm.Process.RaiseSignal(4);
            }
            CallReport report = guest.Vm.Vmm.Ioctl(guest.Fd, KvmIoctl.KVM_MAP_MEMORY_V1, ref mapping);
            Assert.Equal((Errno.EAGAIN, Gfn + 2, 1UL), (report.Errno, mapping.base_gfn, mapping.nr_pages));
            Assert.Same(Vcpu.PartialWork, report.Causes[^1].Rule);
            if (!bySignal)
            {
                AssertRefused(guest.Vm.Vmm.Ioctl(guest.Fd, KvmIoctl.KVM_MAP_MEMORY_V1, ref mapping), Errno.ENOENT, Vcpu.PreFaultNoMemory);
            }
        }
    }

    [Fact]
    public void V1_AllDone_IsZeroPagesLeft()
    {
        TestGuest guest = Plain(V1, 4);
        var mapping = new kvm_map_memory_v1 { base_gfn = Gfn, nr_pages = 4 };
        AssertOk(guest.Vm.Vmm.Ioctl(guest.Fd, KvmIoctl.KVM_MAP_MEMORY_V1, ref mapping));
        Assert.Equal((Gfn + 4, 0UL), (mapping.base_gfn, mapping.nr_pages));
    }

    [Fact]
    public void V1_Write_AllocatesForWriting()
    {
        TestHost host = Boot(V1);
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM);
        vm.AddSlot(0, Gpa, 2, host.Vmm.Map(2));
        var guest = new TestGuest(vm);
        long frames = host.Machine.AllocatedPages;
        foreach ((ulong gfn, ulong flags, long added) in new[] { (Gfn, 0UL, 0L), (Gfn + 1, kvm_map_memory_v1.WRITE, 1L) })
        {
            var mapping = new kvm_map_memory_v1 { base_gfn = gfn, nr_pages = 1, flags = flags };
            AssertOk(host.Vmm.Ioctl(guest.Fd, KvmIoctl.KVM_MAP_MEMORY_V1, ref mapping));
            Assert.Equal((frames + added, added == 1), (host.Machine.AllocatedPages, guest.Leaf(gfn << 12)!.Value.Writable));
        }
    }

    [Fact]
    public void V1_Private_SaysWhatTheAccessIs_AndMustAgreeWithTheAttribute()
    {
        TestHost host = Boot(V1);
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
        vm.AddGmemSlot(0, Gpa, 4, vm.CreateGmem(4), uaddr: host.Vmm.Map(4));
        vm.SetPrivate(Gpa, 1);
        var guest = new TestGuest(vm);
        foreach ((ulong gfn, ulong flags, bool agrees) in new[] { (Gfn, 8UL, true), (Gfn, 0UL, false), (Gfn + 1, 8UL, false), (Gfn + 1, 0UL, true) })
        {
            var mapping = new kvm_map_memory_v1 { base_gfn = gfn, nr_pages = 1, flags = flags };
            CallReport report = host.Vmm.Ioctl(guest.Fd, KvmIoctl.KVM_MAP_MEMORY_V1, ref mapping);
            Assert.Equal(agrees ? Errno.OK : Errno.EFAULT, report.Errno);
        }
    }

    [Theory]
    [InlineData(Gpa, 4096, 1, "kvm.pre-fault.flags")]
    [InlineData(Gpa + 8, 4096, 0, "kvm.pre-fault.range")]
    [InlineData(Gpa, 0, 0, "kvm.pre-fault.range")]
    [InlineData(0xffff_ffff_ffff_f000, 4096, 0, "kvm.pre-fault.range")]
    public void V2_BadArguments_AreEinval_AndEchoed(ulong address, ulong size, ulong flags, string rule)
    {
        TestGuest guest = Plain(V2, 4);
        var mapping = new kvm_map_memory_v2 { base_address = address, size = size, flags = flags };
        kvm_map_memory_v2 before = mapping;
        CallReport report = guest.Vm.Vmm.Ioctl(guest.Fd, KvmIoctl.KVM_MAP_MEMORY_V2, ref mapping);
        Assert.Equal((Errno.EINVAL, rule), (report.Errno, report.Causes[0].Rule.Id));
        Assert.Equal(before, mapping);
    }

    [Theory]
    [InlineData(false, Errno.ENOENT)]
    [InlineData(true, Errno.EINTR)]
    public void V2_ErrorAfterPartialWork_IsTold_AndTheStructureSaysTheRest(bool bySignal, Errno errno)
    {
        TestGuest guest = Plain(V2, bySignal ? 3UL : 2);
        var mapping = new kvm_map_memory_v2 { base_address = Gpa, size = 3 * 4096 };
        if (bySignal)
        {
            guest.Vm.Vmm.Process.RaiseSignal(4);
        }
        CallReport report = guest.Vm.Vmm.Ioctl(guest.Fd, KvmIoctl.KVM_MAP_MEMORY_V2, ref mapping);
        Assert.Equal((errno, Gpa + 0x2000, 0x1000UL), (report.Errno, mapping.base_address, mapping.size));
    }

    private TestGuest Plain(string profile, ulong pages)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM);
        vm.AddSlot(0, Gpa, pages, host.Vmm.Map(pages));
        return new TestGuest(vm);
    }
}
