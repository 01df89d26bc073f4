using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Tests.Support;
using SimKvm.Userspace;
using SimKvm.Vendors.Amd;
using SimMachine.Amd;
using SimMachine.Measurement;
using Xunit;

namespace SimKvm.Tests;

/// <summary>
/// KVM_SEV_SNP_LAUNCH_UPDATE: the checks of the command and of its first page in the order of snp.md 3.2 and 3.3, which the two generations do not share.
/// </summary>
public sealed class LaunchUpdateTests : KvmTest
{
    private const uint Sentinel = 0xdeadbeef;
    private const ulong Gpa = 0x100000;

    private static readonly CheckTable<UpdateCall> Table = new(
        new Check<UpdateCall>("1 no guest", Errno.EINVAL, SevBackend.NotAnSnpGuest, call => call.Stage = 0) { Tags = "stage", Error = Sentinel },
        new Check<UpdateCall>("1 not started", Errno.EINVAL, SevBackend.NoContext, call => call.Stage = 1) { Tags = "stage", Error = Sentinel },
        new Check<UpdateCall>("2 copy-in", Errno.EFAULT, UserMemory.NotMapped, call => call.Address = Vmm.Unmapped) { Error = Sentinel },
        new Check<UpdateCall>("3 len 0", Errno.EINVAL, SevBackend.UpdateLengthZero, call => call.Update.len = 0) { Tags = "len", Profiles = K72, Error = Sentinel },
        new Check<UpdateCall>("4 len alignment", Errno.EINVAL, SevBackend.UpdateArguments, call => call.Update.len |= 1) { Tags = "len", Error = Sentinel },
        new Check<UpdateCall>("4 flags", Errno.EINVAL, SevBackend.UpdateArguments, call => call.Update.flags = 1) { Error = Sentinel },
        new Check<UpdateCall>("4 type VMSA", Errno.EINVAL, SevBackend.UpdateArguments, call => call.Update.type = 2) { Tags = "type", Error = Sentinel },
        new Check<UpdateCall>("4 type 0", Errno.EINVAL, SevBackend.UpdateArguments, call => call.Update.type = 0) { Tags = "type", Error = Sentinel },
        new Check<UpdateCall>("4 type 7", Errno.EINVAL, SevBackend.UpdateArguments, call => call.Update.type = 7) { Tags = "type", Error = Sentinel },
        new Check<UpdateCall>("5 source alignment", Errno.EINVAL, SevBackend.SourceNotAligned, call => call.Update.uaddr |= 8) { Tags = "uaddr", Profiles = K72, Error = Sentinel },
        new Check<UpdateCall>("6 no slot", Errno.EINVAL, SevBackend.UpdateNoGmemSlot, call => call.Update.gfn_start |= 0x10_0000) { Tags = "gfn", Error = Sentinel },
        new Check<UpdateCall>("6 slot without guest_memfd", Errno.EINVAL, SevBackend.UpdateNoGmemSlot, call => call.Update.gfn_start = UpdateCall.PlainSlotGfn) { Tags = "gfn", Error = Sentinel },
        new Check<UpdateCall>("p file gone", Errno.EIO, GuestMemfd.FileGone, call => call.CloseGmem = true) { Tags = "gfn" },
        new Check<UpdateCall>("p signal", Errno.EIO, GuestMemfd.Interrupted, call => call.Signal = true),
        new Check<UpdateCall>("p source unmapped, pinned", Errno.EIO, UserMemory.NotMapped, call => call.Update.uaddr = Vmm.Unmapped) { Tags = "uaddr", Profiles = K72 },
        new Check<UpdateCall>("p source of a CPUID page read-only", Errno.EIO, UserMemory.Protected, call => call.SetReadOnlyCpuidSource()) { Tags = "uaddr type", Profiles = K72 },
        new Check<UpdateCall>("p prepared", Errno.EIO, GuestMemfd.AlreadyPrepared, call => call.LaunchBefore = true) { Tags = "assigned", Profiles = K616 },
        new Check<UpdateCall>("p not private", Errno.EIO, GuestMemfd.GfnNotPrivate, call => call.MakeShared = true),
        new Check<UpdateCall>("p NULL source", Errno.EIO, SevBackend.NullSource, call => call.Update.uaddr = 0) { Tags = "uaddr" },
        new Check<UpdateCall>("p assigned", Errno.EIO, SevBackend.AlreadyAssigned, call => call.LaunchBefore = true) { Tags = "assigned", Profiles = K72 },
        new Check<UpdateCall>("p assigned by a fault", Errno.EIO, SevBackend.AlreadyAssigned, call => call.AssignBefore = true) { Tags = "assigned" },
        new Check<UpdateCall>("p source unmapped, read", Errno.EIO, UserMemory.NotMapped, call => call.Update.uaddr = Vmm.Unmapped) { Tags = "uaddr", Profiles = K616 },
        new Check<UpdateCall>("p sev_fd", Errno.EIO, KvmAmd.BadSevFd, call => call.SevFd = 999),
        new Check<UpdateCall>("p finished", Errno.EIO, Psp.WrongGuestState, call => call.Stage = 3) { Tags = "stage", Error = 2 },
        new Check<UpdateCall>("p CPUID refused", Errno.EIO, CpuidPage.UnknownLeaf, call => call.SetBadCpuid()) { Tags = "uaddr type", Error = 0x16 });

    public static TheoryData<string, string> Singles => Table.Singles();

    public static TheoryData<string, string, string> Pairs => Table.Pairs();

    public static TheoryData<string, SnpPageType> ProfilesAndPageTypes
    {
        get
        {
            var data = new TheoryData<string, SnpPageType>();
            foreach (string profile in new[] { K616, K72 })
            {
                foreach (SnpPageType type in new[] { SnpPageType.NORMAL, SnpPageType.ZERO, SnpPageType.UNMEASURED, SnpPageType.SECRETS, SnpPageType.CPUID })
                {
                    data.Add(profile, type);
                }
            }
            return data;
        }
    }

    [Theory]
    [MemberData(nameof(Singles))]
    public void Update_OneCheckViolated_IsRefused_AndMovesNoDigest(string profile, string check)
    {
        var call = new UpdateCall(Boot(profile));
        Table[check].Violate(call);
        call.Prepare();
        string digest = call.Vm.Digest;
        long measured = call.Vm.Measured;
        string rmp = string.Join(';', call.Vm.Describe().Rmp);
        SevReply<kvm_sev_snp_launch_update> reply = call.Issue();
        AssertRefused(reply.Report, Table[check].Errno, Table[check].Rule);
        Assert.Equal(Table[check].Error, reply.Error);
        Assert.Equal((digest, measured), (call.Vm.Digest, call.Vm.Measured));
        Assert.Equal(rmp, string.Join(';', call.Vm.Describe().Rmp));
        // The structure is as it was.
        Assert.Equal(call.Update, reply.Data);
        // What populate refused, the command flattened.
        Assert.Equal(Table[check].Errno == Errno.EIO, ReferenceEquals(SevBackend.PopulateFailed, reply.Report.Causes[^1].Rule));
    }

    [Theory]
    [MemberData(nameof(Pairs))]
    public void Update_TwoChecksViolated_AnswersTheFirst(string profile, string first, string second)
    {
        var call = new UpdateCall(Boot(profile));
        Table[second].Violate(call);
        Table[first].Violate(call);
        call.Prepare();
        SevReply<kvm_sev_snp_launch_update> reply = call.Issue();
        AssertRefused(reply.Report, Table[first].Errno, Table[first].Rule);
        Assert.Equal(Table[first].Error, reply.Error);
    }

    [Theory]
    [MemberData(nameof(ProfilesAndPageTypes))]
    public void Update_OfEachType_MeasuresItAndGivesThePageToTheGuest(string profile, SnpPageType type)
    {
        TestHost host = Boot(profile);
        TestVm vm = Started(host, 4);
        ulong source = type == SnpPageType.CPUID ? host.Vmm.Map(1) : host.Vmm.MapFilled(1, 7);
        if (type == SnpPageType.CPUID)
        {
            host.Vmm.Store(source, new byte[4096]);
        }
        SevReply<kvm_sev_snp_launch_update> reply = vm.TryUpdate(type, Gpa, source, 1, error: Sentinel);
        AssertOk(reply.Report);
        Assert.Equal(0UL, reply.Data.len);
        Assert.Equal((Gpa >> 12) + 1, reply.Data.gfn_start);
        Assert.Equal(type == SnpPageType.ZERO ? source : source + 4096, reply.Data.uaddr);
        // A success leaves error to the caller.
        Assert.Equal(Sentinel, reply.Error);

        var expected = new SnpLaunchDigest();
        byte[] hash = new byte[48];
        SnpLaunchDigest.ContentHash(type, Vmm.Content(7), hash);
        expected.Extend(type, Gpa, hash);
        Assert.Equal(Convert.ToHexStringLower(expected.Current), vm.Digest);
        Auditing.RmpRun page = vm.Describe().Rmp.Single();
        Assert.Equal((Gpa, 4096UL, RmpPageState.GuestValid, false), (page.Gpa, page.Size, page.State, page.Vmsa));
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void ZeroPages_TakeNoSource_WhateverUaddrIs(string profile)
    {
        TestVm vm = Started(Boot(profile), 8);
        foreach (ulong uaddr in new ulong[] { 0, 1, 0x8000_0000_0000_0000, Vmm.Unmapped })
        {
            ulong gpa = Gpa + ((ulong)vm.Measured << 12);
            SevReply<kvm_sev_snp_launch_update> reply = vm.TryUpdate(SnpPageType.ZERO, gpa, uaddr, 2);
            AssertOk(reply.Report);
            Assert.Equal(uaddr, reply.Data.uaddr);
        }
        Assert.Equal(8, vm.Measured);
    }

    [Fact]
    public void Length0_InOldKernels_DoesNothingAndSucceeds()
    {
        TestHost host = Boot(K616);
        TestVm vm = Started(host, 4);
        string before = host.Snapshot();
        SevReply<kvm_sev_snp_launch_update> reply = vm.TryUpdate(SnpPageType.NORMAL, Gpa, Vmm.Unmapped, 0, error: Sentinel);
        AssertOk(reply.Report);
        Assert.Equal(new kvm_sev_snp_launch_update { gfn_start = Gpa >> 12, uaddr = Vmm.Unmapped, type = 1 }, reply.Data);
        Assert.Equal(Sentinel, reply.Error);
        Assert.Equal(before, host.Snapshot());
    }

    [Theory]
    [InlineData(1)]
    [InlineData(0x800)]
    [InlineData(0xfff)]
    public void UnalignedSource_InOldKernels_IsReadFromWhereItIs(ulong skew)
    {
        TestHost host = Boot(K616);
        TestVm vm = Started(host, 4);
        ulong source = host.Vmm.MapFilled(2, 3);
        vm.Update(SnpPageType.NORMAL, Gpa, source + skew, 1);

        var expected = new SnpLaunchDigest();
        byte[] hash = new byte[48];
        SnpLaunchDigest.ContentHash(SnpPageType.NORMAL, host.Vmm.Load(source + skew, 4096), hash);
        expected.Extend(SnpPageType.NORMAL, Gpa, hash);
        Assert.Equal(Convert.ToHexStringLower(expected.Current), vm.Digest);
    }

    [Fact]
    public void UnalignedSource_ThatEndsInNothing_IsEfaultInside()
    {
        TestHost host = Boot(K616);
        TestVm vm = Started(host, 4);
        ulong source = host.Vmm.MapFilled(1);
        AssertRefused(vm.TryUpdate(SnpPageType.NORMAL, Gpa, source + 8, 1).Report, Errno.EIO, UserMemory.NotMapped);
        Assert.Empty(vm.Describe().Rmp);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void UntouchedSource_MeasuresAsZeros(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = Started(host, 4);
        vm.Update(SnpPageType.NORMAL, Gpa, host.Vmm.Map(1), 1);
        var expected = new SnpLaunchDigest();
        byte[] hash = new byte[48];
        SnpLaunchDigest.ContentHash(SnpPageType.NORMAL, new byte[4096], hash);
        expected.Extend(SnpPageType.NORMAL, Gpa, hash);
        Assert.Equal(Convert.ToHexStringLower(expected.Current), vm.Digest);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void RefusedCpuidPage_ComesBackCorrected_AndIsThenAccepted(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = Started(host, 4);
        ulong source = host.Vmm.Map(1);
        host.Vmm.Store(source, BadCpuidPage());
        SevReply<kvm_sev_snp_launch_update> refused = vm.TryUpdate(SnpPageType.CPUID, Gpa, source, 1);
        AssertRefused(refused.Report, Errno.EIO, CpuidPage.UnknownLeaf);
        Assert.Equal(0x16u, refused.Error);
        CpuidFunction corrected = CpuidPage.Read(host.Vmm.Load(source, 4096)).Single();
        Assert.Equal((BadLeaf, 0u, 0u, 0u, 0u), (corrected.EaxIn, corrected.Eax, corrected.Ebx, corrected.Ecx, corrected.Edx));
        Assert.Empty(vm.Describe().Rmp);
        vm.Update(SnpPageType.CPUID, Gpa, source, 1);
        Assert.Equal(1, vm.Measured);
    }

    [Theory]
    [InlineData(K616, "psp.cpuid-page.unknown-leaf", 0x16)]
    [InlineData(K72, "mm.protection", 0)]
    public void CpuidPageInReadOnlyMemory_IsRefusedByWhatTheGenerationDoes(string profile, string rule, uint error)
    {
        TestHost host = Boot(profile);
        TestVm vm = Started(host, 4);
        ulong source = host.Vmm.MapReadOnly(BadCpuidPage());
        SevReply<kvm_sev_snp_launch_update> reply = vm.TryUpdate(SnpPageType.CPUID, Gpa, source, 1);
        Assert.Equal((Errno.EIO, rule, error), (reply.Report.Errno, reply.Report.Causes[0].Rule.Id, reply.Error));
        // What could not be stored is not stored, and is no cause of its own.
        Assert.Equal(BadCpuidPage(), host.Vmm.Load(source, 4096));
        Assert.Equal(SevBackend.PopulateFailed, reply.Report.Causes[^1].Rule);
        Assert.DoesNotContain(reply.Report.Causes, cause => cause.Rule == UserArg.CopyOutFaulted);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void FirmwareFailure_LeavesThePageReadyForAnotherTry(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = Started(host, 4);
        ulong source = host.Vmm.MapFilled(1);
        AssertRefused(vm.TryUpdate(SnpPageType.NORMAL, Gpa, source, 1, sevFd: 999).Report, Errno.EIO, KvmAmd.BadSevFd);
        Assert.Empty(vm.Describe().Rmp);
        vm.Update(SnpPageType.NORMAL, Gpa, source, 1);
        Assert.Equal(1, vm.Measured);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void AfterFinish_FirmwareRefuses_AndThePageIsReclaimed(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = Started(host, 4);
        vm.Finish();
        SevReply<kvm_sev_snp_launch_update> reply = vm.TryUpdate(SnpPageType.ZERO, Gpa, 0, 1);
        AssertRefused(reply.Report, Errno.EIO, Psp.WrongGuestState);
        Assert.Equal(2u, reply.Error);
        Assert.Empty(vm.Describe().Rmp);
        Assert.False(vm.Describe().Dead);
    }

    // The proposal of June 2026 says at once what else each page says for itself.
    [Fact]
    public void NullSource_WithTheEarlyCheck_IsEinval_ButForZeroPages()
    {
        TestHost host = Boot("K72-nullchk");
        TestVm vm = Started(host, 4);
        foreach (SnpPageType type in new[] { SnpPageType.NORMAL, SnpPageType.UNMEASURED, SnpPageType.SECRETS, SnpPageType.CPUID })
        {
            AssertRefused(vm.TryUpdate(type, Gpa, 0, 1).Report, Errno.EINVAL, SevBackend.NullSource);
        }
        Assert.Equal(0, vm.Measured);
        vm.Update(SnpPageType.ZERO, Gpa, 0, 1);
    }

    // With in-place conversion the VMM fills the page while it is shared, converts it, and gives no source.
    [Theory]
    [InlineData("IP8")]
    [InlineData("IPDEV")]
    public void NullSource_WithInPlaceConversion_LaunchesWhatThePageHas(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SNP_VM);
        vm.Init2();
        const ulong mapped = kvm_create_guest_memfd.GUEST_MEMFD_FLAG_MMAP, shared = kvm_create_guest_memfd.GUEST_MEMFD_FLAG_INIT_SHARED;
        int gmem = vm.CreateGmem(1, mapped | shared);
        vm.AddGmemSlot(0, Gpa, 1, gmem);
        ulong window = (ulong)host.Vmm.Process.Mmap(0, 4096, Vmm.ProtRead | Vmm.ProtWrite, Vmm.MapShared, gmem, 0).Value;
        byte[] content = Vmm.Content(0x3c);
        host.Vmm.Store(window, content);
        Vmm.Must(host.Vmm.Process.Munmap(window, 4096));
        var convert = new kvm_memory_attributes2 { offset = 0, size = 4096, attributes = TestVm.Private };
        Vmm.Must(host.Vmm.Ioctl(gmem, KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES2, ref convert));
        vm.Start();
        vm.Update(SnpPageType.NORMAL, Gpa, 0, 1);
        SimMachine.Measurement.TranscriptRecord page = Assert.Single(vm.Describe().Sev.Guest!.Transcript.Read(0, 1));
        Assert.Equal(System.Security.Cryptography.SHA384.HashData(content), page.ContentHash.ToArray());
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void PunchedPage_CanBeLaunchedAgain_AndIsMeasuredTwice(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SNP_VM);
        vm.Init2();
        int gmem = vm.AddPrivateMemory(Gpa, 4);
        vm.Start();
        vm.Update(SnpPageType.ZERO, Gpa, 0, 1);
        AssertOk(host.Vmm.Process.Fallocate(gmem, 3, 0, 4096));
        Assert.Empty(vm.Describe().Rmp);
        vm.Update(SnpPageType.ZERO, Gpa, 0, 1);
        Assert.Equal(2, vm.Measured);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void SharedAttribute_LeavesTheRmpEntryUntilTheHoleIsPunched(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SNP_VM);
        vm.Init2();
        int gmem = vm.AddPrivateMemory(Gpa, 4);
        vm.Start();
        vm.Update(SnpPageType.ZERO, Gpa, 0, 4);
        vm.SetShared(Gpa, 4);
        Assert.Equal(4 * 4096UL, vm.Describe().Rmp.Single().Size);
        AssertOk(host.Vmm.Process.Fallocate(gmem, 3, 4096, 4096));
        Assert.Equal([(Gpa, 0x1000UL), (Gpa + 0x2000, 0x2000UL)], vm.Describe().Rmp.Select(run => (run.Gpa, run.Size)));
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void LaunchedPage_ReadsAsCiphertextForTheHost(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SNP_VM);
        vm.Init2();
        int gmem = vm.AddPrivateMemory(Gpa, 4);
        vm.Start();
        vm.Update(SnpPageType.NORMAL, Gpa, host.Vmm.MapFilled(1, 0x5a), 1);
        Assert.True(host.Vmm.Gmem(gmem).Inode.TryGet(0, out Folio folio));
        byte[] seen = new byte[4096];
        host.Machine.HostRead(folio.Pfn, 0, seen);
        Assert.True(seen.Distinct().Count() > 100);
    }

    [Fact]
    public void WriteBackThatFaults_IsEfault_AfterThePagesAreDone()
    {
        TestHost host = Boot();
        TestVm vm = Started(host, 4);
        byte[] page = new byte[4096];
        BitConverter.TryWriteBytes(page, Gpa >> 12);
        BitConverter.TryWriteBytes(page.AsSpan(16), 4096UL);
        page[24] = (byte)SnpPageType.ZERO;
        CallReport report = vm.TrySev(SevCmdId.KVM_SEV_SNP_LAUNCH_UPDATE, 0UL, dataAddress: host.Vmm.MapReadOnly(page)).Report;
        AssertRefused(report, Errno.EFAULT, UserMemory.Protected);
        Assert.Equal(1, vm.Measured);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void GfnThatNoSlotCanHave_IsEinval(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = Started(host, 4);
        foreach (ulong gfn in new[] { ulong.MaxValue, 1UL << 63, 1UL << 52, (1UL << 52) | (Gpa >> 12) })
        {
            var update = new kvm_sev_snp_launch_update { gfn_start = gfn, uaddr = host.Vmm.Map(1), len = 4096, type = 1 };
            AssertRefused(vm.TrySev(SevCmdId.KVM_SEV_SNP_LAUNCH_UPDATE, update).Report, Errno.EINVAL, SevBackend.UpdateNoGmemSlot);
        }
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void LengthOfNearly2To64_IsClippedToTheSlot(string profile)
    {
        TestVm vm = Started(Boot(profile), 4);
        var update = new kvm_sev_snp_launch_update { gfn_start = Gpa >> 12, len = 0xffff_ffff_ffff_f000, type = (byte)SnpPageType.ZERO };
        SevReply<kvm_sev_snp_launch_update> reply = vm.TrySev(SevCmdId.KVM_SEV_SNP_LAUNCH_UPDATE, update);
        AssertOk(reply.Report);
        Assert.Equal(((Gpa >> 12) + 4, 0xffff_ffff_ffff_b000), (reply.Data.gfn_start, reply.Data.len));
        Assert.Equal(4, vm.Measured);
    }

    private const uint BadLeaf = 0x0000_ffff;

    private static byte[] BadCpuidPage()
    {
        byte[] page = new byte[4096];
        page[0] = 1;
        BitConverter.TryWriteBytes(page.AsSpan(16), BadLeaf);
        Array.Fill(page, (byte)0xff, 16 + 24, 16);
        return page;
    }

    private static TestVm Started(TestHost host, ulong pages)
    {
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SNP_VM);
        vm.Init2();
        vm.AddPrivateMemory(Gpa, pages);
        vm.Start();
        return vm;
    }

    /// <summary>The launch of one NORMAL page of a guest that has four, and a plain slot beside them.</summary>
    private sealed class UpdateCall(TestHost host)
    {
        public const ulong PlainSlotGfn = 0x900;

        private int _gmem;
        private bool _badCpuid;

        public TestVm Vm { get; } = host.Vmm.CreateVm(VmType.KVM_X86_SNP_VM);

        /// <summary>0 created, 1 initialised, 2 started, 3 finished.</summary>
        public int Stage { get; set; } = 2;

        public ulong? Address { get; set; }

        public int? SevFd { get; set; }

        public bool CloseGmem { get; set; }

        public bool Signal { get; set; }

        public bool MakeShared { get; set; }

        public bool LaunchBefore { get; set; }

        public bool AssignBefore { get; set; }

        public kvm_sev_snp_launch_update Update = new() { gfn_start = Gpa >> 12, uaddr = host.Vmm.MapFilled(1), len = 4096, type = 1 };

        public void SetBadCpuid()
        {
            _badCpuid = true;
            Update.type = (byte)SnpPageType.CPUID;
        }

        public void SetReadOnlyCpuidSource()
        {
            Update.type = (byte)SnpPageType.CPUID;
            Update.uaddr = host.Vmm.Map(1, Vmm.ProtRead);
        }

        /// <summary>Everything up to the call.</summary>
        public void Prepare()
        {
            Vm.AddSlot(9, PlainSlotGfn << 12, 4);
            Vm.SetPrivate(PlainSlotGfn << 12, 4);
            if (_badCpuid)
            {
                host.Vmm.Store(Update.uaddr, BadCpuidPage());
            }
            if (Stage >= 1)
            {
                Vm.Init2();
            }
            _gmem = Vm.AddPrivateMemory(Gpa, 4);
            if (Stage >= 2)
            {
                Vm.Start();
                if (LaunchBefore)
                {
                    Vm.Update(SnpPageType.ZERO, Gpa, 0, 1);
                }
                if (AssignBefore)
                {
                    // As a private fault of the guest leaves it, but for the mark that the page was prepared.
                    Assert.True(host.Vmm.Gmem(_gmem).Inode.TryGetOrCreate(0, out Folio folio, out _));
                    host.Host.KvmAmd.RmpMakePrivate(
                        TestHost.NewThread(host.Vmm), folio.Pfn, Gpa, SimMachine.Addressing.PageLevel.Page4K, Vm.Asid, immutable: false);
                }
            }
            if (Stage == 3)
            {
                Vm.Finish();
            }
            if (MakeShared)
            {
                Vm.SetShared(Gpa, 4);
            }
            if (CloseGmem)
            {
                AssertOk(host.Vmm.Close(_gmem));
            }
        }

        public SevReply<kvm_sev_snp_launch_update> Issue()
        {
            host.Machine.Baton = Signal ? InterposingBaton.Signal("ioctl enter", 1) : null;
            SevReply<kvm_sev_snp_launch_update> reply = Vm.TrySev(SevCmdId.KVM_SEV_SNP_LAUNCH_UPDATE, Update, SevFd, Sentinel, Address);
            host.Machine.Baton = null;
            return reply;
        }
    }
}
