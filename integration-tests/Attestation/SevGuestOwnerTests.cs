using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;
using System.Text;
using VmmService.Client;
using VmmService.Client.Attestation;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Attestation;

/// <summary>
/// What the owner of a SEV guest does, over gRPC only (snp.md 1.4, 4.5): take the platform's key and what vouches for it, make a session, check what was measured, send a secret. The owner
/// is the client library's; nothing of the simulated firmware's code is on this side.
/// </summary>
public sealed class SevGuestOwnerTests(Daemon daemon) : IClassFixture<Daemon>
{
    private const ulong Page = GuestBench.Page;
    private const ulong SecretGpa = 6 * Page;

    private static readonly byte[] s_firmware = GuestBench.Filled(4, 0x42);
    private static readonly byte[] s_secret = Encoding.ASCII.GetBytes("the disk's key: 0123456789abcdef");

    [Theory]
    [InlineData(VmType.Sev)]
    [InlineData(VmType.SevEs)]
    public async Task AnOwner_ChecksThePlatform_LaunchesByASession_ChecksTheMeasurement_AndSendsASecret(VmType type)
    {
        await using SevBench bench = await SevBench.CreateAsync(daemon, type);

        // The chain ends at a key that AMD signed, here the simulated authority.
        SevPlatformChain chain = await bench.TrustedChainAsync();
        SevGuestOwner owner = SevGuestOwner.Create(chain.Pdh, bench.DefaultPolicy);

        await bench.Launch.StartAsync(owner.Policy, dhCertificate: owner.Certificate.Bytes, session: owner.Session);
        await bench.Process.WriteAsync(bench.Memory, s_firmware);
        await bench.Launch.UpdateDataAsync(bench.Memory, (uint)s_firmware.Length);
        byte[] digest = SHA256.HashData(s_firmware);
        if (type == VmType.SevEs)
        {
            await bench.Launch.UpdateVmsaAsync();
            digest = Convert.FromHexString((await bench.Launch.GuestStatusAsync()).LaunchDigest);
        }
        SevLaunchMeasureResponse measured = await bench.Launch.MeasureAsync();

        (byte, byte, byte) firmware = await bench.FirmwareAsync();
        Assert.True(owner.Accepts(measured.Measure.Span, measured.Mnonce.Span, firmware, digest));
        Assert.False(owner.Accepts(measured.Measure.Span, measured.Mnonce.Span, firmware, SHA256.HashData(digest)));
        Assert.False(owner.Accepts(measured.Measure.Span, new byte[16], firmware, digest));
        Assert.False(SevGuestOwner.Create(chain.Pdh, bench.DefaultPolicy).Accepts(measured.Measure.Span, measured.Mnonce.Span, firmware, digest));

        (byte[] header, byte[] body) = owner.SealSecret(s_secret, measured.Measure.Span);
        await bench.Launch.SecretAsync(header, body, bench.Memory + SecretGpa);
        Assert.NotEqual(s_secret, (await bench.Process.ReadAsync(bench.Memory + SecretGpa, (ulong)s_secret.Length)).ToArray());
        await bench.Launch.FinishAsync();

        await bench.Vcpu.LoadProgramAsync([Guest.Compare(0, s_firmware, access: GuestAccess.Private), Guest.Compare(SecretGpa, s_secret, access: GuestAccess.Private), Guest.Halt()]);
        RunResponse run = await bench.Vcpu.RunAsync();
        Assert.All(run.Results.Take(2), result => Assert.False(result.HasMismatchAt));
    }

    [Fact]
    public async Task ASecret_ForAnotherLaunch_OrAltered_IsRefused()
    {
        await using SevBench bench = await SevBench.CreateAsync(daemon, VmType.Sev);
        SevGuestOwner owner = SevGuestOwner.Create((await bench.TrustedChainAsync()).Pdh, 1);
        await bench.Launch.StartAsync(owner.Policy, dhCertificate: owner.Certificate.Bytes, session: owner.Session);
        SevLaunchMeasureResponse measured = await bench.Launch.MeasureAsync();
        (byte[] Header, byte[] Body) good = owner.SealSecret(s_secret, measured.Measure.Span);
        (byte[] Header, byte[] Body) elsewhere = owner.SealSecret(s_secret, new byte[32]);
        byte[] compressed = [.. good.Header];
        compressed[0] |= 1;
        byte[] altered = [.. good.Body];
        altered[^1] ^= 1;

        foreach ((string status, byte[] header, byte[] body) in new[]
        {
            ("BAD_MEASUREMENT", elsewhere.Header, elsewhere.Body), ("BAD_MEASUREMENT", good.Header, altered), ("UNSUPPORTED", compressed, good.Body), ("INVALID_LEN", good.Header[..51], good.Body),
        })
        {
            SevLaunchSecretResponse refused = await bench.Launch.SecretAsync(header, body, bench.Memory + SecretGpa).Reply;
            Assert.Equal(("EIO", status), (refused.Outcome.ErrnoName, refused.Sev.ErrorName));
        }
        await bench.Launch.SecretAsync(good.Header, good.Body, bench.Memory + SecretGpa);
    }

    public static TheoryData<string, string> BadSessions => new()
    {
        { "another policy", "BAD_MEASUREMENT" },
        { "another platform", "BAD_MEASUREMENT" },
        { "an older key of this platform", "BAD_MEASUREMENT" },
        { "another owner's certificate", "BAD_MEASUREMENT" },
        { "an altered session", "BAD_MEASUREMENT" },
        { "a session that is too short", "INVALID_LEN" },
        { "no certificate", "INVALID_CERTIFICATE" },
        { "a certificate without a point of the curve", "INVALID_CERTIFICATE" },
    };

    [Theory]
    [MemberData(nameof(BadSessions))]
    public async Task ASession_ThatIsNotForThisLaunch_IsRefused_AndTheNextStartIsANewOne(string what, string status)
    {
        await using SevBench bench = await SevBench.CreateAsync(daemon, VmType.Sev);
        await using SevBench other = await SevBench.CreateAsync(daemon, VmType.Sev, seed: 77);
        SevCertificate pdh = (await bench.Sev.ExportPdhAsync()).Pdh;
        SevGuestOwner owner = SevGuestOwner.Create(what == "another platform" ? (await other.Sev.ExportPdhAsync()).Pdh : pdh, what == "another policy" ? 3u : 1u);
        byte[] certificate = owner.Certificate.Bytes.ToArray(), session = owner.Session.ToArray();
        switch (what)
        {
            case "an older key of this platform":
                await bench.Sev.MakeKeysAsync(SevPlatformKeys.PdhGen);
                break;
            case "another owner's certificate":
                certificate = SevGuestOwner.Create(pdh, 1).Certificate.Bytes.ToArray();
                break;
            case "an altered session":
                session[20] ^= 1;
                break;
            case "a session that is too short":
                session = session[..127];
                break;
            case "no certificate":
                certificate = [];
                break;
            case "a certificate without a point of the curve":
                certificate[0x14] ^= 1;
                break;
        }
        SevLaunchStartResponse refused = await bench.Launch.StartAsync(1, dhCertificate: certificate, session: session).Reply;
        string rule = status == "INVALID_CERTIFICATE" ? "psp.sev.dh-certificate" : "psp.sev.session";
        Assert.Equal(("EIO", status, rule), (refused.Outcome.ErrnoName, refused.Sev.ErrorName, refused.Outcome.Causes[0].Rule));
        await bench.Launch.StartAsync(1);
    }

    [Fact]
    public async Task TheChain_IsRefusedWhereALinkIsBroken()
    {
        await using SevBench bench = await SevBench.CreateAsync(daemon, VmType.Sev);
        await using SevBench other = await SevBench.CreateAsync(daemon, VmType.Sev, seed: 78);
        SevPlatformChain chain = await bench.Sev.ExportPdhAsync(), strange = await other.Sev.ExportPdhAsync();
        GetSevCekResponse cek = await bench.Host.GetSevCekAsync();
        using X509Certificate2 ask = X509CertificateLoader.LoadCertificate(cek.Ask.Span), ark = X509CertificateLoader.LoadCertificate(cek.Ark.Span);
        var signed = SevCertificate.Parse(cek.Cek.Span);

        Assert.True(signed.SaysTheSameAs(chain.Cek));
        Assert.Contains("CEK's certificate is not signed", chain.Problem(ask), StringComparison.Ordinal);
        chain = chain.WithCek(signed);
        Assert.Null(chain.Problem(ask));
        Assert.Contains("CEK's certificate is not signed", chain.Problem(ark), StringComparison.Ordinal);
        Assert.Contains("not signed by the PEK", (chain with { Pdh = strange.Pdh }).Problem(ask), StringComparison.Ordinal);
        Assert.Contains("not signed by the OCA", (chain with { Oca = strange.Oca }).Problem(ask), StringComparison.Ordinal);
        Assert.Contains("not signed by the CEK", (chain with { Pek = strange.Pek, Pdh = strange.Pdh }).Problem(ask), StringComparison.Ordinal);
    }

    [Fact]
    public async Task APlatform_GetsAnOwner_Once_AndIsItsOwnAgainByNewKeys()
    {
        await using SevBench bench = await SevBench.CreateAsync(daemon, VmType.Sev, initialise: false);
        using var key = ECDsa.Create(ECCurve.NamedCurves.nistP384);
        using var stranger = ECDsa.Create(ECCurve.NamedCurves.nistP384);
        var oca = SevCertificate.OfOwner(key);
        SevCertificate request = await bench.Sev.RequestPekAsync();
        SevPlatformChain before = await bench.Sev.ExportPdhAsync();

        await Refused(request, oca, "BAD_SIGNATURE", "psp.platform.imported-signature");
        await Refused(request.SignedBy(SevKeyUsage.OCA, stranger), oca, "BAD_SIGNATURE", "psp.platform.imported-signature");
        await Refused(before.Pdh, oca, "INVALID_CERTIFICATE", "psp.platform.imported-certificate");
        await Refused(request.SignedBy(SevKeyUsage.OCA, key), request.SignedBy(SevKeyUsage.OCA, key), "INVALID_CERTIFICATE", "psp.platform.imported-certificate");
        Assert.Equal(0u, (await bench.Sev.PlatformStatusAsync()).Flags & 1);

        await bench.Sev.ImportPekAsync(request.SignedBy(SevKeyUsage.OCA, key), oca);
        Assert.Equal(1u, (await bench.Sev.PlatformStatusAsync()).Flags & 1);
        SevPlatformChain owned = await bench.TrustedChainAsync();
        Assert.Equal(oca.Bytes.ToArray(), owned.Oca.Bytes.ToArray());
        Assert.True(owned.Pek.SaysTheSameAs(before.Pek));
        Assert.False(owned.Pdh.SaysTheSameAs(before.Pdh));
        await Refused(request.SignedBy(SevKeyUsage.OCA, key), oca, "ALREADY_OWNED", "psp.platform.owned");

        await bench.Sev.MakeKeysAsync(SevPlatformKeys.PekGen);
        SevPlatformChain own = await bench.TrustedChainAsync();
        Assert.Equal(0u, (await bench.Sev.PlatformStatusAsync()).Flags & 1);
        Assert.False(own.Pek.SaysTheSameAs(owned.Pek));
        Assert.False(own.Oca.SaysTheSameAs(owned.Oca));
        Assert.True(own.Cek.SaysTheSameAs(owned.Cek));

        async Task Refused(SevCertificate pek, SevCertificate owner, string status, string rule)
        {
            SevPekCertImportResponse reply = await bench.Sev.ImportPekAsync(pek, owner).Reply;
            Assert.Equal(("EIO", status, rule), (reply.Outcome.ErrnoName, reply.Sev.ErrorName, reply.Outcome.Causes[0].Rule));
        }
    }

    // A new Diffie-Hellman key leaves the others alone.
    [Fact]
    public async Task PdhGen_MakesThatKeyOnly()
    {
        await using SevBench bench = await SevBench.CreateAsync(daemon, VmType.Sev, initialise: false);
        SevPlatformChain before = await bench.TrustedChainAsync();
        await bench.Sev.MakeKeysAsync(SevPlatformKeys.PdhGen);
        SevPlatformChain after = await bench.TrustedChainAsync();
        Assert.Equal((false, true, true), (after.Pdh.SaysTheSameAs(before.Pdh), after.Pek.SaysTheSameAs(before.Pek), after.Oca.SaysTheSameAs(before.Oca)));
    }

    [Fact]
    public async Task Questions_ForLengths_AreEioWithInvalidLen_AndTheLengths()
    {
        await using SevBench bench = await SevBench.CreateAsync(daemon, VmType.Sev, initialise: false);
        SevPdhCertExportResponse export = await daemon.Stubs.SevPlatform.SevPdhCertExportAsync(
            new SevPdhCertExportRequest { Host = bench.Host.Id, Pid = bench.Process.Pid, Fd = bench.Sev.Fd, Query = true });
        Assert.Equal(("EIO", "INVALID_LEN", 2084u, 6252u), (export.Outcome.ErrnoName, export.Sev.ErrorName, export.PdhCertLen, export.CertChainLen));
        SevPekCsrResponse csr = await daemon.Stubs.SevPlatform.SevPekCsrAsync(
            new SevPekCsrRequest { Host = bench.Host.Id, Pid = bench.Process.Pid, Fd = bench.Sev.Fd, Query = true });
        Assert.Equal(("EIO", "INVALID_LEN", 2084u), (csr.Outcome.ErrnoName, csr.Sev.ErrorName, csr.CsrLen));
    }
}
