using System.Buffers.Binary;
using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Userspace;

namespace SimKvm.Tests.Model;

/// <summary>What a guest's access came to: the errno of KVM_RUN, the exit, and the bytes that a load found.</summary>
/// <param name="Exit">kvm_run.exit_reason; behind a memory fault its flags and gpa.</param>
internal readonly record struct GuestOutcome(Errno Errno, KvmExit Exit, ulong Flags = 0, ulong Gpa = 0, byte[]? Bytes = null)
{
    public override string ToString() => $"{Errno}, {Exit} flags {Flags} gpa 0x{Gpa:x} {(Bytes is null ? "" : Convert.ToHexString(Bytes))}";
}

/// <summary>The guest loads or stores a few bytes, then halts.</summary>
/// <param name="First">First byte of what it stores, the next ones count on; null for a load.</param>
internal sealed record GuestTouch(int P, int F, ulong Gpa, int Length, byte? First) : Call
{
    public override void Play(Twin twin)
    {
        // Encrypted guests have rules of their own, which are not the model's.
        if (twin.KindOf(P, twin.Fd(F)) != FdKind.Vcpu || twin.VmTypeOf(P, twin.Fd(F)) > 1)
        {
            return;
        }
        byte[]? bytes = First is { } first ? [.. Enumerable.Range(first, Length).Select(value => (byte)value)] : null;
        GuestOutcome actual = default, expected = default;
        twin.Compare(
            P,
            (real, _) =>
            {
                int fd = twin.Fd(F);
                GuestStep access = bytes is null ? new GuestRead(Gpa, (ulong)Length, GuestAccess.Unmarked) : new GuestWrite(Gpa, bytes, GuestAccess.Unmarked);
                real.LoadGuestProgram(fd, [access, new GuestHalt()]);
                CallReport report = real.Ioctl(fd, KvmIoctl.KVM_RUN, 0);
                actual = Read(report.Errno, real.TakeGuestProgress(fd)!);
                return report;
            },
            process =>
            {
                Errno errno = ModelKernel.Enter(process, twin.Fd(F), FdKind.Vcpu, out ModelFile file);
                expected = errno != Errno.OK ? new GuestOutcome(errno, actual.Exit, actual.Flags, actual.Gpa) : ModelKernel.Guest(file.Vm!, Gpa, Length, bytes);
                return expected.Errno;
            });
        Twin.Require(expected.ToString() == actual.ToString(), $"the guest's access: {actual}; in the model {expected}");
    }

    private GuestOutcome Read(Errno errno, GuestProgress progress)
    {
        ReadOnlySpan<byte> run = progress.Run.Span;
        var exit = (KvmExit)BinaryPrimitives.ReadUInt32LittleEndian(run[8..]);
        bool fault = exit == KvmExit.KVM_EXIT_MEMORY_FAULT;
        return new GuestOutcome(
            errno, exit, fault ? BinaryPrimitives.ReadUInt64LittleEndian(run[32..]) : 0, fault ? BinaryPrimitives.ReadUInt64LittleEndian(run[40..]) : 0,
            errno == Errno.OK && exit == KvmExit.KVM_EXIT_HLT && First is null ? progress.Results[0].Data.ToArray() : null);
    }
}
