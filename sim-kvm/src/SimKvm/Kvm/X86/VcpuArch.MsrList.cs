namespace SimKvm.Kvm;

// The MSRs that user space saves and restores.
internal sealed partial class VcpuArch
{
    /// <summary>KVM_GET_MSR_INDEX_LIST: the MSRs that KVM_GET_MSRS knows, without those that other ioctls carry (MTRRs have their own part of the list).</summary>
    public static readonly uint[] SavedMsrs =
    [
        MSR_IA32_SYSENTER_CS, MSR_IA32_SYSENTER_ESP, MSR_IA32_SYSENTER_EIP, MSR_STAR, MSR_CSTAR, MSR_KERNEL_GS_BASE, MSR_SYSCALL_MASK, MSR_LSTAR,
        MSR_IA32_TSC, MSR_IA32_CR_PAT, MSR_VM_HSAVE_PA, MSR_IA32_SPEC_CTRL, MSR_TSC_AUX, MSR_IA32_XSS, MSR_IA32_TSC_ADJUST, MSR_IA32_MISC_ENABLE,
        .. Enumerable.Range((int)MTRRphysBase0, (int)(MTRRphysMask7 - MTRRphysBase0 + 1)).Select(index => (uint)index),
        MTRRfix64K_00000, MTRRfix16K_80000, MTRRfix16K_A0000,
        .. Enumerable.Range((int)MTRRfix4K_C0000, (int)(MTRRfix4K_F8000 - MTRRfix4K_C0000 + 1)).Select(index => (uint)index),
        MSR_MTRRdefType,
    ];
}
