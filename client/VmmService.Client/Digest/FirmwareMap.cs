using System.Buffers.Binary;
using VmmService.Client.Launch;

namespace VmmService.Client.Digest;

/// <summary>
/// What is where in a firmware image, for people who look at a page that differs: the firmware volumes (UEFI Platform Initialization specification, volume 3, EFI_FIRMWARE_VOLUME_HEADER),
/// the footer table, the SEV metadata, the reset vector. Only what is found well-formed is named.
/// </summary>
public sealed class FirmwareMap
{
    private const int HeaderSize = 56;
    private const int GuidOffset = 16;
    private const int LengthOffset = 32;
    private const int SignatureOffset = 40;
    private const int HeaderLengthOffset = 48;
    private const int Alignment = 16;

    // "_FVH" as a little-endian u32.
    private const uint Signature = 0x4856465f;

    private static readonly Dictionary<Guid, string> s_fileSystems = new()
    {
        [new Guid("8c8ce578-8a3d-4f1c-9935-896185c32dd3")] = "FFS2",
        [new Guid("5473c07a-3dcb-4dca-bd6f-1e9689e7349a")] = "FFS3",
        [new Guid("fff12b8d-7696-4c8b-a985-2747075b4f50")] = "boot variables",
    };

    private readonly FirmwareImage _image;
    private readonly List<Volume> _volumes = [];

    private readonly record struct Volume(int Offset, int Size, string FileSystem);

    public FirmwareMap(FirmwareImage image)
    {
        ArgumentNullException.ThrowIfNull(image);
        _image = image;
        for (int offset = 0; offset <= image.Bytes.Length - HeaderSize;)
        {
            if (TryRead(offset) is not { } volume)
            {
                offset += Alignment;
                continue;
            }

            _volumes.Add(volume);
            offset += volume.Size;
        }
    }

    /// <summary>What is in the page at an offset of the image, in words after "it has"; null if nothing is known of it.</summary>
    public string? Describe(ulong offset)
    {
        List<string> parts = [];
        foreach (Volume volume in _volumes.Where(volume => (ulong)volume.Offset < offset + FirmwareImage.PageSize && offset < (ulong)volume.Offset + (ulong)volume.Size))
        {
            string place = offset <= (ulong)volume.Offset ? "the start" : $"bytes from 0x{offset - (ulong)volume.Offset:x}";
            parts.Add($"{place} of the firmware volume at 0x{volume.Offset:x} (0x{volume.Size:x} bytes, {volume.FileSystem})");
        }

        if (_image.SevSections.Any(section => InPage(section.Offset)))
            parts.Add("the SEV metadata");

        string[] entries = [.. _image.Entries.Where(entry => InPage(entry.Offset)).Select(entry => FirmwareGuids.NameOf(entry.Guid) ?? entry.Guid.ToString())];
        if (entries.Length > 0)
            parts.Add($"the footer table ({string.Join(", ", entries)})");
        if (offset + FirmwareImage.PageSize == _image.Size)
            parts.Add("the reset vector");
        return parts.Count == 0 ? null : string.Join(", ", parts);

        bool InPage(int at) => (ulong)at >= offset && (ulong)at < offset + FirmwareImage.PageSize;
    }

    private Volume? TryRead(int offset)
    {
        ReadOnlySpan<byte> at = _image.Bytes.Span[offset..];
        if (BinaryPrimitives.ReadUInt32LittleEndian(at[SignatureOffset..]) != Signature)
            return null;

        ulong size = BinaryPrimitives.ReadUInt64LittleEndian(at[LengthOffset..]);
        int header = BinaryPrimitives.ReadUInt16LittleEndian(at[HeaderLengthOffset..]);
        if (header < HeaderSize || header % 2 != 0 || size < (ulong)header || size > (ulong)at.Length)
            return null;

        // The 16-bit words of a header add up to zero.
        ushort sum = 0;
        for (int i = 0; i < header; i += 2)
            sum += BinaryPrimitives.ReadUInt16LittleEndian(at[i..]);
        var fileSystem = new Guid(at.Slice(GuidOffset, 16));
        return sum == 0 ? new Volume(offset, (int)size, s_fileSystems.GetValueOrDefault(fileSystem) ?? fileSystem.ToString()) : null;
    }
}
