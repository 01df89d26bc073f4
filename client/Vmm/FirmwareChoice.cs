using VmmService.Client.Launch;

namespace VmmService.Vmm;

/// <summary>
/// Which firmware a launch uses: the one asked for, else the first suitable one installed on this machine, else the sample that the client library generates.
/// What was chosen is always told, because the digest is that of the choice.
/// </summary>
/// <param name="Image">The image, read and checked.</param>
/// <param name="Path">The file, null for the sample.</param>
/// <param name="Source">"option", "installed" or "sample".</param>
internal sealed record FirmwareChoice(FirmwareImage Image, string? Path, string Source)
{
    public const string Option = "option";
    public const string Installed = "installed";
    public const string Sample = "sample";

    /// <summary>Where distributions put OVMF, in the order in which they are tried.</summary>
    public static readonly IReadOnlyList<string> UsualPlaces =
    [
        // Debian, Ubuntu
        "/usr/share/OVMF/OVMF_CODE.fd",
        "/usr/share/ovmf/OVMF.fd",
        "/usr/share/ovmf/OVMF.amdsev.fd",
        // Fedora, Red Hat
        "/usr/share/edk2/ovmf/OVMF.amdsev.fd",
        "/usr/share/edk2/ovmf/OVMF_CODE.fd",
        // Arch
        "/usr/share/edk2/x64/OVMF_CODE.fd",
        "/usr/share/edk2/x64/OVMF.4m.fd",
        // openSUSE
        "/usr/share/qemu/ovmf-x86_64-sev.bin",
        "/usr/share/qemu/ovmf-x86_64-code.bin",
    ];

    /// <param name="option">Value of --firmware, or null.</param>
    /// <param name="withKernel">A kernel is to be measured, so an installed image without a place for its hashes does not do.</param>
    /// <param name="places">Files to try; the usual places outside of tests.</param>
    /// <param name="cancellation">Gives up reading.</param>
    public static async Task<FirmwareChoice> MakeAsync(string? option, bool withKernel, IReadOnlyList<string> places, CancellationToken cancellation)
    {
        if (option is not null)
            return new FirmwareChoice(await FirmwareImage.LoadAsync(option, cancellation), option, Option);

        foreach (string place in places.Where(File.Exists))
        {
            try
            {
                FirmwareImage image = await FirmwareImage.LoadAsync(place, cancellation);
                if (image.SevSections.Count > 0 && (!withKernel || image.SevSections.Any(each => each.Type == SevSectionType.SNP_KERNEL_HASHES)))
                    return new FirmwareChoice(image, place, Installed);
            }
            catch (LaunchInputException)
            {
                // Nobody asked for this file; one that cannot be used is passed over.
            }
        }

        return new FirmwareChoice(FirmwareImage.Parse(SampleFirmware.Create(), SampleFirmware.Name), null, Sample);
    }

    /// <summary>One line for a person.</summary>
    public string Describe() => Source switch
    {
        Option => Path!,
        Installed => $"{Path} (installed on this machine)",
        _ => "generated sample, which starts and halts (no OVMF on this machine has the SNP metadata that this launch needs)",
    };
}
