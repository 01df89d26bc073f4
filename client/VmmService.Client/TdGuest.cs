using VmmService.V1;

namespace VmmService.Client;

/// <summary>Steps of a TD's program besides those of <see cref="Guest"/>: TDCALLs. RAX, and for calls to the VMM R10, are in the registers of a step's result.</summary>
public static class TdGuest
{
    private const ulong VpInfo = 1;
    private const ulong RtmrExtend = 2;
    private const ulong MrReport = 4;
    private const ulong PageAccept = 6;
    private const ulong MrVerifyreport = 22;
    private const ulong MapGpaLeaf = 0x10001;
    private const ulong GetQuoteLeaf = 0x10002;
    private const ulong ReportFatalErrorLeaf = 0x10003;

    /// <summary>TDCALL with these registers; RAX is the leaf.</summary>
    public static GuestStep Tdcall(TdcallRegisters registers) => new() { Tdcall = new GuestTdcall { Registers = registers } };

    /// <summary>TDG.VP.INFO.</summary>
    public static GuestStep Info() => Tdcall(new TdcallRegisters { Rax = VpInfo });

    /// <summary>TDG.MEM.PAGE.ACCEPT.</summary>
    /// <param name="gpa">Private, aligned to the page.</param>
    /// <param name="large">A page of 2 MiB.</param>
    public static GuestStep Accept(ulong gpa, bool large = false) => Tdcall(new TdcallRegisters { Rax = PageAccept, Rcx = gpa | (large ? 1UL : 0) });

    /// <summary>TDG.MR.REPORT.</summary>
    /// <param name="report">Where the report goes, 1024 bytes aligned to them.</param>
    /// <param name="reportData">Where the 64 bytes of report data are, aligned to them.</param>
    public static GuestStep Report(ulong report, ulong reportData) => Tdcall(new TdcallRegisters { Rax = MrReport, Rcx = report, Rdx = reportData });

    /// <summary>TDG.MR.VERIFYREPORT of the report's first 256 bytes.</summary>
    public static GuestStep VerifyReport(ulong report) => Tdcall(new TdcallRegisters { Rax = MrVerifyreport, Rcx = report });

    /// <summary>TDG.MR.RTMR.EXTEND.</summary>
    /// <param name="digest">Where the 48 bytes are, aligned to 64.</param>
    /// <param name="index">0 to 3.</param>
    public static GuestStep ExtendRtmr(ulong digest, ulong index) => Tdcall(new TdcallRegisters { Rax = RtmrExtend, Rcx = digest, Rdx = index });

    /// <summary>TDG.VP.VMCALL: a request to the VMM, leaf in R11 and operands in R12 to R15.</summary>
    public static GuestStep Vmcall(ulong leaf, ulong r12 = 0, ulong r13 = 0, ulong r14 = 0, ulong r15 = 0) =>
        Tdcall(new TdcallRegisters { R11 = leaf, R12 = r12, R13 = r13, R14 = r14, R15 = r15 });

    /// <summary>MapGPA: asks the VMM to make a range private, or shared if <paramref name="gpa"/> has the shared bit.</summary>
    public static GuestStep MapGpa(ulong gpa, ulong size) => Vmcall(MapGpaLeaf, gpa, size);

    /// <summary>GetQuote: the VMM is to put a quote into a shared buffer.</summary>
    /// <param name="gpa">With the shared bit.</param>
    /// <param name="size">Bytes.</param>
    public static GuestStep GetQuote(ulong gpa, ulong size) => Vmcall(GetQuoteLeaf, gpa, size);

    /// <summary>ReportFatalError: the TD cannot go on.</summary>
    public static GuestStep ReportFatalError(ulong code) => Vmcall(ReportFatalErrorLeaf, code);
}
