using System.Buffers.Binary;
using System.Security.Cryptography;
using System.Text;

namespace SimMachine.Stepping;

/// <summary>
/// Where keys, ids and nonces of a simulated machine come from: SHA-256 of the machine's seed, a label and a counter. The same seed and the same order of
/// requests give the same bytes; nothing here is secret.
/// </summary>
public sealed class Entropy(ulong seed)
{
    private ulong _drawn;

    /// <summary>Fills <paramref name="destination"/> with bytes that depend on the seed, the label and how many draws were made before.</summary>
    public void Draw(string label, Span<byte> destination) => Derive($"{label}/{_drawn++}", destination);

    /// <summary>Fills <paramref name="destination"/> with bytes that depend on the seed and the label only.</summary>
    public void Derive(string label, Span<byte> destination)
    {
        Span<byte> block = stackalloc byte[SHA256.HashSizeInBytes];
        byte[] name = Encoding.UTF8.GetBytes(label);
        byte[] message = new byte[8 + 4 + name.Length];
        BinaryPrimitives.WriteUInt64LittleEndian(message, seed);
        name.CopyTo(message, 12);
        for (int counter = 0; !destination.IsEmpty; counter++)
        {
            BinaryPrimitives.WriteInt32LittleEndian(message.AsSpan(8), counter);
            SHA256.HashData(message, block);
            int take = Math.Min(block.Length, destination.Length);
            block[..take].CopyTo(destination);
            destination = destination[take..];
        }
    }
}
