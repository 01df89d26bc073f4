using SimKvm.Abi;
using SimKvm.Userspace;
using SimMachine.Amd;
using SimMachine.Stepping;

namespace SimKvm.Kvm;

// Model-specific registers: KVM_GET_MSRS and KVM_SET_MSRS, for the registers that a VMSA holds and those that a VMM sets before a launch. All
// accesses are user space's ("host-initiated"), so the guest's CPUID hardly matters here.
internal sealed partial class VcpuArch
{
    public static readonly Rule TooManyMsrs = new(
        "kvm.x86.msrs.too-many", "nmsrs is 256 (MAX_IO_MSRS) or more", "msr_io", "use at most 255 entries in a call", "nmsrs#");

    public static readonly Rule MsrUnknown = new(
        "kvm.x86.msrs.unknown", "there is no such register, or it is not modelled", "kvm_get_msr_common, kvm_set_msr_common",
        "the call stops at this entry and returns the number before it", "index", "data");

    public static readonly Rule MsrProtected = new(
        "kvm.x86.msrs.protected", "the register lives in the vCPU's encrypted VMSA", "sev_es_prevent_msr_access",
        "set it before the vCPU is measured; the call stops at this entry and returns the number before it", "index");

    public static readonly Rule MsrReadOnly = new(
        "kvm.x86.msrs.read-only", "the register cannot be written", "kvm_set_msr_common", "leave it out", "index", "data");

    public static readonly Rule MsrReservedBits = new(
        "kvm.x86.msrs.reserved-bits", "the value has bits that the register does not have", "svm_set_msr, kvm_set_msr_common", "clear them",
        "index", "data", "refused_bits");

    public static readonly Rule MsrNotCanonical = new(
        "kvm.x86.msrs.not-canonical", "the register takes a canonical address", "__kvm_set_msr, is_noncanonical_msr_address",
        "sign-extend the address from bit 47 (bit 56 on a machine with 5-level paging)", "index", "data");

    public static readonly Rule MsrMemoryType = new(
        "kvm.x86.msrs.memory-type", "the value names a memory type that does not exist, or has reserved bits", "kvm_pat_valid, kvm_mtrr_valid",
        "types are 0, 1, 4, 5, 6, and 7 in a PAT", "index", "data");

    private const ulong MsrHeadSize = 8;
    private const ulong MsrEntrySize = 16;
    private const uint MaxIoMsrs = 256;

    private const uint MSR_IA32_TSC = 0x10;
    private const uint MSR_IA32_APICBASE = 0x1B;
    private const uint MSR_IA32_TSC_ADJUST = 0x3B;
    private const uint MSR_IA32_SPEC_CTRL = 0x48;
    private const uint MSR_MTRRcap = 0xFE;
    private const uint MSR_IA32_SYSENTER_CS = 0x174;
    private const uint MSR_IA32_SYSENTER_ESP = 0x175;
    private const uint MSR_IA32_SYSENTER_EIP = 0x176;
    private const uint MSR_IA32_MISC_ENABLE = 0x1A0;
    private const uint MSR_IA32_DEBUGCTLMSR = 0x1D9;
    private const uint MSR_IA32_LASTBRANCHFROMIP = 0x1DB;
    private const uint MSR_IA32_LASTINTTOIP = 0x1DE;
    private const uint MTRRphysBase0 = 0x200;
    private const uint MTRRphysMask7 = 0x20F;
    private const uint MTRRfix64K_00000 = 0x250;
    private const uint MTRRfix16K_80000 = 0x258;
    private const uint MTRRfix16K_A0000 = 0x259;
    private const uint MTRRfix4K_C0000 = 0x268;
    private const uint MTRRfix4K_F8000 = 0x26F;
    private const uint MSR_IA32_CR_PAT = 0x277;
    private const uint MSR_MTRRdefType = 0x2FF;
    private const uint MSR_IA32_XSS = 0xDA0;
    private const uint MSR_EFER = 0xC000_0080;
    private const uint MSR_STAR = 0xC000_0081;
    private const uint MSR_LSTAR = 0xC000_0082;
    private const uint MSR_CSTAR = 0xC000_0083;
    private const uint MSR_SYSCALL_MASK = 0xC000_0084;
    private const uint MSR_FS_BASE = 0xC000_0100;
    private const uint MSR_GS_BASE = 0xC000_0101;
    private const uint MSR_KERNEL_GS_BASE = 0xC000_0102;
    private const uint MSR_TSC_AUX = 0xC000_0103;
    private const uint MSR_VM_HSAVE_PA = 0xC001_0117;
    private const uint MSR_AMD64_SEV_ES_GHCB = 0xC001_0130;

    // SCE, LME, LMA, NX, SVME, FFXSR.
    private const ulong EferKnown = 0x5D01;
    private const ulong EferAutoIbrs = 1UL << 21;

    // 8 variable ranges, fixed ranges, write-combining.
    private const ulong MtrrCap = 0x508;

    // IBRS, STIBP, SSBD, PSFD.
    private const ulong SpecCtrlKnown = 0x87;
    private const ulong DebugctlLbr = 1;

    // Bits that user space may pass and KVM forgets: BTF, and the pin controls of processors of the past.
    private const ulong DebugctlDropped = 0x3E;

    private const ulong PatDefault = 0x0007_0406_0007_0406;
    private const ulong MiscEnableAtReset = 0x1800;

    private readonly ulong[] _mtrrVariable = new ulong[16];
    private readonly ulong[] _mtrrFixed = new ulong[11];
    private ulong _mtrrDefType;
    private ulong _pat = PatDefault;
    private ulong _tsc;
    private ulong _tscAdjust;
    private ulong _miscEnable = MiscEnableAtReset;
    private ulong _tscAux;
    private ulong _hsavePa;

    /// <summary>IA32_XSS. KVM lets SVM guests have no supervisor state here (CET is not modelled), so it is 0.</summary>
    public ulong Xss { get; private set; }

    /// <summary>KVM_GET_MSRS. The result is the number of entries read: it stops at the first that is refused. E2BIG from 256 entries on.</summary>
    public SyscallResult GetMsrs(KTask current, UserArg arg)
    {
        Errno errno = CopyInMsrs(current, arg, out kvm_msr_entry[] entries);
        if (errno != Errno.OK)
        {
            return errno;
        }
        int done = 0;
        while (done < entries.Length && GetMsr(current, entries[done].index, out entries[done].data) == Errno.OK)
        {
            done++;
        }
        for (int i = 0; i < entries.Length; i++)
        {
            errno = arg.CopyOut(current, entries[i], MsrHeadSize + ((ulong)i * MsrEntrySize));
            if (errno != Errno.OK)
            {
                return errno;
            }
        }
        return SyscallResult.Of(done);
    }

    /// <summary>
    /// KVM_SET_MSRS. The result is the number of entries written: it stops at the first that is refused, those before it stay. E2BIG from 256 entries
    /// on.
    /// </summary>
    public SyscallResult SetMsrs(KTask current, UserArg arg)
    {
        Errno errno = CopyInMsrs(current, arg, out kvm_msr_entry[] entries);
        if (errno != Errno.OK)
        {
            return errno;
        }
        int done = 0;
        while (done < entries.Length && SetMsr(current, entries[done].index, entries[done].data) == Errno.OK)
        {
            done++;
        }
        return SyscallResult.Of(done);
    }

    /// <summary>One entry of KVM_GET_MSRS: OK, or any errno, which the call flattens to "stop here".</summary>
    public Errno GetMsr(KTask current, uint index, out ulong data)
    {
        data = 0;
        Errno emulated = CheckTdMsr(current, index, write: false);
        if (emulated != Errno.OK)
        {
            return emulated;
        }
        if (IsProtected(index))
        {
            return HasProtectedState ? current.Fail(Errno.EINVAL, MsrProtected, index) : Errno.OK;
        }
        switch (index)
        {
            case MSR_IA32_TSC:
                data = _tsc;
                return Errno.OK;
            case MSR_IA32_APICBASE:
                data = ApicBase;
                return Errno.OK;
            case MSR_IA32_TSC_ADJUST:
                data = _tscAdjust;
                return Errno.OK;
            case MSR_IA32_SPEC_CTRL:
                data = _save.SpecCtrl;
                return Errno.OK;
            case MSR_MTRRcap:
                data = MtrrCap;
                return Errno.OK;
            case MSR_IA32_SYSENTER_CS:
                data = _save.SysenterCs;
                return Errno.OK;
            case MSR_IA32_SYSENTER_ESP:
                data = _save.SysenterEsp;
                return Errno.OK;
            case MSR_IA32_SYSENTER_EIP:
                data = _save.SysenterEip;
                return Errno.OK;
            case MSR_IA32_MISC_ENABLE:
                data = _miscEnable;
                return Errno.OK;
            case MSR_IA32_DEBUGCTLMSR:
                data = _save.Dbgctl;
                return Errno.OK;
            case MSR_IA32_CR_PAT:
                data = _pat;
                return Errno.OK;
            case MSR_IA32_XSS:
                data = Xss;
                return Errno.OK;
            case MSR_EFER:
                data = Efer;
                return Errno.OK;
            case MSR_STAR:
                data = _save.Star;
                return Errno.OK;
            case MSR_LSTAR:
                data = _save.Lstar;
                return Errno.OK;
            case MSR_CSTAR:
                data = _save.Cstar;
                return Errno.OK;
            case MSR_SYSCALL_MASK:
                data = _save.Sfmask;
                return Errno.OK;
            case MSR_FS_BASE:
                data = _save[VmcbSegment.FS].@base;
                return Errno.OK;
            case MSR_GS_BASE:
                data = _save[VmcbSegment.GS].@base;
                return Errno.OK;
            case MSR_KERNEL_GS_BASE:
                data = _save.KernelGsBase;
                return Errno.OK;
            case MSR_TSC_AUX:
                data = _tscAux;
                return Errno.OK;
            case MSR_VM_HSAVE_PA:
                data = _hsavePa;
                return Errno.OK;
            default:
                if (TryMtrr(index, out Span<ulong> mtrr))
                {
                    data = mtrr[0];
                    return Errno.OK;
                }
                return current.Fail(Errno.EINVAL, MsrUnknown, index, data);
        }
    }

    /// <summary>One entry of KVM_SET_MSRS: OK, or any errno, which the call flattens to "stop here".</summary>
    public Errno SetMsr(KTask current, uint index, ulong data)
    {
        Errno emulated = CheckTdMsr(current, index, write: true);
        if (emulated != Errno.OK)
        {
            return emulated;
        }
        if (IsProtected(index))
        {
            return HasProtectedState ? current.Fail(Errno.EINVAL, MsrProtected, index) : Errno.OK;
        }
        if (index is MSR_FS_BASE or MSR_GS_BASE or MSR_KERNEL_GS_BASE or MSR_LSTAR or MSR_CSTAR && SignExtend(data) != data)
        {
            return current.Fail(Errno.EINVAL, MsrNotCanonical, index, data);
        }
        switch (index)
        {
            case MSR_IA32_TSC:
                _tsc = data;
                return Errno.OK;
            case MSR_IA32_APICBASE:
                return SetApicBase(current, data);
            case MSR_IA32_TSC_ADJUST:
                _tscAdjust = data;
                return Errno.OK;
            case MSR_IA32_SPEC_CTRL when (data & ~SpecCtrlKnown) != 0:
                return current.Fail(Errno.EINVAL, MsrReservedBits, index, data, data & ~SpecCtrlKnown);
            case MSR_IA32_SPEC_CTRL:
                _save.SpecCtrl = data;
                return Errno.OK;
            case MSR_MTRRcap:
                return current.Fail(Errno.EINVAL, MsrReadOnly, index, data);
            case MSR_IA32_SYSENTER_CS:
                _save.SysenterCs = data;
                return Errno.OK;
            case MSR_IA32_SYSENTER_ESP:
                // The upper half exists on Intel only, so it is dropped even though the address was made canonical before.
                _save.SysenterEsp = (uint)data;
                return Errno.OK;
            case MSR_IA32_SYSENTER_EIP:
                _save.SysenterEip = (uint)data;
                return Errno.OK;
            case MSR_IA32_MISC_ENABLE:
                _miscEnable = data;
                return Errno.OK;
            case MSR_IA32_DEBUGCTLMSR:
                return SetDebugctl(current, data & ~DebugctlDropped, data);
            case MSR_IA32_CR_PAT when !IsValidPat(data):
                return current.Fail(Errno.EINVAL, MsrMemoryType, index, data);
            case MSR_IA32_CR_PAT:
                _pat = data;
                _save.GPat = data;
                return Errno.OK;
            case MSR_IA32_XSS when data != 0:
                return current.Fail(Errno.EINVAL, MsrReservedBits, index, data, data);
            case MSR_IA32_XSS:
                Xss = data;
                return Errno.OK;
            case MSR_EFER:
                return SetEferMsr(current, data);
            case MSR_STAR:
                _save.Star = data;
                return Errno.OK;
            case MSR_LSTAR:
                _save.Lstar = data;
                return Errno.OK;
            case MSR_CSTAR:
                _save.Cstar = data;
                return Errno.OK;
            case MSR_SYSCALL_MASK:
                _save.Sfmask = data;
                return Errno.OK;
            case MSR_FS_BASE:
                _save[VmcbSegment.FS].@base = data;
                return Errno.OK;
            case MSR_GS_BASE:
                _save[VmcbSegment.GS].@base = data;
                return Errno.OK;
            case MSR_KERNEL_GS_BASE:
                _save.KernelGsBase = data;
                return Errno.OK;
            case MSR_TSC_AUX:
                // A guest with encrypted state has its TSC_AUX swapped by the processor, KVM drops what it is told.
                _tscAux = HasProtectedState ? 0 : (uint)data;
                return Errno.OK;
            case MSR_VM_HSAVE_PA:
                _hsavePa = data & ~0xFFFUL;
                return Errno.OK;
            default:
                if (!TryMtrr(index, out Span<ulong> mtrr))
                {
                    return current.Fail(Errno.EINVAL, MsrUnknown, index, data);
                }
                if (!IsValidMtrr(index, data))
                {
                    return current.Fail(Errno.EINVAL, MsrMemoryType, index, data);
                }
                mtrr[0] = data;
                return Errno.OK;
        }
    }

    // The head and the entries behind it: E2BIG before the entries are read, EFAULT.
    private static Errno CopyInMsrs(KTask current, UserArg arg, out kvm_msr_entry[] entries)
    {
        entries = [];
        Errno errno = arg.CopyIn(current, out kvm_msrs head);
        if (errno != Errno.OK)
        {
            return errno;
        }
        if (head.nmsrs >= MaxIoMsrs)
        {
            return current.Fail(Errno.E2BIG, TooManyMsrs, head.nmsrs);
        }
        entries = new kvm_msr_entry[head.nmsrs];
        for (int i = 0; i < entries.Length && errno == Errno.OK; i++)
        {
            errno = arg.CopyIn(current, out entries[i], MsrHeadSize + ((ulong)i * MsrEntrySize));
        }
        return errno;
    }

    // sev_es_prevent_msr_access: registers that an encrypted guest reads and writes without an intercept. XSS is the exception that migration needs.
    private bool IsProtected(uint index) => GuestStateProtected && !_isTd && index is
        MSR_STAR or MSR_LSTAR or MSR_CSTAR or MSR_SYSCALL_MASK or MSR_FS_BASE or MSR_GS_BASE or MSR_KERNEL_GS_BASE or MSR_TSC_AUX or
        MSR_IA32_SYSENTER_CS or MSR_IA32_SYSENTER_ESP or MSR_IA32_SYSENTER_EIP or
        MSR_EFER or MSR_IA32_CR_PAT or MSR_IA32_SPEC_CTRL or MSR_IA32_DEBUGCTLMSR or
        (>= MSR_IA32_LASTBRANCHFROMIP and <= MSR_IA32_LASTINTTOIP) or MSR_AMD64_SEV_ES_GHCB;

    // set_efer for user space. LMA is the processor's: the bit of the value is ignored.
    private Errno SetEferMsr(KTask current, ulong efer)
    {
        const int autoIbrs = 8;
        bool hasAutoIbrs = ((HostCpuid(0x8000_0021, 0, CpuidRegister.EAX) >> autoIbrs) & 1) != 0;
        ulong refused = efer & ~(EferKnown | (hasAutoIbrs ? EferAutoIbrs : 0));
        if (refused != 0)
        {
            return current.Fail(Errno.EINVAL, MsrReservedBits, MSR_EFER, efer, refused);
        }
        SvmSetEfer((efer & ~EferLma) | (Efer & EferLma));
        return Errno.OK;
    }

    private Errno SetDebugctl(KTask current, ulong kept, ulong data)
    {
        if ((kept & ~DebugctlLbr) != 0)
        {
            return current.Fail(Errno.EINVAL, MsrReservedBits, MSR_IA32_DEBUGCTLMSR, data, kept & ~DebugctlLbr);
        }
        _save.Dbgctl = kept;
        return Errno.OK;
    }

    // From the width of the host's virtual addresses, whatever the guest's is.
    private ulong SignExtend(ulong address)
    {
        int unused = 64 - (int)((HostCpuid(0x8000_0008, 0, CpuidRegister.EAX) >> 8) & 0xFF);
        return (ulong)((long)(address << unused) >> unused);
    }

    // kvm_pat_valid: 0 (UC), 1 (WC), 4 (WT), 5 (WP), 6 (WB), 7 (UC-) in each of the eight bytes.
    private static bool IsValidPat(ulong pat)
    {
        for (int i = 0; i < 64; i += 8)
        {
            if (!IsMemoryType((byte)(pat >> i)) && (byte)(pat >> i) != 7)
            {
                return false;
            }
        }
        return true;
    }

    private static bool IsMemoryType(byte type) => type is 0 or 1 or 4 or 5 or 6;

    // kvm_mtrr_valid
    private bool IsValidMtrr(uint index, ulong data)
    {
        const ulong enableBitsAndType = 0xCFF;
        const ulong baseReserved = 0xF00;
        const ulong maskReserved = 0x7FF;
        if (index == MSR_MTRRdefType)
        {
            return (data & ~enableBitsAndType) == 0 && IsMemoryType((byte)data);
        }
        if (index is >= MTRRphysBase0 and <= MTRRphysMask7)
        {
            bool isBase = (index & 1) == 0;
            return (!isBase || IsMemoryType((byte)data)) && (data & (_reservedGpaBits | (isBase ? baseReserved : maskReserved))) == 0;
        }
        for (int i = 0; i < 64; i += 8)
        {
            if (!IsMemoryType((byte)(data >> i)))
            {
                return false;
            }
        }
        return true;
    }

    // Where an MTRR is kept; false if the index is not one.
    private bool TryMtrr(uint index, out Span<ulong> register)
    {
        register = index switch
        {
            >= MTRRphysBase0 and <= MTRRphysMask7 => _mtrrVariable.AsSpan((int)(index - MTRRphysBase0), 1),
            MTRRfix64K_00000 => _mtrrFixed.AsSpan(0, 1),
            MTRRfix16K_80000 => _mtrrFixed.AsSpan(1, 1),
            MTRRfix16K_A0000 => _mtrrFixed.AsSpan(2, 1),
            >= MTRRfix4K_C0000 and <= MTRRfix4K_F8000 => _mtrrFixed.AsSpan(3 + (int)(index - MTRRfix4K_C0000), 1),
            MSR_MTRRdefType => new Span<ulong>(ref _mtrrDefType),
            _ => default,
        };
        return !register.IsEmpty;
    }
}
