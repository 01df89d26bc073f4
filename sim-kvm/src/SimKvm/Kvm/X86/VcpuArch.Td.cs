using SimKvm.Abi;
using SimMachine.Stepping;

namespace SimKvm.Kvm;

// A vCPU of a TD: its registers are the TDX module's, KVM keeps the few that it emulates (tdx_vcpu_create, tdx_has_emulated_msr).
internal sealed partial class VcpuArch
{
    public static readonly Rule MsrNotEmulated = new(
        "kvm.x86.msrs.td", "the register of a TD is the TDX module's: KVM neither knows nor changes it", "tdx_has_emulated_msr, tdx_get_msr, tdx_set_msr", "leave it out", "index");

    private const uint MSR_IA32_FEAT_CTL = 0x3A;

    private bool _isTd;

    /// <summary>tdx_vcpu_create: nothing of the vCPU is user space's to see.</summary>
    public void BecomeTd()
    {
        _isTd = true;
        IsSevGuest = false;
        GuestStateProtected = true;
        FpstateConfidential = true;
    }

    /// <summary>kvm_apic_set_base to the one mode that a TD has. EINVAL without x2APIC in the vCPU's CPUID.</summary>
    public Errno EnterX2apicMode(KTask current, bool isBoot) =>
        SetApicBase(current, ApicDefaultPhysBase | ApicBaseEnable | ApicBaseX2apic | (isBoot ? ApicBaseBsp : 0));

    /// <summary>kvm_vcpu_is_legal_gpa: the address is within the width that the vCPU's CPUID says.</summary>
    public bool IsLegalGpa(ulong gpa) => (gpa & _reservedGpaBits) == 0;

    /// <summary>kvm_cpuid: the entry of a leaf, zeros where there is none.</summary>
    public kvm_cpuid_entry2 FindCpuid(uint function, uint index) => TryFind(_cpuid, function, index, out kvm_cpuid_entry2 entry) ? entry : default;

    // What KVM emulates for a TD. Some of it cannot be written: APICBASE, EFER and FEAT_CTL are as the module has them.
    private Errno CheckTdMsr(KTask current, uint index, bool write)
    {
        if (!_isTd)
        {
            return Errno.OK;
        }
        bool emulated = index is MSR_IA32_APICBASE or MSR_EFER or MSR_IA32_FEAT_CTL
            or MSR_IA32_CR_PAT or MSR_MTRRcap or MSR_MTRRdefType or MSR_IA32_MISC_ENABLE
            or (>= MTRRphysBase0 and <= MTRRphysMask7) or MTRRfix64K_00000 or MTRRfix16K_80000 or MTRRfix16K_A0000 or (>= MTRRfix4K_C0000 and <= MTRRfix4K_F8000);
        bool readOnly = index is MSR_IA32_APICBASE or MSR_EFER or MSR_IA32_FEAT_CTL;
        return emulated && !(write && readOnly) ? Errno.OK : current.Fail(Errno.EINVAL, MsrNotEmulated, index);
    }
}
