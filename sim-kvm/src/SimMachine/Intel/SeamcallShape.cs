namespace SimMachine.Intel;

/// <summary>What a register means to a SEAMCALL leaf.</summary>
public enum SeamcallOperandKind
{
    /// <summary>Host physical address of a page of 4 KiB that the module has, or takes.</summary>
    Page,

    /// <summary>Host physical address of something that the module only reads.</summary>
    Source,

    /// <summary>Level in bits 2:0, private guest physical address in 51:12.</summary>
    Mapping,

    /// <summary>A number.</summary>
    Value,
}

/// <summary>An operand of a leaf.</summary>
/// <param name="Register">RCX, RDX, R8 or R9.</param>
/// <param name="Meaning">In a few words.</param>
public readonly record struct SeamcallOperand(TdxOperand Register, SeamcallOperandKind Kind, string Meaning);

/// <summary>A SEAMCALL leaf as its caller sees it: registers in, and what comes back (TDX module ABI, host-side interface functions).</summary>
/// <param name="Does">In one sentence.</param>
/// <param name="Results">Registers after success; empty where only RAX counts.</param>
public sealed record SeamcallShape(SeamcallLeaf Leaf, string Does, IReadOnlyList<SeamcallOperand> Operands, string Results = "")
{
    private static readonly SeamcallOperand s_mapping = new(TdxOperand.RCX, SeamcallOperandKind.Mapping, "level | gpa");
    private static readonly SeamcallOperand s_tdrInRcx = new(TdxOperand.RCX, SeamcallOperandKind.Page, "TDR");
    private static readonly SeamcallOperand s_tdrInRdx = new(TdxOperand.RDX, SeamcallOperandKind.Page, "TDR");
    private static readonly SeamcallOperand s_tdvprInRcx = new(TdxOperand.RCX, SeamcallOperandKind.Page, "TDVPR");

    /// <summary>Every leaf of this module, by number.</summary>
    public static IReadOnlyList<SeamcallShape> All { get; } =
    [
        new(SeamcallLeaf.TDH_VP_ENTER, "a vCPU enters its TD; it is inside until it exits", [s_tdvprInRcx]),
        new(SeamcallLeaf.TDH_MNG_ADDCX, "one more control page for a TD", [Page(TdxOperand.RCX, "a free page"), s_tdrInRdx]),
        new(SeamcallLeaf.TDH_MEM_PAGE_ADD, "a page of initial memory is copied, encrypted and recorded in MRTD",
            [s_mapping, s_tdrInRdx, Page(TdxOperand.R8, "a free page, the target"), new(TdxOperand.R9, SeamcallOperandKind.Source, "the source page; it may be the target")]),
        new(SeamcallLeaf.TDH_MEM_SEPT_ADD, "a free page becomes the table below an entry of level 1 or higher", [s_mapping, s_tdrInRdx, Page(TdxOperand.R8, "a free page")]),
        new(SeamcallLeaf.TDH_VP_ADDCX, "one more control page for a vCPU", [Page(TdxOperand.RCX, "a free page"), Page(TdxOperand.RDX, "TDVPR")]),
        new(SeamcallLeaf.TDH_MEM_PAGE_AUG, "a page that the TD has to accept", [s_mapping, s_tdrInRdx, Page(TdxOperand.R8, "a free page, or the first of 512 for level 1")]),
        new(SeamcallLeaf.TDH_MEM_RANGE_BLOCK, "no new translation is made from an entry", [s_mapping, s_tdrInRdx]),
        new(SeamcallLeaf.TDH_MNG_KEY_CONFIG, "the TD's KeyID gets a key on the caller's package", [s_tdrInRcx]),
        new(SeamcallLeaf.TDH_MNG_CREATE, "a free page becomes the TDR of a new TD", [Page(TdxOperand.RCX, "a free page"), new(TdxOperand.RDX, SeamcallOperandKind.Value, "KeyID")]),
        new(SeamcallLeaf.TDH_VP_CREATE, "a free page becomes the TDVPR of a new vCPU", [Page(TdxOperand.RCX, "a free page"), s_tdrInRdx]),
        new(SeamcallLeaf.TDH_MNG_RD, "reads a metadata field of a TD", [s_tdrInRcx, new(TdxOperand.RDX, SeamcallOperandKind.Value, "field id")], "r8: the value"),
        new(SeamcallLeaf.TDH_MEM_PAGE_DEMOTE, "a huge mapping becomes a table of 512 smaller ones", [s_mapping, s_tdrInRdx, Page(TdxOperand.R8, "a free page, the table")]),
        new(SeamcallLeaf.TDH_MR_EXTEND, "256 bytes of a page that was added go into MRTD", [new(TdxOperand.RCX, SeamcallOperandKind.Value, "gpa of the chunk"), s_tdrInRdx]),
        new(SeamcallLeaf.TDH_MR_FINALIZE, "MRTD is final, and the TD may run", [s_tdrInRcx]),
        new(SeamcallLeaf.TDH_VP_FLUSH, "no processor keeps state of the vCPU", [s_tdvprInRcx]),
        new(SeamcallLeaf.TDH_MNG_VPFLUSHDONE, "the TD never runs again", [s_tdrInRcx]),
        new(SeamcallLeaf.TDH_MNG_KEY_FREEID, "the TD's KeyID is free", [s_tdrInRcx]),
        new(SeamcallLeaf.TDH_MNG_INIT, "what the TD is, by TD_PARAMS",
            [s_tdrInRcx, new(TdxOperand.RDX, SeamcallOperandKind.Source, "TD_PARAMS, 1024 bytes, aligned to as many")], "rcx after a bad CPUID value: leaf, and sub-leaf in the upper half"),
        new(SeamcallLeaf.TDH_VP_INIT, "the vCPU stands at the reset vector",
            [s_tdvprInRcx, new(TdxOperand.RDX, SeamcallOperandKind.Value, "its RCX and R8"), new(TdxOperand.R8, SeamcallOperandKind.Value, "its x2APIC id, version 1 of the leaf (rax 23:16)")]),
        new(SeamcallLeaf.TDH_MEM_PAGE_PROMOTE, "512 mappings become a huge one", [s_mapping, s_tdrInRdx], "rcx: the page that was the table"),
        new(SeamcallLeaf.TDH_PHYMEM_PAGE_RDMD, "what the module has a page for", [Page(TdxOperand.RCX, "any page")], "rcx: type, rdx: TDR of the owner, r8: level, r9: BEPOCH"),
        new(SeamcallLeaf.TDH_VP_RD, "reads a metadata field of a vCPU", [s_tdvprInRcx, new(TdxOperand.RDX, SeamcallOperandKind.Value, "field id")], "r8: the value"),
        new(SeamcallLeaf.TDH_PHYMEM_PAGE_RECLAIM, "a page of a TD in teardown is the host's again", [Page(TdxOperand.RCX, "the page; the TDR last")], "rcx: type, rdx: TDR of the owner, r8: level"),
        new(SeamcallLeaf.TDH_MEM_PAGE_REMOVE, "the page behind a leaf entry is the host's again", [s_mapping, s_tdrInRdx]),
        new(SeamcallLeaf.TDH_MEM_SEPT_REMOVE, "the table below an entry is the host's again", [s_mapping, s_tdrInRdx]),
        new(SeamcallLeaf.TDH_MEM_TRACK, "a new TLB epoch begins", [s_tdrInRcx]),
        new(SeamcallLeaf.TDH_MEM_RANGE_UNBLOCK, "undoes RANGE.BLOCK", [s_mapping, s_tdrInRdx]),
        new(SeamcallLeaf.TDH_PHYMEM_CACHE_WB, "caches of the caller's package are written back", [new(TdxOperand.RCX, SeamcallOperandKind.Value, "0 starts, 1 resumes")]),
        new(SeamcallLeaf.TDH_PHYMEM_PAGE_WBINVD, "cache lines of a page that no TD has are written back", [Page(TdxOperand.RCX, "a page")]),
        new(SeamcallLeaf.TDH_VP_WR, "writes a metadata field of a vCPU",
            [s_tdvprInRcx, new(TdxOperand.RDX, SeamcallOperandKind.Value, "field id"), new(TdxOperand.R8, SeamcallOperandKind.Value, "value"), new(TdxOperand.R9, SeamcallOperandKind.Value, "mask")],
            "r8: the value before"),
    ];

    /// <summary>The leaf as the manual writes it: TDH.MEM.PAGE.ADD.</summary>
    public string Name => Leaf.ToString().Replace('_', '.');

    /// <summary>The leaf that bits 15:0 of RAX name; null for none.</summary>
    public static SeamcallShape? Of(ulong rax) => All.FirstOrDefault(shape => (ulong)shape.Leaf == (rax & 0xffff));

    /// <summary>The operand as the caller has it in its registers.</summary>
    public static ulong Operand(in TdcallRegisters registers, TdxOperand register) => register switch
    {
        TdxOperand.RCX => registers.Rcx,
        TdxOperand.RDX => registers.Rdx,
        TdxOperand.R8 => registers.R8,
        TdxOperand.R9 => registers.R9,
        _ => throw new ArgumentOutOfRangeException(nameof(register), register, "no operand of a SEAMCALL"),
    };

    private static SeamcallOperand Page(TdxOperand register, string meaning) => new(register, SeamcallOperandKind.Page, meaning);
}
