using System.Buffers.Binary;

namespace VmmService.Client.Launch;

/// <summary>
/// The sample firmware with TDX metadata, for machines without a TDVF: the sections that edk2's images have, over the 64 KiB of <see cref="SampleFirmware"/>. Its lower half
/// passes for the variable store, its upper half for the code.
/// </summary>
public static class SampleTdvf
{
    private const uint Half = SampleFirmware.Size / 2;
    private const uint HighHalf = unchecked(0u - Half);
    private const uint LowHalf = HighHalf - Half;

    private static readonly (uint Offset, uint Raw, uint Gpa, uint Size, TdvfSectionType Type, TdvfAttributes Attributes)[] s_sections =
    [
        (Half, Half, HighHalf, Half, TdvfSectionType.BFV, TdvfAttributes.EXTENDMR),
        (0, Half, LowHalf, Half, TdvfSectionType.CFV, TdvfAttributes.None),
        (0, 0, 0x810000, 0x10000, TdvfSectionType.TEMP_MEM, TdvfAttributes.None),
        (0, 0, 0x80b000, 0x2000, TdvfSectionType.TEMP_MEM, TdvfAttributes.None),
        (0, 0, 0x809000, 0x2000, TdvfSectionType.TD_HOB, TdvfAttributes.None),
        (0, 0, 0x800000, 0x6000, TdvfSectionType.TEMP_MEM, TdvfAttributes.None),
    ];

    /// <summary>Makes the image. It is the same on every machine, byte for byte.</summary>
    public static byte[] Create()
    {
        byte[] metadata = new byte[32 + (32 * s_sections.Length)];
        TdvfMetadata.Guid.TryWriteBytes(metadata);
        Span<byte> descriptor = metadata.AsSpan(16);
        "TDVF"u8.CopyTo(descriptor);
        Write(descriptor[4..], (uint)(16 + (32 * s_sections.Length)), 1, (uint)s_sections.Length);
        for (int i = 0; i < s_sections.Length; i++)
        {
            (uint offset, uint raw, uint gpa, uint size, TdvfSectionType type, TdvfAttributes attributes) = s_sections[i];
            Write(descriptor[(16 + (32 * i))..], offset, raw, gpa, 0, size, 0, (uint)type, (uint)attributes);
        }

        return SampleFirmware.Create(metadata, tdxDescriptorOffset: 16);
    }

    private static void Write(Span<byte> at, params ReadOnlySpan<uint> words)
    {
        for (int i = 0; i < words.Length; i++)
            BinaryPrimitives.WriteUInt32LittleEndian(at[(4 * i)..], words[i]);
    }
}
