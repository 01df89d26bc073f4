using System.Buffers.Binary;

namespace VmmService.Client.Launch;

/// <summary>
/// The TDX metadata of a firmware image (tdx.md 6.4; edk2 IntelTdxMetadata): which guest memory a TD starts with. An image comes from anyone: an instance of this
/// type exists only if every field was found to fit by the rules of a VMM, so its users need not look again. What is done with it is <see cref="TdxLaunchPlan"/>'s.
/// </summary>
/// <remarks>
/// The footer points to the descriptor: "TDVF", length with the sections, version, count, each a u32; then the sections, 32 bytes each. A GUID stands in front of
/// the descriptor; some tools demand it and QEMU does not (<see cref="HasGuid"/>). Offsets count over the whole flash, variable store first.
/// </remarks>
public sealed class TdvfMetadata
{
    private const int DescriptorSize = 16;
    private const int SectionSize = 32;
    private const uint Version = 1;

    // "TDVF" as a little-endian u32.
    private const uint Signature = 0x46564454;

    // Where td-shim keeps the descriptor's offset, from the end.
    private const int ShimPointerFromEnd = 0x20;

    // Private addresses end below the shared bit, which is 51 at most.
    private const ulong PrivateEnd = 1UL << 51;

    private const string DamagedAdvice = "The image is damaged, or was not built for TDX: get it again, or check what built it.";

    /// <summary>Stands in front of the descriptor.</summary>
    internal static readonly Guid Guid = new("e9eaf9f3-168e-44d5-a8eb-7f4d8738f6ae");

    private readonly FirmwareImage _image;
    private readonly TdvfRules _rules;

    private TdvfMetadata(FirmwareImage image, TdvfRules rules)
    {
        _image = image;
        _rules = rules;
        Offset = FindDescriptor();
        Sections = ReadSections(ReadCount());
        HasGuid = Offset >= 16 && new Guid(image.Bytes.Span.Slice(Offset - 16, 16)) == Guid;
    }

    /// <summary>Where the descriptor is in the image.</summary>
    public int Offset { get; }

    /// <summary>In the order of the table, which is the order of launch.</summary>
    public IReadOnlyList<TdvfSection> Sections { get; }

    /// <summary>Whether the GUID of the metadata stands in front of the descriptor.</summary>
    public bool HasGuid { get; }

    /// <summary>Whether the image has TDX metadata at all; reading it may still fail.</summary>
    public static bool IsIn(FirmwareImage image)
    {
        ArgumentNullException.ThrowIfNull(image);
        return image.TdxMetadataFromEnd is not null;
    }

    /// <summary>Reads the metadata of an image.</summary>
    /// <exception cref="FirmwareFormatException">Something in it does not fit; the message says what, where, and what would.</exception>
    /// <exception cref="LaunchInputException">The image has none.</exception>
    public static TdvfMetadata Parse(FirmwareImage image, TdvfRules rules = TdvfRules.Qemu)
    {
        ArgumentNullException.ThrowIfNull(image);
        return new TdvfMetadata(image, rules);
    }

    private int FindDescriptor()
    {
        ulong size = _image.Size;
        ulong descriptor;
        int pointer;
        if (_image.TdxMetadataFromEnd is { } fromEnd)
        {
            pointer = _image.Entries.First(entry => entry.Guid == FirmwareGuids.TdxMetadata).Offset;
            if (fromEnd > size)
                throw Bad("TDX metadata pointer", pointer, $"0x{fromEnd:x}", $"it is a distance from the end of an image of 0x{size:x} bytes, so it points in front of the image");
            descriptor = size - fromEnd;
        }
        else if (_rules == TdvfRules.TdShim && !_image.HasFooter)
        {
            pointer = (int)size - ShimPointerFromEnd;
            descriptor = ReadUInt32(pointer);
        }
        else
        {
            throw new LaunchInputException(
                $"{_image.Name} has no TDX metadata ({(_image.HasFooter ? "its footer lacks that entry" : "it has no footer table")}), so it is not known what a TD would start with. "
                + "Use a firmware built for TDX, such as edk2's OvmfPkg/IntelTdx or a recent OVMF.fd.");
        }

        if (descriptor + DescriptorSize > size)
        {
            throw Bad(
                "TDX metadata pointer", pointer, $"0x{ReadUInt32(pointer):x}",
                $"so the descriptor would start at 0x{descriptor:x} of 0x{size:x} bytes, and its header alone takes {DescriptorSize}");
        }

        return (int)descriptor;
    }

    private int ReadCount()
    {
        uint signature = ReadUInt32(Offset);
        if (signature != Signature)
            throw Bad("signature of the TDX metadata", Offset, $"0x{signature:x8}", $"it has to be 0x{Signature:x8} (\"TDVF\"), so the footer points elsewhere");

        uint version = ReadUInt32(Offset + 8);
        if (version != Version)
        {
            throw Bad(
                "version of the TDX metadata", Offset + 8, $"{version}", $"only version {Version} is known",
                "If a newer firmware has another version, VmmService has to learn it; otherwise the image is damaged.");
        }

        uint count = ReadUInt32(Offset + 12);
        uint least = _rules == TdvfRules.Qemu ? 2u : 1;
        if (count < least)
            throw Bad("section count of the TDX metadata", Offset + 12, $"{count}", $"there have to be at least {least}");

        int most = (_image.Bytes.Length - Offset - DescriptorSize) / SectionSize;
        if (count > most)
            throw Bad("section count of the TDX metadata", Offset + 12, $"{count}", $"{most} sections fit between the descriptor and the end of the image");

        uint length = ReadUInt32(Offset + 4);
        uint needed = DescriptorSize + (count * SectionSize);
        if (length != needed)
            throw Bad("length of the TDX metadata", Offset + 4, $"{length}", $"a descriptor of {DescriptorSize} and {count} sections of {SectionSize} bytes make {needed}");

        return (int)count;
    }

    private TdvfSection[] ReadSections(int count)
    {
        var sections = new TdvfSection[count];
        for (int i = 0; i < count; i++)
        {
            int at = Offset + DescriptorSize + (i * SectionSize);
            sections[i] = new TdvfSection(
                ReadUInt32(at), ReadUInt32(at + 4), ReadUInt64(at + 8), ReadUInt64(at + 16), (TdvfSectionType)ReadUInt32(at + 24), (TdvfAttributes)ReadUInt32(at + 28), at);
            Check(i, sections[i]);
        }

        return sections;
    }

    // In QEMU's order.
    private void Check(int index, TdvfSection section)
    {
        string name = $"TDX section {index} ({section.Type})";
        bool isLoaded = section.Type is not (TdvfSectionType.TD_INFO or TdvfSectionType.TD_PARAMS);
        if (isLoaded && section.MemoryDataSize < section.RawDataSize)
            throw Bad($"memory size of {name}", section.Offset + 16, $"0x{section.MemoryDataSize:x}", $"its data alone has 0x{section.RawDataSize:x} bytes");
        if (section.MemoryAddress % FirmwareImage.PageSize != 0)
            throw Bad($"address of {name}", section.Offset + 8, $"0x{section.MemoryAddress:x}", $"it has to be a multiple of 0x{FirmwareImage.PageSize:x}, because a launch adds whole pages");
        if (section.MemoryDataSize % FirmwareImage.PageSize != 0)
            throw Bad($"memory size of {name}", section.Offset + 16, $"0x{section.MemoryDataSize:x}", $"it has to be a multiple of 0x{FirmwareImage.PageSize:x}, because a launch adds whole pages");
        CheckType(name, section);

        // What QEMU does not look at, though a launch could only fail: the end of guest memory and of the image.
        if (section.MemoryDataSize > PrivateEnd || section.MemoryAddress > PrivateEnd - section.MemoryDataSize)
            throw Bad($"address of {name}", section.Offset + 8, $"0x{section.MemoryAddress:x} with 0x{section.MemoryDataSize:x} bytes", $"private memory ends at 0x{PrivateEnd:x} at most");
        if ((ulong)section.DataOffset + section.RawDataSize > _image.Size)
        {
            throw Bad(
                $"data of {name}", section.Offset, $"at 0x{section.DataOffset:x} with 0x{section.RawDataSize:x} bytes", $"the image has 0x{_image.Size:x}",
                "Is it the code half of a split build (OVMF_CODE.fd)? Offsets count over the whole flash: give the variable store with it, or use the combined image.");
        }
    }

    private void CheckType(string name, TdvfSection section)
    {
        TdvfSectionType last = _rules == TdvfRules.Qemu ? TdvfSectionType.TEMP_MEM : TdvfSectionType.TD_PARAMS;
        if (section.Type > last)
        {
            throw Bad(
                $"type of {name}", section.Offset + 24, $"{(uint)section.Type}", $"types go up to {(uint)last} ({last}) here",
                section.Type <= TdvfSectionType.TD_PARAMS ? "An image of td-shim has to be read by its rules: choose them." : DamagedAdvice);
        }

        bool needsData = section.Type is TdvfSectionType.BFV or TdvfSectionType.CFV or TdvfSectionType.TD_INFO or TdvfSectionType.TD_PARAMS;
        if (needsData && section.RawDataSize == 0)
            throw Bad($"data size of {name}", section.Offset + 4, "0", "such a section has data in the image");
        bool hasNoData = section.Type is TdvfSectionType.TD_HOB or TdvfSectionType.TEMP_MEM or TdvfSectionType.PERM_MEM;
        if (hasNoData && section.RawDataSize != 0)
            throw Bad($"data size of {name}", section.Offset + 4, $"0x{section.RawDataSize:x}", "such a section has no data in the image, it has to be 0");
    }

    private uint ReadUInt32(int offset) => BinaryPrimitives.ReadUInt32LittleEndian(_image.Bytes.Span[offset..]);

    private ulong ReadUInt64(int offset) => BinaryPrimitives.ReadUInt64LittleEndian(_image.Bytes.Span[offset..]);

    private FirmwareFormatException Bad(string field, int offset, string found, string limit, string advice = DamagedAdvice) =>
        new(_image.Name, field, offset, found, limit, advice);
}
