using SimKvm.Abi;
using SimKvm.Tests.Support;
using SimKvm.Userspace;
using SimKvm.Vendors;
using SimKvm.Vendors.Amd;
using SimMachine;
using Xunit;

namespace SimKvm.Tests;

/// <summary>KVM_MEMORY_ENCRYPT_OP before the command: dispatch and copy back (snp.md 2.1), and the summary of errors before INIT2 (3.7).</summary>
public sealed class MemoryEncryptOpTests : KvmTest
{
    private const uint Sentinel = 0xdeadbeef;

    public static TheoryData<string, uint> LegacyCommands
    {
        get
        {
            var data = new TheoryData<string, uint>();
            foreach (string profile in new[] { K616, K72 })
            {
                foreach (uint id in new uint[] { 0, 1, 2, 7, 16, 22, 50, 99 })
                {
                    data.Add(profile, id);
                }
            }
            return data;
        }
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void WithoutSev_ItIsEnotty_EvenAsAProbe(string profile)
    {
        TestHost host = Boot(profile, new MachineConfig { Sev = false });
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
        AssertRefusedUnchanged(host, () => host.Vmm.Ioctl(vm.Fd, KvmIoctl.KVM_MEMORY_ENCRYPT_OP, 0), Errno.ENOTTY, VmBackend.NoMemEncIoctl);
        AssertRefusedUnchanged(host, () => host.Vmm.Ioctl(vm.Fd, KvmIoctl.KVM_MEMORY_ENCRYPT_OP, Vmm.Unmapped), Errno.ENOTTY, VmBackend.NoMemEncIoctl);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void Address0_IsAProbeThatSucceeds_AndAnUnmappedOneFaults(string profile)
    {
        TestHost host = Boot(profile);
        foreach (VmType type in new[] { VmType.KVM_X86_DEFAULT_VM, VmType.KVM_X86_SNP_VM })
        {
            TestVm vm = host.Vmm.CreateVm(type);
            AssertOk(host.Vmm.Ioctl(vm.Fd, KvmIoctl.KVM_MEMORY_ENCRYPT_OP, 0));
            AssertRefusedUnchanged(host, () => host.Vmm.Ioctl(vm.Fd, KvmIoctl.KVM_MEMORY_ENCRYPT_OP, Vmm.Unmapped), Errno.EFAULT, UserMemory.NotMapped);
        }
    }

    [Theory]
    [MemberData(nameof(LegacyCommands))]
    public void CommandBelow100_OnAnSnpGuest_IsEperm_AndIsNotCopiedBack(string profile, uint id)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SNP_VM);
        vm.Init2();
        AssertNotCopiedBack(host, vm, id, Errno.EPERM, SevBackend.LegacyOnSnp);
    }

    // 10, 14 and 19 have no implementation; 103 is 7.0's; the others are nobody's.
    [Theory]
    [InlineData(K616, 104)]
    [InlineData(K72, 104)]
    [InlineData(K616, 103)]
    [InlineData(K72, 0xffffffff)]
    public void UnknownCommand_OfAnSnpGuest_IsEinval_AndIsNotCopiedBack(string profile, uint id)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SNP_VM);
        vm.Init2();
        AssertNotCopiedBack(host, vm, id, Errno.EINVAL, SevBackend.UnknownCommand);
    }

    [Theory]
    [InlineData(10)]
    [InlineData(14)]
    [InlineData(19)]
    [InlineData(23)]
    [InlineData(99)]
    public void CommandsWithoutImplementation_AreEinval(uint id)
    {
        foreach (string profile in new[] { K616, K72 })
        {
            TestHost host = Boot(profile);
            AssertNotCopiedBack(host, host.Vmm.CreateVm(VmType.KVM_X86_SEV_VM), id, Errno.EINVAL, SevBackend.UnknownCommand);
        }
    }

    [Fact]
    public void EsInit_WithSevEsDisabled_IsEnotty_AndIsNotCopiedBack()
    {
        TestHost host = Boot(machine: new MachineConfig { SevEs = false });
        AssertNotCopiedBack(host, host.Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM), 1, Errno.ENOTTY, SevBackend.SevEsDisabled);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void FailedCommand_IsCopiedBack_WithTheErrorThatItHad(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SNP_VM);
        ulong address = host.Vmm.Map(1);
        host.Vmm.Store(address, new kvm_sev_cmd { id = (uint)SevCmdId.KVM_SEV_SNP_LAUNCH_START, error = Sentinel });
        AssertRefused(host.Vmm.Ioctl(vm.Fd, KvmIoctl.KVM_MEMORY_ENCRYPT_OP, address), Errno.ENOTTY, SevBackend.NotAnSnpGuest);
        // Firmware was not asked.
        Assert.Equal(Sentinel, host.Vmm.Load<kvm_sev_cmd>(address).error);
    }

    [Fact]
    public void FaultInTheCopyBack_IsTheAnswer()
    {
        TestHost host = Boot();
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SNP_VM);
        byte[] page = new byte[4096];
        BitConverter.TryWriteBytes(page, (uint)SevCmdId.KVM_SEV_SNP_LAUNCH_START);
        CallReport report = host.Vmm.Ioctl(vm.Fd, KvmIoctl.KVM_MEMORY_ENCRYPT_OP, host.Vmm.MapReadOnly(page));
        Assert.Equal(Errno.EFAULT, report.Errno);
        // Both reasons are told: that of the command, and that of the copy.
        Assert.Equal([SevBackend.NotAnSnpGuest, UserMemory.Protected, UserArg.CopyOutFaulted], report.Causes.Select(cause => cause.Rule));
    }

    // Snp.md 3.7, first rows, on every type of VM that is no initialised SNP guest.
    [Theory]
    [InlineData(VmType.KVM_X86_DEFAULT_VM, false)]
    [InlineData(VmType.KVM_X86_SW_PROTECTED_VM, false)]
    [InlineData(VmType.KVM_X86_SEV_VM, true)]
    [InlineData(VmType.KVM_X86_SEV_ES_VM, false)]
    [InlineData(VmType.KVM_X86_SEV_ES_VM, true)]
    [InlineData(VmType.KVM_X86_SNP_VM, false)]
    public void SnpCommands_WithoutAnSnpGuest(VmType type, bool initialise)
    {
        foreach (string profile in new[] { K616, K72 })
        {
            TestHost host = Boot(profile);
            TestVm vm = host.Vmm.CreateVm(type);
            if (initialise)
            {
                vm.Init2();
            }
            // The structures are not even read: their address is bad.
            AssertRefusedUnchanged(host, () => Send(vm, SevCmdId.KVM_SEV_SNP_LAUNCH_START), Errno.ENOTTY, SevBackend.NotAnSnpGuest);
            AssertRefusedUnchanged(host, () => Send(vm, SevCmdId.KVM_SEV_SNP_LAUNCH_UPDATE), Errno.EINVAL, SevBackend.NotAnSnpGuest);
            AssertRefusedUnchanged(host, () => Send(vm, SevCmdId.KVM_SEV_SNP_LAUNCH_FINISH), Errno.ENOTTY, SevBackend.NotAnSnpGuest);
            AssertRefusedUnchanged(
                host, () => Send(vm, SevCmdId.KVM_SEV_SNP_ENABLE_REQ_CERTS), Errno.EINVAL, profile == K72 ? SevBackend.CertsTooLate : SevBackend.UnknownCommand);
        }
    }

    [Fact]
    public void ReqCerts_IsTakenBetweenInit2AndTheFirstVcpu()
    {
        TestHost host = Boot();
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SNP_VM);
        vm.Init2();
        AssertOk(Send(vm, SevCmdId.KVM_SEV_SNP_ENABLE_REQ_CERTS));
        Assert.True(vm.Describe().Sev.CertsEnabled);

        TestVm late = host.Vmm.CreateVm(VmType.KVM_X86_SNP_VM);
        late.Init2();
        AssertOk(host.Vmm.Close(late.CreateVcpu(0)));
        AssertRefusedUnchanged(host, () => Send(late, SevCmdId.KVM_SEV_SNP_ENABLE_REQ_CERTS), Errno.EINVAL, SevBackend.CertsTooLate);
    }

    private static CallReport Send(TestVm vm, SevCmdId id) => vm.TrySev(id, 0UL, dataAddress: Vmm.Unmapped).Report;

    private static void AssertNotCopiedBack(TestHost host, TestVm vm, uint id, Errno errno, SimMachine.Stepping.Rule rule)
    {
        // Read-only memory: a copy back would fault.
        byte[] page = new byte[4096];
        BitConverter.TryWriteBytes(page, id);
        ulong address = host.Vmm.MapReadOnly(page);
        AssertRefusedUnchanged(host, () => host.Vmm.Ioctl(vm.Fd, KvmIoctl.KVM_MEMORY_ENCRYPT_OP, address), errno, rule);
    }
}
