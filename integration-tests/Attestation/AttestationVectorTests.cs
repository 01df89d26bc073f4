using System.Buffers.Binary;
using System.Security.Cryptography.X509Certificates;
using System.Text.Json;
using VmmService.Client;
using VmmService.Client.Attestation;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Attestation;

/// <summary>
/// The vectors of snp-vectors.json about attestation. What a platform tells is asked of one that is configured like the vector's; what an owner computes is computed by the client
/// library's owner, next to the same of firmware (<see cref="PspServiceTests"/>).
/// </summary>
public sealed class AttestationVectorTests(KeyDistributionTests.Kds kds) : IClassFixture<KeyDistributionTests.Kds>
{
    private const string Arc = "1.3.6.1.4.1.3704.1";

    public static TheoryData<string> TcbVersions => SnpVectors.Ids("tcb-version");

    public static TheoryData<string> CertificateTables => SnpVectors.Ids("certificate-table");

    public static TheoryData<string> VcekExtensions => SnpVectors.Ids("vcek-extensions");

    public static TheoryData<string> Sessions => SnpVectors.Ids("sev-launch-session");

    public static TheoryData<string> Measurements => SnpVectors.Ids("sev-launch-measure");

    public static TheoryData<string> Secrets => SnpVectors.Ids("sev-launch-secret");

    [Theory]
    [MemberData(nameof(TcbVersions))]
    public async Task ATcbVersion_IsTheNumberThatThePlatformTells(string id)
    {
        SnpVector vector = SnpVectors.Get(id);
        uint Part(string name) => vector.Params.TryGetProperty(name, out JsonElement part) ? part.GetUInt32() : 0;
        var tcb = new TcbVersion { BootLoader = Part("bootloader"), Tee = Part("tee"), Snp = Part("snp"), Microcode = Part("microcode"), Fmc = Part("fmc") };
        EpycProduct product = vector.Params.GetProperty("family").GetString() == "Turin" ? EpycProduct.Turin : EpycProduct.Milan;
        await using RemoteHost host = await kds.Connection.CreateHostAsync(machine: new MachineConfig { Product = product, Attestation = new AttestationConfig { CurrentTcb = tcb } });
        await using RemoteProcess process = await host.CreateProcessAsync();
        SnpPlatformStatusResponse status = await (await process.OpenSevAsync()).SnpPlatformStatusAsync();

        Assert.Equal(SnpVector.Hex(vector.ExpectedText("u64")!), status.CurrentTcb);
        byte[] bytes = new byte[8];
        BinaryPrimitives.WriteUInt64LittleEndian(bytes, status.CurrentTcb);
        Assert.Equal(vector.ExpectedText("bytes_hex"), Convert.ToHexStringLower(bytes));
    }

    // GUIDs in textual order, offsets from the table's start, lengths, an entry of zeros, the certificates one behind the other.
    [Theory]
    [MemberData(nameof(CertificateTables))]
    public async Task ACertificateTable_HasTheVectorsForm(string id)
    {
        SnpVector vector = SnpVectors.Get(id);
        byte[] header = Convert.FromHexString(vector.ExpectedText("header_hex")!);
        await using RemoteHost host = await kds.Connection.CreateHostAsync();
        byte[] table = (await host.GetCertificateTableAsync()).ToArray();
        GetCertificateChainResponse chain = await host.GetCertificateChainAsync();
        byte[][] certificates = [chain.Endorsement.ToByteArray(), chain.Intermediate.ToByteArray(), chain.Ark.ToByteArray()];

        Assert.Equal(Expected(header, certificates), table);
        // And the vector's own header is made by the same rule.
        Assert.Equal(header, Expected(header, [.. vector.Params.GetProperty("entries").EnumerateArray().Select(entry => new byte[entry.GetProperty("len").GetInt32()])])[..header.Length]);

        static byte[] Expected(byte[] header, byte[][] certificates)
        {
            using var stream = new MemoryStream();
            int offset = header.Length;
            for (int i = 0; i < certificates.Length; i++)
            {
                stream.Write(header.AsSpan(24 * i, 16));
                stream.Write(BitConverter.GetBytes(offset));
                stream.Write(BitConverter.GetBytes(certificates[i].Length));
                offset += certificates[i].Length;
            }
            stream.Write(new byte[24]);
            foreach (byte[] certificate in certificates)
                stream.Write(certificate);
            return stream.ToArray();
        }
    }

    // The same TCB version on a simulated chip: every extension but the chip's own id is as silicon has it.
    [Theory]
    [MemberData(nameof(VcekExtensions))]
    public async Task AnEndorsementCertificate_SaysWhatSiliconsDoes(string id)
    {
        SnpVector vector = SnpVectors.Get(id);
        Dictionary<string, string> expected = vector.Expected.GetProperty("extension_value_hex").EnumerateObject().ToDictionary(each => each.Name, each => each.Value.GetString()!);
        uint Spl(string leaf) => Convert.FromHexString(expected[$"{Arc}.3.{leaf}"])[^1];
        using X509Certificate2 silicon = X509CertificateLoader.LoadCertificate(vector.Params.GetProperty("vcek_der_base64").GetBytesFromBase64());
        Assert.Equal(expected, Extensions(silicon));

        byte[] der = await kds.Http.GetByteArrayAsync($"/vcek/v1/Turin/53494d5500000001?fmcSPL={Spl("9")}&blSPL={Spl("1")}&teeSPL={Spl("2")}&snpSPL={Spl("3")}&ucodeSPL={Spl("8")}");
        using X509Certificate2 simulated = X509CertificateLoader.LoadCertificate(der);

        expected[$"{Arc}.4"] = "53494d5500000001";
        Assert.Equal(expected, Extensions(simulated));
        Assert.Equal((vector.ExpectedText("subject_cn"), vector.ExpectedText("issuer_cn")), (simulated.GetNameInfo(X509NameType.SimpleName, false), simulated.GetNameInfo(X509NameType.SimpleName, true)));

        static Dictionary<string, string> Extensions(X509Certificate2 certificate) =>
            certificate.Extensions.Where(each => each.Oid!.Value!.StartsWith(Arc, StringComparison.Ordinal)).ToDictionary(each => each.Oid!.Value!, each => Convert.ToHexStringLower(each.RawData));
    }

    [Theory]
    [MemberData(nameof(Sessions))]
    public void AnOwnersSession_IsTheVectors(string id)
    {
        SnpVector vector = SnpVectors.Get(id);
        byte[] z = Given(vector, "z_hex"), nonce = Given(vector, "nonce");
        (byte[] kek, byte[] kik) = SevGuestOwner.WrappingKeys(z, nonce);
        Assert.Equal((vector.ExpectedText("kek"), vector.ExpectedText("kik")), (Convert.ToHexStringLower(kek), Convert.ToHexStringLower(kik)));

        byte[] session = SevGuestOwner.Wrap(z, nonce, Given(vector, "iv"), Given(vector, "tek"), Given(vector, "tik"), vector.Params.GetProperty("policy").GetUInt32());
        Assert.Equal(
            string.Concat(new[] { "nonce", "wrap_tk", "wrap_iv", "wrap_mac", "policy_mac" }.Select(vector.ExpectedText)), Convert.ToHexStringLower(session));
    }

    [Theory]
    [MemberData(nameof(Measurements))]
    public void AnOwnersMeasurement_IsTheVectors(string id)
    {
        SnpVector vector = SnpVectors.Get(id);
        byte Byte(string name) => vector.Params.GetProperty(name).GetByte();
        byte[] measure = SevGuestOwner.Measure(
            Given(vector, "tik"), (Byte("api_major"), Byte("api_minor"), Byte("build")), vector.Params.GetProperty("policy").GetUInt32(), Given(vector, "launch_digest"), Given(vector, "mnonce"));
        Assert.Equal(vector.ExpectedText("measure"), Convert.ToHexStringLower(measure));
        Assert.Equal(vector.ExpectedText("blob_hex"), Convert.ToHexStringLower([.. measure, .. Given(vector, "mnonce")]));
    }

    [Theory]
    [MemberData(nameof(Secrets))]
    public void AnOwnersSecret_IsTheVectors(string id)
    {
        SnpVector vector = SnpVectors.Get(id);
        (byte[] header, byte[] body) = SevGuestOwner.SealSecret(Given(vector, "tek"), Given(vector, "tik"), Given(vector, "iv"), Given(vector, "data_hex"), Given(vector, "measure"));
        Assert.Equal((vector.ExpectedText("header_hex"), vector.ExpectedText("ciphertext_hex")), (Convert.ToHexStringLower(header), Convert.ToHexStringLower(body)));
    }

    private static byte[] Given(SnpVector vector, string name) => Convert.FromHexString(vector.Params.GetProperty(name).GetString()!);
}
