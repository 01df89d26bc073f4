namespace VmmService.Client.Launch;

/// <summary>
/// Reads the footer table and the SEV metadata (snp.md 8.4). Every number in an image may lie, so each is compared with what is left before it is used, in
/// arithmetic that cannot wrap: offsets are int and at most <see cref="MaxSize"/>, 32-bit fields are widened first. The work is bounded by the size of the image.
/// </summary>
/// <remarks>
/// Layout, from the end: 0x20 bytes of reset vector; the footer's GUID (16); the table's length with the footer's own 18 bytes (u16); then downwards, for each
/// entry, its GUID, its length with these 18 bytes (u16), its data.
/// </remarks>
public sealed partial class FirmwareImage
{
    private const int TableEndFromEnd = 0x20;
    private const int GuidSize = 16;
    private const int EntryHeaderSize = GuidSize + sizeof(ushort);
    private const int MetadataHeaderSize = 16;
    private const int SectionSize = 12;
    private const uint MetadataVersion = 1;

    // "ASEV" as a little-endian u32.
    private const uint MetadataSignature = 0x56455341;

    private const string DamagedAdvice = "The image is damaged, cut off or not an OVMF image: get it again, or check what built it.";

    /// <summary>Checks an image and reads what it says about a launch.</summary>
    /// <param name="bytes">The whole image. It is kept, not copied: the caller does not change it afterwards.</param>
    /// <param name="name">File name or another name, for error texts.</param>
    /// <exception cref="FirmwareFormatException">Something in it does not fit; the message says what, where, and what would.</exception>
    public static FirmwareImage Parse(ReadOnlyMemory<byte> bytes, string name = "the firmware image")
    {
        ArgumentNullException.ThrowIfNull(name);
        var image = new FirmwareImage(bytes, name);
        image.CheckSize();
        image.ReadFooterTable();
        image.ReadKnownEntries();
        return image;
    }

    private void CheckSize()
    {
        int size = Bytes.Length;
        if (size > MaxSize)
        {
            throw Bad(
                "size of the image", null, $"more than {MaxSize} bytes", $"the limit is {MaxSize} (16 MiB, the most that QEMU lets max-fw-size be)",
                "Is it a disk image or a kernel? Name a firmware image, such as OVMF.fd.");
        }

        if (size < PageSize)
        {
            throw Bad(
                "size of the image", null, $"{size} bytes", $"it has to be at least one page of {PageSize}",
                "The file is empty or cut off: get it again.");
        }

        if (size % PageSize != 0)
        {
            throw Bad(
                "size of the image", null, $"{size} bytes", $"it has to be a multiple of {PageSize}, because a launch measures whole pages",
                $"{size % PageSize} bytes are left over behind the last page: get the file again, or pad the image at its start.");
        }
    }

    private void ReadFooterTable()
    {
        int end = Bytes.Length - TableEndFromEnd;
        int footer = end - EntryHeaderSize;
        if (ReadGuid(footer + sizeof(ushort)) != FirmwareGuids.Footer)
            return;

        HasFooter = true;
        int total = ReadUInt16(footer);
        if (total < EntryHeaderSize)
            throw Bad("length of the footer table", footer, $"{total}", $"the footer alone takes {EntryHeaderSize}", DamagedAdvice);
        if (total > end)
            throw Bad("length of the footer table", footer, $"{total}", $"only {end} bytes of the image are in front of the table's end", DamagedAdvice);

        int start = end - total;
        var seen = new HashSet<Guid> { FirmwareGuids.Footer };
        for (int entryEnd = footer; entryEnd > start;)
        {
            int left = entryEnd - start;
            if (left < EntryHeaderSize)
            {
                throw Bad(
                    "rest of the footer table", start, $"{left} bytes long", $"an entry takes at least {EntryHeaderSize} for length and GUID, so the lengths do not add up",
                    DamagedAdvice);
            }

            int header = entryEnd - EntryHeaderSize;
            Guid guid = ReadGuid(header + sizeof(ushort));
            string what = Describe(guid);
            int length = ReadUInt16(header);
            if (length < EntryHeaderSize)
                throw Bad($"length of the footer entry {what}", header, $"{length}", $"an entry takes at least {EntryHeaderSize} for length and GUID", DamagedAdvice);
            if (length > left)
                throw Bad($"length of the footer entry {what}", header, $"{length}", $"only {left} bytes of the table are left for it", DamagedAdvice);
            if (length - EntryHeaderSize < FirmwareGuids.BytesNeeded(guid))
            {
                throw Bad(
                    $"length of the footer entry {what}", header, $"{length}", $"this entry holds {FirmwareGuids.BytesNeeded(guid)} bytes and {EntryHeaderSize} for length and GUID",
                    DamagedAdvice);
            }

            if (!seen.Add(guid))
            {
                throw Bad(
                    "GUID of a footer entry", header + sizeof(ushort), what, "the table has that entry already and VMMs do not agree on which of the two counts",
                    "Build the firmware with one of them.");
            }

            int data = entryEnd - length;
            _entries.Add(new FirmwareEntry(guid, data, Bytes.Slice(data, length - EntryHeaderSize)));
            entryEnd = data;
        }
    }

    private void ReadKnownEntries()
    {
        foreach (FirmwareEntry entry in _entries)
        {
            if (entry.Guid == FirmwareGuids.SevEsResetBlock)
                SevEsResetEip = ReadUInt32(entry.Offset);
            else if (entry.Guid == FirmwareGuids.KernelHashArea)
                KernelHashArea = ReadArea(entry);
            else if (entry.Guid == FirmwareGuids.SecretArea)
                SecretArea = ReadArea(entry);
            else if (entry.Guid == FirmwareGuids.TdxMetadata)
                TdxMetadataFromEnd = ReadUInt32(entry.Offset);
            else if (entry.Guid == FirmwareGuids.SvsmInfo)
                SvsmEntryOffset = ReadSvsmEntry(entry);
            else if (entry.Guid == FirmwareGuids.SevMetadata)
                ReadSevMetadata(entry);
        }
    }

    private FirmwareArea? ReadArea(FirmwareEntry entry)
    {
        var area = new FirmwareArea(ReadUInt32(entry.Offset), ReadUInt32(entry.Offset + 4));
        if (area.Base == 0)
            return null;
        if (area.End > FourGiB)
        {
            throw Bad(
                $"size in the footer entry {Describe(entry.Guid)}", entry.Offset + 4, $"0x{area.Size:x}", $"from its base 0x{area.Base:x} only 0x{FourGiB - area.Base:x} bytes are left below 4 GiB",
                DamagedAdvice);
        }

        return area;
    }

    private uint ReadSvsmEntry(FirmwareEntry entry)
    {
        uint offset = ReadUInt32(entry.Offset);
        if (offset >= Size)
            throw Bad("entry point in the footer entry SVSM info", entry.Offset, $"0x{offset:x}", $"it is an offset in an image of 0x{Size:x} bytes", DamagedAdvice);

        return offset;
    }

    private void ReadSevMetadata(FirmwareEntry pointer)
    {
        uint fromEnd = ReadUInt32(pointer.Offset);
        if (fromEnd > Size)
        {
            throw Bad(
                "SEV metadata pointer", pointer.Offset, $"0x{fromEnd:x}", $"it is a distance from the end of an image of 0x{Size:x} bytes, so it points in front of the image",
                DamagedAdvice);
        }

        if (fromEnd < MetadataHeaderSize)
        {
            throw Bad(
                "SEV metadata pointer", pointer.Offset, $"0x{fromEnd:x}", $"it is a distance from the end of the image and the header alone takes {MetadataHeaderSize} bytes",
                DamagedAdvice);
        }

        int header = Bytes.Length - (int)fromEnd;
        uint signature = ReadUInt32(header);
        if (signature != MetadataSignature)
        {
            throw Bad(
                "signature of the SEV metadata", header, $"0x{signature:x8}", $"it has to be 0x{MetadataSignature:x8} (\"ASEV\"), so the pointer at offset 0x{pointer.Offset:x} points elsewhere",
                DamagedAdvice);
        }

        uint version = ReadUInt32(header + 8);
        if (version != MetadataVersion)
        {
            throw Bad(
                "version of the SEV metadata", header + 8, $"{version}", $"only version {MetadataVersion} is known",
                "If a newer firmware has another version, VmmService has to learn it; otherwise the image is damaged.");
        }

        uint count = ReadUInt32(header + 12);
        uint most = (fromEnd - MetadataHeaderSize) / SectionSize;
        if (count > most)
            throw Bad("section count of the SEV metadata", header + 12, $"{count}", $"{most} sections fit between the header and the end of the image", DamagedAdvice);

        uint length = ReadUInt32(header + 4);
        uint needed = MetadataHeaderSize + (count * SectionSize);
        if (length != needed)
        {
            throw Bad(
                "length of the SEV metadata", header + 4, $"{length}", $"a header of {MetadataHeaderSize} and {count} sections of {SectionSize} bytes make {needed}",
                DamagedAdvice);
        }

        var sections = new SevSection[count];
        for (int i = 0; i < sections.Length; i++)
            sections[i] = ReadSection(i, header + MetadataHeaderSize + (i * SectionSize));

        CheckOverlaps(sections);
        SevSections = sections;
    }

    private SevSection ReadSection(int index, int offset)
    {
        var section = new SevSection(ReadUInt32(offset), ReadUInt32(offset + 4), (SevSectionType)ReadUInt32(offset + 8), offset);
        if (section.Gpa % PageSize != 0)
            throw Bad($"address of SEV section {index}", offset, $"0x{section.Gpa:x}", $"it has to be a multiple of 0x{PageSize:x}, because a launch adds whole pages", DamagedAdvice);
        if (section.Size == 0)
            throw Bad($"size of SEV section {index}", offset + 4, "0", "a section has at least one page", DamagedAdvice);
        if (section.Size % PageSize != 0)
            throw Bad($"size of SEV section {index}", offset + 4, $"0x{section.Size:x}", $"it has to be a multiple of 0x{PageSize:x}, because a launch adds whole pages", DamagedAdvice);
        if (section.End > FourGiB)
        {
            throw Bad(
                $"size of SEV section {index}", offset + 4, $"0x{section.Size:x}", $"from its address 0x{section.Gpa:x} only 0x{FourGiB - section.Gpa:x} bytes are left below 4 GiB",
                DamagedAdvice);
        }

        if (section.End > Gpa)
        {
            throw Bad(
                $"address of SEV section {index}", offset, $"0x{section.Gpa:x} with 0x{section.Size:x} bytes", $"the image itself is loaded from 0x{Gpa:x} to 4 GiB and a page can be launched once",
                DamagedAdvice);
        }

        return section;
    }

    private void CheckOverlaps(SevSection[] sections)
    {
        // By address, and by place in the table among equals, so that the same image always names the same pair.
        SevSection[] byGpa = [.. sections.OrderBy(section => section.Gpa).ThenBy(section => section.Offset)];
        for (int i = 1; i < byGpa.Length; i++)
        {
            SevSection before = byGpa[i - 1];
            SevSection section = byGpa[i];
            if (section.Gpa >= before.End)
                continue;

            throw Bad(
                $"address of SEV section {Array.IndexOf(sections, section)}", section.Offset, $"0x{section.Gpa:x}",
                $"section {Array.IndexOf(sections, before)} has 0x{before.Gpa:x} to 0x{before.End:x} and a page can be launched once",
                DamagedAdvice);
        }
    }

    private static string Describe(Guid guid) => FirmwareGuids.NameOf(guid) ?? guid.ToString();

    private FirmwareFormatException Bad(string field, int? offset, string found, string limit, string advice) => new(Name, field, offset, found, limit, advice);
}
