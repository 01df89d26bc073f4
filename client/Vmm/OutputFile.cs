namespace VmmService.Vmm;

/// <summary>Files that a command writes because its options name them: what can go wrong is told as their mistake.</summary>
internal static class OutputFile
{
    /// <exception cref="UsageException">It cannot be written.</exception>
    public static async Task WriteAsync(string path, ReadOnlyMemory<byte> bytes, CancellationToken cancellation)
    {
        try
        {
            await File.WriteAllBytesAsync(path, bytes, cancellation);
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            throw new UsageException($"{path} cannot be written: {exception.Message}");
        }
    }

    /// <exception cref="UsageException">It cannot be made.</exception>
    public static void MakeFolder(string option, string folder)
    {
        try
        {
            Directory.CreateDirectory(folder);
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            throw new UsageException($"{option} {folder}: the folder cannot be made: {exception.Message}");
        }
    }
}

/// <summary>The 64 bytes of a report that whoever asks for it chooses.</summary>
internal static class ReportData
{
    /// <summary>Reads hexadecimal digits; fewer bytes are filled up with zeros.</summary>
    /// <exception cref="UsageException">They are none, or too many.</exception>
    public static byte[] Parse(string? hex)
    {
        const int size = 64;
        byte[] data = new byte[size];
        if (hex is not null && (hex.Length > 2 * size || Convert.FromHexString(hex, data, out _, out _) != System.Buffers.OperationStatus.Done))
            throw new UsageException($"--report-data {hex}: not at most {2 * size} hexadecimal digits, two for each byte");
        return data;
    }
}
