using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Tests.Support;
using SimKvm.Userspace;
using SimKvm.Vendors.Amd;
using SimMachine.Amd;
using SimMachine.Measurement;
using SimMachine.Stepping;
using Xunit;

namespace SimKvm.Tests;

/// <summary>
/// SNP_LAUNCH_UPDATE of five pages that stops before the third: the call succeeds, its structure says what is left, kvm_sev_cmd.error is the caller's, and only
/// the next call tells the reason (snp.md 3.2).
/// </summary>
public sealed class PartialProgressTests : KvmTest
{
    private const uint Sentinel = 0xdeadbeef;
    private const ulong Gpa = 0x100000;

    // What stops the third page, and what the next call then answers in K616 and K72: errno and root rule.
    private static readonly Dictionary<string, (Action<Launch> Arrange, Rule InK616, Rule InK72, Errno Errno, uint Error)> Stops = new()
    {
        ["attribute boundary"] = (launch => launch.Vm.SetShared(Gpa + 0x2000, 3), GuestMemfd.GfnNotPrivate, GuestMemfd.GfnNotPrivate, Errno.EIO, 0),
        ["page launched before"] = (
            launch => launch.Vm.Update(SnpPageType.ZERO, Gpa + 0x2000, 0, 1), GuestMemfd.AlreadyPrepared, SevBackend.AlreadyAssigned, Errno.EIO, 0),
        ["source end"] = (launch => launch.UnmapSourceFrom(2), UserMemory.NotMapped, UserMemory.NotMapped, Errno.EIO, 0),
        ["signal"] = (launch => launch.SignalBeforeThird = true, GuestMemfd.Interrupted, GuestMemfd.Interrupted, Errno.EIO, 0),
        ["slot end"] = (launch => launch.CutSlotAfter(2), SevBackend.UpdateNoGmemSlot, SevBackend.UpdateNoGmemSlot, Errno.EINVAL, Sentinel),
    };

    public static TheoryData<string, string, SnpPageType> Cases
    {
        get
        {
            var data = new TheoryData<string, string, SnpPageType>();
            foreach (string profile in new[] { K616, K72 })
            {
                foreach (string stop in Stops.Keys)
                {
                    data.Add(profile, stop, SnpPageType.NORMAL);
                    data.Add(profile, stop, SnpPageType.UNMEASURED);
                    if (stop != "source end")
                    {
                        data.Add(profile, stop, SnpPageType.ZERO);
                    }
                }
            }
            return data;
        }
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void TwoOfFive_AreDone_AndTheStructureSaysSo(string profile, string stop, SnpPageType type)
    {
        var launch = new Launch(Boot(profile));
        Stops[stop].Arrange(launch);
        long before = launch.Vm.Measured;
        string digestBefore = launch.Vm.Digest;

        SevReply<kvm_sev_snp_launch_update> reply = launch.Issue(type, Gpa, launch.Source, 5);
        AssertOk(reply.Report);
        Assert.Equal(Sentinel, reply.Error);
        Assert.Equal(
            ((Gpa >> 12) + 2, type == SnpPageType.ZERO ? launch.Source : launch.Source + 0x2000, 0x3000UL),
            (reply.Data.gfn_start, reply.Data.uaddr, reply.Data.len));
        Assert.Equal(before + 2, launch.Vm.Measured);
        Assert.NotEqual(digestBefore, launch.Vm.Digest);

        // Again, as a VMM does until len is 0: now the reason is told. A signal was delivered on the way out, so it takes another.
        string digest = launch.Vm.Digest;
        if (launch.SignalBeforeThird)
        {
            launch.Vm.Vmm.Process.RaiseSignal(0);
        }
        SevReply<kvm_sev_snp_launch_update> again = launch.Vm.TrySev(SevCmdId.KVM_SEV_SNP_LAUNCH_UPDATE, reply.Data, error: Sentinel);
        AssertRefused(again.Report, Stops[stop].Errno, profile == K72 ? Stops[stop].InK72 : Stops[stop].InK616);
        Assert.Equal(Stops[stop].Error, again.Error);
        Assert.Equal(reply.Data, again.Data);
        Assert.Equal(digest, launch.Vm.Digest);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void LoopOfAVmm_AroundAFilledPage_CoversAllPages(string profile)
    {
        var launch = new Launch(Boot(profile));
        launch.Vm.Update(SnpPageType.ZERO, Gpa + 0x2000, 0, 1);
        SevReply<kvm_sev_snp_launch_update> reply = launch.Issue(SnpPageType.NORMAL, Gpa, launch.Source, 5);
        launch.Vm.Update(SnpPageType.NORMAL, Gpa + 0x3000, reply.Data.uaddr + 0x1000, 2);
        Assert.Equal(5, launch.Vm.Measured);
        Auditing.RmpRun run = launch.Vm.Describe().Rmp.Single();
        Assert.Equal((Gpa, 0x5000UL, RmpPageState.GuestValid), (run.Gpa, run.Size, run.State));
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void RefusedCpuidPage_AfterTwoGoodOnes_LeavesErrorAlone_AndIsRewritten(string profile)
    {
        TestHost host = Boot(profile);
        var launch = new Launch(host);
        ulong source = host.Vmm.Map(3);
        byte[] bad = new byte[4096];
        bad[0] = 1;
        Array.Fill(bad, (byte)0xff, 16 + 24, 16);
        BitConverter.TryWriteBytes(bad.AsSpan(16), 0xffffu);
        host.Vmm.Store(source, new byte[8192]);
        host.Vmm.Store(source + 8192, bad);
        SevReply<kvm_sev_snp_launch_update> reply = launch.Issue(SnpPageType.CPUID, Gpa, source, 3);
        AssertOk(reply.Report);
        Assert.Equal((Sentinel, 0x1000UL), (reply.Error, reply.Data.len));
        Assert.NotEqual(bad, host.Vmm.Load(source + 8192, 4096));
        launch.Vm.Update(SnpPageType.CPUID, Gpa + 0x2000, source + 8192, 1);
    }

    private sealed class Launch
    {
        private readonly TestHost _host;
        private readonly int _gmem;

        public Launch(TestHost host)
        {
            _host = host;
            Vm = host.Vmm.CreateVm(VmType.KVM_X86_SNP_VM);
            Vm.Init2();
            _gmem = Vm.AddPrivateMemory(Gpa, 5);
            Source = host.Vmm.MapFilled(5);
            Vm.Start();
        }

        public TestVm Vm { get; }

        public ulong Source { get; }

        public bool SignalBeforeThird { get; set; }

        public void UnmapSourceFrom(ulong page) => AssertOk(_host.Vmm.Process.Munmap(Source + (page << 12), 5 << 12));

        public void CutSlotAfter(ulong pages)
        {
            Vm.DeleteSlot(0);
            Vm.AddGmemSlot(0, Gpa, pages, _gmem);
        }

        public SevReply<kvm_sev_snp_launch_update> Issue(SnpPageType type, ulong gpa, ulong uaddr, ulong pages)
        {
            _host.Machine.Baton = SignalBeforeThird ? InterposingBaton.Signal("gmem populate page", 2) : null;
            SevReply<kvm_sev_snp_launch_update> reply = Vm.TryUpdate(type, gpa, uaddr, pages, error: Sentinel);
            _host.Machine.Baton = null;
            return reply;
        }
    }
}
