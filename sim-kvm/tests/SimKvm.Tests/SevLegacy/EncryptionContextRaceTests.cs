using SimKvm.Abi;
using SimKvm.Tests.Support;
using SimKvm.Vendors.Amd;
using SimMachine.Stepping;
using Xunit;

namespace SimKvm.Tests;

/// <summary>Two callers and one encryption context (snp.md 4.3): who comes while another holds the VMs, or makes a vCPU of one, is told to come again.</summary>
public sealed class EncryptionContextRaceTests : KvmTest
{
    [Theory]
    [InlineData(KvmCap.VM_COPY_ENC_CONTEXT_FROM)]
    [InlineData(KvmCap.VM_MOVE_ENC_CONTEXT_FROM)]
    public void SourceThatIsTakingPart_IsBusyForTheOther(ulong cap)
    {
        TestHost host = Boot();
        TestVm source = Initialised(host, VmType.KVM_X86_SEV_VM), first = host.Vmm.CreateVm(VmType.KVM_X86_SEV_VM), second = host.Vmm.CreateVm(VmType.KVM_X86_SEV_VM);
        KTask other = TestHost.NewThread(host.Vmm);

        // The first has claimed both VMs and waits for their locks.
        (Errno answer, Rule? rule) = Between("lock kvm->lock", 1, other, () => EnableCap(other, second, cap, source), () => AssertOk(first.TryEnableCap(cap, 0, (ulong)source.Fd)));

        Assert.Equal((Errno.EBUSY, SevBackend.ContextBusy), (answer, rule));
        // The claim ends with the call.
        Errno again = second.TryEnableCap(cap, 0, (ulong)first.Fd).Errno;
        Assert.Equal(cap == KvmCap.VM_COPY_ENC_CONTEXT_FROM ? Errno.EINVAL : Errno.OK, again);
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void GuestWhoseVcpuIsBeingCreated_DoesNotMove(bool ofTheSource)
    {
        TestHost host = Boot();
        TestVm source = Initialised(host, VmType.KVM_X86_SEV_VM), target = host.Vmm.CreateVm(VmType.KVM_X86_SEV_VM);
        KTask other = TestHost.NewThread(host.Vmm);

        // The second time that KVM_CREATE_VCPU takes kvm->lock is between the count of vCPUs and their list.
        (Errno answer, Rule? rule) = Between(
            "lock kvm->lock", 2, other, () => EnableCap(other, target, KvmCap.VM_MOVE_ENC_CONTEXT_FROM, source), () => (ofTheSource ? source : target).CreateVcpu(0));

        Assert.Equal((Errno.EBUSY, SevBackend.ContextVcpuBeingCreated), (answer, rule));
        AssertOk(target.TryEnableCap(KvmCap.VM_MOVE_ENC_CONTEXT_FROM, 0, (ulong)source.Fd));
    }

    // What the other thread's call answers, made when the call comes to that step; and the first cause.
    private static (Errno Errno, Rule? Rule) Between(string step, int occurrence, KTask other, Func<Errno> interposed, Action call)
    {
        Errno errno = Errno.OK;
        Rule? rule = null;
        var baton = new InterposingBaton(step, occurrence, _ =>
        {
            other.BeginCall(900);
            errno = interposed();
            rule = other.Causes.Count > 0 ? other.Causes[0].Rule : null;
        });
        other.Machine.Baton = baton;
        call();
        other.Machine.Baton = null;
        Assert.True(baton.Acted);
        return (errno, rule);
    }

    private static Errno EnableCap(KTask thread, TestVm vm, ulong cap, TestVm source)
    {
        var args = new kvm_enable_cap { cap = (uint)cap, args0 = (ulong)source.Fd };
        return thread.TryIoctl(vm.Fd, KvmIoctl.KVM_ENABLE_CAP, ref args);
    }

    private static TestVm Initialised(TestHost host, VmType type)
    {
        TestVm vm = host.Vmm.CreateVm(type);
        AssertOk(vm.TrySev(SevCmdId.KVM_SEV_INIT2, new kvm_sev_init()).Report);
        return vm;
    }
}
