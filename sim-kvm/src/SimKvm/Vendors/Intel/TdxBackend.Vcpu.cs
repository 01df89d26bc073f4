using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Userspace;
using SimMachine.Addressing;
using SimMachine.Intel;
using SimMachine.Stepping;

namespace SimKvm.Vendors.Intel;

/// <summary>A vCPU of a TD (struct vcpu_tdx): its control pages. Guarded by vcpu->mutex.</summary>
/// <param name="Pages">TDVPR and the other control pages; all of them are the module's, or none.</param>
internal sealed record TdxVcpu(Pfn[] Pages)
{
    public Pfn Tdvpr => Pages[0];
}

// vCPUs: KVM_CREATE_VCPU, KVM_TDX_INIT_VCPU, KVM_TDX_GET_CPUID.
internal sealed partial class TdxBackend
{
    public static readonly Rule VcpuOutOfTurn = new(
        "tdx.create-vcpu.state", "a TD takes vCPUs between KVM_TDX_INIT_VM and KVM_TDX_FINALIZE_VM", "tdx_vcpu_create", "create them there", "state#");

    public static readonly Rule NeedsSplitIrqchip = new(
        "tdx.create-vcpu.irqchip", "a TD needs the split irqchip", "tdx_vcpu_create", "KVM_ENABLE_CAP of KVM_CAP_SPLIT_IRQCHIP (121) before the first vCPU");

    public static readonly Rule VcpuInitAgain = new(
        "tdx.init-vcpu.again", "the vCPU is initialised already", "tdx_vcpu_init", "initialise each vCPU once", "vcpu#");

    public static readonly Rule NeedsX2apic = new(
        "tdx.init-vcpu.x2apic", "the vCPU's CPUID has no x2APIC, and TDs have no other mode", "tdx_vcpu_init: kvm_apic_set_base", "KVM_SET_CPUID2 with leaf 1 ECX bit 21 first", "vcpu#");

    public static readonly Rule NoVcpuPages = new(
        "tdx.init-vcpu.no-memory", "the simulated machine has no free page for the vCPU's control pages", "tdx_td_vcpu_init", "give the host more memory_bytes", "vcpu#");

    public static readonly Rule TooFewCpuidEntries = new(
        "tdx.get-cpuid.nent", "there is no room for all entries; nent now says how many there are", "tdx_vcpu_get_cpuid", "call again with that much room", "nent#", "needed#");

    /// <summary>tdx_vcpu_create. The vCPU's registers are the module's from the beginning.</summary>
    public override Errno VcpuCreate(KTask current, Vcpu vcpu)
    {
        if (State != TdState.Initialized)
        {
            return current.Fail(Errno.EIO, VcpuOutOfTurn, (ulong)State);
        }
        if (Vm.Irqchip != IrqchipMode.Split)
        {
            return current.Fail(Errno.EINVAL, NeedsSplitIrqchip);
        }
        vcpu.Arch.BecomeTd();
        return Errno.OK;
    }

    // tdx_vcpu_init
    private Errno InitVcpu(KTask current, Vcpu vcpu, in kvm_tdx_cmd cmd)
    {
        if (cmd.flags != 0)
        {
            return current.Fail(Errno.EINVAL, CommandFlags, cmd.id, cmd.flags);
        }
        if (vcpu.Tdx is not null)
        {
            return current.Fail(Errno.EINVAL, VcpuInitAgain, vcpu.Id);
        }
        if (vcpu.Arch.EnterX2apicMode(current, vcpu.Id == 0) != Errno.OK)
        {
            return current.Fail(Errno.EINVAL, NeedsX2apic, vcpu.Id);
        }
        if (!TryTakePages(current, Intel.Module.TdvpsPages, out Pfn[] pages))
        {
            return current.Fail(Errno.ENOMEM, NoVcpuPages, vcpu.Id);
        }
        return BuildVcpu(current, vcpu, pages, cmd.data);
    }

    // tdx_td_vcpu_init. A failure is the end of the VM; what the module has taken by then is reclaimed with it.
    private Errno BuildVcpu(KTask current, Vcpu vcpu, Pfn[] pages, ulong rcx)
    {
        TdxStatus status = Module.VpCreate(current, pages[0], Tdr);
        if (status != TdxStatus.SUCCESS)
        {
            GiveBack(current, pages);
            return VcpuFailed(current, SeamcallLeaf.TDH_VP_CREATE, status);
        }
        for (int i = 1; i < pages.Length; i++)
        {
            status = Module.VpAddcx(current, pages[i], pages[0]);
            if (status != TdxStatus.SUCCESS)
            {
                GiveBack(current, pages[i..]);
                _orphans.AddRange(pages[..i]);
                return VcpuFailed(current, SeamcallLeaf.TDH_VP_ADDCX, status);
            }
        }
        status = Module.VpInit(current, pages[0], rcx, (uint)vcpu.Id);
        if (status != TdxStatus.SUCCESS)
        {
            _orphans.AddRange(pages);
            return VcpuFailed(current, SeamcallLeaf.TDH_VP_INIT, status);
        }
        current.Machine.Writing(vcpu);
        vcpu.Tdx = new TdxVcpu(pages);
        return Errno.OK;
    }

    private Errno VcpuFailed(KTask current, SeamcallLeaf leaf, TdxStatus status)
    {
        Vm.Bug(current, $"{leaf}: {status.Name()}");
        return current.Fail(Errno.EIO, SeamcallFailed, (ulong)leaf, (ulong)status);
    }

    // tdx_vcpu_get_cpuid. flags are not looked at.
    private Errno GetCpuid(KTask current, Vcpu vcpu, in kvm_tdx_cmd cmd)
    {
        UserArg data = UserArg.FromValue(cmd.data);
        Errno errno = data.CopyIn(current, out kvm_cpuid2 header);
        if (errno != Errno.OK)
        {
            return errno;
        }
        kvm_cpuid_entry2[] entries = [.. Module.VirtualCpuid(Tdr).Select(leaf => new kvm_cpuid_entry2
        {
            function = leaf.Function,
            index = leaf.Index,
            flags = leaf.SignificantIndex ? kvm_cpuid_entry2.FLAG_SIGNIFCANT_INDEX : 0,
            eax = leaf.Function == 0x8000_0008 ? (leaf.Eax & ~GuestPhysicalBitsMask) | ((uint)Gpaw << GuestPhysicalBitsShift) : leaf.Eax,
            ebx = leaf.Ebx,
            ecx = leaf.Ecx,
            edx = leaf.Edx,
        })];
        uint room = header.nent;
        header.nent = (uint)entries.Length;
        errno = data.CopyOut(current, header);
        if (errno == Errno.OK && room < entries.Length)
        {
            return current.Fail(Errno.E2BIG, TooFewCpuidEntries, room, header.nent);
        }
        for (int i = 0; errno == Errno.OK && i < entries.Length; i++)
        {
            errno = data.CopyOut(current, entries[i], 8 + ((ulong)i * EntrySize));
        }
        return errno;
    }

    private int Gpaw => System.Numerics.BitOperations.Log2(_sharedBit) + 1;
}
