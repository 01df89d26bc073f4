using System.Text.Json;
using Google.Protobuf;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Attestation;

/// <summary>Requests to the daemon's verifier of quotes, and what its findings say in the words of the tests' own verifier.</summary>
internal static class VerifiedQuotes
{
    /// <summary>A time at which all that the catalogue makes holds, but for what is made to be expired.</summary>
    public static readonly DateTimeOffset Now = new(2030, 6, 1, 0, 0, 0, TimeSpan.Zero);

    // A day on which all certificates of the vectors are valid.
    private static readonly DateTimeOffset s_dayOfVectors = new(2026, 6, 1, 0, 0, 0, TimeSpan.Zero);

    /// <summary>The check that fails for each reason.</summary>
    public static readonly IReadOnlyDictionary<QuoteRefusal, string> Ids = new Dictionary<QuoteRefusal, string>
    {
        [QuoteRefusal.Structure] = "quote.structure",
        [QuoteRefusal.ChainForm] = "quote.chain-form",
        [QuoteRefusal.UntrustedRoot] = "quote.root",
        [QuoteRefusal.IntermediateSignature] = "quote.ca-signature",
        [QuoteRefusal.LeafSignature] = "quote.pck-signature",
        [QuoteRefusal.CertificateExpired] = "quote.dates",
        [QuoteRefusal.AttestationKey] = "quote.attestation-key",
        [QuoteRefusal.QuoteSignature] = "quote.signature",
        [QuoteRefusal.QeReportSignature] = "quote.qe-report-signature",
        [QuoteRefusal.QeReportData] = "quote.qe-report-data",
        [QuoteRefusal.CrlSignature] = "collateral.crl-signatures",
        [QuoteRefusal.CaRevoked] = "collateral.ca-revoked",
        [QuoteRefusal.PckRevoked] = "collateral.pck-revoked",
        [QuoteRefusal.TcbInfoSignature] = "collateral.tcb-info-signature",
        [QuoteRefusal.TcbInfoExpired] = "collateral.tcb-info-dates",
        [QuoteRefusal.Family] = "collateral.family",
        [QuoteRefusal.TcbOutOfDate] = "collateral.tcb",
        [QuoteRefusal.QeIdentity] = "collateral.qe-identity",
        [QuoteRefusal.Module] = "quote.module",
        [QuoteRefusal.Mrtd] = "quote.mrtd",
        [QuoteRefusal.Rtmr] = "quote.rtmr",
        [QuoteRefusal.ReportData] = "quote.report-data",
        [QuoteRefusal.Debug] = "quote.debug",
    };

    /// <summary>Evidence as a verifier gets it.</summary>
    public static VerifyQuoteRequest Request(MakeQuoteEvidenceResponse evidence) => new()
    {
        Quote = evidence.Quote,
        PckCrl = evidence.PckCrl,
        RootCrl = evidence.RootCrl,
        TcbInfo = evidence.TcbInfo,
        QeIdentity = evidence.QeIdentity,
        TcbSigning = evidence.TcbSigning,
        Expected = evidence.Expected.Clone(),
        At = Now.ToUnixTimeSeconds(),
    };

    /// <summary>A quote of the vectors, without collateral.</summary>
    public static VerifyQuoteRequest OfVector(byte[] quote, byte[] root) => new()
    {
        Quote = ByteString.CopyFrom(quote),
        Expected = new QuoteExpectation { Root = ByteString.CopyFrom(root) },
        At = s_dayOfVectors.ToUnixTimeSeconds(),
    };

    public static async Task<EvidenceFindings> Ask(Daemon daemon, VerifyQuoteRequest request) => (await daemon.Stubs.TdxAttestation.VerifyQuoteAsync(request)).Findings;

    /// <summary>Ids of the checks with a result, in their order.</summary>
    public static string[] With(this EvidenceFindings findings, EvidenceCheckResult result) => [.. findings.Checks.Where(check => check.Result == result).Select(check => check.Id)];

    public static string[] Failed(this EvidenceFindings findings) => findings.With(EvidenceCheckResult.Failed);

    /// <summary>A real quote of the vectors holds below its own root, and nobody can say more without its collateral.</summary>
    public static async Task RealQuoteIsIncomplete(Daemon daemon, byte[] quote, byte[] root)
    {
        EvidenceFindings findings = await Ask(daemon, OfVector(quote, root));
        Assert.Equal((EvidenceVerdict.Incomplete, false), (findings.Verdict, findings.Simulated));
        Assert.Empty(findings.Failed());
        Assert.All(findings.With(EvidenceCheckResult.NotMade), id => Assert.True(id.StartsWith("collateral.", StringComparison.Ordinal) || id is "quote.mrtd" or "quote.rtmr" or "quote.report-data"));
    }

    /// <summary>A simulated quote of the vectors holds below its root, and each of its mutations fails where the vectors say.</summary>
    public static async Task SimulatedQuoteAndItsMutationsAreJudgedAsStated(Daemon daemon, JsonElement vector)
    {
        byte[] quote = TdxVectors.Bytes(vector, "quote_hex");
        byte[] root = TdxQuoteVectorTests.Root(vector);
        EvidenceFindings sound = await Ask(daemon, OfVector(quote, root));
        Assert.Equal((EvidenceVerdict.Incomplete, true), (sound.Verdict, sound.Simulated));
        Assert.Empty(sound.Failed());

        foreach (JsonElement mutation in vector.GetProperty("mutations").EnumerateArray())
        {
            byte[] mutated = [.. quote];
            mutated[mutation.GetProperty("offset").GetInt32()] ^= (byte)mutation.GetProperty("xor").GetInt32();
            EvidenceFindings findings = await Ask(daemon, OfVector(mutated, root));
            Assert.Equal(EvidenceVerdict.Refused, findings.Verdict);
            Assert.Equal(Ids[TdxQuoteVectorTests.RefusalOf(TdxVectors.Text(mutation, "expect"))], findings.Failed()[0]);
        }
    }
}
