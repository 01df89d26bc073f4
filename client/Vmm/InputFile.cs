using System.Security.Cryptography;

namespace VmmService.Vmm;

/// <summary>A file named on the command line, read whole. What can be wrong with it is told with the option that named it.</summary>
/// <param name="Path">As given.</param>
/// <param name="Content">Its bytes.</param>
internal sealed record InputFile(string Path, ReadOnlyMemory<byte> Content)
{
    /// <summary>Lower-case hexadecimal.</summary>
    public string Sha256 { get; } = Convert.ToHexStringLower(SHA256.HashData(Content.Span));

    /// <param name="option">The option, with its dashes.</param>
    /// <param name="path">Its value.</param>
    /// <param name="maxBytes">Larger files are refused.</param>
    /// <param name="cancellation">Gives up reading.</param>
    public static async Task<InputFile> ReadAsync(string option, string path, long maxBytes, CancellationToken cancellation)
    {
        try
        {
            if (Directory.Exists(path))
                throw new UsageException($"{option} {path}: this is a directory; name a file");

            var info = new FileInfo(path);
            if (info.Exists && info.Length > maxBytes)
                throw new UsageException($"{option} {path}: the file has {info.Length} bytes and the limit is {maxBytes}; is it the right file?");

            return new InputFile(path, await File.ReadAllBytesAsync(path, cancellation));
        }
        catch (Exception exception) when (exception is FileNotFoundException or DirectoryNotFoundException)
        {
            throw new UsageException($"{option} {path}: there is no such file; check the path (it is taken from the current directory unless it starts with /)");
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            throw new UsageException($"{option} {path}: cannot be read: {exception.Message}");
        }
    }
}
