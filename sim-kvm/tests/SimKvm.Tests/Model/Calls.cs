using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Userspace;
using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimKvm.Tests.Model;

/// <summary>
/// A call of a sequence. What earlier calls gave is named by variables: F is a descriptor, A an address. A variable that no call of the sequence set (because it
/// failed, or because a shrunk sequence has lost it) stands for a bad one, so any part of a sequence is a sequence.
/// </summary>
internal abstract record Call
{
    /// <summary>Makes the call on both kernels; they must agree on the answer.</summary>
    public abstract void Play(Twin twin);
}

internal sealed record StartProcess(int P) : Call
{
    public override void Play(Twin twin) => twin.Start(P);
}

internal sealed record ExitProcess(int P) : Call
{
    public override void Play(Twin twin) => twin.Exit(P);
}

internal sealed record OpenKvm(int P, int ToF) : Call
{
    public override void Play(Twin twin) => twin.Compare(P, (real, _) => real.Open("/dev/kvm"), twin.Model.Open, fd: ToF);
}

internal sealed record CloseFd(int P, int F) : Call
{
    public override void Play(Twin twin) => twin.Compare(P, (real, _) => real.Close(twin.Fd(F)), process => ModelKernel.Close(process, twin.Fd(F)));
}

/// <summary>A descriptor is sent to another process.</summary>
internal sealed record PassFd(int P, int F, int ToP, int ToF) : Call
{
    public override void Play(Twin twin) => twin.Pass(P, twin.Fd(F), ToP, ToF);
}

internal sealed record Stat(int P, int F) : Call
{
    public override void Play(Twin twin)
    {
        ulong expected = 0;
        FileStat stat = default;
        twin.Compare(P, (real, _) => real.Fstat(twin.Fd(F), out stat), process => ModelKernel.Fstat(process, twin.Fd(F), out expected));
        Twin.Require(stat.Size == expected && stat.Blocks == 0, $"fstat: size {stat.Size}, blocks {stat.Blocks}; the model has size {expected}");
    }
}

internal sealed record UnknownIoctl(int P, int F, uint Request) : Call
{
    // A kind that no file has.
    private const FdKind None = (FdKind)99;

    public override void Play(Twin twin) =>
        twin.Compare(P, (real, _) => real.Ioctl(twin.Fd(F), Request, 0), process => ModelKernel.Enter(process, twin.Fd(F), None, out _));
}

internal sealed record CreateVm(int P, int F, ulong Type, int ToF) : Call
{
    public override void Play(Twin twin) =>
        twin.Compare(P, (real, _) => real.Ioctl(twin.Fd(F), KvmIoctl.KVM_CREATE_VM, Type), process => twin.Model.CreateVm(process, twin.Fd(F), Type), fd: ToF);
}

internal sealed record CreateVcpu(int P, int F, ulong Id, int ToF) : Call
{
    public override void Play(Twin twin) =>
        twin.Compare(P, (real, _) => real.Ioctl(twin.Fd(F), KvmIoctl.KVM_CREATE_VCPU, Id), process => twin.Model.CreateVcpu(process, twin.Fd(F), Id), fd: ToF);
}

internal sealed record CreateGuestMemfd(int P, int F, ulong Size, ulong Flags, bool CutShort, int ToF) : Call
{
    public override void Play(Twin twin)
    {
        var args = new kvm_create_guest_memfd { size = Size, flags = Flags };
        twin.Compare(
            P, (real, _) => real.Ioctl(twin.Fd(F), KvmIoctl.KVM_CREATE_GUEST_MEMFD, Twin.Bytes(args, CutShort)),
            process => twin.Model.CreateGuestMemfd(process, twin.Fd(F), args, CutShort), fd: ToF);
    }
}

internal sealed record SetAttributes(int P, int F, ulong Address, ulong Size, ulong Attributes, ulong Flags, bool CutShort) : Call
{
    public override void Play(Twin twin)
    {
        var args = new kvm_memory_attributes { address = Address, size = Size, attributes = Attributes, flags = Flags };
        twin.Compare(
            P, (real, _) => real.Ioctl(twin.Fd(F), KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES, Twin.Bytes(args, CutShort)),
            process => ModelKernel.SetAttributes(process, twin.Fd(F), args, CutShort));
    }
}

/// <param name="UaddrA">Added to the user address, if something is mapped there.</param>
internal sealed record SetRegion(
    int P, int F, int Version, uint Slot, uint Flags, ulong Gpa, ulong Size, int UaddrA, ulong Uaddr, int GmemF, ulong Offset, bool CutShort) : Call
{
    public override void Play(Twin twin)
    {
        ulong uaddr = twin.Address(UaddrA) + Uaddr;
        var args = new kvm_userspace_memory_region2
        {
            slot = Slot,
            flags = Flags,
            guest_phys_addr = Gpa,
            memory_size = Size,
            userspace_addr = uaddr,
            guest_memfd_offset = Offset,
            guest_memfd = unchecked((uint)twin.Fd(GmemF)),
        };
        var first = new kvm_userspace_memory_region { slot = Slot, flags = Flags, guest_phys_addr = Gpa, memory_size = Size, userspace_addr = uaddr };
        twin.Compare(
            P,
            (real, _) => Version == 2
                ? real.Ioctl(twin.Fd(F), KvmIoctl.KVM_SET_USER_MEMORY_REGION2, Twin.Bytes(args, CutShort))
                : real.Ioctl(twin.Fd(F), KvmIoctl.KVM_SET_USER_MEMORY_REGION, Twin.Bytes(first, CutShort)),
            process => twin.Model.SetRegion(process, twin.Fd(F), args, Version == 2, CutShort));
    }
}

internal sealed record Fallocate(int P, int F, uint Mode, long Offset, long Length) : Call
{
    public override void Play(Twin twin) =>
        twin.Compare(P, (real, _) => real.Fallocate(twin.Fd(F), Mode, Offset, Length), process => twin.Model.Fallocate(process, twin.Fd(F), Mode, Offset, Length));
}

internal sealed record Mmap(int P, ulong Length, uint Prot, uint Flags, int F, ulong Offset, int ToA) : Call
{
    public override void Play(Twin twin)
    {
        // The pages of a vCPU have content that the model does not follow.
        if (twin.KindOf(P, twin.Fd(F)) == FdKind.Vcpu)
        {
            return;
        }
        ulong address = 0;
        twin.Compare(
            P,
            (real, _) =>
            {
                CallReport report = real.Mmap(0, Length, Prot, Flags, twin.Fd(F), Offset);
                address = report.Succeeded ? (ulong)report.Value : 0;
                return report;
            },
            process => ModelKernel.Mmap(process, Length, Prot, Flags, twin.Fd(F), Offset, address) is var errno and not Errno.OK
                ? errno
                : SyscallResult.Of((long)address));
        twin.SetAddress(ToA, address);
    }
}

internal sealed record Munmap(int P, int A, ulong Skip, ulong Length) : Call
{
    public override void Play(Twin twin) =>
        twin.Compare(P, (real, _) => real.Munmap(twin.Address(A) + Skip, Length), process => ModelKernel.Munmap(process, twin.Address(A) + Skip, Length));
}

internal sealed record Store(int P, int A, ulong Skip, int Length, byte First) : Call
{
    public override void Play(Twin twin)
    {
        byte[] bytes = [.. Enumerable.Range(First, Length).Select(value => (byte)value)];
        twin.Compare(
            P, (real, _) => real.Write(twin.Address(A) + Skip, bytes),
            process => Twin.Partial(ModelKernel.Write(process, twin.Address(A) + Skip, bytes), Length));
    }
}

internal sealed record Load(int P, int A, ulong Skip, int Length) : Call
{
    public override void Play(Twin twin)
    {
        byte[] real = new byte[Length], model = new byte[Length];
        twin.Compare(
            P, (process, _) => process.Read(twin.Address(A) + Skip, real), process => Twin.Partial(ModelKernel.Read(process, twin.Address(A) + Skip, model), Length));
        Twin.Require(real.SequenceEqual(model), $"the bytes at 0x{twin.Address(A) + Skip:x} differ");
    }
}

/// <summary>kvm_gmem_populate as a launch ioctl calls it, with a callback that does nothing, or fails on one page.</summary>
internal sealed record Populate(int P, int F, ulong Gfn, int SourceA, ulong Skip, long Npages, long FailAt) : Call
{
    private static readonly Rule CallbackRefused = new("test.callback", "the test's callback refuses", "test", "nothing");

    public override void Play(Twin twin)
    {
        int fd = twin.Fd(F);
        bool possible = twin.Model.Behaviours.Populate != PopulateForm.Absent && twin.IsOwnVm(P, fd);
        if (!possible)
        {
            return;
        }
        ulong source = twin.Address(SourceA) is var address and not 0 ? address + Skip : 0;
        twin.Compare(
            P,
            (real, current) =>
            {
                real.Files.TryGet(fd, out KernelFile? file);
                Vm vm = ((VmFile)file!).Vm;
                long calls = 0;
                current.BeginCall(1);
                using var slots = vm.SlotsLock.Enter(current);
                SyscallResult result = GuestMemfd.Populate(
                    current, vm, new Gfn(Gfn), source, Npages, mayWriteBack: false,
                    (KTask task, Gfn _, Pfn _, in PopulateSource _) => calls++ == FailAt ? task.Fail(Errno.ENXIO, CallbackRefused) : Errno.OK);
                return new CallReport(0, "populate", result, current.Causes.ToArray(), []);
            },
            process => twin.Model.Populate(process, fd, Gfn, source, Npages, FailAt));
    }
}
