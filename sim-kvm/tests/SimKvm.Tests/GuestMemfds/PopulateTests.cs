using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Tests.Support;
using SimMachine.Addressing;
using SimMachine.Stepping;
using Xunit;

namespace SimKvm.Tests;

/// <summary>
/// kvm_gmem_populate without a vendor behind it: the generic half of kvm-guest-memory.md 10.2 and 10.4, called as a launch ioctl calls it, with a callback of
/// the test's.
/// </summary>
public sealed class PopulateTests : KvmTest
{
    private const ulong Gpa = 0x100000;

    private static readonly Rule CallbackRefused = new("test.callback", "the test's callback refuses", "test", "nothing");

    [Theory]
    [InlineData(K616, 0, Errno.OK)]
    [InlineData(K616, -1, Errno.EINVAL)]
    [InlineData(K616, long.MinValue, Errno.EINVAL)]
    [InlineData(K72, 0, Errno.EINVAL)]
    [InlineData(K72, -1, Errno.EINVAL)]
    [InlineData(K72, long.MinValue, Errno.EINVAL)]
    public void CountOfPages_IsCheckedFirst(string profile, long npages, Errno errno)
    {
        var launch = new Launch(Boot(profile));
        // Where it is an error, it comes before the slot that is missing.
        SyscallResult result = launch.Populate(errno == Errno.OK ? 0x100 : 0x999u, npages);
        Assert.Equal(errno, result.Errno);
        Assert.Equal(0, result.Value);
        if (errno != Errno.OK)
        {
            Assert.Same(GuestMemfd.BadCount, launch.Root);
        }
    }

    [Theory]
    [InlineData(K616, false)]
    [InlineData(K72, true)]
    public void UnalignedSource_IsRefusedSince70(string profile, bool refused)
    {
        var launch = new Launch(Boot(profile));
        ulong source = launch.Vm.Vmm.MapFilled(2);
        SyscallResult result = launch.Populate(0x100, 1, source + 8);
        Assert.Equal(refused ? Errno.EINVAL : Errno.OK, result.Errno);
        if (refused)
        {
            Assert.Same(GuestMemfd.SourceUnaligned, launch.Root);
            Assert.Equal(Errno.EINVAL, launch.Populate(0x999, 1, source + 8).Errno);
            Assert.Same(GuestMemfd.SourceUnaligned, launch.Root);
        }
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void MissingSlotAndGoneFile_AreToldApart(string profile)
    {
        var launch = new Launch(Boot(profile));
        launch.Vm.AddSlot(7, 0x900000, 4);
        Assert.Equal(Errno.EINVAL, launch.Populate(0x999, 1).Errno);
        Assert.Same(GuestMemfd.NoGmemSlot, launch.Root);
        Assert.Equal(Errno.EINVAL, launch.Populate(0x900, 1).Errno);
        Assert.Same(GuestMemfd.NoGmemSlot, launch.Root);
        AssertOk(launch.Vm.Vmm.Close(launch.Gmem));
        Assert.Equal(Errno.EFAULT, launch.Populate(0x100, 1).Errno);
        Assert.Same(GuestMemfd.FileGone, launch.Root);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void MorePagesThanTheSlotHas_AreClipped(string profile)
    {
        var launch = new Launch(Boot(profile));
        Assert.Equal(SyscallResult.Of(3), launch.Populate(0x105, 1L << 40));
        Assert.Equal([0x105UL, 0x106UL, 0x107UL], launch.CallbackGfns);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void CallbackFailure_OnTheFirstPage_IsTheAnswer(string profile)
    {
        var launch = new Launch(Boot(profile)) { FailAt = 0x100 };
        Assert.Equal(Errno.ENXIO, launch.Populate(0x100, 4).Errno);
        Assert.Same(CallbackRefused, launch.Root);
        Assert.Equal((true, false), launch.State(0));
        Assert.Equal((false, false), launch.State(1));
    }

    // Scenario 26.
    [Theory]
    [MemberData(nameof(Profiles))]
    public void Scenario26_CallbackFailure_OnTheThirdOfFive_IsTwo_AndThePageStaysNotUptodate(string profile)
    {
        var launch = new Launch(Boot(profile)) { FailAt = 0x102 };
        Assert.Equal(SyscallResult.Of(2), launch.Populate(0x100, 5));
        Assert.Equal([(true, true), (true, true), (true, false), (false, false)], Enumerable.Range(0, 4).Select(i => launch.State((ulong)i)));
        launch.FailAt = 0;
        Assert.Equal(SyscallResult.Of(3), launch.Populate(0x102, 3));
        Assert.Equal((true, true), launch.State(2));
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void Signal_BeforeTheThirdPage_IsTwo_BeforeTheFirstIsEintr(string profile)
    {
        TestHost host = Boot(profile);
        var launch = new Launch(host);
        host.Machine.Baton = InterposingBaton.Signal("gmem populate page", 2);
        Assert.Equal(SyscallResult.Of(2), launch.Populate(0x100, 5));
        host.Machine.Baton = null;
        Assert.Equal(Errno.EINTR, launch.Populate(0x102, 3).Errno);
        Assert.Same(GuestMemfd.Interrupted, launch.Root);
        Assert.Equal((false, false), launch.State(2));
    }

    [Theory]
    [InlineData(K616, Errno.EEXIST)]
    [InlineData(K72, Errno.OK)]
    public void PageThatIsUptodate_IsRefusedByOldKernelsOnly(string profile, Errno errno)
    {
        var launch = new Launch(Boot(profile));
        Assert.Equal(SyscallResult.Of(2), launch.Populate(0x100, 2));
        Assert.Equal(errno, launch.Populate(0x100, 1).Errno);
        if (errno != Errno.OK)
        {
            Assert.Same(GuestMemfd.AlreadyPrepared, launch.Root);
        }
    }

    [Theory]
    [InlineData(K616, Errno.EEXIST, "kvm.gmem.populate.prepared")]
    [InlineData(K72, Errno.EINVAL, "kvm.gmem.populate.gfn-not-private")]
    public void UptodateAndNotPrivate_AnswersTheFirstOfItsGeneration(string profile, Errno errno, string rule)
    {
        var launch = new Launch(Boot(profile));
        Assert.Equal(SyscallResult.Of(1), launch.Populate(0x100, 1));
        launch.Vm.SetShared(Gpa, 1);
        Assert.Equal(errno, launch.Populate(0x100, 1).Errno);
        Assert.Equal(rule, launch.Root!.Id);
    }

    // The source is pinned before the page is looked at since 7.0, and not read by the generic code before.
    [Theory]
    [InlineData(K616, Errno.EINVAL, "kvm.gmem.populate.gfn-not-private")]
    [InlineData(K72, Errno.EFAULT, "mm.not-mapped")]
    public void UnmappedSourceAndNotPrivate_AnswersTheFirstOfItsGeneration(string profile, Errno errno, string rule)
    {
        var launch = new Launch(Boot(profile));
        launch.Vm.SetShared(Gpa, 1);
        Assert.Equal(errno, launch.Populate(0x100, 1, Vmm.Unmapped).Errno);
        Assert.Equal(rule, launch.Root!.Id);
    }

    [Theory]
    [InlineData(K616, true, false)]
    [InlineData(K72, false, false)]
    [InlineData(K72, true, true)]
    public void ReadOnlySource_ForAPageThatMayBeWrittenBack_IsRefusedSince72(string profile, bool mayWriteBack, bool refused)
    {
        var launch = new Launch(Boot(profile));
        ulong source = launch.Vm.Vmm.Map(1, Vmm.ProtRead);
        Assert.Equal(refused ? Errno.EFAULT : Errno.OK, launch.Populate(0x100, 1, source, mayWriteBack).Errno);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void NullSource_ReachesTheCallbackAsNone_AndOthersPageByPage(string profile)
    {
        var launch = new Launch(Boot(profile));
        ulong source = launch.Vm.Vmm.MapFilled(3, 5);
        Assert.Equal(SyscallResult.Of(2), launch.Populate(0x100, 2));
        Assert.Equal(SyscallResult.Of(3), launch.Populate(0x103, 3, source));
        Assert.Equal([0UL, 0UL, source, source + 4096, source + 8192], launch.CallbackSources);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void OutOfMemory_OnTheFourthPage_IsThree(string profile)
    {
        TestHost host = Boot(profile, new SimMachine.MachineConfig { MemoryBytes = 4 * 4096 });
        var launch = new Launch(host);
        Assert.Equal(SyscallResult.Of(3), launch.Populate(0x100, 5));
        Assert.Equal(Errno.ENOMEM, launch.Populate(0x103, 2).Errno);
        Assert.Same(GuestMemfd.NoMemory, launch.Root);
        Assert.Equal((false, false), launch.State(3));
    }

    // Section 1.5, the row of populate: the lock is taken for each page since 7.0, and over the whole loop before.
    [Theory]
    [InlineData(K616, "lock invalidate_lock, gmem populate page, gmem populate page, unlock invalidate_lock")]
    [InlineData(K72, "lock invalidate_lock, gmem populate page, unlock invalidate_lock, lock invalidate_lock, gmem populate page, unlock invalidate_lock")]
    public void InvalidateLock_SpansWhatItsGenerationSays(string profile, string expected)
    {
        TestHost host = Boot(profile);
        var launch = new Launch(host);
        ulong step = host.Machine.Journal.Steps + 1;
        Assert.Equal(SyscallResult.Of(2), launch.Populate(0x100, 2, host.Vmm.MapFilled(2)));
        Assert.Equal(
            expected,
            string.Join(", ", host.Machine.Journal.Read(step).Where(record => record.Label.Name is "gmem populate page" or "lock invalidate_lock" or "unlock invalidate_lock")
                .Select(record => record.Label.Name)));
    }

    /// <summary>A VM with 8 private pages of guest_memfd at gfn 0x100, and a thread that populates them.</summary>
    private sealed class Launch
    {
        private readonly KTask _current;

        public Launch(TestHost host)
        {
            Vm = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
            Gmem = Vm.AddPrivateMemory(Gpa, 8);
            _current = TestHost.NewThread(host.Vmm);
        }

        public TestVm Vm { get; }

        public int Gmem { get; }

        public ulong FailAt { get; set; }

        public List<ulong> CallbackGfns { get; } = [];

        public List<ulong> CallbackSources { get; } = [];

        /// <summary>The rule that refused first in the last call.</summary>
        public Rule? Root => _current.Causes.Count > 0 ? _current.Causes[0].Rule : null;

        public SyscallResult Populate(ulong gfn, long npages, ulong source = 0, bool mayWriteBack = false)
        {
            _current.BeginCall(1);
            using var slots = Vm.Kernel.SlotsLock.Enter(_current);
            return GuestMemfd.Populate(_current, Vm.Kernel, new Gfn(gfn), source, npages, mayWriteBack, Callback);
        }

        /// <summary>Whether a page of the file is present, and uptodate.</summary>
        public (bool Present, bool Uptodate) State(ulong index) =>
            (Vm.Vmm.Gmem(Gmem).Inode.TryGet(index, out Folio folio), folio.Uptodate);

        private Errno Callback(KTask current, Gfn gfn, Pfn pfn, in PopulateSource source)
        {
            CallbackGfns.Add(gfn.Value);
            CallbackSources.Add(source.Exists ? source.Uaddr : 0);
            return gfn.Value == FailAt ? current.Fail(Errno.ENXIO, CallbackRefused) : Errno.OK;
        }
    }
}
