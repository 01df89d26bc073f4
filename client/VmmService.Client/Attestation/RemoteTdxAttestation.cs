using Google.Protobuf;
using VmmService.V1;

namespace VmmService.Client.Attestation;

/// <summary>
/// Attestation on a host of platform INTEL_TDX: its reports and quotes, the collateral for verifiers, and quotes that a verifier must refuse. Had from
/// <see cref="RemoteHost.TdxAttestation"/>.
/// </summary>
public sealed class RemoteTdxAttestation
{
    private readonly RemoteHost _host;

    internal RemoteTdxAttestation(RemoteHost host) => _host = host;

    private TdxAttestationService.TdxAttestationServiceClient Stub => _host.Connection.Stubs.TdxAttestation;

    /// <summary>A report with the host's MAC of a TD that is described instead of launched.</summary>
    /// <param name="td">What TDINFO_STRUCT says of it.</param>
    /// <param name="reportData">64 bytes, or empty for zeros.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    public async Task<TdxReport> MakeReportAsync(TdInfo td, ReadOnlyMemory<byte> reportData = default, CancellationToken cancellation = default)
    {
        MakeTdReportResponse reply = await _host.Connection.Call(Stub.MakeTdReportAsync(
            new MakeTdReportRequest { Host = _host.Id, Td = td, ReportData = ByteString.CopyFrom(reportData.Span) }, cancellationToken: cancellation));
        return TdxReport.Parse(reply.Report.Memory);
    }

    /// <summary>Whether a report was made on this host.</summary>
    /// <param name="report">1024 bytes, or the first 256.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    public async Task<TdReportVerdict> VerifyReportAsync(ReadOnlyMemory<byte> report, CancellationToken cancellation = default) =>
        (await _host.Connection.Call(Stub.VerifyTdReportAsync(
            new VerifyTdReportRequest { Host = _host.Id, Report = ByteString.CopyFrom(report.Span) }, cancellationToken: cancellation))).Verdict;

    /// <summary>A quote of a report; the reply has none and says why, if the report is not genuine.</summary>
    public Task<GetQuoteResponse> GetQuoteAsync(ReadOnlyMemory<byte> report, QuoteFormat format = QuoteFormat.V4, CancellationToken cancellation = default) =>
        _host.Connection.Call(Stub.GetQuoteAsync(new GetQuoteRequest { Host = _host.Id, Report = ByteString.CopyFrom(report.Span), Format = format }, cancellationToken: cancellation));

    /// <summary>Answers the shared buffer of TDG.VP.VMCALL&lt;GetQuote&gt; as a VMM does.</summary>
    /// <param name="gpa">Of the exit.</param>
    /// <param name="buffer">Its content, all of the exit's size.</param>
    /// <param name="format">Version of the quote.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    public Task<AnswerGetQuoteResponse> AnswerGetQuoteAsync(
        ulong gpa, ReadOnlyMemory<byte> buffer, QuoteFormat format = QuoteFormat.V4, CancellationToken cancellation = default) =>
        _host.Connection.Call(Stub.AnswerGetQuoteAsync(
            new AnswerGetQuoteRequest { Host = _host.Id, Gpa = gpa, Size = (ulong)buffer.Length, Buffer = ByteString.CopyFrom(buffer.Span), Format = format },
            cancellationToken: cancellation));

    /// <summary>Certificates, lists, TCB information, quoting enclave's identity.</summary>
    public Task<GetQuoteCollateralResponse> GetCollateralAsync(CancellationToken cancellation = default) =>
        _host.Connection.Call(Stub.GetQuoteCollateralAsync(new GetQuoteCollateralRequest { Host = _host.Id }, cancellationToken: cancellation));

    /// <summary>A quote with its collateral and exactly one defect, which a verifier must refuse for that reason.</summary>
    public Task<MakeQuoteEvidenceResponse> MakeEvidenceAsync(
        QuoteEvidenceKind kind, ReadOnlyMemory<byte> report, QuoteFormat format = QuoteFormat.V4, CancellationToken cancellation = default) =>
        _host.Connection.Call(Stub.MakeQuoteEvidenceAsync(
            new MakeQuoteEvidenceRequest { Host = _host.Id, Kind = kind, Report = ByteString.CopyFrom(report.Span), Format = format }, cancellationToken: cancellation));
}
