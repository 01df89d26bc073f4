using System.Formats.Asn1;
using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;
using System.Text;
using System.Text.Json.Nodes;
using Google.Protobuf;
using SimMachine.Intel.Attestation;
using VmmService.Client;
using VmmService.Client.Attestation;
using VmmService.IntegrationTests.Support;
using VmmService.Server.Verification.Intel;
using VmmService.V1;
using Xunit;
using QuoteEvidenceKind = VmmService.V1.QuoteEvidenceKind;

namespace VmmService.IntegrationTests.Attestation;

/// <summary>What the daemon's verifier makes of collateral that says other things than the daemon's own, properly signed: the keys of a simulated host come from its seed, so a test can be its authority.</summary>
public sealed class QuoteCollateralTests(Daemon daemon) : IClassFixture<Daemon>
{
    private const ulong Seed = 11;

    private static readonly EcdsaP256Key s_tcbSigningKey = EcdsaP256Key.Named($"vmmservice/{Seed}/tcb-signing");

    public static TheoryData<string, string, string, string> TcbInfos => new()
    {
        { "the same again", "tcbInfo.tcbEvaluationDataNumber = 18", "", "" },
        { "a member that nobody knows", "tcbInfo.more = {\"a\":[1,2]}", "", "" },
        { "times with fractions", "tcbInfo.nextUpdate = \"2040-01-01T00:00:00.123Z\"", "", "" },
        { "advisories", "tcbInfo.tcbLevels.0.tcbStatus = \"SWHardeningNeeded\"; tcbInfo.tcbLevels.0.advisoryIDs = [\"INTEL-SA-00837\",\"INTEL-SA-00960\"]", "collateral.tcb", "SWHardeningNeeded (INTEL-SA-00837, INTEL-SA-00960)" },
        { "revoked", "tcbInfo.tcbLevels.0.tcbStatus = \"Revoked\"", "collateral.tcb", "which is Revoked" },
        { "a status with an escape sequence", "tcbInfo.tcbLevels.0.tcbStatus = \"\\u001b[2J\"", "collateral.tcb", "\uFFFD[2J" },
        { "a component above the platform's", "tcbInfo.tcbLevels.0.tcb.sgxtcbcomponents.3.svn = 255; tcbInfo.tcbLevels.1.tcbStatus = \"OutOfDateConfigurationNeeded\"", "collateral.tcb", "OutOfDateConfigurationNeeded" },
        { "PCESVN above the platform's", "tcbInfo.tcbLevels.0.tcb.pcesvn = 14", "collateral.tcb", "OutOfDate" },
        { "TDX component 2 above the platform's", "tcbInfo.tcbLevels.0.tcb.tdxtcbcomponents.2.svn = 7", "collateral.tcb", "OutOfDate" },
        { "TDX components 0 and 1, which the module's own levels judge", "tcbInfo.tcbLevels.0.tcb.tdxtcbcomponents.0.svn = 200; tcbInfo.tcbLevels.0.tcb.tdxtcbcomponents.1.svn = 200", "", "" },
        { "no level that is reached", "tcbInfo.tcbLevels.0.tcb.pcesvn = 14; tcbInfo.tcbLevels.1.tcb.pcesvn = 14", "collateral.tcb", "reaches no level" },
        { "no levels", "tcbInfo.tcbLevels = []", "collateral.tcb", "reaches no level" },
        { "an old module", "tcbInfo.tdxModuleIdentities.0.tcbLevels.0.tcb.isvsvn = 6", "collateral.tcb", "the TDX module TDX_01 with ISVSVN 5 is at the level of" },
        { "an old module on an old platform", "tcbInfo.tdxModuleIdentities.0.tcbLevels.0.tcb.isvsvn = 6; tcbInfo.tcbLevels.0.tcbStatus = \"Revoked\"", "collateral.tcb", "which is Revoked; the TDX module" },
        { "another module only", "tcbInfo.tdxModuleIdentities.0.id = \"TDX_03\"", "collateral.tcb", "nothing is said of the TDX module TDX_01" },
        { "no modules", "tcbInfo.tdxModuleIdentities = null", "collateral.tcb-info-signature", "tdxModuleIdentities" },
        { "a module's id in small letters", "tcbInfo.tdxModuleIdentities.0.id = \"tdx_01\"", "", "" },
        { "another signer of the module", "tcbInfo.tdxModuleIdentities.0.mrsigner = \"" + new string('7', 96) + "\"", "quote.module", "not 777777" },
        { "another signer of old modules", "tcbInfo.tdxModule.mrsigner = \"" + new string('7', 96) + "\"", "", "" },
        { "attributes that a module has to have", "tcbInfo.tdxModuleIdentities.0.attributes = \"0100000000000000\"", "quote.module", "SEAMATTRIBUTES is 0000000000000000" },
        { "another PCE", "tcbInfo.pceId = \"0001\"", "collateral.family", "PCE-ID of the PCK certificate is 0000, not 0001" },
        { "information of SGX", "tcbInfo.id = \"SGX\"", "collateral.tcb-info-signature", "its id is \"SGX\"" },
        { "version 2", "tcbInfo.version = 2", "collateral.tcb-info-signature", "version 2" },
        { "a date that is none", "tcbInfo.nextUpdate = \"soon\"", "collateral.tcb-info-signature", "nextUpdate" },
        { "a version that is no byte", "tcbInfo.tcbLevels.0.tcb.sgxtcbcomponents.0.svn = 256", "collateral.tcb-info-signature", "sgxtcbcomponents" },
        { "a version too few", "tcbInfo.tcbLevels.0.tcb.tdxtcbcomponents = [{\"svn\":1}]", "collateral.tcb-info-signature", "tdxtcbcomponents" },
        { "levels that are numbers", "tcbInfo.tcbLevels = [1]", "collateral.tcb-info-signature", "tcbLevels" },
        { "from the future", "tcbInfo.issueDate = \"2031-01-01T00:00:00Z\"", "collateral.tcb-info-dates", "2031-01-01" },
    };

    public static TheoryData<string, string, string, string> QeIdentities => new()
    {
        { "bits that the mask leaves out", "enclaveIdentity.attributesMask = \"00000000000000000000000000000000\"; enclaveIdentity.attributes = \"00000000000000000000000000000000\"", "", "" },
        { "another MISCSELECT", "enclaveIdentity.miscselect = \"01000000\"", "collateral.qe-identity", "MISCSELECT is 00000000, and has to be 01000000 under the mask ffffffff" },
        { "other attributes", "enclaveIdentity.attributes = \"13000000000000000000000000000000\"", "collateral.qe-identity", "ATTRIBUTES is 1500000000000000e700000000000000" },
        { "another product", "enclaveIdentity.isvprodid = 1", "collateral.qe-identity", "ISVPRODID is 2, not 1" },
        { "an old version", "enclaveIdentity.tcbLevels.0.tcb.isvsvn = 9", "collateral.qe-identity", "the quoting enclave with ISVSVN 8 is at the level of" },
        { "no level that is reached", "enclaveIdentity.tcbLevels = []", "collateral.qe-identity", "reaches no level" },
        { "the identity of SGX's enclave", "enclaveIdentity.id = \"QE\"", "collateral.qe-identity-signature", "\"QE\"" },
        { "version 1", "enclaveIdentity.version = 1", "collateral.qe-identity-signature", "version 1" },
        { "past its update", "enclaveIdentity.nextUpdate = \"2030-01-01T00:00:00Z\"", "collateral.qe-identity-dates", "2030-01-01" },
    };

    [Theory]
    [MemberData(nameof(TcbInfos))]
    public async Task TcbInfo_ThatSaysSomethingElse_DecidesItsOwnCheck(string what, string changes, string failed, string says)
    {
        VerifyQuoteRequest request = await Sound();
        request.TcbInfo = Signed(request.TcbInfo, changes);
        AssertFails(what, await VerifiedQuotes.Ask(daemon, request), failed, says);
    }

    [Theory]
    [MemberData(nameof(QeIdentities))]
    public async Task QeIdentity_ThatSaysSomethingElse_DecidesItsOwnCheck(string what, string changes, string failed, string says)
    {
        VerifyQuoteRequest request = await Sound();
        request.QeIdentity = Signed(request.QeIdentity, changes);
        AssertFails(what, await VerifiedQuotes.Ask(daemon, request), failed, says);
    }

    [Fact]
    public async Task AModuleBefore15_IsJudgedByAllItsComponents()
    {
        var tdx = new TdxConfig { TeeTcbSvn = ByteString.CopyFrom([3, 0, 6, .. new byte[13]]) };
        await using RemoteHost host = await daemon.Connection.CreateHostAsync(seed: Seed, machine: new MachineConfig { Platform = Platform.IntelTdx, Tdx = tdx });
        VerifyQuoteRequest request = await Sound();
        request.Quote = (await host.TdxAttestation.GetQuoteAsync((await QuotedTd.Report(host)).Bytes)).Quote;
        const string sameComponents = "tcbInfo.tcbLevels.0.tcb.tdxtcbcomponents.0.svn = 3; tcbInfo.tcbLevels.0.tcb.tdxtcbcomponents.1.svn = 0; tcbInfo.tdxModuleIdentities = []";

        ByteString published = request.TcbInfo;
        request.TcbInfo = Signed(published, sameComponents);
        AssertFails("its own components", await VerifiedQuotes.Ask(daemon, request), "", "");
        request.TcbInfo = Signed(published, sameComponents.Replace("svn = 3", "svn = 4", StringComparison.Ordinal));
        AssertFails("an older component 0", await VerifiedQuotes.Ask(daemon, request), "collateral.tcb", "OutOfDate");
        request.TcbInfo = Signed(published, sameComponents + "; tcbInfo.tdxModule.mrsigner = \"" + new string('7', 96) + "\"");
        AssertFails("another signer", await VerifiedQuotes.Ask(daemon, request), "quote.module", "not 7777");
    }

    // As it stands in the answer, white space and order of members and all.
    [Fact]
    public async Task TheSignature_IsOverTheTextOfTheObject()
    {
        VerifyQuoteRequest request = await Sound();
        string inner = Object(request.TcbInfo)["tcbInfo"]!.ToJsonString(new() { WriteIndented = true });
        string signature = Convert.ToHexString(s_tcbSigningKey.Sign(Encoding.UTF8.GetBytes(inner)));

        request.TcbInfo = ByteString.CopyFromUtf8($" {{ \"signature\" : \"{signature}\",\n\t\"tcbInfo\" :  {inner}  , \"x\": 0 }}\r\n");
        AssertFails("white space around it", await VerifiedQuotes.Ask(daemon, request), "", "");
        request.TcbInfo = ByteString.CopyFromUtf8($"{{\"tcbInfo\":{inner.Replace("  ", " ", StringComparison.Ordinal)},\"signature\":\"{signature}\"}}");
        AssertFails("white space in it", await VerifiedQuotes.Ask(daemon, request), "collateral.tcb-info-signature", "as it stands");
        request.TcbInfo = ByteString.CopyFromUtf8($"{{\"tcbInfo\":{{}},\"tcbInfo\":{inner},\"signature\":\"{signature}\"}}");
        AssertFails("twice", await VerifiedQuotes.Ask(daemon, request), "collateral.tcb-info-signature", "tcbInfo");
    }

    // A signer may be anybody where no root is trusted yet.
    [Theory]
    [InlineData("\"tcbStatus\":\"UpToDate\"", "\"tcbStatus\":\"\\ud800\"", "tcbStatus")]
    [InlineData("\"tcbDate\":\"2", "\"tcbDate\":\"\\udc00", "tcbDate")]
    [InlineData("\"fmspc\":", "\"\\ud800\":1,\"fmspc\":", "JSON")]
    [InlineData("\"tcbLevels\":[{", "\"tcbLevels\":[[],{", "tcbLevels")]
    [InlineData("\"pcesvn\":13", "\"pcesvn\":1e400", "pcesvn")]
    [InlineData("\"pcesvn\":13", "\"pcesvn\":-1", "pcesvn")]
    [InlineData("\"pcesvn\":13", "\"pcesvn\":13,\"pcesvn\":13", "pcesvn")]
    public async Task TextThatIsSignedAndCannotBe_IsRefusedWithTheMember(string what, string instead, string says)
    {
        VerifyQuoteRequest request = await Sound();
        string inner = Object(request.TcbInfo)["tcbInfo"]!.ToJsonString().Replace(what, instead, StringComparison.Ordinal);
        Assert.Contains(instead, inner, StringComparison.Ordinal);
        request.TcbInfo = SignedText("tcbInfo", inner);
        AssertFails(instead, await VerifiedQuotes.Ask(daemon, request), "collateral.tcb-info-signature", says);
    }

    // Others that the root signed too are not the TCB signer.
    [Theory]
    [InlineData("Intel SGX Provisioning", "root", "collateral.tcb-signing")]
    [InlineData("Intel SGX TCB Signing", "platform-ca", "collateral.tcb-signing")]
    [InlineData("Intel SGX TCB Signing", "root", "")]
    public async Task TheTcbSigner_IsWhoTheRootSaysItIs(string name, string issuer, string failed)
    {
        VerifyQuoteRequest request = await Sound();
        request.TcbSigning = ByteString.CopyFrom(TcbSigning(name, issuer, request.Expected.Root));
        AssertFails(name, await VerifiedQuotes.Ask(daemon, request), failed, "");
    }

    [Fact]
    public async Task ARevokedTcbSigner_IsRefused_AndAListOfSomebodyElseToo()
    {
        VerifyQuoteRequest request = await Sound();
        ByteString sound = request.RootCrl;
        using X509Certificate2 signer = X509CertificateLoader.LoadCertificate(request.TcbSigning.Span);

        request.RootCrl = Crl("root", request.Expected.Root, signer.SerialNumberBytes, VerifiedQuotes.Now.AddYears(1));
        AssertFails("revoked", await VerifiedQuotes.Ask(daemon, request), "collateral.tcb-signing-revoked", "Intel SGX TCB Signing");
        request.RootCrl = Crl("root", request.Expected.Root, default, VerifiedQuotes.Now.AddDays(-1));
        AssertFails("an old list", await VerifiedQuotes.Ask(daemon, request), "collateral.crl-dates", "root_crl: it was to be replaced");
        request.RootCrl = Crl("other", request.Expected.Root, default, VerifiedQuotes.Now.AddYears(1));
        AssertFails("another key", await VerifiedQuotes.Ask(daemon, request), "collateral.crl-signatures", "root_crl: the key of Intel SGX Root CA did not sign it");
        const string deltaCrlIndicator = "2.5.29.27";
        request.RootCrl = WithExtension("root", sound, deltaCrlIndicator, critical: false);
        AssertFails("not critical", await VerifiedQuotes.Ask(daemon, request), "", "");
        request.RootCrl = WithExtension("root", sound, deltaCrlIndicator, critical: true);
        AssertFails("a list of changes", await VerifiedQuotes.Ask(daemon, request), "collateral.crl-signatures", $"root_crl: it has the critical extension {deltaCrlIndicator}");
        (request.RootCrl, request.PckCrl) = (request.PckCrl, sound);
        AssertFails("exchanged", await VerifiedQuotes.Ask(daemon, request), "collateral.crl-signatures", "root_crl: it is of \"");
    }

    // Whatever certificates say, reading them is no error: a few thousand chains with changed bytes, judged without a trusted root.
    [Fact]
    public async Task CertificatesWithChangedBytes_AreFindings()
    {
        const int seed = 77;
        var random = new Random(seed);
        VerifyQuoteRequest sound = await Sound();
        sound.Expected.Root = ByteString.Empty;
        byte[] quote = sound.Quote.ToByteArray();
        string pem = TdxQuote.Parse(quote).PckChainPem;
        var chain = new X509Certificate2Collection();
        chain.ImportFromPem(pem);
        string expected = string.Join(' ', TdxQuoteVerifier.Verify(sound).Checks.Select(check => check.Id));
        for (int i = 0; i < 3000; i++)
        {
            byte[][] ders = [.. chain.Select(each => each.RawData)];
            byte[] der = ders[i % 3];
            for (int changes = random.Next(1, 4); changes > 0; changes--)
            {
                der[random.Next(der.Length)] = (byte)random.Next(256);
            }
            VerifyQuoteRequest request = sound.Clone();
            request.Quote = ByteString.CopyFrom(QuoteBytes.WithChain(quote, string.Concat(ders.Select(each => PemEncoding.WriteString("CERTIFICATE", each) + "\n"))));
            request.TcbSigning = ByteString.CopyFrom(der);
            request.RootCrl = i % 2 == 0 ? ByteString.CopyFrom(der) : sound.RootCrl;

            EvidenceFindings findings = TdxQuoteVerifier.Verify(request);

            Assert.True(findings.Verdict == EvidenceVerdict.Refused, $"seed {seed}, step {i}");
            Assert.Equal(expected, string.Join(' ', findings.Checks.Select(check => check.Id)));
        }
    }

    // The same of JSON, each time signed as it then stands.
    [Fact]
    public async Task SignedTextWithChangedBytes_IsFindings()
    {
        const int seed = 78;
        byte[] ofJson = Encoding.ASCII.GetBytes("{}[]\":,0123456789abcdefu\\-+.eE");
        var random = new Random(seed);
        VerifyQuoteRequest sound = await Sound();
        int refused = 0;
        for (int i = 0; i < 600; i++)
        {
            VerifyQuoteRequest request = sound.Clone();
            (string name, ByteString answer) = i % 2 == 0 ? ("tcbInfo", sound.TcbInfo) : ("enclaveIdentity", sound.QeIdentity);
            byte[] inner = Encoding.UTF8.GetBytes(Object(answer)[name]!.ToJsonString());
            for (int changes = random.Next(1, 4); changes > 0; changes--)
            {
                inner[random.Next(inner.Length)] = random.Next(3) == 0 ? (byte)random.Next(256) : ofJson[random.Next(ofJson.Length)];
            }
            ByteString signed = SignedText(name, inner);
            (request.TcbInfo, request.QeIdentity) = i % 2 == 0 ? (signed, sound.QeIdentity) : (sound.TcbInfo, signed);

            EvidenceFindings findings = TdxQuoteVerifier.Verify(request);

            Assert.True(findings.Verdict is EvidenceVerdict.Accepted or EvidenceVerdict.Refused, $"seed {seed}, step {i}");
            refused += findings.Verdict == EvidenceVerdict.Refused ? 1 : 0;
        }
        Assert.InRange(refused, 300, 599);
    }

    private static void AssertFails(string what, EvidenceFindings findings, string failed, string says)
    {
        Assert.True(failed == string.Join(' ', findings.Failed()), $"{what}: {findings}");
        Assert.Equal(failed.Length == 0 ? EvidenceVerdict.Accepted : EvidenceVerdict.Refused, findings.Verdict);
        Assert.True(failed.Length == 0 || findings.Checks.Single(check => check.Id == failed).Found.Contains(says, StringComparison.Ordinal), $"{what}: {findings}");
    }

    private async Task<VerifyQuoteRequest> Sound()
    {
        await using RemoteHost host = await QuotedTd.CreateHost(daemon.Connection, Seed);
        return VerifiedQuotes.Request(await host.TdxAttestation.MakeEvidenceAsync(QuoteEvidenceKind.Sound, (await QuotedTd.Report(host)).Bytes));
    }

    private static JsonObject Object(ByteString json) => JsonNode.Parse(json.Span)!.AsObject();

    // Changes are "path = JSON", with semicolons between them; what is changed is signed anew.
    private static ByteString Signed(ByteString answer, string changes)
    {
        JsonObject json = Object(answer);
        foreach (string change in changes.Split("; "))
        {
            string[] sides = change.Split(" = ", 2), path = sides[0].Split('.');
            JsonNode at = json;
            foreach (string step in path[..^1])
            {
                at = at is JsonArray array ? array[int.Parse(step, System.Globalization.CultureInfo.InvariantCulture)]! : at[step]!;
            }
            at.AsObject()[path[^1]] = JsonNode.Parse(sides[1]);
        }
        string name = json.Select(each => each.Key).First();
        string inner = json[name]!.ToJsonString();
        return SignedText(name, inner);
    }

    private static ByteString SignedText(string name, string inner) => SignedText(name, Encoding.UTF8.GetBytes(inner));

    private static ByteString SignedText(string name, byte[] inner)
    {
        byte[] head = Encoding.UTF8.GetBytes($"{{\"{name}\":"), tail = Encoding.UTF8.GetBytes($",\"signature\":\"{Convert.ToHexStringLower(s_tcbSigningKey.Sign(inner))}\"}}");
        return ByteString.CopyFrom([.. head, .. inner, .. tail]);
    }

    private static byte[] TcbSigning(string name, string issuer, ByteString root)
    {
        using X509Certificate2 rootCertificate = X509CertificateLoader.LoadCertificate(root.Span);
        var request = new CertificateRequest(new X500DistinguishedName($"CN={name}"), s_tcbSigningKey.PublicKey, HashAlgorithmName.SHA256);
        using X509Certificate2 certificate = request.Create(
            rootCertificate.SubjectName, EcdsaP256Key.Named($"vmmservice/{Seed}/{issuer}"), VerifiedQuotes.Now.AddYears(-1), VerifiedQuotes.Now.AddYears(1), [1, 2, 3]);
        return certificate.RawData;
    }

    private static ByteString Crl(string key, ByteString issuer, ReadOnlyMemory<byte> serial, DateTimeOffset nextUpdate)
    {
        using X509Certificate2 root = X509CertificateLoader.LoadCertificate(issuer.Span);
        EcdsaP256Key signer = EcdsaP256Key.Named($"vmmservice/{Seed}/{key}");
        var builder = new CertificateRevocationListBuilder();
        if (!serial.IsEmpty)
        {
            builder.AddEntry(serial.Span, VerifiedQuotes.Now.AddYears(-1));
        }
        var keyId = X509AuthorityKeyIdentifierExtension.CreateFromSubjectKeyIdentifier(new X509SubjectKeyIdentifierExtension(signer.PublicKey, critical: false));
        return ByteString.CopyFrom(builder.Build(root.SubjectName, signer, 9, nextUpdate, HashAlgorithmName.SHA256, keyId, VerifiedQuotes.Now.AddYears(-2)));
    }

    // The list with one extension more, signed again.
    private static ByteString WithExtension(string key, ByteString crl, string oid, bool critical)
    {
        var tag = new Asn1Tag(TagClass.ContextSpecific, 0, isConstructed: true);
        AsnReader outer = new AsnReader(crl.Memory, AsnEncodingRules.DER).ReadSequence();
        AsnReader fields = outer.ReadSequence();
        ReadOnlyMemory<byte> algorithm = outer.ReadEncodedValue();
        var signed = new AsnWriter(AsnEncodingRules.DER);
        using (signed.PushSequence())
        {
            while (fields.PeekTag() != tag)
                signed.WriteEncodedValue(fields.ReadEncodedValue().Span);
            AsnReader extensions = fields.ReadSequence(tag).ReadSequence();
            using (signed.PushSequence(tag))
            using (signed.PushSequence())
            {
                while (extensions.HasData)
                    signed.WriteEncodedValue(extensions.ReadEncodedValue().Span);
                using (signed.PushSequence())
                {
                    signed.WriteObjectIdentifier(oid);
                    if (critical)
                        signed.WriteBoolean(true);
                    signed.WriteOctetString([2, 1, 1]);
                }
            }
        }
        var list = new AsnWriter(AsnEncodingRules.DER);
        using (list.PushSequence())
        {
            list.WriteEncodedValue(signed.Encode());
            list.WriteEncodedValue(algorithm.Span);
            list.WriteBitString(EcdsaP256Key.Named($"vmmservice/{Seed}/{key}").SignData(signed.Encode(), HashAlgorithmName.SHA256));
        }
        return ByteString.CopyFrom(list.Encode());
    }
}
