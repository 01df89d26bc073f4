using System.Buffers.Binary;

namespace VmmService.Client.Launch;

/// <summary>Type of a section in the SEV metadata of a firmware image (OvmfSevMetadata; snp.md 8.3).</summary>
public enum SevSectionType : uint
{
    /// <summary>Memory that the firmware uses before it can validate pages itself.</summary>
    SecMem = 1,

    /// <summary>The secrets page.</summary>
    Secrets = 2,

    /// <summary>The CPUID page.</summary>
    Cpuid = 3,

    /// <summary>Calling area of an SVSM.</summary>
    SvsmCaa = 4,

    /// <summary>Hashes of kernel, initrd and command line.</summary>
    KernelHashes = 0x10,
}

/// <summary>A section of the SEV metadata.</summary>
/// <param name="Gpa">Guest physical address, bytes, page aligned.</param>
/// <param name="Size">Bytes, whole pages.</param>
public readonly record struct SevSection(uint Gpa, uint Size, SevSectionType Type);

/// <summary>An entry of the footer table: what a GUID says.</summary>
public readonly record struct FooterEntry(Guid Id, ReadOnlyMemory<byte> Data);

/// <summary>An area of guest memory that the firmware names.</summary>
public readonly record struct FirmwareArea(uint Base, uint Size);

/// <summary>
/// A firmware image as a VMM reads it: where it is loaded, and what its footer table says (edk2's ResetVectorVtf0 and OvmfSevMetadata; snp.md 8.4). The image
/// may come from anybody, so every length and offset in it is checked before it is used.
/// </summary>
/// <remarks>
/// The footer table ends 32 bytes before the end of the image: GUID of the footer, its total length before that, entries downwards from there, each data, length
/// u16, GUID. An image without the footer's GUID is legal: it has no SEV support.
/// </remarks>
public sealed class FirmwareImage
{
    /// <summary>Largest image: what fits below 4 GiB without reaching the APICs' addresses.</summary>
    public const int MaxSize = 16 << 20;

    public static readonly Guid FooterId = new("96b582de-1fb2-45f7-baea-a366c55a082d");
    public static readonly Guid SevEsResetBlockId = new("00f771de-1a7e-4fcb-890e-68c77e2fb44e");
    public static readonly Guid SecretAreaId = new("4c2eb361-7d9b-4cc3-8081-127c90d3d294");
    public static readonly Guid HashAreaId = new("7255371f-3a3b-4b04-927b-1da6efa8d454");
    public static readonly Guid SevMetadataId = new("dc886566-984a-4798-a75e-5585a7bf67cc");
    public static readonly Guid TdxMetadataId = new("e47a6535-984a-4798-865e-4685a7bf8ec2");
    public static readonly Guid SvsmInfoId = new("a789a612-0597-4c4b-a49f-cbb1fe9d1ddd");

    private const int PageBytes = 4096;
    private const int FooterEnd = 0x20;
    private const int GuidSize = 16;
    private const int EntryHeader = 18;
    private const int MetadataHeader = 16;
    private const int MetadataSection = 12;
    private const int MaxSections = 1024;

    private readonly List<FooterEntry> _entries = [];
    private readonly List<SevSection> _sections = [];

    private FirmwareImage(ReadOnlyMemory<byte> bytes) => Bytes = bytes;

    public ReadOnlyMemory<byte> Bytes { get; }

    public int Size => Bytes.Length;

    /// <summary>Where a VMM loads it: it ends at 4 GiB.</summary>
    public uint LoadGpa => (uint)((1UL << 32) - (ulong)Size);

    /// <summary>There is a footer table.</summary>
    public bool HasFooter { get; private set; }

    /// <summary>Entries of the footer table from the image's end downwards, known and unknown.</summary>
    public IReadOnlyList<FooterEntry> Entries => _entries;

    /// <summary>The image has SEV metadata, so an SNP guest can start it.</summary>
    public bool HasSevMetadata { get; private set; }

    /// <summary>Sections of the SEV metadata in table order, which is the order of launch.</summary>
    public IReadOnlyList<SevSection> Sections => _sections;

    /// <summary>Where application processors start: IP in the low half, CS base in the high half. Null without a reset block.</summary>
    public uint? ResetEip { get; private set; }

    /// <summary>Where the kernel-hashes table goes; null where the firmware does not support it.</summary>
    public FirmwareArea? HashArea { get; private set; }

    public FirmwareArea? SecretArea { get; private set; }

    /// <summary>Offset of the SVSM's entry in its own image.</summary>
    public uint? SvsmEntry { get; private set; }

    /// <summary>Distance of the TDX metadata from the end of the image, as the table has it.</summary>
    public uint? TdxMetadataFromEnd { get; private set; }

    /// <summary>Reads an image.</summary>
    /// <exception cref="FirmwareFormatException">It cannot be launched; the message says which field, its value, its limit and what to try.</exception>
    public static FirmwareImage Parse(ReadOnlyMemory<byte> bytes)
    {
        if (bytes.Length == 0)
        {
            throw new FirmwareFormatException("The firmware image is empty. Give a file of at least one page (4096 bytes), for example OVMF_CODE.fd.");
        }
        if (bytes.Length % PageBytes != 0)
        {
            throw new FirmwareFormatException(
                $"The firmware image has {bytes.Length} bytes, which is not a multiple of 4096: it is truncated, or no firmware image. Compare its size with the package's.");
        }
        if (bytes.Length > MaxSize)
        {
            throw new FirmwareFormatException(
                $"The firmware image has {bytes.Length} bytes; at most {MaxSize} fit below 4 GiB. A variable store or a disk image is something else: give the code image.");
        }
        var image = new FirmwareImage(bytes);
        image.ReadFooter();
        return image;
    }

    /// <summary>The data of a footer entry, or null.</summary>
    public ReadOnlyMemory<byte>? Find(Guid id)
    {
        foreach (FooterEntry entry in _entries)
        {
            if (entry.Id == id)
            {
                return entry.Data;
            }
        }
        return null;
    }

    private void ReadFooter()
    {
        ReadOnlySpan<byte> image = Bytes.Span;
        int footer = image.Length - FooterEnd - EntryHeader;
        if (new Guid(image.Slice(footer + 2, GuidSize)) != FooterId)
        {
            return;
        }
        HasFooter = true;
        int total = BinaryPrimitives.ReadUInt16LittleEndian(image[footer..]);
        int table = image.Length - FooterEnd - total;
        if (total < EntryHeader || table < 0)
        {
            throw Bad("total length of the footer table", footer, (uint)total, $"it must be between {EntryHeader} and the {image.Length - FooterEnd} bytes in front of the image's end");
        }
        // Downwards, each entry's length tells where the next one ends.
        for (int end = footer; end > table;)
        {
            int header = end - EntryHeader;
            if (header < table)
            {
                throw Bad("footer entry", end, (uint)(end - table), $"the {end - table} bytes that are left cannot hold an entry's length and GUID ({EntryHeader} bytes)");
            }
            int length = BinaryPrimitives.ReadUInt16LittleEndian(image[header..]);
            if (length < EntryHeader || end - length < table)
            {
                throw Bad("length of a footer entry", header, (uint)length, $"it must be at least {EntryHeader} and stay inside the table, which has {end - table} bytes left");
            }
            var id = new Guid(image.Slice(header + 2, GuidSize));
            if (Find(id) is not null)
            {
                throw new FirmwareFormatException($"The footer table names {id} twice (second at offset 0x{header:x}), so it is not clear which one counts. The image is damaged or was assembled wrongly.");
            }
            _entries.Add(new FooterEntry(id, Bytes.Slice(end - length, length - EntryHeader)));
            end -= length;
        }
        ResetEip = U32(SevEsResetBlockId);
        SvsmEntry = U32(SvsmInfoId);
        TdxMetadataFromEnd = U32(TdxMetadataId);
        HashArea = Area(HashAreaId);
        SecretArea = Area(SecretAreaId);
        if (U32(SevMetadataId) is { } fromEnd)
        {
            ReadSevMetadata(fromEnd);
        }
    }

    private void ReadSevMetadata(uint fromEnd)
    {
        ReadOnlySpan<byte> image = Bytes.Span;
        if (fromEnd < MetadataHeader || fromEnd > image.Length)
        {
            throw new FirmwareFormatException(
                $"The SEV metadata pointer (footer entry {SevMetadataId}) is 0x{fromEnd:x} bytes from the end of the image; it must be between {MetadataHeader} and the image's size 0x{image.Length:x}. The image is damaged.");
        }
        int at = (int)(image.Length - fromEnd);
        ReadOnlySpan<byte> metadata = image[at..];
        if (!metadata[..4].SequenceEqual("ASEV"u8))
        {
            throw Bad("signature of the SEV metadata", at, BinaryPrimitives.ReadUInt32LittleEndian(metadata), "it must be \"ASEV\" (0x56455341)");
        }
        uint length = BinaryPrimitives.ReadUInt32LittleEndian(metadata[4..]);
        uint version = BinaryPrimitives.ReadUInt32LittleEndian(metadata[8..]);
        uint count = BinaryPrimitives.ReadUInt32LittleEndian(metadata[12..]);
        if (version != 1)
        {
            throw Bad("version of the SEV metadata", at + 8, version, "only version 1 is known");
        }
        if (count > MaxSections || length != MetadataHeader + ((ulong)count * MetadataSection) || length > metadata.Length)
        {
            throw Bad("number of SEV metadata sections", at + 12, count, $"with length 0x{length:x} (must be 16 + 12 for each section) and {metadata.Length} bytes to the image's end, at most {MaxSections}");
        }
        HasSevMetadata = true;
        for (int i = 0; i < count; i++)
        {
            int offset = MetadataHeader + (i * MetadataSection);
            ReadOnlySpan<byte> raw = metadata[offset..];
            AddSection(at + offset, new SevSection(
                BinaryPrimitives.ReadUInt32LittleEndian(raw), BinaryPrimitives.ReadUInt32LittleEndian(raw[4..]), (SevSectionType)BinaryPrimitives.ReadUInt32LittleEndian(raw[8..])));
        }
    }

    private void AddSection(int offset, SevSection section)
    {
        if (!Enum.IsDefined(section.Type))
        {
            throw Bad("type of a SEV metadata section", offset + 8, (uint)section.Type, "known are 1 SNP_SEC_MEM, 2 SNP_SECRETS, 3 CPUID, 4 SVSM_CAA, 0x10 SNP_KERNEL_HASHES");
        }
        if (section.Gpa % PageBytes != 0)
        {
            throw Bad("address of a SEV metadata section", offset, section.Gpa, "it must be page aligned");
        }
        if (section.Size == 0 || section.Size % PageBytes != 0)
        {
            throw Bad("size of a SEV metadata section", offset + 4, section.Size, "it must be a positive multiple of 4096");
        }
        if (section.Type is SevSectionType.Secrets or SevSectionType.Cpuid && section.Size != PageBytes)
        {
            throw Bad("size of a SEV metadata section", offset + 4, section.Size, "secrets and CPUID sections are one page");
        }
        if ((ulong)section.Gpa + section.Size > LoadGpa)
        {
            throw Bad("address of a SEV metadata section", offset, section.Gpa, $"with size 0x{section.Size:x} it reaches into the firmware itself, which is loaded at 0x{LoadGpa:x}, or beyond 4 GiB");
        }
        foreach (SevSection other in _sections)
        {
            if (section.Gpa < (ulong)other.Gpa + other.Size && other.Gpa < (ulong)section.Gpa + section.Size)
            {
                throw Bad("address of a SEV metadata section", offset, section.Gpa, $"with size 0x{section.Size:x} it overlaps the section at 0x{other.Gpa:x}; a page can be launched once only");
            }
        }
        _sections.Add(section);
    }

    private uint? U32(Guid id) => Find(id) switch
    {
        null => null,
        { Length: 4 } data => BinaryPrimitives.ReadUInt32LittleEndian(data.Span),
        { } data => throw WrongLength(id, data.Length, 4),
    };

    private FirmwareArea? Area(Guid id)
    {
        if (Find(id) is not { } data)
        {
            return null;
        }
        if (data.Length != 8)
        {
            throw WrongLength(id, data.Length, 8);
        }
        uint start = BinaryPrimitives.ReadUInt32LittleEndian(data.Span);
        // A base of 0 says that the area is not supported.
        return start == 0 ? null : new FirmwareArea(start, BinaryPrimitives.ReadUInt32LittleEndian(data.Span[4..]));
    }

    private static FirmwareFormatException WrongLength(Guid id, int length, int expected) =>
        new($"The footer entry {id} has {length} bytes of data where {expected} are wanted. The image is damaged, or of a kind that this version does not know.");

    private static FirmwareFormatException Bad(string field, int offset, uint value, string limit) =>
        new($"The {field} at offset 0x{offset:x} of the firmware image is 0x{value:x}: {limit}. The image is damaged, or made for something else.");
}

/// <summary>A firmware image cannot be launched as it is. The message is for the person who chose it.</summary>
public sealed class FirmwareFormatException(string message) : Exception(message);
