namespace SimMachine.Intel;

/// <summary>Numbers of the SEAMCALL leaves, RAX bits 15:0 (TDX module ABI).</summary>
public enum SeamcallLeaf : ulong
{
    TDH_VP_ENTER = 0,
    TDH_MNG_ADDCX = 1,
    TDH_MEM_PAGE_ADD = 2,
    TDH_MEM_SEPT_ADD = 3,
    TDH_VP_ADDCX = 4,
    TDH_MEM_PAGE_AUG = 6,
    TDH_MEM_RANGE_BLOCK = 7,
    TDH_MNG_KEY_CONFIG = 8,
    TDH_MNG_CREATE = 9,
    TDH_VP_CREATE = 10,
    TDH_MNG_RD = 11,
    TDH_MEM_PAGE_DEMOTE = 15,
    TDH_MR_EXTEND = 16,
    TDH_MR_FINALIZE = 17,
    TDH_VP_FLUSH = 18,
    TDH_MNG_VPFLUSHDONE = 19,
    TDH_MNG_KEY_FREEID = 20,
    TDH_MNG_INIT = 21,
    TDH_VP_INIT = 22,
    TDH_MEM_PAGE_PROMOTE = 23,
    TDH_PHYMEM_PAGE_RDMD = 24,
    TDH_VP_RD = 26,
    TDH_PHYMEM_PAGE_RECLAIM = 28,
    TDH_MEM_PAGE_REMOVE = 29,
    TDH_MEM_SEPT_REMOVE = 30,
    TDH_MEM_TRACK = 38,
    TDH_MEM_RANGE_UNBLOCK = 39,
    TDH_PHYMEM_CACHE_WB = 40,
    TDH_PHYMEM_PAGE_WBINVD = 41,
    TDH_VP_WR = 43,
}

/// <summary>Numbers of the TDCALL leaves, RAX bits 15:0 (TDX module ABI).</summary>
public enum TdcallLeaf : ulong
{
    TDG_VP_VMCALL = 0,
    TDG_VP_INFO = 1,
    TDG_MR_RTMR_EXTEND = 2,
    TDG_VP_VEINFO_GET = 3,
    TDG_MR_REPORT = 4,
    TDG_MEM_PAGE_ACCEPT = 6,
    TDG_VM_RD = 7,
    TDG_VM_WR = 8,
    TDG_MR_VERIFYREPORT = 22,
}
