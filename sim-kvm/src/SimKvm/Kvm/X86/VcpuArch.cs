using SimKvm.Abi;
using SimMachine.Amd;
using SimMachine.Stepping;

namespace SimKvm.Kvm;

/// <summary>
/// Register state of a vCPU (struct kvm_vcpu_arch with the save area of its VMCB), as far as a VMSA or a launch flow needs it. One file per family of
/// ioctls: general and system registers, model-specific registers, floating point and extended state, CPUID. vcpu->mutex guards it.
/// </summary>
/// <remarks>
/// Each ioctl has two overloads of one name: with the structure (checks and effect), and with a <see cref="Userspace.UserArg"/> (copy in, the former,
/// copy out), which is what the ioctl table calls.
/// <para>Invariant: no call that is refused changes anything, except KVM_SET_MSRS, which keeps what it did before the refused entry, and
/// KVM_SET_SREGS on encrypted state of a VM without "protected state", where only the APIC base is taken.</para>
/// </remarks>
internal sealed partial class VcpuArch
{
    public static readonly Rule StateProtected = new(
        "kvm.x86.state-protected", "the vCPU's registers are encrypted, user space can neither read nor write them",
        "kvm_arch_vcpu_ioctl_get_regs and its siblings: has_protected_state && guest_state_protected",
        "set registers before the vCPU is measured (SNP_LAUNCH_FINISH, LAUNCH_UPDATE_VMSA)");

    private const ulong RdxWithoutCpuid = 0x600;

    private readonly PlatformCpuid _host;
    private readonly VmcbSave _save = new();

    /// <summary>kvm_arch_vcpu_create and kvm_vcpu_reset of kvm_amd: a processor that comes out of RESET, with an empty CPUID.</summary>
    /// <param name="hasProtectedState">kvm->arch.has_protected_state: the VM type is one whose vCPUs have encrypted state.</param>
    /// <param name="id">The vCPU's id; 0 is the boot processor.</param>
    /// <param name="host">CPUID of the machine, which bounds what a guest can have.</param>
    public VcpuArch(bool hasProtectedState, ulong id, PlatformCpuid host)
    {
        HasProtectedState = hasProtectedState;
        IsSevGuest = hasProtectedState;
        _host = host;
        _supportedXcr0 = _host.TryFind(0xD, 0, out CpuidEntry xsave) ? ((ulong)xsave.Edx << 32) | xsave.Eax : FeatureFpSse;

        ApicBase = ApicDefaultPhysBase | ApicBaseEnable | (id == 0 ? ApicBaseBsp : 0);
        ResetXsave();
        AfterSetCpuid();

        _regs = new kvm_regs { rip = 0xFFF0, rflags = RflagsFixed, rdx = RdxWithoutCpuid };
        SvmSetCr0(Cr0Nw | Cr0Cd | Cr0Et);
        SvmSetCr4(0);
        SvmSetEfer(0);
        SetDr7(Dr7Fixed);
        _save.GPat = _pat;
    }

    /// <summary>kvm->arch.has_protected_state.</summary>
    public bool HasProtectedState { get; }

    /// <summary>vcpu->arch.guest_state_protected: the vendor sets it when the VMSA has been encrypted.</summary>
    public bool GuestStateProtected { get; set; }

    /// <summary>
    /// fpstate_is_confidential: floating-point state is out of reach too. SEV-ES LAUNCH_UPDATE_VMSA sets it, SNP_LAUNCH_FINISH does not, so the FPU
    /// ioctls of an SNP vCPU go on working on a copy that nobody uses any more.
    /// </summary>
    public bool FpstateConfidential { get; set; }

    /// <summary>sev_guest(kvm): CR3 may have the C-bit, from the next KVM_SET_CPUID2 on. Starts as <see cref="HasProtectedState"/>.</summary>
    public bool IsSevGuest { get; set; }

    /// <summary>The VMCB side, which a VMSA copies.</summary>
    public VmcbSave Save => _save;

    // The one check that most of the ioctls begin with.
    private Errno CheckAccess(KTask current) =>
        HasProtectedState && GuestStateProtected ? current.Fail(Errno.EINVAL, StateProtected) : Errno.OK;
}
