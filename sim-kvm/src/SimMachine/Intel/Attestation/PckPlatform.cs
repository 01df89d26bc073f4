using System.Formats.Asn1;
using System.Security.Cryptography.X509Certificates;

namespace SimMachine.Intel.Attestation;

/// <summary>What a PCK certificate says of its platform: the SGX extension (tdx.md 7.7).</summary>
/// <param name="Ppid">Platform provisioning id, 16 bytes.</param>
/// <param name="SgxComponents">Security versions of the 16 components; also CPUSVN.</param>
/// <param name="PceSvn">Security version of the provisioning certification enclave.</param>
/// <param name="Fmspc">Family, model, stepping, platform and SKU, 6 bytes; TCB info is issued for them.</param>
/// <param name="PlatformInstanceId">16 bytes.</param>
public sealed record PckPlatform(
    ReadOnlyMemory<byte> Ppid, ReadOnlyMemory<byte> SgxComponents, ushort PceSvn, ReadOnlyMemory<byte> Fmspc, ReadOnlyMemory<byte> PlatformInstanceId)
{
    /// <summary>OID of the extension; its parts are below it.</summary>
    public const string ExtensionOid = "1.2.840.113741.1.13.1";

    // ENUMERATED of the SGX type: 0 standard, 1 scalable, 2 scalable with integrity.
    private enum SgxType
    {
        Standard,
        Scalable,
    }

    /// <summary>PCE-ID of every platform.</summary>
    public static ReadOnlySpan<byte> PceId => [0, 0];

    /// <summary>The extension as certificates have it.</summary>
    internal X509Extension ToExtension()
    {
        var writer = new AsnWriter(AsnEncodingRules.DER);
        using (writer.PushSequence())
        {
            Item(writer, "1", () => writer.WriteOctetString(Ppid.Span));
            Item(writer, "2", () => WriteTcb(writer));
            Item(writer, "3", () => writer.WriteOctetString(PceId));
            Item(writer, "4", () => writer.WriteOctetString(Fmspc.Span));
            Item(writer, "5", () => writer.WriteEnumeratedValue(SgxType.Scalable));
            Item(writer, "6", () => writer.WriteOctetString(PlatformInstanceId.Span));
            Item(writer, "7", () => WriteConfiguration(writer));
        }
        return new X509Extension(ExtensionOid, writer.Encode(), critical: false);
    }

    private void WriteTcb(AsnWriter writer)
    {
        using (writer.PushSequence())
        {
            int count = SgxComponents.Length;
            for (int i = 0; i < count; i++)
            {
                byte svn = SgxComponents.Span[i];
                Item(writer, $"2.{i + 1}", () => writer.WriteInteger(svn));
            }
            Item(writer, $"2.{count + 1}", () => writer.WriteInteger(PceSvn));
            Item(writer, $"2.{count + 2}", () => writer.WriteOctetString(SgxComponents.Span));
        }
    }

    // Dynamic platform, cached keys, SMT: as servers have them.
    private static void WriteConfiguration(AsnWriter writer)
    {
        using (writer.PushSequence())
        {
            for (int i = 1; i <= 3; i++)
            {
                Item(writer, $"7.{i}", () => writer.WriteBoolean(true));
            }
        }
    }

    private static void Item(AsnWriter writer, string leaf, Action writeValue)
    {
        using (writer.PushSequence())
        {
            writer.WriteObjectIdentifier($"{ExtensionOid}.{leaf}");
            writeValue();
        }
    }
}
