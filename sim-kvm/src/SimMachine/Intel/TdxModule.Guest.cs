using System.Security.Cryptography;
using SimMachine.Addressing;
using SimMachine.Intel.Attestation;
using SimMachine.Stepping;

namespace SimMachine.Intel;

/// <summary>Registers of a TDCALL: operands in, results out.</summary>
public record struct TdcallRegisters(
    ulong Rax, ulong Rcx, ulong Rdx, ulong Rbx, ulong Rsi, ulong Rdi, ulong R8, ulong R9, ulong R10, ulong R11, ulong R12, ulong R13, ulong R14, ulong R15);

/// <summary>What a guest's access or TDCALL comes to.</summary>
public enum TdGuestOutcome
{
    /// <summary>Done; RAX of a TDCALL has its status.</summary>
    Completed,

    /// <summary>TDG.VP.VMCALL: the vCPU leaves, and the host answers by registers.</summary>
    Vmcall,

    /// <summary>EPT violation: the vCPU leaves. The host is to map the page.</summary>
    EptViolation,

    /// <summary>EPT violation by an access to a pending page, of a TD with SEPT_VE_DISABLE (extended exit qualification PENDING_EPT_VIOLATION).</summary>
    PendingEptViolation,

    /// <summary>#VE in the guest: an access to a pending page, of a TD without SEPT_VE_DISABLE.</summary>
    VirtualizationException,
}

// What TDs do: accesses to private memory, and TDCALL leaves.
public sealed partial class TdxModule
{
    /// <summary>ATTRIBUTES.SEPT_VE_DISABLE</summary>
    public const ulong SeptVeDisable = 1UL << 28;

    private const uint EptViolationReason = 48;
    private const int DigestSize = SHA384.HashSizeInBytes;
    private const int RtmrAlignment = 64;

    private static readonly StepLabel TdcallStep = new("tdcall");

    private enum PrivatePage
    {
        Mapped,
        Pending,
        Missing,
    }

    /// <summary>An access of the TD to a private page.</summary>
    /// <param name="gpa">Without shared bit.</param>
    /// <param name="pfn">The page, where the outcome is Completed.</param>
    public TdGuestOutcome GuestAccess(Pfn tdvpr, ulong gpa, out Pfn pfn)
    {
        TryGetVcpu(tdvpr, out TdVcpu vcpu);
        PrivatePage page = Translate(vcpu.Td, gpa, out pfn);
        return page == PrivatePage.Mapped ? TdGuestOutcome.Completed : Fault(vcpu, gpa, page);
    }

    /// <summary>#VE of an access to shared memory, by the entry of the host's that it met: TDG.VP.VEINFO.GET tells of it.</summary>
    /// <param name="gpa">With the shared bit.</param>
    public void RaiseVe(Pfn tdvpr, ulong gpa)
    {
        if (TryGetVcpu(tdvpr, out TdVcpu vcpu))
        {
            RaiseVe(vcpu, gpa);
        }
    }

    /// <summary>The key that private memory of the TD is encrypted with.</summary>
    public uint KeyOf(Pfn tdr) => _tds.TryGetValue(tdr.Value, out Td? td) ? td.Key : Machine.HostKey;

    /// <summary>TDCALL. RAX bits 15:0 are the leaf.</summary>
    /// <param name="fault">Where, of an EPT violation or #VE. The leaf has done nothing then, and is executed again.</param>
    public TdGuestOutcome Tdcall(SimThread thread, Pfn tdvpr, ref TdcallRegisters registers, out ulong fault)
    {
        TryGetVcpu(tdvpr, out TdVcpu vcpu);
        fault = 0;
        thread.Step(TdcallStep, registers.Rax, registers.Rcx);
        TdGuestOutcome outcome = TdGuestOutcome.Completed;
        switch ((TdcallLeaf)(registers.Rax & 0xffff))
        {
            case TdcallLeaf.TDG_VP_VMCALL:
                return TdGuestOutcome.Vmcall;
            case TdcallLeaf.TDG_VP_INFO:
                VpInfo(vcpu, ref registers);
                return outcome;
            case TdcallLeaf.TDG_VP_VEINFO_GET:
                VpVeinfoGet(vcpu, ref registers);
                return outcome;
            case TdcallLeaf.TDG_MEM_PAGE_ACCEPT:
                outcome = MemPageAccept(vcpu, ref registers);
                fault = registers.Rcx & GpaMask;
                return outcome;
            case TdcallLeaf.TDG_VM_RD:
                VmRd(vcpu, ref registers);
                return outcome;
            case TdcallLeaf.TDG_VM_WR:
                VmWr(vcpu, ref registers);
                return outcome;
            case TdcallLeaf.TDG_MR_RTMR_EXTEND:
                return MrRtmrExtend(vcpu, ref registers, out fault);
            case TdcallLeaf.TDG_MR_REPORT:
                return MrReport(vcpu, ref registers, out fault);
            case TdcallLeaf.TDG_MR_VERIFYREPORT:
                return MrVerifyreport(vcpu, ref registers, out fault);
            default:
                registers.Rax = (ulong)TdxStatus.OPERAND_INVALID.With(TdxOperand.RAX);
                return outcome;
        }
    }

    private static void VpInfo(TdVcpu vcpu, ref TdcallRegisters registers)
    {
        Td td = vcpu.Td;
        registers.Rax = (ulong)TdxStatus.SUCCESS;
        registers.Rcx = (ulong)td.Gpaw;
        registers.Rdx = td.Attributes;
        registers.R8 = (uint)td.Vcpus.Count | ((ulong)td.MaxVcpus << 32);
        registers.R9 = (ulong)vcpu.Index;
        registers.R10 = 1;
        registers.R11 = 0;
    }

    // Without a #VE to tell of there is nothing to get. What VMX has besides is 0 here.
    private void VpVeinfoGet(TdVcpu vcpu, ref TdcallRegisters registers)
    {
        const ulong noVeInfo = 0xC000_0704_0000_0000;
        if (vcpu.Ve is not { } ve)
        {
            registers.Rax = noVeInfo;
            return;
        }
        _machine.Writing(vcpu);
        vcpu.Ve = null;
        registers.Rax = (ulong)TdxStatus.SUCCESS;
        registers.Rcx = ve.ExitReason;
        registers.Rdx = ve.ExitQualification;
        registers.R8 = 0;
        registers.R9 = ve.Gpa;
        registers.R10 = 0;
    }

    // The walk ends at the size that is asked for, or at a larger page.
    private TdGuestOutcome MemPageAccept(TdVcpu vcpu, ref TdcallRegisters registers)
    {
        const int largest = 1;
        Td td = vcpu.Td;
        int level = (int)(registers.Rcx & LevelMask);
        ulong gpa = registers.Rcx & GpaMask;
        bool wellFormed = (registers.Rcx & ~(GpaMask | LevelMask)) == 0 && level <= largest && gpa < td.SharedBit;
        if (!wellFormed || (gpa & (Sept.BytesOf(level) - 1)) != 0)
        {
            registers.Rax = (ulong)TdxStatus.OPERAND_INVALID.With(TdxOperand.RCX);
            return TdGuestOutcome.Completed;
        }
        SeptEntry entry = GuestWalk(td, gpa, level, out int found);
        switch (entry.State)
        {
            case SeptState.MAPPED:
                registers.Rax = (ulong)TdxStatus.PAGE_ALREADY_ACCEPTED.With((uint)found);
                return TdGuestOutcome.Completed;
            case SeptState.NL_MAPPED when found == level:
                registers.Rax = (ulong)TdxStatus.PAGE_SIZE_MISMATCH.With((uint)level);
                return TdGuestOutcome.Completed;
            case SeptState.PENDING when found == level && td.Sept.LockedEntries.Contains((level, Sept.IndexOf(level, gpa))):
                registers.Rax = (ulong)TdxStatus.OPERAND_BUSY.With(TdxOperand.RCX);
                return TdGuestOutcome.Completed;
            case SeptState.PENDING when found == level:
                for (ulong i = 0; i < Sept.BytesOf(level) >> PageSize.Shift; i++)
                {
                    _machine.Memory.Zero(entry.Pfn + i, td.Key);
                }
                td.Sept[level, gpa] = entry with { State = SeptState.MAPPED };
                registers.Rax = (ulong)TdxStatus.SUCCESS;
                return TdGuestOutcome.Completed;
            default:
                return TdGuestOutcome.EptViolation;
        }
    }

    private TdGuestOutcome MrRtmrExtend(TdVcpu vcpu, ref TdcallRegisters registers, out ulong fault)
    {
        fault = registers.Rcx;
        if (registers.Rcx % RtmrAlignment != 0 || registers.Rcx >= vcpu.Td.SharedBit)
        {
            registers.Rax = (ulong)TdxStatus.OPERAND_INVALID.With(TdxOperand.RCX);
            return TdGuestOutcome.Completed;
        }
        Span<byte> extension = stackalloc byte[2 * DigestSize];
        TdGuestOutcome outcome = Load(vcpu, registers.Rcx, extension[DigestSize..]);
        if (outcome != TdGuestOutcome.Completed)
        {
            return outcome;
        }
        if (registers.Rdx >= Td.Rtmrs)
        {
            registers.Rax = (ulong)TdxStatus.OPERAND_INVALID.With(TdxOperand.RDX);
            return TdGuestOutcome.Completed;
        }
        if (!vcpu.Td.RtmrLock.IsFree)
        {
            registers.Rax = (ulong)TdxStatus.OPERAND_BUSY.With(TdxOperand.RTMR);
            return TdGuestOutcome.Completed;
        }
        _machine.Writing(vcpu.Td.RtmrLock);
        byte[] rtmr = vcpu.Td.Rtmr[registers.Rdx];
        rtmr.CopyTo(extension);
        SHA384.HashData(extension, rtmr);
        registers.Rax = (ulong)TdxStatus.SUCCESS;
        return TdGuestOutcome.Completed;
    }

    private TdGuestOutcome MrReport(TdVcpu vcpu, ref TdcallRegisters registers, out ulong fault)
    {
        fault = registers.Rcx;
        ulong shared = vcpu.Td.SharedBit;
        TdxOperand? wrong = registers.Rcx % TdReport.Size != 0 || registers.Rcx >= shared ? TdxOperand.RCX
            : registers.Rdx % ReportMacStruct.ReportDataSize != 0 || registers.Rdx >= shared ? TdxOperand.RDX
            : registers.R8 != 0 ? TdxOperand.R8
            : null;
        if (wrong is { } operand)
        {
            registers.Rax = (ulong)TdxStatus.OPERAND_INVALID.With(operand);
            return TdGuestOutcome.Completed;
        }
        PrivatePage target = Translate(vcpu.Td, registers.Rcx, out Pfn page);
        if (target != PrivatePage.Mapped)
        {
            return Fault(vcpu, registers.Rcx, target);
        }
        Span<byte> data = stackalloc byte[ReportMacStruct.ReportDataSize];
        fault = registers.Rdx;
        TdGuestOutcome outcome = Load(vcpu, registers.Rdx, data);
        if (outcome != TdGuestOutcome.Completed)
        {
            return outcome;
        }
        _machine.Reading(vcpu.Td.RtmrLock);
        byte[] report = _machine.TdxIdentity.Report(vcpu.Td.Info(), data).ToArray();
        _machine.Memory.Write(page, (int)(registers.Rcx & PageSize.OffsetMask), report, vcpu.Td.Key);
        registers.Rax = (ulong)TdxStatus.SUCCESS;
        return TdGuestOutcome.Completed;
    }

    private TdGuestOutcome MrVerifyreport(TdVcpu vcpu, ref TdcallRegisters registers, out ulong fault)
    {
        fault = registers.Rcx;
        if (registers.Rcx % ReportMacStruct.Size != 0 || registers.Rcx >= vcpu.Td.SharedBit)
        {
            registers.Rax = (ulong)TdxStatus.OPERAND_INVALID.With(TdxOperand.RCX);
            return TdGuestOutcome.Completed;
        }
        Span<byte> mac = stackalloc byte[ReportMacStruct.Size];
        TdGuestOutcome outcome = Load(vcpu, registers.Rcx, mac);
        if (outcome != TdGuestOutcome.Completed)
        {
            return outcome;
        }
        registers.Rax = (ulong)(_machine.TdxIdentity.ReportMac.Verify(ReportMacStruct.Read(mac)) switch
        {
            TdReportVerdict.GENUINE => TdxStatus.SUCCESS,
            TdReportVerdict.INVALID_CPUSVN => TdxStatus.INVALID_CPUSVN,
            _ => TdxStatus.INVALID_REPORTMACSTRUCT,
        });
        return outcome;
    }

    // A load that does not cross a page.
    private TdGuestOutcome Load(TdVcpu vcpu, ulong gpa, Span<byte> destination)
    {
        PrivatePage page = Translate(vcpu.Td, gpa, out Pfn pfn);
        if (page != PrivatePage.Mapped)
        {
            return Fault(vcpu, gpa, page);
        }
        _machine.Memory.Read(pfn, (int)(gpa & PageSize.OffsetMask), destination, vcpu.Td.Key);
        return TdGuestOutcome.Completed;
    }

    private static PrivatePage Translate(Td td, ulong gpa, out Pfn pfn)
    {
        SeptEntry entry = GuestWalk(td, gpa, 0, out int level);
        pfn = entry.Pfn + ((gpa & (Sept.BytesOf(level) - 1)) >> PageSize.Shift);
        return entry.State switch
        {
            SeptState.MAPPED => PrivatePage.Mapped,
            SeptState.PENDING => PrivatePage.Pending,
            _ => PrivatePage.Missing,
        };
    }

    // The processor's walk, unlike the host's (Sept.Walk), does not go through a table that is blocked.
    private static SeptEntry GuestWalk(Td td, ulong gpa, int level, out int found)
    {
        found = td.Sept.Top;
        while (found > level && td.Sept[found, gpa].State == SeptState.NL_MAPPED)
        {
            found--;
        }
        return td.Sept[found, gpa];
    }

    private TdGuestOutcome Fault(TdVcpu vcpu, ulong gpa, PrivatePage page)
    {
        if (page == PrivatePage.Missing)
        {
            return TdGuestOutcome.EptViolation;
        }
        if ((vcpu.Td.Attributes & SeptVeDisable) != 0)
        {
            return TdGuestOutcome.PendingEptViolation;
        }
        RaiseVe(vcpu, gpa);
        return TdGuestOutcome.VirtualizationException;
    }

    private void RaiseVe(TdVcpu vcpu, ulong gpa)
    {
        _machine.Writing(vcpu);
        vcpu.Ve = new TdVeInfo(EptViolationReason, 0, gpa);
    }
}
