using Google.Protobuf;
using VmmService.Client;
using VmmService.Client.Attestation;
using VmmService.V1;

namespace VmmService.IntegrationTests.Attestation;

/// <summary>A TD of which only its report exists, and the judging of quotes of it.</summary>
internal static class QuotedTd
{
    /// <summary>The verifier's challenge.</summary>
    public static readonly byte[] Nonce = [.. Enumerable.Range(0, 64).Select(i => (byte)(i * 3))];

    private static readonly DateTime s_now = new(2030, 6, 1, 0, 0, 0, DateTimeKind.Utc);

    public static Task<RemoteHost> CreateHost(VmmConnection connection, ulong seed = 0) =>
        connection.CreateHostAsync(seed: seed, machine: new MachineConfig { Platform = Platform.IntelTdx });

    public static Task<TdxReport> Report(RemoteHost host)
    {
        var td = new TdInfo { Attributes = 0x1000_0000, Xfam = 0x602e7, Mrtd = Register(1), Mrconfigid = Register(2), Mrowner = Register(3), Mrownerconfig = Register(4) };
        td.Rtmr.AddRange(Enumerable.Range(5, 4).Select(Register));
        return host.TdxAttestation.MakeReportAsync(td, Nonce);
    }

    public static IReadOnlyList<QuoteRefusal> Verify(ByteString quote, GetQuoteCollateralResponse collateral, TdxReport report) => TdxVerifier.Verify(
        quote.ToByteArray(), collateral.Root.ToByteArray(), s_now,
        new QuoteCollateral(
            collateral.PckCrl.ToByteArray(), collateral.RootCrl.ToByteArray(), collateral.TcbInfo.ToByteArray(), collateral.QeIdentity.ToByteArray(), collateral.TcbSigning.ToByteArray()),
        new QuoteDemands(report.ReportData.ToArray(), report.Mrtd.ToArray(), [.. Enumerable.Range(0, 4).SelectMany(i => report.Rtmr(i).ToArray())], AllowDebug: false));

    public static IReadOnlyList<QuoteRefusal> Verify(MakeQuoteEvidenceResponse evidence) => TdxVerifier.Verify(
        evidence.Quote.ToByteArray(), evidence.Expected.Root.ToByteArray(), s_now,
        new QuoteCollateral(
            evidence.PckCrl.ToByteArray(), evidence.RootCrl.ToByteArray(), evidence.TcbInfo.ToByteArray(), evidence.QeIdentity.ToByteArray(), evidence.TcbSigning.ToByteArray()),
        new QuoteDemands(
            evidence.Expected.ReportData.ToByteArray(), Convert.FromHexString(evidence.Expected.Mrtd), [.. evidence.Expected.Rtmr.SelectMany(Convert.FromHexString)], evidence.Expected.AllowDebug));

    private static ByteString Register(int value) => ByteString.CopyFrom([.. Enumerable.Repeat((byte)value, 48)]);
}
