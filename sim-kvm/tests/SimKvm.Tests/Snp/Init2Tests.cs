using SimKvm.Abi;
using SimKvm.Auditing;
using SimKvm.Faults;
using SimKvm.Tests.Support;
using SimKvm.Userspace;
using SimKvm.Vendors.Amd;
using SimMachine;
using SimMachine.Amd;
using Xunit;

namespace SimKvm.Tests;

/// <summary>KVM_SEV_INIT2 and the ASIDs that it hands out: snp.md 1.1, 2.3.</summary>
public sealed class Init2Tests : KvmTest
{
    private static readonly CheckTable<InitCall> Table = new(
        new Check<InitCall>("1 again", Errno.EINVAL, SevBackend.NoInitNeeded, call => call.Vm.Init2()),
        new Check<InitCall>("3 copy-in", Errno.EFAULT, UserMemory.NotMapped, call => call.Address = Vmm.Unmapped),
        new Check<InitCall>("c1 vCPU", Errno.EINVAL, SevBackend.InitAfterVcpu, call => call.Vm.CreateVcpu(0)),
        new Check<InitCall>("c2 flags", Errno.EINVAL, SevBackend.InitFlags, call => call.Init.flags = 1),
        new Check<InitCall>("c3 unsupported feature", Errno.EINVAL, SevBackend.InitFeatures, call => call.Init.vmsa_features |= 1UL << 63) { Tags = "features" },
        new Check<InitCall>("c3 SNPActive", Errno.EINVAL, SevBackend.InitFeatures, call => call.Init.vmsa_features |= 1) { Tags = "features" },
        new Check<InitCall>("c4 GHCB version", Errno.EINVAL, SevBackend.InitGhcbVersion, call => call.Init.ghcb_version = 3),
        new Check<InitCall>("7 no ASID left", Errno.EBUSY, KvmAmd.AsidsExhausted, call => call.TakeAllAsids()));

    public static TheoryData<string, string> Singles => Table.Singles();

    public static TheoryData<string, string, string> Pairs => Table.Pairs();

    public static TheoryData<string, VmType> TypesWithoutSev => ProfilesAndTypes(VmType.KVM_X86_DEFAULT_VM, VmType.KVM_X86_SW_PROTECTED_VM);

    [Theory]
    [MemberData(nameof(Singles))]
    public void Init2_OneCheckViolated_IsRefused(string profile, string check)
    {
        var call = new InitCall(BootFewAsids(profile));
        Table[check].Violate(call);
        (bool, uint, ulong) before = State(call.Vm);
        AssertRefused(call.Issue(), Table[check].Errno, Table[check].Rule);
        Assert.Equal(before, State(call.Vm));
    }

    [Theory]
    [MemberData(nameof(Pairs))]
    public void Init2_TwoChecksViolated_AnswersTheFirst(string profile, string first, string second)
    {
        var call = new InitCall(BootFewAsids(profile));
        // INIT2 wants no vCPU, so what makes one comes after what initialises.
        Table[first].Violate(call);
        Table[second].Violate(call);
        AssertRefused(call.Issue(), Table[first].Errno, Table[first].Rule);
    }

    [Theory]
    [MemberData(nameof(TypesWithoutSev))]
    public void Init2_OfAVmWithoutSev_IsEinvalBeforeItsArgumentIsRead(string profile, VmType type)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(type);
        AssertRefusedUnchanged(
            host, () => vm.TrySev(SevCmdId.KVM_SEV_INIT2, 0UL, dataAddress: Vmm.Unmapped).Report, Errno.EINVAL, SevBackend.NoInitNeeded);
    }

    // Type, features, GHCB version asked for; whether it works, and what the VM has then.
    [Theory]
    [InlineData(VmType.KVM_X86_SEV_VM, 0, 0, true, 0, 0)]
    [InlineData(VmType.KVM_X86_SEV_VM, 0x20, 0, false, 0, 0)]
    [InlineData(VmType.KVM_X86_SEV_VM, 0, 1, false, 0, 0)]
    [InlineData(VmType.KVM_X86_SEV_ES_VM, 0, 0, true, 0, 2)]
    [InlineData(VmType.KVM_X86_SEV_ES_VM, 0x20, 1, true, 0x20, 1)]
    [InlineData(VmType.KVM_X86_SEV_ES_VM, 1, 0, false, 0, 0)]
    [InlineData(VmType.KVM_X86_SNP_VM, 0, 0, true, 1, 2)]
    [InlineData(VmType.KVM_X86_SNP_VM, 0x20, 2, true, 0x21, 2)]
    [InlineData(VmType.KVM_X86_SNP_VM, 0x21, 2, false, 0, 0)]
    [InlineData(VmType.KVM_X86_SNP_VM, 0x200, 2, false, 0, 0)]
    public void Init2_OfEachType(VmType type, ulong features, ushort ghcb, bool works, ulong featuresThen, uint ghcbThen)
    {
        foreach (string profile in new[] { K616, K72 })
        {
            TestVm vm = Boot(profile).Vmm.CreateVm(type);
            CallReport report = vm.TryInit2(features, 0, ghcb).Report;
            Assert.Equal(works ? Errno.OK : Errno.EINVAL, report.Errno);
            SevDescription sev = vm.Describe().Sev;
            Assert.Equal((works, featuresThen), (sev.Active, sev.VmsaFeatures));
            Assert.Equal(works ? ghcbThen : 0, sev.GhcbVersion);
        }
    }

    // Version 1 of the protocol has no events for SNP, which KVM has noticed in 6.18.
    [Theory]
    [InlineData(K616, true)]
    [InlineData("K618", false)]
    [InlineData(K72, false)]
    public void Init2_OfAnSnpVm_WithGhcbVersion1_WorksBefore618Only(string profile, bool works)
    {
        TestVm vm = Boot(profile).Vmm.CreateVm(VmType.KVM_X86_SNP_VM);
        CallReport report = vm.TryInit2(0, 0, 1).Report;
        if (works)
        {
            AssertOk(report);
            return;
        }
        AssertRefused(report, Errno.EINVAL, SevBackend.InitGhcbVersion);
        AssertOk(vm.TryInit2(0, 0, 2).Report);
    }

    [Theory]
    [InlineData(VmType.KVM_X86_SEV_VM, Errno.EINVAL)]
    [InlineData(VmType.KVM_X86_SEV_ES_VM, Errno.EINVAL)]
    [InlineData(VmType.KVM_X86_SNP_VM, Errno.EPERM)]
    public void Init2_Again_IsEinval_ButEpermOnAnSnpGuest(VmType type, Errno errno)
    {
        foreach (string profile in new[] { K616, K72 })
        {
            TestHost host = Boot(profile);
            TestVm vm = host.Vmm.CreateVm(type);
            vm.Init2();
            AssertRefused(vm.TryInit2().Report, errno, errno == Errno.EPERM ? SevBackend.LegacyOnSnp : SevBackend.NoInitNeeded);
        }
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void Asids_AreTheLowestOfTheirRange(string profile)
    {
        TestHost host = BootFewAsids(profile);
        Assert.Equal(1u, Initialised(host, VmType.KVM_X86_SNP_VM).Asid);
        Assert.Equal(2u, Initialised(host, VmType.KVM_X86_SEV_ES_VM).Asid);
        Assert.Equal(4u, Initialised(host, VmType.KVM_X86_SEV_VM).Asid);
        Assert.Equal(3u, Initialised(host, VmType.KVM_X86_SNP_VM).Asid);
        Assert.Equal(5u, Initialised(host, VmType.KVM_X86_SEV_VM).Asid);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void FreedAsid_IsUsedAgain_OnlyWhenTheRangeIsUsedUp_AndAfterAFlush(string profile)
    {
        TestHost host = BootFewAsids(profile);
        TestVm first = Initialised(host, VmType.KVM_X86_SNP_VM);
        first.Start();
        AssertOk(host.Vmm.Close(first.Fd));
        Assert.Equal(2u, Initialised(host, VmType.KVM_X86_SNP_VM).Asid);
        Assert.Equal(3u, Initialised(host, VmType.KVM_X86_SNP_VM).Asid);
        ulong step = host.Machine.Journal.Steps + 1;
        TestVm again = Initialised(host, VmType.KVM_X86_SNP_VM);
        Assert.Equal(1u, again.Asid);
        Assert.Contains(host.Machine.Journal.Read(step), record => record.Label.Name == "psp command" && record.A == 0x84);
        // Firmware takes the ASID, for it was flushed.
        again.Start();
        TestVm none = host.Vmm.CreateVm(VmType.KVM_X86_SNP_VM);
        AssertRefused(none.TryInit2().Report, Errno.EBUSY, KvmAmd.AsidsExhausted);
        AssertOk(host.Vmm.Close(again.Fd));
        none.Init2();
        Assert.Equal(1u, none.Asid);
    }

    [Theory]
    [InlineData(true, 0x84UL)]
    [InlineData(false, 0x0AUL)]
    public void FreedAsid_WhoseFlushFails_IsNotUsedAgain(bool snp, ulong command)
    {
        TestHost host = Boot(K72, new MachineConfig { MinSevAsid = 2, MaxAsid = 2, SevSnp = snp });
        AssertOk(host.Vmm.Close(Initialised(host, VmType.KVM_X86_SEV_ES_VM).Fd));
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SEV_ES_VM);
        ulong step = host.Machine.Journal.Steps + 1;
        host.Host.Inject(new ScriptedFault { Call = "KVM_SEV_INIT2", FirmwareStatus = (uint)SevStatus.HWERROR_PLATFORM });
        AssertRefused(vm.TryInit2().Report, Errno.EBUSY, FaultPlan.InjectedStatus);
        AssertOk(vm.TryInit2().Report);
        Assert.Contains(host.Machine.Journal.Read(step), record => record.Label.Name == "psp command" && record.A == command);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void EmptyRangeOfAsids_IsEnotty(string profile)
    {
        TestHost host = Boot(profile, new MachineConfig { MinSevAsid = 510 });
        AssertRefused(host.Vmm.CreateVm(VmType.KVM_X86_SEV_VM).TryInit2().Report, Errno.ENOTTY, KvmAmd.NoAsids);
        host = Boot(profile, new MachineConfig { MinSevAsid = 1 });
        AssertRefused(host.Vmm.CreateVm(VmType.KVM_X86_SNP_VM).TryInit2().Report, Errno.ENOTTY, KvmAmd.NoAsids);
        Assert.Equal(1u, Initialised(host, VmType.KVM_X86_SEV_VM).Asid);
    }

    // ASIDs 1 to 3 for ES and SNP, 4 and 5 for SEV.
    private TestHost BootFewAsids(string profile) => Boot(profile, new MachineConfig { MinSevAsid = 4, MaxAsid = 5 });

    private static TestVm Initialised(TestHost host, VmType type)
    {
        TestVm vm = host.Vmm.CreateVm(type);
        vm.Init2();
        return vm;
    }

    private static (bool Active, uint Asid, ulong Features) State(TestVm vm)
    {
        SevDescription sev = vm.Describe().Sev;
        return (sev.Active, sev.Asid, sev.VmsaFeatures);
    }

    /// <summary>INIT2 of an SEV-ES VM (where a second one is judged by INIT2 itself, not by the dispatcher).</summary>
    private sealed class InitCall(TestHost host)
    {
        public TestVm Vm { get; } = host.Vmm.CreateVm(VmType.KVM_X86_SEV_ES_VM);

        public ulong? Address { get; set; }

        public kvm_sev_init Init;

        public void TakeAllAsids()
        {
            CallReport report;
            do
            {
                report = host.Vmm.CreateVm(VmType.KVM_X86_SNP_VM).TryInit2().Report;
            }
            while (report.Succeeded);
        }

        public CallReport Issue() => Vm.TrySev(SevCmdId.KVM_SEV_INIT2, Init, dataAddress: Address).Report;
    }
}
