using System.Buffers.Binary;
using System.Runtime.InteropServices;
using SimKvm.Abi;
using SimKvm.Userspace;
using SimMachine.Addressing;
using SimMachine.Intel;
using SimMachine.Stepping;

namespace SimKvm.Vendors.Intel;

// KVM_TDX_INIT_VM (tdx_td_init, setup_tdparams, __tdx_td_init).
internal sealed partial class TdxBackend
{
    public static readonly Rule InitAgain = new(
        "tdx.init-vm.again", "the TD is initialised already", "tdx_td_init", "initialise a TD once", "state#");

    public static readonly Rule TooManyEntries = new(
        "tdx.init-vm.nent", "there are more CPUID entries than KVM takes", "tdx_td_init", "give at most 256, and only leaves of KVM_TDX_CAPABILITIES", "nent#", "max#");

    public static readonly Rule ReservedNotZero = new(
        "tdx.init-vm.reserved", "reserved fields, or cpuid.padding, are not 0", "tdx_td_init", "clear the structure first", "padding");

    public static readonly Rule InitAfterVcpu = new(
        "tdx.init-vm.vcpus", "the VM has vCPUs already", "setup_tdparams", "create vCPUs after KVM_TDX_INIT_VM", "vcpus#");

    public static readonly Rule AttributesUnsupported = new(
        "tdx.init-vm.attributes", "attributes has bits that are not offered", "setup_tdparams", "use bits of supported_attrs of KVM_TDX_CAPABILITIES; DEBUG is never offered", "attributes", "supported");

    public static readonly Rule XfamUnsupported = new(
        "tdx.init-vm.xfam", "xfam has bits that are not offered", "setup_tdparams", "use bits of supported_xfam of KVM_TDX_CAPABILITIES", "xfam", "supported");

    public static readonly Rule NoAddressWidth = new(
        "tdx.init-vm.guest-width", "CPUID leaf 0x80000008 must be there and say in EAX 23:16 that guest addresses have 48 bits, or 52 where the EPT can have five levels", "setup_tdparams_eptp_controls",
        "add the leaf with eax 0x300000 or 0x340000", "bits#");

    public static readonly Rule FeatureNotOffered = new(
        "tdx.init-vm.tsx", "leaf 7 has HLE, RTM or WAITPKG, which KVM does not let a TD have", "setup_tdparams_cpuids: tdx_unsupported_cpuid", "clear EBX bits 4 and 11 and ECX bit 5", "ebx", "ecx");

    public static readonly Rule EntriesDoNotMatch = new(
        "tdx.init-vm.cpuid-count", "the entries that found a slot of the module's table are not as many as were given", "setup_tdparams_cpuids",
        "give each configurable leaf at most once, with KVM_CPUID_FLAG_SIGNIFCANT_INDEX where it has sub-leaves, and no other leaf", "matches#", "nent#");

    public static readonly Rule NoControlPage = new(
        "tdx.init-vm.no-memory", "the simulated machine has no free page for the TD's control pages", "__tdx_td_init", "give the host more memory_bytes");

    public static readonly Rule SeamcallFailed = new(
        "tdx.seamcall", "a SEAMCALL failed", "__tdx_td_init, tdx_td_vcpu_init, tdx_td_finalize", "see the cause before this one", "leaf#", "status");

    private const uint TscUnitKhz = 25_000;
    private const ulong WriteBack = 6;

    private readonly List<Pfn> _tdcs = [];
    private uint _hkid;

    /// <summary>The bit that tells shared from private in guest physical addresses, as a gfn; 0 before KVM_TDX_INIT_VM.</summary>
    public override ulong DirectBits
    {
        get
        {
            _host.Machine.Reading(this, StateKey, StateKey + 1);
            return _sharedBit >> PageSize.Shift;
        }
    }

    /// <summary>TD_PARAMS of the last KVM_TDX_INIT_VM that came as far as TDH.MNG.INIT, taken or not.</summary>
    public ReadOnlyMemory<byte> TdParamsOfInit { get; private set; }

    private ulong _sharedBit;

    private unsafe Errno InitVm(KTask current, ref kvm_tdx_cmd cmd)
    {
        if (State != TdState.Uninitialized)
        {
            return current.Fail(Errno.EINVAL, InitAgain, (ulong)State);
        }
        if (cmd.flags != 0)
        {
            return current.Fail(Errno.EINVAL, CommandFlags, cmd.id, cmd.flags);
        }
        Errno errno = CopyInitVm(current, cmd.data, out kvm_tdx_init_vm init, out kvm_cpuid_entry2[] entries);
        if (errno != Errno.OK)
        {
            return errno;
        }
        if (new ReadOnlySpan<ulong>(init.reserved, 12).ContainsAnyExcept(0UL) || init.cpuid.padding != 0)
        {
            return current.Fail(Errno.EINVAL, ReservedNotZero, init.cpuid.padding);
        }
        byte[] tdParams = new byte[TdParams.Size];
        errno = SetupTdParams(current, init, entries, tdParams, out int width);
        if (errno != Errno.OK)
        {
            return errno;
        }
        TdParamsOfInit = tdParams;
        errno = BuildTd(current, ref cmd, tdParams);
        if (errno != Errno.OK)
        {
            ReleaseTd(current);
            return errno;
        }
        _sharedBit = 1UL << (width - 1);
        State = TdState.Initialized;
        return Errno.OK;
    }

    private static Errno CopyInitVm(KTask current, ulong uaddr, out kvm_tdx_init_vm init, out kvm_cpuid_entry2[] entries)
    {
        entries = [];
        UserArg data = UserArg.FromValue(uaddr);
        Errno errno = data.CopyIn(current, out init);
        if (errno != Errno.OK)
        {
            return errno;
        }
        if (init.cpuid.nent > kvm_cpuid2.MAX_CPUID_ENTRIES)
        {
            return current.Fail(Errno.E2BIG, TooManyEntries, init.cpuid.nent, kvm_cpuid2.MAX_CPUID_ENTRIES);
        }
        entries = new kvm_cpuid_entry2[init.cpuid.nent];
        return data.CopyIn(current, MemoryMarshal.AsBytes(entries.AsSpan()), OffsetOfEntries<kvm_tdx_init_vm>());
    }

    // setup_tdparams
    private unsafe Errno SetupTdParams(KTask current, in kvm_tdx_init_vm init, kvm_cpuid_entry2[] entries, Span<byte> tdParams, out int width)
    {
        width = 0;
        if (Vm.CreatedVcpus > 0)
        {
            return current.Fail(Errno.EBUSY, InitAfterVcpu, (ulong)Vm.CreatedVcpus);
        }
        if ((init.attributes & ~Intel.SupportedAttributes) != 0)
        {
            return current.Fail(Errno.EINVAL, AttributesUnsupported, init.attributes, Intel.SupportedAttributes);
        }
        if ((init.xfam & ~Intel.SupportedXfam) != 0)
        {
            return current.Fail(Errno.EINVAL, XfamUnsupported, init.xfam, Intel.SupportedXfam);
        }
        width = FindEntry(entries, 0x8000_0008, 0) is { } widths ? (int)((widths.eax & GuestPhysicalBitsMask) >> GuestPhysicalBitsShift) : 0;
        if (width is not (48 or 52) || (width == 52 && !Intel.Module.FiveLevelEpt))
        {
            return current.Fail(Errno.EINVAL, NoAddressWidth, (ulong)width);
        }
        Errno errno = SetupCpuid(current, entries, tdParams);
        if (errno != Errno.OK)
        {
            return errno;
        }
        ulong walkLength = width == 52 ? 5UL : 4;
        BinaryPrimitives.WriteUInt64LittleEndian(tdParams[TdParams.AttributesAt..], init.attributes | Intel.Module.AttributesFixed1);
        BinaryPrimitives.WriteUInt64LittleEndian(tdParams[TdParams.XfamAt..], init.xfam | Intel.Module.XfamFixed1);
        BinaryPrimitives.WriteUInt16LittleEndian(tdParams[TdParams.MaxVcpusAt..], (ushort)MaxVcpus);
        BinaryPrimitives.WriteUInt64LittleEndian(tdParams[TdParams.EptpControlsAt..], WriteBack | ((walkLength - 1) << 3));
        BinaryPrimitives.WriteUInt64LittleEndian(tdParams[TdParams.ConfigFlagsAt..], TdParams.NoRbpMod | (width == 52 ? TdParams.Gpaw : 0));
        BinaryPrimitives.WriteUInt16LittleEndian(tdParams[TdParams.TscFrequencyAt..], (ushort)(Vm.DefaultTscKhz / TscUnitKhz));
        fixed (kvm_tdx_init_vm* from = &init)
        {
            const int size = TdxModuleConfig.MeasurementSize;
            new ReadOnlySpan<byte>(from->mrconfigid, size).CopyTo(tdParams[TdParams.MrconfigidAt..]);
            new ReadOnlySpan<byte>(from->mrowner, size).CopyTo(tdParams[TdParams.MrownerAt..]);
            new ReadOnlySpan<byte>(from->mrownerconfig, size).CopyTo(tdParams[TdParams.MrownerconfigAt..]);
        }
        return Errno.OK;
    }

    // setup_tdparams_cpuids: each slot of the module's table takes the first entry that fits it. The only test of the caller's list is the number of slots that found one.
    private Errno SetupCpuid(KTask current, kvm_cpuid_entry2[] entries, Span<byte> tdParams)
    {
        IReadOnlyList<TdxCpuidSlot> slots = Intel.Module.CpuidSlots;
        ulong matches = 0;
        for (int i = 0; i < slots.Count; i++)
        {
            if (FindEntry(entries, slots[i].Function, slots[i].Index) is not { } entry)
            {
                continue;
            }
            // tdx_unsupported_cpuid goes by the entry's index, which without the flag need not be the slot's.
            if (entry is { function: 7, index: 0 } && ((entry.ebx & (Leaf7Hle | Leaf7Rtm)) != 0 || (entry.ecx & Leaf7Waitpkg) != 0))
            {
                return current.Fail(Errno.EINVAL, FeatureNotOffered, entry.ebx, entry.ecx);
            }
            matches++;
            uint eax = slots[i].Function == 0x8000_0008 ? entry.eax & ~GuestPhysicalBitsMask : entry.eax;
            Span<byte> value = tdParams[(TdParams.CpuidValuesAt + (i * TdParams.CpuidValueSize))..];
            BinaryPrimitives.WriteUInt32LittleEndian(value, eax);
            BinaryPrimitives.WriteUInt32LittleEndian(value[4..], entry.ebx);
            BinaryPrimitives.WriteUInt32LittleEndian(value[8..], entry.ecx);
            BinaryPrimitives.WriteUInt32LittleEndian(value[12..], entry.edx);
        }
        return matches != (ulong)entries.Length ? current.Fail(Errno.EINVAL, EntriesDoNotMatch, matches, (ulong)entries.Length) : Errno.OK;
    }

    // kvm_find_cpuid_entry2
    private static kvm_cpuid_entry2? FindEntry(kvm_cpuid_entry2[] entries, uint function, uint index)
    {
        foreach (kvm_cpuid_entry2 entry in entries)
        {
            if (entry.function == function && ((entry.flags & kvm_cpuid_entry2.FLAG_SIGNIFCANT_INDEX) == 0 || entry.index == index))
            {
                return entry;
            }
        }
        return null;
    }

    // __tdx_td_init. What was made before a failure is taken down by the caller.
    private Errno BuildTd(KTask current, ref kvm_tdx_cmd cmd, byte[] tdParams)
    {
        if (!Intel.TryAllocateHkid(out _hkid))
        {
            _hkid = 0;
            return current.Fail(Errno.ENOSPC, KvmIntel.NoHkid, Intel.Module.GuestHkids);
        }
        if (!TryTakePages(current, 1 + Intel.Module.TdcsPages, out Pfn[] pages))
        {
            return current.Fail(Errno.ENOMEM, NoControlPage);
        }
        TdxStatus status = Seamcall(current, () => Module.MngCreate(current, pages[0], _hkid));
        if (status != TdxStatus.SUCCESS)
        {
            GiveBack(current, pages);
            return BuildFailed(current, SeamcallLeaf.TDH_MNG_CREATE, status);
        }
        Tdr = pages[0];
        _tdcs.AddRange(pages[1..]);
        for (int package = 0; package < Intel.Module.Packages; package++)
        {
            status = Module.MngKeyConfig(current, Tdr, package);
            if (status != TdxStatus.SUCCESS)
            {
                Vm.Bug(current, $"TDH.MNG.KEY.CONFIG: {status.Name()}");
                return current.Fail(Errno.EIO, SeamcallFailed, (ulong)SeamcallLeaf.TDH_MNG_KEY_CONFIG, (ulong)status);
            }
        }
        foreach (Pfn page in _tdcs)
        {
            status = Seamcall(current, () => Module.MngAddcx(current, page, Tdr));
            if (status != TdxStatus.SUCCESS)
            {
                return BuildFailed(current, SeamcallLeaf.TDH_MNG_ADDCX, status);
            }
        }
        status = Module.MngInit(current, Tdr, tdParams, out _);
        if (status.Class() == TdxStatus.OPERAND_INVALID)
        {
            // The one failure that user space is told in full: which of its parameters the module does not take.
            cmd.hw_error = (ulong)status;
            return current.Fail(Errno.EINVAL, SeamcallFailed, (ulong)SeamcallLeaf.TDH_MNG_INIT, (ulong)status);
        }
        return status == TdxStatus.SUCCESS ? Errno.OK : current.Fail(Errno.EIO, SeamcallFailed, (ulong)SeamcallLeaf.TDH_MNG_INIT, (ulong)status);
    }

    private static Errno BuildFailed(KTask current, SeamcallLeaf leaf, TdxStatus status) =>
        current.Fail(status.Class() == TdxStatus.RND_NO_ENTROPY ? Errno.EAGAIN : Errno.EIO, SeamcallFailed, (ulong)leaf, (ulong)status);

    private bool TryTakePages(KTask current, int count, out Pfn[] pages)
    {
        pages = new Pfn[count];
        for (int i = 0; i < count; i++)
        {
            if (!_host.Machine.TryAllocateFrame(out pages[i]))
            {
                Array.Resize(ref pages, i);
                GiveBack(current, pages);
                return false;
            }
        }
        return true;
    }

    private void GiveBack(KTask current, IEnumerable<Pfn> pages)
    {
        foreach (Pfn page in pages)
        {
            _host.Machine.FreeFrame(current, page);
        }
    }
}
