using System.Numerics;
using System.Runtime.CompilerServices;
using SimKvm.Abi;
using SimKvm.Userspace;
using SimMachine.Stepping;

namespace SimKvm.Kvm;

// General, system and debug registers: KVM_{GET,SET}_{REGS,SREGS,DEBUGREGS}. Order of checks and effects as in __set_sregs_common and its neighbours.
internal sealed partial class VcpuArch
{
    public static readonly Rule LongModeWithoutPae = new(
        "kvm.x86.set-sregs.long-mode-without-pae", "with EFER.LME and CR0.PG the processor is in long mode, which needs CR4.PAE and EFER.LMA",
        "kvm_is_valid_sregs", "set CR4.PAE (0x20) and EFER.LMA (0x400), or clear EFER.LME or CR0.PG", "cr0", "cr4", "efer");

    public static readonly Rule Cr3Illegal = new(
        "kvm.x86.set-sregs.cr3-illegal", "CR3 has bits beyond the guest's physical address width",
        "kvm_is_valid_sregs, kvm_vcpu_is_legal_cr3", "set CPUID 0x80000008 EAX first: without it the width is 36 bits", "cr3", "reserved_bits");

    public static readonly Rule LmaOutsideLongMode = new(
        "kvm.x86.set-sregs.lma-outside-long-mode", "EFER.LMA or a 64-bit code segment without EFER.LME and CR0.PG",
        "kvm_is_valid_sregs", "set EFER.LME and CR0.PG, or clear EFER.LMA and CS.L", "cr0", "efer", "cs_l#");

    public static readonly Rule Cr4Reserved = new(
        "kvm.x86.set-sregs.cr4-reserved", "CR4 has bits that the processor does not have or that the guest's CPUID does not announce",
        "kvm_is_valid_cr4, cr4_guest_rsvd_bits", "set CPUID with the feature before the system registers", "cr4", "refused_bits");

    public static readonly Rule Cr0UpperBits = new(
        "kvm.x86.set-sregs.cr0-upper-bits", "bits 63:32 of CR0 must be 0", "kvm_is_valid_cr0", "clear them", "cr0");

    public static readonly Rule Cr0NotWriteThrough = new(
        "kvm.x86.set-sregs.cr0-nw-without-cd", "CR0.NW without CR0.CD is not a cache mode", "kvm_is_valid_cr0", "set CD too, or clear NW", "cr0");

    public static readonly Rule Cr0PagingWithoutProtection = new(
        "kvm.x86.set-sregs.cr0-pg-without-pe", "CR0.PG without CR0.PE: there is no paging in real mode", "kvm_is_valid_cr0", "set PE too", "cr0");

    public static readonly Rule ApicBaseReserved = new(
        "kvm.x86.apic-base.reserved",
        "the APIC base has reserved bits, or bits beyond the guest's physical address width, or x2APIC that CPUID does not announce",
        "kvm_apic_set_base", "use 0xfee00800 (0xfee00900 for the boot processor)", "apic_base", "refused_bits");

    public static readonly Rule ApicBaseMode = new(
        "kvm.x86.apic-base.mode", "x2APIC (bit 10) without the APIC enabled (bit 11) is not a mode", "kvm_apic_set_base", "set bit 11 too",
        "apic_base");

    public static readonly Rule DebugregsFlags = new(
        "kvm.x86.set-debugregs.flags", "flags are reserved", "kvm_vcpu_ioctl_x86_set_debugregs", "set flags to 0", "flags");

    public static readonly Rule Dr6UpperBits = new(
        "kvm.x86.set-debugregs.dr6-upper-bits", "bits 63:32 of DR6 must be 0", "kvm_dr6_valid", "clear them", "dr6");

    public static readonly Rule Dr7UpperBits = new(
        "kvm.x86.set-debugregs.dr7-upper-bits", "bits 63:32 of DR7 must be 0", "kvm_dr7_valid", "clear them", "dr7");

    public const ulong Dr6ActiveLow = 0xFFFF_0FF0;
    public const ulong Dr7Fixed = 0x400;

    private const ulong RflagsFixed = 2;

    private const ulong Cr0Pe = 1UL << 0;
    private const ulong Cr0Et = 1UL << 4;
    private const ulong Cr0Nw = 1UL << 29;
    private const ulong Cr0Cd = 1UL << 30;
    private const ulong Cr0Pg = 1UL << 31;

    private const ulong Cr4Pae = 1UL << 5;
    private const ulong Cr4Mce = 1UL << 6;
    private const ulong Cr4Umip = 1UL << 11;
    private const ulong Cr4La57 = 1UL << 12;
    private const ulong Cr4Fsgsbase = 1UL << 16;
    private const ulong Cr4Pcide = 1UL << 17;
    private const ulong Cr4Osxsave = 1UL << 18;
    private const ulong Cr4Smep = 1UL << 20;
    private const ulong Cr4Smap = 1UL << 21;
    private const ulong Cr4Pke = 1UL << 22;

    // VME to PCE, OSFXSR, OSXMMEXCPT: in every processor that has SVM, whatever CPUID says.
    private const ulong Cr4Always = 0x7FF;

    private const ulong EferLme = 1UL << 8;
    private const ulong EferLma = 1UL << 10;

    private const ulong Cr8Bits = 0xF;

    private const ulong ApicDefaultPhysBase = 0xFEE0_0000;
    private const ulong ApicBaseBsp = 1UL << 8;
    private const ulong ApicBaseX2apic = 1UL << 10;
    private const ulong ApicBaseEnable = 1UL << 11;
    private const ulong ApicBaseReservedBits = 0x2FF;

    private kvm_regs _regs;
    private InlineArray4<ulong> _db;
    private int? _injectedInterrupt;
    private ulong _cr4Reserved;
    private ulong _reservedGpaBits;
    private ulong _reservedApicBits;

    /// <summary>General registers, RIP and RFLAGS.</summary>
    public ref readonly kvm_regs Regs => ref _regs;

    /// <summary>CR0 as user space set it; the VMCB's has CD and NW cleared.</summary>
    public ulong Cr0 { get; private set; }

    public ulong Cr2 { get; private set; }

    public ulong Cr3 { get; private set; }

    public ulong Cr4 { get; private set; }

    /// <summary>The task priority, 0 to 15.</summary>
    public ulong Cr8 { get; private set; }

    public ulong Efer { get; private set; }

    public ulong ApicBase { get; private set; }

    public ulong Dr6 { get; private set; } = Dr6ActiveLow;

    public ulong Dr7 { get; private set; }

    /// <summary>KVM_GET_REGS. EINVAL when the state is encrypted.</summary>
    public Errno GetRegs(KTask current, out kvm_regs regs)
    {
        regs = default;
        Errno errno = CheckAccess(current);
        if (errno == Errno.OK)
        {
            regs = _regs;
        }
        return errno;
    }

    public SyscallResult GetRegs(KTask current, UserArg arg)
    {
        Errno errno = GetRegs(current, out kvm_regs regs);
        return errno == Errno.OK ? arg.CopyOut(current, regs) : errno;
    }

    /// <summary>KVM_SET_REGS. RFLAGS bit 1 is always set; nothing else is checked. EINVAL when the state is encrypted.</summary>
    public Errno SetRegs(KTask current, in kvm_regs regs)
    {
        Errno errno = CheckAccess(current);
        if (errno == Errno.OK)
        {
            _regs = regs;
            _regs.rflags |= RflagsFixed;
        }
        return errno;
    }

    public SyscallResult SetRegs(KTask current, UserArg arg)
    {
        Errno errno = arg.CopyIn(current, out kvm_regs regs);
        return errno == Errno.OK ? SetRegs(current, regs) : errno;
    }

    /// <summary>
    /// KVM_GET_SREGS. EINVAL when the state is encrypted (of a VM type that has protected state; else only what KVM still knows is given).
    /// </summary>
    public Errno GetSregs(KTask current, out kvm_sregs sregs)
    {
        sregs = default;
        Errno errno = CheckAccess(current);
        if (errno != Errno.OK)
        {
            return errno;
        }
        if (!GuestStateProtected)
        {
            sregs.cs = _save.GetSegment(VmcbSegment.CS);
            sregs.ds = _save.GetSegment(VmcbSegment.DS);
            sregs.es = _save.GetSegment(VmcbSegment.ES);
            sregs.fs = _save.GetSegment(VmcbSegment.FS);
            sregs.gs = _save.GetSegment(VmcbSegment.GS);
            sregs.ss = _save.GetSegment(VmcbSegment.SS);
            sregs.tr = _save.GetSegment(VmcbSegment.TR);
            sregs.ldt = _save.GetSegment(VmcbSegment.LDTR);
            sregs.idt = _save.GetTable(VmcbSegment.IDTR);
            sregs.gdt = _save.GetTable(VmcbSegment.GDTR);
            sregs.cr2 = Cr2;
            sregs.cr3 = Cr3;
            if (_injectedInterrupt is { } vector)
            {
                sregs.interrupt_bitmap[vector >> 6] = 1UL << (vector & 63);
            }
        }
        sregs.cr0 = Cr0;
        sregs.cr4 = Cr4;
        sregs.cr8 = Cr8;
        sregs.efer = Efer;
        sregs.apic_base = ApicBase;
        return Errno.OK;
    }

    public SyscallResult GetSregs(KTask current, UserArg arg)
    {
        Errno errno = GetSregs(current, out kvm_sregs sregs);
        return errno == Errno.OK ? arg.CopyOut(current, sregs) : errno;
    }

    /// <summary>KVM_SET_SREGS. EINVAL for a combination that no processor can be in, or when the state is encrypted.</summary>
    public Errno SetSregs(KTask current, in kvm_sregs sregs)
    {
        Errno errno = CheckAccess(current);
        if (errno == Errno.OK)
        {
            errno = CheckSregs(current, sregs);
        }
        if (errno == Errno.OK)
        {
            errno = SetApicBase(current, sregs.apic_base);
        }
        if (errno != Errno.OK || GuestStateProtected)
        {
            return errno;
        }

        _save.SetTable(VmcbSegment.IDTR, sregs.idt);
        _save.SetTable(VmcbSegment.GDTR, sregs.gdt);
        Cr2 = sregs.cr2;
        Cr3 = sregs.cr3;
        _save.Cr3 = sregs.cr3;
        // kvm_set_cr8 refuses reserved bits, and nobody looks at its answer.
        if ((sregs.cr8 & ~Cr8Bits) == 0)
        {
            Cr8 = sregs.cr8;
        }
        SvmSetEfer(sregs.efer);
        SvmSetCr0(sregs.cr0);
        SvmSetCr4(sregs.cr4);

        _save.SetSegment(VmcbSegment.CS, sregs.cs);
        _save.SetSegment(VmcbSegment.DS, sregs.ds);
        _save.SetSegment(VmcbSegment.ES, sregs.es);
        _save.SetSegment(VmcbSegment.FS, sregs.fs);
        _save.SetSegment(VmcbSegment.GS, sregs.gs);
        _save.SetSegment(VmcbSegment.SS, sregs.ss);
        _save.SetSegment(VmcbSegment.TR, sregs.tr);
        _save.SetSegment(VmcbSegment.LDTR, sregs.ldt);

        // An empty bitmap leaves the interrupt that waits.
        for (int word = 0; word < 4; word++)
        {
            if (sregs.interrupt_bitmap[word] != 0)
            {
                _injectedInterrupt = (word << 6) + BitOperations.TrailingZeroCount(sregs.interrupt_bitmap[word]);
                break;
            }
        }
        return Errno.OK;
    }

    public SyscallResult SetSregs(KTask current, UserArg arg)
    {
        Errno errno = arg.CopyIn(current, out kvm_sregs sregs);
        return errno == Errno.OK ? SetSregs(current, sregs) : errno;
    }

    /// <summary>KVM_GET_DEBUGREGS. EINVAL when the state is encrypted.</summary>
    public Errno GetDebugregs(KTask current, out kvm_debugregs debugregs)
    {
        debugregs = default;
        Errno errno = CheckAccess(current);
        if (errno == Errno.OK)
        {
            debugregs.db = _db;
            debugregs.dr6 = Dr6;
            debugregs.dr7 = Dr7;
        }
        return errno;
    }

    public SyscallResult GetDebugregs(KTask current, UserArg arg)
    {
        Errno errno = GetDebugregs(current, out kvm_debugregs debugregs);
        return errno == Errno.OK ? arg.CopyOut(current, debugregs) : errno;
    }

    /// <summary>KVM_SET_DEBUGREGS. The values are kept as they are: fixed bits are not forced. The reserved words are not looked at.</summary>
    public Errno SetDebugregs(KTask current, in kvm_debugregs debugregs)
    {
        Errno errno = CheckAccess(current);
        if (errno != Errno.OK)
        {
            return errno;
        }
        if (debugregs.flags != 0)
        {
            return current.Fail(Errno.EINVAL, DebugregsFlags, debugregs.flags);
        }
        if (debugregs.dr6 >> 32 != 0)
        {
            return current.Fail(Errno.EINVAL, Dr6UpperBits, debugregs.dr6);
        }
        if (debugregs.dr7 >> 32 != 0)
        {
            return current.Fail(Errno.EINVAL, Dr7UpperBits, debugregs.dr7);
        }
        _db = debugregs.db;
        Dr6 = debugregs.dr6;
        SetDr7(debugregs.dr7);
        return Errno.OK;
    }

    public SyscallResult SetDebugregs(KTask current, UserArg arg)
    {
        Errno errno = arg.CopyIn(current, out kvm_debugregs debugregs);
        return errno == Errno.OK ? SetDebugregs(current, debugregs) : errno;
    }

    // kvm_is_valid_sregs
    private Errno CheckSregs(KTask current, in kvm_sregs sregs)
    {
        if ((sregs.efer & EferLme) != 0 && (sregs.cr0 & Cr0Pg) != 0)
        {
            if ((sregs.cr4 & Cr4Pae) == 0 || (sregs.efer & EferLma) == 0)
            {
                return current.Fail(Errno.EINVAL, LongModeWithoutPae, sregs.cr0, sregs.cr4, sregs.efer);
            }
            if ((sregs.cr3 & _reservedGpaBits) != 0)
            {
                return current.Fail(Errno.EINVAL, Cr3Illegal, sregs.cr3, _reservedGpaBits);
            }
        }
        else if ((sregs.efer & EferLma) != 0 || sregs.cs.l != 0)
        {
            return current.Fail(Errno.EINVAL, LmaOutsideLongMode, sregs.cr0, sregs.efer, sregs.cs.l);
        }
        if ((sregs.cr4 & _cr4Reserved) != 0)
        {
            return current.Fail(Errno.EINVAL, Cr4Reserved, sregs.cr4, sregs.cr4 & _cr4Reserved);
        }
        if (sregs.cr0 >> 32 != 0)
        {
            return current.Fail(Errno.EINVAL, Cr0UpperBits, sregs.cr0);
        }
        if ((sregs.cr0 & Cr0Nw) != 0 && (sregs.cr0 & Cr0Cd) == 0)
        {
            return current.Fail(Errno.EINVAL, Cr0NotWriteThrough, sregs.cr0);
        }
        return (sregs.cr0 & Cr0Pg) != 0 && (sregs.cr0 & Cr0Pe) == 0
            ? current.Fail(Errno.EINVAL, Cr0PagingWithoutProtection, sregs.cr0)
            : Errno.OK;
    }

    // kvm_apic_set_base, on behalf of user space: no rule about the way from one mode to another. The value it has already is always fine.
    private Errno SetApicBase(KTask current, ulong value)
    {
        if (value == ApicBase)
        {
            return Errno.OK;
        }
        if ((value & _reservedApicBits) != 0)
        {
            return current.Fail(Errno.EINVAL, ApicBaseReserved, value, value & _reservedApicBits);
        }
        if ((value & (ApicBaseX2apic | ApicBaseEnable)) == ApicBaseX2apic)
        {
            return current.Fail(Errno.EINVAL, ApicBaseMode, value);
        }
        ApicBase = value;
        return Errno.OK;
    }

    private void SvmSetEfer(ulong efer)
    {
        Efer = efer;
        _save.Efer = efer | VmcbSave.EferSvme;
    }

    // svm_set_cr0 with nested paging. CD and NW are dropped from the VMCB because firmware that never re-enables caches would crawl
    // (KVM_X86_QUIRK_CD_NW_CLEARED).
    private void SvmSetCr0(ulong cr0)
    {
        if ((Efer & EferLme) != 0)
        {
            bool wasPaging = (Cr0 & Cr0Pg) != 0;
            bool paging = (cr0 & Cr0Pg) != 0;
            if (!wasPaging && paging)
            {
                Efer |= EferLma;
                _save.Efer |= EferLma | EferLme;
            }
            if (wasPaging && !paging)
            {
                Efer &= ~EferLma;
                _save.Efer &= ~(EferLma | EferLme);
            }
        }
        Cr0 = cr0;
        _save.Cr0 = cr0 & ~(Cr0Cd | Cr0Nw);
    }

    private void SvmSetCr4(ulong cr4)
    {
        Cr4 = cr4;
        _save.Cr4 = cr4 | Cr4Mce;
    }

    private void SetDr7(ulong dr7)
    {
        Dr7 = dr7;
        _save.Dr7 = dr7;
    }
}
