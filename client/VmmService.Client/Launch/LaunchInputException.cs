namespace VmmService.Client.Launch;

/// <summary>
/// What was given cannot be launched: a file, a name or a combination of options. It is found before anything is asked of a daemon. The message is one
/// paragraph for the person who gave it: what, where, the value, the limit, what to try.
/// </summary>
public class LaunchInputException : Exception
{
    public LaunchInputException(string message)
        : base(message)
    {
    }

    public LaunchInputException(string message, Exception innerException)
        : base(message, innerException)
    {
    }
}

/// <summary>A firmware image does not have the form that its own footer claims. Nothing of the image is used.</summary>
public sealed class FirmwareFormatException : LaunchInputException
{
    /// <param name="firmware">Name of the image, for people.</param>
    /// <param name="field">Which field of which structure.</param>
    /// <param name="offset">Where the field is, in bytes from the start of the image; null for the size of the image itself.</param>
    /// <param name="found">What it holds, as words after "is".</param>
    /// <param name="limit">What it would have to hold, as words after "but".</param>
    /// <param name="advice">What to try, a sentence.</param>
    internal FirmwareFormatException(string firmware, string field, long? offset, string found, string limit, string advice)
        : base($"{firmware}: the {field}{(offset is null ? "" : $" at offset 0x{offset:x}")} is {found}, but {limit}. {advice}")
    {
        Field = field;
        Offset = offset;
    }

    /// <summary>Which field of which structure.</summary>
    public string Field { get; }

    /// <summary>Where the field is, in bytes from the start of the image; null for the size of the image itself.</summary>
    public long? Offset { get; }
}
