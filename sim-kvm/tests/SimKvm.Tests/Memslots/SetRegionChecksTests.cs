using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Tests.Support;
using SimKvm.Userspace;
using Xunit;

namespace SimKvm.Tests;

/// <summary>
/// KVM_SET_USER_MEMORY_REGION(2): every check in the order of kvm-guest-memory.md 5.1, alone and in pairs, for the creation of a slot.
/// </summary>
public sealed class SetRegionChecksTests : KvmTest
{
    private static readonly CheckTable<CreateCall> Table = new(
        new Check<CreateCall>("1 copy-in", Errno.EFAULT, UserArg.CopyInFaulted, call => call.CutShort = true),
        new Check<CreateCall>("3 slot id", Errno.EINVAL, Memslots.IdTooLarge, call => call.Region.slot = (call.Region.slot & 0xffff0000) | 32764),
        new Check<CreateCall>("4 log-dirty gmem", Errno.EINVAL, Memslots.BadFlags, call => call.Region.flags |= KvmMem.LOG_DIRTY_PAGES),
        new Check<CreateCall>("5 size alignment", Errno.EINVAL, Memslots.SizeUnaligned, call => call.Region.memory_size |= 1),
        new Check<CreateCall>("6 gpa alignment", Errno.EINVAL, Memslots.GpaUnaligned, call => call.Region.guest_phys_addr |= 0x800),
        new Check<CreateCall>("7 uaddr alignment", Errno.EINVAL, Memslots.BadUserspaceAddr, call => call.Region.userspace_addr |= 0x10) { Tags = "uaddr" },
        new Check<CreateCall>("7 uaddr tagged", Errno.EINVAL, Memslots.BadUserspaceAddr, call => call.Region.userspace_addr |= 1UL << 62) { Tags = "uaddr" },
        new Check<CreateCall>("7 uaddr end", Errno.EINVAL, Memslots.BadUserspaceAddr, call => call.Region.userspace_addr = 0x7fff_ffff_e000) { Tags = "uaddr" },
        new Check<CreateCall>("8 offset alignment", Errno.EINVAL, Memslots.GmemOffset, call => call.Region.guest_memfd_offset |= 8) { Tags = "offset" },
        new Check<CreateCall>("8 offset wraps", Errno.EINVAL, Memslots.GmemOffset, call => call.Region.guest_memfd_offset = 0xffff_ffff_ffff_f000) { Tags = "offset" },
        new Check<CreateCall>("9 address space", Errno.EINVAL, Memslots.BadAddressSpace, call => call.Region.slot |= 1 << 16),
        new Check<CreateCall>("10 gpa wraps", Errno.EINVAL, Memslots.GpaWraps, call => call.Region.guest_phys_addr |= 0xffff_ffff_ffff_f000) { Tags = "gpa" },
        new Check<CreateCall>("11 pages", Errno.EINVAL, Memslots.TooLarge, call => call.Region.memory_size |= 1UL << 43),
        new Check<CreateCall>("17 overlap", Errno.EEXIST, Memslots.Overlaps, call => call.Region.guest_phys_addr |= CreateCall.OccupiedGpa) { Tags = "gpa" },
        new Check<CreateCall>("19 fd closed", Errno.EBADF, FdTable.NotOpen, call => call.Region.guest_memfd = 999) { Tags = "fd" },
        new Check<CreateCall>("19 fd negative", Errno.EBADF, FdTable.NotOpen, call => call.Region.guest_memfd = uint.MaxValue) { Tags = "fd" },
        new Check<CreateCall>("19 no guest_memfd", Errno.EINVAL, GuestMemfd.NotAGuestMemfd, call => call.Region.guest_memfd = (uint)call.Vm.Fd) { Tags = "fd" },
        new Check<CreateCall>("19 other VM", Errno.EINVAL, GuestMemfd.OtherVm, call => call.Region.guest_memfd = (uint)call.OtherVmsGmem) { Tags = "fd" },
        new Check<CreateCall>("19 behind the end", Errno.EINVAL, GuestMemfd.BindRange, call => call.Region.guest_memfd_offset |= 64 * Vmm.Page) { Tags = "offset" },
        new Check<CreateCall>("19 bound, old", Errno.EINVAL, GuestMemfd.AlreadyBound, call => call.Region.guest_memfd_offset |= CreateCall.BoundOffset) { Tags = "offset fd", Profiles = K616 },
        new Check<CreateCall>("19 bound", Errno.EEXIST, GuestMemfd.AlreadyBound, call => call.Region.guest_memfd_offset |= CreateCall.BoundOffset) { Tags = "offset fd", Profiles = K72 },
        new Check<CreateCall>("20 maximum gpa", Errno.EINVAL, Memslots.BeyondMaxGfn, call => call.Region.guest_phys_addr |= 1UL << 48) { Tags = "gpa" });

    public static TheoryData<string, string> Singles => Table.Singles();

    public static TheoryData<string, string, string> Pairs => Table.Pairs();

    [Theory]
    [MemberData(nameof(Profiles))]
    public void Create_WithNothingWrong_Succeeds(string profile)
    {
        var call = new CreateCall(Boot(profile));
        AssertOk(call.Issue());
        Assert.Equal(3, call.Vm.Describe().Slots.Count);
    }

    [Theory]
    [MemberData(nameof(Singles))]
    public void Create_OneCheckViolated_IsRefusedAndChangesNothing(string profile, string check)
    {
        TestHost host = Boot(profile);
        var call = new CreateCall(host);
        Table[check].Violate(call);
        AssertRefusedUnchanged(host, call.Issue, Table[check].Errno, Table[check].Rule);
    }

    [Theory]
    [MemberData(nameof(Pairs))]
    public void Create_TwoChecksViolated_AnswersTheFirst(string profile, string first, string second)
    {
        TestHost host = Boot(profile);
        var call = new CreateCall(host);
        Table[second].Violate(call);
        Table[first].Violate(call);
        AssertRefusedUnchanged(host, call.Issue, Table[first].Errno, Table[first].Rule);
    }

    [Theory]
    [InlineData(K616, KvmMem.GUEST_MEMFD)]
    [InlineData(K72, KvmMem.GUEST_MEMFD)]
    [InlineData(K72, 8)]
    [InlineData(K72, 0x10000)]
    [InlineData(K72, 0x80000000)]
    public void Version1_OtherFlagsThanTwo_IsEinval(string profile, uint flags)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
        // The slot id is wrong as well: the flags come first.
        AssertRefusedUnchanged(host, () => SetV1(vm, 40000, flags, 0x1000), Errno.EINVAL, Memslots.V1Flags);
        AssertRefused(SetV1(vm, 40000, KvmMem.READONLY, 0x1000), Errno.EINVAL, Memslots.IdTooLarge);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void Version1_Reads32BytesOnly(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM);
        AssertOk(SetV1(vm, 1, 0, 0x1000));
        AssertRefusedUnchanged(
            host, () => host.Vmm.IoctlCutShort(vm.Fd, KvmIoctl.KVM_SET_USER_MEMORY_REGION, new kvm_userspace_memory_region { slot = 2, memory_size = 4096 }),
            Errno.EFAULT, UserArg.CopyInFaulted);
    }

    // check_memory_region_flags: type, flags, whether they are valid in K616 and in K72.
    [Theory]
    [InlineData(VmType.KVM_X86_DEFAULT_VM, 0, true, true)]
    [InlineData(VmType.KVM_X86_DEFAULT_VM, KvmMem.LOG_DIRTY_PAGES, true, true)]
    [InlineData(VmType.KVM_X86_DEFAULT_VM, KvmMem.READONLY, true, true)]
    [InlineData(VmType.KVM_X86_DEFAULT_VM, KvmMem.READONLY | KvmMem.LOG_DIRTY_PAGES, true, true)]
    [InlineData(VmType.KVM_X86_DEFAULT_VM, KvmMem.GUEST_MEMFD, false, true)]
    [InlineData(VmType.KVM_X86_DEFAULT_VM, KvmMem.GUEST_MEMFD | KvmMem.READONLY, false, false)]
    [InlineData(VmType.KVM_X86_DEFAULT_VM, KvmMem.GUEST_MEMFD | KvmMem.LOG_DIRTY_PAGES, false, false)]
    [InlineData(VmType.KVM_X86_DEFAULT_VM, 8, false, false)]
    [InlineData(VmType.KVM_X86_DEFAULT_VM, KvmMem.MEMSLOT_INVALID, false, false)]
    [InlineData(VmType.KVM_X86_DEFAULT_VM, KvmMem.MEMSLOT_GMEM_ONLY, false, false)]
    [InlineData(VmType.KVM_X86_SW_PROTECTED_VM, KvmMem.READONLY, true, true)]
    [InlineData(VmType.KVM_X86_SW_PROTECTED_VM, KvmMem.GUEST_MEMFD, true, true)]
    [InlineData(VmType.KVM_X86_SW_PROTECTED_VM, KvmMem.GUEST_MEMFD | KvmMem.READONLY, false, false)]
    [InlineData(VmType.KVM_X86_SEV_VM, KvmMem.READONLY, true, true)]
    [InlineData(VmType.KVM_X86_SEV_VM, KvmMem.GUEST_MEMFD, false, true)]
    [InlineData(VmType.KVM_X86_SEV_ES_VM, KvmMem.READONLY, false, false)]
    [InlineData(VmType.KVM_X86_SEV_ES_VM, KvmMem.LOG_DIRTY_PAGES, true, true)]
    [InlineData(VmType.KVM_X86_SNP_VM, KvmMem.READONLY, false, false)]
    [InlineData(VmType.KVM_X86_SNP_VM, KvmMem.GUEST_MEMFD, true, true)]
    public void Flags_AreJudgedByVmTypeAndProfile(VmType type, uint flags, bool inK616, bool inK72)
    {
        foreach ((string profile, bool valid) in new[] { (K616, inK616), (K72, inK72) })
        {
            TestVm vm = Boot(profile).Vmm.CreateVm(type);
            int gmem = vm.CreateGmem(16);
            SimKvm.Userspace.CallReport report = vm.TrySetRegion2(1, flags, 0x100000, 16, 0, gmem);
            if (valid)
            {
                AssertOk(report);
            }
            else
            {
                AssertRefused(report, Errno.EINVAL, Memslots.BadFlags);
            }
        }
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void AddressSpaces_AreTwoWithoutPrivateMemory(string profile)
    {
        TestVm vm = Boot(profile).Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM);
        vm.AddSlot(3, 0x100000, 16);
        // The same id and the same gpa: the other space knows nothing of it.
        vm.AddSlot((1 << 16) | 3, 0x100000, 16);
        AssertRefused(vm.TrySetRegion2((2 << 16) | 3, 0, 0x100000, 16), Errno.EINVAL, Memslots.BadAddressSpace);
        Assert.Equal([(0, 3), (1, 3)], vm.Describe().Slots.Select(slot => (slot.AsId, slot.Id)));
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void LargestSlot_HasAllBut1PageOf2To31(string profile)
    {
        TestVm vm = Boot(profile).Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM);
        AssertOk(vm.TrySetRegion2(0, 0, 0, (1UL << 31) - 1));
        AssertRefused(vm.TrySetRegion2(1, 0, 1UL << 44, 1UL << 31), Errno.EINVAL, Memslots.TooLarge);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void HighestIdAndGpa_AreAccepted(string profile)
    {
        TestVm vm = Boot(profile).Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM);
        AssertOk(vm.TrySetRegion2(32763, 0, (1UL << 48) - (2 * Vmm.Page), 2));
        AssertRefused(vm.TrySetRegion2(1, 0, (1UL << 48) - Vmm.Page, 2), Errno.EEXIST, Memslots.Overlaps);
        AssertRefused(vm.TrySetRegion2(1, 0, 1UL << 48, 1), Errno.EINVAL, Memslots.BeyondMaxGfn);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void PaddingOfTheStructure_IsNotLookedAt(string profile)
    {
        TestVm vm = Boot(profile).Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM);
        byte[] region = new byte[160];
        Array.Fill(region, (byte)0xff, 44, 116);
        BitConverter.TryWriteBytes(region.AsSpan(16), 4096UL);
        AssertOk(vm.Vmm.Process.Ioctl(vm.Fd, KvmIoctl.KVM_SET_USER_MEMORY_REGION2, region));
    }

    private static CallReport SetV1(TestVm vm, uint slot, uint flags, ulong size)
    {
        var region = new kvm_userspace_memory_region { slot = slot, flags = flags, memory_size = size };
        return vm.Vmm.Ioctl(vm.Fd, KvmIoctl.KVM_SET_USER_MEMORY_REGION, ref region);
    }

    /// <summary>Creation of slot 1 with guest_memfd on a VM that has another slot with a GiB of gpas, and one with part of the same guest_memfd.</summary>
    private sealed class CreateCall
    {
        public const ulong OccupiedGpa = 0x4000_0000;
        public const ulong BoundOffset = 32 * Vmm.Page;

        public CreateCall(TestHost host)
        {
            Vm = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
            Vm.AddSlot(5, OccupiedGpa, 1UL << 18);
            int gmem = Vm.CreateGmem(64);
            Vm.AddGmemSlot(6, 0x2000_0000, 16, gmem, BoundOffset);
            OtherVmsGmem = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM).CreateGmem(64);
            Region = new kvm_userspace_memory_region2
            {
                slot = 1,
                flags = KvmMem.GUEST_MEMFD,
                guest_phys_addr = 0x100000,
                memory_size = 16 * Vmm.Page,
                userspace_addr = 0x1000_0000,
                guest_memfd = (uint)gmem,
            };
        }

        public TestVm Vm { get; }

        public int OtherVmsGmem { get; }

        public bool CutShort { get; set; }

        public kvm_userspace_memory_region2 Region;

        public CallReport Issue() => CutShort
            ? Vm.Vmm.IoctlCutShort(Vm.Fd, KvmIoctl.KVM_SET_USER_MEMORY_REGION2, Region)
            : Vm.TrySetRegion2(ref Region);
    }
}
