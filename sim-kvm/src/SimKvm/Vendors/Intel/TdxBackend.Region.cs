using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Userspace;
using SimMachine.Addressing;
using SimMachine.Intel;
using SimMachine.Measurement;
using SimMachine.Stepping;

namespace SimKvm.Vendors.Intel;

// KVM_TDX_INIT_MEM_REGION (tdx_vcpu_init_mem_region, tdx_gmem_post_populate) and KVM_TDX_FINALIZE_VM (tdx_td_finalize). slots_lock is held.
internal sealed partial class TdxBackend
{
    public static readonly Rule VcpuNotInitialised = new(
        "tdx.init-mem-region.vcpu", "the vCPU is not initialised", "tdx_vcpu_init_mem_region", "KVM_TDX_INIT_VCPU first", "vcpu#");

    public static readonly Rule RegionAfterFinalize = new(
        "tdx.init-mem-region.final", "the TD is final: nothing can be added to its measurement", "tdx_vcpu_init_mem_region", "add initial memory before KVM_TDX_FINALIZE_VM", "state#");

    public static readonly Rule BadRegion = new(
        "tdx.init-mem-region.range", "the source or the gpa is not page aligned, the region is empty or wraps, or it has the shared bit", "tdx_vcpu_init_mem_region",
        "align both to 4096, and leave the shared bit out", "source_addr", "gpa", "nr_pages", "shared_bit");

    public static readonly Rule PageStopped = new(
        "tdx.init-mem-region.page", "a page could not be added; the region that was written back begins there", "tdx_vcpu_init_mem_region",
        "see the cause before this one; call again with what is left", "gpa", "pages_left#");

    public static readonly Rule NullSource = new(
        "tdx.post-populate.null-source", "a page of a TD is copied from a source", "tdx_gmem_post_populate", "pass a user address in source_addr", "gpa");

    public static readonly Rule SourceNotThere = new(
        "tdx.post-populate.source", "the source page cannot be read", "tdx_gmem_post_populate: get_user_pages_fast", "map readable memory at the address", "gpa", "uaddr");

    public static readonly Rule MirrorHasPage = new(
        "tdx.post-populate.mapped", "the gfn has a page already", "kvm_tdp_mmu_map_private_pfn", "add each page once; punch a hole to start over", "gpa", "gfn");

    public static readonly Rule PageAddFailed = new(
        "tdx.post-populate.page-add", "the module did not add the page", "tdx_gmem_post_populate, tdx_mem_page_add", "see the cause before this one", "gpa", "pfn", "status");

    public static readonly Rule ExtendFailed = new(
        "tdx.post-populate.extend", "the module did not measure the page", "tdx_gmem_post_populate: tdh_mr_extend", "see the cause before this one", "gpa", "status");

    public static readonly Rule NotReadyToFinalize = new(
        "tdx.finalize.state", "the TD is not initialised, or is final already (0 uninitialised, 1 initialised, 2 runnable)", "tdx_td_finalize", "finalize a TD once, when it is built", "state#");

    public static readonly Rule PremappedLeft = new(
        "tdx.finalize.premapped", "pages are in the mirror that the module did not take", "tdx_td_finalize: nr_premapped", "punch holes where adding failed, or add the pages again", "pages#");

    public static readonly Rule FinalizeBusy = new(
        "tdx.finalize.busy", "the module is busy with the TD", "tdx_td_finalize", "call again", "status");

    // nr_premapped: leaves of the mirror that the module does not have (before 6.19).
    private long _nrPremapped;

    private long Premapped
    {
        get
        {
            _host.Machine.Reading(this, PremappedKey, PremappedKey + 1);
            return _nrPremapped;
        }

        set
        {
            _host.Machine.Writing(this, PremappedKey, PremappedKey + 1);
            _nrPremapped = value;
        }
    }

    // kvm_tdx->page_add_src: what the Secure EPT operation adds, while the initial memory is populated (6.19 and later).
    private Pfn _pageAddSource;

    // Why the last operation on the Secure EPT refused, for the errno of who asked.
    private bool _pageAddFailed;

    public override bool PreFaultAllowed => State == TdState.Runnable;

    // tdx_vcpu_init_mem_region
    private Errno InitMemRegion(KTask current, Vcpu vcpu, in kvm_tdx_cmd cmd)
    {
        if (vcpu.Tdx is null)
        {
            return current.Fail(Errno.EINVAL, VcpuNotInitialised, vcpu.Id);
        }
        if (State == TdState.Runnable)
        {
            return current.Fail(Errno.EINVAL, RegionAfterFinalize, (ulong)State);
        }
        if ((cmd.flags & ~kvm_tdx_init_mem_region.MEASURE) != 0)
        {
            return current.Fail(Errno.EINVAL, CommandFlags, cmd.id, cmd.flags);
        }
        Errno errno = UserArg.FromValue(cmd.data).CopyIn(current, out kvm_tdx_init_mem_region region);
        if (errno != Errno.OK)
        {
            return errno;
        }
        ulong size = region.nr_pages << PageSize.Shift;
        bool aligned = ((region.source_addr | region.gpa) & PageSize.OffsetMask) == 0;
        bool isPrivate = ((region.gpa | (region.gpa + size - 1)) & _sharedBit) == 0;
        if (!aligned || region.nr_pages == 0 || region.gpa + size <= region.gpa || !isPrivate)
        {
            return current.Fail(Errno.EINVAL, BadRegion, region.source_addr, region.gpa, region.nr_pages, _sharedBit);
        }
        errno = AddRegion(current, vcpu, (cmd.flags & kvm_tdx_init_mem_region.MEASURE) != 0, ref region);
        Errno copied = UserArg.FromValue(cmd.data).CopyOut(current, region);
        return copied != Errno.OK ? copied : errno;
    }

    // One page at a time, so that what is written back is exact.
    private Errno AddRegion(KTask current, Vcpu vcpu, bool measure, ref kvm_tdx_init_mem_region region)
    {
        using var srcu = Vm.Srcu.EnterShared(current);
        var first = new Gfn(region.gpa >> PageSize.Shift);
        bool measureAtEnd = measure && _host.Profile.TdxExtendsRegionAtEnd;
        ulong pages = region.nr_pages;
        for (; region.nr_pages > 0; region.nr_pages--, region.gpa += PageSize.Bytes, region.source_addr += PageSize.Bytes)
        {
            if (current.SignalPending)
            {
                return current.Fail(Errno.EINTR, GuestMemfd.Interrupted);
            }
            SyscallResult populated = GuestMemfd.Populate(
                current, Vm, new Gfn(region.gpa >> PageSize.Shift), region.source_addr, 1, mayWriteBack: false,
                (KTask task, Gfn gfn, Pfn pfn, in PopulateSource source) => PostPopulate(task, vcpu, gfn, pfn, source, measure && !measureAtEnd));
            if (!populated.Succeeded || populated.Value != 1)
            {
                return current.Fail(populated.Succeeded ? Errno.EIO : populated.Errno, PageStopped, region.gpa, region.nr_pages);
            }
        }
        Errno errno = Errno.OK;
        for (ulong i = 0; measureAtEnd && errno == Errno.OK && i < pages; i++)
        {
            errno = Extend(current, first + i);
        }
        return errno;
    }

    // tdx_gmem_post_populate, one page.
    private Errno PostPopulate(KTask current, Vcpu vcpu, Gfn gfn, Pfn pfn, in PopulateSource source, bool measure)
    {
        Errno errno = FindSource(current, gfn, pfn, source, out Pfn page);
        if (errno != Errno.OK)
        {
            return errno;
        }
        errno = _host.Profile.TdxAddsWhileMapping ? AddWhileMapping(current, vcpu, gfn, pfn, page) : MapThenAdd(current, vcpu, gfn, pfn, page);
        return errno == Errno.OK && measure ? Extend(current, gfn) : errno;
    }

    private Errno FindSource(KTask current, Gfn gfn, Pfn pfn, in PopulateSource source, out Pfn page)
    {
        page = pfn;
        if (source.Page is { } pinned)
        {
            page = pinned;
            return Errno.OK;
        }
        if (_host.Profile.Populate == Profiles.PopulateDesign.PerPage)
        {
            // A source that is not given means that the page has its content already, where pages can convert in place.
            return _host.Profile.TdxAddsInPlace ? Errno.OK : current.Fail(Errno.EOPNOTSUPP, NullSource, gfn.ToGpa().Value);
        }
        return current.Process.Memory.Pin(current, source.Uaddr, write: false, out page) == Errno.OK
            ? Errno.OK
            : current.Fail(Errno.EFAULT, SourceNotThere, gfn.ToGpa().Value, source.Uaddr);
    }

    // Up to 6.18: the page is faulted into the mirror as a guest would, then added. One that is in the mirror and not in the module counts as premapped.
    private Errno MapThenAdd(KTask current, Vcpu vcpu, Gfn gfn, Pfn pfn, Pfn source)
    {
        Errno errno = vcpu.MapPrivatePage(current, gfn);
        if (errno != Errno.OK)
        {
            return errno;
        }
        TdxStatus status = Module.MemPageAdd(current, Tdr, TdxModule.Mapping(gfn.ToGpa().Value, 0), pfn, source, out _);
        if (status != TdxStatus.SUCCESS)
        {
            return current.Fail(IsBusy(status) ? Errno.EBUSY : Errno.EIO, PageAddFailed, gfn.ToGpa().Value, pfn.Value, (ulong)status);
        }
        Premapped--;
        return Errno.OK;
    }

    // kvm_tdp_mmu_map_private_pfn, 6.19 and later: mapping the page is adding it.
    private Errno AddWhileMapping(KTask current, Vcpu vcpu, Gfn gfn, Pfn pfn, Pfn source)
    {
        Errno errno = TopupExternalSptCache(current, vcpu, gfn);
        if (errno != Errno.OK)
        {
            return errno;
        }
        _pageAddSource = source;
        _pageAddFailed = false;
        RetPf result = RetPf.Retry;
        var fault = new PageFault
        {
            Gfn = gfn,
            Pfn = pfn,
            IsPrivate = true,
            Prefetch = true,
            Slot = Vm.Memslots.Find(gfn),
            MapWritable = true,
            FromGmem = true,
            GoalLevel = PageLevel.Page4K,
        };
        for (int tries = 0; result == RetPf.Retry && tries < Vcpu.MaxFruitlessEntries; tries++)
        {
            if (current.SignalPending)
            {
                _pageAddSource = default;
                return current.Fail(Errno.EINTR, GuestMemfd.Interrupted);
            }
            if (Vm.Dead)
            {
                break;
            }
            int causes = current.Causes.Count;
            result = Vm.Mmu.MapPage(current, vcpu, fault);
            if (result == RetPf.Retry && !_pageAddFailed && !Vm.Dead)
            {
                // Busy, and tried again.
                current.ForgetCausesAfter(causes);
            }
        }
        _pageAddSource = default;
        return result switch
        {
            RetPf.Fixed => Errno.OK,
            RetPf.Retry when !Vm.Dead => current.Fail(Errno.EINTR, Vcpu.Livelock, gfn.ToGpa().Value, 0),
            RetPf.Retry => Errno.EIO,
            _ => current.Fail(Errno.EIO, MirrorHasPage, gfn.ToGpa().Value, gfn.Value),
        };
    }

    private Errno Extend(KTask current, Gfn gfn)
    {
        for (ulong offset = 0; offset < PageSize.Bytes; offset += MrtdTranscript.ChunkSize)
        {
            TdxStatus status = Module.MrExtend(current, Tdr, gfn.ToGpa().Value + offset, out _);
            if (status == TdxStatus.SUCCESS)
            {
                continue;
            }
            if (_host.Profile.TdxAddsWhileMapping)
            {
                Vm.Bug(current, $"TDH.MR.EXTEND: {status.Name()}");
            }
            return current.Fail(Errno.EIO, ExtendFailed, gfn.ToGpa().Value + offset, (ulong)status);
        }
        return Errno.OK;
    }

    // tdx_td_finalize. flags and data are not looked at.
    private Errno FinalizeVm(KTask current, ref kvm_tdx_cmd cmd)
    {
        if (!HasHkid || State == TdState.Runnable)
        {
            return current.Fail(Errno.EINVAL, NotReadyToFinalize, (ulong)State);
        }
        if (Premapped != 0)
        {
            return current.Fail(Errno.EINVAL, PremappedLeft, (ulong)Premapped);
        }
        TdxStatus status = Module.MrFinalize(current, Tdr);
        cmd.hw_error = (ulong)status;
        if (IsBusy(status))
        {
            return current.Fail(Errno.EBUSY, FinalizeBusy, (ulong)status);
        }
        if (status != TdxStatus.SUCCESS)
        {
            Vm.Bug(current, $"TDH.MR.FINALIZE: {status.Name()}");
            return current.Fail(Errno.EIO, SeamcallFailed, (ulong)SeamcallLeaf.TDH_MR_FINALIZE, (ulong)status);
        }
        State = TdState.Runnable;
        return Errno.OK;
    }
}
