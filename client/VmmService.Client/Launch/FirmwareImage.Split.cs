namespace VmmService.Client.Launch;

public sealed partial class FirmwareImage
{
    /// <summary>
    /// Puts the two files of a split build together as they lie in flash, variable store first. QEMU hands them over as two drives; what the metadata says about
    /// offsets holds for both together.
    /// </summary>
    /// <param name="variables">OVMF_VARS.fd.</param>
    /// <param name="code">OVMF_CODE.fd; the footer is at its end.</param>
    /// <param name="name">For error texts.</param>
    /// <exception cref="FirmwareFormatException">They are no firmware image together.</exception>
    public static FirmwareImage ParseSplit(ReadOnlyMemory<byte> variables, ReadOnlyMemory<byte> code, string name = "the firmware image")
    {
        byte[] flash = new byte[variables.Length + code.Length];
        variables.CopyTo(flash);
        code.CopyTo(flash.AsMemory(variables.Length));
        return Parse(flash, name);
    }

    /// <summary>Reads the two files of a split build.</summary>
    /// <exception cref="LaunchInputException">A file cannot be read.</exception>
    /// <exception cref="FirmwareFormatException">They are no firmware image together.</exception>
    public static async Task<FirmwareImage> LoadSplitAsync(string variablesPath, string codePath, CancellationToken cancellation = default) => ParseSplit(
        await ReadFileAsync("variable store", variablesPath, cancellation), await ReadFileAsync("firmware", codePath, cancellation), $"{variablesPath} with {codePath}");
}
