using System.Buffers.Binary;
using System.Text;
using VmmService.Client.Attestation;

namespace VmmService.IntegrationTests.Attestation;

/// <summary>Quotes of the daemon with other parts.</summary>
internal static class QuoteBytes
{
    // Of the daemon's quoting enclave.
    private const int AuthenticationSize = 32;

    /// <summary>With another text for the chain, and the lengths that fit it.</summary>
    public static byte[] WithChain(byte[] quote, string chain)
    {
        // Behind signature, key and the header of the certification data; behind the enclave's report, its signature and the authentication data.
        int data = TdxQuote.Parse(quote).Signed.Length + 4, certification = data + 134, inner = certification + 448 + 2 + AuthenticationSize;
        byte[] bytes = [.. quote[..(inner + 6)], .. Encoding.Latin1.GetBytes(chain)];
        BinaryPrimitives.WriteInt32LittleEndian(bytes.AsSpan(data - 4), bytes.Length - data);
        BinaryPrimitives.WriteInt32LittleEndian(bytes.AsSpan(certification - 4), bytes.Length - certification);
        BinaryPrimitives.WriteInt32LittleEndian(bytes.AsSpan(inner + 2), chain.Length);
        return bytes;
    }
}
