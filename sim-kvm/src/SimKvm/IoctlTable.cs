using System.Runtime.InteropServices;
using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Kvm.Historical;
using SimKvm.Profiles;
using SimKvm.Userspace;
using SimMachine;
using SimMachine.Stepping;

namespace SimKvm;

internal delegate SyscallResult IoctlHandler(KTask current, KernelFile file, UserArg arg);

/// <summary>A row of the ioctl table.</summary>
/// <param name="Name">The kernel's name.</param>
/// <param name="Request">The encoded number: direction, size, type, number.</param>
/// <param name="Fd">The kind of fd it is for.</param>
/// <param name="Argument">The C type that the argument points to; empty where the argument is a number.</param>
/// <param name="Exists">Whether a profile has it.</param>
public sealed record IoctlRow(string Name, uint Request, FdKind Fd, string Argument, Func<KernelProfile, bool> Exists)
{
    /// <summary>An arm64 host answers EINVAL, as it does for every number that it does not know: it has no such ioctl, or has it and is not modelled that far.</summary>
    public bool X86Only { get; init; } = true;

    internal IoctlHandler Handler { get; init; } = (_, _, _) => Errno.ENOTTY;

    /// <summary>Bytes of the argument, as the number encodes them. Variable parts (MSR and CPUID entries) come behind.</summary>
    public int ArgumentSize => (int)((Request >> 16) & 0x3fff);
}

/// <summary>
/// Every ioctl of the simulated kernel, once: number, name, argument, fd kind, profile gate, handler. Dispatch, unknown numbers and the enter and exit records
/// live here; typed RPCs and raw ioctls both come through.
/// </summary>
public static class IoctlTable
{
    private static readonly StepLabel EnterStep = new("ioctl enter");
    private static readonly StepLabel ExitStep = new("ioctl exit");

    public static readonly Rule Unknown = new(
        "ioctl.unknown", "the fd does not know this ioctl number (size and direction are part of it)", "kvm_dev_ioctl, kvm_vm_ioctl, kvm_vcpu_ioctl",
        "check the number, the kind of fd and the profile; not-modelled.md lists what is left out", "request", "fd_kind#");

    public static readonly Rule NotOnArm = new(
        "ioctl.not-on-arm", "an arm64 host does not have the ioctl, or it is not modelled there", "kvm_arch_dev_ioctl, kvm_arch_vm_ioctl, kvm_arch_vcpu_ioctl, arm64",
        "on machine platform ArmPkvm use plain slots and KVM_RUN", "request", "fd_kind#");

    // What both architectures have.
    private static readonly uint[] OnArmToo =
    [
        KvmIoctl.KVM_GET_API_VERSION, KvmIoctl.KVM_CREATE_VM, KvmIoctl.KVM_CHECK_EXTENSION, KvmIoctl.KVM_GET_VCPU_MMAP_SIZE, KvmIoctl.KVM_CREATE_VCPU,
        KvmIoctl.KVM_SET_USER_MEMORY_REGION, KvmIoctl.KVM_SET_USER_MEMORY_REGION2, KvmIoctl.KVM_ENABLE_CAP, KvmIoctl.KVM_RUN,
    ];

    /// <summary>All rows, in the order of fd kind and number.</summary>
    public static IReadOnlyList<IoctlRow> All { get; } =
    [
        Row(nameof(KvmIoctl.KVM_GET_API_VERSION), KvmIoctl.KVM_GET_API_VERSION, FdKind.Kvm, "", (current, _, arg) => KvmDevice.GetApiVersion(current, arg.Value)),
        Row(nameof(KvmIoctl.KVM_CREATE_VM), KvmIoctl.KVM_CREATE_VM, FdKind.Kvm, "", (current, file, arg) => ((KvmDevice)file).CreateVm(current, arg.Value)),
        Row(nameof(KvmIoctl.KVM_CHECK_EXTENSION), KvmIoctl.KVM_CHECK_EXTENSION, FdKind.Kvm, "", (current, _, arg) => Capabilities.Check(current.Host, null, arg.Value)),
        Row(nameof(KvmIoctl.KVM_GET_VCPU_MMAP_SIZE), KvmIoctl.KVM_GET_VCPU_MMAP_SIZE, FdKind.Kvm, "", (current, _, arg) => KvmDevice.GetVcpuMmapSize(current, arg.Value)),
        Row(nameof(KvmIoctl.KVM_GET_SUPPORTED_CPUID), KvmIoctl.KVM_GET_SUPPORTED_CPUID, FdKind.Kvm, "struct kvm_cpuid2", (current, file, arg) => ((KvmDevice)file).GetSupportedCpuid(current, arg)),
        Row(nameof(KvmIoctl.KVM_GET_MSR_INDEX_LIST), KvmIoctl.KVM_GET_MSR_INDEX_LIST, FdKind.Kvm, "struct kvm_msr_list", (current, _, arg) => KvmDevice.GetMsrIndexList(current, arg)),
        Row(nameof(KvmIoctl.KVM_GET_DEVICE_ATTR), KvmIoctl.KVM_GET_DEVICE_ATTR, FdKind.Kvm, "struct kvm_device_attr", (current, file, arg) => ((KvmDevice)file).GetDeviceAttr(current, arg)),
        Row(nameof(KvmIoctl.KVM_HAS_DEVICE_ATTR), KvmIoctl.KVM_HAS_DEVICE_ATTR, FdKind.Kvm, "struct kvm_device_attr", (current, file, arg) => ((KvmDevice)file).HasDeviceAttr(current, arg)),

        Row(nameof(KvmIoctl.KVM_CHECK_EXTENSION), KvmIoctl.KVM_CHECK_EXTENSION, FdKind.Vm, "", (current, file, arg) => Capabilities.Check(current.Host, ((VmFile)file).Vm, arg.Value)),
        Row(nameof(KvmIoctl.KVM_CREATE_VCPU), KvmIoctl.KVM_CREATE_VCPU, FdKind.Vm, "", (current, file, arg) => ((VmFile)file).Vm.CreateVcpu(current, arg.Value)),
        Row(nameof(KvmIoctl.KVM_SET_USER_MEMORY_REGION), KvmIoctl.KVM_SET_USER_MEMORY_REGION, FdKind.Vm, "struct kvm_userspace_memory_region", (current, file, arg) => ((VmFile)file).Vm.Memslots.SetRegion(current, arg)),
        Row(nameof(KvmIoctl.KVM_SET_USER_MEMORY_REGION2), KvmIoctl.KVM_SET_USER_MEMORY_REGION2, FdKind.Vm, "struct kvm_userspace_memory_region2", (current, file, arg) => ((VmFile)file).Vm.Memslots.SetRegion2(current, arg), HasGuestMemfd),
        Row(nameof(KvmIoctl.KVM_GET_DIRTY_LOG), KvmIoctl.KVM_GET_DIRTY_LOG, FdKind.Vm, "struct kvm_dirty_log", (current, file, arg) => DirtyLog.Get(current, ((VmFile)file).Vm, arg)),
        Row(nameof(KvmIoctl.KVM_SET_TSS_ADDR), KvmIoctl.KVM_SET_TSS_ADDR, FdKind.Vm, "", (current, _, arg) => Vm.SetTssAddr(current, arg.Value)),
        Row(nameof(KvmIoctl.KVM_SET_IDENTITY_MAP_ADDR), KvmIoctl.KVM_SET_IDENTITY_MAP_ADDR, FdKind.Vm, "__u64", (current, file, arg) => ((VmFile)file).Vm.SetIdentityMapAddr(current, arg)),
        Row(nameof(KvmIoctl.KVM_CLEAR_DIRTY_LOG), KvmIoctl.KVM_CLEAR_DIRTY_LOG, FdKind.Vm, "struct kvm_clear_dirty_log", (current, file, arg) => DirtyLog.Clear(current, ((VmFile)file).Vm, arg)),
        Row(nameof(KvmIoctl.KVM_ENABLE_CAP), KvmIoctl.KVM_ENABLE_CAP, FdKind.Vm, "struct kvm_enable_cap", (current, file, arg) => ((VmFile)file).Vm.EnableCap(current, arg)),
        Row(nameof(KvmIoctl.KVM_CREATE_IRQCHIP), KvmIoctl.KVM_CREATE_IRQCHIP, FdKind.Vm, "", (current, file, _) => ((VmFile)file).Vm.CreateIrqchip(current)),
        Row(nameof(KvmIoctl.KVM_SET_TSC_KHZ), KvmIoctl.KVM_SET_TSC_KHZ, FdKind.Vm, "", (current, file, arg) => ((VmFile)file).Vm.SetTscKhz(current, arg.Value)),
        Row(nameof(KvmIoctl.KVM_GET_TSC_KHZ), KvmIoctl.KVM_GET_TSC_KHZ, FdKind.Vm, "", (_, file, _) => SyscallResult.Of(((VmFile)file).Vm.DefaultTscKhz)),
        Row(nameof(KvmIoctl.KVM_MEMORY_ENCRYPT_OP), KvmIoctl.KVM_MEMORY_ENCRYPT_OP, FdKind.Vm, "struct kvm_sev_cmd", (current, file, arg) => ((VmFile)file).Vm.Backend.MemEncIoctl(current, arg)),
        Row(nameof(KvmIoctl.KVM_MEMORY_ENCRYPT_REG_REGION), KvmIoctl.KVM_MEMORY_ENCRYPT_REG_REGION, FdKind.Vm, "struct kvm_enc_region", (current, file, arg) => PrivatePages.EncryptRegion(current, ((VmFile)file).Vm, arg, isPrivate: true)),
        Row(nameof(KvmIoctl.KVM_MEMORY_ENCRYPT_UNREG_REGION), KvmIoctl.KVM_MEMORY_ENCRYPT_UNREG_REGION, FdKind.Vm, "struct kvm_enc_region", (current, file, arg) => PrivatePages.EncryptRegion(current, ((VmFile)file).Vm, arg, isPrivate: false)),
        Row(nameof(KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES), KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES, FdKind.Vm, "struct kvm_memory_attributes", (current, file, arg) => ((VmFile)file).Vm.Attributes.Set(current, arg), profile => profile.PrivateMemory == PrivateMemoryDesign.GuestMemfd),
        Row(nameof(KvmIoctl.KVM_CREATE_GUEST_MEMFD), KvmIoctl.KVM_CREATE_GUEST_MEMFD, FdKind.Vm, "struct kvm_create_guest_memfd", (current, file, arg) => GuestMemfd.Create(current, ((VmFile)file).Vm, arg), HasGuestMemfd),

        Row("SEV_ISSUE_CMD", SevIoctl.SEV_ISSUE_CMD, FdKind.Sev, "struct sev_issue_cmd", (current, file, arg) => ((Vendors.Amd.SevDevice)file).IssueCmd(current, arg)),

        // Before guest_memfd was merged.
        Row(
            nameof(KvmIoctl.KVM_GET_SUPPORTED_MEMORY_ATTRIBUTES), KvmIoctl.KVM_GET_SUPPORTED_MEMORY_ATTRIBUTES, FdKind.Vm, "__u64",
            (current, file, arg) => arg.CopyOut(current, ((VmFile)file).Vm.Attributes.Supported), profile => profile.PrivateMemory is PrivateMemoryDesign.RestrictedMem or PrivateMemoryDesign.GuestMemfdRfc),
        Row("KVM_SET_MEMORY_ATTRIBUTES", KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES_V10, FdKind.Vm, "struct kvm_memory_attributes", (current, file, arg) => ((VmFile)file).Vm.Attributes.SetV10(current, arg), profile => profile.PrivateMemory == PrivateMemoryDesign.RestrictedMem),
        Row("KVM_SET_MEMORY_ATTRIBUTES", KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES_RFC, FdKind.Vm, "struct kvm_memory_attributes", (current, file, arg) => ((VmFile)file).Vm.Attributes.Set(current, arg), profile => profile.PrivateMemory == PrivateMemoryDesign.GuestMemfdRfc),

        Row(
            nameof(KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES2), KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES2, FdKind.GuestMemfd, "struct kvm_memory_attributes2",
            (current, file, arg) => ((GuestMemfd)file).SetAttributes(current, arg), profile => profile.InPlaceConversion != InPlaceConversion.None),

        RunRow(nameof(KvmIoctl.KVM_RUN), KvmIoctl.KVM_RUN, "", PreFaultDesign.None, (current, vcpu, arg) => vcpu.RunGuest(current, arg)),
        RunRow(nameof(KvmIoctl.KVM_PRE_FAULT_MEMORY), KvmIoctl.KVM_PRE_FAULT_MEMORY, "struct kvm_pre_fault_memory", PreFaultDesign.PreFaultMemory, (current, vcpu, arg) => vcpu.PreFaultMemory(current, arg)),
        RunRow("KVM_MAP_MEMORY", KvmIoctl.KVM_MAP_MEMORY_V1, "struct kvm_memory_mapping", PreFaultDesign.MapMemoryV1, (current, vcpu, arg) => vcpu.MapMemoryV1(current, arg)),
        RunRow("KVM_MAP_MEMORY", KvmIoctl.KVM_MAP_MEMORY_V2, "struct kvm_memory_mapping", PreFaultDesign.MapMemoryV2, (current, vcpu, arg) => vcpu.MapMemoryV2(current, arg)),
        Row(
            nameof(KvmIoctl.KVM_MEMORY_ENCRYPT_OP), KvmIoctl.KVM_MEMORY_ENCRYPT_OP, FdKind.Vcpu, "struct kvm_tdx_cmd",
            (current, file, arg) => MemEncOnVcpu(current, ((VcpuFile)file).Vcpu, arg), profile => profile.VcpuMemoryEncryptOp),
        Row(nameof(KvmIoctl.KVM_NMI), KvmIoctl.KVM_NMI, FdKind.Vcpu, "", (current, file, _) => ((VcpuFile)file).Vcpu.QueueNmi(current)),
        Row(nameof(KvmIoctl.KVM_SET_TSC_KHZ), KvmIoctl.KVM_SET_TSC_KHZ, FdKind.Vcpu, "", (current, file, arg) => ((VcpuFile)file).Vcpu.SetTscKhz(current, arg.Value)),
        Row(nameof(KvmIoctl.KVM_GET_TSC_KHZ), KvmIoctl.KVM_GET_TSC_KHZ, FdKind.Vcpu, "", (_, file, _) => SyscallResult.Of(((VcpuFile)file).Vcpu.TscKhz)),
        VcpuRow(nameof(KvmIoctl.KVM_GET_REGS), KvmIoctl.KVM_GET_REGS, "struct kvm_regs", (current, vcpu, arg) => vcpu.GetRegs(current, arg)),
        VcpuRow(nameof(KvmIoctl.KVM_SET_REGS), KvmIoctl.KVM_SET_REGS, "struct kvm_regs", (current, vcpu, arg) => vcpu.SetRegs(current, arg)),
        VcpuRow(nameof(KvmIoctl.KVM_GET_SREGS), KvmIoctl.KVM_GET_SREGS, "struct kvm_sregs", (current, vcpu, arg) => vcpu.GetSregs(current, arg)),
        VcpuRow(nameof(KvmIoctl.KVM_SET_SREGS), KvmIoctl.KVM_SET_SREGS, "struct kvm_sregs", (current, vcpu, arg) => vcpu.SetSregs(current, arg)),
        VcpuRow(nameof(KvmIoctl.KVM_GET_MSRS), KvmIoctl.KVM_GET_MSRS, "struct kvm_msrs", (current, vcpu, arg) => vcpu.GetMsrs(current, arg)),
        VcpuRow(nameof(KvmIoctl.KVM_SET_MSRS), KvmIoctl.KVM_SET_MSRS, "struct kvm_msrs", (current, vcpu, arg) => vcpu.SetMsrs(current, arg)),
        VcpuRow(nameof(KvmIoctl.KVM_GET_FPU), KvmIoctl.KVM_GET_FPU, "struct kvm_fpu", (current, vcpu, arg) => vcpu.GetFpu(current, arg)),
        VcpuRow(nameof(KvmIoctl.KVM_SET_FPU), KvmIoctl.KVM_SET_FPU, "struct kvm_fpu", (current, vcpu, arg) => vcpu.SetFpu(current, arg)),
        VcpuRow(nameof(KvmIoctl.KVM_GET_XSAVE), KvmIoctl.KVM_GET_XSAVE, "struct kvm_xsave", (current, vcpu, arg) => vcpu.GetXsave(current, arg)),
        VcpuRow(nameof(KvmIoctl.KVM_SET_XSAVE), KvmIoctl.KVM_SET_XSAVE, "struct kvm_xsave", (current, vcpu, arg) => vcpu.SetXsave(current, arg)),
        VcpuRow(nameof(KvmIoctl.KVM_GET_XCRS), KvmIoctl.KVM_GET_XCRS, "struct kvm_xcrs", (current, vcpu, arg) => vcpu.GetXcrs(current, arg)),
        VcpuRow(nameof(KvmIoctl.KVM_SET_XCRS), KvmIoctl.KVM_SET_XCRS, "struct kvm_xcrs", (current, vcpu, arg) => vcpu.SetXcrs(current, arg)),
        VcpuRow(nameof(KvmIoctl.KVM_SET_GUEST_DEBUG), KvmIoctl.KVM_SET_GUEST_DEBUG, "struct kvm_guest_debug", (current, vcpu, arg) => vcpu.SetGuestDebug(current, arg)),
        VcpuRow(nameof(KvmIoctl.KVM_GET_DEBUGREGS), KvmIoctl.KVM_GET_DEBUGREGS, "struct kvm_debugregs", (current, vcpu, arg) => vcpu.GetDebugregs(current, arg)),
        VcpuRow(nameof(KvmIoctl.KVM_SET_DEBUGREGS), KvmIoctl.KVM_SET_DEBUGREGS, "struct kvm_debugregs", (current, vcpu, arg) => vcpu.SetDebugregs(current, arg)),
        VcpuRow(nameof(KvmIoctl.KVM_GET_CPUID2), KvmIoctl.KVM_GET_CPUID2, "struct kvm_cpuid2", (current, vcpu, arg) => vcpu.GetCpuid2(current, arg)),
        VcpuRow(nameof(KvmIoctl.KVM_SET_CPUID2), KvmIoctl.KVM_SET_CPUID2, "struct kvm_cpuid2", (current, vcpu, arg) => vcpu.SetCpuid2(current, arg)),
    ];

    private static readonly Dictionary<(FdKind, uint), IoctlRow> ByNumber = All.ToDictionary(row => (row.Fd, row.Request));

    /// <summary>The row of a number on a kind of fd, or null.</summary>
    public static IoctlRow? Find(FdKind fd, uint request) => ByNumber.GetValueOrDefault((fd, request));

    /// <summary>ioctl(2): descriptor, checks of the fd, then the row.</summary>
    internal static SyscallResult Dispatch(KTask current, int fd, uint request, UserArg arg)
    {
        Errno errno = current.Process.Files.Lookup(current, fd, out KernelFile? file);
        if (errno != Errno.OK)
        {
            return errno;
        }
        current.Step(EnterStep, request, arg.Value);
        SyscallResult result = Dispatch(current, fd, file!, request, arg);
        current.Step(ExitStep, request, (ulong)result.Errno);
        return result;
    }

    private static SyscallResult Dispatch(KTask current, int fd, KernelFile file, uint request, UserArg arg)
    {
        if (Vfs.Ioctl(current, fd, file, request, arg) is { } answer)
        {
            return answer;
        }
        Errno errno = file.IoctlEntry(current, request);
        if (errno != Errno.OK)
        {
            return errno;
        }
        IoctlRow? row = Find(file.Kind, request);
        if (row is null || !row.Exists(current.Host.Profile))
        {
            current.Host.CountUnknownIoctl(file.Kind, request);
            return current.Fail(file.UnknownIoctl, Unknown, request, (ulong)file.Kind);
        }
        if (row.X86Only && current.Machine.Config.Platform == Platform.ArmPkvm)
        {
            return current.Fail(Errno.EINVAL, NotOnArm, request, (ulong)file.Kind);
        }
        return row.Handler(current, file, arg);
    }

    /// <summary>The call in words, for people.</summary>
    internal static string Describe(Process process, int fd, uint request, ReadOnlySpan<byte> argument = default)
    {
        process.Files.TryGet(fd, out KernelFile? file);
        // One ioctl stands for many commands; where the argument is at hand it tells which.
        if (request == KvmIoctl.KVM_MEMORY_ENCRYPT_OP && file is not null && MemoryMarshal.TryRead(argument, out uint id))
        {
            bool isTd = Auditing.HostAudit.VmOf(file)?.Type == VmType.KVM_X86_TDX_VM;
            if (isTd ? Enum.IsDefined((TdxCmdId)id) : Enum.IsDefined((SevCmdId)id))
            {
                return isTd ? $"{(TdxCmdId)id} on fd {fd}" : $"{(SevCmdId)id} on fd {fd}";
            }
        }
        string name = file is not null && Find(file.Kind, request) is { } row ? row.Name : $"ioctl 0x{request:X8}";
        return $"{name} on fd {fd}";
    }

    private static IoctlRow Row(string name, uint request, FdKind fd, string argument, IoctlHandler handler, Func<KernelProfile, bool>? exists = null) =>
        new(name, request, fd, argument, exists ?? (_ => true)) { Handler = handler, X86Only = !OnArmToo.Contains(request) };

    private static bool HasGuestMemfd(KernelProfile profile) => profile.PrivateMemory is PrivateMemoryDesign.GuestMemfd or PrivateMemoryDesign.GuestMemfdRfc;

    // Ioctls that run the guest or map for it, in the profiles that have them.
    private static IoctlRow RunRow(string name, uint request, string argument, PreFaultDesign design, Func<KTask, Vcpu, UserArg, SyscallResult> body) =>
        Row(
            name, request, FdKind.Vcpu, argument,
            (current, file, arg) =>
            {
                Vcpu vcpu = ((VcpuFile)file).Vcpu;
                using var mutex = vcpu.Mutex.Enter(current);
                return body(current, vcpu, arg);
            },
            profile => design == PreFaultDesign.None || profile.PreFault == design);

    // kvm_vcpu_ioctl gives the vendor a turn before it takes the vCPU's mutex.
    private static SyscallResult MemEncOnVcpu(KTask current, Vcpu vcpu, UserArg arg)
    {
        if (vcpu.Vm.Backend.TryVcpuMemEncUnlocked(current, vcpu, arg, out Errno errno))
        {
            return errno;
        }
        using var mutex = vcpu.Mutex.Enter(current);
        return vcpu.Vm.Backend.VcpuMemEncIoctl(current, vcpu, arg);
    }

    // vCPU ioctls run under the vCPU's mutex.
    private static IoctlRow VcpuRow(string name, uint request, string argument, Func<KTask, VcpuArch, UserArg, SyscallResult> body) =>
        Row(name, request, FdKind.Vcpu, argument, (current, file, arg) =>
        {
            Vcpu vcpu = ((VcpuFile)file).Vcpu;
            using var mutex = vcpu.Mutex.Enter(current);
            return body(current, vcpu.Arch, arg);
        });
}
