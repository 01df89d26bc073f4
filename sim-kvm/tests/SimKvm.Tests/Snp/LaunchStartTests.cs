using SimKvm.Abi;
using SimKvm.Faults;
using SimKvm.Tests.Support;
using SimKvm.Userspace;
using SimKvm.Vendors.Amd;
using SimMachine;
using SimMachine.Amd;
using Xunit;

namespace SimKvm.Tests;

/// <summary>KVM_SEV_SNP_LAUNCH_START: snp.md 3.1, and what firmware says of policies (10.2).</summary>
public sealed class LaunchStartTests : KvmTest
{
    private const uint Sentinel = 0xdeadbeef;

    private static readonly CheckTable<StartCall> Table = new(
        new Check<StartCall>("1 not initialised", Errno.ENOTTY, SevBackend.NotAnSnpGuest, call => call.Initialise = false) { Tags = "again", Error = Sentinel },
        new Check<StartCall>("2 copy-in", Errno.EFAULT, UserMemory.NotMapped, call => call.Address = Vmm.Unmapped) { Error = Sentinel },
        new Check<StartCall>("3 again", Errno.EINVAL, SevBackend.ContextExists, call => call.StartBefore = true) { Tags = "again", Error = Sentinel },
        new Check<StartCall>("4 flags", Errno.EINVAL, SevBackend.SnpFlags, call => call.Start.flags = 1) { Error = Sentinel },
        new Check<StartCall>("5 policy bit 63", Errno.EINVAL, SevBackend.PolicyUnsupported, call => call.Start.policy |= 1UL << 63) { Tags = "policy5", Error = Sentinel },
        new Check<StartCall>("5 policy bit 18", Errno.EINVAL, SevBackend.PolicyUnsupported, call => call.Start.policy |= 1UL << 18) { Tags = "policy5", Error = Sentinel },
        new Check<StartCall>("6 policy bit 17", Errno.EINVAL, SevBackend.PolicyReservedBit, call => call.Start.policy &= ~(1UL << 17)) { Error = Sentinel },
        new Check<StartCall>("7 sev_fd closed", Errno.ENOTTY, KvmAmd.BadSevFd, call => call.SevFd = 999) { Tags = "fd", Error = Sentinel },
        new Check<StartCall>("7 sev_fd of /dev/kvm", Errno.ENOTTY, KvmAmd.BadSevFd, call => call.SevFd = call.Host.Vmm.Kvm) { Tags = "fd", Error = Sentinel },
        new Check<StartCall>("7 no memory", Errno.ENOTTY, SevBackend.NoContextPage, call => call.ExhaustMemory()) { Tags = "fd", Error = Sentinel },
        new Check<StartCall>("8 policy ABI", Errno.EIO, Psp.PolicyAbi, call => call.Start.policy |= 0xffff) { Error = 7 },
        new Check<StartCall>("8 policy SMT", Errno.EIO, Psp.PolicySmt, call => call.Start.policy &= ~(1UL << 16)) { Error = 7 });

    public static TheoryData<string, string> Singles => Table.Singles();

    public static TheoryData<string, string, string> Pairs => Table.Pairs();

    [Theory]
    [MemberData(nameof(Singles))]
    public void Start_OneCheckViolated_IsRefused_AndCanBeDoneAgain(string profile, string check)
    {
        var call = new StartCall(Boot(profile, Small));
        Table[check].Violate(call);
        call.Prepare();
        string digest = call.Vm.Digest;
        long frames = call.Host.Machine.AllocatedPages;
        SevReply<kvm_sev_snp_launch_start> reply = call.Issue();
        AssertRefused(reply.Report, Table[check].Errno, Table[check].Rule);
        Assert.Equal(check.StartsWith('7'), reply.Report.Causes[^1].Rule == SevBackend.ContextFailed);
        Assert.Equal(Table[check].Error, reply.Error);
        Assert.Equal(digest, call.Vm.Digest);
        Assert.Equal(frames, call.Host.Machine.AllocatedPages);
        call.GiveMemoryBack();
        if (!call.StartBefore)
        {
            if (!call.Initialise)
            {
                call.Vm.Init2();
            }
            call.Vm.Start();
        }
    }

    [Theory]
    [MemberData(nameof(Pairs))]
    public void Start_TwoChecksViolated_AnswersTheFirst(string profile, string first, string second)
    {
        var call = new StartCall(Boot(profile, Small));
        Table[second].Violate(call);
        Table[first].Violate(call);
        call.Prepare();
        AssertRefused(call.Issue().Report, Table[first].Errno, Table[first].Rule);
        call.GiveMemoryBack();
    }

    // Policy, and whether KVM lets it through to firmware, which takes it on a host without SMT.
    [Theory]
    [InlineData(0x20000, true)]
    [InlineData(0x30000, true)]
    [InlineData(0x20137, true)]
    [InlineData(0x20100, true)]
    [InlineData(0xa0000, true)]
    [InlineData(0x120000, true)]
    [InlineData(0x220000, false)]
    [InlineData(0x2020000, false)]
    [InlineData(0x4020000, false)]
    [InlineData(0x60000, false)]
    public void Policy_IsAcceptedByItsBits(ulong policy, bool accepted)
    {
        foreach (string profile in new[] { K616, K72 })
        {
            TestVm vm = Boot(profile, new MachineConfig { Smt = false }).Vmm.CreateVm(VmType.KVM_X86_SNP_VM);
            vm.Init2();
            CallReport report = vm.TryStart(policy).Report;
            if (accepted)
            {
                AssertOk(report);
                Assert.Equal(policy, vm.Describe().Sev.Guest!.Policy);
            }
            else
            {
                AssertRefused(report, Errno.EINVAL, SevBackend.PolicyUnsupported);
            }
        }
    }

    // Bits 21 to 25 pass KVM where the firmware reports them; firmware looks whether the platform is as the policy demands.
    [Theory]
    [InlineData(1UL << 21, true)]
    [InlineData(1UL << 22, false)]
    [InlineData(1UL << 23, false)]
    [InlineData(1UL << 24, true)]
    [InlineData(1UL << 25, true)]
    public void PolicyBitsOfFeatures_AreThePlatforms(ulong bit, bool has)
    {
        var machine = new MachineConfig { FirmwarePolicyBits = Psp.OptionalPolicyBits, CiphertextHidingDram = true };
        TestVm vm = Boot(K72, machine).Vmm.CreateVm(VmType.KVM_X86_SNP_VM);
        vm.Init2();
        SevReply<kvm_sev_snp_launch_start> reply = vm.TryStart(TestVm.DefaultPolicy | bit);
        if (has)
        {
            AssertOk(reply.Report);
            return;
        }
        AssertRefused(reply.Report, Errno.EIO, Psp.PolicyFeature);
        Assert.Equal((uint)SevStatus.POLICY_FAILURE, reply.Error);

        // KVM of 6.16 knows none of them, whatever the firmware.
        TestVm old = Boot(K616, machine).Vmm.CreateVm(VmType.KVM_X86_SNP_VM);
        old.Init2();
        AssertRefused(old.TryStart(TestVm.DefaultPolicy | bit).Report, Errno.EINVAL, SevBackend.PolicyUnsupported);
    }

    // A PSP that did not answer once is not asked again (snp.md 1.1): the status reads 0, then nobody writes it.
    [Fact]
    public void FirmwareThatDoesNotAnswer_IsEtimedoutOnce_AndEbusyEverAfter()
    {
        TestHost host = Boot();
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SEV_VM);
        AssertOk(vm.TrySev(SevCmdId.KVM_SEV_INIT2, new kvm_sev_init()).Report);
        host.Host.Inject(new ScriptedFault { Call = "KVM_SEV_LAUNCH_START", FirmwareTimeout = true });
        SevReply<kvm_sev_launch_start> silent = vm.TrySev(SevCmdId.KVM_SEV_LAUNCH_START, new kvm_sev_launch_start(), error: Sentinel);
        AssertRefused(silent.Report, Errno.ETIMEDOUT, KvmAmd.FirmwareSilent);
        Assert.Equal(0u, silent.Error);
        SevReply<kvm_sev_launch_start> dead = vm.TrySev(SevCmdId.KVM_SEV_LAUNCH_START, new kvm_sev_launch_start(), error: Sentinel);
        AssertRefused(dead.Report, Errno.EBUSY, KvmAmd.FirmwareDead);
        Assert.Equal(Sentinel, dead.Error);
        // Firmware is the host's, so other VMs do not get further; all of them still go away.
        AssertOk(host.Vmm.Process.Close(vm.Fd));
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void Start_LeavesAContextInLaunch_WithAnAsidAndADigestOfZeros(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SNP_VM);
        vm.Init2();
        SevReply<kvm_sev_snp_launch_start> reply = vm.TryStart(error: Sentinel);
        AssertOk(reply.Report);
        Assert.Equal(0u, reply.Error);
        SnpGuestStatus guest = vm.Describe().Sev.Guest!;
        Assert.Equal((GuestContextState.Launch, TestVm.DefaultPolicy, vm.Asid), (guest.State, guest.Policy, guest.Asid));
        Assert.Equal(new byte[48], guest.LaunchDigest);
        Assert.Equal(0, guest.Transcript.Count);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void Start_WritesNothingToItsStructure(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SNP_VM);
        vm.Init2();
        byte[] before = new byte[4096];
        BitConverter.TryWriteBytes(before, TestVm.DefaultPolicy);
        // Padding is never checked.
        Array.Fill(before, (byte)0xee, 26, 38);
        ulong address = host.Vmm.Map(1);
        host.Vmm.Store(address, before);
        AssertOk(vm.TrySev(SevCmdId.KVM_SEV_SNP_LAUNCH_START, 0UL, dataAddress: address).Report);
        Assert.Equal(before, host.Vmm.Load(address, 4096));
    }

    private static MachineConfig Small => new() { MemoryBytes = 4096 * 4096 };

    private sealed class StartCall(TestHost host)
    {
        private readonly List<SimMachine.Addressing.Pfn> _taken = [];
        private bool _exhaust;

        public TestHost Host { get; } = host;

        public TestVm Vm { get; } = host.Vmm.CreateVm(VmType.KVM_X86_SNP_VM);

        public bool Initialise { get; set; } = true;

        public bool StartBefore { get; set; }

        public ulong? Address { get; set; }

        public int? SevFd { get; set; }

        public kvm_sev_snp_launch_start Start = new() { policy = TestVm.DefaultPolicy };

        public void ExhaustMemory() => _exhaust = true;

        /// <summary>Everything up to the call.</summary>
        public void Prepare()
        {
            if (Initialise)
            {
                Vm.Init2();
                if (StartBefore)
                {
                    Vm.Start();
                }
            }
            // The page of command structures is there before memory runs out.
            Vm.TrySev(SevCmdId.KVM_SEV_SNP_LAUNCH_FINISH, 0UL, sevFd: 999);
            while (_exhaust && Host.Machine.TryAllocateFrame(out SimMachine.Addressing.Pfn pfn))
            {
                _taken.Add(pfn);
            }
        }

        public SevReply<kvm_sev_snp_launch_start> Issue() =>
            Vm.TrySev(SevCmdId.KVM_SEV_SNP_LAUNCH_START, Start, SevFd, Sentinel, Address);

        public void GiveMemoryBack()
        {
            foreach (SimMachine.Addressing.Pfn pfn in _taken)
            {
                Host.Machine.FreeFrame(TestHost.NewThread(Host.Vmm), pfn);
            }
        }
    }
}
