using SimKvm.Kvm;
using SimMachine.Addressing;
using SimMachine.Intel;
using SimMachine.Measurement;

namespace SimKvm.Vendors.Intel;

// The end of a TD: its KeyID goes first, then its vCPUs, tables and control pages are reclaimed (tdx_mmu_release_hkid, tdx_vcpu_free, tdx_vm_destroy).
internal sealed partial class TdxBackend
{
    // Control pages of vCPUs whose initialisation failed half way.
    private readonly List<Pfn> _orphans = [];

    public override IEnumerable<Pfn> Frames =>
        Vm.Vcpus.SelectMany(vcpu => (vcpu.Tdx?.Pages ?? []).Concat(vcpu.ExternalSptCache)).Concat(_orphans).Concat(_tables.Values).Concat(_tdcs).Append(Tdr).Where(pfn => pfn.Value != 0);

    public override ReadOnlyMemory<byte> Measurement => Module.Describe(Tdr)?.Mrtd;

    public override IEnumerable<SeptPage> SecureEptPages => Module.Pages(Tdr);

    // A page that was removed and added again is in MRTD twice.
    public override IEnumerable<ulong> MeasuredTwice => Module.Describe(Tdr) is not { } td
        ? []
        : td.Transcript.Read(0, td.Transcript.Count).Where(record => record.Call == MrtdCall.PageAdd).GroupBy(record => record.Gpa).Where(pages => pages.Count() > 1).Select(pages => pages.Key);

    /// <summary>kvm_arch_pre_destroy_vm.</summary>
    public override void PreDestroy(KTask current) => ReleaseHkid(current);

    public override void VcpuFree(KTask current, Vcpu vcpu)
    {
        foreach (Pfn page in vcpu.Tdx?.Pages.Reverse() ?? [])
        {
            Reclaim(current, page);
        }
        vcpu.Tdx = null;
        GiveBack(current, vcpu.ExternalSptCache);
        vcpu.ExternalSptCache.Clear();
    }

    public override void VmDestroy(KTask current) => ReclaimControlPages(current);

    // What INIT_VM made before it failed.
    private void ReleaseTd(KTask current)
    {
        int causes = current.Causes.Count;
        ReleaseHkid(current);
        ReclaimControlPages(current);
        current.ForgetCausesAfter(causes);
    }

    // tdx_mmu_release_hkid. A KeyID that the module does not free is never used again.
    private void ReleaseHkid(KTask current)
    {
        if (!HasHkid)
        {
            FreeHkid();
            return;
        }
        foreach (Vcpu vcpu in Vm.Vcpus)
        {
            if (vcpu.Tdx is { } tdx && Module.VpFlush(current, tdx.Tdvpr) is var flushed && flushed.Class() is not (TdxStatus.SUCCESS or TdxStatus.VCPU_NOT_ASSOCIATED))
            {
                Vm.Bug(current, $"TDH.VP.FLUSH: {flushed.Name()}");
            }
        }
        TdxStatus status = Module.MngVpflushdone(current, Tdr);
        for (int package = 0; status == TdxStatus.SUCCESS && package < Intel.Module.Packages; package++)
        {
            status = Module.PhymemCacheWb(current, package);
        }
        status = status == TdxStatus.SUCCESS ? Module.MngKeyFreeid(current, Tdr) : status;
        if (status == TdxStatus.SUCCESS)
        {
            FreeHkid();
        }
        else
        {
            Vm.Bug(current, $"the KeyID could not be freed and is leaked: {status.Name()}");
        }
    }

    private void FreeHkid()
    {
        if (_hkid != 0)
        {
            Intel.FreeHkid(_hkid);
            _hkid = 0;
        }
    }

    private void ReclaimControlPages(KTask current)
    {
        foreach (Pfn page in _tables.Values.Concat(_orphans).Concat(_tdcs))
        {
            Reclaim(current, page);
        }
        if (HasHkid)
        {
            Reclaim(current, Tdr);
        }
        _tables.Clear();
        _orphans.Clear();
        _tdcs.Clear();
        Tdr = default;
    }

    // tdx_reclaim_page: a page that the module does not give back stays out of use. One that it never had is the host's already.
    private void Reclaim(KTask current, Pfn page)
    {
        if (Module.PhymemPageRdmd(current, page, out TdxPageType type, out _, out _) == TdxStatus.SUCCESS && type == TdxPageType.NDA)
        {
            _host.Machine.FreeFrame(current, page);
            return;
        }
        TdxStatus status = Module.PhymemPageReclaim(current, page, out _, out _, out _);
        if (status == TdxStatus.SUCCESS)
        {
            Intel.FreeClearedPage(current, page);
        }
        else
        {
            _host.Machine.LeakFrame(page);
            _host.Machine.FreeFrame(current, page);
        }
    }
}
