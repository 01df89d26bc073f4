using System.Text.Json;
using SimMachine.Amd.Legacy;
using SimMachine.Tests.Measurement;
using Xunit;

namespace SimMachine.Tests.Amd;

/// <summary>Cryptography between a guest owner and SEV firmware, against public vectors (snp-vectors.json; snp.md 4.5).</summary>
public sealed class SevSessionTests
{
    [Fact]
    public void KeysAndSession_OfTheVector_ComeOut()
    {
        (JsonElement given, JsonElement expected) = Vector("sev-launch-session");
        byte[] z = Bytes(given, "z_hex");
        SevWrappingKeys keys = SevSession.WrappingKeys(z, Bytes(given, "nonce"));
        Assert.Equal(Bytes(expected, "kek"), keys.Kek);
        Assert.Equal(Bytes(expected, "kik"), keys.Kik);
        Assert.Equal(Bytes(expected, "master_secret"), keys.MasterSecret);

        byte[] blob = [.. Bytes(expected, "nonce"), .. Bytes(expected, "wrap_tk"), .. Bytes(expected, "wrap_iv"), .. Bytes(expected, "wrap_mac"), .. Bytes(expected, "policy_mac")];
        Assert.Equal(SevSession.BlobSize, blob.Length);
        OpenedSevSession opened = SevSession.Open(z, blob, given.GetProperty("policy").GetUInt32());
        Assert.True(opened.Holds);
        Assert.Equal(Bytes(given, "tek"), opened.Tek);
        Assert.Equal(Bytes(given, "tik"), opened.Tik);
    }

    [Fact]
    public void Session_WithAnyByteFlipped_OrAnotherPolicy_DoesNotOpen()
    {
        (JsonElement given, JsonElement expected) = Vector("sev-launch-session");
        byte[] z = Bytes(given, "z_hex");
        byte[] blob = [.. Bytes(expected, "nonce"), .. Bytes(expected, "wrap_tk"), .. Bytes(expected, "wrap_iv"), .. Bytes(expected, "wrap_mac"), .. Bytes(expected, "policy_mac")];
        for (int i = 0; i < blob.Length; i++)
        {
            blob[i] ^= 1;
            Assert.False(SevSession.Open(z, blob, 0).Holds, $"byte {i}");
            blob[i] ^= 1;
        }
        Assert.False(SevSession.Open(z, blob, 1).Holds);
    }

    [Fact]
    public void Measurements_OfTheVectors_ComeOut()
    {
        foreach ((JsonElement given, JsonElement expected) in Vectors("sev-launch-measure"))
        {
            var version = (given.GetProperty("api_major").GetByte(), given.GetProperty("api_minor").GetByte(), given.GetProperty("build").GetByte());
            byte[] measure = SevSession.Measure(Bytes(given, "tik"), version, given.GetProperty("policy").GetUInt32(), Bytes(given, "launch_digest"), Bytes(given, "mnonce"));
            Assert.Equal(Bytes(expected, "measure"), measure);
        }
    }

    [Fact]
    public void SecretPacket_OfTheVector_IsSealedAndOpened()
    {
        (JsonElement given, JsonElement expected) = Vector("sev-launch-secret");
        byte[] tek = Bytes(given, "tek"), tik = Bytes(given, "tik"), measure = Bytes(given, "measure"), data = Bytes(given, "data_hex");
        (byte[] header, byte[] body) = SevSession.SealSecret(tek, tik, Bytes(given, "iv"), data, measure);
        Assert.Equal(Bytes(expected, "header_hex"), header);
        Assert.Equal(Bytes(expected, "ciphertext_hex"), body);
        Assert.True(SevSession.TryOpenSecret(tek, tik, header, body, (uint)body.Length, measure, out byte[] opened));
        Assert.Equal(data, opened);

        Assert.False(SevSession.TryOpenSecret(tek, tik, header, body, (uint)body.Length + 16, measure, out _));
        measure[0] ^= 1;
        Assert.False(SevSession.TryOpenSecret(tek, tik, header, body, (uint)body.Length, measure, out _));
    }

    private static (JsonElement Given, JsonElement Expected) Vector(string kind) => Vectors(kind).First();

    private static IEnumerable<(JsonElement Given, JsonElement Expected)> Vectors(string kind) => SnpVectors.IdsOf(kind).Select(SnpVectors.Get)
        .Select(vector => (vector.GetProperty("params"), vector.GetProperty("expected")));

    private static byte[] Bytes(JsonElement element, string name) => Convert.FromHexString(element.GetProperty(name).GetString()!);
}
