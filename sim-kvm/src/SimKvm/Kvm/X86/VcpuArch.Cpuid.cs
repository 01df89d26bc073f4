using SimKvm.Abi;
using SimKvm.Userspace;
using SimMachine.Amd;
using SimMachine.Stepping;

namespace SimKvm.Kvm;

// What the guest's CPUID says, KVM_{GET,SET}_CPUID2, and what KVM derives from it: reserved bits of CR3, CR4 and the APIC base, and the XCR0 that is
// allowed.
internal sealed partial class VcpuArch
{
    public static readonly Rule TooManyCpuidEntries = new(
        "kvm.x86.set-cpuid2.too-many", "nent is beyond KVM_MAX_CPUID_ENTRIES", "kvm_vcpu_ioctl_set_cpuid2", "set at most 256 entries",
        "nent#", "max#");

    public static readonly Rule VirtualAddressWidth = new(
        "kvm.x86.set-cpuid2.virtual-address-width", "CPUID 0x80000008 EAX bits 15:8 must be 48, 57 or 0", "kvm_check_cpuid",
        "keep the virtual address width that KVM_GET_SUPPORTED_CPUID gives", "bits#");

    public static readonly Rule DynamicFeatureNotPermitted = new(
        "kvm.x86.set-cpuid2.dynamic-feature",
        "CPUID 0xD asks for a state component that a process must request first and this processor lacks (AMX tiles)",
        "fpu_enable_guest_xfd_features", "clear bit 18 of CPUID 0xD EAX", "components");

    public static readonly Rule TooFewCpuidEntries = new(
        "kvm.x86.get-cpuid2.too-few", "nent is less than the number of entries that the vCPU has", "kvm_vcpu_ioctl_get_cpuid2",
        "give room for at least that many; the kernel does not write the number back", "nent#", "entries#");

    private const ulong CpuidHeadSize = 8;
    private const ulong CpuidEntrySize = 40;
    private const int DefaultPhysicalBits = 36;

    private kvm_cpuid_entry2[] _cpuid = [];

    /// <summary>The entries of KVM_SET_CPUID2, in the order in which they were set.</summary>
    public IReadOnlyList<kvm_cpuid_entry2> Cpuid => _cpuid;

    /// <summary>KVM_SET_CPUID2 with the entries read: E2BIG beyond 256, EINVAL for an odd virtual address width, EPERM for AMX. RDX is not touched:
    /// it got the processor signature, or 0x600, at reset.</summary>
    public Errno SetCpuid2(KTask current, ReadOnlySpan<kvm_cpuid_entry2> entries)
    {
        if (entries.Length > kvm_cpuid2.MAX_CPUID_ENTRIES)
        {
            return current.Fail(Errno.E2BIG, TooManyCpuidEntries, (ulong)entries.Length, kvm_cpuid2.MAX_CPUID_ENTRIES);
        }
        if (TryFind(entries, 0x8000_0008, 0, out kvm_cpuid_entry2 widths))
        {
            uint bits = (widths.eax >> 8) & 0xFF;
            if (bits is not (48 or 57 or 0))
            {
                return current.Fail(Errno.EINVAL, VirtualAddressWidth, bits);
            }
        }
        if (TryFind(entries, 0xD, 0, out kvm_cpuid_entry2 xsave) && (xsave.eax & FeatureXtileData) != 0)
        {
            return current.Fail(Errno.EPERM, DynamicFeatureNotPermitted, xsave.eax & FeatureXtileData);
        }
        _cpuid = entries.ToArray();
        AfterSetCpuid();
        return Errno.OK;
    }

    public SyscallResult SetCpuid2(KTask current, UserArg arg)
    {
        Errno errno = arg.CopyIn(current, out kvm_cpuid2 head);
        if (errno != Errno.OK)
        {
            return errno;
        }
        if (head.nent > kvm_cpuid2.MAX_CPUID_ENTRIES)
        {
            return current.Fail(Errno.E2BIG, TooManyCpuidEntries, head.nent, kvm_cpuid2.MAX_CPUID_ENTRIES);
        }
        var entries = new kvm_cpuid_entry2[head.nent];
        for (int i = 0; i < entries.Length; i++)
        {
            errno = arg.CopyIn(current, out entries[i], CpuidHeadSize + ((ulong)i * CpuidEntrySize));
            if (errno != Errno.OK)
            {
                return errno;
            }
        }
        return SetCpuid2(current, entries);
    }

    /// <summary>
    /// KVM_GET_CPUID2: E2BIG when there is not room for all. Bits that follow the vCPU's state (OSXSAVE, APIC, OSPKE, XSAVE sizes) are brought up to
    /// date.
    /// </summary>
    public SyscallResult GetCpuid2(KTask current, UserArg arg)
    {
        Errno errno = arg.CopyIn(current, out kvm_cpuid2 head);
        if (errno != Errno.OK)
        {
            return errno;
        }
        if (head.nent < _cpuid.Length)
        {
            return current.Fail(Errno.E2BIG, TooFewCpuidEntries, head.nent, (ulong)_cpuid.Length);
        }
        UpdateCpuidRuntime();
        for (int i = 0; i < _cpuid.Length; i++)
        {
            errno = arg.CopyOut(current, _cpuid[i], CpuidHeadSize + ((ulong)i * CpuidEntrySize));
            if (errno != Errno.OK)
            {
                return errno;
            }
        }
        head.nent = (uint)_cpuid.Length;
        return arg.CopyOut(current, head);
    }

    // kvm_find_cpuid_entry_index: the first entry of that function whose index does not matter or is the same.
    private static bool TryFind(ReadOnlySpan<kvm_cpuid_entry2> entries, uint function, uint index, out kvm_cpuid_entry2 entry)
    {
        int at = IndexOf(entries, function, index);
        entry = at < 0 ? default : entries[at];
        return at >= 0;
    }

    private static int IndexOf(ReadOnlySpan<kvm_cpuid_entry2> entries, uint function, uint index)
    {
        for (int i = 0; i < entries.Length; i++)
        {
            if (entries[i].function == function &&
                ((entries[i].flags & kvm_cpuid_entry2.FLAG_SIGNIFCANT_INDEX) == 0 || entries[i].index == index))
            {
                return i;
            }
        }
        return -1;
    }

    /// <summary>kvm_cpuid: what CPUID gives the guest, zeros where its table lacks the leaf.</summary>
    public kvm_cpuid_entry2 CpuidInstruction(uint function, uint index)
    {
        TryFind(_cpuid, function, index, out kvm_cpuid_entry2 entry);
        return entry;
    }

    private uint HostCpuid(uint function, uint index, CpuidRegister register) =>
        _host.TryFind(function, index, out CpuidEntry entry) ? entry[register] : 0;

    // 0 where the guest's CPUID lacks the leaf.
    private uint GuestCpuid(uint function, uint index, CpuidRegister register)
    {
        TryFind(_cpuid, function, index, out kvm_cpuid_entry2 entry);
        return register switch
        {
            CpuidRegister.EAX => entry.eax,
            CpuidRegister.EBX => entry.ebx,
            CpuidRegister.ECX => entry.ecx,
            _ => entry.edx,
        };
    }

    // guest_cpu_cap_has: the guest's CPUID announces it and the processor has it.
    private bool GuestHas(uint function, uint index, CpuidRegister register, int bit) =>
        ((GuestCpuid(function, index, register) & HostCpuid(function, index, register)) >> bit & 1) != 0;

    private bool GuestHasXsave => GuestHas(1, 0, CpuidRegister.ECX, 26);

    // kvm_vcpu_after_set_cpuid; also run once at creation, with no entries.
    private void AfterSetCpuid()
    {
        const int x2apic = 21;
        int physicalBits = DefaultPhysicalBits;
        if (GuestCpuid(0x8000_0000, 0, CpuidRegister.EAX) >= 0x8000_0008 && TryFind(_cpuid, 0x8000_0008, 0, out kvm_cpuid_entry2 widths))
        {
            physicalBits = (int)(widths.eax & 0xFF);
        }
        ulong reserved = physicalBits >= 64 ? 0 : ulong.MaxValue << physicalBits;

        // KVM emulates x2APIC, so the guest's CPUID alone decides.
        bool hasX2apic = ((GuestCpuid(1, 0, CpuidRegister.ECX) >> x2apic) & 1) != 0;
        _reservedApicBits = reserved | ApicBaseReservedBits | (hasX2apic ? 0 : ApicBaseX2apic);

        _reservedGpaBits = reserved;
        if (IsSevGuest && TryFind(_cpuid, 0x8000_001F, 0, out kvm_cpuid_entry2 sev))
        {
            _reservedGpaBits &= ~(1UL << (int)(sev.ebx & 0x3F));
        }

        _cr4Reserved = ~(Cr4Always |
            (GuestHasXsave ? Cr4Osxsave : 0) |
            (GuestHas(1, 0, CpuidRegister.ECX, 17) ? Cr4Pcide : 0) |
            (GuestHas(7, 0, CpuidRegister.EBX, 0) ? Cr4Fsgsbase : 0) |
            (GuestHas(7, 0, CpuidRegister.EBX, 7) ? Cr4Smep : 0) |
            (GuestHas(7, 0, CpuidRegister.EBX, 20) ? Cr4Smap : 0) |
            (GuestHas(7, 0, CpuidRegister.ECX, 2) ? Cr4Umip : 0) |
            (GuestHas(7, 0, CpuidRegister.ECX, 3) ? Cr4Pke : 0) |
            (GuestHas(7, 0, CpuidRegister.ECX, 16) ? Cr4La57 : 0));

        ulong announced = ((ulong)GuestCpuid(0xD, 0, CpuidRegister.EDX) << 32) | GuestCpuid(0xD, 0, CpuidRegister.EAX);
        _guestSupportedXcr0 = announced & _supportedXcr0;
    }

    // kvm_update_cpuid_runtime
    private void UpdateCpuidRuntime()
    {
        const int osxsave = 27;
        const int apic = 9;
        const int ospke = 4;
        const uint xsavecOrXsaves = (1u << 1) | (1u << 3);
        int at = IndexOf(_cpuid, 1, 0);
        if (at >= 0)
        {
            Put(ref _cpuid[at].ecx, osxsave, (Cr4 & Cr4Osxsave) != 0);
            Put(ref _cpuid[at].edx, apic, (ApicBase & ApicBaseEnable) != 0);
        }
        at = IndexOf(_cpuid, 7, 0);
        if (at >= 0)
        {
            Put(ref _cpuid[at].ecx, ospke, (Cr4 & Cr4Pke) != 0);
        }
        at = IndexOf(_cpuid, 0xD, 0);
        if (at >= 0)
        {
            _cpuid[at].ebx = _host.XsaveSize(Xcr0, compacted: false);
        }
        at = IndexOf(_cpuid, 0xD, 1);
        if (at >= 0 && (_cpuid[at].eax & xsavecOrXsaves) != 0)
        {
            _cpuid[at].ebx = _host.XsaveSize(Xcr0 | Xss, compacted: true);
        }

        static void Put(ref uint register, int bit, bool value) => register = value ? register | (1u << bit) : register & ~(1u << bit);
    }
}
