namespace VmmService.Client.Launch;

/// <summary>Opens a file that a person named, so that what can be wrong with it is told as their mistake and with the role of the file.</summary>
internal static class InputStream
{
    /// <param name="role">What the file is for: "firmware", "kernel".</param>
    /// <param name="path">As given.</param>
    /// <exception cref="LaunchInputException">It cannot be opened.</exception>
    public static FileStream Open(string role, string path)
    {
        ArgumentException.ThrowIfNullOrEmpty(path);
        if (Directory.Exists(path))
            throw new LaunchInputException($"The {role} '{path}' is a directory. Name the file itself.");

        try
        {
            return new FileStream(path, FileMode.Open, FileAccess.Read, FileShare.Read, bufferSize: 1 << 16, FileOptions.Asynchronous | FileOptions.SequentialScan);
        }
        catch (Exception exception) when (exception is FileNotFoundException or DirectoryNotFoundException)
        {
            throw new LaunchInputException(
                $"The {role} '{path}' does not exist. A path that does not start with / is taken from the current directory, '{Environment.CurrentDirectory}'.", exception);
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            throw new LaunchInputException($"The {role} '{path}' cannot be opened: {exception.Message} Check who may read it.", exception);
        }
    }
}
