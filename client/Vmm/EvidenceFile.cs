using System.Security.Cryptography;
using System.Text;

namespace VmmService.Vmm;

/// <summary>Files of evidence that a command verifies: certificates and revocation lists are taken in PEM and in DER.</summary>
internal static class EvidenceFile
{
    public const string Certificate = "CERTIFICATE";
    public const string RevocationList = "X509 CRL";

    // As much as a daemon takes.
    private const int MaxBytes = 1 << 20;

    /// <summary>The content as it is.</summary>
    /// <param name="option">Which names it, for the message.</param>
    /// <exception cref="UsageException">It cannot be read, or is larger than such a file can be.</exception>
    public static async Task<byte[]> ReadAsync(string option, string path, CancellationToken cancellation)
    {
        try
        {
            // Of what has no length (a device, a pipe) no more is read than shows that it is too much.
            await using FileStream file = new(path, FileMode.Open, FileAccess.Read);
            byte[] bytes = new byte[MaxBytes + 1];
            int read = await file.ReadAtLeastAsync(bytes, bytes.Length, throwOnEndOfStream: false, cancellation);
            return read <= MaxBytes ? bytes[..read] : throw new UsageException($"{option} {path}: the file has more than {Numbers.Size(MaxBytes)}, too much for evidence");
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            throw new UsageException($"{option} {path} cannot be read: {exception.Message}");
        }
    }

    /// <summary>The DER of a file: of PEM the first block, else the content as it is.</summary>
    /// <param name="option">Which names it, for the message.</param>
    /// <param name="label">What the block has to be.</param>
    /// <exception cref="UsageException">It cannot be read, or is PEM of something else.</exception>
    public static async Task<byte[]> ReadDerAsync(string option, string path, string label, CancellationToken cancellation)
    {
        byte[] bytes = await ReadAsync(option, path, cancellation);
        string text = Encoding.Latin1.GetString(bytes);
        if (!PemEncoding.TryFind(text, out PemFields fields))
            return bytes;
        if (text[fields.Label] != label)
            throw new UsageException($"{option} {path}: it is PEM of \"{text[fields.Label]}\", not of \"{label}\"");
        return Convert.FromBase64String(text[fields.Base64Data]);
    }
}
