using SimKvm.Abi;
using SimKvm.Userspace;
using SimMachine;
using SimMachine.Amd;
using SimMachine.Stepping;

namespace SimKvm.Kvm;

/// <summary>The /dev/kvm file: system ioctls. Stateless; each open gives one of these.</summary>
internal sealed class KvmDevice(SimHost host) : KernelFile
{
    private const int ApiVersion = 12;

    // Run page, PIO page, coalesced-MMIO page.
    private const int VcpuMmapSize = 3 * 4096;

    private const uint GroupGlobal = 0;
    private const uint GroupSev = 1;

    public static readonly Rule ArgMustBeZero = new(
        "kvm.dev.arg", "the argument of this ioctl must be 0", "kvm_dev_ioctl", "pass 0", "arg");

    public static readonly Rule UnknownVmType = new(
        "kvm.create-vm.type", "the VM type is not supported on this host", "kvm_arch_init_vm",
        "ask KVM_CAP_VM_TYPES (235) for the mask of supported types; SNP needs a machine with sev_snp enabled", "type", "supported_mask");

    public static readonly Rule UnknownArmVmType = new(
        "kvm.create-vm.arm-type", "the type is none of an arm64 host", "kvm_arch_init_vm, arm64",
        "use 0, or KVM_VM_TYPE_ARM_PROTECTED (0x80000000), with 0 or 32 to 48 in bits 7:0", "type", "largest_ipa_size#");

    public static readonly Rule UnknownAttribute = new(
        "kvm.dev.attr", "there is no such device attribute", "kvm_x86_dev_get_attr, sev_dev_get_attr",
        "group 0 has attribute 0 (KVM_X86_XCOMP_GUEST_SUPP), group 1 (KVM_X86_GRP_SEV) has attribute 0, and 1 and 2 since 7.0", "group", "attr");

    public static readonly Rule TooFewEntries = new(
        "kvm.cpuid.nent", "there is no room for all CPUID entries", "kvm_dev_ioctl_get_cpuid", "give room for as many entries as the table has", "nent#", "needed#");

    public static readonly Rule TooFewMsrs = new(
        "kvm.msr-list.nmsrs", "there is no room for the indices of all MSRs", "kvm_arch_dev_ioctl (KVM_GET_MSR_INDEX_LIST)", "give room for as many as the structure now says", "nmsrs#", "needed#");

    public override FdKind Kind => FdKind.Kvm;

    public override string Name => "/dev/kvm";

    internal override FMode Methods => FMode.Lseek | FMode.Pread | FMode.Pwrite;

    internal override FileSystemStat FileSystem => FileSystemStat.Tmpfs;

    // A character device, 10:232, that root and the group kvm may use.
    internal override FileStat Stat() => new(0, 0x21b0, 0) { Rdev = (10 << 8) | 232 };

    internal override Errno Setattr(KTask current) => current.Fail(Errno.EPERM, NoSetattr, (ulong)Kind);

    internal override Errno Reopen(KTask current, uint flags, out KernelFile? file)
    {
        file = new KvmDevice(host) { Flags = flags };
        return Errno.OK;
    }

    internal override Errno UnknownIoctl => Errno.EINVAL;

    internal override void Release(KTask current)
    {
    }

    internal static SyscallResult GetApiVersion(KTask current, ulong arg) =>
        arg != 0 ? current.Fail(Errno.EINVAL, ArgMustBeZero, arg) : SyscallResult.Of(ApiVersion);

    internal static SyscallResult GetVcpuMmapSize(KTask current, ulong arg) =>
        arg != 0 ? current.Fail(Errno.EINVAL, ArgMustBeZero, arg) : SyscallResult.Of(VcpuMmapSize);

    /// <summary>KVM_CREATE_VM. Order as in kvm_dev_ioctl_create_vm: a descriptor first, then the type.</summary>
    internal SyscallResult CreateVm(KTask current, ulong type)
    {
        Errno errno = current.Process.Files.Reserve(current, out int fd);
        if (errno != Errno.OK)
        {
            return errno;
        }
        if (host.Machine.Config.Platform == Platform.ArmPkvm)
        {
            return CreateArmVm(current, type, fd);
        }
        uint supported = Vm.SupportedTypes(host);
        if (type >= 32 || (supported & (1u << (int)type)) == 0)
        {
            return current.Fail(Errno.EINVAL, UnknownVmType, type, supported);
        }
        var vm = new Vm(host, current.Process, (VmType)type);
        current.Process.Files.Install(fd, new VmFile(vm), closeOnExec: true);
        return SyscallResult.Of(fd);
    }

    /// <summary>KVM_GET_MSR_INDEX_LIST. E2BIG, with the number needed written back, when the list does not fit.</summary>
    internal static Errno GetMsrIndexList(KTask current, UserArg arg)
    {
        Errno errno = arg.CopyIn(current, out uint room);
        uint count = (uint)VcpuArch.SavedMsrs.Length;
        if (errno == Errno.OK)
        {
            errno = arg.CopyOut(current, count);
        }
        if (errno == Errno.OK && room < count)
        {
            errno = current.Fail(Errno.E2BIG, TooFewMsrs, room, count);
        }
        for (uint i = 0; errno == Errno.OK && i < count; i++)
        {
            errno = arg.CopyOut(current, VcpuArch.SavedMsrs[(int)i], sizeof(uint) * (1UL + i));
        }
        return errno;
    }

    // kvm_arch_init_vm, kvm_init_ipa_range on arm64: the type is the size of the guest's address space, and whether it is protected.
    private SyscallResult CreateArmVm(KTask current, ulong type, int fd)
    {
        const ulong ipaSizeMask = 0xff, isProtected = 1UL << 31, smallest = 32, largest = 48;
        ulong ipaSize = type & ipaSizeMask;
        if ((type & ~(ipaSizeMask | isProtected)) != 0 || (ipaSize != 0 && ipaSize is < smallest or > largest))
        {
            return current.Fail(Errno.EINVAL, UnknownArmVmType, type, largest);
        }
        bool wantsProtection = (type & isProtected) != 0;
        var vm = new Vm(host, current.Process, wantsProtection ? VmType.KVM_VM_TYPE_ARM_PROTECTED : VmType.KVM_X86_DEFAULT_VM);
        current.Process.Files.Install(fd, new VmFile(vm));
        return SyscallResult.Of(fd);
    }

    /// <summary>KVM_GET_DEVICE_ATTR on the system fd (kvm_x86_dev_get_attr).</summary>
    internal Errno GetDeviceAttr(KTask current, UserArg arg)
    {
        Errno errno = arg.CopyIn(current, out kvm_device_attr attr);
        if (errno != Errno.OK)
        {
            return errno;
        }
        errno = FindAttribute(current, attr, out ulong value);
        return errno != Errno.OK ? errno : UserArg.FromValue(attr.addr).CopyOut(current, value);
    }

    /// <summary>KVM_HAS_DEVICE_ATTR on the system fd.</summary>
    internal Errno HasDeviceAttr(KTask current, UserArg arg)
    {
        Errno errno = arg.CopyIn(current, out kvm_device_attr attr);
        return errno != Errno.OK ? errno : FindAttribute(current, attr, out _);
    }

    private Errno FindAttribute(KTask current, in kvm_device_attr attr, out ulong value)
    {
        value = 0;
        if (attr is { group: GroupGlobal, attr: 0 })
        {
            // KVM_X86_XCOMP_GUEST_SUPP: what a guest may have in XCR0.
            value = host.Machine.Cpuid.TryFind(0xD, 0, out CpuidEntry xsave) ? ((ulong)xsave.Edx << 32) | xsave.Eax : 3;
            return Errno.OK;
        }
        if (attr.group != GroupSev)
        {
            return current.Fail(Errno.ENXIO, UnknownAttribute, attr.group, attr.attr);
        }
        switch (attr.attr)
        {
            case 0:
                value = host.KvmAmd.SupportedVmsaFeatures;
                return Errno.OK;
            case 1 when host.Profile.SnpPolicyAndCertificateAttributes:
                value = host.KvmAmd.SnpPolicyBits;
                return Errno.OK;
            case 2 when host.Profile.SnpPolicyAndCertificateAttributes:
                value = host.KvmAmd.SnpEnabled ? 1UL : 0;
                return Errno.OK;
            default:
                return current.Fail(Errno.ENXIO, UnknownAttribute, attr.group, attr.attr);
        }
    }

    /// <summary>KVM_GET_SUPPORTED_CPUID. E2BIG, with the number needed written back, when the table does not fit.</summary>
    internal Errno GetSupportedCpuid(KTask current, UserArg arg)
    {
        IReadOnlyList<CpuidEntry> entries = host.Machine.Cpuid.Entries;
        Errno errno = arg.CopyIn(current, out kvm_cpuid2 header);
        if (errno != Errno.OK)
        {
            return errno;
        }
        if (header.nent < entries.Count)
        {
            return current.Fail(Errno.E2BIG, TooFewEntries, header.nent, (ulong)entries.Count);
        }
        header.nent = (uint)entries.Count;
        errno = arg.CopyOut(current, header);
        for (int i = 0; errno == Errno.OK && i < entries.Count; i++)
        {
            CpuidEntry entry = entries[i];
            errno = arg.CopyOut(
                current,
                new kvm_cpuid_entry2
                {
                    function = entry.Function,
                    index = entry.Index,
                    flags = entry.SignificantIndex ? 1u : 0,
                    eax = entry.Eax,
                    ebx = entry.Ebx,
                    ecx = entry.Ecx,
                    edx = entry.Edx,
                },
                8 + (40 * (ulong)i));
        }
        return errno;
    }
}
