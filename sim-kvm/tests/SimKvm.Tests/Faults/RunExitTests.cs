using System.Buffers.Binary;
using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Tests.Support;
using SimKvm.Userspace;
using Xunit;

namespace SimKvm.Tests.Faults;

/// <summary>
/// KVM_RUN and its exits as a VMM sees them that mapped the run page: bytes at the offsets of struct kvm_run (kvm-guest-memory.md 2.7, 8.3, 9), completions, and the order of
/// completion, immediate_exit and the guest.
/// </summary>
public sealed class RunExitTests : KvmTest
{
    private const ulong NoSlot = 0x5000_0000;
    private const ulong Eperm = ulong.MaxValue;
    private const ulong Enosys = unchecked((ulong)-1000L);
    private const ulong Einval = unchecked((ulong)-22L);

    public static TheoryData<string, bool> HypercallRet => new()
    {
        { "K68", false }, { "GM23", false }, { "K611", false }, { K616, true }, { "K618", true }, { "K619", true }, { "K70", true }, { K72, true }, { "NEXTHOOK", true },
    };

    [Fact]
    public void NonZeroArgument_IsEinval()
    {
        TestGuest guest = Plain();
        AssertRefused(guest.Vm.Vmm.Ioctl(guest.Fd, KvmIoctl.KVM_RUN, 1), Errno.EINVAL, Vcpu.RunArg);
    }

    [Theory]
    [InlineData(288, 8UL)]
    [InlineData(296, 1UL << 63)]
    public void UnknownSyncRegs_AreEinval_BeforeTheCompletion(ulong offset, ulong bits)
    {
        TestGuest guest = Plain();
        AssertOk(guest.Run(new GuestIn(0x10, 1), new GuestHalt()));
        guest.StoreRunU64(offset, bits);
        AssertRefused(guest.Continue(), Errno.EINVAL, Vcpu.RunRegs);
        Assert.Equal(0, guest.Kernel.Guest.Pc);
        guest.StoreRunU64(offset, 0);
        AssertOk(guest.Continue());
        Assert.Equal((uint)KvmExit.KVM_EXIT_HLT, guest.ExitReason);
    }

    [Fact]
    public void KnownSyncRegs_AreTaken_ButNotFromAVmWithProtectedState()
    {
        TestGuest plain = Plain();
        plain.StoreRunU64(288, 7);
        AssertOk(plain.Run(new GuestHalt()));

        TestGuest encrypted = new(Boot().Vmm.CreateVm(VmType.KVM_X86_SEV_ES_VM));
        encrypted.StoreRunU64(288, 1);
        AssertRefused(encrypted.Run(new GuestHalt()), Errno.EINVAL, Vcpu.RunRegs);
    }

    [Theory]
    [InlineData(5u, false)]
    [InlineData(8u, true)]
    public void HltAndShutdown_Exit_AndTheGuestGoesOnBehindThem(uint reason, bool shutdown)
    {
        TestGuest guest = Plain();
        AssertOk(guest.Run(shutdown ? new GuestShutdown() : new GuestHalt(), new GuestIn(1, 1)));
        Assert.Equal(reason, guest.ExitReason);
        AssertOk(guest.Continue());
        Assert.Equal((uint)KvmExit.KVM_EXIT_IO, guest.ExitReason);
    }

    [Fact]
    public void BehindItsEnd_TheProgramHaltsForEver()
    {
        TestGuest guest = Plain();
        AssertOk(guest.Run());
        Assert.Equal((uint)KvmExit.KVM_EXIT_HLT, guest.ExitReason);
        AssertOk(guest.Continue());
        Assert.Equal((uint)KvmExit.KVM_EXIT_HLT, guest.ExitReason);
        Assert.Empty(guest.Results);
    }

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(4)]
    public void Out_IsInThePioPage(int size)
    {
        TestGuest guest = Plain();
        byte[] data = [0x11, 0x22, 0x33, 0x44];
        AssertOk(guest.Run(new GuestOut(0x3f8, data.AsMemory(0, size)), new GuestHalt()));
        // direction 1, size, port, count, data_offset
        Assert.Equal((2u, (byte)1, (byte)size), (guest.ExitReason, guest.RunBytes(32, 1)[0], guest.RunBytes(33, 1)[0]));
        Assert.Equal(0x3f8, BinaryPrimitives.ReadUInt16LittleEndian(guest.RunBytes(34, 2)));
        Assert.Equal(1u, BinaryPrimitives.ReadUInt32LittleEndian(guest.RunBytes(36, 4)));
        Assert.Equal(4096UL, guest.RunU64(40));
        Assert.Equal(data[..size], guest.RunBytes(4096, size));
        AssertOk(guest.Continue());
        Assert.Equal(5u, guest.ExitReason);
    }

    [Fact]
    public void In_LoadsWhatUserSpaceLeftInThePioPage()
    {
        TestGuest guest = Plain();
        AssertOk(guest.Run(new GuestIn(0x60, 2), new GuestHalt()));
        Assert.Equal(0, guest.RunBytes(32, 1)[0]);
        guest.StoreRun(4096, 0xaa, 0xbb);
        AssertOk(guest.Continue());
        Assert.Equal([0xaa, 0xbb], guest.Results[0].Data.ToArray());
    }

    [Fact]
    public void MmioLoad_ComesInEightByteParts_AndTakesTheAnswers()
    {
        TestGuest guest = Plain();
        AssertOk(guest.Run(TestGuest.Fetch(NoSlot + 3, 20), new GuestHalt()));
        byte next = 1;
        foreach ((ulong at, uint length) in new[] { (0UL, 8u), (8UL, 8u), (16UL, 4u) })
        {
            AssertMmio(guest, NoSlot + 3 + at, length, isWrite: false);
            guest.StoreRun(40, [.. Enumerable.Range(next, (int)length).Select(value => (byte)value)]);
            next += (byte)length;
            AssertOk(guest.Continue());
        }
        Assert.Equal(5u, guest.ExitReason);
        Assert.Equal(Enumerable.Range(1, 20).Select(value => (byte)value), guest.Results[0].Data.ToArray());
    }

    [Fact]
    public void AnotherProgram_ForgetsTheAnswerThatTheOldOneWaitedFor()
    {
        TestGuest guest = Plain();
        guest.Vm.AddSlot(0, 0, 1, guest.Vm.Vmm.MapFilled(1, 9));
        AssertOk(guest.Run(TestGuest.Fetch(NoSlot, 4), new GuestHalt()));
        guest.StoreRun(40, 1, 2, 3, 4);
        Assert.Equal([9, 9, 9, 9], guest.Read(0, 4));
    }

    [Fact]
    public void MmioStore_ShowsItsBytes_AndGoesOnWithoutAnAnswer()
    {
        TestGuest guest = Plain();
        byte[] data = [.. Enumerable.Range(1, 11).Select(value => (byte)value)];
        AssertOk(guest.Run(TestGuest.Store(NoSlot, data), new GuestHalt()));
        AssertMmio(guest, NoSlot, 8, isWrite: true);
        Assert.Equal(data[..8], guest.RunBytes(40, 8));
        AssertOk(guest.Continue());
        AssertMmio(guest, NoSlot + 8, 3, isWrite: true);
        Assert.Equal([9, 10, 11, 0, 0, 0, 0, 0], guest.RunBytes(40, 8));
        AssertOk(guest.Continue());
        Assert.Equal(5u, guest.ExitReason);
    }

    [Fact]
    public void AccessAcrossASlotsEnd_IsMemoryThenMmio()
    {
        TestGuest guest = Plain();
        guest.Vm.AddSlot(0, 0x10_0000, 1, guest.Vm.Vmm.MapFilled(1, 9));
        AssertOk(guest.Run(TestGuest.Fetch(0x10_0ffe, 4), new GuestHalt()));
        AssertMmio(guest, 0x10_1000, 2, isWrite: false);
        guest.StoreRun(40, 1, 2);
        AssertOk(guest.Continue());
        Assert.Equal([9, 9, 1, 2], guest.Results[0].Data.ToArray());
    }

    [Fact]
    public void AccessAcrossTwoSlots_FindsBothBackings()
    {
        TestGuest guest = Plain();
        ulong high = guest.Vm.Vmm.MapFilled(1, 7);
        ulong low = guest.Vm.Vmm.MapFilled(1, 8);
        guest.Vm.AddSlot(0, 0x10_0000, 1, low);
        guest.Vm.AddSlot(1, 0x10_1000, 1, high);
        guest.Write(0x10_0ffd, 1, 2, 3, 4, 5);
        Assert.Equal([8, 1, 2, 3], guest.Vm.Vmm.Load(low + 0xffc, 4));
        Assert.Equal([4, 5, 7], guest.Vm.Vmm.Load(high, 3));
        Assert.Equal([1, 2, 3, 4, 5], guest.Read(0x10_0ffd, 5));
    }

    [Fact]
    public void FillAndCompare_RepeatThePattern_AndNameTheFirstDifference()
    {
        TestGuest guest = Plain();
        guest.Vm.AddSlot(0, 0, 4, guest.Vm.Vmm.Map(4));
        byte[] pattern = [1, 2, 3];
        AssertOk(guest.Run(
            new GuestFill(0xff0, 0x2000, pattern, GuestAccess.Unmarked), TestGuest.Store(0x1ff1, 0xee), new GuestCompare(0xff0, 0x2000, pattern, GuestAccess.Unmarked),
            new GuestCompare(0xff0, 0x1001, pattern, GuestAccess.Unmarked), new GuestHalt()));
        IReadOnlyList<GuestStepResult> results = guest.Results;
        Assert.Equal(0x1001UL, results[2].MismatchAt);
        Assert.Null(results[3].MismatchAt);
    }

    [Theory]
    [InlineData(12UL, 0x1000UL, 1UL, 1, false, Eperm)]
    [InlineData(12UL, 0x1000UL, 1UL, 0, false, Enosys)]
    [InlineData(5UL, 0x1000UL, 1UL, 0, true, Enosys)]
    [InlineData(12UL, 0x1001UL, 1UL, 0, true, Einval)]
    [InlineData(12UL, 0x1000UL, 0UL, 0, true, Einval)]
    [InlineData(12UL, 0x1000UL, ulong.MaxValue, 0, true, Einval)]
    [InlineData(12UL, 0x1001UL, 0UL, 3, true, Eperm)]
    public void Hypercall_ThatCannotExit_AnswersInRax(ulong nr, ulong gpa, ulong pages, int cpl, bool enabled, ulong rax)
    {
        foreach (bool longMode in new[] { true, false })
        {
            TestGuest guest = Plain();
            if (enabled)
            {
                Vmm.Must(guest.Vm.TryEnableCap(KvmCap.EXIT_HYPERCALL, 0, 0x1000));
            }
            // A narrow caller's registers are cut to 32 bits, so a count of all ones is no wrap any more.
            if (!longMode && pages == ulong.MaxValue)
            {
                continue;
            }
            AssertOk(guest.Run(new GuestHypercall(nr, gpa, pages, 0, 0, longMode, cpl), new GuestHalt()));
            Assert.Equal(longMode ? rax : (uint)rax, guest.Results[0].Rax);
        }
    }

    [Fact]
    public void Hypercall_MaskCanBeTakenBack()
    {
        TestGuest guest = Plain();
        Vmm.Must(guest.Vm.TryEnableCap(KvmCap.EXIT_HYPERCALL, 0, 0x1000));
        Vmm.Must(guest.Vm.TryEnableCap(KvmCap.EXIT_HYPERCALL, 0, 0));
        AssertOk(guest.Run(new GuestHypercall(12, 0x1000, 1, 0x10, 0, true, 0), new GuestHalt()));
        Assert.Equal(Enosys, guest.Results[0].Rax);
    }

    [Theory]
    [MemberData(nameof(HypercallRet))]
    public void Hypercall_Ret_IsPresetTo0OnlyInNewerKernels(string profile, bool preset)
    {
        TestGuest guest = Plain(profile);
        Vmm.Must(guest.Vm.TryEnableCap(KvmCap.EXIT_HYPERCALL, 0, 0x1000));
        guest.StoreRunU64(88, 0xdead);
        AssertOk(guest.Run(new GuestHypercall(12, 0x1000, 2, 0x11, 0, true, 0), new GuestHalt()));
        Assert.Equal((3u, 12UL, preset ? 0UL : 0xdeadUL, 1UL), (guest.ExitReason, guest.RunU64(32), guest.RunU64(88), guest.RunU64(96)));
        Assert.Equal((0x1000UL, 2UL, 0x11UL), (guest.RunU64(40), guest.RunU64(48), guest.RunU64(56)));
    }

    [Fact]
    public void Hypercall_OfANarrowCaller_IsCutBothWays()
    {
        TestGuest guest = Plain();
        Vmm.Must(guest.Vm.TryEnableCap(KvmCap.EXIT_HYPERCALL, 0, 0x1000));
        AssertOk(guest.Run(new GuestHypercall(0xff_0000_000c, 0xff_0000_1000, 0xff_0000_0002, 0xff_0000_0010, 0, LongMode: false, 0), new GuestHalt()));
        Assert.Equal((12UL, 0x1000UL, 2UL, 0x10UL, 0UL), (guest.RunU64(32), guest.RunU64(40), guest.RunU64(48), guest.RunU64(56), guest.RunU64(96)));
        guest.StoreRunU64(88, 0x1_2345_6789);
        AssertOk(guest.Continue());
        Assert.Equal(0x2345_6789UL, guest.Results[0].Rax);
    }

    [Fact]
    public void Completion_ComesBeforeImmediateExit_AndTheGuestDoesNotRun()
    {
        TestGuest guest = Plain();
        Vmm.Must(guest.Vm.TryEnableCap(KvmCap.EXIT_HYPERCALL, 0, 0x1000));
        AssertOk(guest.Run(new GuestHypercall(12, 0x1000, 1, 0, 0, true, 0), new GuestHalt()));
        guest.StoreRunU64(88, 77);
        guest.ImmediateExit = true;

        AssertRefused(guest.Continue(), Errno.EINTR, Vcpu.ImmediateExit);

        // The answer was taken in; the halt behind it was not executed.
        Assert.Equal(1, guest.Kernel.Guest.Pc);
        Assert.Equal(77UL, guest.Results[0].Rax);
        guest.StoreRunU64(88, 99);
        guest.ImmediateExit = false;
        AssertOk(guest.Continue());
        Assert.Equal(5u, guest.ExitReason);
    }

    [Fact]
    public void ImmediateExit_KeepsTheGuestOut_AsLongAsItIsSet()
    {
        TestGuest guest = Plain();
        guest.ImmediateExit = true;
        AssertRefused(guest.Run(new GuestHalt()), Errno.EINTR, Vcpu.ImmediateExit);
        AssertRefused(guest.Continue(), Errno.EINTR, Vcpu.ImmediateExit);
        Assert.Equal(0, guest.Kernel.Guest.Pc);
    }

    [Theory]
    [InlineData(0, 0)]
    [InlineData(2, 1)]
    [InlineData(4, 2)]
    [InlineData(6, 3)]
    public void Signal_StopsTheGuestBetweenSteps_WithExitIntr(int afterChecks, int stepsDone)
    {
        TestGuest guest = Plain();
        guest.Vm.AddSlot(0, 0, 4, guest.Vm.Vmm.MapFilled(4));
        guest.PreFault(0, 4);
        guest.Load(TestGuest.Fetch(0), TestGuest.Fetch(0x1000), TestGuest.Fetch(0x2000), new GuestHalt());
        // The loop looks for a signal before the access and before the end of the step.
        guest.Vm.Vmm.Process.RaiseSignal(afterChecks);
        AssertRefused(guest.Continue(), Errno.EINTR, Vcpu.RunInterrupted);
        Assert.Equal((10u, stepsDone), (guest.ExitReason, guest.Kernel.Guest.Pc));
        AssertOk(guest.Continue());
        Assert.Equal(5u, guest.ExitReason);
        Assert.Equal([1, 2, 3], guest.Results.Take(3).Select(result => result.Data.Span[0]));
    }

    [Fact]
    public void ExitReason_IsUnknown_WhereTheErrnoSaysNothingOfIt()
    {
        TestGuest guest = Plain();
        AssertOk(guest.Run(new GuestHalt()));
        // Nothing is mapped behind the slot: EFAULT without exit data.
        guest.Vm.AddSlot(0, 0, 1, Vmm.Unmapped);
        AssertRefused(guest.Run(TestGuest.Store(0, 1)), Errno.EFAULT, UserMemory.NotMapped);
        Assert.Equal(0u, guest.ExitReason);
    }

    private TestGuest Plain(string profile = K72) => new(Boot(profile).Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM));

    private static void AssertMmio(TestGuest guest, ulong gpa, uint length, bool isWrite)
    {
        Assert.Equal(6u, guest.ExitReason);
        Assert.Equal(
            (gpa, length, isWrite ? (byte)1 : (byte)0),
            (guest.RunU64(32), BinaryPrimitives.ReadUInt32LittleEndian(guest.RunBytes(48, 4)), guest.RunBytes(52, 1)[0]));
    }
}
