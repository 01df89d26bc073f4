using SimKvm.Userspace;
using SimMachine;
using SimMachine.Addressing;
using SimMachine.Intel;
using SimMachine.Stepping;

namespace SimKvm.Vendors.Intel;

/// <summary>
/// The TDX module by hand: a device that no Linux has, through which a program issues SEAMCALLs, and lets vCPUs of TDs that it built itself issue TDCALLs. It gives pages of the
/// host for operands and takes no others, so that nothing of KVM's or of a process's can be touched; closing it tears down what was built and frees the pages.
/// </summary>
/// <remarks>Invariant: a page that the module has for a TD of this file is in <see cref="_pages"/>, and so is every TDR and TDVPR that the file remembers.</remarks>
internal sealed class TdxModuleFile(SimHost host) : KernelFile
{
    /// <summary>Pages that an open file may have.</summary>
    public const int MaxPages = 1 << 15;

    public static readonly Rule NoModule = new(
        "tdx.module.none", "the machine has no TDX module, or it is switched off", "open of the simulator's device", "make a host of platform INTEL_TDX");

    public static readonly Rule NotTheModule = new(
        "tdx.module.fd", "the descriptor is not the TDX module's", "the simulator's device", "open one with TdxModuleService.OpenTdxModule", "fd#");

    public static readonly Rule TooManyPages = new(
        "tdx.module.pages", "the file has as many pages as it may have, or the machine has no more", "the simulator's device", "free some, or give the host more memory_bytes", "asked#", "have#", "max#");

    public static readonly Rule NotOwnPage = new(
        "tdx.module.foreign-page", "the page is the kernel's, a process's or a guest's; SEAMCALLs by hand take pages of this file only", "the simulator's device",
        "use pages of TdxModuleService.AllocatePages", "operand#", "address");

    public static readonly Rule PageIsTds = new(
        "tdx.module.page-in-use", "the TDX module has the page", "the simulator's device", "TDH.MEM.PAGE.REMOVE it, or tear the TD down and reclaim it", "address", "page_type#");

    public static readonly Rule NotAVcpu = new(
        "tdx.module.vcpu", "the page is not the TDVPR of a vCPU that this file made", "the simulator's device", "TDH.VP.CREATE one", "tdvpr");

    public static readonly Rule NotInside = new(
        "tdx.module.outside", "the vCPU is not inside its TD", "the simulator's device", "TDH.VP.ENTER first; a vCPU leaves with every exit", "tdvpr");

    public static readonly Rule StatusNotSuccess = new(
        "tdx.module.status", "the SEAMCALL did not answer success", "seamcall_prerr", "see the cause before this one, if there is one, and the status", "leaf#", "status");

    private readonly SortedSet<ulong> _pages = [];

    // TDRs with their KeyIDs while they have one, and TDVPRs.
    private readonly SortedDictionary<ulong, uint?> _tds = [];
    private readonly SortedSet<ulong> _vcpus = [];

    public override FdKind Kind => FdKind.TdxModule;

    public override string Name => "TDX module (of the simulator)";

    /// <summary>Pages of this file, in order; for audits.</summary>
    internal IEnumerable<Pfn> Frames => _pages.Select(pfn => new Pfn(pfn));

    private Machine Machine => host.Machine;

    private TdxModule Module => host.Machine.Tdx;

    /// <summary>Takes pages of the host.</summary>
    /// <param name="huge">Runs of 512 pages, aligned to their size, instead of single ones.</param>
    internal Errno Allocate(KTask current, int count, bool huge, List<Pfn> taken)
    {
        int pages = huge ? (int)PageLevel.Page2M.PagesPerLevel() : 1;
        if ((long)count * pages > MaxPages - _pages.Count)
        {
            return current.Fail(Errno.ENOMEM, TooManyPages, (ulong)count, (ulong)_pages.Count, MaxPages);
        }
        for (int i = 0; i < count; i++)
        {
            Pfn first;
            if (huge ? !Machine.TryAllocateHugeFrame(PageLevel.Page2M, out first) : !Machine.TryAllocateFrame(out first))
            {
                Free(current, taken.SelectMany(run => Enumerable.Range(0, pages).Select(at => run + (ulong)at)));
                taken.Clear();
                return current.Fail(Errno.ENOMEM, TooManyPages, (ulong)count, (ulong)_pages.Count, MaxPages);
            }
            taken.Add(first);
            for (int at = 0; at < pages; at++)
            {
                _pages.Add(first.Value + (ulong)at);
            }
        }
        return Errno.OK;
    }

    /// <summary>Gives pages back; all of them, or none.</summary>
    internal Errno Free(KTask current, IReadOnlyList<ulong> addresses)
    {
        foreach (ulong address in addresses)
        {
            Errno errno = Find(current, address, out Pfn pfn);
            if (errno == Errno.OK && Module.TypeOf(pfn) != TdxPageType.NDA)
            {
                errno = current.Fail(Errno.EBUSY, PageIsTds, address, (ulong)Module.TypeOf(pfn));
            }
            if (errno != Errno.OK)
            {
                return errno;
            }
        }
        Free(current, addresses.Distinct().Select(address => new Pfn(address >> PageSize.Shift)));
        return Errno.OK;
    }

    /// <summary>A load by the host: a page that the module has reads as ciphertext.</summary>
    internal Errno Read(KTask current, ulong address, Span<byte> destination)
    {
        for (int done = 0; done < destination.Length;)
        {
            Errno errno = Find(current, (address + (ulong)done) & ~PageSize.OffsetMask, out Pfn pfn);
            if (errno != Errno.OK)
            {
                return errno;
            }
            int offset = (int)((address + (ulong)done) & PageSize.OffsetMask);
            int part = Math.Min(destination.Length - done, PageSize.Bytes - offset);
            Machine.HostRead(pfn, offset, destination.Slice(done, part));
            done += part;
        }
        return Errno.OK;
    }

    /// <summary>A store by the host. Into a page that the module has it poisons the TD's memory, which is a finding.</summary>
    internal Errno Write(KTask current, ulong address, ReadOnlySpan<byte> source)
    {
        for (int done = 0; done < source.Length;)
        {
            Errno errno = Find(current, (address + (ulong)done) & ~PageSize.OffsetMask, out Pfn pfn);
            if (errno != Errno.OK)
            {
                return errno;
            }
            int offset = (int)((address + (ulong)done) & PageSize.OffsetMask);
            int part = Math.Min(source.Length - done, PageSize.Bytes - offset);
            Machine.HostWrite(current, pfn, offset, source.Slice(done, part));
            done += part;
        }
        return Errno.OK;
    }

    /// <summary>SEAMCALL, on a processor of a package. Any status but success is EIO, as the kernel's wrapper makes it.</summary>
    internal Errno Seamcall(KTask current, ref TdcallRegisters registers, int package)
    {
        TdcallRegisters given = registers;
        SeamcallShape? shape = SeamcallShape.Of(given.Rax);
        Errno errno = CheckPages(current, shape, given);
        if (errno != Errno.OK)
        {
            return errno;
        }
        TdxStatus status = Module.Seamcall(current, ref registers, package);
        if (status != TdxStatus.SUCCESS)
        {
            return current.Fail(Errno.EIO, StatusNotSuccess, given.Rax & 0xffff, (ulong)status);
        }
        Remember(shape!.Leaf, given);
        return Errno.OK;
    }

    /// <summary>TDCALL of a vCPU that is inside. An exit takes it out.</summary>
    internal Errno Tdcall(KTask current, ulong tdvpr, ref TdcallRegisters registers, out TdGuestOutcome outcome, out ulong fault)
    {
        (outcome, fault) = (default, 0);
        Errno errno = FindVcpu(current, tdvpr, out Pfn page);
        if (errno == Errno.OK)
        {
            outcome = Module.Tdcall(current, page, ref registers, out fault);
            LeaveAfter(page, outcome);
        }
        return errno;
    }

    /// <summary>A load or store of a vCPU that is inside, within a page of private memory. A shared address has no translation here: nobody mapped any.</summary>
    internal Errno GuestAccess(KTask current, ulong tdvpr, ulong gpa, Span<byte> data, bool write, out TdGuestOutcome outcome)
    {
        outcome = default;
        Errno errno = FindVcpu(current, tdvpr, out Pfn vcpu);
        if (errno != Errno.OK)
        {
            return errno;
        }
        outcome = Module.GuestAccess(vcpu, gpa, out Pfn pfn);
        LeaveAfter(vcpu, outcome);
        if (outcome == TdGuestOutcome.Completed && write)
        {
            Machine.GuestWrite(Module.KeyOf(Module.TdrOf(vcpu)), pfn, (int)(gpa & PageSize.OffsetMask), data);
        }
        else if (outcome == TdGuestOutcome.Completed)
        {
            Machine.GuestRead(Module.KeyOf(Module.TdrOf(vcpu)), pfn, (int)(gpa & PageSize.OffsetMask), data);
        }
        return Errno.OK;
    }

    /// <summary>An interrupt takes a vCPU out of its TD.</summary>
    internal Errno Kick(KTask current, ulong tdvpr)
    {
        Errno errno = FindVcpu(current, tdvpr, out Pfn page);
        if (errno == Errno.OK)
        {
            Module.VpExit(page);
        }
        return errno;
    }

    /// <summary>TDs end as the kernel ends them, then all pages go back.</summary>
    internal override void Release(KTask current)
    {
        foreach (ulong tdvpr in _vcpus)
        {
            Module.VpExit(new Pfn(tdvpr));
            Module.VpFlush(current, new Pfn(tdvpr));
        }
        foreach ((ulong tdr, uint? hkid) in _tds)
        {
            if (hkid is null)
            {
                continue;
            }
            Module.MngVpflushdone(current, new Pfn(tdr));
            for (int package = 0; package < host.KvmIntel.Module.Packages; package++)
            {
                Module.PhymemCacheWb(current, package);
            }
            if (Module.MngKeyFreeid(current, new Pfn(tdr)) == TdxStatus.SUCCESS)
            {
                host.KvmIntel.FreeHkid(hkid.Value);
            }
        }
        foreach (ulong pfn in _pages.Where(pfn => !_tds.ContainsKey(pfn)).Concat(_tds.Keys))
        {
            Reclaim(current, new Pfn(pfn));
        }
        _pages.Clear();
    }

    private void Reclaim(KTask current, Pfn page)
    {
        if (Module.TypeOf(page) != TdxPageType.NDA && Module.PhymemPageReclaim(current, page, out _, out _, out _) != TdxStatus.SUCCESS)
        {
            Machine.LeakFrame(page);
            Machine.FreeFrame(current, page);
            return;
        }
        host.KvmIntel.FreeClearedPage(current, page);
    }

    private void Free(KTask current, IEnumerable<Pfn> pages)
    {
        foreach (Pfn page in pages)
        {
            _pages.Remove(page.Value);
            Machine.FreeFrame(current, page);
        }
    }

    private Errno Find(KTask current, ulong address, out Pfn pfn)
    {
        pfn = new Pfn(address >> PageSize.Shift);
        return (address & PageSize.OffsetMask) == 0 && _pages.Contains(pfn.Value) ? Errno.OK : current.Fail(Errno.EPERM, NotOwnPage, 0, address);
    }

    private Errno FindVcpu(KTask current, ulong tdvpr, out Pfn page)
    {
        page = new Pfn(tdvpr >> PageSize.Shift);
        return (tdvpr & PageSize.OffsetMask) != 0 || !_vcpus.Contains(page.Value) ? current.Fail(Errno.EINVAL, NotAVcpu, tdvpr)
            : !Module.IsVcpuInside(page) ? current.Fail(Errno.EINVAL, NotInside, tdvpr)
            : Errno.OK;
    }

    // Frames that somebody else has are not to be touched. What nobody has, or what is no memory at all, is the module's to refuse.
    private Errno CheckPages(KTask current, SeamcallShape? shape, in TdcallRegisters registers)
    {
        bool looksOnly = shape is null or { Leaf: SeamcallLeaf.TDH_PHYMEM_PAGE_RDMD };
        foreach (SeamcallOperand operand in looksOnly ? [] : shape!.Operands)
        {
            if (operand.Kind is not (SeamcallOperandKind.Page or SeamcallOperandKind.Source))
            {
                continue;
            }
            ulong address = SeamcallShape.Operand(registers, operand.Register);
            bool isHuge = shape!.Leaf == SeamcallLeaf.TDH_MEM_PAGE_AUG && operand.Register == TdxOperand.R8 && (registers.Rcx & 7) == 1;
            for (ulong i = 0; i < (isHuge ? PageLevel.Page2M.PagesPerLevel() : 1); i++)
            {
                Pfn pfn = new Pfn(address >> PageSize.Shift) + i;
                if (Machine.IsAllocated(pfn) && !_pages.Contains(pfn.Value))
                {
                    return current.Fail(Errno.EPERM, NotOwnPage, (ulong)operand.Register, pfn.ToAddress());
                }
            }
        }
        return Errno.OK;
    }

    // What teardown has to know. KVM must not use a KeyID that is in use here.
    private void Remember(SeamcallLeaf leaf, in TdcallRegisters registers)
    {
        ulong page = registers.Rcx >> PageSize.Shift;
        switch (leaf)
        {
            case SeamcallLeaf.TDH_MNG_CREATE:
                _tds[page] = (uint)registers.Rdx;
                host.KvmIntel.TakeHkid((uint)registers.Rdx);
                break;
            case SeamcallLeaf.TDH_VP_CREATE:
                _vcpus.Add(page);
                break;
            case SeamcallLeaf.TDH_MNG_KEY_FREEID when _tds[page] is { } hkid:
                host.KvmIntel.FreeHkid(hkid);
                _tds[page] = null;
                break;
            case SeamcallLeaf.TDH_PHYMEM_PAGE_RECLAIM:
                _tds.Remove(page);
                _vcpus.Remove(page);
                break;
        }
    }

    private void LeaveAfter(Pfn tdvpr, TdGuestOutcome outcome)
    {
        if (outcome is TdGuestOutcome.Vmcall or TdGuestOutcome.EptViolation or TdGuestOutcome.PendingEptViolation)
        {
            Module.VpExit(tdvpr);
        }
    }
}
