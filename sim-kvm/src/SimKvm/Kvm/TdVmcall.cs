using SimKvm.Abi;
using SimMachine.Addressing;
using SimMachine.Intel;
using SimMachine.Stepping;

namespace SimKvm.Kvm;

/// <summary>Sub-functions of TDG.VP.VMCALL in R11, where R10 is 0 (Intel GHCI; asm/shared/tdx.h). Those below 0x10000 are VMX exit reasons.</summary>
public enum TdVmcallLeaf : ulong
{
    CPUID = 10,
    HLT = 12,
    IO = 30,
    RDMSR = 31,
    WRMSR = 32,
    MMIO = 48,
    GetTdVmCallInfo = 0x10000,
    MapGpa = 0x10001,
    GetQuote = 0x10002,
    ReportFatalError = 0x10003,
    SetupEventNotifyInterrupt = 0x10004,
}

/// <summary>R10 after TDG.VP.VMCALL.</summary>
public static class TdVmcallStatus
{
    public const ulong SUCCESS = 0;
    public const ulong RETRY = 1;
    public const ulong INVALID_OPERAND = 0x8000_0000_0000_0000;
    public const ulong GPA_INUSE = 0x8000_0000_0000_0001;
    public const ulong ALIGN_ERROR = 0x8000_0000_0000_0002;
    public const ulong SUBFUNC_UNSUPPORTED = 0x8000_0000_0000_0003;
}

// What a TD asks of its host by TDCALL: the leaves that the module answers come back at once, TDG.VP.VMCALL is KVM's (handle_tdvmcall).
internal sealed partial class Vcpu
{
    private const ulong MapGpaChunkSize = 2UL << 20;
    private const ulong ToPrivate = 0x10;

    // EXIT_REASON_TDCALL: what TDH.VP.ENTER returned of a TD that left by TDG.VP.VMCALL.
    private const ulong TdcallExit = 77;
    private const int FirstVector = 32;
    private const int LastVector = 255;

    public static readonly Rule MapGpaAnswer = new(
        "tdx.map-gpa.answer", "hypercall.ret is none that KVM passes on to a guest that asked for a conversion", "tdx_complete_vmcall_map_gpa, 7.0",
        "answer 0, EAGAIN or EINVAL", "ret");

    /// <summary>kvm_tdp_map_page of one private page, as KVM_TDX_INIT_MEM_REGION uses it before 6.19.</summary>
    public Errno MapPrivatePage(KTask current, Gfn gfn) => PreMapPage(current, gfn.ToGpa().Value, write: false, asPrivate: true, out _);

    private Errno ExecuteTdcall(KTask current, GuestTdcall step, ref int fruitless, out bool toUserSpace)
    {
        toUserSpace = false;
        TdcallRegisters registers = step.Registers;
        switch (Vm.Backend.Tdcall(current, this, ref registers, out ulong fault))
        {
            case TdGuestOutcome.Completed:
                Guest.Retire(rax: registers.Rax, registers: registers);
                return Errno.OK;
            case TdGuestOutcome.Vmcall:
                registers.Rax = 0;
                return HandleVmcall(current, registers, out toUserSpace);
            case TdGuestOutcome.VirtualizationException:
                Guest.Retire(exception: VirtualizationException(fault));
                return Errno.OK;
            default:
                bool isAccept = (TdcallLeaf)(step.Registers.Rax & 0xffff) == TdcallLeaf.TDG_MEM_PAGE_ACCEPT;
                Errno errno = NestedPageFault(current, fault, GuestAccess.Private, write: true, ref fruitless, out bool emulate, isAccept);
                if (errno == Errno.OK && emulate)
                {
                    Guest.Retire(exception: VirtualizationException(fault));
                }
                return errno;
        }
    }

    private static GuestException VirtualizationException(ulong gpa) => new("#VE", (ulong)TdVmcallLeaf.MMIO, gpa);

    // handle_tdvmcall
    private Errno HandleVmcall(KTask current, TdcallRegisters registers, out bool toUserSpace)
    {
        toUserSpace = true;
        if (registers.R10 != 0)
        {
            var call = new GuestHypercall(registers.R10, registers.R11, registers.R12, registers.R13, registers.R14, LongMode: true, Cpl: 0);
            ExitResult called = EmulateHypercall(current, call, result => Return(registers with { R10 = result }));
            toUserSpace = called.ToUserSpace;
            return called.Errno;
        }
        switch ((TdVmcallLeaf)registers.R11)
        {
            case TdVmcallLeaf.CPUID:
                kvm_cpuid_entry2 leaf = Arch.FindCpuid((uint)registers.R12, (uint)registers.R13);
                Return(registers with { R12 = leaf.eax, R13 = leaf.ebx, R14 = leaf.ecx, R15 = leaf.edx });
                toUserSpace = false;
                return Errno.OK;
            case TdVmcallLeaf.HLT:
                Return(registers);
                Run.Exit(KvmExit.KVM_EXIT_HLT);
                return Errno.OK;
            case TdVmcallLeaf.IO:
                toUserSpace = VmcallIo(registers);
                return Errno.OK;
            case TdVmcallLeaf.MMIO:
                toUserSpace = VmcallMmio(registers);
                return Errno.OK;
            case TdVmcallLeaf.RDMSR or TdVmcallLeaf.WRMSR:
                VmcallMsr(current, registers);
                toUserSpace = false;
                return Errno.OK;
            case TdVmcallLeaf.GetTdVmCallInfo:
                toUserSpace = VmcallInfo(registers);
                return Errno.OK;
            case TdVmcallLeaf.MapGpa:
                toUserSpace = VmcallMapGpa(registers);
                return Errno.OK;
            case TdVmcallLeaf.GetQuote:
                toUserSpace = VmcallGetQuote(registers);
                return Errno.OK;
            case TdVmcallLeaf.ReportFatalError:
                Run.SystemEvent(
                    KvmSystemEvent.KVM_SYSTEM_EVENT_TDX_FATAL, TdcallExit, registers.Rcx, registers.Rdx, registers.Rbx, 0, 0, registers.Rsi, registers.Rdi,
                    registers.R8, registers.R9, registers.R10, registers.R11, registers.R12, registers.R13, registers.R14, registers.R15);
                ReturnAfter(() => registers with { R10 = TdVmcallStatus.INVALID_OPERAND });
                return Errno.OK;
            case TdVmcallLeaf.SetupEventNotifyInterrupt:
                toUserSpace = VmcallEventNotify(registers);
                return Errno.OK;
            default:
                return Refuse(registers, TdVmcallStatus.SUBFUNC_UNSUPPORTED, out toUserSpace);
        }
    }

    // The guest goes on behind the TDCALL with these registers.
    private void Return(in TdcallRegisters registers) => Guest.Retire(rax: registers.Rax, registers: registers);

    // The guest goes on when user space has answered.
    private void ReturnAfter(Func<TdcallRegisters> answer) => CompleteWith(_ =>
    {
        Return(answer());
        return ExitResult.Resume;
    });

    private Errno Refuse(in TdcallRegisters registers, ulong status, out bool toUserSpace)
    {
        Return(registers with { R10 = status });
        toUserSpace = false;
        return Errno.OK;
    }

    private bool Refuse(in TdcallRegisters registers, ulong status)
    {
        Return(registers with { R10 = status });
        return false;
    }

    // tdx_emulate_io: R12 size, R13 1 for out, R14 port, R15 data.
    private bool VmcallIo(TdcallRegisters registers)
    {
        if (registers.R12 is not (1 or 2 or 4) || registers.R13 > 1)
        {
            return Refuse(registers, TdVmcallStatus.INVALID_OPERAND);
        }
        int size = (int)registers.R12;
        bool isOut = registers.R13 == 1;
        Run.Io(isOut, size, (ushort)registers.R14, isOut ? BitConverter.GetBytes(registers.R15).AsSpan(0, size) : []);
        ReturnAfter(() =>
        {
            Span<byte> data = stackalloc byte[8];
            data.Clear();
            if (!isOut)
            {
                Run.ReadPio(data[..size]);
            }
            return isOut ? registers : registers with { R11 = BitConverter.ToUInt64(data) };
        });
        return true;
    }

    // tdx_emulate_mmio: R12 size, R13 1 for a store, R14 gpa with the shared bit, R15 data.
    private bool VmcallMmio(TdcallRegisters registers)
    {
        ulong shared = Vm.Backend.DirectBits << PageSize.Shift;
        bool isShared = (registers.R14 & (registers.R14 + registers.R12 - 1) & shared) != 0;
        if (registers.R12 is not (1 or 2 or 4 or 8) || registers.R13 > 1 || !isShared)
        {
            return Refuse(registers, TdVmcallStatus.INVALID_OPERAND);
        }
        int size = (int)registers.R12;
        bool isWrite = registers.R13 == 1;
        Run.Mmio(registers.R14 & ~shared, isWrite ? BitConverter.GetBytes(registers.R15).AsSpan(0, size) : [], size, isWrite);
        ReturnAfter(() =>
        {
            Span<byte> data = stackalloc byte[8];
            data.Clear();
            if (!isWrite)
            {
                Run.ReadMmio(data[..size]);
            }
            return isWrite ? registers : registers with { R11 = BitConverter.ToUInt64(data) };
        });
        return true;
    }

    private void VmcallMsr(KTask current, TdcallRegisters registers)
    {
        int causes = current.Causes.Count;
        bool reads = (TdVmcallLeaf)registers.R11 == TdVmcallLeaf.RDMSR;
        ulong value = 0;
        Errno errno = reads ? Arch.GetMsr(current, (uint)registers.R12, out value) : Arch.SetMsr(current, (uint)registers.R12, registers.R13);
        // The guest is told; KVM_RUN goes on, so these are no reasons of its.
        current.ForgetCausesAfter(causes);
        Return(errno != Errno.OK ? registers with { R10 = TdVmcallStatus.INVALID_OPERAND } : reads ? registers with { R11 = value } : registers);
    }

    // tdx_get_td_vm_call_info
    private bool VmcallInfo(TdcallRegisters registers)
    {
        switch (registers.R12)
        {
            case 0:
                Return(registers with { R11 = 0, R12 = 0, R13 = 0, R14 = 0 });
                return false;
            case 1:
                Run.TdVmCallInfo(registers.R12);
                ReturnAfter(() => registers with { R10 = Run.TdxRet, R11 = Run.TdxField(2), R12 = Run.TdxField(3), R13 = Run.TdxField(4), R14 = Run.TdxField(5) });
                return true;
            default:
                return Refuse(registers, TdVmcallStatus.INVALID_OPERAND);
        }
    }

    // tdx_get_quote: only memory that the host can see takes a quote.
    private bool VmcallGetQuote(TdcallRegisters registers)
    {
        ulong shared = Vm.Backend.DirectBits << PageSize.Shift;
        if ((registers.R12 & shared) == 0)
        {
            return Refuse(registers, TdVmcallStatus.INVALID_OPERAND);
        }
        Run.Tdx((ulong)TdVmcallLeaf.GetQuote, TdVmcallStatus.SUBFUNC_UNSUPPORTED, registers.R12 & ~shared, registers.R13);
        ReturnAfter(() => registers with { R10 = Run.TdxRet });
        return true;
    }

    private bool VmcallEventNotify(TdcallRegisters registers)
    {
        if (registers.R12 is < FirstVector or > LastVector)
        {
            return Refuse(registers, TdVmcallStatus.INVALID_OPERAND);
        }
        Run.Tdx((ulong)TdVmcallLeaf.SetupEventNotifyInterrupt, TdVmcallStatus.SUBFUNC_UNSUPPORTED, registers.R12);
        ReturnAfter(() => registers with { R10 = Run.TdxRet });
        return true;
    }

    // tdx_map_gpa: checks, then to user space chunk by chunk.
    private bool VmcallMapGpa(TdcallRegisters registers)
    {
        ulong status = CheckMapGpa(registers.R12, registers.R13);
        if (status != TdVmcallStatus.SUCCESS)
        {
            Return(registers with { R10 = status, R11 = registers.R12 });
            return false;
        }
        MapGpaChunk(registers, registers.R12);
        return true;
    }

    // __tdx_map_gpa
    private ExitResult MapGpaChunk(TdcallRegisters registers, ulong start)
    {
        ulong shared = Vm.Backend.DirectBits << PageSize.Shift;
        ulong size = Math.Min(registers.R12 + registers.R13 - start, MapGpaChunkSize);
        bool toPrivate = (start & shared) == 0;
        Run.Hypercall(HypercallMapGpaRange, [start & ~shared, size >> PageSize.Shift, toPrivate ? ToPrivate : 0], longMode: true, presetRet: true);
        CompleteWith(current => CompleteMapGpa(current, registers, start, start + size));
        return ExitResult.UserSpace;
    }

    private ulong CheckMapGpa(ulong gpa, ulong size)
    {
        ulong shared = Vm.Backend.DirectBits << PageSize.Shift;
        if ((Vm.HypercallExits & (1u << (int)HypercallMapGpaRange)) == 0)
        {
            return TdVmcallStatus.SUBFUNC_UNSUPPORTED;
        }
        ulong last = gpa + size - 1;
        if (gpa + size <= gpa || !Arch.IsLegalGpa(gpa) || !Arch.IsLegalGpa(last) || (gpa & shared) != (last & shared))
        {
            return TdVmcallStatus.INVALID_OPERAND;
        }
        return ((gpa | size) & PageSize.OffsetMask) != 0 ? TdVmcallStatus.ALIGN_ERROR : TdVmcallStatus.SUCCESS;
    }

    // tdx_complete_vmcall_map_gpa
    private ExitResult CompleteMapGpa(KTask current, TdcallRegisters registers, ulong start, ulong next)
    {
        ulong ret = Run.HypercallRet;
        if (ret == 0 && next < registers.R12 + registers.R13)
        {
            if (HasEvents)
            {
                // Something waits to be delivered: the guest is to ask again for what is left.
                Return(registers with { R10 = TdVmcallStatus.RETRY, R11 = next });
                return ExitResult.Resume;
            }
            return MapGpaChunk(registers, next);
        }
        if (ret == 0)
        {
            Return(registers with { R10 = TdVmcallStatus.SUCCESS });
            return ExitResult.Resume;
        }
        if (!Vm.Host.Profile.TdxMapGpaTellsErrno || ret == (ulong)Errno.EINVAL)
        {
            Return(registers with { R10 = TdVmcallStatus.INVALID_OPERAND, R11 = start });
            return ExitResult.Resume;
        }
        if (ret == (ulong)Errno.EAGAIN)
        {
            Return(registers with { R10 = TdVmcallStatus.RETRY, R11 = start });
            return ExitResult.Resume;
        }
        // The guest is not told anything: its registers are as KVM found them.
        Return(registers);
        return ExitResult.Fail(current.Fail(Errno.EINVAL, MapGpaAnswer, ret));
    }
}
