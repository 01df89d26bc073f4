using SimKvm.Kvm;
using SimMachine;
using SimMachine.Addressing;
using SimMachine.Intel;
using SimMachine.Stepping;

namespace SimKvm.Vendors.Intel;

/// <summary>
/// What the kvm_intel module keeps for a whole host: whether TDX came up, what KVM offers of it, and the KeyIDs of TDs (arch/x86/kvm/vmx/tdx.c, arch/x86/virt/vmx/tdx).
/// </summary>
internal sealed class KvmIntel(SimHost host)
{
    public static readonly Rule NoHkid = new(
        "tdx.hkid.exhausted", "all KeyIDs for TDs are in use", "tdx_guest_keyid_alloc", "destroy a TD, or configure more KeyIDs (tdx.guest_hkids)", "hkids#");

    private readonly SortedSet<uint> _hkids = [];

    /// <summary>See <see cref="SimHost.SharedState"/>.</summary>
    public IEnumerable<object> SharedState => [_hkids];

    public TdxModuleConfig Module => host.Machine.Config.Tdx;

    /// <summary>kvm_intel.tdx, after bring-up: the module is there, two-dimensional paging is on, and KVM can offer what the module insists on.</summary>
    public bool TdxEnabled => host.Machine.Config.Platform == Platform.IntelTdx && Module.Enabled && host.Config.Tdp && SupportedAttributes != 0 && SupportedXfam != 0;

    /// <summary>tdx_get_supported_attrs: KVM offers SEPT_VE_DISABLE only.</summary>
    public ulong SupportedAttributes => Offer(TdxModule.SeptVeDisable, Module.AttributesFixed0, Module.AttributesFixed1);

    /// <summary>tdx_get_supported_xfam.</summary>
    public ulong SupportedXfam => Offer(Module.HostXcr0OrXss, Module.XfamFixed0, Module.XfamFixed1);

    /// <summary>kvm->max_vcpus of a TD.</summary>
    public int MaxVcpus => Math.Min(Vm.MaxVcpus, Module.PresentCpus);

    /// <summary>tdx_guest_keyid_alloc: the lowest free one; false where there is none.</summary>
    public bool TryAllocateHkid(out uint hkid)
    {
        host.Machine.Writing(_hkids);
        for (hkid = Module.FirstGuestHkid; hkid < Module.FirstGuestHkid + Module.GuestHkids; hkid++)
        {
            if (_hkids.Add(hkid))
            {
                return true;
            }
        }
        return false;
    }

    /// <summary>Somebody beside KVM uses it.</summary>
    public void TakeHkid(uint hkid)
    {
        host.Machine.Writing(_hkids);
        _hkids.Add(hkid);
    }

    public void FreeHkid(uint hkid)
    {
        host.Machine.Writing(_hkids);
        _hkids.Remove(hkid);
    }

    /// <summary>tdx_clear_page and its return to the host: what a TD left in it is gone.</summary>
    public void FreeClearedPage(KTask current, Pfn page)
    {
        host.Machine.HostZero(current, page);
        host.Machine.FreeFrame(current, page);
    }

    // A bit that the module insists on and KVM cannot offer leaves nothing to offer.
    private static ulong Offer(ulong kvm, ulong fixed0, ulong fixed1) => (kvm & fixed0 & fixed1) == fixed1 ? kvm & fixed0 : 0;
}
