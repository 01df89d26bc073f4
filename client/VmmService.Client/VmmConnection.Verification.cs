using VmmService.V1;

namespace VmmService.Client;

/// <summary>Verifiers of evidence, of the daemon's guests and of anybody's. No host takes part.</summary>
public sealed partial class VmmConnection
{
    /// <summary>Makes every check of an SNP report and its chain; a report that is refused is an answer, not an exception.</summary>
    /// <param name="request">The report, and what of certificates, expectations and time there is.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    /// <exception cref="VmmServiceException">InvalidArgument: an expectation has not its field's form.</exception>
    public async Task<EvidenceFindings> VerifyReportAsync(VerifyReportRequest request, CancellationToken cancellation = default) =>
        (await Call(Stubs.Attestation.VerifyReportAsync(request, cancellationToken: cancellation))).Findings;

    /// <summary>Makes every check of a quote of a TD and its collateral; a quote that is refused is an answer, not an exception.</summary>
    /// <param name="request">The quote, and what of collateral, expectations and time there is.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    /// <exception cref="VmmServiceException">InvalidArgument: a part is larger than such a part can be, or an expectation has not its register's form.</exception>
    public async Task<EvidenceFindings> VerifyQuoteAsync(VerifyQuoteRequest request, CancellationToken cancellation = default) =>
        (await Call(Stubs.TdxAttestation.VerifyQuoteAsync(request, cancellationToken: cancellation))).Findings;
}
