using System.Buffers.Binary;
using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Tests.Support;
using SimKvm.Userspace;
using SimMachine.Stepping;
using Xunit;

namespace SimKvm.Tests;

/// <summary>Ioctls of /dev/kvm, VMs and vCPUs with arguments that cannot be: errno and reason, and nothing changes.</summary>
public sealed class BadKvmCallTests : KvmTest
{
    private static readonly BadCall[] s_calls =
    [
        new("GET_SUPPORTED_CPUID: no room", w => w.Vmm.Process.Ioctl(w.Vmm.Kvm, KvmIoctl.KVM_GET_SUPPORTED_CPUID, new byte[8]), Errno.E2BIG, KvmDevice.TooFewEntries),
        new("GET_MSR_INDEX_LIST: no room", w => w.Vmm.Process.Ioctl(w.Vmm.Kvm, KvmIoctl.KVM_GET_MSR_INDEX_LIST, new byte[4]), Errno.E2BIG, KvmDevice.TooFewMsrs),

        new("ENABLE_CAP MAX_VCPU_ID: more than there can be", w => w.Vm.TryEnableCap(KvmCap.MAX_VCPU_ID, 0, 4097), Errno.EINVAL, Vm.CapArgument),
        new("ENABLE_CAP MAX_VCPU_ID: again, otherwise", w => w.WithVcpuIds(8).TryEnableCap(KvmCap.MAX_VCPU_ID, 0, 9), Errno.EINVAL, Vm.MaxVcpuIdSet),
        new("ENABLE_CAP DISABLE_QUIRKS2: what is no quirk", w => w.Vm.TryEnableCap(KvmCap.DISABLE_QUIRKS2, 0, 1UL << 63), Errno.EINVAL, Vm.CapArgument),
        new("CREATE_VCPU: not below MAX_VCPU_ID", w => w.WithVcpuIds(8).TryCreateVcpu(8), Errno.EINVAL, Vm.BeyondMaxVcpuId),
        new("ENABLE_CAP SPLIT_IRQCHIP: 25 pins", w => w.Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM).TryEnableCap(KvmCap.SPLIT_IRQCHIP, 0, 25), Errno.EINVAL, Vm.TooManyPins),
        new("CREATE_IRQCHIP: after a vCPU", w => w.Vmm.Ioctl(w.Vm.Fd, KvmIoctl.KVM_CREATE_IRQCHIP, 0), Errno.EINVAL, Vm.IrqchipAfterVcpu),
        new("CREATE_IRQCHIP: again", w => w.WithIrqchip(), Errno.EEXIST, Vm.IrqchipExists),
        new("SET_TSS_ADDR: not below 4 GiB", w => w.Vmm.Ioctl(w.Vm.Fd, KvmIoctl.KVM_SET_TSS_ADDR, 0xffff_e000), Errno.EINVAL, Vm.TssAddress),
        new("SET_IDENTITY_MAP_ADDR: after a vCPU", w => w.Vmm.Process.Ioctl(w.Vm.Fd, KvmIoctl.KVM_SET_IDENTITY_MAP_ADDR, new byte[8]), Errno.EINVAL, Vm.IdentityMapTooLate),
        new("SET_TSC_KHZ: beyond any processor", w => w.Vmm.Ioctl(w.Vm.Fd, KvmIoctl.KVM_SET_TSC_KHZ, uint.MaxValue), Errno.EINVAL, Vm.TscTooFast),

        new("GET_DIRTY_LOG: a slot id that cannot be", w => w.Log(slot: 0x8000), Errno.EINVAL, DirtyLog.BadSlot),
        new("GET_DIRTY_LOG: an address space that is not there", w => w.Log(slot: 7 << 16), Errno.EINVAL, DirtyLog.BadSlot),
        new("GET_DIRTY_LOG: a slot without log", w => w.Log(slot: 0), Errno.ENOENT, DirtyLog.NoLog),
        new("GET_DIRTY_LOG: no slot", w => w.Log(slot: 5), Errno.ENOENT, DirtyLog.NoLog),
        new("CLEAR_DIRTY_LOG: not from a multiple of 64", w => w.Clear(first: 1, pages: 64), Errno.EINVAL, DirtyLog.ClearRange),
        new("CLEAR_DIRTY_LOG: behind the slot", w => w.Clear(first: 128, pages: 64), Errno.EINVAL, DirtyLog.ClearRange),

        new("SET_MSRS: 256 of them", w => w.Vmm.Process.Ioctl(w.Vcpu, KvmIoctl.KVM_SET_MSRS, Header(256)), Errno.E2BIG, VcpuArch.TooManyMsrs),
        new("SET_CPUID2: 257 entries", w => w.Vmm.Process.Ioctl(w.Vcpu, KvmIoctl.KVM_SET_CPUID2, Header(257)), Errno.E2BIG, VcpuArch.TooManyCpuidEntries),
        new("a load behind what a vCPU shares", w => w.LoadBehindRunPages(), Errno.EFAULT, VcpuFile.BehindRunPages),
    ];

    public static TheoryData<string> Calls => [.. s_calls.Select(call => call.Name)];

    [Theory]
    [MemberData(nameof(Calls))]
    public void BadCall_IsRefused_AndNothingIsMade(string name)
    {
        BadCall bad = s_calls.Single(call => call.Name == name);
        foreach (string profile in new[] { K616, K72 })
        {
            var world = new World(Boot(profile));
            int vcpus = world.Vm.Kernel.CreatedVcpus;
            AssertRefused(bad.Call(world), bad.Errno, bad.Rule);
            Assert.Equal(vcpus, world.Vm.Kernel.CreatedVcpus);
        }
    }

    [Fact]
    public void TscOfATd_IsNotForItsVcpusToSet()
    {
        TestVm vm = Boot(K72, TestVm.IntelMachine()).Vmm.CreateVm(VmType.KVM_X86_TDX_VM).SplitIrqchip();
        vm.TdxInitVm();
        int vcpu = vm.CreateVcpu(0);
        AssertRefused(vm.Vmm.Ioctl(vcpu, KvmIoctl.KVM_SET_TSC_KHZ, 1_000_000), Errno.EINVAL, Vcpu.TscIsProtected);
    }

    private static byte[] Header(uint count)
    {
        byte[] header = new byte[8];
        BinaryPrimitives.WriteUInt32LittleEndian(header, count);
        return header;
    }

    private sealed record BadCall(string Name, Func<World, CallReport> Call, Errno Errno, Rule Rule);

    /// <summary>A VM with a vCPU, and two slots of 128 pages of which the second is logged.</summary>
    private sealed class World
    {
        public World(TestHost host)
        {
            Vmm = host.Vmm;
            Vm = Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM);
            Vm.AddSlot(0, 0, 128, Vmm.Map(128));
            Vm.AddSlot(1, 1 << 20, 128, Vmm.Map(128), KvmMem.LOG_DIRTY_PAGES);
            Vcpu = Vm.CreateVcpu(0);
        }

        public Vmm Vmm { get; }

        public TestVm Vm { get; }

        public int Vcpu { get; }

        public TestVm WithVcpuIds(ulong most)
        {
            AssertOk(Vm.TryEnableCap(KvmCap.MAX_VCPU_ID, 0, most));
            return Vm;
        }

        public CallReport WithIrqchip()
        {
            TestVm vm = Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM);
            AssertOk(Vmm.Ioctl(vm.Fd, KvmIoctl.KVM_CREATE_IRQCHIP, 0));
            return Vmm.Ioctl(vm.Fd, KvmIoctl.KVM_CREATE_IRQCHIP, 0);
        }

        public CallReport Log(uint slot)
        {
            var log = new kvm_dirty_log { slot = slot, dirty_bitmap = Vmm.Map(1) };
            return Vmm.Ioctl(Vm.Fd, KvmIoctl.KVM_GET_DIRTY_LOG, ref log);
        }

        public CallReport Clear(ulong first, uint pages)
        {
            var clear = new kvm_clear_dirty_log { slot = 1, first_page = first, num_pages = pages, dirty_bitmap = Vmm.Map(1) };
            return Vmm.Ioctl(Vm.Fd, KvmIoctl.KVM_CLEAR_DIRTY_LOG, ref clear);
        }

        public CallReport LoadBehindRunPages()
        {
            const ulong pages = 3;
            ulong run = (ulong)AssertOk(Vmm.Process.Mmap(0, (pages + 1) * Vmm.Page, Vmm.ProtRead, Vmm.MapShared, Vcpu, 0)).Value;
            return Vmm.Process.Read(run + (pages * Vmm.Page), new byte[1]);
        }
    }
}
