using SimKvm.Kvm;
using SimMachine.Addressing;

namespace SimKvm.Vendors.Amd;

// Exits of the architecture that a guest asks for by its GHCB, from its #VC handler: port I/O, MMIO, CPUID, MSRs, hypercalls.
internal sealed partial class SevBackend
{
    // An injected #GP: vector 13, exception with error code, valid (APM vol. 2, 15.20).
    private const ulong InjectGeneralProtection = 13 | (3 << 8) | (1UL << 11) | (1UL << 31);

    // svm_cpuid_interception
    private static ExitResult GhcbCpuid(Vcpu vcpu, Ghcb ghcb, GhcbRequest request)
    {
        Abi.kvm_cpuid_entry2 leaf = vcpu.Arch.CpuidInstruction((uint)request.Rax, (uint)request.Rcx);
        ghcb.Set(Ghcb.Rax, leaf.eax);
        ghcb.Set(Ghcb.Rbx, leaf.ebx);
        ghcb.Set(Ghcb.Rcx, leaf.ecx);
        ghcb.Set(Ghcb.Rdx, leaf.edx);
        return ExitResult.Resume;
    }

    // msr_interception; what KVM refuses is #GP in the guest.
    private static ExitResult GhcbMsrAccess(KTask current, Vcpu vcpu, Ghcb ghcb, GhcbRequest request)
    {
        uint index = (uint)request.Rcx;
        if (request.ExitInfo1 != 0)
        {
            Errno errno = vcpu.Arch.SetMsr(current, index, ((ulong)(uint)request.Rdx << 32) | (uint)request.Rax);
            return errno == Errno.OK ? ExitResult.Resume : Answer(ghcb, Ghcb.IssueException, InjectGeneralProtection);
        }
        if (vcpu.Arch.GetMsr(current, index, out ulong data) != Errno.OK)
        {
            return Answer(ghcb, Ghcb.IssueException, InjectGeneralProtection);
        }
        ghcb.Set(Ghcb.Rax, (uint)data);
        ghcb.Set(Ghcb.Rdx, data >> 32);
        return ExitResult.Resume;
    }

    // kvm_emulate_hypercall: a guest with encrypted registers is always taken to be in 64-bit mode.
    private ExitResult GhcbVmmcall(KTask current, Vcpu vcpu, Ghcb ghcb, GhcbRequest request)
    {
        var call = new GuestHypercall(request.Rax, request.Rbx, request.Rcx, request.Rdx, request.Rsi, LongMode: true, request.Cpl);
        ExitResult result = vcpu.EmulateHypercall(current, call, Answered);
        return result.Resumes ? result : AskUserSpace(vcpu, _ =>
        {
            Answered(vcpu.Run.HypercallRet);
            return ExitResult.Resume;
        });

        void Answered(ulong rax) => ghcb.Set(Ghcb.Rax, rax);
    }

    // io_interception: one access by registers, or a string of them through the scratch area.
    private ExitResult GhcbIo(KTask current, Vcpu vcpu, VcpuSevEsState state, GhcbRequest request)
    {
        Ghcb ghcb = state.Ghcb!;
        int size = request.IoSize;
        if (size is not (1 or 2 or 4))
        {
            return BadInput(current, ghcb, request);
        }
        if (request.IsString)
        {
            return request.ExitInfo2 > (ulong)(int.MaxValue / size)
                ? ExitResult.Fail(current.Fail(Errno.EINVAL, GhcbBadInput, (ulong)request.ExitCode, request.ExitInfo1, request.ExitInfo2))
                : SetupScratch(current, state, request, request.ExitInfo2 * (ulong)size, request.IsIn) ?? StringIo(current, vcpu, state, request, done: 0);
        }
        Span<byte> data = stackalloc byte[sizeof(ulong)];
        System.Buffers.Binary.BinaryPrimitives.WriteUInt64LittleEndian(data, request.Rax);
        vcpu.Run.Io(!request.IsIn, size, request.IoPort, request.IsIn ? [] : data[..size]);
        return AskUserSpace(vcpu, _ =>
        {
            if (request.IsIn)
            {
                // A 32-bit load clears the upper half, as a move to EAX does.
                Span<byte> loaded = stackalloc byte[sizeof(ulong)];
                vcpu.Run.ReadPio(loaded[..size]);
                ulong kept = size < 4 ? request.Rax & (ulong.MaxValue << (8 * size)) : 0;
                ghcb.Set(Ghcb.Rax, kept | System.Buffers.Binary.BinaryPrimitives.ReadUInt64LittleEndian(loaded));
            }
            return ExitResult.Resume;
        });
    }

    // kvm_sev_es_string_io: as many accesses at a time as the PIO page holds.
    private ExitResult StringIo(KTask current, Vcpu vcpu, VcpuSevEsState state, GhcbRequest request, int done)
    {
        int total = (int)request.ExitInfo2 * request.IoSize;
        if (done >= total)
        {
            return ExitResult.Resume;
        }
        ScratchArea scratch = state.Scratch!;
        int length = Math.Min(total - done, PageSize.Bytes / request.IoSize * request.IoSize);
        vcpu.Run.Io(!request.IsIn, request.IoSize, request.IoPort, request.IsIn ? [] : scratch.Bytes.AsSpan(done, length), length / request.IoSize);
        return AskUserSpace(vcpu, next =>
        {
            if (request.IsIn)
            {
                byte[] loaded = new byte[length];
                vcpu.Run.ReadPio(loaded);
                StoreScratch(next, scratch, done, loaded);
            }
            return StringIo(next, vcpu, state, request, done + length);
        });
    }

    // kvm_sev_es_mmio_read, kvm_sev_es_mmio_write: eight bytes at a time.
    private ExitResult GhcbMmio(KTask current, Vcpu vcpu, VcpuSevEsState state, GhcbRequest request) =>
        SetupScratch(current, state, request, request.ExitInfo2, request.ExitCode == GhcbExitCode.MMIO_READ) ?? Mmio(vcpu, state, request, done: 0);

    private ExitResult Mmio(Vcpu vcpu, VcpuSevEsState state, GhcbRequest request, int done)
    {
        const int most = 8;
        int left = (int)request.ExitInfo2 - done;
        if (left <= 0)
        {
            return ExitResult.Resume;
        }
        ScratchArea scratch = state.Scratch!;
        int length = Math.Min(left, most);
        bool write = request.ExitCode == GhcbExitCode.MMIO_WRITE;
        vcpu.Run.Mmio(request.ExitInfo1 + (ulong)done, write ? scratch.Bytes.AsSpan(done, length) : [], length, write);
        return AskUserSpace(vcpu, next =>
        {
            if (!write)
            {
                Span<byte> loaded = stackalloc byte[most];
                vcpu.Run.ReadMmio(loaded[..length]);
                StoreScratch(next, scratch, done, loaded[..length]);
            }
            return Mmio(vcpu, state, request, done + length);
        });
    }
}
