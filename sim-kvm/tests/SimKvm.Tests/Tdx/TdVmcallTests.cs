using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Tests.Support;
using SimMachine.Intel;
using Xunit;

namespace SimKvm.Tests.Tdx;

/// <summary>What a TD asks by TDG.VP.VMCALL, and the exit that user space sees (tdx.md 5).</summary>
public sealed class TdVmcallTests : KvmTest
{
    private const ulong SharedBit = 1UL << 47;
    private const ulong InvalidOperand = 1UL << 63;

    // Where the exit's structure is in struct kvm_run.
    private const ulong UnionAt = 32;

    [Theory]
    [InlineData(SharedBit | 0x1000)]
    [InlineData(SharedBit | 0x1ffc)]
    public void Mmio_AtASharedAddress_IsTheCallersWhereverPagesEnd(ulong gpa)
    {
        TestGuest guest = Running();
        AssertOk(guest.Run(Mmio(gpa)));
        Assert.Equal((uint)KvmExit.KVM_EXIT_MMIO, guest.ExitReason);
        Assert.Equal(gpa & ~SharedBit, guest.RunU64(UnionAt));
    }

    [Theory]
    [InlineData(0x1000)]
    [InlineData((SharedBit << 1) - 4)]
    public void Mmio_ThatIsNotSharedFromFirstToLastByte_IsRefused(ulong gpa)
    {
        TestGuest guest = Running();
        AssertOk(guest.Run(Mmio(gpa), new GuestHalt()));
        Assert.Equal((uint)KvmExit.KVM_EXIT_HLT, guest.ExitReason);
        Assert.Equal(InvalidOperand, guest.Results[0].Registers!.Value.R10);
    }

    // The way of a TD to a device: its access is a #VE, whose handler asks the module what it was, and the host by MMIO.
    [Theory]
    [InlineData(0x80_0008 | SharedBit, GuestAccess.Unmarked)]
    [InlineData(0x80_0008, GuestAccess.Shared)]
    public void SharedMemoryThatIsNotThere_IsAVe_WhichTheModuleTellsOnce(ulong address, GuestAccess access)
    {
        TestGuest guest = Running();
        var info = new GuestTdcall(new TdcallRegisters { Rax = (ulong)TdcallLeaf.TDG_VP_VEINFO_GET });

        AssertOk(guest.Run(new GuestRead(address, 4, access), info, info, new GuestHalt()));

        IReadOnlyList<GuestStepResult> results = guest.Results;
        Assert.Equal("#VE", results[0].Exception?.Name);
        TdcallRegisters told = results[1].Registers!.Value;
        Assert.Equal((0UL, 48UL, 0x80_0008 | SharedBit), (told.Rax, told.Rcx, told.R9));
        Assert.NotEqual(0UL, results[2].Rax);
    }

    // Data: what TDH.VP.ENTER returned, which is the reason of the exit, and the registers in their order.
    [Fact]
    public void FatalError_IsASystemEventWithWhatTheEntryReturnedAndTheRegisters()
    {
        const ulong tdcallExit = 77;
        TestGuest guest = Running();
        var registers = new TdcallRegisters { Rcx = 1, Rdx = 2, Rbx = 3, Rsi = 6, Rdi = 7, R8 = 8, R9 = 9, R12 = 12, R13 = 13, R14 = 14, R15 = 15 };
        AssertOk(guest.Run(new GuestTdcall(registers with { R11 = (ulong)TdVmcallLeaf.ReportFatalError })));
        Assert.Equal((uint)KvmExit.KVM_EXIT_SYSTEM_EVENT, guest.ExitReason);
        ulong[] data = [.. Enumerable.Range(0, 16).Select(i => guest.RunU64(UnionAt + 8 + (8 * (ulong)i)))];
        Assert.Equal([tdcallExit, 1, 2, 3, 0, 0, 6, 7, 8, 9, 0, (ulong)TdVmcallLeaf.ReportFatalError, 12, 13, 14, 15], data);
    }

    private static GuestTdcall Mmio(ulong gpa) => new(new TdcallRegisters { R11 = (ulong)TdVmcallLeaf.MMIO, R12 = 8, R14 = gpa });

    private TestGuest Running()
    {
        TestVm vm = Boot(K72, TestVm.IntelMachine()).Vmm.CreateVm(VmType.KVM_X86_TDX_VM).SplitIrqchip();
        vm.TdxInitVm();
        TestGuest guest = vm.AddTdVcpu();
        vm.TdxFinalize();
        return guest;
    }
}
