using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Tests.Support;
using SimKvm.Userspace;
using SimKvm.Vendors.Amd;
using SimMachine.Amd;
using SimMachine.Measurement;
using Xunit;

namespace SimKvm.Tests;

/// <summary>An SNP guest that runs: what its C-bit means, what the RMP lets pass, how pages come and go (snp.md 5.4, 5.5).</summary>
public sealed class SnpGuestTests : KvmTest
{
    private const ulong Gpa = 0x10_0000;
    private const ulong Launched = Gpa;
    private const ulong Fresh = Gpa + 0x1000;
    private const ulong Pages = 8;

    [Theory]
    [MemberData(nameof(Profiles))]
    public void ALaunchedPage_ReadsPlainForThePrivateAccess_AndAsCiphertextForAllOthers(string profile)
    {
        Guest guest = new(Boot(profile));
        AssertOk(guest.Vcpu.Run(Read(Launched, 16), Read(Launched, 16, GuestAccess.Shared), new GuestHalt()));
        IReadOnlyList<GuestStepResult> results = guest.Vcpu.Results;
        Assert.Equal(Guest.Content[..16], results[0].Data.ToArray());
        // KVM mapped the page for the private access; a shared load through the same mapping is not checked and sees what the host sees.
        Assert.NotEqual(Guest.Content[..16], results[1].Data.ToArray());
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void AFreshPage_RaisesVc404_UntilItIsValidated(string profile)
    {
        Guest guest = new(Boot(profile));
        AssertOk(guest.Vcpu.Run(
            Write(Fresh, 1), new GuestPvalidate(Fresh, false, true), Write(Fresh, 1), Read(Fresh, 2), new GuestPvalidate(Fresh, false, true), new GuestHalt()));
        GuestStepResult[] results = [.. guest.Vcpu.Results];
        Assert.Equal(("#VC", 0x404UL), (results[0].Exception!.Name, results[0].Exception!.Code));
        Assert.Equal((0UL, false), (results[1].Rax, results[1].Carry));
        Assert.Null(results[2].Exception);
        // The page was zero but for what the guest stored; validating it again says so in the carry flag.
        Assert.Equal(1, results[3].Data.Span[0]);
        Assert.Equal((0UL, true), (results[4].Rax, results[4].Carry));
    }

    [Theory]
    [InlineData(GuestAccess.Shared, 0UL)]
    [InlineData(GuestAccess.Private, 8UL)]
    public void AnAccessOfTheOtherKind_IsAMemoryFault_ThatSaysWhatItWas(GuestAccess access, ulong flags)
    {
        Guest guest = new(Boot());
        ulong gpa = access == GuestAccess.Private ? Guest.SharedGpa : Fresh;
        CallReport run = guest.Vcpu.Run(new GuestWrite(gpa + 8, new byte[] { 1 }, access), new GuestHalt());
        AssertRefused(run, Errno.EFAULT, Mmu.AccessMismatch);
        Assert.Equal((flags, gpa, 4096UL), guest.Vcpu.MemoryFault);
    }

    [Fact]
    public void AGuestConvertsAPageToShared_TheVmmFollows_AndTheHostReadsWhatItStores()
    {
        Guest guest = new(Boot());
        AssertOk(guest.Vcpu.Run(new GuestPvalidate(Fresh, false, true), Write(Fresh, 0x11), new GuestPvalidate(Fresh, false, false), new GuestHalt()));

        // The VMM converts: attribute, then the hole, which gives the private page back to the host.
        guest.Vm.SetShared(Fresh, 1);
        AssertOk(guest.Vm.Vmm.Process.Fallocate(guest.Gmem, 3, 0x1000, 0x1000));
        AssertOk(guest.Vcpu.Run(new GuestWrite(Fresh, new byte[] { 0x22 }, GuestAccess.Shared), new GuestHalt()));
        Assert.Equal(0x22, guest.Vm.Vmm.Load(guest.Backing + 0x1000, 1)[0]);

        // And back: the page is new, so it must be validated anew.
        guest.Vm.SetPrivate(Fresh, 1);
        AssertOk(guest.Vcpu.Run(
            Read(Fresh, 1), new GuestPvalidate(Fresh, false, true), new GuestFill(Fresh, 4096, new byte[] { 0x33 }, GuestAccess.Private), Read(Fresh, 1), new GuestHalt()));
        GuestStepResult[] results = [.. guest.Vcpu.Results];
        Assert.Equal(0x404UL, results[0].Exception!.Code);
        Assert.Equal(0x33, results[3].Data.Span[0]);
    }

    [Fact]
    public void RmpadjustGivesALowerLevelRights_ButNotItself_AndNotMoreThanItHas()
    {
        Guest guest = new(Boot());
        AssertOk(guest.Vcpu.Run(
            new GuestRmpadjust(Launched, false, 1, 1, false), new GuestRmpadjust(Launched, false, 0, 1, false), new GuestRmpadjust(Launched, false, 4, 1, false), new GuestHalt()));
        GuestStepResult[] results = [.. guest.Vcpu.Results];
        Assert.Equal(
            [(ulong)GuestRmpResult.OK, (ulong)GuestRmpResult.FAIL_PERMISSION, (ulong)GuestRmpResult.FAIL_INPUT], results[..3].Select(result => result.Rax));

        // VMPL 1 may read now, and nothing else; it may not validate, and gives on at most what it has.
        guest.Vcpu.Kernel.Guest.Vmpl = 1;
        AssertOk(guest.Vcpu.Run(
            Read(Launched, 1), new GuestPvalidate(Launched, false, false), new GuestRmpadjust(Launched, false, 2, 3, false), new GuestRmpadjust(Launched, false, 2, 1, false), new GuestHalt()));
        results = [.. guest.Vcpu.Results];
        Assert.Equal(Guest.Content[0], results[0].Data.Span[0]);
        Assert.Equal(
            [(ulong)GuestRmpResult.FAIL_PERMISSION, (ulong)GuestRmpResult.FAIL_PERMISSION, (ulong)GuestRmpResult.OK], results[1..4].Select(result => result.Rax));
    }

    [Theory]
    [InlineData(true, GuestRmpResult.FAIL_SIZEMISMATCH)]
    [InlineData(false, GuestRmpResult.OK)]
    public void PvalidateOf2MiB_OnPagesOf4KiB_IsASizeMismatch(bool large, GuestRmpResult result)
    {
        Guest guest = new(Boot(), gpa: 0x20_0000);
        AssertOk(guest.Vcpu.Run(new GuestPvalidate(0x20_0000, large, true), new GuestHalt()));
        Assert.Equal((ulong)result, guest.Vcpu.Results[0].Rax);
    }

    [Fact]
    public void AVcpuWhoseStateWasNotMeasured_CannotBeEntered()
    {
        TestHost host = Boot();
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SNP_VM);
        AssertRefused(new TestGuest(host.Vmm.CreateVm(VmType.KVM_X86_SEV_VM)).Continue(), Errno.EINVAL, SevBackend.RunBeforeInit);
        vm.Init2();
        var vcpu = new TestGuest(vm);
        AssertOk(vcpu.Continue());
        Assert.Equal(((uint)KvmExit.KVM_EXIT_FAIL_ENTRY, ulong.MaxValue), (vcpu.ExitReason, vcpu.RunU64(32)));
    }

    [Fact]
    public void PreFaultingIsForFinishedLaunches()
    {
        TestHost host = Boot();
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SNP_VM);
        vm.Init2();
        vm.AddPrivateMemory(Gpa, Pages);
        var vcpu = new TestGuest(vm);
        AssertRefused(vcpu.TryPreFault(Gpa, 1), Errno.EOPNOTSUPP, Vcpu.PreFaultTooEarly);
        vm.Start();
        AssertRefused(vcpu.TryPreFault(Gpa, 1), Errno.EOPNOTSUPP, Vcpu.PreFaultTooEarly);
        vm.Finish();
        vcpu.PreFault(Gpa, 1);
        // Pre-faulting makes the page private and measures nothing.
        Assert.Contains(vm.Describe().Rmp, run => run.Gpa == Gpa && run.State == RmpPageState.GuestInvalid);
    }

    private static GuestRead Read(ulong gpa, ulong length, GuestAccess access = GuestAccess.Private) => new(gpa, length, access);

    private static GuestWrite Write(ulong gpa, byte value) => new(gpa, new[] { value }, GuestAccess.Private);

    /// <summary>A launched guest with one page of content; the rest of its private memory is untouched. A second slot is shared memory.</summary>
    private sealed class Guest
    {
        public static readonly byte[] Content = Vmm.Content(0x5a);

        public Guest(TestHost host, ulong gpa = Gpa)
        {
            Vm = host.Vmm.CreateVm(VmType.KVM_X86_SNP_VM);
            Vm.Init2();
            Backing = host.Vmm.Map(Pages);
            Gmem = Vm.CreateGmem(Pages);
            Vm.AddGmemSlot(0, gpa, Pages, Gmem, uaddr: Backing);
            Vm.SetPrivate(gpa, Pages);
            Vm.AddSlot(1, SharedGpa, 4, host.Vmm.Map(4));
            Vcpu = new TestGuest(Vm);
            ulong source = host.Vmm.Map(1);
            host.Vmm.Store(source, Content);
            Vm.Start();
            if (gpa == Gpa)
            {
                Vm.Update(SnpPageType.NORMAL, gpa, source, 1);
            }
            Vm.Finish();
        }

        public TestVm Vm { get; }

        public TestGuest Vcpu { get; }

        public int Gmem { get; }

        public ulong Backing { get; }

        public const ulong SharedGpa = 0x4000_0000;
    }
}
