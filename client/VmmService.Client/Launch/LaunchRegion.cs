namespace VmmService.Client.Launch;

/// <summary>Page type of KVM_SEV_SNP_LAUNCH_UPDATE, by the kernel's numbers. VMSA (2) is missing: only the kernel adds such pages.</summary>
public enum SnpPageType : byte
{
    NORMAL = 1,
    ZERO = 3,
    UNMEASURED = 4,
    SECRETS = 5,
    CPUID = 6,
}

/// <summary>Where the content of a region comes from.</summary>
public enum LaunchSource
{
    /// <summary>From nowhere: zeros, or firmware makes it.</summary>
    None,

    /// <summary>The firmware image; it is in <see cref="LaunchRegion.Content"/>.</summary>
    Firmware,

    /// <summary>The page of kernel hashes; it is in <see cref="LaunchRegion.Content"/>.</summary>
    KernelHashPage,

    /// <summary>The CPUID page, which the VMM makes while it launches, from the CPUID of vCPU 0 (<see cref="CpuidPage"/>). Its content is not measured.</summary>
    CpuidPage,
}

/// <summary>A range of guest memory that is launched with one page type: an SNP_LAUNCH_UPDATE, repeated until it is done.</summary>
/// <param name="PageType">What is asked of the kernel.</param>
/// <param name="Gpa">Page aligned.</param>
/// <param name="Size">A multiple of the page size.</param>
/// <param name="Source">Where its content comes from.</param>
/// <param name="Label">What it is, for people.</param>
public sealed record LaunchRegion(SnpPageType PageType, ulong Gpa, ulong Size, LaunchSource Source, string Label)
{
    /// <summary>The content, <see cref="Size"/> bytes, or nothing if it is not known before the launch.</summary>
    public ReadOnlyMemory<byte> Content { get; init; }

    /// <summary>Pages of 4 KiB, each a step of the measurement.</summary>
    public ulong Pages => Size / FirmwareImage.PageSize;

    public ulong End => Gpa + Size;
}
