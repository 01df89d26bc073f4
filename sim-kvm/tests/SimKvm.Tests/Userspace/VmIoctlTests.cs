using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Tests.Support;
using SimKvm.Userspace;
using SimKvm.Vendors.Amd;
using SimMachine;
using Xunit;

namespace SimKvm.Tests;

/// <summary>KVM_CREATE_VCPU and KVM_ENABLE_CAP: kvm-guest-memory.md 2.5, 2.6.</summary>
public sealed class VmIoctlTests : KvmTest
{
    private static readonly CheckTable<VcpuCall> Vcpus = new(
        new Check<VcpuCall>("1 id", Errno.EINVAL, Vm.VcpuIdTooLarge, call => call.Id |= 4096) { Tags = "id" },
        new Check<VcpuCall>("2 count", Errno.EINVAL, Vm.TooManyVcpus, call => call.FillWithVcpus()) { Tags = "memory" },
        new Check<VcpuCall>("5 no memory", Errno.ENOMEM, Vm.NoRunPage, call => call.ExhaustMemory(leave: RunPage.Pages - 1)) { Tags = "memory" },
        new Check<VcpuCall>("5 no memory for the VMSA", Errno.ENOMEM, SevBackend.NoVmsaPage, call => call.ExhaustMemory(leave: RunPage.Pages)) { Tags = "memory" },
        new Check<VcpuCall>("6 id in use", Errno.EEXIST, Vm.VcpuExists, call => call.Id = 7) { Tags = "id" },
        new Check<VcpuCall>("7 no descriptor", Errno.EMFILE, FdTable.TableFull, call => call.Vm.Vmm.ExhaustDescriptors()));

    private static readonly CheckTable<CapCall> Caps = new(
        new Check<CapCall>("copy-in", Errno.EFAULT, UserArg.CopyInFaulted, call => call.CutShort = true),
        new Check<CapCall>("flags", Errno.EINVAL, Vm.CapFlags, call => call.Args.flags = 1),
        new Check<CapCall>("capability", Errno.EINVAL, Vm.CapUnknown, call => call.Args.cap = (uint)KvmCap.GUEST_MEMFD),
        new Check<CapCall>("hypercall mask", Errno.EINVAL, Vm.HypercallMask, call => call.Args.args0 |= 1));

    public static TheoryData<string, string> VcpuSingles => Vcpus.Singles();

    public static TheoryData<string, string, string> VcpuPairs => Vcpus.Pairs();

    public static TheoryData<string, string> CapSingles => Caps.Singles();

    public static TheoryData<string, string, string> CapPairs => Caps.Pairs();

    public static TheoryData<ulong> QueriedOnly =>
        [KvmCap.VM_TYPES, KvmCap.GUEST_MEMFD, KvmCap.GUEST_MEMFD_FLAGS, KvmCap.MEMORY_ATTRIBUTES, KvmCap.USER_MEMORY2, KvmCap.MEMORY_FAULT_INFO, 0, 9999];

    [Theory]
    [MemberData(nameof(VcpuSingles))]
    public void CreateVcpu_OneCheckViolated_IsRefusedAndChangesNothing(string profile, string check)
    {
        TestHost host = BootSmall(profile);
        var call = new VcpuCall(host);
        Vcpus[check].Violate(call);
        AssertRefusedUnchanged(host, call.Issue, Vcpus[check].Errno, Vcpus[check].Rule);
        Assert.Equal(call.Vm.Kernel.Vcpus.Count, call.Vm.Kernel.CreatedVcpus);
        call.GiveMemoryBack();
    }

    [Theory]
    [MemberData(nameof(VcpuPairs))]
    public void CreateVcpu_TwoChecksViolated_AnswersTheFirst(string profile, string first, string second)
    {
        TestHost host = BootSmall(profile);
        var call = new VcpuCall(host);
        // Filling the table of descriptors comes last: making vCPUs needs some.
        foreach (string check in new[] { first, second })
        {
            Vcpus[check].Violate(call);
        }
        AssertRefusedUnchanged(host, call.Issue, Vcpus[first].Errno, Vcpus[first].Rule);
        Assert.Equal(call.Vm.Kernel.Vcpus.Count, call.Vm.Kernel.CreatedVcpus);
        call.GiveMemoryBack();
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void CreateVcpu_WhoseDescriptorWasClosed_StillExists(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
        AssertOk(host.Vmm.Close(vm.CreateVcpu(3)));
        AssertRefusedUnchanged(host, () => vm.TryCreateVcpu(3), Errno.EEXIST, Vm.VcpuExists);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void CreateVcpu_IndexesCountCreations_WhateverTheIds(string profile)
    {
        TestVm vm = Boot(profile).Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
        vm.CreateVcpu(4095);
        vm.CreateVcpu(0);
        vm.CreateVcpu(17);
        Assert.Equal([(4095UL, 0), (0UL, 1), (17UL, 2)], vm.Describe().Vcpus.Select(vcpu => (vcpu.Id, vcpu.Index)));
        AssertRefused(vm.TryCreateVcpu(4096), Errno.EINVAL, Vm.VcpuIdTooLarge);
        AssertRefused(vm.TryCreateVcpu(ulong.MaxValue), Errno.EINVAL, Vm.VcpuIdTooLarge);
    }

    [Theory]
    [MemberData(nameof(CapSingles))]
    public void EnableCap_OneCheckViolated_IsRefusedAndChangesNothing(string profile, string check)
    {
        TestHost host = Boot(profile);
        var call = new CapCall(host);
        Caps[check].Violate(call);
        AssertRefusedUnchanged(host, call.Issue, Caps[check].Errno, Caps[check].Rule);
        Assert.Equal(0u, call.Vm.Kernel.HypercallExits);
    }

    [Theory]
    [MemberData(nameof(CapPairs))]
    public void EnableCap_TwoChecksViolated_AnswersTheFirst(string profile, string first, string second)
    {
        TestHost host = Boot(profile);
        var call = new CapCall(host);
        Caps[second].Violate(call);
        Caps[first].Violate(call);
        AssertRefusedUnchanged(host, call.Issue, Caps[first].Errno, Caps[first].Rule);
    }

    [Theory]
    [MemberData(nameof(QueriedOnly))]
    public void EnableCap_OfWhatIsOnlyQueried_IsEinval(ulong cap)
    {
        TestHost host = Boot();
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
        AssertRefusedUnchanged(host, () => vm.TryEnableCap(cap, 0, 0), Errno.EINVAL, Vm.CapUnknown);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void HypercallExits_AreSetAndTakenBack_WithVcpusToo(string profile)
    {
        TestVm vm = Boot(profile).Vmm.CreateVm(VmType.KVM_X86_SNP_VM);
        vm.CreateVcpu(0);
        AssertOk(vm.TryEnableCap(KvmCap.EXIT_HYPERCALL, 0, 0x1000));
        Assert.Equal(0x1000u, vm.Kernel.HypercallExits);
        AssertRefused(vm.TryEnableCap(KvmCap.EXIT_HYPERCALL, 0, 0x1001), Errno.EINVAL, Vm.HypercallMask);
        Assert.Equal(0x1000u, vm.Kernel.HypercallExits);
        AssertOk(vm.TryEnableCap(KvmCap.EXIT_HYPERCALL, 0, 0));
        Assert.Equal(0u, vm.Kernel.HypercallExits);
    }

    private TestHost BootSmall(string profile) => Boot(profile, new MachineConfig { MemoryBytes = 5000 * 4096 }, fdLimit: 1200);

    /// <summary>Creation of vCPU 3 on an initialised SEV-ES VM (each vCPU has a page there) that has vCPU 7.</summary>
    private sealed class VcpuCall
    {
        private readonly List<SimMachine.Addressing.Pfn> _taken = [];
        private readonly TestHost _host;

        public VcpuCall(TestHost host)
        {
            _host = host;
            Vm = host.Vmm.CreateVm(VmType.KVM_X86_SEV_ES_VM);
            Vm.Init2();
            Vm.CreateVcpu(7);
        }

        public TestVm Vm { get; }

        public ulong Id { get; set; } = 3;

        public void FillWithVcpus()
        {
            for (ulong id = 1000; Vm.Kernel.CreatedVcpus < SimKvm.Kvm.Vm.MaxVcpus; id++)
            {
                Vm.CreateVcpu(id);
            }
        }

        public void ExhaustMemory(int leave)
        {
            while (_host.Machine.TryAllocateFrame(out SimMachine.Addressing.Pfn pfn))
            {
                _taken.Add(pfn);
            }
            foreach (SimMachine.Addressing.Pfn pfn in _taken.Take(leave))
            {
                _host.Machine.FreeFrame(TestHost.NewThread(_host.Vmm), pfn);
            }
            _taken.RemoveRange(0, leave);
        }

        public void GiveMemoryBack()
        {
            foreach (SimMachine.Addressing.Pfn pfn in _taken)
            {
                _host.Machine.FreeFrame(TestHost.NewThread(_host.Vmm), pfn);
            }
        }

        public CallReport Issue() => Vm.TryCreateVcpu(Id);
    }

    private sealed class CapCall
    {
        public CapCall(TestHost host)
        {
            Vm = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
            Args = new kvm_enable_cap { cap = (uint)KvmCap.EXIT_HYPERCALL, args0 = 0x1000 };
        }

        public TestVm Vm { get; }

        public bool CutShort { get; set; }

        public kvm_enable_cap Args;

        public CallReport Issue() => CutShort
            ? Vm.Vmm.IoctlCutShort(Vm.Fd, KvmIoctl.KVM_ENABLE_CAP, Args)
            : Vm.Vmm.Ioctl(Vm.Fd, KvmIoctl.KVM_ENABLE_CAP, ref Args);
    }
}
