using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Tests.Support;
using SimKvm.Userspace;
using Xunit;

namespace SimKvm.Tests;

/// <summary>System calls on memory, fork, signals of loads and stores, and who is told when user pages stop being what they were.</summary>
public sealed class MemoryCallTests : KvmTest
{
    private const uint ReadWrite = Vmm.ProtRead | Vmm.ProtWrite;
    private const uint DontNeed = 4, HwPoison = 100;

    [Fact]
    public void LoadsAndStores_ThatFault_AreSignals()
    {
        TestHost host = Boot();
        Process process = host.Vmm.Process;
        Assert.Equal(Signal.SegvMapErr(Vmm.Unmapped), process.Read(Vmm.Unmapped, new byte[1]).Signal);
        ulong readOnly = host.Vmm.Map(1, Vmm.ProtRead);
        Assert.Equal(Signal.SegvAccErr(readOnly + 5), process.Write(readOnly + 5, new byte[1]).Signal);
        int gmem = host.Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM).CreateGmem(1, 1);
        ulong mapped = (ulong)AssertOk(process.Mmap(0, 4096, ReadWrite, Vmm.MapShared, gmem, 0)).Value;
        Assert.Equal(Signal.BusAdrErr(mapped), process.Read(mapped, new byte[1]).Signal);
        Assert.Null(AssertOk(process.Read(readOnly, new byte[1])).Signal);
    }

    [Fact]
    public void Fork_CopiesPrivateMemory_AndSharesTheRest()
    {
        TestHost host = Boot();
        Process parent = host.Vmm.Process;
        ulong own = host.Vmm.MapFilled(1, 5);
        ulong shared = (ulong)AssertOk(parent.Mmap(0, 4096, ReadWrite, Vmm.MapShared | Vmm.MapAnonymous, -1, 0)).Value;
        AssertOk(parent.Fork(out Process? child));

        AssertOk(child!.Write(own, new byte[] { 6 }));
        AssertOk(child.Write(shared, new byte[] { 7 }));
        Assert.Equal(5, host.Vmm.Load(own, 1)[0]);
        Assert.Equal(7, host.Vmm.Load(shared, 1)[0]);
        host.Host.CheckInvariants();
        child.Exit();
        Assert.Equal(7, host.Vmm.Load(shared, 1)[0]);
    }

    [Fact]
    public void ForkedChild_MayNotUseItsParentsVm_ButItsGuestMemfd()
    {
        TestHost host = Boot();
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
        int gmem = vm.CreateGmem(1);
        AssertOk(host.Vmm.Process.Fork(out Process? child));
        AssertRefused(child!.Ioctl(vm.Fd, KvmIoctl.KVM_CREATE_VCPU, 0), Errno.EIO, Vm.NotYourVm);
        AssertOk(child.Fallocate(gmem, 1, 0, 4096));
        child.Exit();
    }

    [Fact]
    public void Mremap_MovesPages_AndShrinkingFreesThem()
    {
        TestHost host = Boot();
        Process process = host.Vmm.Process;
        ulong at = host.Vmm.MapFilled(2, 1);
        AssertOk(process.Mmap(at + (2 * 4096), 4096, ReadWrite, Vmm.MapPrivate | Vmm.MapAnonymous | 0x10, -1, 0));
        AssertRefused(process.Mremap(at, 2 * 4096, 4 * 4096, 0, 0), Errno.ENOMEM, UserMemory.NoRoomToGrow);
        ulong moved = (ulong)AssertOk(process.Mremap(at, 2 * 4096, 4 * 4096, 1, 0)).Value;
        Assert.Equal(2, host.Vmm.Load(moved + 4096, 1)[0]);
        Assert.Equal(Signal.SegvMapErr(at), process.Read(at, new byte[1]).Signal);
        long frames = host.Machine.AllocatedPages;
        AssertOk(process.Mremap(moved, 4 * 4096, 4096, 0, 0));
        Assert.Equal(frames - 1, host.Machine.AllocatedPages);
    }

    [Fact]
    public void HwPoison_TakesTheFrameForEver_UntilTheAddressIsGivenUp()
    {
        TestHost host = Boot();
        host.Expect("memory-failure");
        Process process = host.Vmm.Process;
        ulong at = host.Vmm.MapFilled(1);
        Assert.Equal(Signal.BusMceErrAr(at), AssertOk(process.Madvise(at, 4096, HwPoison)).Signal);
        Assert.Equal(Signal.BusMceErrAr(at + 9), process.Read(at + 9, new byte[1]).Signal);
        Assert.Equal(1, host.Machine.LeakedPages);
        AssertOk(process.Madvise(at, 4096, DontNeed));
        Assert.Equal(0, host.Vmm.Load(at, 1)[0]);
    }

    [Fact]
    public void MemoryFailure_OfAGuestMemfdPage_KeepsThePageFromEverybodyUntilAHoleIsPunched()
    {
        TestHost host = Boot();
        host.Expect("memory-failure");
        Process process = host.Vmm.Process;
        int gmem = host.Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM).CreateGmem(2, 3);
        AssertRefused(process.InjectMemoryFailure(gmem, 0), Errno.ENXIO, GuestMemfd.NoPageToFail);
        ulong at = (ulong)AssertOk(process.Mmap(0, 2 * 4096, ReadWrite, Vmm.MapShared, gmem, 0)).Value;
        host.Vmm.Store(at, new byte[] { 1 });
        AssertOk(process.InjectMemoryFailure(gmem, 0));
        AssertRefused(process.InjectMemoryFailure(gmem, 0), Errno.EHWPOISON, GuestMemfd.Poisoned);
        Assert.Equal(Signal.BusMceErrAr(at), process.Read(at, new byte[1]).Signal);
        AssertOk(process.Fallocate(gmem, 3, 0, 4096));
        Assert.Equal(0, host.Vmm.Load(at, 1)[0]);
    }

    [Fact]
    public void Notifier_HearsOfEveryWayInWhichPagesChange()
    {
        TestHost host = Boot();
        Process process = host.Vmm.Process;
        ulong at = host.Vmm.MapFilled(4);
        int memfd = Vmm.Must(process.MemfdCreate("ram", 0));
        AssertOk(process.Ftruncate(memfd, 4096));
        ulong file = (ulong)AssertOk(process.Mmap(0, 4096, ReadWrite, Vmm.MapShared, memfd, 0)).Value;
        ulong zero = host.Vmm.Map(1);
        var heard = new Recorder();
        process.Memory.Register(heard);

        host.Vmm.Load(zero, 1);
        Assert.Empty(heard.Ranges);
        host.Vmm.Store(zero, new byte[] { 1 });
        AssertOk(process.Mprotect(at, 4096, Vmm.ProtRead));
        AssertOk(process.Madvise(at + 4096, 4096, DontNeed));
        AssertOk(process.Munmap(at + (2 * 4096), 4096));
        AssertOk(process.Mmap(at + (3 * 4096), 4096, ReadWrite, Vmm.MapPrivate | Vmm.MapAnonymous | 0x10, -1, 0));
        AssertOk(process.Fallocate(memfd, 3, 0, 4096));

        Assert.Equal([zero, at, at + 4096, at + (2 * 4096), at + (3 * 4096), file], heard.Ranges.Select(range => range.Start));
        Assert.All(heard.Ranges, range => Assert.Equal(4096ul, range.End - range.Start));
        Assert.Equal(0, heard.Open);
        process.Memory.Unregister(heard);
    }

    [Fact]
    public void DirtyLog_TellsWhatWasStored_OnceUnlessItIsKeptByHand()
    {
        TestHost host = Boot();
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM);
        ulong bitmap = host.Vmm.Map(1);
        vm.AddSlot(0, 0, 100, host.Vmm.Map(100), KvmMem.LOG_DIRTY_PAGES);
        vm.Kernel.Memslots.FindById(0, 0)!.DirtyLog!.MarkPageDirty(65);

        CallReport Get()
        {
            var args = new kvm_dirty_log { slot = 0, dirty_bitmap = bitmap };
            return host.Vmm.Ioctl(vm.Fd, KvmIoctl.KVM_GET_DIRTY_LOG, ref args);
        }

        AssertOk(Get());
        Assert.Equal((0ul, 2ul), (host.Vmm.Load<ulong>(bitmap), host.Vmm.Load<ulong>(bitmap + 8)));
        AssertOk(Get());
        Assert.Equal(0ul, host.Vmm.Load<ulong>(bitmap + 8));

        AssertOk(vm.TryEnableCap(KvmCap.MANUAL_DIRTY_LOG_PROTECT2, 0, 1));
        vm.Kernel.Memslots.FindById(0, 0)!.DirtyLog!.MarkPageDirty(3);
        AssertOk(Get());
        AssertOk(Get());
        Assert.Equal(8ul, host.Vmm.Load<ulong>(bitmap));
        var clear = new kvm_clear_dirty_log { slot = 0, num_pages = 64, dirty_bitmap = bitmap };
        AssertOk(host.Vmm.Ioctl(vm.Fd, KvmIoctl.KVM_CLEAR_DIRTY_LOG, ref clear));
        AssertOk(Get());
        Assert.Equal(0ul, host.Vmm.Load<ulong>(bitmap));
    }

    private sealed class Recorder : IMmuNotifier
    {
        public List<(ulong Start, ulong End)> Ranges { get; } = [];

        public int Open { get; private set; }

        public void InvalidateRangeStart(KTask current, ulong start, ulong end)
        {
            Ranges.Add((start, end));
            Open++;
        }

        public void InvalidateRangeEnd(KTask current, ulong start, ulong end) => Open--;
    }
}
