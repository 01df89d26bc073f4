using System.Runtime.InteropServices;
using Google.Protobuf;
using Grpc.Core;
using SimMachine;
using SimMachine.Intel;
using SimMachine.Intel.Attestation;
using VmmService.Server.Sessions;
using VmmService.Server.Verification.Intel;
using VmmService.Server.Wire;
using VmmService.V1;
using Platform = SimMachine.Platform;
using QuoteEvidenceKind = SimMachine.Intel.Attestation.QuoteEvidenceKind;
using QuoteFormat = SimMachine.Intel.Attestation.QuoteFormat;
using TdInfo = SimMachine.Intel.Attestation.TdInfo;
using TdReportVerdict = SimMachine.Intel.Attestation.TdReportVerdict;

namespace VmmService.Server.Services;

/// <summary>vmmservice.v1.TdxAttestationService.</summary>
internal sealed class TdxAttestationServiceImpl(HostRegistry hosts) : TdxAttestationService.TdxAttestationServiceBase
{
    private const int MaxMessage = 64 << 10;
    private const int MaxQuote = 64 << 10;
    private const int MaxCollateral = 1 << 20;

    public override Task<MakeTdReportResponse> MakeTdReport(MakeTdReportRequest request, ServerCallContext context)
    {
        TdInfo td = ToInfo(request.Td ?? throw Structs.Missing("td"));
        byte[] reportData = new byte[ReportMacStruct.ReportDataSize];
        Structs.Fixed("report_data", request.ReportData, reportData);
        return Task.FromResult(new MakeTdReportResponse { Report = Bytes(Identity(request.Host).Report(td, reportData).ToArray()) });
    }

    public override Task<VerifyTdReportResponse> VerifyTdReport(VerifyTdReportRequest request, ServerCallContext context)
    {
        ReadOnlySpan<byte> report = request.Report.Span;
        ReportMac mac = Identity(request.Host).ReportMac;
        TdReportVerdict verdict = report.Length switch
        {
            TdReport.Size => mac.Verify(TdReport.Read(report)),
            ReportMacStruct.Size => mac.Verify(ReportMacStruct.Read(report)),
            _ => throw Refusals.BadField("report", $"{report.Length} bytes were given; TDREPORT_STRUCT has {TdReport.Size} and REPORTMACSTRUCT {ReportMacStruct.Size}"),
        };
        return Task.FromResult(new VerifyTdReportResponse { Verdict = FromVerdict(verdict) });
    }

    public override Task<GetQuoteResponse> GetQuote(GetQuoteRequest request, ServerCallContext context)
    {
        TdReport report = ToReport(request.Report);
        QuoteFormat format = ToFormat(request.Format);
        TdReportVerdict verdict = Identity(request.Host).QuotingEnclave.TryQuote(in report, format, out byte[] quote);
        return Task.FromResult(new GetQuoteResponse { Verdict = FromVerdict(verdict), Quote = Bytes(quote) });
    }

    public override Task<AnswerGetQuoteResponse> AnswerGetQuote(AnswerGetQuoteRequest request, ServerCallContext context)
    {
        QuoteFormat format = ToFormat(request.Format);
        QuotingEnclave enclave = Identity(request.Host).QuotingEnclave;
        GetQuoteAcceptance ret = QuoteService.Accept(request.Gpa, request.Size, request.Buffer.Span, (int)Math.Min(request.InFlight, int.MaxValue));
        var response = new AnswerGetQuoteResponse { Ret = (ulong)ret, RetName = ret.ToString(), Buffer = request.Buffer };
        if (ret == GetQuoteAcceptance.Success)
        {
            byte[] buffer = request.Buffer.ToByteArray();
            GetQuoteStatus status = QuoteService.Answer(request.ServiceUnavailable ? null : enclave, buffer, format, out TdReportVerdict verdict);
            response.Status = (ulong)status;
            response.StatusName = status.ToString();
            response.Verdict = FromVerdict(verdict);
            response.Buffer = Bytes(buffer);
        }
        return Task.FromResult(response);
    }

    public override Task<AskQuoteServiceResponse> AskQuoteService(AskQuoteServiceRequest request, ServerCallContext context)
    {
        QuoteFormat format = ToFormat(request.Format);
        if (request.Message.Length > MaxMessage)
        {
            throw Refusals.BadField("message", $"{request.Message.Length} bytes were given; a message has at most {MaxMessage}");
        }
        return Task.FromResult(new AskQuoteServiceResponse { Message = Bytes(QuoteService.AnswerMessage(Identity(request.Host).QuotingEnclave, request.Message.Span, format)) });
    }

    public override Task<GetQuoteCollateralResponse> GetQuoteCollateral(GetQuoteCollateralRequest request, ServerCallContext context)
    {
        QuotingEnclave enclave = Identity(request.Host).QuotingEnclave;
        TdxAuthority authority = enclave.Authority;
        var collateral = TdxCollateral.Of(authority);
        return Task.FromResult(new GetQuoteCollateralResponse
        {
            Root = Bytes(authority.Root),
            PlatformCa = Bytes(authority.PlatformCa),
            Pck = Bytes(enclave.PckCertificate),
            TcbSigning = Bytes(authority.TcbSigning),
            RootCrl = Bytes(authority.RootCrl),
            PckCrl = Bytes(authority.PckCrl),
            TcbInfo = Bytes(collateral.TcbInfo),
            QeIdentity = Bytes(collateral.QeIdentity),
            Fmspc = Bytes(authority.Fmspc),
        });
    }

    public override Task<MakeQuoteEvidenceResponse> MakeQuoteEvidence(MakeQuoteEvidenceRequest request, ServerCallContext context)
    {
        if (request.Kind == V1.QuoteEvidenceKind.Unspecified || !Enum.IsDefined(request.Kind))
        {
            throw Refusals.BadEnum("kind", request.Kind);
        }
        TdReport report = ToReport(request.Report);
        QuoteFormat format = ToFormat(request.Format);
        QuotingEnclave enclave = Identity(request.Host).QuotingEnclave;
        // The message's values are those of the catalogue, after UNSPECIFIED.
        string? problem = QuoteEvidence.TryMake(enclave, in report, format, (QuoteEvidenceKind)((int)request.Kind - 1), out QuoteEvidence? evidence);
        return evidence is null ? throw Refusals.BadField("report", problem!) : Task.FromResult(FromEvidence(request.Kind, evidence));
    }

    public override Task<VerifyQuoteResponse> VerifyQuote(VerifyQuoteRequest request, ServerCallContext context)
    {
        Structs.AtMost("quote", request.Quote, MaxQuote);
        foreach ((string field, ByteString bytes) in new[]
        {
            ("pck_crl", request.PckCrl), ("root_crl", request.RootCrl), ("tcb_info", request.TcbInfo), ("qe_identity", request.QeIdentity), ("tcb_signing", request.TcbSigning),
        })
        {
            Structs.AtMost(field, bytes, MaxCollateral);
        }
        if (request.HasAt)
        {
            _ = Structs.Time("at", request.At);
        }
        CheckExpectation(request.Expected ?? new V1.QuoteExpectation());
        return Task.FromResult(new VerifyQuoteResponse { Findings = TdxQuoteVerifier.Verify(request) });
    }

    // What the caller demands is the caller's to have right.
    private static void CheckExpectation(V1.QuoteExpectation expected)
    {
        Structs.AtMost("expected.root", expected.Root, MaxCollateral);
        if (expected.ReportData.Length is not (0 or ReportMacStruct.ReportDataSize))
        {
            throw Refusals.BadField("expected.report_data", $"{expected.ReportData.Length} bytes were given; REPORTDATA has {ReportMacStruct.ReportDataSize}");
        }
        if (expected.Rtmr.Count > TdInfo.RtmrCount)
        {
            throw Refusals.BadField("expected.rtmr", $"{expected.Rtmr.Count} registers were given; a TD has {TdInfo.RtmrCount}");
        }
        _ = Structs.Hex("expected.mrtd", expected.Mrtd, TdxModuleConfig.MeasurementSize);
        for (int i = 0; i < expected.Rtmr.Count; i++)
        {
            _ = Structs.Hex($"expected.rtmr[{i}]", expected.Rtmr[i], TdxModuleConfig.MeasurementSize);
        }
    }

    private static MakeQuoteEvidenceResponse FromEvidence(V1.QuoteEvidenceKind kind, QuoteEvidence evidence)
    {
        var expected = new V1.QuoteExpectation
        {
            ReportData = Bytes(evidence.Expected.ReportData),
            Mrtd = Outcomes.Hex(evidence.Expected.Mrtd.Span),
            AllowDebug = evidence.Expected.AllowDebug,
            Root = Bytes(evidence.Expected.Root),
        };
        expected.Rtmr.AddRange(evidence.Expected.Rtmrs.Select(rtmr => Outcomes.Hex(rtmr.Span)));
        return new MakeQuoteEvidenceResponse
        {
            Kind = kind,
            Defect = evidence.Defect,
            Quote = Bytes(evidence.Quote),
            PckCrl = Bytes(evidence.PckCrl),
            RootCrl = Bytes(evidence.RootCrl),
            TcbInfo = Bytes(evidence.TcbInfo),
            QeIdentity = Bytes(evidence.QeIdentity),
            TcbSigning = Bytes(evidence.TcbSigning),
            Expected = expected,
        };
    }

    // Nothing of an identity changes while its host runs, so it is used outside of the host's turn.
    private TdxIdentity Identity(string host)
    {
        Machine machine = hosts.Get(host).Run(sim => sim.Machine);
        return machine.Config.Platform == Platform.IntelTdx
            ? machine.TdxIdentity
            : throw Refusals.BadField("host", $"{host} is a machine of platform {machine.Config.Platform}, which has no TDX; create one with machine.platform = PLATFORM_INTEL_TDX");
    }

    private static TdInfo ToInfo(V1.TdInfo message)
    {
        TdInfo info = new() { ATTRIBUTES = message.Attributes, XFAM = message.Xfam };
        Structs.Fixed("td.mrtd", message.Mrtd, info.MRTD);
        Structs.Fixed("td.mrconfigid", message.Mrconfigid, info.MRCONFIGID);
        Structs.Fixed("td.mrowner", message.Mrowner, info.MROWNER);
        Structs.Fixed("td.mrownerconfig", message.Mrownerconfig, info.MROWNERCONFIG);
        Structs.Fixed("td.servtd_hash", message.ServtdHash, info.SERVTD_HASH);
        // The registers lie side by side.
        Span<Bytes48> rtmrs = MemoryMarshal.CreateSpan(ref info.RTMR0, TdInfo.RtmrCount);
        if (message.Rtmr.Count > rtmrs.Length)
        {
            throw Refusals.BadField("td.rtmr", $"{message.Rtmr.Count} registers were given; a TD has {rtmrs.Length}");
        }
        for (int i = 0; i < message.Rtmr.Count; i++)
        {
            Structs.Fixed($"td.rtmr[{i}]", message.Rtmr[i], rtmrs[i]);
        }
        return info;
    }

    private static TdReport ToReport(ByteString bytes) => bytes.Length == TdReport.Size
        ? TdReport.Read(bytes.Span)
        : throw Refusals.BadField("report", $"{bytes.Length} bytes were given; TDREPORT_STRUCT has {TdReport.Size}");

    private static QuoteFormat ToFormat(V1.QuoteFormat format) => format switch
    {
        V1.QuoteFormat.Unspecified or V1.QuoteFormat.V4 => QuoteFormat.V4,
        V1.QuoteFormat.V5Tdx10 => QuoteFormat.V5Tdx10,
        V1.QuoteFormat.V5Tdx15 => QuoteFormat.V5Tdx15,
        _ => throw Refusals.BadEnum("format", format),
    };

    // The message's values are the verdicts, after UNSPECIFIED.
    private static V1.TdReportVerdict FromVerdict(TdReportVerdict verdict) => (V1.TdReportVerdict)((int)verdict + 1);

    private static ByteString Bytes(ReadOnlyMemory<byte> bytes) => UnsafeByteOperations.UnsafeWrap(bytes);
}
