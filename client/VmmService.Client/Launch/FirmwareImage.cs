using System.Buffers.Binary;

namespace VmmService.Client.Launch;

/// <summary>An entry of the footer table.</summary>
/// <param name="Guid">What it is; <see cref="FirmwareGuids.NameOf"/> has names.</param>
/// <param name="Offset">Where its data starts in the image.</param>
/// <param name="Data">Its bytes, without length and GUID.</param>
public readonly record struct FirmwareEntry(Guid Guid, int Offset, ReadOnlyMemory<byte> Data);

/// <summary>A range of guest memory that the firmware keeps for something. Not checked against anything: who uses it does.</summary>
public readonly record struct FirmwareArea(uint Base, uint Size)
{
    public ulong End => (ulong)Base + Size;
}

/// <summary>Type of a section of the SEV metadata. Others can occur in an image; a plan refuses them.</summary>
public enum SevSectionType : uint
{
    SNP_SEC_MEM = 1,
    SNP_SECRETS = 2,
    CPUID = 3,
    SVSM_CAA = 4,
    SNP_KERNEL_HASHES = 0x10,
}

/// <summary>A section of the SEV metadata: guest memory that the VMM has to launch beside the image.</summary>
/// <param name="Gpa">Page aligned.</param>
/// <param name="Size">A multiple of the page size, not zero.</param>
/// <param name="Type">As the image has it.</param>
/// <param name="Offset">Where its 12 bytes are in the image.</param>
public readonly record struct SevSection(uint Gpa, uint Size, SevSectionType Type, int Offset)
{
    public ulong End => (ulong)Gpa + Size;
}

/// <summary>
/// A firmware image (OVMF, or an SVSM) with what its footer says about a confidential launch. The reading of the footer is next door in
/// FirmwareImage.Parse.cs, what a VMM does with it in <see cref="SnpLaunchPlan"/>. An image comes from anyone: an instance of this type exists only if every
/// length, offset and range in it was found to fit, so that its users need not look again.
/// </summary>
public sealed partial class FirmwareImage
{
    /// <summary>Bytes of a page, the unit of all that is launched.</summary>
    public const int PageSize = 4096;

    internal const ulong FourGiB = 1UL << 32;

    /// <summary>
    /// Largest image, 16 MiB. It is the most that QEMU's machine property max-fw-size can be set to (8 MiB unless set); anything larger would reach down to the
    /// interrupt controllers' pages below 4 GiB.
    /// </summary>
    public const int MaxSize = 16 << 20;

    private readonly List<FirmwareEntry> _entries = [];

    private FirmwareImage(ReadOnlyMemory<byte> bytes, string name)
    {
        Bytes = bytes;
        Name = name;
    }

    /// <summary>File name or another name, for people.</summary>
    public string Name { get; }

    /// <summary>The image itself.</summary>
    public ReadOnlyMemory<byte> Bytes { get; }

    /// <summary>Bytes; a multiple of the page size.</summary>
    public ulong Size => (ulong)Bytes.Length;

    /// <summary>Where it is loaded: so that it ends at 4 GiB.</summary>
    public ulong Gpa => FourGiB - Size;

    /// <summary>False for an image without a footer table. It is legal and boots a single vCPU without sections.</summary>
    public bool HasFooter { get; private set; }

    /// <summary>Entries of the footer table, from the footer downwards, unknown ones too. No GUID occurs twice.</summary>
    public IReadOnlyList<FirmwareEntry> Entries => _entries;

    /// <summary>Entries whose GUID has no name here. They are harmless; a newer firmware may have them.</summary>
    public IEnumerable<FirmwareEntry> UnknownEntries => _entries.Where(entry => FirmwareGuids.NameOf(entry.Guid) is null);

    /// <summary>Sections of the SEV metadata in table order; they overlap neither each other nor the image, and end below 4 GiB.</summary>
    public IReadOnlyList<SevSection> SevSections { get; private set; } = [];

    /// <summary>Where APs start: IP in the low 16 bits, bits 31:16 of the CS base in the high ones. Null if the image does not say.</summary>
    public uint? SevEsResetEip { get; private set; }

    /// <summary>Where the guest looks for the kernel hashes; null if it does not (no entry, or base 0).</summary>
    public FirmwareArea? KernelHashArea { get; private set; }

    /// <summary>Where a launch secret may be put; null if nowhere (no entry, or base 0).</summary>
    public FirmwareArea? SecretArea { get; private set; }

    /// <summary>Entry point of an SVSM image, as an offset in it.</summary>
    public uint? SvsmEntryOffset { get; private set; }

    /// <summary>Distance of the TDX metadata from the end of the image, as the footer has it: not checked and not followed here but in <see cref="TdvfMetadata"/>.</summary>
    public uint? TdxMetadataFromEnd { get; private set; }

    /// <summary>The data of an entry; null if the table does not have it.</summary>
    public ReadOnlyMemory<byte>? Find(Guid guid)
    {
        foreach (FirmwareEntry entry in _entries)
        {
            if (entry.Guid == guid)
                return entry.Data;
        }

        return null;
    }

    /// <summary>The area that the guest takes the kernel hashes from, when a launch wants to put them there.</summary>
    /// <exception cref="LaunchInputException">The firmware has none, or one too small for the table.</exception>
    public FirmwareArea RequireKernelHashArea()
    {
        if (KernelHashArea is not { } area)
        {
            string why = Find(FirmwareGuids.KernelHashArea) is null ? $"its footer has no entry {FirmwareGuids.KernelHashArea}" : "the base in that entry of its footer is 0";
            throw new LaunchInputException(
                $"A kernel was specified but the firmware {Name} doesn't support kernel/initrd/cmdline measurement: it keeps no area for their hashes ({why}). "
                + "Use a firmware built for direct boot of measured kernels (edk2's OvmfPkg/AmdSev), or launch without --kernel.");
        }

        if (area.Size < KernelHashes.PaddedTableSize)
        {
            throw new LaunchInputException(
                $"A kernel was specified but the kernel-hash area of the firmware {Name}, at 0x{area.Base:x}, has {area.Size} bytes and the table of hashes needs "
                + $"{KernelHashes.PaddedTableSize}. Use another build of the firmware, or launch without --kernel.");
        }

        return area;
    }

    /// <summary>Reads an image from a file, never more of it than <see cref="MaxSize"/> and a little.</summary>
    /// <exception cref="LaunchInputException">The file cannot be read.</exception>
    /// <exception cref="FirmwareFormatException">It is not a firmware image.</exception>
    public static async Task<FirmwareImage> LoadAsync(string path, CancellationToken cancellation = default) =>
        Parse(await ReadFileAsync("firmware", path, cancellation), path);

    private static async Task<byte[]> ReadFileAsync(string role, string path, CancellationToken cancellation)
    {
        await using FileStream file = InputStream.Open(role, path);
        using var content = new MemoryStream();
        // What has no length (a device, a pipe) is cut off like what has too much.
        byte[] chunk = new byte[1 << 20];
        int read;
        while (content.Length <= MaxSize && (read = await ReadAsync(file, chunk, path, cancellation)) > 0)
            content.Write(chunk, 0, read);

        return content.ToArray();
    }

    private static async Task<int> ReadAsync(FileStream file, byte[] chunk, string path, CancellationToken cancellation)
    {
        try
        {
            return await file.ReadAsync(chunk, cancellation);
        }
        catch (IOException exception)
        {
            throw new LaunchInputException($"The firmware '{path}' cannot be read: {exception.Message}", exception);
        }
    }

    private ushort ReadUInt16(int offset) => BinaryPrimitives.ReadUInt16LittleEndian(Bytes.Span[offset..]);

    private uint ReadUInt32(int offset) => BinaryPrimitives.ReadUInt32LittleEndian(Bytes.Span[offset..]);

    private Guid ReadGuid(int offset) => new(Bytes.Span.Slice(offset, 16));
}
