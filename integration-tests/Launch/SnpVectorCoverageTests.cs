using System.Reflection;
using VmmService.IntegrationTests.Attestation;
using VmmService.IntegrationTests.Cli;
using VmmService.IntegrationTests.Support;
using Xunit;

namespace VmmService.IntegrationTests.Launch;

/// <summary>
/// Every vector of snp-vectors.json is run, and by which test: a kind that nobody thought of fails here, and so does a vector that its test leaves out.
/// </summary>
public sealed class SnpVectorCoverageTests
{
    // The test method, and the static property that has its rows. All of them go through the daemon: by a launch, or, where no launch brings their keys and digests about, by the firmware's functions.
    private static readonly Dictionary<string, (Type Tests, string Method, string Rows)> s_tests = new(StringComparer.Ordinal)
    {
        ["snp-launch-digest"] = (typeof(SnpDigestVectorTests), nameof(SnpDigestVectorTests.Launch_OverGrpc_GivesTheDigestBitForBit), nameof(SnpDigestVectorTests.Digests)),
        ["snp-launch-digest-error"] =
            (typeof(SnpDigestVectorTests), nameof(SnpDigestVectorTests.Launch_OfWhatDoesNotGoTogether_IsRefusedWithTheStatedReason), nameof(SnpDigestVectorTests.Errors)),
        ["snp-svsm-launch-digest"] = (typeof(SnpVectorServiceTests), nameof(SnpVectorServiceTests.ALaunchWithAnSvsm_GivesTheDigestBitForBit), nameof(SnpVectorServiceTests.Svsms)),
        ["sev-launch-digest"] = (typeof(LaunchSevCommandTests), nameof(LaunchSevCommandTests.Launch_OfEveryVector_PrintsItsDigest), nameof(LaunchSevCommandTests.Digests)),
        ["seves-launch-digest"] = (typeof(LaunchSevCommandTests), nameof(LaunchSevCommandTests.Launch_OfEveryVector_PrintsItsDigest), nameof(LaunchSevCommandTests.Digests)),
        ["sev-launch-digest-error"] = (typeof(LaunchSevCommandTests), nameof(LaunchSevCommandTests.Launch_OfWhatCannotBeMeasured_IsRefused), nameof(LaunchSevCommandTests.Errors)),
        ["seves-launch-digest-error"] = (typeof(LaunchSevCommandTests), nameof(LaunchSevCommandTests.Launch_OfWhatCannotBeMeasured_IsRefused), nameof(LaunchSevCommandTests.Errors)),
        ["page-info-chain"] = (typeof(PspServiceTests), nameof(PspServiceTests.AChainOfPages_GoesOnFromItsInitialDigest), nameof(PspServiceTests.Chains)),
        ["vmsa-page"] = (typeof(SnpVectorServiceTests), nameof(SnpVectorServiceTests.AVcpu_IsMeasuredAsItsVmsa), nameof(SnpVectorServiceTests.Vmsas)),
        ["kernel-hashes-table"] =
            (typeof(SnpVectorServiceTests), nameof(SnpVectorServiceTests.ATableOfKernelHashes_IsMeasuredInPlace_AndAsAPage), nameof(SnpVectorServiceTests.HashTables)),
        ["ovmf-footer-parse"] =
            (typeof(SnpVectorServiceTests), nameof(SnpVectorServiceTests.AFirmware_IsLaunchedWhereItsFooterSays_WithTheSectionsOfItsMetadata), nameof(SnpVectorServiceTests.Footers)),
        ["cpu-signature"] = (typeof(SnpVectorServiceTests), nameof(SnpVectorServiceTests.ACpuModel_IsMeasuredByItsSignature), nameof(SnpVectorServiceTests.CpuSignatures)),
        ["cpuid-page"] =
            (typeof(SnpVectorServiceTests), nameof(SnpVectorServiceTests.ACpuidPage_IsReadByFirmware_AndTakenAsItIsOrAsItWasCorrected), nameof(SnpVectorServiceTests.CpuidPages)),
        ["id-block"] = (typeof(PspServiceTests), nameof(PspServiceTests.AnIdBlock_IsAcceptedForItsLaunch_AndLeavesItsKeysDigests), nameof(PspServiceTests.IdBlocks)),
        ["tcb-version"] = (typeof(AttestationVectorTests), nameof(AttestationVectorTests.ATcbVersion_IsTheNumberThatThePlatformTells), nameof(AttestationVectorTests.TcbVersions)),
        ["certificate-table"] =
            (typeof(AttestationVectorTests), nameof(AttestationVectorTests.ACertificateTable_HasTheVectorsForm), nameof(AttestationVectorTests.CertificateTables)),
        ["vcek-extensions"] =
            (typeof(AttestationVectorTests), nameof(AttestationVectorTests.AnEndorsementCertificate_SaysWhatSiliconsDoes), nameof(AttestationVectorTests.VcekExtensions)),
        ["attestation-report"] = (typeof(VerifyReportTests), nameof(VerifyReportTests.AReportOfSilicon_IsAccepted_UntilABitOfItChanges), nameof(VerifyReportTests.Reports)),
        ["guest-message"] = (typeof(PspServiceTests), nameof(PspServiceTests.AGuestMessage_IsSealedAndOpened), nameof(PspServiceTests.Messages)),
        ["sev-launch-session"] = (typeof(PspServiceTests), nameof(PspServiceTests.ASession_IsMadeAndOpened), nameof(PspServiceTests.Sessions)),
        ["sev-launch-measure"] = (typeof(PspServiceTests), nameof(PspServiceTests.AMeasurement_IsTheVectors), nameof(PspServiceTests.Measurements)),
        ["sev-launch-secret"] = (typeof(PspServiceTests), nameof(PspServiceTests.ASecret_IsSealedAndOpened), nameof(PspServiceTests.Secrets)),
    };

    [Fact]
    public void EveryKind_HasItsTest() => Assert.Equal(SnpVectors.All.Select(vector => vector.Kind).Distinct().Order(), s_tests.Keys.Order());

    [Fact]
    public void EveryVector_IsARowOfItsKindsTest()
    {
        foreach (SnpVector vector in SnpVectors.All)
        {
            (Type tests, string method, string rows) = s_tests[vector.Kind];
            Assert.NotNull(tests.GetMethod(method)!.GetCustomAttribute<TheoryAttribute>());
            Assert.Contains(tests.GetMethod(method)!.GetCustomAttributes<MemberDataAttribute>(), data => data.MemberName == rows);
            var ids = (TheoryData<string>)tests.GetProperty(rows)!.GetValue(null)!;
            Assert.True(ids.Any(row => row.Data == vector.Id), $"{vector.Kind} {vector.Id} is not run by {tests.Name}.{method}");
        }
    }
}
