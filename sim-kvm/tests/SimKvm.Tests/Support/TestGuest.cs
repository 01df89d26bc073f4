using System.Buffers.Binary;
using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Userspace;
using SimMachine.Addressing;

namespace SimKvm.Tests.Support;

/// <summary>A vCPU that runs guest programs, seen from the VMM that mapped its run page.</summary>
internal sealed class TestGuest
{
    private readonly ulong _run;

    public TestGuest(TestVm vm, ulong id = 0)
        : this(vm.CreateVcpu(id), vm)
    {
    }

    private TestGuest(int fd, TestVm vm)
    {
        Vm = vm;
        Fd = fd;
        CallReport mapped = vm.Vmm.Process.Mmap(0, 3 * Vmm.Page, Vmm.ProtRead | Vmm.ProtWrite, Vmm.MapShared, Fd, 0);
        _run = mapped.Succeeded ? (ulong)mapped.Value : throw new InvalidOperationException($"the vCPU cannot be mapped: {mapped.Errno}");
        vm.Vmm.Process.Files.TryGet(Fd, out KernelFile? file);
        Kernel = ((VcpuFile)file!).Vcpu;
    }

    /// <summary>A vCPU that was created already.</summary>
    public static TestGuest OnFd(TestVm vm, int fd) => new(fd, vm);

    public TestVm Vm { get; }

    public int Fd { get; }

    public Vcpu Kernel { get; }

    public Mmu Mmu => Vm.Kernel.Mmu;

    // The run page through the mapping, by the offsets of the ABI.
    public uint ExitReason => BinaryPrimitives.ReadUInt32LittleEndian(RunBytes(8, 4));

    public ushort RunFlags => BinaryPrimitives.ReadUInt16LittleEndian(RunBytes(14, 2));

    /// <summary>KVM_EXIT_MEMORY_FAULT: flags, gpa, size.</summary>
    public (ulong Flags, ulong Gpa, ulong Size) MemoryFault => (RunU64(32), RunU64(40), RunU64(48));

    public byte[] RunBytes(ulong offset, int length) => Vm.Vmm.Load(_run + offset, length);

    public ulong RunU64(ulong offset) => BinaryPrimitives.ReadUInt64LittleEndian(RunBytes(offset, 8));

    public void StoreRun(ulong offset, params byte[] bytes) => Vm.Vmm.Store(_run + offset, bytes);

    public void StoreRunU64(ulong offset, ulong value) => Vm.Vmm.Store(_run + offset, value);

    public bool ImmediateExit
    {
        set => StoreRun(1, value ? (byte)1 : (byte)0);
    }

    public void Load(params GuestStep[] program) => Vm.Vmm.Process.LoadGuestProgram(Fd, program);

    public CallReport Continue() => Vm.Vmm.Ioctl(Fd, KvmIoctl.KVM_RUN, 0);

    public CallReport Run(params GuestStep[] program)
    {
        Load(program);
        return Continue();
    }

    /// <summary>Results of the steps that ended since the last look.</summary>
    public IReadOnlyList<GuestStepResult> Results => Vm.Vmm.Process.TakeGuestProgress(Fd)!.Results;

    /// <summary>The guest's access, which must come to its end.</summary>
    public byte[] Read(ulong gpa, ulong length = 1)
    {
        CallReport run = Run(new GuestRead(gpa, length, GuestAccess.Unmarked), new GuestHalt());
        GuestStepResult[] results = [.. Results];
        return run.Succeeded && ExitReason == (uint)KvmExit.KVM_EXIT_HLT
            ? results[0].Data.ToArray()
            : throw new InvalidOperationException($"the guest's read of 0x{gpa:x} ended with {run.Errno}, exit {ExitReason} ({string.Join("; ", run.Causes)})");
    }

    public void Write(ulong gpa, params byte[] data)
    {
        CallReport run = Run(Store(gpa, data), new GuestHalt());
        if (!run.Succeeded || ExitReason != (uint)KvmExit.KVM_EXIT_HLT)
        {
            throw new InvalidOperationException($"the guest's write to 0x{gpa:x} ended with {run.Errno}, exit {ExitReason} ({string.Join("; ", run.Causes)})");
        }
    }

    public static GuestWrite Store(ulong gpa, params byte[] data) => new(gpa, data, GuestAccess.Unmarked);

    public static GuestRead Fetch(ulong gpa, ulong length = 1) => new(gpa, length, GuestAccess.Unmarked);

    public CallReport TryPreFault(ref kvm_pre_fault_memory range) => Vm.Vmm.Ioctl(Fd, KvmIoctl.KVM_PRE_FAULT_MEMORY, ref range);

    public CallReport TryPreFault(ulong gpa, ulong pages)
    {
        var range = new kvm_pre_fault_memory { gpa = gpa, size = pages * Vmm.Page };
        return TryPreFault(ref range);
    }

    public void PreFault(ulong gpa, ulong pages) => Vmm.Must(TryPreFault(gpa, pages));

    /// <summary>The leaf that maps a gpa, or null.</summary>
    public Stage2Entry? Leaf(ulong gpa) =>
        Mmu.TryTranslate(new Gfn(gpa >> 12), isPrivate: false, write: false, out Stage2Entry entry) ? entry : null;

    /// <summary>Does something on another thread of the process when the next call comes to a step for the n-th time.</summary>
    public InterposingBaton At(string label, Action<KTask> act, int occurrence = 1)
    {
        KTask other = TestHost.NewThread(Vm.Vmm);
        var baton = new InterposingBaton(label, occurrence, _ => act(other));
        Vm.Vmm.Host.Machine.Baton = baton;
        return baton;
    }

    /// <summary>Labels of the steps from here on.</summary>
    public static string[] StepsOf(TestHost host, Action body)
    {
        ulong step = host.Machine.Journal.Steps + 1;
        body();
        return [.. host.Machine.Journal.Read(step).Select(record => record.Label.Name)];
    }
}
