using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimMachine.Intel;

// SEAMCALL as the instruction is: registers in, registers out. The leaves themselves are next door; here operands are taken from registers and results put into them.
public sealed partial class TdxModule
{
    public static readonly Rule NoSuchLeaf = new(
        "tdx.seamcall.leaf", "the module has no such leaf, or not in that version", "vmm_dispatcher", "use a leaf of SeamcallShape.All; version 1 is for TDH.VP.INIT", "leaf#", "version#");

    public static readonly Rule NotAligned = new(
        "tdx.seamcall.alignment", "the host physical address is not one of a page", "is_addr_aligned", "align it to 4096", "leaf#", "operand#");

    public static readonly Rule OutOfRange = new(
        "tdx.seamcall.range", "the module does not manage that memory: it is beyond the machine's", "pamt_walk", "use an address of the machine's memory", "leaf#", "pfn", "pages");

    public static readonly Rule BadParamsAddress = new(
        "tdx.mng-init.address", "TD_PARAMS is not in a page that the host can read, or not aligned to 1024 bytes", "tdh_mng_init", "put it at the start of a page of the host", "address");

    private const int VersionShift = 16;
    private const ulong VersionMask = 0xff;

    // Stands for an address that is not a page's, where a leaf looks at pages.
    private static readonly Pfn s_notAPage = new(ulong.MaxValue);

    /// <summary>SEAMCALL. RAX bits 15:0 are the leaf, 23:16 its version.</summary>
    /// <param name="registers">Operands in, results out; RAX is the completion status.</param>
    /// <param name="package">Of the processor that executes it.</param>
    public TdxStatus Seamcall(SimThread thread, ref TdcallRegisters registers, int package)
    {
        ulong rax = registers.Rax;
        ulong version = (rax >> VersionShift) & VersionMask;
        bool known = SeamcallShape.Of(rax) is { } shape && rax >> (VersionShift + 8) == 0 && (version == 0 || (version == 1 && shape.Leaf == SeamcallLeaf.TDH_VP_INIT));
        TdxStatus status = known
            ? Execute(thread, (SeamcallLeaf)(rax & 0xffff), version, ref registers, package)
            : thread.Fail(TdxStatus.OPERAND_INVALID.With(TdxOperand.RAX), NoSuchLeaf, rax & 0xffff, version);
        registers.Rax = (ulong)status;
        return status;
    }

    private TdxStatus Execute(SimThread thread, SeamcallLeaf leaf, ulong version, ref TdcallRegisters registers, int package)
    {
        (ulong rcx, ulong rdx, ulong r8) = (registers.Rcx, registers.Rdx, registers.R8);
        TdxStatus status;
        switch (leaf)
        {
            case SeamcallLeaf.TDH_VP_ENTER:
                return VpEnter(thread, PageAt(rcx));
            case SeamcallLeaf.TDH_MNG_ADDCX:
                return MngAddcx(thread, PageAt(rcx), PageAt(rdx));
            case SeamcallLeaf.TDH_VP_ADDCX:
                return VpAddcx(thread, PageAt(rcx), PageAt(rdx));
            case SeamcallLeaf.TDH_MNG_KEY_CONFIG:
                return MngKeyConfig(thread, PageAt(rcx), package);
            case SeamcallLeaf.TDH_MNG_CREATE:
                return MngCreate(thread, PageAt(rcx), (uint)Math.Min(rdx, uint.MaxValue));
            case SeamcallLeaf.TDH_VP_CREATE:
                return VpCreate(thread, PageAt(rcx), PageAt(rdx));
            case SeamcallLeaf.TDH_MNG_INIT:
                status = MngInitAt(thread, PageAt(rcx), rdx, out ulong culprit);
                registers.Rcx = culprit;
                return status;
            case SeamcallLeaf.TDH_VP_INIT:
                return VpInit(thread, PageAt(rcx), rdx, version == 0 ? null : (uint)r8);
            case SeamcallLeaf.TDH_MR_FINALIZE:
                return MrFinalize(thread, PageAt(rcx));
            case SeamcallLeaf.TDH_VP_FLUSH:
                return VpFlush(thread, PageAt(rcx));
            case SeamcallLeaf.TDH_MNG_VPFLUSHDONE:
                return MngVpflushdone(thread, PageAt(rcx));
            case SeamcallLeaf.TDH_MNG_KEY_FREEID:
                return MngKeyFreeid(thread, PageAt(rcx));
            case SeamcallLeaf.TDH_MEM_TRACK:
                return MemTrack(thread, PageAt(rcx));
            case SeamcallLeaf.TDH_PHYMEM_CACHE_WB:
                return PhymemCacheWb(thread, package);
            case SeamcallLeaf.TDH_MNG_RD:
                return MngRd(thread, PageAt(rcx), rdx, ref registers);
            case SeamcallLeaf.TDH_VP_RD:
                return VpRd(thread, PageAt(rcx), rdx, ref registers);
            case SeamcallLeaf.TDH_VP_WR:
                return VpWr(thread, PageAt(rcx), rdx, ref registers);
            case SeamcallLeaf.TDH_PHYMEM_PAGE_RDMD or SeamcallLeaf.TDH_PHYMEM_PAGE_RECLAIM or SeamcallLeaf.TDH_PHYMEM_PAGE_WBINVD:
                return OfAnyPage(thread, leaf, PageAt(rcx), ref registers);
            default:
                return OfAnEntry(thread, leaf, ref registers);
        }
    }

    // Leaves about a page, whoever has it.
    private TdxStatus OfAnyPage(SimThread thread, SeamcallLeaf leaf, Pfn page, ref TdcallRegisters registers)
    {
        TdxStatus status = CheckAddress(thread, leaf, page, TdxOperand.RCX);
        if (status != TdxStatus.SUCCESS)
        {
            return status;
        }
        if (leaf == SeamcallLeaf.TDH_PHYMEM_PAGE_WBINVD)
        {
            return PhymemPageWbinvd(thread, page);
        }
        ulong bepoch = _pamt[page].Bepoch;
        status = leaf == SeamcallLeaf.TDH_PHYMEM_PAGE_RDMD
            ? PhymemPageRdmd(thread, page, out TdxPageType type, out Pfn owner, out int level)
            : PhymemPageReclaim(thread, page, out type, out owner, out level);
        (registers.Rcx, registers.Rdx, registers.R8) = ((ulong)type, owner.ToAddress(), (ulong)level);
        registers.R9 = leaf == SeamcallLeaf.TDH_PHYMEM_PAGE_RDMD ? bepoch : registers.R9;
        return status;
    }

    // Leaves about an entry of a Secure EPT. A call that did not do what was asked tells the entry that it met.
    private TdxStatus OfAnEntry(SimThread thread, SeamcallLeaf leaf, ref TdcallRegisters registers)
    {
        (ulong mapping, Pfn tdr, Pfn page) = (registers.Rcx, PageAt(registers.Rdx), PageAt(registers.R8));
        Pfn table = default;
        SeptInfo info = default;
        TdxStatus status = leaf switch
        {
            SeamcallLeaf.TDH_MEM_PAGE_ADD => MemPageAdd(thread, tdr, mapping, page, PageAt(registers.R9), out info),
            SeamcallLeaf.TDH_MEM_SEPT_ADD => MemSeptAdd(thread, tdr, mapping, page, out info),
            SeamcallLeaf.TDH_MEM_PAGE_AUG => MemPageAug(thread, tdr, mapping, page, out info),
            SeamcallLeaf.TDH_MEM_RANGE_BLOCK => MemRangeBlock(thread, tdr, mapping, out info),
            SeamcallLeaf.TDH_MEM_RANGE_UNBLOCK => MemRangeUnblock(thread, tdr, mapping, out info),
            SeamcallLeaf.TDH_MEM_PAGE_REMOVE => MemPageRemove(thread, tdr, mapping, out info),
            SeamcallLeaf.TDH_MEM_SEPT_REMOVE => MemSeptRemove(thread, tdr, mapping, out info),
            SeamcallLeaf.TDH_MEM_PAGE_DEMOTE => MemPageDemote(thread, tdr, mapping, page, out info),
            SeamcallLeaf.TDH_MEM_PAGE_PROMOTE => MemPagePromote(thread, tdr, mapping, out table, out info),
            SeamcallLeaf.TDH_MR_EXTEND => MrExtend(thread, tdr, mapping, out info),
            _ => throw new ArgumentOutOfRangeException(nameof(leaf), leaf, "not a leaf about an entry"),
        };
        (registers.Rcx, registers.Rdx) = status == TdxStatus.SUCCESS ? (table.ToAddress(), 0) : (info.Entry, info.Rdx);
        return status;
    }

    // TDH.MNG.INIT reads TD_PARAMS after it has the TD.
    private TdxStatus MngInitAt(SimThread thread, Pfn tdr, ulong address, out ulong rcx)
    {
        const SeamcallLeaf leaf = SeamcallLeaf.TDH_MNG_INIT;
        var page = new Pfn(address >> PageSize.Shift);
        if (address % TdParams.Size == 0 && _machine.IsAllocated(page) && !Has(page))
        {
            Span<byte> tdParams = stackalloc byte[TdParams.Size];
            _machine.HostRead(page, (int)(address & PageSize.OffsetMask), tdParams);
            return MngInit(thread, tdr, tdParams, out rcx);
        }
        rcx = 0;
        using var hold = new TdxHold();
        if (!Begin(thread, leaf, tdr.Value, address, out TdxStatus status))
        {
            return status;
        }
        status = LockTdr(thread, leaf, tdr, TdxOperand.RCX, exclusive: true, hold, out Td td);
        status = status != TdxStatus.SUCCESS ? status : CheckState(thread, leaf, td, exclusive: true, TdOpState.Uninitialized, TdOpState.Uninitialized, hold);
        return status != TdxStatus.SUCCESS ? status : thread.Fail(TdxStatus.OPERAND_INVALID.With(TdxOperand.RDX), BadParamsAddress, address);
    }

    // What the kernel passes is a page of the machine's always; what a person passes need not be.
    private TdxStatus CheckAddress(SimThread thread, SeamcallLeaf leaf, Pfn page, TdxOperand operand)
    {
        ulong pages = _machine.Config.MemoryBytes >> PageSize.Shift;
        return page == s_notAPage ? thread.Fail(TdxStatus.OPERAND_INVALID.With(operand), NotAligned, (ulong)leaf, (ulong)operand)
            : page.Value > pages ? thread.Fail(TdxStatus.OPERAND_ADDR_RANGE_ERROR.With(operand), OutOfRange, (ulong)leaf, page.Value, pages)
            : TdxStatus.SUCCESS;
    }

    private static Pfn PageAt(ulong address) => (address & PageSize.OffsetMask) == 0 ? new Pfn(address >> PageSize.Shift) : s_notAPage;
}
