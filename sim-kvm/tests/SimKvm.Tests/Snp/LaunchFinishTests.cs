using System.Buffers.Binary;
using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Tests.Support;
using SimKvm.Userspace;
using SimKvm.Vendors.Amd;
using SimMachine.Amd;
using SimMachine.Measurement;
using Xunit;

namespace SimKvm.Tests;

/// <summary>KVM_SEV_SNP_LAUNCH_FINISH: snp.md 3.5.</summary>
public sealed class LaunchFinishTests : KvmTest
{
    private const uint Sentinel = 0xdeadbeef;
    private const ulong Gpa = 0x100000;

    private static readonly CheckTable<FinishCall> Table = new(
        new Check<FinishCall>("1 no guest", Errno.ENOTTY, SevBackend.NotAnSnpGuest, call => call.Stage = 0) { Tags = "stage", Error = Sentinel },
        new Check<FinishCall>("2 not started", Errno.EINVAL, SevBackend.NoContext, call => call.Stage = 1) { Tags = "stage", Error = Sentinel },
        new Check<FinishCall>("3 copy-in", Errno.EFAULT, UserMemory.NotMapped, call => call.Address = Vmm.Unmapped) { Error = Sentinel },
        new Check<FinishCall>("4 flags", Errno.EINVAL, SevBackend.SnpFlags, call => call.Finish.flags = 1) { Error = Sentinel },
        new Check<FinishCall>("5 encrypted", Errno.EINVAL, SevBackend.VcpuAlreadyEncrypted, call => call.FailBefore = true) { Tags = "stage dr7", Profiles = K72, Error = Sentinel },
        new Check<FinishCall>("5 DR7", Errno.EINVAL, SevBackend.VcpuDebugged, call => call.Dr7 = 0x401) { Tags = "dr7", Error = Sentinel },
        new Check<FinishCall>("5 sev_fd", Errno.EBADF, KvmAmd.BadSevFd, call => call.SevFd = 999) { Error = Sentinel },
        new Check<FinishCall>("6 ID block NULL", Errno.EINVAL, SevBackend.NullBlob, call => call.SetBlock(0)) { Tags = "block", Error = 0 },
        new Check<FinishCall>("6 ID block unmapped", Errno.EFAULT, UserMemory.NotMapped, call => call.SetBlock(Vmm.Unmapped)) { Tags = "block", Error = 0 },
        new Check<FinishCall>("6 ID auth NULL", Errno.EINVAL, SevBackend.NullBlob, call => call.SetAuth(0)) { Tags = "auth", Error = 0 },
        new Check<FinishCall>("6 ID auth unmapped", Errno.EFAULT, UserMemory.NotMapped, call => call.SetAuth(Vmm.Unmapped)) { Tags = "auth", Error = 0 },
        new Check<FinishCall>("7 measurement", Errno.EIO, IdBlock.BadMeasurement, call => call.SetIdBlock()) { Tags = "block auth", Error = 0xB });

    public static TheoryData<string, string> Singles => Table.Singles();

    public static TheoryData<string, string, string> Pairs => Table.Pairs();

    [Theory]
    [MemberData(nameof(Singles))]
    public void Finish_OneCheckViolated_IsRefused(string profile, string check)
    {
        var call = new FinishCall(Boot(profile));
        Table[check].Violate(call);
        call.Prepare();
        long measured = call.Vm.Measured;
        SevReply<kvm_sev_snp_launch_finish> reply = call.Issue();
        AssertRefused(reply.Report, Table[check].Errno, Table[check].Rule);
        Assert.Equal(Table[check].Error, reply.Error);
        // What fails before step 6 measures nothing; what fails later has measured the vCPU.
        Assert.Equal(measured + (check[0] is '6' or '7' ? 1 : 0), call.Vm.Measured);
        Assert.Equal(call.Stage < 2 ? null : GuestContextState.Launch, call.Vm.Describe().Sev.Guest?.State);
        Assert.Equal(check[0] is '6' or '7' || call.FailBefore, call.Vm.Describe().Vcpus.Single().GuestStateProtected);
    }

    [Theory]
    [MemberData(nameof(Pairs))]
    public void Finish_TwoChecksViolated_AnswersTheFirst(string profile, string first, string second)
    {
        var call = new FinishCall(Boot(profile));
        Table[second].Violate(call);
        Table[first].Violate(call);
        call.Prepare();
        SevReply<kvm_sev_snp_launch_finish> reply = call.Issue();
        AssertRefused(reply.Report, Table[first].Errno, Table[first].Rule);
        Assert.Equal(Table[first].Error, reply.Error);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void Finish_MeasuresVcpusInCreationOrder_UnderOneGpa(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = Started(host);
        vm.CreateVcpu(9);
        vm.CreateVcpu(0);
        vm.CreateVcpu(4);
        vm.Finish();
        Assert.Equal(GuestContextState.Running, vm.Describe().Sev.Guest!.State);
        TranscriptRecord[] steps = [.. vm.Describe().Sev.Guest!.Transcript.Read(0, 10)];
        Assert.Equal(3, steps.Length);
        Assert.All(steps, step => Assert.Equal((SnpPageType.VMSA, 0xffff_ffff_f000UL), (step.PageType, step.Gpa)));
        Assert.All(vm.Describe().Vcpus, vcpu => Assert.True(vcpu.GuestStateProtected));
        // They share a gpa, so the description counts them together.
        Assert.Equal(3 * 4096UL, vm.Describe().Rmp.Single(run => run.Vmsa).Size);
        // The boot vCPU (id 0) came second; the other two are alike.
        Assert.Equal(Convert.ToHexString(steps[0].ContentHash.Span), Convert.ToHexString(steps[2].ContentHash.Span));
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void Finish_ExtendsTheDigestByEachStep(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = Started(host);
        vm.Update(SnpPageType.NORMAL, Gpa, host.Vmm.MapFilled(2, 4), 2);
        vm.CreateVcpu(0);
        vm.Finish();
        var digest = new SnpLaunchDigest();
        foreach (TranscriptRecord step in vm.Describe().Sev.Guest!.Transcript.Read(0, 10))
        {
            digest.Extend(step.PageType, step.Gpa, step.ContentHash.Span);
            Assert.Equal(Convert.ToHexString(digest.Current), Convert.ToHexString(step.DigestAfter.Span));
        }
        Assert.Equal(Convert.ToHexStringLower(digest.Current), vm.Digest);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void Finish_WithoutVcpus_MeasuresNothing_AndASecondIsRefusedByFirmware(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = Started(host);
        vm.Finish();
        Assert.Equal(0, vm.Measured);
        SevReply<kvm_sev_snp_launch_finish> again = vm.TryFinish();
        AssertRefused(again.Report, Errno.EIO, Psp.WrongGuestState);
        Assert.Equal(2u, again.Error);
    }

    [Fact]
    public void SecondFinish_WithAVcpu_IsEinval()
    {
        TestHost host = Boot();
        TestVm vm = Started(host);
        vm.CreateVcpu(0);
        vm.Finish();
        AssertRefusedUnchanged(host, () => vm.TryFinish(error: Sentinel).Report, Errno.EINVAL, SevBackend.VcpuAlreadyEncrypted);
    }

    // The kernel of that time builds the VMSA in the page that is the guest's already: on a real host that store is a fatal #PF, so it is a finding. Firmware
    // then refuses the page, and the kernel takes it away.
    [Fact]
    public void SecondFinish_WithAVcpu_InOldKernels_IsEio_AndTakesTheVmsaAway()
    {
        TestHost host = Boot(K616);
        TestVm vm = Started(host);
        vm.CreateVcpu(0);
        vm.Finish();
        string digest = vm.Digest;
        host.Expect("host-rmp-fault");
        SevReply<kvm_sev_snp_launch_finish> again = vm.TryFinish();
        Assert.Equal((Errno.EIO, 2u), (again.Report.Errno, again.Error));
        Assert.Same(Psp.WrongGuestState, again.Report.Causes[0].Rule);
        Assert.Equal(digest, vm.Digest);
        Assert.DoesNotContain(vm.Describe().Rmp, run => run.Vmsa);
        Assert.False(vm.Describe().Dead);
    }

    [Fact]
    public void FinishThatFailedAfterItsVcpus_CannotBeRepeated()
    {
        TestHost host = Boot();
        TestVm vm = Started(host);
        vm.CreateVcpu(0);
        var parameters = new kvm_sev_snp_launch_finish { id_block_en = 1 };
        AssertRefused(vm.TryFinish(parameters: parameters).Report, Errno.EINVAL, SevBackend.NullBlob);
        AssertRefused(vm.TryFinish().Report, Errno.EINVAL, SevBackend.VcpuAlreadyEncrypted);
        Assert.Equal(GuestContextState.Launch, vm.Describe().Sev.Guest!.State);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void VcpuThatIsDebugged_IsEinval_UntilDebuggingIsOff(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = Started(host);
        int vcpu = vm.CreateVcpu(0);
        // Without the enabling bit the others count for nothing.
        SetGuestDebug(host, vcpu, 2);
        SetGuestDebug(host, vcpu, 3);
        AssertRefused(vm.TryFinish().Report, Errno.EINVAL, SevBackend.VcpuDebugged);
        Assert.Equal(0, vm.Measured);
        SetGuestDebug(host, vcpu, 2);
        AssertOk(vm.TryFinish().Report);
        AssertRefused(host.Vmm.Process.Ioctl(vcpu, KvmIoctl.KVM_SET_GUEST_DEBUG, new byte[72]), Errno.EINVAL, VcpuArch.DebugOfProtectedState);
    }

    [Fact]
    public void VcpuThatFails_LeavesThoseBeforeItMeasured()
    {
        TestHost host = Boot();
        TestVm vm = Started(host);
        vm.CreateVcpu(0);
        SetDr7(host, vm.CreateVcpu(1), 0x401);
        AssertRefused(vm.TryFinish().Report, Errno.EINVAL, SevBackend.VcpuDebugged);
        Assert.Equal([true, false], vm.Describe().Vcpus.Select(vcpu => vcpu.GuestStateProtected));
        Assert.Equal(1, vm.Measured);
    }

    [Theory]
    [InlineData(K616, false)]
    [InlineData(K72, true)]
    public void FinishWhileAVcpuIsBeingCreated_IsEbusySince71(string profile, bool busy)
    {
        TestHost host = Boot(profile);
        TestVm vm = Started(host);
        vm.TryFinish(parameters: new kvm_sev_snp_launch_finish { flags = 1 });
        KTask second = TestHost.NewThread(host.Vmm);
        SyscallResult result = default;
        Errno rootErrno = Errno.OK;
        // Between the count and the list: kvm->lock is taken twice, and the other thread comes before the second time.
        var baton = new InterposingBaton("lock kvm->lock", 2, _ =>
        {
            byte[] cmd = new byte[24];
            BinaryPrimitives.WriteUInt32LittleEndian(cmd, (uint)SevCmdId.KVM_SEV_SNP_LAUNCH_FINISH);
            ulong data = vm.Vmm.Map(1);
            BinaryPrimitives.WriteUInt64LittleEndian(cmd.AsSpan(8), data);
            BinaryPrimitives.WriteInt32LittleEndian(cmd.AsSpan(20), host.Vmm.Sev);
            second.BeginCall(900);
            result = IoctlTable.Dispatch(second, vm.Fd, KvmIoctl.KVM_MEMORY_ENCRYPT_OP, UserArg.FromBytes(cmd));
            rootErrno = second.Causes.Count > 0 && second.Causes[0].Rule == SevBackend.VcpuBeingCreated ? Errno.EBUSY : Errno.OK;
        });
        host.Machine.Baton = baton;
        AssertOk(vm.TryCreateVcpu(0));
        host.Machine.Baton = null;
        Assert.True(baton.Acted);
        Assert.Equal(busy ? Errno.EBUSY : Errno.OK, result.Errno);
        Assert.Equal(result.Errno, rootErrno);
    }

    // Digest and policy in the block, what firmware answers.
    [Theory]
    [InlineData(false, TestVm.DefaultPolicy, 0xB, "psp.id-block.bad-measurement")]
    [InlineData(true, 0x20000, 7, "psp.id-block.policy")]
    [InlineData(true, TestVm.DefaultPolicy, 0x16, "psp.id-block.version")]
    public void IdBlock_IsJudgedByFirmware(bool rightDigest, ulong policy, uint status, string rule)
    {
        foreach (string profile in new[] { K616, K72 })
        {
            TestHost host = Boot(profile);
            TestVm vm = Started(host);
            vm.Update(SnpPageType.ZERO, Gpa, 0, 1);
            byte[] block = new byte[96];
            Convert.FromHexString(vm.Digest).CopyTo(block, 0);
            block[0] ^= (byte)(rightDigest ? 0 : 1);
            BinaryPrimitives.WriteUInt64LittleEndian(block.AsSpan(0x58), policy);
            ulong address = host.Vmm.Map(2);
            host.Vmm.Store(address, block);
            SevReply<kvm_sev_snp_launch_finish> reply = vm.TryFinish(
                parameters: new kvm_sev_snp_launch_finish { id_block_en = 1, id_block_uaddr = address, id_auth_uaddr = address + 4096 });
            Assert.Equal((Errno.EIO, status, rule), (reply.Report.Errno, reply.Error, reply.Report.Causes[0].Rule.Id));
            // Without vCPUs nothing was used up: the launch can be finished without the block.
            vm.Finish();
        }
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void AuthorKeyWithoutIdBlock_IsIgnored(string profile)
    {
        TestVm vm = Started(Boot(profile));
        AssertOk(vm.TryFinish(parameters: new kvm_sev_snp_launch_finish { auth_key_en = 1, id_auth_uaddr = Vmm.Unmapped, vcek_disabled = 1 }).Report);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void LastCommand_GoesThroughTheFdOfStart(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = Started(host);
        // Without vCPUs the fd of FINISH is not used at all.
        AssertOk(vm.TryFinish(sevFd: 999).Report);

        TestVm other = host.Vmm.CreateVm(VmType.KVM_X86_SNP_VM);
        other.Init2();
        int sev = (int)AssertOk(host.Vmm.Process.Open("/dev/sev")).Value;
        AssertOk(other.TryStart(sevFd: sev).Report);
        AssertOk(host.Vmm.Close(sev));
        AssertRefused(other.TryFinish().Report, Errno.EBADF, KvmAmd.BadSevFd);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void AfterFinish_RegistersOfTheVcpuAreProtected(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = Started(host);
        int vcpu = vm.CreateVcpu(0);
        AssertOk(host.Vmm.Process.Ioctl(vcpu, KvmIoctl.KVM_GET_REGS, new byte[144]));
        vm.Finish();
        foreach ((uint request, int size) in new[]
        {
            (KvmIoctl.KVM_GET_REGS, 144), (KvmIoctl.KVM_SET_REGS, 144), (KvmIoctl.KVM_GET_SREGS, 312), (KvmIoctl.KVM_SET_SREGS, 312),
        })
        {
            AssertRefused(host.Vmm.Process.Ioctl(vcpu, request, new byte[size]), Errno.EINVAL, VcpuArch.StateProtected);
        }
    }

    private static TestVm Started(TestHost host)
    {
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SNP_VM);
        vm.Init2();
        vm.AddPrivateMemory(Gpa, 4);
        vm.Start();
        return vm;
    }

    private static void SetGuestDebug(TestHost host, int vcpu, uint control)
    {
        byte[] debug = new byte[72];
        BinaryPrimitives.WriteUInt32LittleEndian(debug, control);
        AssertOk(host.Vmm.Process.Ioctl(vcpu, KvmIoctl.KVM_SET_GUEST_DEBUG, debug));
    }

    private static void SetDr7(TestHost host, int vcpu, ulong dr7)
    {
        byte[] debugregs = new byte[128];
        AssertOk(host.Vmm.Process.Ioctl(vcpu, KvmIoctl.KVM_GET_DEBUGREGS, debugregs));
        BinaryPrimitives.WriteUInt64LittleEndian(debugregs.AsSpan(40), dr7);
        AssertOk(host.Vmm.Process.Ioctl(vcpu, KvmIoctl.KVM_SET_DEBUGREGS, debugregs));
    }

    /// <summary>FINISH of a guest with one vCPU.</summary>
    private sealed class FinishCall(TestHost host)
    {
        public TestVm Vm { get; } = host.Vmm.CreateVm(VmType.KVM_X86_SNP_VM);

        /// <summary>0 created, 1 initialised, 2 started.</summary>
        public int Stage { get; set; } = 2;

        public ulong? Address { get; set; }

        public int? SevFd { get; set; }

        public ulong Dr7 { get; set; }

        public bool FailBefore { get; set; }

        public kvm_sev_snp_launch_finish Finish;

        public void SetBlock(ulong address)
        {
            SetIdBlock();
            Finish.id_block_uaddr = address;
        }

        public void SetAuth(ulong address)
        {
            SetIdBlock();
            Finish.id_auth_uaddr = address;
        }

        public void SetIdBlock()
        {
            Finish.id_block_en = 1;
            Finish.id_block_uaddr = Finish.id_block_uaddr == 0 ? host.Vmm.Map(1) : Finish.id_block_uaddr;
            Finish.id_auth_uaddr = Finish.id_auth_uaddr == 0 ? host.Vmm.Map(1) : Finish.id_auth_uaddr;
        }

        public void Prepare()
        {
            if (Stage >= 1)
            {
                Vm.Init2();
            }
            int vcpu = Vm.CreateVcpu(0);
            if (Dr7 != 0)
            {
                SetDr7(host, vcpu, Dr7);
            }
            if (Stage >= 2)
            {
                Vm.Start();
                if (FailBefore)
                {
                    // Measures the vCPU and then fails.
                    AssertRefused(Vm.TryFinish(parameters: new kvm_sev_snp_launch_finish { id_block_en = 1 }).Report, Errno.EINVAL, SevBackend.NullBlob);
                }
            }
        }

        public SevReply<kvm_sev_snp_launch_finish> Issue() =>
            Vm.TrySev(SevCmdId.KVM_SEV_SNP_LAUNCH_FINISH, Finish, SevFd, Sentinel, Address);
    }
}
