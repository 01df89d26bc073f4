using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Tests.Support;
using SimKvm.Userspace;
using SimMachine.Addressing;
using SimMachine.Stepping;
using Xunit;

namespace SimKvm.Tests;

/// <summary>KVM_SET_MEMORY_ATTRIBUTES2 on a guest_memfd and what follows from it (kvm-guest-memory.md 12), in both trees that have it. T is a software-protected VM.</summary>
public sealed class InPlaceConversionTests : KvmTest
{
    private const ulong Gpa = 0x20_0000;
    private const ulong Private = TestVm.Private;
    private const ulong MappedShared = 3;

    // 12.2, in the order of the checks.
    private static readonly (string Name, Errno Errno, Rule Rule, Action<Call> Violate)[] Checks =
    [
        ("1 copy-in", Errno.EFAULT, UserArg.CopyInFaulted, call => call.CutShort = true),
        ("2 flags", Errno.EINVAL, GuestMemfd.ConvertFlags, call => call.Args.flags = 1),
        ("3 reserved", Errno.EINVAL, GuestMemfd.ConvertReserved, call => call.SetReserved(10)),
        ("4 VM without private memory", Errno.EINVAL, GuestMemfd.ConvertNoPrivateMemory, call => call.Fd = call.PlainFd),
        ("5 attributes", Errno.EINVAL, GuestMemfd.ConvertUnsupported, call => call.Args.attributes = 9),
        ("8 past the end", Errno.EINVAL, GuestMemfd.ConvertRange, call => call.Args.offset += 13 * Vmm.Page),
    ];

    private static readonly (ulong Offset, ulong Size)[] BadRanges =
        [(0, 0), (0x1000, 0xffff_ffff_ffff_f000), (0x800, 0x1000), (0, 0x1800), (0x1_0000, 0x1000), (0, 0x1_1000), (0xf000, 0x2000), (0xffff_ffff_ffff_f000, 0x1000)];

    public static TheoryData<string> InPlace => ["IP8", "IPDEV"];

    public static TheoryData<string, string, string> Pairs
    {
        get
        {
            var data = new TheoryData<string, string, string>();
            foreach (string profile in new[] { "IP8", "IPDEV" })
            {
                for (int i = 0; i < Checks.Length; i++)
                {
                    for (int j = i; j < Checks.Length; j++)
                    {
                        data.Add(profile, Checks[i].Name, Checks[j].Name);
                    }
                }
            }
            return data;
        }
    }

    [Theory]
    [MemberData(nameof(Pairs))]
    public void TwoChecksViolated_AnswerTheFirst_AndTheStructureIsNotStored(string profile, string first, string second)
    {
        TestHost host = Boot(profile);
        var call = new Call(host);
        Checks.Single(check => check.Name == second).Violate(call);
        Checks.Single(check => check.Name == first).Violate(call);
        call.Args.error_offset = 0xdead;
        (_, Errno errno, Rule rule, _) = Checks.Single(check => check.Name == first);
        AssertRefusedUnchanged(host, call.Issue, errno, rule);
        Assert.Equal(0xdeadUL, call.Args.error_offset);
    }

    [Theory]
    [MemberData(nameof(InPlace))]
    public void BadRange_IsEinval(string profile)
    {
        TestHost host = Boot(profile);
        var call = new Call(host);
        foreach ((ulong offset, ulong size) in BadRanges)
        {
            (call.Args.offset, call.Args.size) = (offset, size);
            AssertRefusedUnchanged(host, call.Issue, Errno.EINVAL, GuestMemfd.ConvertRange);
        }
    }

    [Theory]
    [InlineData("K618")]
    [InlineData(K72)]
    [InlineData("NEXTHOOK")]
    public void OtherKernels_DoNotKnowTheIoctl(string profile)
    {
        TestHost host = Boot(profile);
        int gmem = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM).CreateGmem(4);
        AssertRefused(Convert(host.Vmm, gmem, 0, 4, Private), Errno.ENOTTY, IoctlTable.Unknown);
    }

    [Theory]
    [MemberData(nameof(InPlace))]
    public void WhatIsSoAlready_TakesNoStepBesideTheLock(string profile)
    {
        TestGuest guest = Bound(profile, MappedShared, out int gmem);
        ulong seq = guest.Vm.Seq;
        Assert.Equal(
            ["ioctl enter", "lock invalidate_lock", "unlock invalidate_lock", "ioctl exit"],
            TestGuest.StepsOf(guest.Vm.Vmm.Host, () => AssertOk(Convert(guest.Vm.Vmm, gmem, 0, 8, 0))));
        Assert.Equal(seq, guest.Vm.Seq);
    }

    [Theory]
    [MemberData(nameof(InPlace))]
    public void Conversion_TakesItsStepsInOrder_BothWays(string profile)
    {
        TestGuest guest = Bound(profile, MappedShared, out int gmem);
        guest.Write(Gpa, 1);
        Assert.Equal(
            [
                "ioctl enter", "lock invalidate_lock", "gmem unmap from hosts",
                "lock kvm->mmu_lock", "mmu invalidate begin", "mmu invalidate range add", "mmu unmap", "mmu flush remote tlbs", "unlock kvm->mmu_lock",
                "gmem attributes stored",
                "lock kvm->mmu_lock", "mmu invalidate end", "unlock kvm->mmu_lock",
                "unlock invalidate_lock", "ioctl exit",
            ],
            TestGuest.StepsOf(guest.Vm.Vmm.Host, () => AssertOk(Convert(guest.Vm.Vmm, gmem, 0, 2, Private))));
        guest.Write(Gpa, 2);
        Assert.Equal(
            [
                "ioctl enter", "lock invalidate_lock",
                "lock kvm->mmu_lock", "mmu invalidate begin", "mmu invalidate range add", "mmu unmap", "mmu flush remote tlbs", "unlock kvm->mmu_lock",
                "gmem make shared hook", "gmem attributes stored",
                "lock kvm->mmu_lock", "mmu invalidate end", "unlock kvm->mmu_lock",
                "unlock invalidate_lock", "ioctl exit",
            ],
            TestGuest.StepsOf(guest.Vm.Vmm.Host, () => AssertOk(Convert(guest.Vm.Vmm, gmem, 0, 2, 0))));
    }

    [Theory]
    [MemberData(nameof(InPlace))]
    public void Success_DoesNotStoreTheStructure_AndAnUnboundFileMovesNoSeq(string profile)
    {
        TestHost host = Boot(profile);
        var call = new Call(host);
        call.Args.error_offset = 0xdead;
        ulong seq = call.Vm.Seq;
        AssertOk(call.Issue());
        Assert.Equal((0xdeadUL, seq), (call.Args.error_offset, call.Vm.Seq));
    }

    [Theory]
    [MemberData(nameof(InPlace))]
    public void Content_StaysThroughBothConversions(string profile)
    {
        TestGuest guest = Bound(profile, MappedShared, out int gmem);
        Vmm vmm = guest.Vm.Vmm;
        ulong mapping = MapFile(vmm, gmem, 8);
        vmm.Store(mapping + 0x1000, Vmm.Content(7));
        long frames = vmm.Host.Machine.AllocatedPages;

        AssertOk(Convert(vmm, gmem, 0, 8, Private));
        Assert.Equal([7, 7], guest.Read(Gpa + 0x1000, 2));
        guest.Write(Gpa + 0x1000, 8);
        AssertOk(Convert(vmm, gmem, 1, 1, 0));

        Assert.Equal([8, 7], vmm.Load(mapping + 0x1000, 2));
        Assert.Equal([8, 7], guest.Read(Gpa + 0x1000, 2));
        Assert.Equal(frames, vmm.Host.Machine.AllocatedPages);
    }

    [Theory]
    [MemberData(nameof(InPlace))]
    public void PinInTheRange_IsEagainAtItsFirstPage_AndPinsElsewhereAreNobodysBusiness(string profile)
    {
        TestGuest guest = Bound(profile, MappedShared, out int gmem);
        Vmm vmm = guest.Vm.Vmm;
        ulong mapping = MapFile(vmm, gmem, 8);
        long outside = AssertOk(vmm.Process.PinPages(mapping + 0x1000, 0x1000, write: true)).Value;
        long inside = AssertOk(vmm.Process.PinPages(mapping + 0x5000, 0x2000, write: false)).Value;
        ulong seq = guest.Vm.Seq;

        var args = new kvm_memory_attributes2 { offset = 2 * Vmm.Page, size = 6 * Vmm.Page, attributes = Private };
        AssertRefused(vmm.Ioctl(gmem, KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES2, ref args), Errno.EAGAIN, GuestMemfd.ConvertPageInUse);
        Assert.Equal(5 * Vmm.Page, args.error_offset);
        Assert.False(vmm.Gmem(gmem).Inode.IsPrivate(2));
        Assert.Equal(seq, guest.Vm.Seq);

        // The rest of the range converts, and so does all of it when the pins are gone; the first pin is in nobody's way.
        AssertOk(Convert(vmm, gmem, 2, 3, Private));
        AssertOk(vmm.Process.UnpinPages((ulong)inside));
        AssertOk(Convert(vmm, gmem, 2, 6, Private));
        AssertOk(vmm.Process.UnpinPages((ulong)outside));
    }

    [Theory]
    [MemberData(nameof(InPlace))]
    public void ToShared_IsNeverEagain(string profile)
    {
        TestGuest guest = Bound(profile, MappedShared, out int gmem);
        Vmm vmm = guest.Vm.Vmm;
        AssertOk(Convert(vmm, gmem, 0, 2, Private));
        ulong mapping = MapFile(vmm, gmem, 8);
        long pin = AssertOk(vmm.Process.PinPages(mapping + 0x2000, 0x1000, write: true)).Value;
        AssertOk(Convert(vmm, gmem, 0, 8, 0));
        AssertOk(vmm.Process.UnpinPages((ulong)pin));
    }

    [Theory]
    [MemberData(nameof(InPlace))]
    public void PrivatePage_CannotBePinnedReadOrCopiedFrom(string profile)
    {
        TestGuest guest = Bound(profile, MappedShared, out int gmem);
        Vmm vmm = guest.Vm.Vmm;
        ulong mapping = MapFile(vmm, gmem, 8);
        AssertOk(Convert(vmm, gmem, 1, 1, Private));
        AssertRefused(vmm.Process.PinPages(mapping, 0x2000, write: false), Errno.EFAULT, GuestMemfd.FaultPrivate);
        AssertRefused(vmm.Process.Write(mapping + 0x1000, new byte[] { 1 }), Errno.EFAULT, GuestMemfd.FaultPrivate);
        // An ioctl whose argument stands in it: copy_from_user faults.
        Assert.Equal(Errno.EFAULT, vmm.Ioctl(guest.Vm.Fd, KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES, mapping + 0x1000).Errno);
        Assert.Equal(1, AssertOk(vmm.Process.PinPages(mapping + 0x2000, 0x1000, write: true)).Value);
    }

    [Theory]
    [MemberData(nameof(InPlace))]
    public void Signal_IsNotLookedFor(string profile)
    {
        TestGuest guest = Bound(profile, MappedShared, out int gmem);
        guest.Vm.Vmm.Process.RaiseSignal(0);
        AssertOk(Convert(guest.Vm.Vmm, gmem, 0, 8, Private));
        AssertRefused(guest.Run(new GuestHalt()), Errno.EINTR, Vcpu.RunInterrupted);
    }

    [Theory]
    [MemberData(nameof(InPlace))]
    public void File_BeginsPrivate_UnlessInitShared(string profile)
    {
        foreach ((ulong flags, bool isPrivate) in new[] { (0UL, true), (1UL, true), (2UL, false), (3UL, false) })
        {
            TestGuest guest = Bound(profile, flags, out int gmem);
            Assert.Equal(isPrivate, guest.Vm.Vmm.Gmem(gmem).Inode.IsPrivate(3));
            Assert.Equal(isPrivate, guest.Vm.Kernel.Attributes.IsPrivate(new Gfn((Gpa >> 12) + 3)));
        }
    }

    [Theory]
    [MemberData(nameof(InPlace))]
    public void Holes_ConvertToo_AndPunchingKeepsWhatTheyAre(string profile)
    {
        TestGuest guest = Bound(profile, MappedShared, out int gmem);
        Vmm vmm = guest.Vm.Vmm;
        ulong mapping = MapFile(vmm, gmem, 8);
        AssertOk(Convert(vmm, gmem, 2, 1, Private));
        Assert.Equal(0UL, vmm.Gmem(gmem).Inode.CountPages());
        guest.Write(Gpa + 0x2000, 9);
        AssertOk(vmm.Process.Fallocate(gmem, 3, 0, 8 * 4096));

        Assert.True(vmm.Gmem(gmem).Inode.IsPrivate(2));
        AssertRefused(vmm.Process.Read(mapping + 0x2000, new byte[1]), Errno.EFAULT, GuestMemfd.FaultPrivate);
        Assert.Equal([0], guest.Read(Gpa + 0x2000));
        Assert.Equal([0], vmm.Load(mapping + 0x1000, 1));
    }

    [Theory]
    [MemberData(nameof(InPlace))]
    public void SharedAccess_UsesTheFile_WhetherItCanBeMappedOrNot(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
        int gmem = vm.CreateGmem(4);
        ulong ignored = host.Vmm.MapFilled(4);
        vm.AddGmemSlot(0, Gpa, 4, gmem, uaddr: ignored);
        var guest = new TestGuest(vm);
        guest.Write(Gpa, 1);
        AssertOk(Convert(host.Vmm, gmem, 0, 4, 0));
        Assert.Equal([1], guest.Read(Gpa));
        guest.Write(Gpa + 0x1000, 2);
        Assert.Equal(2UL, host.Vmm.Gmem(gmem).Inode.CountPages());
        Assert.Equal([1, 2], new[] { host.Vmm.Load(ignored, 1)[0], host.Vmm.Load(ignored + 0x1000, 1)[0] });
    }

    [Theory]
    [MemberData(nameof(InPlace))]
    public void VmIoctl_SupportsNoBit_AndDecidesNothing(string profile)
    {
        TestGuest guest = Bound(profile, 0, out _);
        AssertRefused(guest.Vm.TrySetAttributes(Gpa, 4096, Private), Errno.EINVAL, MemoryAttributes.Unsupported);
        AssertOk(guest.Vm.TrySetAttributes(Gpa, 8 * 4096, 0));
        Assert.True(guest.Vm.Kernel.Attributes.IsPrivate(new Gfn(Gpa >> 12)));
        Assert.Equal((0L, 8L), (guest.Vm.CheckExtension(KvmCap.MEMORY_ATTRIBUTES), guest.Vm.CheckExtension(KvmCap.GUEST_MEMFD_MEMORY_ATTRIBUTES)));
        Assert.Equal((0L, 8L), (guest.Vm.Vmm.CheckExtension(KvmCap.MEMORY_ATTRIBUTES), guest.Vm.Vmm.CheckExtension(KvmCap.GUEST_MEMFD_MEMORY_ATTRIBUTES)));
    }

    [Theory]
    [MemberData(nameof(InPlace))]
    public void WithoutALiveFile_AGpaIsShared(string profile)
    {
        TestGuest guest = Bound(profile, 0, out int gmem);
        AssertOk(guest.Run(TestGuest.Fetch(Gpa + 0x10_0000)));
        Assert.Equal((uint)KvmExit.KVM_EXIT_MMIO, guest.ExitReason);
        AssertOk(guest.Vm.Vmm.Close(gmem));
        AssertRefused(guest.Run(TestGuest.Fetch(Gpa)), Errno.EFAULT, GuestMemfd.FileGone);
        Assert.Equal((39u, (0UL, Gpa, 4096UL)), (guest.ExitReason, guest.MemoryFault));
    }

    [Theory]
    [MemberData(nameof(InPlace))]
    public void ConversionUnderAFault_SendsItRound_OrIsSeenAsAMismatch(string profile)
    {
        foreach ((string place, bool mismatch) in new[] { ("fault attribute test", true), ("fault page found", false), ("lock kvm->mmu_lock", false) })
        {
            TestGuest guest = Bound(profile, MappedShared, out int gmem);
            InterposingBaton baton = guest.At(place, other => other.Ioctl(
                gmem, KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES2, new kvm_memory_attributes2 { offset = 0, size = 4096, attributes = Private }));
            CallReport run = guest.Run(TestGuest.Store(Gpa, 1), new GuestHalt());
            Assert.True(baton.Acted);
            Assert.Equal(mismatch ? Errno.EFAULT : Errno.OK, run.Errno);
            if (mismatch)
            {
                Assert.Equal((39u, (0UL, Gpa, 4096UL)), (guest.ExitReason, guest.MemoryFault));
                AssertOk(guest.Continue());
            }
            Assert.True(guest.Leaf(Gpa)!.Value.IsPrivate);
        }
    }

    [Theory]
    [MemberData(nameof(InPlace))]
    public void Snp_PageBecomesTheHostsAgainWhereItIs(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SNP_VM);
        vm.Init2();
        int gmem = vm.CreateGmem(8, 1);
        vm.AddGmemSlot(0, Gpa, 8, gmem);
        vm.Start();
        ulong mapping = MapFile(host.Vmm, gmem, 8);
        vm.Update(SimMachine.Measurement.SnpPageType.NORMAL, Gpa, host.Vmm.MapFilled(4), 4);
        Assert.Equal(4UL * 4096, vm.Describe().Rmp.Single().Size);
        AssertOk(Convert(host.Vmm, gmem, 1, 2, 0));
        Assert.Equal([(Gpa, 0x1000UL), (Gpa + 0x3000, 0x1000UL)], vm.Describe().Rmp.Select(run => (run.Gpa, run.Size)));
        host.Vmm.Store(mapping + 0x1000, Vmm.Content(5));
        AssertRefused(host.Vmm.Process.Read(mapping, new byte[1]), Errno.EFAULT, GuestMemfd.FaultPrivate);
        // Shared pages are no target of a launch update, and a page that is private is no source of one.
        CallReport shared = vm.TryUpdate(SimMachine.Measurement.SnpPageType.NORMAL, Gpa + 0x1000, host.Vmm.MapFilled(1), 1).Report;
        Assert.Equal(("EINVAL", GuestMemfd.GfnNotPrivate), (shared.Causes[0].Code, shared.Causes[0].Rule));
        CallReport source = vm.TryUpdate(SimMachine.Measurement.SnpPageType.NORMAL, Gpa + 0x4000, mapping + 0x4000, 1).Report;
        Assert.Equal(("EFAULT", GuestMemfd.FaultPrivate), (source.Causes[0].Code, source.Causes[0].Rule));
    }

    [Theory]
    [MemberData(nameof(InPlace))]
    public void OneTebibyte_ConvertsForThePriceOfItsRuns(string profile)
    {
        TestHost host = Boot(profile);
        int gmem = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM).CreateGmem(1UL << 28, MappedShared);
        GmemInode inode = host.Vmm.Gmem(gmem).Inode;
        int small = TestGuest.StepsOf(host, () => AssertOk(Convert(host.Vmm, gmem, 3, 1, Private))).Length;
        Assert.Equal(small, TestGuest.StepsOf(host, () => AssertOk(Convert(host.Vmm, gmem, 0, 1UL << 28, Private))).Length);
        Assert.InRange(inode.AttributeBytes, 0, 512);
        AssertOk(Convert(host.Vmm, gmem, 5, 1, 0));
        Assert.Equal((false, true), (inode.IsPrivate(5), inode.AllPrivate(6, 1UL << 28, true)));
    }

    private static CallReport Convert(Vmm vmm, int gmem, ulong page, ulong pages, ulong attributes)
    {
        var args = new kvm_memory_attributes2 { offset = page * Vmm.Page, size = pages * Vmm.Page, attributes = attributes };
        return vmm.Ioctl(gmem, KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES2, ref args);
    }

    private static ulong MapFile(Vmm vmm, int gmem, ulong pages) => (ulong)AssertOk(vmm.Process.Mmap(0, pages * Vmm.Page, 3, Vmm.MapShared, gmem, 0)).Value;

    private TestGuest Bound(string profile, ulong flags, out int gmem)
    {
        TestVm vm = Boot(profile).Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
        gmem = vm.CreateGmem(8, flags);
        vm.AddGmemSlot(0, Gpa, 8, gmem);
        return new TestGuest(vm);
    }

    private sealed class Call
    {
        public kvm_memory_attributes2 Args = new() { offset = 4 * Vmm.Page, size = 4 * Vmm.Page, attributes = Private };

        public Call(TestHost host)
        {
            Vm = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
            Fd = Vm.CreateGmem(16, MappedShared);
            PlainFd = host.Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM).CreateGmem(16, MappedShared);
        }

        public TestVm Vm { get; }

        public int Fd { get; set; }

        public int PlainFd { get; }

        public bool CutShort { get; set; }

        public unsafe void SetReserved(int index) => Args.reserved[index] = 1;

        public CallReport Issue() => CutShort
            ? Vm.Vmm.IoctlCutShort(Fd, KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES2, Args)
            : Vm.Vmm.Ioctl(Fd, KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES2, ref Args);
    }
}
