using VmmService.Client.Launch;

namespace VmmService.IntegrationTests.Support;

/// <summary>TDVF images of our own.</summary>
internal static class TdvfImages
{
    /// <summary>An image with a BFV of one page, and these sections besides, which have no content of their own.</summary>
    public static byte[] With(List<(uint Type, ulong Gpa, ulong Size)> sections)
    {
        var metadata = new MemoryStream();
        var writer = new BinaryWriter(metadata);
        writer.Write("TDVF"u8);
        writer.Write(16 + (32 * (sections.Count + 1)));
        writer.Write(1);
        writer.Write(sections.Count + 1);
        Section(0, 0x1000, 0xffff0000, 0x1000, 1);
        foreach ((uint type, ulong gpa, ulong size) in sections)
            Section(0, 0, gpa, size, type);
        return SampleFirmware.Create(metadata.ToArray());

        void Section(uint offset, uint raw, ulong gpa, ulong size, uint type)
        {
            writer.Write(offset);
            writer.Write(raw);
            writer.Write(gpa);
            writer.Write(size);
            writer.Write(type);
            writer.Write(0u);
        }
    }
}
